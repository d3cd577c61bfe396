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
# Papers A and C: a plain Vision Transformer ignores changes of the image in the nullspace of its patch embedding, the
# linear layer that turns every patch into a token. Notebook 01 proves it and counts that nullspace over the models of
# timm by their shapes. This one takes a single model, with its weights, and measures three things: how many dimensions
# of a patch its embedding ignores, and its whole encoder; how far images can move along them (the norm of the noise, in
# pixel units); and how much that changes the output, beside the controls, noise of the same norm in other directions.
#
# ```sh
# nullpaper run 12_any_model -p model vit_base_patch32_224 -p weights vit_b32.safetensors --label b32
# nullpaper run 12_any_model -p model vit_tiny_patch16_224 -p pretrained true -p data imagenet -p root ~/imagenet
# nullpaper sweep sweeps/model_zoo.yaml
# ```
#
# Without weights of its own a timm model is measured at its **random initial weights**. Dimensions that follow from
# shapes and LayerNorm are there before any training, while predictions then mean nothing. The table says which weights
# were measured. A model without a head answers with its features, and its changes are those of the features.
#
# Takes half a minute at `cpu` on 2 cores with the shipped model and CIFAR-10, which is fetched once; at 224 px less
# than a second an image on one.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str = ""  # a file for it, .safetensors or .pth; one of `save_vit` brings its mean and std
data: str = "cifar10"  # or imagenet, another set that load_data knows, or a folder of class folders
root: str = ""  # the folder of the photographs, where they are not fetched
pretrained: bool = False  # fetch timm's weights from its hub
images: int = 100  # test images
seed: int = 0  # of random initial weights, noises and the order of the images

# %%
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch

from nullpaper import load_data, load_vit, patch_nullspace, statistics
from nullpaper.models.vit import fingerprint, norms
from nullpaper.nullspace.layernorm import shift_invariance
from nullpaper.robustness import perturbation
from nullpaper.workflow import figures
from nullpaper.workflow.store import records, stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
is_shipped = model == "nullpaper_vit_cifar10"
torch.manual_seed(seed)  # random initial weights
vit = load_vit(model, pretrained=is_shipped or pretrained, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
test = photos.test.subset(images, seed)
origin = Path(weights).name if weights else "shipped" if is_shipped else "timm's hub" if pretrained else "random"
output = "logits" if vit.num_classes > 1 else "features"
identity = photos.identity | {"weights": fingerprint(vit)}

# %% [markdown]
# ## (a) How many dimensions
#
# Let $W$ be the matrix of the patch embedding in pixel units. LayerNorm subtracts the mean of a token, which is a
# projection $P$. The embedding ignores the nullspace of $W$. The encoder ignores that of $PW$, provided that every
# layer that reads the tokens does so through a LayerNorm.

# %%
shift = shift_invariance(vit)
spaces = {"embedding": patch_nullspace(vit)}
if shift.holds:
    spaces["encoder"] = patch_nullspace(vit, through="encoder")
counted = pd.DataFrame(
    {
        "model": vit.name,
        "weights": origin,
        "through": through,
        "patch": vit.patch_size[0],
        "patch_dim": space.basis.shape[0],
        "width": vit.embed_dim,
        "ignored": space.dim,
        "share": space.dim / space.basis.shape[0],
        "condition": float(space.singular_values[0] / space.singular_values[space.row_basis.shape[1] - 1]),
    }
    for through, space in spaces.items()
)
figures.save_table(counted, "12_dimensions", caption=f"Dimensions of a patch that {vit.name} ignores.")
if not shift.holds:
    print(f"The encoder reads the shift: {shift.reason}")
counted.style.hide(axis="index").format({"share": "{:.1%}", "condition": "{:.0f}"})

# %% [markdown]
# ## (b) What noise in these directions does
#
# For each image $x$, the largest legal noise $v$ (with $x + v$ in $[0, 1]$) that `PatchNullspace.largest` finds. The
# two controls have the same norm image by image and are legal as well, as far as the box $[0, 1]$ allows (the table
# gives the norms): Gaussian noise, and the same noise with the pixels of each patch permuted. The output's change is
# $\lVert f(x + v) - f(x) \rVert_2 / \lVert f(x) \rVert_2$ over the logits $f$, or the features.


# %%
def moved() -> dict[str, list[dict[str, object]]]:
    """By noise: norm, relative change of the output, unchanged predictions; and by dtype, on the first images."""
    generator, found, by_dtype = torch.Generator().manual_seed(seed), {}, []
    for pixels, _ in test.batches(100, image_size=vit.image_size, device=device):
        clean = perturbation.transported_logits(vit, pixels, "float32", batch_size=50)
        noises = {f"exact, {through}": space.largest(pixels) for through, space in spaces.items() if space.dim}
        if not noises:
            break
        by_dtype = by_dtype or [
            row for name, noise in noises.items() for row in precision_of(name, pixels[:20], noise[:20])
        ]
        longest = max(noises.values(), key=lambda noise: float(norms(noise).mean()))
        norm = norms(longest)
        gaussian = torch.randn(pixels.shape, generator=generator).to(device)
        noises["Gaussian"] = perturbation.in_box(pixels, gaussian, norm)
        permuted = perturbation.permuted_in_patches(longest, vit.patch_size, generator)
        noises["permuted"] = perturbation.in_box(pixels, permuted, norm)
        for name, noise in noises.items():
            noisy = perturbation.transported_logits(vit, (pixels + noise).clamp(0, 1), "float32", batch_size=50)
            change = (noisy - clean).norm(dim=1) / clean.norm(dim=1)
            measured = norms(noise), change, (noisy - clean).abs().amax(1), noisy.argmax(1) == clean.argmax(1)
            found.setdefault(name, []).append(torch.stack([value.cpu().float() for value in measured]))
    rows = []
    for name, (norm, change, largest, unchanged) in ((name, torch.cat(parts, 1)) for name, parts in found.items()):
        row = {"model": vit.name, "weights": origin, "noise": name}
        row |= statistics.mean(norm).columns("norm") | statistics.mean(change).columns("change")
        if vit.num_classes > 1:  # without a head the output is the features, and predicts nothing
            row |= statistics.proportion(unchanged.bool()).columns("unchanged")
        rows.append(row | {"largest_change": largest.max().item()})
    return {"effect": records(pd.DataFrame(rows)), "precision": by_dtype}


def precision_of(name: str, pixels: torch.Tensor, noise: torch.Tensor) -> list[dict[str, object]]:
    """Largest change of any output, by dtype. Projected in float64 the noise is exact, and may leave the box by 1e-7."""
    rows, noise = [], spaces[name.split(", ")[1]].project(noise.double())
    for dtype in (torch.float32, torch.float64):
        net = deepcopy(vit).to(dtype)
        with torch.inference_mode():
            change = (net((pixels + noise).to(dtype)) - net(pixels.to(dtype))).abs().amax(1).cpu()
        row = {"model": vit.name, "weights": origin, "noise": name, "dtype": str(dtype)[6:]}
        rows.append(row | statistics.mean(change).columns("change") | {"largest_change": change.max().item()})
    return rows


given = {"model": model, "weights": origin, "images": images, "seed": seed}
measured = stored("any_model", given, moved, data=identity).metrics
effect, precision = (pd.DataFrame(measured[part]) for part in ("effect", "precision"))
figures.save_table(effect, "12_effect", caption=f"Noise of one norm on {vit.name}.")
effect.style.hide(axis="index").format(precision=3).format("{:.1e}", effect.filter(like="change").columns)

# %%
if len(effect):
    figure, axis = figures.subplots(height=1.7)
    figures.intervals(axis, effect, value="change", thin=None, zero=None)
    axis.set_yticks(range(len(effect)), effect["noise"])
    axis.set_ylim(len(effect) - 0.5, -0.5)
    axis.set(xscale="log", xlabel=f"relative change of the {output}")
    axis.set_title(f"{vit.name}, n = {images}\nweights: {origin}")
    _ = figures.save_figure(figure, "12_effect")

# %% [markdown]
# Exact means exact: what is left is rounding, and becomes smaller with more digits. The table has the same noise in 32
# and in 64 bits, on the first images:

# %%
figures.save_table(precision, "12_precision", caption=f"Exact noise on {vit.name}, by dtype.", float_format="%.1e")
precision.style.hide(axis="index").format("{:.1e}", precision.select_dtypes("float").columns)

# %% [markdown]
# **How to read it.** Exact noise changes the output by rounding alone, float32's $10^{-7}$ times a factor that depends
# on the depth. Other noise of that norm changes the output by a sizeable share. With width $d$, patches of $p \times p$
# pixels and $C$ channels, a model with $d \ge C p^2$ may have no row "exact, embedding"; the one dimension that
# LayerNorm removes may still be there.

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import conclude, interval, number, percent

dims = ", ".join(
    f"its {line.through} {line.ignored} of {line.patch_dim} ({line.share:.1%})" for line in counted.itertuples()
)
for line in effect.to_dict("records"):
    kept = "and there are no classes to predict"
    if vit.num_classes > 1:
        kept = f"and leaves {percent(interval(line, 'unchanged'), None)} of predictions"
    print(
        f"{line['noise']} noise of norm {line['norm']:.1f} changes the {output} by {number(interval(line, 'change'), '.1e', None)} "
        f"of their norm {kept} (n = {line['n']:,})."
    )
for line in precision.itertuples():
    print(f"In {line.dtype}, {line.noise} noise moves no output by more than {line.largest_change:.0e} (n = {line.n}).")
found = f"with {origin} weights, {vit.name} ignores of every patch: {dims}"
if len(effect):
    exact = effect[effect["noise"].str.startswith("exact")]
    others = effect.drop(exact.index)
    found += f"; moving images along it changes the {output} by at most {exact['change'].max():.1e} of their norm on average, "
    found += f"other noise of that norm by {others['change'].min():.1e} or more (n = {effect['n'].min():,} images)"
else:
    found += "; nothing is ignored, and there is nothing to measure"
height, width = vit.image_size
source = f"{data} in the folder {Path(root).name}" if root else f"{Path(data).name}"
conclude(
    question=f"What can {vit.name} not see?",
    answer=f"{found}.",
    would_change="other weights, which may ignore more than their shape does; a reader of the stream without LayerNorm.",
    limits=f"images of {source} at {height} x {width} pixels; random weights say nothing of predictions.",
)
