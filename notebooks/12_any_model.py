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
#
# Takes half a minute at `cpu` on 2 cores with the shipped model; needs CIFAR-10, which is fetched once.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str = ""  # a file for it, .safetensors or .pth; one of `save_vit` brings its mean and std
pretrained: bool = False  # fetch timm's weights from its hub
images: int = 100  # test images
seed: int = 0  # of random initial weights, noises and the order of the images

# %%
import pandas as pd
import torch

from nullpaper import load_data, load_vit, patch_nullspace, statistics
from nullpaper.data import datasets
from nullpaper.models import vit
from nullpaper.nullspace.layernorm import shift_invariance
from nullpaper.robustness import perturbation
from nullpaper.workflow import figures
from nullpaper.workflow.store import records, stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
is_shipped = model == "nullpaper_vit_cifar10"
torch.manual_seed(seed)  # random initial weights
net = load_vit(model, pretrained=is_shipped or pretrained, weights=weights or None, device=device)
origin = "file" if weights else "shipped" if is_shipped else "timm's hub" if pretrained else "random"
cifar = load_data("cifar10")
test = cifar.test.subset(images, seed)

# %% [markdown]
# ## (a) How many dimensions
#
# With $W$ the matrix of the patch embedding in pixel units and $P$ the projection that LayerNorm's mean subtraction amounts to
# (notebook 01), the embedding ignores the nullspace of $W$ and the encoder that of $PW$, provided that every reader of the residual
# stream is a LayerNorm.

# %%
shift = shift_invariance(net)
spaces = {"embedding": patch_nullspace(net)}
if shift.holds:
    spaces["encoder"] = patch_nullspace(net, through="encoder")
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
figures.save_table(counted, "12_dimensions", caption=f"Dimensions of a patch that {net.name} ignores.")
if not shift.holds:
    print(f"The encoder reads the shift: {shift.reason}")
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
    pixels = datasets.to_pixels(test.images, net.image_size, device)
    clean = perturbation.transported_logits(net, pixels, "float32", batch_size=50)
    noises = {f"exact, {through}": space.largest(pixels) for through, space in spaces.items() if space.dim}
    if not noises:
        return []
    longest = max(noises.values(), key=lambda noise: float(vit.norms(noise).mean()))
    norm = vit.norms(longest)
    gaussian = torch.randn(pixels.shape, generator=generator).to(device)
    noises["Gaussian"] = perturbation.in_box(pixels, gaussian, norm)
    permuted = perturbation.permuted_in_patches(longest, net.patch_size, generator)
    noises["permuted"] = perturbation.in_box(pixels, permuted, norm)
    rows = []
    for name, noise in noises.items():
        logits = perturbation.transported_logits(net, (pixels + noise).clamp(0, 1), "float32", batch_size=50)
        change = (logits - clean).norm(dim=1) / clean.norm(dim=1)
        row = {"model": net.name, "weights": origin, "noise": name}
        row |= statistics.mean(vit.norms(noise).cpu()).columns("norm")
        row |= statistics.mean(change.cpu()).columns("change")
        if net.num_classes > 1:  # without a head the output is the features, and predicts nothing
            row |= statistics.proportion((logits.argmax(1) == clean.argmax(1)).cpu()).columns("unchanged")
        rows.append(row)
    return rows


measured = stored(
    "any_model",
    {"model": model, "weights": origin, "images": images, "seed": seed},
    lambda: records(pd.DataFrame(moved())),
    data=cifar.identity | {"weights": vit.fingerprint(net)},
)
effect = pd.DataFrame(measured.metrics)
figures.save_table(effect, "12_effect", caption=f"Noise of one norm on {net.name}.")
effect.style.hide(axis="index").format(precision=3)

# %%
if len(effect):
    figure, axis = figures.subplots(height=1.6)
    figures.intervals(axis, effect, value="change", thin=None, zero=None)
    axis.set_yticks(range(len(effect)), effect["noise"])
    axis.set_ylim(len(effect) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="relative change of the logits", title=f"{net.name}, {origin} weights, n = {images}")
    _ = figures.save_figure(figure, "12_effect")

# %% [markdown]
# **Reading it.** Exact noise changes the logits by rounding alone, float32's $10^{-7}$ times what the depth makes of it, at a norm
# at which unchosen noise changes them by a sizeable share. A model whose embedding is square or wide on the token side ($d \ge C p^2$)
# has no row "exact, embedding"; the one dimension that LayerNorm removes may still be there.

# %% [markdown]
# ## The answer

# %%
dims = ", ".join(
    f"its {line.through} {line.ignored} of {line.patch_dim} ({line.share:.1%})" for line in counted.itertuples()
)
print(f"With {origin} weights, {net.name} ignores of every patch: {dims}.")
for line in effect.itertuples():
    kept = "and there are no classes to predict"
    if net.num_classes > 1:
        kept = f"and leaves {line.unchanged:.0%} [{line.unchanged_low:.0%}, {line.unchanged_high:.0%}] of predictions"
    print(
        f"{line.noise} noise of norm {line.norm:.1f} changes the logits by {line.change:.1e} [{line.change_low:.1e}, "
        f"{line.change_high:.1e}] of their norm {kept} (n = {line.n:,})."
    )
if not len(effect):
    print("Nothing is ignored: there is nothing to measure.")
print(
    "Limits: CIFAR-10 images resized to the model; random weights say nothing of predictions, and trained ones may ignore more."
)
