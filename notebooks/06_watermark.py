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
# # 06 · Can the nullspace carry a watermark?
#
# **Question.** The first layer of a Vision Transformer (ViT), the patch embedding, multiplies each patch of an image
# by a matrix $W$. Whatever $W$ maps to zero, its *nullspace*, the network ignores, so an owner could write there: a
# logo that people see and the model does not (paper C, watermarks and its code), or a message that nobody sees and
# only a key reveals (ours). What does such a mark look like, how is it computed, do predictions really stay, and does
# the mark survive what happens to images on their way?
#
# Varied are the logo, the norm that fits it, how and where a message is written, and the *transport*: rounding to 8
# bits, JPEG, resizing, cropping, noise. Controls have the norm of the mark: the logo blended into the pixels, the mark
# with the pixels of each patch permuted, and messages outside the nullspace. Measured are the share of predictions
# that stay, the share of bits read, and visibility: peak signal to noise ratio (PSNR, in dB) and structural similarity
# (SSIM).
#
# | section | question | primary endpoint | holds if |
# |---|---|---|---|
# | (a), (d) | do marks in the nullspace leave predictions alone (C)? | least share of predictions that stay in 8 bits | 90 % or more, and in float32; in part: in float32 |
# | (a) | can any picture be the mark (ours)? | least share of a logo's energy that is invisible to the model | one half or more; in part: for one logo |
# | (b) | does SciPy's SLSQP solve the problem (code of C)? | larger excess of its objective over the certified optimum, of two forms | below $10^{-6}$; in part: in one form |
# | (c) | does a 64-bit message survive JPEG at quality 75 (ours)? | share of bits read, written anywhere in the nullspace | 90 % or more; in part: where JPEG rounds least |
#
# The defaults are the small ViT that comes with this repository, and CIFAR-10; any plain ViT and photographs of its
# classes will do:
#
# ```sh
# nullpaper run 06_watermark --profile photographs -p root IMAGENET  # and -p weights FILE, or timm's hub
# ```
#
# Sentences that interpret tables and figures were written for these defaults where they say so; the last section is
# computed in every run. Takes about 1 min at `cpu` on 2 cores and 12 at `photographs`; needs CIFAR-10, which is
# fetched once, or your photographs.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str = ""  # a file for it; empty: what ships, or timm's hub
data: str = "cifar10"  # or another data set of these classes, or the path of a folder of class folders
root: str = ""  # folder of the photographs; empty: fetched where that is possible
logo_images: int = 50  # test images that get a logo in (a)
l1_images: int = 50  # of these in the L1 form, which takes seconds an image of 224 px, and for the time of ours in (b)
slsqp_patches: int = 6  # patches for the original's solver in (b)
message_images: int = 100  # test images that carry a message in (c) and (d)
bits: int = 64  # length of the message
margins: list = [0.05, 0.2, 0.4]  # what a bit is written with in (c), ascending; (d) takes the last
shares: list = [0.25, 0.0625]  # of the nullspace, in (c) at the last margin but one, beside 1 and 0.125
key: int = 2024  # the secret
pictures: int = 4  # images in the grid of (a)
seed: int = 0  # of images, messages and noises

# %%
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial

import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from nullpaper import load_data, load_vit, patch_nullspace, statistics
from nullpaper.data.credits import credits
from nullpaper.data.datasets import Split
from nullpaper.fooling import similarity, watermark
from nullpaper.models.predict import answering, answers
from nullpaper.models.vit import fingerprint, norms, patchify
from nullpaper.nullspace import patch
from nullpaper.robustness import perturbation
from nullpaper.workflow import figures
from nullpaper.workflow.store import Result, stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
print(photos)
vit = answering(vit, photos)
space, apart = patch_nullspace(vit), patch.channel_nullspace(vit)
identity = photos.identity | {"weights": fingerprint(vit)}
l1_images = min(l1_images, logo_images)
print(
    f"A channel of a patch has {len(space.basis) // vit.channels} pixels and the embedding {vit.embed_dim} dimensions. "
    f"Invisible dimensions a patch: {space.dim} jointly over channels, {apart.dim} channel by channel."
)

# %% [markdown]
# The original code looks for the nullspace of each colour channel. It is empty wherever a channel of a patch has no
# more pixels than the embedding has dimensions, as for the shipped model: there the original's watermark does not
# exist. Everything below uses the joint basis over all channels.
#
# ## (a) A visible logo
#
# Let $x$ be a patch of the image, $t$ the same patch of the logo, and $\mathcal N$ the nullspace. Paper C's code looks
# for noise $v$ by its coefficients in a basis of $\mathcal N$ and solves
#
# $$\min_v \; \lVert x + v - t \rVert_1 \quad \text{subject to} \quad v \in \mathcal N, \quad 0 \le x + v \le 1$$
#
# and, commented out, the same with the Euclidean norm (L2). Both problems are convex, and both are solved here to a
# certified gap: with $R$ a basis of the row space, the complement of the nullspace, every combination of its columns
# bounds the optimum from below by a sum over pixels that is known in closed form.
#
# There are three logos, all the same slashed circle: black on an *opaque* white ground (the original's form: the logo
# covers the image); black on a *transparent* ground, where the target outside the strokes is the image itself; and a
# one-pixel *checkerboard* in the strokes, on a transparent ground. Two controls have the same norm for each image: the
# same logo *blended* into the pixels, $x + s\,(t - x)$, and the mark with the pixels of each patch *permuted*.

# %%
logo = watermark.draw_logo(vit.image_size).to(device)
strokes = 1 - logo
board = (torch.arange(logo.shape[1])[:, None] + torch.arange(logo.shape[2])).remainder(2).to(logo).expand_as(logo)


LOGOS = ("opaque", "transparent", "checkered")


def logo_targets(pixels: Tensor) -> dict[str, Tensor]:
    """What the marked image should look like, by logo."""
    targets = logo.expand_as(pixels), pixels * (1 - strokes), pixels + strokes * (board - pixels)
    return dict(zip(LOGOS, targets, strict=True))


def prediction_row(logits: Tensor, transport: str, reference: dict[str, Tensor]) -> dict[str, object]:
    """What a model says of marked images after a transport, paired with what it says of the images as they were."""
    same, confidence = logits.argmax(1) == reference["clean"].argmax(1), logits.softmax(1).amax(1)
    correct, change = logits.argmax(1) == reference["labels"], (logits - reference["clean"]).abs().amax(1)
    unmarked = reference[transport].argmax(1)
    row = {"transport": transport, "largest_logit_change": change.max().item()}
    row |= statistics.mean((confidence - reference["clean"].softmax(1).amax(1)).abs()).columns("confidence_change")
    row |= statistics.proportion(correct).columns("accuracy")
    row |= statistics.paired_difference(correct, unmarked == reference["labels"]).columns("accuracy_change")
    row |= statistics.proportion(same).columns("unchanged")
    return row | statistics.paired_difference(same, unmarked == reference["clean"].argmax(1)).columns(
        "unchanged_change"
    )


def predictions(images: Tensor, transport: str) -> Tensor:
    return answers(vit, perturbation.degraded(images.clamp(0, 1), transport, seed)).cpu()


def references(pixels: Tensor, labels: Tensor, transports: Iterable[str]) -> dict[str, Tensor]:
    """Logits of the unmarked images after each transport, which float32 is one of, and their labels."""
    logits = {transport: predictions(pixels, transport) for transport in transports}
    return logits | {"clean": logits["float32"], "labels": labels}


def pixels_of(split: Split) -> tuple[Tensor, Tensor]:
    ((pixels, labels),) = split.batches(len(split), image_size=vit.image_size, device=device)
    return pixels, labels.cpu()


def appearance(pixels: Tensor, noise: Tensor) -> dict[str, object]:
    marked, row = (pixels + noise).clamp(0, 1), {}
    row |= statistics.mean(norms(noise).cpu()).columns("norm")
    row |= statistics.mean(similarity.psnr(pixels, marked)).columns("psnr")
    return row | statistics.mean(similarity.ssim(pixels, marked)).columns("ssim")


# %%
def logos() -> list[dict[str, object]]:
    """Every logo in both norms, and its controls: how it looks, and what it does to predictions by transport."""
    generator, rows = torch.Generator().manual_seed(seed), []
    whole, labels = pixels_of(photos.test.subset(logo_images, seed))
    counts = {"l2": logo_images, "l1": l1_images}
    known = {n: references(whole[:n], labels[:n], perturbation.DEGRADATIONS) for n in set(counts.values())}
    for name, norm in ((name, norm) for name in LOGOS for norm in counts):
        pixels, reference = whole[: counts[norm]], known[counts[norm]]
        target = logo_targets(pixels)[name]
        mark, gap = watermark.watermark(space, pixels, target, norm=norm)
        step, length = target - pixels, norms(mark)
        noises = {
            "nullspace": mark,
            "blended": step * (length / norms(step)).clamp(max=1).view(-1, 1, 1, 1),
        }
        noises["permuted"] = perturbation.in_box(
            pixels, perturbation.permuted_in_patches(mark, vit.patch_size, generator), length
        )
        free = (norms(space.project(step)) / norms(step)).square().cpu()
        inside = (norms(mark * (strokes > 0.5)) / length).square().cpu()
        about = {"logo": name, "form": norm.upper(), "largest_gap": gap.max().item()}
        about |= statistics.mean(free).columns("free") | statistics.mean(inside).columns("inside")
        for kind, noise in noises.items():
            look = appearance(pixels, noise)
            travels = name == "transparent" and kind != "permuted"
            transports = perturbation.DEGRADATIONS if travels else ["float32"]
            rows += [
                about
                | {"mark": kind}
                | look
                | prediction_row(predictions(pixels + noise, transport), transport, reference)
                for transport in transports
            ]
    return rows


logo_run = stored("watermark_logo", {"images": logo_images, "l1_images": l1_images, "seed": seed}, logos, data=identity)
logo_table = pd.DataFrame(logo_run.metrics)
figures.save_table(logo_table, "06_logo", caption="Visible logos in the nullspace.")
columns = [
    "logo",
    "form",
    "mark",
    "norm",
    "psnr",
    "ssim",
    "free",
    "inside",
    "unchanged",
    "unchanged_low",
    "confidence_change",
]
logo_table.loc[logo_table["transport"] == "float32", [*columns, "largest_logit_change", "largest_gap", "n"]].style.hide(
    axis="index"
).format(precision=3).format("{:.1e}", subset=["largest_logit_change", "largest_gap"])

# %% [markdown]
# `free` is the share of $\lVert t - x \rVert^2$ that lies in the nullspace, `inside` the share of the mark's energy
# within the strokes. A trained embedding reads smooth content, so with the shipped model a smooth logo lies almost
# wholly in the *row space*, which the model reads: little of a solid slashed circle is free, and much more of a
# checkerboard. What the network ignores is texture.

# %%
shown = photos.test.subset(pictures, seed + 1)
pixels, _ = pixels_of(shown)
targets = logo_targets(pixels)
panels = {"image": pixels, "opaque, L2": targets["opaque"], "transparent, L2": targets["transparent"]}
panels = {title: pixels + watermark.watermark(space, pixels, t)[0] for title, t in list(panels.items())[1:]}
panels["transparent, L1"] = pixels + watermark.watermark(space, pixels, targets["transparent"], norm="l1")[0]
panels["checkered, L1"] = pixels + watermark.watermark(space, pixels, targets["checkered"], norm="l1")[0]
panels = {"image": pixels, "target": targets["transparent"]} | panels
panels["noise of\ntransparent, L1"] = (panels["transparent, L1"] - pixels) / 2 + 0.5
panels = {title: pictured.clamp(0, 1) for title, pictured in panels.items()}
figure, axes = figures.subplots(len(panels), pictures, height=6.3 * len(panels) / pictures * 1.06, squeeze=False)
for line, (title, pictured) in zip(axes, panels.items(), strict=True):
    confidence, guess = answers(vit, pictured).softmax(1).max(1)
    line[0].set_ylabel(title)
    for i, axis in enumerate(line):
        axis.imshow(pictured[i].permute(1, 2, 0).cpu())
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
        label = f"{figures.short(photos.classes[guess[i]], 18)}, {confidence[i]:.1%}"
        axis.set_title("" if title.startswith("noise") else label, fontsize=7)
figures.add_credits(figure, credits(shown.images, range(pictures)))
_ = figures.save_figure(figure, "06_logo")

# %% [markdown]
# Rows: the image; the target, a solid logo on a transparent ground, whose prediction shows what painting the logo into
# the pixels would cost; then marked images, which the model cannot tell from the first row; last, the noise of one of
# them (grey is zero). At the defaults the opaque logo covers the image with a texture in which nobody would read it.
# With a transparent ground the two norms differ. The L2 form spreads the mark over whole patches, because the free
# part of the logo does not know where the strokes end. The L1 form prefers pixels that hit the target *exactly*, and
# outside the strokes the target is the image: so its noise stays within the strokes and the logo can be read. Its
# price is a much larger norm.
#
# What happens to the prediction on the way, for the solid logo on a transparent ground:

# %%
solid = logo_table[logo_table["logo"] == "transparent"]
columns = ["unchanged", "unchanged_change", "unchanged_change_low", "unchanged_change_high", "accuracy_change"]
solid.set_index(["form", "mark", "transport"])[columns].unstack("mark")[["unchanged", "accuracy_change"]].style.format(
    "{:.3f}"
)

# %% [markdown]
# `unchanged` compares with the prediction on the clean image, `accuracy_change` with the unmarked image after the same
# transport, on the same images. Without transport no mark in the nullspace changes a prediction. Rounding to 8 bits is
# as harmless, and so is a PNG file, which keeps these 8 bits. JPEG, resampling and noise carry part of the mark out of
# the nullspace. At the defaults that costs about as much as they cost the unmarked image, and the intervals in the
# table are too wide to tell the two apart. The blended logo, at the same norm, loses predictions after every
# transport, in the L1 form by intervals that exclude zero.
#
# ## (b) The solver
#
# The original code calls SciPy's SLSQP for each patch, from coefficients that are all 1, with finite differences. Here
# the L1 form is a linear programme, solved for all patches at once by a predictor-corrector interior-point method, and
# the L2 form a projection (`PatchNullspace.nearest`). SLSQP with the exact gradient is the fairer opponent. `excess`
# is how much its objective exceeds ours, relative to ours.


# %%
def seconds() -> float:
    """CPU time on a CPU, else time on the clock when the device has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def against_slsqp() -> list[dict[str, object]]:
    """Time a patch and objective of ours and of SLSQP on the same patches (opaque logo)."""
    pixels = pixels_of(photos.test.subset(logo_images, seed))[0][:l1_images]
    count = len(pixels) * space.image_dim // space.dim
    drawn, rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:slsqp_patches], []
    for norm in ("l1", "l2"):
        watermark.watermark(space, pixels[:1], logo, norm=norm)
        begun = seconds()
        noise, gap = watermark.watermark(space, pixels, logo, norm=norm)
        ours = (seconds() - begun) / count
        parts = (pixels, noise, logo.expand_as(pixels))
        x, v, t = (patchify(part.cpu().double(), space.patch_size).flatten(0, 1)[drawn] for part in parts)
        for gradient in (False, True):
            begun = time.process_time()
            theirs = [
                watermark.official_noise(space, *pair, norm=norm, gradient=gradient) for pair in zip(x, t, strict=True)
            ]
            slsqp = (time.process_time() - begun) / len(drawn)
            order = 1 if norm == "l1" else 2
            mine, other = ((x + w - t).abs().pow(order).sum(1) for w in (v, torch.stack(theirs)))
            row = {"form": norm.upper(), "SLSQP": "exact gradient" if gradient else "as the original"}
            row |= {"ms_ours": 1e3 * ours, "ms_slsqp": 1e3 * slsqp, "speedup": slsqp / ours}
            row |= {"largest_gap": gap.max().item()} | statistics.mean(other / mine.clamp_min(1e-6) - 1).columns(
                "excess"
            )
            rows.append(row)
    return rows


solver_run = stored(
    "watermark_slsqp",
    {"patches": slsqp_patches, "images": logo_images, "l1_images": l1_images, "seed": seed, "device": device},
    against_slsqp,
    data=identity,
)
solver_table = pd.DataFrame(solver_run.metrics)
figures.save_table(solver_table, "06_solver", caption="CPU milliseconds a patch, ours and SLSQP on the same patches.")
solver_table.style.hide(axis="index").format(precision=3).format(
    "{:.1e}", subset=["largest_gap", "excess", "excess_low", "excess_high"]
)

# %% [markdown]
# SLSQP assumes a smooth objective. At the defaults it stops early on the L1 form, at a worse point, and calls that
# success; on the smooth form both reach the optimum.
#
# ## (c) A hidden message
#
# The key is a seed that draws orthonormal random directions $e_1, \dots, e_L$ of the image's nullspace, one for each
# bit. Bit $m_i = \pm 1$ is read as the sign of $\langle x, e_i \rangle$, without the original image. The image itself
# already has a component along $e_i$ (the *host's interference*). Three ways to write:
#
# - *additive* spread spectrum: $v = \kappa \sum_i m_i e_i$, whatever the image says;
# - *cancelled*: $v = \sum_i \max(0, \kappa - m_i \langle x, e_i \rangle)\, m_i e_i$, the smallest noise with margin
#   $\kappa$ without the box; both are then projected on the *legal* noises of the nullspace, those that keep the image
#   in the box $[0, 1]$;
# - *exact*: the convex problem with the box inside, $\min \tfrac12 \lVert v \rVert^2$ with $v$ in the nullspace,
#   $0 \le x + v \le 1$ and $m_i \langle x + v, e_i \rangle \ge \kappa$.
#
# The margin has a meaning: white noise of standard deviation $\sigma$ per pixel moves $\langle x, e_i \rangle$ by
# $\sigma$ (one standard deviation).

# %%
SWEPT = margins[-2:][0]  # the margin at which the share of the nullspace varies
LOW = 0.125  # the share of the nullspace that JPEG rounds least
messages = torch.rand(message_images, bits, generator=torch.Generator().manual_seed(seed)) < 0.5
carriers = photos.test.subset(message_images, seed)


def recovery(images: Tensor, sent: Tensor, share: float, secrets: Iterable[int] = (key,)) -> dict[str, object]:
    """Share of bits recovered (over images, since the bits of an image are not independent), and of whole messages."""
    options = dict(length=sent.shape[1], share=share)
    read = [watermark.decode_message(space, images.clamp(0, 1), key=secret, **options).cpu() for secret in secrets]
    right = torch.stack([(received == sent).double().mean(1) for received in read]).mean(0)
    return statistics.mean(right).columns("bits") | statistics.proportion(right == 1).columns("messages")


@cache
def written(share: float, margin: float) -> watermark.HiddenMessage:
    """The messages in the carriers, in a share of the nullspace and at a margin."""
    return watermark.encode_message(space, pixels_of(carriers)[0], messages, key=key, margin=margin, share=share)


def embeddings() -> list[dict[str, object]]:
    pixels, _ = pixels_of(carriers)
    sent, rows = messages, []
    keys = watermark.message_keys(space, bits, key=key).to(device)
    signs = 2 * sent.double().to(device) - 1
    for margin in (margins[0], margins[-1]):
        missing = (margin - signs * (pixels.double().flatten(1) @ keys.flatten(1).T)).clamp_min(0)
        steps = {"additive": margin * signs, "cancelled": missing * signs}
        noises = {
            name: space.nearest(pixels, pixels + torch.einsum("bl,lchw->bchw", step, keys).float())[0]
            for name, step in steps.items()
        }
        for name, noise in (noises | {"exact": written(1.0, margin).noise}).items():
            row = {"writing": name, "margin": margin} | statistics.mean(norms(noise).cpu()).columns("norm")
            rows.append(row | recovery(pixels + noise, sent, 1.0))
    return rows


writing_run = stored(
    "watermark_embedding",
    {"images": message_images, "bits": bits, "key": key, "seed": seed, "margins": [margins[0], margins[-1]]},
    embeddings,
    data=identity,
)
writing_table = pd.DataFrame(writing_run.metrics)
figures.save_table(writing_table, "06_writing", caption="Three ways to write the bits, read in float32.")
writing_table.pivot(index="margin", columns="writing", values=["norm", "bits", "messages"]).style.format("{:.3f}")

# %% [markdown]
# Additive writing fails where the image's own component is larger than the mark, as at the smaller margin of the
# defaults. Cancelling repairs that, until in images with saturated pixels the projection on the box takes part of the
# margin away. The exact form keeps the margin at the price of a larger norm, where the box leaves room.
#
# ### What survives
#
# JPEG stores smooth content and discards texture, as the embedding does. So it removes just the directions in which
# the nullspace is rich. We therefore also order the nullspace by the step with which JPEG rounds a direction (the
# quadratic form of squared quantisation steps over the discrete cosine transform, restricted to the nullspace) and
# write in the eighth of it that is rounded least.
#
# "Resize 3/4" makes each side three quarters as long, and then as long as before. "Crop 44/48" keeps the central part,
# that share of each side, and resizes back. In "crop undone" the decoder knows of the crop and puts the content back
# where it was. "Erased" is an attacker who has the weights and removes the image's part in the nullspace. "Wrong keys"
# reads the untouched image with five other keys.

# %%
ARRIVALS = [*perturbation.DEGRADATIONS, "crop undone", "erased", "wrong keys"]
OTHER_KEYS = range(key + 1, key + 6)
side = round(vit.image_size[0] * 44 / 48)


def arrival(marked: Tensor, name: str) -> Tensor:
    if name == "crop undone":
        return perturbation.undo_crop(perturbation.crop_and_resize(marked, side), side)
    if name == "erased":
        return (marked - space.project(marked)).clamp(0, 1)
    return marked if name == "wrong keys" else perturbation.degraded(marked, name, seed)


def arrivals(share: float, margin: float) -> list[dict[str, object]]:
    """Recovery of bits and messages by what happened to the image, for one strength and one part of the nullspace."""
    pixels, labels = pixels_of(carriers)
    hidden = written(share, margin)
    marked = (pixels + hidden.noise).clamp(0, 1)
    about = {"share": share, "margin": margin, "largest_gap": hidden.gap.max().item()}
    about |= appearance(pixels, hidden.noise) | statistics.proportion((hidden.margin > 0.99 * margin).cpu()).columns(
        "held"
    )
    reference = references(pixels, labels, ["float32"])
    exact = prediction_row(predictions(marked, "float32"), "float32", reference)
    about |= {name: exact[name] for name in ("unchanged", "unchanged_low", "unchanged_high", "largest_logit_change")}
    return [
        about
        | {"arrival": name}
        | recovery(arrival(marked, name), messages, share, OTHER_KEYS if name == "wrong keys" else (key,))
        for name in ARRIVALS
    ]


SETTINGS = [(share, margin) for share in (1.0, LOW) for margin in margins]
SETTINGS += [(share, SWEPT) for share in shares]


def stored_arrivals(share: float, margin: float) -> Result:
    return stored(
        "watermark_message",
        {"images": message_images, "bits": bits, "key": key, "seed": seed, "share": share, "margin": margin},
        partial(arrivals, share, margin),
        data=identity,
    )


message_runs = [stored_arrivals(*setting) for setting in SETTINGS]
message_table = pd.DataFrame([row for result in message_runs for row in result.metrics])
figures.save_table(message_table, "06_message", caption="Recovery of a hidden message.")
drawn = message_table[message_table["share"].isin([1.0, LOW])]
pd.concat(
    {
        value: drawn.pivot(index=["share", "margin"], columns="arrival", values=value)[ARRIVALS]
        for value in ("bits", "messages")
    }
).style.format("{:.3f}")

# %%
titles = {1.0: "the whole nullspace", LOW: "the eighth that JPEG rounds least"}
palette = dict(zip(margins, sns.color_palette("flare", len(margins)), strict=True))
figure, axes = figures.subplots(1, 2, height=3.3, sharey=True)
for axis, (share, title) in zip(axes, titles.items(), strict=True):
    for shift, (margin, color) in enumerate(palette.items()):
        line = drawn[(drawn["share"] == share) & (drawn["margin"] == margin)].set_index("arrival").loc[ARRIVALS]
        place = [i + 0.16 * (shift - (len(palette) - 1) / 2) for i in range(len(ARRIVALS))]
        errors = [line["bits"] - line["bits_low"], line["bits_high"] - line["bits"]]
        label = f"margin {margin:g}"
        axis.errorbar(place, line["bits"], errors, fmt="o", color=color, markersize=3, linewidth=1, label=label)
    axis.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
    axis.set_title(title)
    axis.set_xticks(range(len(ARRIVALS)), ARRIVALS, rotation=55, ha="right", rotation_mode="anchor")
axes[0].text(-0.5, 0.505, "chance", fontsize=7, color="0.4", va="bottom")
axes[0].set(ylabel="bits recovered", ylim=(0.42, 1.03))
axes[0].yaxis.set_major_formatter(PercentFormatter(1))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
_ = figures.save_figure(figure, "06_message")

# %% [markdown]
# At the defaults: rounding to 8 bits costs nothing, and so does PNG. White noise costs only what the meaning of the
# margin predicts: bits are lost when its standard deviation is not small against the margin. JPEG is the enemy of the
# nullspace. Directions that JPEG rounds little help a great deal, yet the message arrives whole only at high quality,
# and at quality 50 most bits are near chance. A crop that the decoder does not know of destroys the message, because
# the keys are tied to places; with the content put back bits return, and more of them at a larger margin. Other keys
# read chance. In an image with large saturated areas the box may not hold every margin (`held` below is the share of
# images that do); at large margins a bit can be lost there even in float32.

# %%
float32 = message_table[message_table["arrival"] == "float32"]
columns = [
    "share",
    "margin",
    "norm",
    "psnr",
    "ssim",
    "held",
    "bits",
    "messages",
    "unchanged",
    "unchanged_low",
    "unchanged_high",
    "n",
]
float32[[*columns, "largest_logit_change", "largest_gap"]].style.hide(axis="index").format(precision=3).format(
    "{:.1e}", subset=["largest_logit_change", "largest_gap"]
)

# %%
figure, (left, middle, right) = figures.subplots(1, 3, height=2.4)
for (share, title), color in zip(titles.items(), sns.color_palette(), strict=False):
    line = float32[(float32["share"] == share) & float32["margin"].isin(margins)].sort_values("margin")
    for axis, value in ((left, "psnr"), (middle, "ssim")):
        figures.curve(axis, line, "margin", value, color=color, label=title)
for axis, label in ((left, "PSNR (dB)"), (middle, "SSIM")):
    axis.set(xlabel="margin", ylabel=label, xscale="log")
    axis.set_xticks(margins, [f"{margin:g}" for margin in margins])
    axis.minorticks_off()
at_share = message_table[message_table["margin"] == SWEPT].sort_values("share")
for name, color in zip(("float32", "JPEG 95", "JPEG 75", "JPEG 50"), sns.color_palette("flare", 4), strict=True):
    line = at_share[at_share["arrival"] == name]
    figures.curve(right, line, "share", "bits", color=color, label=name)
right.axhline(0.5, color="0.6", linestyle="--", linewidth=1)
right.set(
    xlabel="share of the nullspace", ylabel="bits recovered", xscale="log", ylim=(0.45, 1.03), title=f"margin {SWEPT:g}"
)
right.set_xticks([1 / 16, 1 / 4, 1], ["1/16", "1/4", "1"])
right.minorticks_off()
right.yaxis.set_major_formatter(PercentFormatter(1))
right.legend(fontsize=6.5, loc="center left", bbox_to_anchor=(0.0, 0.68), borderpad=0, labelspacing=0.2)
figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
_ = figures.save_figure(figure, "06_visibility")

# %% [markdown]
# Left and centre: visibility of the mark by margin. Right: recovery against the share of the nullspace that carries
# the message, at one margin. At the defaults, under JPEG, smaller shares are better.
#
# ## (d) Does the prediction stay?
#
# The same message and key, written in three places at the largest margin: the nullspace; its complement, the *row
# space*; and *pixel space* as a whole. The two controls are scaled to the norm of the nullspace's noise, image by
# image, within the box. `unchanged` compares with the prediction on the clean image in float32. The unmarked image
# after the same transport is the baseline for every mark.


# %%
def elsewhere() -> list[dict[str, object]]:
    """Predictions under every transport, for a message in the nullspace and in places that the model does see."""
    pixels, labels = pixels_of(carriers)
    reference, rows = references(pixels, labels, perturbation.DEGRADATIONS), []
    eye = torch.eye(len(space.basis), dtype=torch.float64)
    places = {
        "row space": replace(space, basis=space.row_basis, row_basis=space.basis),
        "pixel space": replace(space, basis=eye, row_basis=eye[:, :0]),
    }
    controls = {
        place: watermark.encode_message(s, pixels, messages, key=key, margin=0.2).noise for place, s in places.items()
    }
    hidden = written(1.0, margins[-1]).noise
    length = norms(hidden)
    noises = {"nullspace": hidden}
    noises |= {place: perturbation.in_box(pixels, noise, length) for place, noise in controls.items()}
    for (place, noise), transport in ((n, t) for n in noises.items() for t in perturbation.DEGRADATIONS):
        row = {"place": place, "margin": margins[-1]} | statistics.mean(norms(noise).cpu()).columns("norm")
        rows.append(row | prediction_row(predictions(pixels + noise, transport), transport, reference))
    unmarked = {"place": "unmarked", "margin": 0.0} | statistics.mean(torch.zeros(len(pixels))).columns("norm")
    return rows + [
        unmarked | prediction_row(reference[transport], transport, reference) for transport in perturbation.DEGRADATIONS
    ]


prediction_run = stored(
    "watermark_prediction",
    {"images": message_images, "bits": bits, "key": key, "seed": seed, "margin": margins[-1]},
    elsewhere,
    data=identity,
)
prediction_table = pd.DataFrame(prediction_run.metrics)
figures.save_table(prediction_table, "06_prediction", caption="Predictions of marked images by transport.")
columns = ["unchanged", "unchanged_change", "accuracy_change", "accuracy_change_low", "accuracy_change_high"]
prediction_table.set_index(["place", "transport"])[[*columns, "largest_logit_change", "n"]].style.format(
    "{:.3f}"
).format("{:.1e}", subset=["largest_logit_change"]).format("{:.0f}", subset=["n"])

# %%
figure, axis = figures.subplots(height=3.1)
colors = dict(
    zip(("nullspace", "row space", "pixel space", "unmarked"), [*sns.color_palette()[:3], "0.3"], strict=True)
)
transports = list(perturbation.DEGRADATIONS)
for shift, (place, color) in enumerate(colors.items()):
    line = prediction_table[prediction_table["place"] == place].set_index("transport").loc[transports]
    offset = [i + 0.12 * (shift - 1.5) for i in range(len(transports))]
    errors = [line["unchanged"] - line["unchanged_low"], line["unchanged_high"] - line["unchanged"]]
    axis.errorbar(offset, line["unchanged"], errors, fmt="o", color=color, markersize=3, linewidth=1, label=place)
axis.set_xticks(range(len(transports)), transports)
axis.set(ylabel="predictions unchanged", title=f"margin {margins[-1]:g}, norm {prediction_table['norm'].max():.1f}")
axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
_ = figures.save_figure(figure, "06_prediction")

# %% [markdown]
# In the nullspace no prediction changes in float32, at any margin (see the table above). At the defaults the same
# message at the same norm changes some in pixel space and more in the row space. After JPEG, a crop or noise, images
# marked in the nullspace keep their predictions about as often as unmarked ones, and the controls add their own damage
# to that of the transport.
#
# So a watermark that the model ignores exists, exactly and for every image. At the defaults it is texture: a logo can
# be read only where the strokes may look like noise, and the L1 form with a transparent ground is what makes it
# readable. The hidden message is safe from rounding and from noise below its margin. It is not safe from anybody who
# compresses the file or resamples it: what the embedding ignores is close to what JPEG discards.

# %% [markdown]
# ## The answer

# %%
from nullpaper.statistics import Interval
from nullpaper.studies.verdicts import (
    Endpoint,
    Verdicts,
    at_least,
    below,
    every,
    interval,
    intervals,
    number,
    percent,
    row,
    rows,
    some,
    word,
)

answer = Verdicts()


def least(estimates: list[Interval]) -> Interval:
    """The one of the smallest value."""
    return min(estimates, key=lambda estimate: estimate.value)


@answer.claim(
    "C",
    "watermarks",
    "watermarks in the nullspace leave predictions alone",
    where="06 (a), (d)",
    criterion="holds if at least 90 % of predictions stay for every logo and for messages, in float32 and in 8 bits; "
    "in part if in float32",
    endpoint="least share of predictions that stay in 8 bits, to be 90 % or more",
)
def watermarks() -> tuple[str, str, Endpoint]:
    shares = {"float32": [], "8 bits": []}
    for transport, group in shares.items():
        group += intervals(rows(logo_table, mark="nullspace", transport=transport), "unchanged")
        group += intervals(rows(prediction_table, place="nullspace", transport=transport), "unchanged")
    *logos, messages = shares["8 bits"]
    blended = least(intervals(rows(logo_table, mark="blended", transport="float32"), "unchanged"))
    exact, coarse = (every(at_least(share, 0.9) for share in group) for group in shares.values())
    measured = (
        f"unchanged in float32 at the least {percent(least(shares['float32']))}, in 8 bits "
        f"{percent(least(logos))} with a logo and {percent(messages)} with a message; a logo blended in at "
        f"equal norm leaves {percent(blended)} at worst"
    )
    return measured, word(every((exact, coarse)), exact), Endpoint.over_images(least(shares["8 bits"]), 0.9)


@answer.claim(
    "",
    "",
    "any picture, and not only texture, can be the watermark",
    where="06 (a)",
    criterion="holds if at least half of every logo's energy is invisible to the model, in part if of one logo's",
    endpoint="least share of a logo's energy that is invisible to the model, to be a half or more",
)
def any_logo() -> tuple[str, str, Endpoint]:
    lines = rows(logo_table, mark="nullspace", transport="float32", form="L2")
    free = dict(zip(lines["logo"], intervals(lines, "free"), strict=True))
    answers = [at_least(share, 0.5) for share in free.values()]
    texts = ", ".join(f"{logo} {percent(share, None)}" for logo, share in free.items())
    measured = f"invisible share of the logo: {texts} (n = {lines['n'].min():,})"
    return measured, word(every(answers), some(answers)), Endpoint.over_images(least([*free.values()]), 0.5)


@answer.claim(
    "",
    "",
    f"a {bits}-bit message in the nullspace survives JPEG 75",
    where="06 (c)",
    criterion="holds if at least 90 % of bits are read when written anywhere in the nullspace, in part if written "
    "where JPEG rounds least",
    endpoint="share of bits that are read when written anywhere in the nullspace, to be 90 % or more",
)
def survival() -> tuple[str, str, Endpoint]:
    table = rows(message_table, arrival="JPEG 75")
    table = table[table["margin"] == table["margin"].max()]
    anywhere = interval(table.loc[table["share"].idxmax()], "bits")
    best = table.loc[table["bits"].idxmax()]
    smooth = interval(best, "bits")
    measured = (
        f"{percent(anywhere)} of bits if written anywhere, {percent(smooth)} in the {best['share']:g} of it that JPEG "
        f"rounds least (all {bits} bits in {100 * best['messages']:.0f} % of images)"
    )
    part = at_least(smooth, 0.9) if best["share"] < 1 else False
    return measured, word(at_least(anywhere, 0.9), part), Endpoint.over_images(anywhere, 0.9)


@answer.claim(
    "C",
    "code",
    "SLSQP solves the watermark problem",
    where="06 (b)",
    criterion="holds if its objective exceeds the certified optimum by less than 1e-6 in both forms, in part if in one",
    endpoint="larger excess of its objective over the certified optimum among the forms, to be below 1e-6",
)
def solver() -> tuple[str, str, Endpoint]:
    answers, texts, excesses = [], [], []
    for form in ("L1", "L2"):
        line = row(solver_table, form=form, SLSQP="as the original")
        fair = row(solver_table, form=form, SLSQP="exact gradient")
        excess = interval(line, "excess")
        excesses.append(excess)
        answers.append(below(excess, 1e-6))
        texts.append(
            f"{form}: it ends {number(excess, '.1e', None)} above ours, which is certified to {line['largest_gap']:.0e} "
            f"and {line['speedup']:.0f} times faster, {fair['speedup']:.0f} if SLSQP is given the gradient"
        )
    measured = f"{'; '.join(texts)} (n = {excesses[0].n} patches)"
    worst = max(excesses, key=lambda one: one.value)
    return measured, word(every(answers), some(answers)), Endpoint.over_images(worst, 1e-6)


figures.save_table(answer.table(), "06_verdicts", caption="What paper C says of watermarks, and what holds.")


def conclusion() -> str:
    marked, read = rows(logo_table, mark="nullspace", transport="8 bits"), rows(message_table, arrival="JPEG 75")
    kept, free = least(intervals(marked, "unchanged")), least(intervals(marked, "free"))
    best = read.loc[read["bits"].idxmax()]
    return (
        f"with any logo the prediction stays for at least {percent(kept, 'images')} in 8 bits; of a logo as little as "
        f"{percent(free, None)} is invisible to the model, and a message comes through JPEG 75 with "
        f"{percent(interval(best, 'bits'), None)} of its bits where it is written best, whole in {best['messages']:.0%} of images."
    )


answer.show(
    question="Can a watermark be hidden where the model does not look?",
    answer=conclusion,
    would_change="an error-correcting code, which would trade bits for whole messages; attackers who do not have the weights; "
    "larger patches, which have room for more of a picture.",
    limits=f"one model ({model}); {logo_images:,} images of {data} (the first cell says which) with a logo, "
    f"{min(l1_images, logo_images):,} in the L1 form, {message_images:,} with a message, {slsqp_patches:,} patches for SLSQP; one key, which is a seed and not "
    "cryptography; whoever has the weights can remove the message (erased).",
)
