# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · What can *your* Vision Transformer not see?
#
# Notebook 01 proves what a plain ViT ignores and counts it over the models of timm by their shapes. This one takes a single
# model, with its weights, and measures it: how many dimensions of a patch its embedding ignores, and its whole encoder; how far
# CIFAR-10 images can move along them; and what that does to the output, beside noise of the same norm that is not chosen.
#
# ```sh
# nullpaper run 12_any_model -p model vit_base_patch32_224 -p weights vit_b32.safetensors --label b32
# nullpaper sweep sweeps/model_zoo.yaml
# ```
#
# Without weights of its own a timm model is measured at its **random initial weights**: dimensions that follow from shapes and
# LayerNorm are there before any training, while predictions then mean nothing. The table says which weights it speaks of.

# %% tags=["parameters"]
profile: str = "cpu"
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str | None = None  # a .safetensors file for it
pretrained: bool = False  # fetch timm's weights from its hub
images: int | None = None  # test images; None: the profile's
seed: int = 0

# %%
import pandas as pd
import seaborn as sns
import torch

from nullpaper import statistics
from nullpaper.data import datasets as data
from nullpaper.models import vit
from nullpaper.nullspace import box_qp as box
from nullpaper.nullspace import layernorm as invariance
from nullpaper.nullspace import patch as nullspace
from nullpaper.robustness import perturbation
from nullpaper.workflow import figures as plots
from nullpaper.workflow.store import records, stored

plots.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
images = images or {"smoke": 8, "cpu": 100, "gpu": 1_000, "imagenet": 1_000}[profile]
shipped = model == vit.SHIPPED
torch.manual_seed(seed)  # random initial weights
net = vit.load_vit(model, pretrained=shipped or pretrained, weights=weights, device=device)
origin = "file" if weights else "shipped" if shipped else "timm's hub" if pretrained else "random"
cifar = data.load_data("cifar10")
test = cifar.test.subset(images, seed)

# %% [markdown]
# ## (a) How many dimensions
#
# With $W$ the matrix of the patch embedding in pixel units and $P$ the projection that LayerNorm's mean subtraction amounts to
# (notebook 01), the embedding ignores the nullspace of $W$ and the encoder that of $PW$, provided that every reader of the residual
# stream is a LayerNorm.

# %%
shift = invariance.shift_invariance(net)
spaces = {"embedding": nullspace.patch_nullspace(net)}
if shift.holds:
    spaces["encoder"] = nullspace.patch_nullspace(net, through="encoder")
counted = pd.DataFrame(
    {
        "model": net.name,
        "weights": origin,
        "through": through,
        "patch": net.patch_size[0],
        "patch_dim": space.basis.shape[0],
        "width": net.embed_dim,
        "ignored": space.dim,
        "share": space.dim / space.basis.shape[0],
    }
    for through, space in spaces.items()
)
_ = plots.save_table(counted, "12_dimensions", caption=f"Dimensions of a patch that {net.name} ignores.")
print("" if shift.holds else f"The encoder reads the shift: {shift.reason}")
counted.style.hide(axis="index").format({"share": "{:.1%}"})

# %% [markdown]
# ## (b) What moving along them does
#
# The largest legal noise that `PatchNullspace.largest` finds for each image, and two controls of the same norm image by image,
# legal as well, as far as the box allows (the table gives the norms): Gaussian noise, and the same noise with the pixels of each
# patch permuted. The output's change is $\lVert f(x + v) - f(x) \rVert / \lVert f(x) \rVert$ over the logits.


# %%
def moved() -> list[dict[str, object]]:
    """Norm, relative change of the logits and unchanged predictions, by noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = data.to_pixels(test.images, net.image_size, device)
    clean = perturbation.transported_logits(net, pixels, "float32", batch_size=50)
    noises = {f"exact, {through}": space.largest(pixels) for through, space in spaces.items() if space.dim}
    if not noises:
        return []
    longest = max(noises.values(), key=lambda noise: float(perturbation.norms(noise).mean()))
    norm = perturbation.norms(longest)
    gaussian = torch.randn(pixels.shape, generator=generator).to(device)
    noises["Gaussian"] = perturbation.in_box(pixels, gaussian, norm)
    permuted = perturbation.permuted_in_patches(longest, net.patch_size, generator)
    noises["permuted"] = perturbation.in_box(pixels, permuted, norm)
    rows = []
    for name, noise in noises.items():
        logits = perturbation.transported_logits(net, (pixels + noise).clamp(0, 1), "float32", batch_size=50)
        change = (logits - clean).norm(dim=1) / clean.norm(dim=1)
        row = {"model": net.name, "weights": origin, "noise": name}
        row |= statistics.mean(perturbation.norms(noise).cpu()).columns("norm")
        row |= statistics.mean(change.cpu()).columns("change")
        same = (logits.argmax(1) == clean.argmax(1)).cpu()
        rows.append(row | statistics.proportion(same).columns("unchanged"))
    return rows


measured = stored(
    "any_model",
    {"model": model, "weights": origin, "images": images, "seed": seed},
    lambda: records(pd.DataFrame(moved())),
    code=[nullspace, box, perturbation, statistics, vit, data, invariance],
    data=cifar.identity | {"weights": vit.fingerprint(net)},
)
effect = pd.DataFrame(measured.metrics)
_ = plots.save_table(effect, "12_effect", caption=f"Noise of one norm on {net.name}.", sources=[measured])
effect.style.hide(axis="index").format(precision=3) if len(
    effect
) else "Nothing is ignored: there is nothing to measure."

# %%
if len(effect):
    figure, axis = plots.subplots(height=1.6)
    for (_, row), color in zip(effect.iterrows(), sns.color_palette(), strict=False):
        axis.plot([row["change_low"], row["change_high"]], [row["noise"]] * 2, color=color, linewidth=2)
        axis.plot(row["change"], row["noise"], "o", color=color)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="relative change of the logits", title=f"{net.name}, {origin} weights, n = {images}")
    _ = plots.save_figure(figure, "12_effect", sources=[measured])

# %% [markdown]
# **Reading it.** Exact noise changes the logits by rounding alone, float32's $10^{-7}$ times what the depth makes of it, at a norm
# at which unchosen noise changes them by a sizeable share. A model whose embedding is square or wide on the token side ($d \ge C p^2$)
# has no row "exact, embedding"; the one dimension that LayerNorm removes may still be there.
