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
# # 01 · Does a Vision Transformer have a nullspace?
#
# **Question.** Papers A (section 3) and C claim that a Vision Transformer (ViT) ignores some changes of its input
# completely. Its first layer, the patch embedding, cuts an image into patches of $p \times p$ pixels and $C$ colour
# channels and multiplies each by one matrix $W \in \mathbb{R}^{d \times C p^2}$. The products are the *tokens*,
# vectors of width $d$. A matrix ignores the directions in its *nullspace*: if $W v = 0$ then $W (x + v) = W x$.
# Whatever $W$ ignores, the whole network ignores, however deep it is.
#
# We count such directions, in dimensions per patch, for the models that people use and for trained weights. Then we
# add noise along them to test images, and measure the share of predictions that stay and the change of the logits.
# Varied are the model, the numerical tolerance, the length of the noise, and the file format in which the noisy image
# is stored. Two controls have the length of the noise: Gaussian noise, and the same noise with the pixels of each
# patch permuted.
#
# | section | question | primary endpoint | the claim holds if |
# |---|---|---|---|
# | (a) | do most ViT configurations have an exact nullspace (papers A, C)? | share of distinct shapes $(C p^2, d)$ that have one | above one half |
# | (a) | does a basis for each colour channel find it (code of C)? | share of these shapes for which it finds all dimensions | all |
# | (a) | does the non-linear encoder have one too (ours, proved)? | relative change of the logits under a shift of norm 10,000 | below 0.1 %, where random noise makes more than 10 % |
# | (a) | does training add to the shape's dimensions (ours)? | dimensions beyond those of the shape | above 0 |
# | (b) | does ViT-B/16 have a numerical nullspace (authors' reply, paper A)? | dimensions that its trained embedding ignores | above 0 |
# | (c) | does exact nullspace noise change nothing (papers A, C)? | predictions that stay under the largest noise that keeps the image in $[0, 1]$ | 99 % or more, and under 50 % for both controls |
# | (c) | does the noise survive in a file (ours)? | predictions that stay after JPEG 90 | 99 % or more, and in 8 bits too |
#
# Section (d) shows pictures. The defaults are the small ViT that comes with this repository, and CIFAR-10. Any plain
# ViT and photographs of its classes will do:
#
# ```sh
# nullpaper run 01_existence --profile photographs -p root IMAGENET  # and -p weights FILE, or timm's hub
# ```
#
# Takes about 4 min at `cpu` on 2 cores and 12 at `photographs`; needs CIFAR-10, which is fetched once, or your
# photographs too.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str = ""  # a file for it; empty: what ships, or timm's hub
data: str = "cifar10"  # or another data set of these classes, or the path of a folder of class folders
root: str = ""  # folder of the photographs; empty: fetched where that is possible
images: int = 500  # test images in (c)
square_images: int = 20_000  # training images for the square embedding in (b)
random_matrices: int = 200  # random 768 x 768 matrices in (b)
pictures: int = 5  # images in the grid of (d)
seed: int = 0  # of noises, random matrices and the order of the images

# %%
import math
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import PercentFormatter
from timm.models.vision_transformer import VisionTransformer

from nullpaper import load_data, load_vit, patch_nullspace, statistics
from nullpaper.data import datasets
from nullpaper.data.credits import credits
from nullpaper.finetuning import scratch
from nullpaper.models.nets import SHIPPED
from nullpaper.models.predict import answering
from nullpaper.models.vit import CIFAR10_MEAN, CIFAR10_STD, ViT, fingerprint, norms
from nullpaper.nullspace import zoo
from nullpaper.nullspace.layernorm import shift_invariance
from nullpaper.robustness import perturbation
from nullpaper.workflow import figures
from nullpaper.workflow.store import records, stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
print(photos)
vit = answering(vit, photos)
is_shipped = model == SHIPPED and not weights
origin = Path(weights).name if weights else "shipped" if is_shipped else "timm's hub"
space = patch_nullspace(vit)
identity = photos.identity | {"weights": fingerprint(vit)}


def pixels_of(split: datasets.Split, device: str = device) -> torch.Tensor:
    """All images of a split at the size of the model, (B, C, H, W) in [0, 1]."""
    return next(iter(split.batches(len(split), image_size=vit.image_size, device=device)))[0]


# %% [markdown]
# ## (a) How much of pixel space is invisible?
#
# A matrix of $d$ rows and $C p^2$ columns ignores at least $C p^2 - d$ dimensions, and exactly that many if its rank
# is full. The official code looks for the nullspace channel by channel, which finds only $C \max(0, p^2 - d)$ of them:
# none for ViT-S/16, where the joint nullspace has 384.
#
# ### The encoder ignores one dimension more
#
# Behind the embedding, attention and MLP blocks add their results to the tokens; this sum is the *residual stream*. A
# pre-norm transformer reads it only through LayerNorm, and LayerNorm first subtracts the mean over the width. Let
# $\mathbf 1$ be the all-ones vector of width $d$ and add $c_n \mathbf 1$ to patch token $n$, with any scalars $c_n$.
#
# **Claim.** The output does not change. **Proof.** Write $P = I - \mathbf 1 \mathbf 1^\top / d$. LayerNorm is a
# function of $P a$ alone, where $a$ is the vector that it reads, and $P(a + c_n \mathbf 1) = P a$. Suppose that the
# streams with and without the shift differ by exactly $c_n \mathbf 1$ at token $n$ when they enter a block; this is
# true of the first. Attention and MLP read the LayerNorm of the stream, so they add the same to both streams, which
# still differ by $c_n \mathbf 1$ when they leave the block. The head reads the last LayerNorm of the class token, or
# LayerNorm after or before pooling (the mean of shifted tokens is shifted along $\mathbf 1$ too). $\square$
#
# So the *non-linear* encoder has an exact nullspace of at least one dimension per token, at any norm. Seen from the
# pixels, the network ignores the nullspace of $P W$, not only that of $W$: one dimension more per patch wherever
# $\mathbf 1$ lies in the column space of $W$. Full rank $d \le C p^2$ guarantees that.
#
# **Limits.** The proof needs LayerNorm: RMSNorm does not subtract the mean. Every reader must be normalised: post-norm
# blocks read the raw stream, and so does a head without a final norm. The table says which model is of which kind; the
# tests confirm every entry on timm's own forward pass in float64.
#
# **Consequence for the papers.** "The largest noise whose influence is at most $\varepsilon$" (paper A, eq. 7;
# influence is the mean squared change of the softmax output) has no answer on tokens: along $c_n \mathbf 1$ the norm
# is free. Approximate noise has to be measured in the complement, with centred tokens, from which the mean over the
# width is subtracted.

# %%
zoo_table = pd.DataFrame(stored("nullity", {"models": zoo.ZOO}, lambda: records(zoo.nullity_table())).metrics)
nullity = zoo_table.drop(columns="reason")
figures.save_table(
    nullity, "01_nullity", caption="Exactly invisible dimensions of a patch, from shapes alone (full rank)."
)
nullity.style.hide(axis="index").format(precision=3)

# %%
not_invariant = zoo_table[~zoo_table["invariant"]][["model", "reason"]]
figures.save_table(not_invariant.reset_index(drop=True), "01_not_invariant", caption="Encoders that do read the shift.")
not_invariant.style.hide(axis="index")

# %%
figure, axis = figures.subplots()
drawn = zoo_table.assign(patch=zoo_table["patch"].astype(str) + " px").drop_duplicates(
    ["patch", "width", "share_encoder"]
)
order = sorted(drawn["patch"].unique(), key=lambda label: int(label.split()[0]))
sns.scatterplot(
    drawn, x="width", y="share_encoder", hue="patch", style="patch", hue_order=order, style_order=order, ax=axis
)
for patch, side in ((label, int(label.split()[0])) for label in order):
    widths = np.arange(128, 2_000)
    share = np.maximum(0, 1 - widths / (3 * side**2))
    axis.plot(widths, share, color=sns.color_palette()[order.index(patch)], linewidth=0.8, alpha=0.6)
axis.set(xscale="log", xlabel="width d", ylabel="share of pixel space exactly invisible", ylim=(-0.02, 1))
ticks = [192, 384, 768, 1024, 1408]
axis.set_xticks(ticks, [str(tick) for tick in ticks])
axis.minorticks_off()
axis.yaxis.set_major_formatter(PercentFormatter(1))
axis.legend(title="patch side")
_ = figures.save_figure(figure, "01_nullity")

# %% [markdown]
# The lines are $1 - d / C p^2$, from $W$ alone; the points are whole networks. Square embeddings ($p = 16$, $d = 768$)
# lie near the axis: of 768 dimensions of a patch they ignore one, and it comes from the encoder, not from $W$.
#
# A table of shapes cannot say whether *trained* weights have full rank. Measured on the weights of this run:

# %%
trained = []
for name in ("embedding", "encoder") if shift_invariance(vit).holds else ("embedding",):
    each = patch_nullspace(vit, through=name)
    rank = each.row_basis.shape[1]
    condition = float(each.singular_values[0] / each.singular_values[rank - 1])
    by_shape = getattr(zoo, f"{name}_nullity")(vit.embed_dim, each.basis.shape[0])
    row = {"model": vit.name, "weights": origin, "through": name, "patch_dim": each.basis.shape[0], "rank": rank}
    trained.append(row | {"condition": condition, "dim": each.dim, "dim by shape": by_shape})
trained = pd.DataFrame(trained)
figures.save_table(
    trained, "01_trained", caption="Exactly invisible dimensions of a patch, measured on trained weights."
)
trained.style.hide(axis="index").format({"condition": "{:.0f}"})

# %% [markdown]
# The claim on this model, in numbers: the relative change of the logits under shifts and under random token noise of
# the same norm.


# %%
def shift_against_random() -> list[dict[str, object]]:
    """Relative change of the logits for token shifts and for random token noise of equal norm (per image)."""
    generator, rows = torch.Generator().manual_seed(seed), []
    pixels = pixels_of(photos.test.subset(100), "cpu")
    for dtype in (torch.float32, torch.float64):
        net = deepcopy(vit).to("cpu", dtype)
        with torch.inference_mode():
            tokens = net.embed(pixels.to(dtype))
            clean = net.encode(tokens)
            for norm in (1e1, 1e2, 1e3, 1e4):
                shift = torch.randn(*tokens.shape[:2], 1, generator=generator).expand_as(tokens)
                noise = torch.randn(tokens.shape, generator=generator)
                for kind, direction in (("shift along 1", shift), ("random", noise)):
                    step = direction / norms(direction).view(-1, 1, 1) * norm
                    moved = net.encode(tokens + step.to(dtype))
                    change = ((moved - clean).norm(dim=1) / clean.norm(dim=1)).numpy()
                    interval = statistics.mean(change).columns("relative_change")
                    rows.append({"dtype": str(dtype)[6:], "norm": norm, "noise": kind} | interval)
    return rows


shifts = pd.DataFrame(stored("token_shift", {"seed": seed}, shift_against_random, data=identity).metrics)
figures.save_table(shifts, "01_token_shift", caption="Relative change of the logits under token noise.")
shifts.pivot_table("relative_change", ["dtype", "norm"], "noise").style.format("{:.1e}")

# %% [markdown]
# In float64 the shift changes only the last digits, at any norm. In float32 the rounding error grows with the norm, as
# it must when a large number is added and subtracted again.
#
# ## (b) What does a numerical rank depend on?
#
# A computer finds a rank only up to a tolerance: singular values below `rtol` times the largest count as zero. The
# official code calls `scipy.linalg.null_space` on float32 weights. SciPy's default tolerance is
# $\mathrm{eps}_{32} = 2^{-23}$, the spacing of float32 numbers at 1, times the longer side of the matrix. With it the
# authors report a non-trivial nullspace for ViT-B/16, whose $W$ is square (768 by 768) and has no reason to be
# singular. They explain it by rows that are dependent up to numerical precision.
#
# Two experiments answer the question without their weights. **First**, how often would this tolerance call a *random*
# square matrix of that size singular? For Gaussian entries and side $d$, $\sigma_{\min} / \sigma_{\max}$ falls below a
# small tolerance $\tau$ with probability about $2 d \tau$ (Edelman 1988). With $\tau = \mathrm{eps}_{32}\, d$ this is
# $2 d^2\, \mathrm{eps}_{32} = 14\,\%$ at $d = 768$. **Second**, what does training do to a square embedding? We train
# a small ViT on CIFAR-10 with $d = C p^2 = 192$ and compare its singular values with those at initialisation, and with
# those of the shipped ViT of 0.7 M parameters.
#
# *Ours* in the table is the tolerance $\tfrac12 \mathrm{eps} \sqrt{\min(d, C p^2)}$, with the `eps` of the weights'
# dtype. By Weyl's inequality rounding the weights to their dtype moves no singular value by more than this times the
# largest, so that a direction above it cannot be a rounded zero. For float16 and bfloat16 it says what storing the
# same weights in that dtype would leave undecided.

# %%
EPS32 = float(np.finfo(np.float32).eps)


def random_conditions() -> dict[str, object]:
    """Smallest over largest singular value of random square matrices, against SciPy's tolerance for float32."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(768, 768, dtype=torch.float64, generator=generator) for _ in range(random_matrices))
    values = [torch.linalg.svdvals(matrix.to(device)) for matrix in draws]
    ratios = [float(value[-1] / value[0]) for value in values]
    return {"ratios": ratios}


conditions = stored("random_square", {"n": 768, "count": random_matrices, "seed": seed}, random_conditions)
tolerance = 768 * EPS32
called_singular = statistics.proportion(np.array(conditions.metrics["ratios"]) < tolerance)
print(f"random 768 x 768 matrices called singular at rtol = {tolerance:.1e}: {called_singular:.3f}")


# %%
cifar = photos if data == "cifar10" else load_data("cifar10")


def square_embedding() -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """A square patch embedding before and after training, and what its smallest directions do to the logits."""
    torch.manual_seed(seed)
    net = VisionTransformer(img_size=48, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=10)
    square = ViT(net, CIFAR10_MEAN, CIFAR10_STD, "square").to(device)
    before = square.patch_matrix.cpu()
    sample = datasets.Data(
        "cifar10", cifar.train.subset(square_images), cifar.dev.subset(500), cifar.test, cifar.classes
    )
    recipe = scratch.Recipe(epochs=3, warmup_epochs=0.5, seed=seed, ema=0.0)
    with tempfile.TemporaryDirectory() as folder:
        trained, history = scratch.train(square, sample, recipe, folder=Path(folder))
    after = trained.patch_matrix.cpu()
    return {"dev_accuracy": history[-1]["dev_accuracy"]}, {"before": before, "after": after}


square = stored(
    "square_embedding",
    {"images": square_images, "seed": seed},
    square_embedding,
    data=cifar.identity,
)
torch.manual_seed(seed)
matrices = {
    "96 x 192, initialised": load_vit(SHIPPED, pretrained=False).patch_matrix,
    "96 x 192, trained (shipped)": load_vit(SHIPPED).patch_matrix,
    "192 x 192, initialised": square.tensors()["before"],
    "192 x 192, trained": square.tensors()["after"],
}
if not is_shipped:  # and what storing its weights in half precision makes of them
    shape = f"{vit.embed_dim} x {space.basis.shape[0]}"
    for dtype, name in ((torch.float32, "trained"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        half = deepcopy(vit).cpu()
        half.net.to(dtype)
        matrices[f"{shape}, {name}"] = half.patch_matrix


# %%
def dimension(values: np.ndarray, shape: torch.Size, rtol: float) -> int:
    """Dimensions whose singular value is below the tolerance, or that have none."""
    return shape[1] - int((values > rtol * values[0]).sum())


spectra = []
for name, matrix in matrices.items():
    values = torch.linalg.svdvals(matrix).numpy()
    rules = {
        "dim, SciPy float64": np.finfo(np.float64).eps * max(matrix.shape),
        "dim, ours (float32 weights)": EPS32 / 2 * np.sqrt(min(matrix.shape)),
        "dim, SciPy float32": EPS32 * max(matrix.shape),
        "dim, float16 weights": 2.0**-11 * np.sqrt(min(matrix.shape)),
        "dim, bfloat16 weights": 2.0**-8 * np.sqrt(min(matrix.shape)),
    }
    dimensions = {rule: dimension(values, matrix.shape, rtol) for rule, rtol in rules.items()}
    centred = torch.linalg.svdvals(matrix - matrix.mean(0)).numpy()
    spectra.append({"matrix": name, "smallest / largest": values[-1] / values[0]} | dimensions)
    spectra[-1]["dim through the encoder"] = dimension(centred, matrix.shape, EPS32 / 2 * np.sqrt(min(matrix.shape)))
ranks = pd.DataFrame(spectra)
figures.save_table(ranks, "01_ranks", caption="Nullspace dimension a patch by tolerance.", float_format="%.1e")
ranks.style.hide(axis="index").format({"smallest / largest": "{:.1e}"})

# %%
shapes = dict.fromkeys(name.split(", ")[0] for name in matrices)
figure, axes = figures.subplots(1, len(shapes), height=0.45 * figures.WIDTH)
for axis, shape in zip(axes, shapes, strict=True):
    for name, matrix in matrices.items():
        if name.startswith(f"{shape},"):
            values = torch.linalg.svdvals(matrix).numpy()
            label = name.split(", ")[1]
            style = {"float16": "--", "bfloat16": ":"}.get(label, "-")
            axis.semilogy(np.arange(1, len(values) + 1), values / values[0], style, label=label)
    sides = [int(side) for side in shape.split(" x ")]
    for label, height in (("SciPy", EPS32 * max(sides)), ("ours", EPS32 / 2 * np.sqrt(min(sides)))):
        axis.axhline(height, color="0.5", linestyle="--" if label == "SciPy" else ":", linewidth=1)
        place = {"ha": "right", "va": "top", "transform": axis.get_yaxis_transform()}
        axis.text(1, height * 0.8, f"{label}, float32", fontsize=7, color="0.4", **place)
    axis.set(title=f"d x C p² = {shape}", xlabel="index", ylim=(1e-9, 2))
    axis.legend(loc="lower left", fontsize=7)
axes[0].set_ylabel("singular value / largest")
_ = figures.save_figure(figure, "01_spectrum")

# %% [markdown]
# **Answer.** Where an embedding has more columns than rows, as that of the shipped model, its invisible dimensions (96
# there) are a matter of shape: no tolerance removes them, and coarse tolerances only add to them. For a square
# embedding the dimension of the nullspace of $W$ *is* the tolerance. With float64 it is zero, and by the rule that the
# official code inherits from SciPy a purely random ViT-B/16 would be called singular about once in seven times.
# Training (one run here) widens the range of the singular values, which adds directions whose singular value is small
# but not zero: noise along them does reach the logits, in proportion to its norm. What ViT-B/16 does have, exactly and
# at any tolerance, is the one dimension per patch that the encoder's LayerNorm removes. This needs no check of its
# weights (`-p model vit_base_patch16_224` makes one where the hub can be reached).
#
# ## (c) Stability: how far can an image move?
#
# Noise must be *legal*: it keeps the image in $[0, 1]$. For each test image we take the largest nullspace noise that
# `PatchNullspace.largest` finds, and shrink it; the set of legal images is convex, so every shorter noise is legal
# too. The two controls are legal and have *exactly* the same norm per image: Gaussian noise, and the same noise with
# the pixels of each patch permuted (the papers' own control, which keeps the values and loses the direction).
#
# Then the image is stored. Rounding to 8 bits moves every pixel by up to 1/510, and that change is not in the
# nullspace; JPEG does much more. The model sees the noisy image as it is (float32), after rounding, or after JPEG at
# quality 90. Without noise and with the longest noise it also sees it after PNG, JPEG at other qualities, and bicubic
# resizing to three quarters and back.

# %%
test = photos.test.subset(images, seed)
batch_size = 18_000 // math.prod(vit.grid_size)
shares = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
USUAL = ["float32", "8 bits", "JPEG 90"]


def stability() -> list[dict[str, object]]:
    """Accuracy, its paired change, unchanged predictions and largest logit change, by noise, norm and transport."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = pixels_of(test), torch.from_numpy(test.labels).to(device)
    clean = perturbation.transported_logits(vit, pixels, "float32", batch_size)
    clean_correct = (clean.argmax(1) == labels).cpu()
    largest = space.largest(pixels)
    norm = norms(largest)
    gaussian = torch.randn(pixels.shape, generator=generator).to(device)
    permuted = perturbation.permuted_in_patches(largest, vit.patch_size, generator)
    rows = []
    for share in shares:
        noises = {
            "exact nullspace": share * largest,
            "Gaussian": perturbation.in_box(pixels, gaussian, share * norm),
            "permuted": perturbation.in_box(pixels, permuted, share * norm),
        }
        transports = [*perturbation.TRANSPORTS] if share in (0, 1) else USUAL
        for (noise, values), transport in ((n, t) for n in noises.items() for t in transports):
            logits = perturbation.transported_logits(vit, (pixels + values).clamp(0, 1), transport, batch_size)
            change = (logits - clean).abs().amax(1).cpu()
            row = {"share": share, "noise": noise, "transport": transport}
            row |= statistics.mean(norms(values).cpu()).columns("norm")
            correct = (logits.argmax(1) == labels).cpu()
            row |= statistics.proportion(correct).columns("accuracy")
            row |= statistics.paired_difference(correct, clean_correct).columns("accuracy_change")
            row |= statistics.proportion((logits.argmax(1) == clean.argmax(1)).cpu()).columns("unchanged")
            row |= statistics.mean(change).columns("logit_change") | {"largest_logit_change": change.max().item()}
            rows.append(row)
    return rows


stable = stored(
    "stability",
    {"images": images, "seed": seed, "shares": shares},
    stability,
    data=identity,
)
curves = pd.DataFrame(stable.metrics)
figures.save_table(curves, "01_stability", caption="Stability under noise of equal norm.")

# %%
palette = dict(zip(("exact nullspace", "Gaussian", "permuted"), sns.color_palette(), strict=False))
figure, axes = figures.subplots(2, 3, height=3.9, sharex=True, sharey="row")
for column, transport in enumerate(USUAL):
    for noise, color in palette.items():
        line = curves[(curves["noise"] == noise) & (curves["transport"] == transport)]
        for axis, value in zip(axes[:, column], ("accuracy", "logit_change"), strict=True):
            seen = line[line["logit_change"] > 0] if value == "logit_change" else line  # no change is not on a log axis
            figures.curve(axis, seen, "norm", value, color=color, label=noise, markersize=4)
    axes[0, column].set_title(transport)
    axes[1, column].set(xlabel="L2 norm of the noise", yscale="log")
axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
axes[1, 0].set(ylabel="largest logit change\n(mean over images)", ylim=(1e-7, 1e2))
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
_ = figures.save_figure(figure, "01_stability")

# %% [markdown]
# All ways to store an image, at the largest legal norm; "no noise" shows what storage alone does.

# %%
kinds = {"no noise": "share == 0 and noise == 'exact nullspace'"}
kinds |= {noise: f"share == 1 and noise == '{noise}'" for noise in palette}
figure, axis = figures.subplots(height=2.6)
for place, (kind, rule) in enumerate(kinds.items()):
    ways = curves.query(rule).set_index("transport").loc[[*perturbation.TRANSPORTS]]
    places = np.arange(len(ways)) + 0.16 * (place - 1.5)
    color = palette.get(kind, "0.5")
    figures.intervals(axis, ways, value="unchanged", thin=None, zero=None, places=places, color=color, label=kind)
axis.set_yticks(range(len(perturbation.TRANSPORTS)), perturbation.TRANSPORTS)
axis.invert_yaxis()
axis.set(xlabel="predictions unchanged", xlim=(-0.01, 1.01))
axis.xaxis.set_major_formatter(PercentFormatter(1))
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
_ = figures.save_figure(figure, "01_transports")

# %% [markdown]
# How large is the largest? Maximising a norm over a polytope is NP-hard, and `largest` finds a local maximum. Its
# certificate says how far the noise is from stationary (0 at a first-order local maximum) and from an upper bound on
# *any* legal nullspace noise; the true maximum lies between the two norms.


# %%
def certificate() -> dict[str, object]:
    pixels = pixels_of(test.take(slice(min(images, 200))))
    proof = space.certify_largest(pixels, space.largest(pixels))
    share = statistics.mean((proof.norm / proof.upper_bound).cpu()).columns("share of the bound")
    return share | {"norm": proof.norm.mean().item(), "largest stationarity": proof.stationarity.max().item()}


certified = stored(
    "largest_certificate",
    {"images": min(images, 200), "seed": seed},
    certificate,
    data=identity,
)
pd.DataFrame([certified.metrics]).style.hide(axis="index").format(precision=3)

# %%
at_largest = curves.query("share == 1 and noise == 'exact nullspace'").set_index("transport")
columns = ["norm", "unchanged", "logit_change", "largest_logit_change"]
columns += ["accuracy", "accuracy_change", "accuracy_change_low", "accuracy_change_high", "n"]
at_largest[columns].style.format(precision=3).format("{:.0f}", "n").format("{:.1e}", columns[2:4])

# %% [markdown]
# In float32, exact noise at the largest legal norm moves the logits by rounding only. Gaussian noise of that norm
# ruins the prediction, and the permuted control comes close. Rounding to 8 bits adds a small error that does not grow
# with the norm; a PNG file keeps the rounded values. JPEG is different: it mixes colours and frequencies across the
# patch and turns part of the noise into something visible, and the longer the noise, the more of it. At a short norm
# the damage is what JPEG does to any image; at the largest norm it changes predictions that JPEG leaves alone on the
# clean image. So does resizing.
#
# ## (d) What does it look like?
#
# Rows: the image; its largest legal nullspace noise (grey is zero); their sum, which the model cannot tell from the
# image; and the image with Gaussian noise of the same norm, which it can.

# %%
shown = photos.test.subset(pictures, seed)
pixels = pixels_of(shown)
largest = space.largest(pixels)
gaussian = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(device)
gaussian = perturbation.in_box(pixels, gaussian, norms(largest))
panels = {
    "image": pixels,
    "noise": (largest / 2 + 0.5).clamp(0, 1),
    "image + noise": (pixels + largest).clamp(0, 1),
    "image + Gaussian": (pixels + gaussian).clamp(0, 1),
}
figure, axes = figures.subplots(len(panels), pictures, height=6.3 * len(panels) / pictures * 1.06, squeeze=False)
for line, (title, pictured) in zip(axes, panels.items(), strict=True):
    with torch.inference_mode():
        confidence, guess = vit(pictured).softmax(1).max(1)
    line[0].set_ylabel(title)
    for i, axis in enumerate(line):
        axis.imshow(pictured[i].permute(1, 2, 0).cpu())
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
        label = f"{figures.short(photos.classes[guess[i]], 18)}, {confidence[i]:.1%}"
        norm = f"norm {norms(largest)[i]:.1f}"
        axis.set_title(norm if title == "noise" else label, fontsize=7)
figures.add_credits(figure, credits(shown.images, range(pictures)))
_ = figures.save_figure(figure, "01_pictures")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import (
    Endpoint,
    Verdicts,
    at_least,
    below,
    every,
    interval,
    number,
    percent,
    row,
    rows,
    some,
    word,
)

answer = Verdicts()


shapes = nullity.groupby(["patch_dim", "width"])
by_embedding, by_encoder = (shapes[column].max() > 0 for column in ("dim_embedding", "dim_encoder"))
own = nullity[nullity["model"].isin(zoo.PAPERS_OWN)]


@answer.claim(
    "A, C",
    "",
    "most ViT configurations have an exact nullspace",
    where="01 (a)",
    criterion="holds if the embedding ignores dimensions in more than half of the distinct shapes (C p^2, d) of the listed "
    "timm models, in part if in more than half of the ViTs that the papers measure",
    endpoint="share of distinct shapes of patch embeddings with a nullspace (a count)",
)
def existence() -> tuple[str, str, Endpoint]:
    count = len(by_embedding)
    measured = (
        f"{by_embedding.sum()} of the {count} distinct shapes among {len(nullity)} timm models by their embedding; "
        f"{by_encoder.sum()} with the one dimension a patch that LayerNorm removes. Of the {len(own)} ViTs that the papers "
        f"measure {(own['dim_embedding'] > 0).sum()} by their embedding, {(own['dim_encoder'] > 0).sum()} with it"
    )
    share = Endpoint(float(by_embedding.mean()))
    return measured, word(bool(share.value > 0.5), bool((own["dim_embedding"] > 0).mean() > 0.5)), share


@answer.claim(
    "C",
    "code",
    "a basis for each colour channel finds that nullspace",
    where="01 (a)",
    criterion="holds if the three bases have as many dimensions as the joint nullspace in every configuration that has "
    "one",
    endpoint="share of distinct shapes with a nullspace of which it finds all (a count)",
)
def per_channel() -> tuple[str, str, Endpoint]:
    table = nullity.query("dim_embedding > 0").drop_duplicates(["patch_dim", "width"])
    short, empty = table["dim_per_channel"] < table["dim_embedding"], table["dim_per_channel"] == 0
    measured = f"it misses dimensions in {short.sum()} of {len(table)} distinct shapes and finds none in {empty.sum()}"
    return measured, word(not short.any(), not short.all()), Endpoint(1 - float(short.mean()))


@answer.claim(
    "A",
    "authors' reply",
    "ViT-B/16 has a numerical nullspace",
    where="01 (a), (b)",
    criterion="not testable without its trained weights; with them (model and weights of this run) it holds if its "
    "embedding ignores a dimension by the tolerance of its dtype",
    endpoint="dimensions that its trained embedding ignores (a count)",
)
def numerical_rank() -> tuple[str, str, Endpoint]:
    base = row(nullity, model="vit_base_patch16_224")
    square = row(ranks, matrix="192 x 192, trained")
    measured = (
        f"by shape its embedding ignores {base['dim_embedding']} dimensions and its encoder {base['dim_encoder']} a "
        f"patch; of another square embedding, trained here, {square['dim, SciPy float64']} dimensions are ignored by "
        f"float64's tolerance, {square['dim, float16 weights']} by float16's, {square['dim, bfloat16 weights']} by bfloat16's"
    )
    at_hand = trained.query("model == 'vit_base_patch16_224' and through == 'embedding'")["dim"]
    if at_hand.empty:
        return f"its weights are not at hand: {measured}", "not testable here", Endpoint()
    dim = int(at_hand.iloc[0])
    return f"{dim} dimensions in its trained weights; {measured}", word(dim > 0), Endpoint(dim)


@answer.claim(
    "",
    "",
    "training makes an embedding ignore more than its shape does",
    where="01 (a)",
    criterion="holds if the trained weights of this run's model ignore more dimensions than their shape says, by the "
    "tolerance of their dtype, through the embedding or through the encoder",
    endpoint="dimensions that one given model ignores beyond those of its shape (a count)",
)
def trained_spectrum() -> tuple[str, str, Endpoint]:
    more = int((trained["dim"] - trained["dim by shape"]).max())
    texts = (
        f"{line['dim']} of {line['patch_dim']} through the {line['through']}, by shape {line['dim by shape']}, condition "
        f"{line['condition']:.0f}"
        for line in trained.to_dict("records")
    )
    name, weights_of = trained[["model", "weights"]].iloc[0]
    return f"{name} ({weights_of}): {'; '.join(texts)}", word(more > 0), Endpoint(more)


@answer.claim(
    "",
    "",
    "a non-linear encoder has an exact nullspace: shifts along the all-ones vector (proved)",
    where="01 (a)",
    criterion="holds if the longest shift changes the logits by less than 0.1 % and random noise of its norm by more "
    "than 10 %",
    endpoint="relative change of the logits under the longest shift, to be below 0.001",
)
def layer_norm() -> tuple[str, str, Endpoint]:
    longest = shifts.query("dtype == 'float32' and norm == norm.max()")
    norm = longest["norm"].max()
    shift, random = (interval(row(longest, noise=noise), "relative_change") for noise in ("shift along 1", "random"))
    measured = (
        f"of norm {norm:,.0f} in float32: logits change by {number(shift, '.0e', None)} of their norm, by "
        f"{number(random, '.2f', None)} under random noise (n = {shift.n:,})"
    )
    return measured, word(every((below(shift, 1e-3), at_least(random, 0.1)))), Endpoint.over_images(shift, 1e-3)


longest = curves.query("share == share.max()")


@answer.claim(
    "A, C",
    "",
    "exact nullspace noise changes nothing",
    where="01 (c)",
    criterion="holds if at least 99 % of predictions stay under the largest legal noise, and under 50 % in both "
    "controls",
    endpoint="share of predictions that stay under the largest legal exact noise, to be 99 % or more",
)
def exact_noise() -> tuple[str, str, Endpoint]:
    lines = [row(longest, noise=noise, transport="float32") for noise in ("exact nullspace", "Gaussian", "permuted")]
    exact, gaussian, permuted = (interval(line, "unchanged") for line in lines)
    measured = (
        f"at the largest legal norm ({lines[0]['norm']:.1f} on average) predictions stay for {percent(exact, 'images')}, "
        f"largest logit change {lines[0]['largest_logit_change']:.0e}; at that norm Gaussian noise leaves "
        f"{percent(gaussian, None)}, permuted {percent(permuted, None)}"
    )
    answers = at_least(exact, 0.99), below(gaussian, 0.5), below(permuted, 0.5)
    return measured, word(every(answers)), Endpoint.over_images(exact, 0.99)


@answer.claim(
    "",
    "",
    "exact noise survives being stored as a file",
    where="01 (c)",
    criterion="holds if at least 99 % of predictions stay both in 8 bits and as JPEG 90, in part if in one of them",
    endpoint="share of predictions that stay when it is stored as JPEG 90, to be 99 % or more",
)
def stored_noise() -> tuple[str, str, Endpoint]:
    bits, jpeg = (
        interval(row(longest, noise="exact nullspace", transport=transport), "unchanged")
        for transport in ("8 bits", "JPEG 90")
    )
    answers = at_least(bits, 0.99), at_least(jpeg, 0.99)
    measured = f"8 bits: {percent(bits, None)} unchanged; JPEG 90: {percent(jpeg)}"
    others = rows(longest, noise="exact nullspace").query("transport not in ['float32', '8 bits', 'JPEG 90']")
    for line in others.to_dict("records"):
        measured += f"; {line['transport']}: {percent(interval(line, 'unchanged'), None)}"
    return measured, word(every(answers), some(answers)), Endpoint.over_images(jpeg, 0.99)


figures.save_table(answer.table(), "01_verdicts", caption="What the papers say of exact nullspaces, and what holds.")
source = f"{Path(data).name} ({Path(root).name})" if root else Path(data).name


def conclusion() -> str:
    floats, jpegs = (
        interval(row(longest, noise="exact nullspace", transport=transport), "unchanged")
        for transport in ("float32", "JPEG 90")
    )
    return (
        f"those whose width is below the number of pixel values of a patch, {by_embedding.sum()} of {len(by_embedding)} distinct "
        f"shapes, and through LayerNorm {by_encoder.sum()}; under the largest legal noise the prediction stays for "
        f"{percent(floats, 'images')} in float32, and for {percent(jpegs, None)} once the image was a JPEG of quality 90."
    )


answer.show(
    question="Which ViTs ignore directions of their input exactly, and is noise along them really invisible?",
    answer=conclusion,
    would_change="trained weights of a square embedding, such as ViT-B/16's, whose smallest singular value lies below the "
    "rounding of their dtype; a ViT that reads its stream without LayerNorm; another list of models, for the count.",
    limits=f"dimensions in the table of models are those of shapes; stability is measured on one model ({model}"
    f"{f', weights {Path(weights).name}' if weights else ''}) and {images:,} images of {source}, the square embedding of (b) on one "
    "training run of two blocks on CIFAR-10; ViT-B/16 by its shape, unless its weights are those of this run.",
)
