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
# # 04 · Network fooling: looking alike and being alike are different things
#
# **Question.** Paper C uses the nullspace to fool networks, with images that look different and are the same to the
# network ("network fooling"). Can noise that a network does not see make an image look like one of another class? And
# the reverse: how short is the noise that changes its answer? Let $f(x)$ be the logits of a Vision Transformer (ViT)
# for a test image $x$, and let the target $t$ be a test image of another class, drawn at random.
#
# We solve both as optimisation problems, pair by pair. Varied are the *influence*
# $\lVert \operatorname{softmax} f(x + v) - \operatorname{softmax} f(x) \rVert_2^2$ that a noise $v$ may have (from 0
# to 2), the kind of noise, and the network that looks. Controls of equal L2 norm are a straight step towards $t$,
# random nullspace noise, and noise permuted within patches; in (b) two straight lines without optimisation. Measured
# are the distance to $t$ that is left, as a share of $\lVert t - x \rVert_2$, norms in pixel units, structural
# similarity (SSIM), and the share of images that keep their class.
#
# | section | question | primary endpoint | holds if |
# |---|---|---|---|
# | (a) | does *exact* noise, which changes no logit, make $x$ look like $t$ (C)? | share of the distance that it covers | one half or more; in part: a tenth |
# | (a) | is exact noise invisible only to the model that it was made for (code of C)? | largest share of classes that another network keeps under the largest exact noise | below one half; in part: for one network |
# | (b) | does a little influence bring $x$ to $t$ (ours)? | share of the distance left at influence 0.01 | below a quarter; in part: below one half |
# | (c) | does far shorter noise change the answer (ours)? | norm of exact noise over that of the short one | 10 or more; exact noise changes under 10 % of the answers, the short one over 90 % |
#
# Section (d) shows pictures. The defaults are the small ViT that comes with this repository, and CIFAR-10; any plain
# ViT and photographs of its classes will do:
#
# ```sh
# nullpaper run 04_network_fooling --profile photographs -p root IMAGENET  # and -p weights FILE, or timm's hub
# ```
#
# Sentences that interpret tables and figures were written for these defaults where they say so; the last section is
# computed in every run.
#
# Takes about 1 min at `cpu` on 2 cores and 10 at `photographs`; needs CIFAR-10, which is fetched once, or your
# photographs, and torchattacks (`pip install "nullpaper[attacks]"`).

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # or any plain ViT of timm
weights: str = ""  # a file for it; empty: what ships, or timm's hub
data: str = "cifar10"  # or another data set of these classes, or the path of a folder of class folders
root: str = ""  # folder of the photographs; empty: fetched where that is possible
images: int = 160  # pairs in (a)
close_pairs: int = 40  # pairs in (b) and (c), the first of those in (a)
start_pairs: int = 12  # pairs that the descent of (b) approaches from two starts, the first of those
steps: int = 32  # of each descent in (b) and (c)
eps: list = [0.001, 0.01, 0.03, 0.1]  # influences in (b), to which 0.01 is added where it lacks
pictures: int = 5  # pairs in the grid of (d)
seed: int = 0  # of the images, their pairs and random noise

# %%
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import PercentFormatter

from nullpaper import load_data, load_vit, patch_nullspace, statistics
from nullpaper.data.credits import credits
from nullpaper.errors import InputError
from nullpaper.fooling import lookalike, similarity
from nullpaper.models import checkpoints
from nullpaper.models.nets import SHIPPED
from nullpaper.models.predict import answering, answers, probability_gap
from nullpaper.models.vit import ViT, fingerprint, norms
from nullpaper.robustness import attacks, perturbation
from nullpaper.workflow import figures
from nullpaper.workflow.store import records, stored

figures.use_style()
attacks.torchattacks()  # section (c) needs it: where it lacks, this says so before any work
device = "cuda" if torch.cuda.is_available() else "cpu"
close_pairs = min(close_pairs, images)
start_pairs = min(start_pairs, close_pairs)

vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
print(photos)
vit = answering(vit, photos)
own = "shipped ViT" if model == SHIPPED and not weights else vit.name
others = ("resnet", "vit_wide", "convnext") if data == "cifar10" and vit.image_size == (48, 48) else ()
second = {name: checkpoints.load_classifier(name, device=device) for name in others}
networks = {own: vit, **second}
if not second:
    print(
        "No other network of these classes and this image size travels with the package: what others see is left out."
    )
spaces = {through: patch_nullspace(vit, through=through) for through in ("embedding", "encoder")}
space = spaces["embedding"]
identity = photos.identity | {name: fingerprint(net) for name, net in {"weights": vit, **second}.items()}

test = photos.test.subset(images, seed)
((x, labels),) = test.batches(images, image_size=vit.image_size, device=device)
partner = lookalike.other_class(labels.cpu(), seed).to(device)
t = x[partner]
params = {"images": images, "seed": seed}
for name, net in networks.items():
    said = answers(net, x[:close_pairs]).argmax(1), answers(net, t[:close_pairs]).argmax(1)
    if not (said[0] != said[1]).any():
        raise InputError(
            f"{name} tells no x from its t: pass weights that were trained on these classes, or more close_pairs."
        )


def gap(pixels: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """|softmax f(pixels) - softmax f(clean)|^2 of each image, (B,)."""
    return probability_gap(answers(vit, pixels), answers(vit, clean)).cpu()


def share_in_nullspace(noise: torch.Tensor) -> torch.Tensor:
    """Share of the squared L2 norm of each image's noise that lies in the exact nullspace, (B,)."""
    return (norms(space.project(noise)) / norms(noise)).square().cpu()


def geometric_mean(ratios: torch.Tensor | pd.Series) -> statistics.Interval:
    """Geometric mean of ratios, which a few images near a class boundary would dominate otherwise, with its interval."""
    logs = statistics.mean(np.log(np.asarray(ratios)))
    return statistics.Interval(*np.exp([logs.value, logs.low, logs.high]).tolist(), logs.n)


# %% [markdown]
# ## (a) The same to the network, different to others
#
# `nearest` solves this convex problem, and returns a bound on how far it is from the optimum (`gap`):
#
# $$\min_v \; \lVert x + v - t \rVert_2 \quad\text{subject to}\quad v \in \mathcal N,\quad 0 \le x + v \le 1 .$$
#
# Here $\mathcal N$ is the nullspace, in every patch, of the matrix $W$ of the patch embedding, the ViT's linear first
# layer (row `embedding`). In row `encoder` it is the nullspace of $PW$, one dimension per patch larger, where $P$
# subtracts the mean over the width as every LayerNorm does. Without the condition that $x + v$ is *legal*, in
# $[0, 1]$, the answer is the projection $v = B B^\top (t - x)$, $B$ an orthonormal basis of $\mathcal N$. By
# Pythagoras the distance that is left, relative to the first, is then $\sqrt{1 - q}$, with $q$ the share of
# $\lVert t - x \rVert^2$ that lies in $\mathcal N$. For white noise $q$ would be $\dim \mathcal N / C p^2$, with
# $C p^2$ the pixel values of a patch (`share of pixel space`); `share, untrained` is $q$ for the same architecture
# before training.


# %%
torch.manual_seed(seed + 1)  # that of the shipped model would give it the same first draws
fresh = load_vit(
    model, pretrained=False, img_size=vit.image_size, device=device
)  # the control: an embedding that has seen no image


def exact_pairs() -> tuple[list[dict[str, object]], dict[str, torch.Tensor]]:
    """How near the nullspace brings x to t, what it changes, and the noises."""
    clean, away, noises, rows = answers(vit, x), norms(x - t), {}, []
    for through, each in spaces.items():
        noise, gaps = each.nearest(x, t)
        noisy = (x + noise).clamp(0, 1)
        logits, filed = answers(vit, noisy), answers(vit, perturbation.rounded(noisy))
        share, untrained = (
            (norms(one.project(t - x)) / away).square() for one in (each, patch_nullspace(fresh, through=through))
        )
        row = {"through": through, "share of pixel space": each.dim / each.basis.shape[0]}
        values = {
            "share of |t - x|^2": share,
            "share, untrained": untrained,
            "relative distance": norms(noisy - t) / away,
            "norm": norms(noise),
            "SSIM with t": similarity.ssim(noisy, t),
            "SSIM with x": similarity.ssim(noisy, x),
            "SSIM of x and t": similarity.ssim(x, t),
        }
        for name, value in values.items():
            row |= statistics.mean(value.cpu()).columns(name)
        same = {
            name: (new.argmax(1) == clean.argmax(1)).cpu() for name, new in (("float32", logits), ("8 bits", filed))
        }
        for name, value in same.items():
            row |= statistics.proportion(value).columns(f"unchanged, {name}")
        row |= {"largest logit change": (logits - clean).abs().max().item(), "largest gap": gaps.max().item()}
        rows.append(row)
        noises[through] = noise
    return rows, noises


exact = stored("fooling_exact", params, exact_pairs, data=identity)
exact_table = pd.DataFrame(exact.metrics)
figures.save_table(exact_table, "04_exact", caption="Exact noise that brings an image towards another.")
exact_table.set_index("through").T.style.format(precision=3)

# %% [markdown]
# **The logits stay; how far the image moves is a matter of $q$.** With the shipped ViT it hardly moves: half of all
# pixel directions are invisible, but the difference of two images lies almost wholly in the other half. The share $q$
# is far below that of white noise and that of the untrained embedding, and the distance falls by a few per cent.
# Training has used the $d$ dimensions that $W$ reads for what differs between natural images. Exact noise can make an
# image look *different*, but not like a chosen other one; the encoder's extra dimension changes little. Paper C's
# fooling by appearance is limited by the data, not by the solver: the gap says that no better exact noise exists. In
# numbers, of this run:

# %%
embedding = exact_table.iloc[0]
print(
    f"{own}: {embedding['share of pixel space']:.0%} of all pixel directions are invisible, and of |t - x|^2 "
    f"{embedding['share of |t - x|^2']:.1%} lies there, before training {embedding['share, untrained']:.1%}. The distance "
    f"falls by {1 - embedding['relative distance']:.1%}, the logits move by {embedding['largest logit change']:.1e} at most."
)

# %% [markdown]
# ### What other networks see
#
# SSIM does not see as people do, so we also ask networks that do not share the nullspace: do they still give $x + v$
# the class that they give $x$, or the class that they give $t$? Pairs to which a network gives one class are left out
# for this network. Two noises are tried: the one nearest to $t$, and the one of the largest norm that `largest` finds.
# The controls are legal and have *exactly* the norm of the noise above them, image by image: a **straight step**
# $x + s\,(t - x)$, **random exact** nullspace noise, and the same noise **permuted** within patches (the papers'
# control).

# %%
EXACT, LARGEST = "exact, nearest to t", "exact, largest"


def noises_and_controls() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    near, far = exact.tensors(device)["embedding"], space.largest(x)
    permuted = perturbation.permuted_in_patches(far, space.patch_size, generator)
    return {
        EXACT: near,
        **lookalike.equal_norm_controls(space, x, t, near, generator),
        LARGEST: far,
        "permuted, largest": perturbation.in_box(x, permuted, norms(far)),
    }


def second_opinions() -> tuple[list[dict[str, object]], dict[str, torch.Tensor]]:
    """Which class each network gives x + noise: that of x, that of t, or another."""
    noises, rows = noises_and_controls(), []
    for network, net in networks.items():
        of_x, of_t = (answers(net, pixels).argmax(1).cpu() for pixels in (x, t))
        differ = of_x != of_t
        seen = {name: answers(net, (x + noise).clamp(0, 1)).argmax(1).cpu() for name, noise in noises.items()}
        for name, noise in noises.items():
            reference = seen[LARGEST if name.endswith("largest") else EXACT]
            kept = (seen[name] == of_x)[differ]
            row = {"network": network, "noise": name, "norm": norms(noise).mean().item()}
            row |= statistics.proportion(kept).columns("class of x")
            row |= statistics.proportion((seen[name] == of_t)[differ]).columns("class of t")
            row |= statistics.paired_difference(kept, (reference == of_x)[differ]).columns("class of x, minus exact")
            row["other"] = ((seen[name] != of_x) & (seen[name] != of_t))[differ].double().mean().item()
            rows.append(row)
    lengths = torch.stack([norms(noise) for noise in noises.values()])
    mismatch = (lengths[:4] / lengths[0] - 1).abs().amax(), (lengths[5] / lengths[4] - 1).abs().amax()
    return {"rows": rows, "largest norm mismatch": max(float(value) for value in mismatch)}, {LARGEST: noises[LARGEST]}


opinions = stored("fooling_second", params | {"of": exact.key}, second_opinions, data=identity)
seen = pd.DataFrame(opinions.metrics["rows"])
figures.save_table(seen, "04_second_models", caption="What other networks see.")
print(f"largest relative difference of a control's norm, over images: {opinions.metrics['largest norm mismatch']:.1e}")

# %%
colours = dict(
    zip(
        ("class of x", "other", "class of t"),
        sns.color_palette("colorblind")[:1] + [(0.85,) * 3] + sns.color_palette("colorblind")[1:2],
        strict=True,
    )
)
figure, axes = figures.subplots(1, len(networks), height=2.7, sharey=True, squeeze=False)
for axis, network in zip(axes[0], networks, strict=True):
    bars = seen[seen["network"] == network].reset_index(drop=True)
    left = np.zeros(len(bars))
    for label, colour in colours.items():
        axis.barh(bars["noise"], bars[label], left=left, color=colour, label=label)
        left = left + bars[label]
    for label, edge, sign in (("class of x", 0, 1), ("class of t", 1, -1)):  # whiskers apart, so that both can be read
        errors = [bars[label] - bars[f"{label}_low"], bars[f"{label}_high"] - bars[label]]
        axis.errorbar(
            edge + sign * bars[label],
            bars.index - 0.16 * sign,
            xerr=errors[::sign],
            fmt="none",
            ecolor="0.2",
            capsize=2,
            lw=0.9,
        )
    axis.set(title=f"{network}\n(n = {bars['n'].iloc[0]:,})", xlim=(0, 1), xticks=(0, 0.5, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
axes[0, 0].invert_yaxis()
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
_ = figures.save_figure(figure, "04_second_models")

# %%
compared = seen.pivot(index="noise", columns="network", values=["class of x", "class of t"]).loc[
    list(seen["noise"].unique())
]
compared.style.format("{:.1%}")

# %% [markdown]
# Only $f$ itself is bound to keep its class under exact noise, and it does, at any norm. Other networks have other
# nullspaces, or none. At the defaults we ask three that come with the package, and they do react. But under the noise
# that is nearest to $t$ they mostly still see $x$, and the class of $t$ stays rare: to them, too, it is no picture of
# $t$. They keep the class of $x$ at least as often as under the permuted control (the paired column
# `class of x, minus exact` of the table), and about as often as under random exact noise. The directions that $W$
# ignores are those that photographs seldom use, and other networks respond less to them too.
#
# At the largest norm the convolutional networks lose $x$ in most images, the ResNet about as often as under the
# permuted control, the ConvNeXt somewhat less often. The second ViT keeps $x$ in most: trained apart, from a seed of
# its own, its patch embedding passes far less from the shipped model's nullspace than an untrained one does (below).
# What paper C calls the nullspace of a model is in part one of the *data*. So "a second network disagrees" is weak
# evidence of fooling by itself, and depends on the second network; what counts is the row of $f$ against the controls
# for $f$.

# %%
for name, net in second.items():
    if isinstance(net, ViT):
        torch.manual_seed(seed + 1)  # that of the shipped model would give it the same first draws
        untrained = checkpoints.load_classifier(name, pretrained=False, device=device)
        for kind, matrix in {"trained": net.patch_matrix, "untrained": untrained.patch_matrix}.items():
            per_dimension = (matrix @ space.basis).square().sum() / space.dim
            print(
                f"{name}, {kind}: its embedding passes {per_dimension / (matrix.square().sum() / matrix.shape[1]):.3f} times "
                "as much energy from the nullspace of the shipped ViT as from a random direction"
            )

# %% [markdown]
# ## (b) How much distance a little influence buys
#
# Now the answer may change, image by image, by the quantity whose mean paper A bounds by $\varepsilon$ (its eq. 7, as
# in its code):
#
# $$\min_v \; \lVert x + v - t \rVert_2 \quad\text{subject to}\quad
# \lVert \operatorname{softmax} f(x + v) - \operatorname{softmax} f(x) \rVert_2^2 \le \varepsilon,
# \quad 0 \le x + v \le 1 .$$
#
# This is not convex, and `lookalike` finds a local optimum at best, but always a *feasible* point, one that meets the
# conditions. Its descent alternates. A feasible point gives up a share of its distance to $t$; an infeasible one takes
# a step that lowers $\mathrm{KL}(\operatorname{softmax} f(x) \,\Vert\, \operatorname{softmax} f(x + v))$; bisection
# ends the descent on the boundary. It starts at $t$, since a feasible point close to $t$ is $t$ *plus a short noise
# that makes the network see $x$ in it*: an adversarial example of $t$ whose goal is not a class but all the
# probabilities that $f$ gives $x$. If it meets no feasible point, or ends too far from $t$, it starts again from a
# feasible point on the segment from the exact solution of (a), whose influence is 0, to $t$. Each larger $\varepsilon$
# goes on from the solution before, which stays feasible. Two controls optimise nothing: a feasible point that
# bisection finds on the straight line from $x$ to $t$, and one on the segment from the exact solution to $t$.

# %%
START_EPS = 0.01
influences = sorted({*eps, START_EPS})
RESUMED = max(1, steps * 3 // 8)  # steps from one eps to the next
u, w = x[:close_pairs], t[:close_pairs]  # the pairs of (b) and (c)
DESCENT, FROM_EXACT, STRAIGHT = "descent from t", "line from exact to t", "line from x to t"


def close_images() -> dict[tuple[float, str], torch.Tensor]:
    """Images x + v by eps and method; eps = 0 is the exact solution."""
    at_exact = (u + exact.tensors(device)["embedding"][:close_pairs]).clamp(0, 1)
    solutions, noise = {(0.0, "exact"): at_exact}, at_exact - u
    start = None
    for eps in influences:
        solutions[eps, STRAIGHT] = lookalike.farthest_along(vit, u, u, w, eps=eps)
        solutions[eps, FROM_EXACT] = lookalike.farthest_along(vit, u, at_exact, w, eps=eps)
        many = steps if start is None else RESUMED
        optimised = lookalike.lookalike(vit, u, w, eps=eps, start=start, steps=many, exact=noise)
        solutions[eps, DESCENT] = start = (u + optimised).clamp(0, 1)
    return solutions


def approximate() -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Distance, likeness and influence by eps and method; what survives 8 bits; what other networks see."""
    solutions, rows, seen = close_images(), [], []
    away = norms(u - w)
    of_x, of_t = ({name: answers(net, each).argmax(1).cpu() for name, net in networks.items()} for each in (u, w))
    top = of_x[own]
    for (eps, method), pixels in solutions.items():
        filed, change = perturbation.rounded(pixels), gap(pixels, u)
        row = {"eps": eps, "method": method, "largest influence": change.max().item()}
        row |= statistics.mean((norms(pixels - w) / away).cpu()).columns("relative distance")
        row |= statistics.mean(similarity.ssim(pixels, w)).columns("SSIM with t")
        row |= statistics.mean(norms(pixels - w).cpu()).columns("distance")
        row |= statistics.proportion(answers(vit, pixels).argmax(1).cpu() == top).columns("same class")
        row |= statistics.proportion(answers(vit, filed).argmax(1).cpu() == top).columns("same class, 8 bits")
        row |= statistics.mean(gap(filed, u)).columns("influence, 8 bits")
        rows.append(row)
        for name, net in networks.items():
            now, differ = answers(net, pixels).argmax(1).cpu(), of_x[name] != of_t[name]
            row = {"eps": eps, "method": method, "network": name}
            row |= statistics.proportion((now == of_x[name])[differ]).columns("class of x")
            row |= statistics.proportion((now == of_t[name])[differ]).columns("class of t")
            seen.append(row)
    kept = {f"eps {eps:g}": solutions[eps, DESCENT] for eps in influences}
    return {"rows": rows, "seen": seen}, kept


sized = params | {"close_pairs": close_pairs, "steps": steps, "of": exact.key}
near = stored("fooling_approximate", sized | {"influences": influences, "resumed": RESUMED}, approximate, data=identity)
curve, close_seen = (pd.DataFrame(near.metrics[name]) for name in ("rows", "seen"))
figures.save_table(curve, "04_approximate", caption="How near a stated influence lets an image come.")
figures.save_table(close_seen, "04_approximate_seen", caption="What networks see in them.")
assert (curve["largest influence"] <= curve["eps"].clip(lower=1e-9)).all()
curve.pivot(index="eps", columns="method", values="relative distance").style.format("{:.3f}", na_rep="")

# %%
figure, axes = figures.subplots(1, 2, height=2.6)
places = {eps: i for i, eps in enumerate((0.0, *influences))}
for axis, value in zip(axes, ("relative distance", "SSIM with t"), strict=True):
    at_zero = curve[curve["eps"] == 0]
    for method, colour in zip((STRAIGHT, FROM_EXACT, DESCENT), sns.color_palette(), strict=False):
        line = curve[curve["method"] == method]
        if method != STRAIGHT:  # these two start from what is exact
            line = pd.concat([at_zero, line])
        figures.curve(axis, line.assign(place=line["eps"].map(places)), "place", value, color=colour, label=method)
    axis.set_xticks(list(places.values()), ["0\n(exact)", *(f"{eps:g}" for eps in influences)])
    axis.set(xlabel="eps", ylim=(0, 1.03))
axes[0].set_ylabel("|x + v - t| / |x - t|")
axes[1].set_ylabel("SSIM of x + v and t")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
_ = figures.save_figure(figure, "04_approximate")

# %% [markdown]
# How local is the optimum? The same descent from the exact solution of (a), with the same number of steps, on the same
# pairs:

# %%


def starts() -> list[dict[str, object]]:
    """Relative distance reached from the target and from the exact solution, on the same pairs."""
    part, goal = u[:start_pairs], w[:start_pairs]
    at_exact = (part + exact.tensors(device)["embedding"][:start_pairs]).clamp(0, 1)
    reached = {}
    for name, start in (("from t", goal), ("from the exact solution", at_exact)):
        noise = lookalike.lookalike(vit, part, goal, eps=START_EPS, start=start, steps=steps)
        reached[name] = (norms(part + noise - goal) / norms(part - goal)).cpu()
    intervals = {name: statistics.mean(value) for name, value in reached.items()}
    intervals["difference"] = statistics.paired_difference(*reached.values())
    return [{"start": name} | interval.columns("relative distance") for name, interval in intervals.items()]


begun = stored("fooling_starts", sized | {"eps": START_EPS, "pairs": start_pairs}, starts, data=identity)
starts_table = pd.DataFrame(begun.metrics)
figures.save_table(starts_table, "04_starts", caption="The descent from two starts, on the same pairs.")
starts_table.style.hide(axis="index").format(precision=3)

# %% [markdown]
# At the defaults the start decides how far the descent comes: these are local optima, and a better one may exist for
# any pair. The two straight lines stay far from $t$. The descent lands close to $t$ at every $\varepsilon$ tried, so
# that it matters more whether the *non-linear* level set is allowed than how much influence is. This does not show a
# larger linear nullspace: the level sets of a network, whose outputs are far fewer than its pixels, pass close to
# every image. The network keeps the answer that it gave to $x$, while the three others mostly answer as they do for
# $t$ (`04_approximate_seen`), so for the others the picture has indeed become $t$. It is the adversarial weakness of
# the network read backwards, and it is local where the exact noise of (a) is not: it holds for this $x$, this $t$ and
# these weights.
#
# A bounded influence does not bind the class: where the first two classes are close, the top one may change, and more
# often at a larger $\varepsilon$ (column `same class`). The solutions lie on the bound; rounding to 8 bits moves the
# mean influence slightly past it and hardly changes a class.
#
# ## (c) The reverse: looks the same, is different
#
# Now we look for the shortest noise $v$ that makes $f$ give $x$ the class that it gives $t$. The gradient of any loss
# at the pixels of a patch is $W^\top$ times the gradient at its token, so it lies in the row space of $W$ and has *no*
# component in the nullspace. Noise built from gradients stays in the row space, except for what the box $[0, 1]$ or a
# sign function does to it. Removing the nullspace component keeps the embedding and makes the noise shorter. With the
# box, "removing" means the nearest legal image to $x$ that has the same embedding (`without_nullspace`, again the
# convex problem of (a)).
#
# We try our descent, Carlini & Wagner's L2 attack (CW) and projected gradient descent (PGD) in the maximum norm, the
# last two from torchattacks. The sign steps of PGD, and the coordinates per pixel in which CW runs Adam, do not
# respect the row space. CW has the descent's number of steps and one constant $c$; its authors also search over $c$.

# %%
DESCENT_L2 = "descent (L2)"


def adversarial(attack: str, pixels: torch.Tensor, classes: torch.Tensor) -> lookalike.Adversarial:
    """Noise that makes the network say ``classes``, by the attack of this name."""
    if attack == "CW (L2)":
        return lookalike.library_attack(vit, pixels, classes, "CW", steps=steps, lr=0.01, c=1)
    if attack == "PGD (max norm, 8/255)":
        given = dict(eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)
        return lookalike.library_attack(vit, pixels, classes, "PGD", **given)
    return lookalike.adversarial(vit, pixels, classes, steps=steps)


def reverse() -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Adversarial noise, where it lives, and what its nullspace component is worth."""
    of_x, classes = (answers(vit, pixels).argmax(1) for pixels in (u, w))
    differ = of_x != classes
    pixels, goal = u[differ], classes[differ]
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(vit(leaf), goal), leaf)
    rows, noises, reference = [], {}, None
    for name in (DESCENT_L2, "CW (L2)", "PGD (max norm, 8/255)"):
        result = adversarial(name, pixels, goal)
        reference = reference or result
        both = result.success & reference.success
        ratio = norms(result.noise[both]) / norms(reference.noise[both])
        own, noise, wanted = (values[result.success] for values in (pixels, result.noise, goal))
        row = {"attack": name} | statistics.proportion(result.success.cpu()).columns("found")
        if len(own):
            shorter = lookalike.without_nullspace(space, own, noise)
            before, after = (answers(vit, (own + each).clamp(0, 1)) for each in (noise, shorter))
            lengths = [norms(each).cpu() for each in (noise, shorter)]
            row |= statistics.mean(lengths[0]).columns("norm") | geometric_mean(ratio.cpu()).columns("norm / descent's")
            row |= statistics.mean(share_in_nullspace(noise)).columns("share in nullspace")
            row |= statistics.mean(lengths[1]).columns("norm without it")
            row |= statistics.mean(lengths[1] / lengths[0]).columns("ratio")
            row |= statistics.proportion((after.argmax(1) == wanted).cpu()).columns("found without it")
            filed = answers(vit, perturbation.rounded(own + noise)).argmax(1)
            row |= statistics.proportion((filed == wanted).cpu()).columns("found, 8 bits")
            row |= {"largest logit change": (after - before).abs().max().item(), "n found": len(own)}
        rows.append(row | {"n": len(pixels)})
        noises[name] = torch.zeros_like(u).index_put((differ.nonzero()[:, 0],), result.noise)
    return {"rows": rows, "gradient": share_in_nullspace(gradient).max().item()}, noises


reversed_ = stored("fooling_reverse", sized, reverse, data=identity)
attacked = pd.DataFrame(reversed_.metrics["rows"])
figures.save_table(attacked, "04_adversarial", caption="Noise that changes the answer.")
print(f"largest share of a pixel gradient in the nullspace: {reversed_.metrics['gradient']:.1e}")
attacked.set_index("attack").T.style.format(precision=3)

# %% [markdown]
# Up to rounding the gradient has no nullspace component, and neither has the descent's noise, except for what the box
# cuts off. The library's attacks may have one. Without it their noise is no longer than before, every image stays
# legal, and the logits move by rounding only: an attack that had succeeded still does. So no attack on such a network
# gains anything from the nullspace, and attacks that spend norm on it can be shortened for free. The descent's noise
# ends on the decision boundary by construction. That is why, at the defaults, rounding to 8 bits undoes much of it
# (`found, 8 bits`), and hardly any of PGD's, which is much longer.
#
# ### Distance in pixels is not distance for the network
#
# All kinds of noise of this notebook in one plane: how long each is, and how far it moves the network's answer.

# %%
ADVERSARIAL, CLOSE = "adversarial", f"near t, eps = {START_EPS:g}"


def distances() -> list[dict[str, object]]:
    """One row a pair and noise: L2 norm, influence, likeness with x; the pairs for which the attack succeeded."""
    attack = reversed_.tensors(device)[DESCENT_L2]
    ours = norms(attack) > 0
    pixels, other, attack = u[ours], w[ours], attack[ours]
    near_t = exact.tensors(device)["embedding"][:close_pairs][ours]
    controls = lookalike.equal_norm_controls(space, pixels, other, near_t, torch.Generator().manual_seed(seed))
    noises = {
        ADVERSARIAL: attack,
        EXACT: near_t,
        LARGEST: opinions.tensors(device)[LARGEST][:close_pairs][ours],
        "straight step": controls["straight step"],
        "permuted": controls["permuted"],
        CLOSE: near.tensors(device)[f"eps {START_EPS:g}"][ours] - pixels,
    }
    base = answers(vit, pixels).argmax(1)
    parts = []
    for name, noise in noises.items():
        noisy = (pixels + noise).clamp(0, 1)
        columns = {
            "norm": norms(noise).cpu(),
            "influence": gap(noisy, pixels),
            "SSIM with x": similarity.ssim(noisy, pixels),
            "changed": (answers(vit, noisy).argmax(1) != base).cpu(),
            "norm / adversarial": (norms(noise) / norms(attack)).cpu(),
        }
        parts.append(pd.DataFrame({"noise": name} | {key: value.numpy() for key, value in columns.items()}))
    return records(pd.concat(parts, ignore_index=True))


plane_of = sized | {"of": [exact.key, opinions.key, near.key, reversed_.key]}
measured = stored("fooling_distances", plane_of, distances, data=identity)
plane = pd.DataFrame(measured.metrics)
summary = []
for name, part in plane.groupby("noise", sort=False):
    row = {"noise": name} | statistics.proportion(part["changed"]).columns("answer changed")
    for value in ("norm", "influence", "SSIM with x"):
        row |= statistics.mean(part[value]).columns(value)
    row |= geometric_mean(part["norm / adversarial"]).columns("norm / adversarial")
    summary.append(row)
lengths = pd.DataFrame(summary)
figures.save_table(lengths, "04_distance", caption="Length and effect of noises.")
lengths[[column for column in lengths if not column.endswith(("_low", "_high"))]].style.hide(axis="index").format(
    precision=3
)

# %%
figure, axis = figures.subplots(height=3.2)
drawn = plane.assign(influence=plane["influence"].clip(lower=1e-16))
sns.scatterplot(drawn, x="norm", y="influence", hue="noise", style="noise", ax=axis, s=22, alpha=0.8, linewidth=0.2)
axis.set(
    xscale="log",
    yscale="log",
    xlabel="L2 norm of the noise",
    ylabel="|softmax f(x + v) - softmax f(x)|²",
    ylim=(3e-17, 5),
)
axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="")
_ = figures.save_figure(figure, "04_distance")

# %% [markdown]
# The shortest noises change the answer and far longer exact ones do not: the table has the ratio of their norms
# (geometric mean over pairs) and their similarity to $x$. What counts is the subspace. Adversarial noise lies in the
# complement of the nullspace, as the gradient does. Exact noise lies in the nullspace, and the influence at the bottom
# of the figure is float32 rounding (values below $10^{-16}$ are drawn there). The controls have the norm of the exact
# noise but not its direction.
#
# ## (d) What it looks like
#
# The first pairs whose images are all classified correctly, by the ViT and, at the defaults, by the ResNet, and for
# which the attack succeeded. Above each picture: the ViT's answer and confidence | the ResNet's answer.

# %%
attack = reversed_.tensors(device)[DESCENT_L2]
good, judges = norms(attack) > 0, [vit, *(second[name] for name in ("resnet",) if name in second)]
for net in judges:
    good &= answers(net, u).argmax(1) == labels[:close_pairs]
    good &= answers(net, w).argmax(1) == labels[partner][:close_pairs]
chosen = (good.nonzero()[:, 0] if good.any() else torch.arange(close_pairs, device=device))[:pictures]
panels = {
    "x": u,
    "t": w,
    "exact,\nnearest to t": (u + exact.tensors(device)["embedding"][:close_pairs]).clamp(0, 1),
    "exact,\nlargest": (u + opinions.tensors(device)[LARGEST][:close_pairs]).clamp(0, 1),
    f"near t,\neps = {START_EPS:g}": near.tensors(device)[f"eps {START_EPS:g}"],
    "adversarial": (u + attack).clamp(0, 1),
}
LETTERS = 18 if len(judges) == 1 else 6  # of a class's name, for which the width of a picture has room
figure, axes = figures.subplots(len(panels), len(chosen), height=7.4, squeeze=False)
for line, (title, pixels) in zip(axes, panels.items(), strict=True):
    line[0].set_ylabel(title, fontsize=8)
    confidence = answers(vit, pixels[chosen]).softmax(1).amax(1)
    guesses = [[photos.classes[k] for k in answers(net, pixels[chosen]).argmax(1)] for net in judges]
    for i, axis in enumerate(line):
        axis.imshow(pixels[chosen[i]].permute(1, 2, 0).cpu())
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
        said = [figures.short(names[i], LETTERS) for names in guesses]
        axis.set_title(" | ".join([f"{said[0]} {confidence[i]:.1%}", *said[1:]]), fontsize=7, pad=2)
pictured = torch.cat([chosen, partner[chosen]]).tolist()
figures.add_credits(figure, credits(test.images, pictured))
_ = figures.save_figure(figure, "04_pairs")

# %% [markdown]
# Rows 1, 3 and 4 are one image to the ViT, to the last digit of its confidence. Row 5 looks like row 2, as far as the
# descent came, and gets nearly the answer of row 1; row 6 looks like row 1 and just gets the class of row 2.

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
itself = seen["network"].iloc[0]


@answer.claim(
    "C",
    "network fooling",
    "exact noise makes an image look like another",
    where="04 (a)",
    criterion="holds if it covers at least half of the distance to an image of another class, in part if a tenth",
    endpoint="share of the distance that it covers, to be a half or more",
)
def look_alike() -> tuple[str, str, Endpoint]:
    line = row(exact_table, through="encoder")
    left, trained, untrained = (
        interval(line, column) for column in ("relative distance", "share of |t - x|^2", "share, untrained")
    )
    covered = Interval(1 - left.value, 1 - left.high, 1 - left.low, left.n)
    measured = (
        f"it covers {percent(covered)} of the distance: of the difference of two photographs the nullspace holds "
        f"{percent(trained, None)}, before training {percent(untrained, None)}"
    )
    return measured, word(at_least(covered, 0.5), at_least(covered, 0.1)), Endpoint.over_images(covered, 0.5)


@answer.claim(
    "",
    "",
    "a little influence, spent as an attack would, lets an image look like another",
    where="04 (b)",
    criterion="holds if at influence 0.01 less than a quarter of the distance is left, in part if less than half",
    endpoint="share of the distance that is left at influence 0.01, to be below a quarter",
)
def approximate_look_alike() -> tuple[str, str, Endpoint]:
    left = interval(row(curve, eps=0.01, method="descent from t"), "relative distance")
    read = rows(close_seen, eps=0.01, method="descent from t")
    measured = f"at influence 0.01 {percent(left)} of the distance is left"
    others = intervals(read[read["network"] != itself], "class of t")
    if others:
        low, *_, high = sorted(others, key=lambda share: share.value)
        measured += (
            f", and {len(others)} other networks see the other class in {percent(low, None)} to {percent(high, None)}"
        )
    return measured, word(below(left, 0.25), below(left, 0.5)), Endpoint.over_images(left, 0.25)


@answer.claim(
    "C",
    "code",
    "exact noise changes the answers of every other model",
    where="04 (a)",
    criterion="holds if every other network keeps under 50 % of its classes under the largest exact noise, in part if "
    "one does",
    endpoint="largest share of classes that another network keeps under it, to be below a half",
)
def second_models() -> tuple[str, str, Endpoint]:
    verdicts, texts, kept = [], [], []
    if set(seen["network"]) == {itself}:
        return "no other network of these classes is at hand", "not testable here", Endpoint()
    for network, name in {"resnet": "a ResNet", "convnext": "a ConvNeXt", "vit_wide": "another ViT"}.items():
        largest, permuted = (
            interval(row(seen, network=network, noise=f"{noise}, largest"), "class of x")
            for noise in ("exact", "permuted")
        )
        kept.append(largest)
        verdicts.append(below(largest, 0.5))
        texts.append(f"{name} keeps {percent(largest)}, permuted noise {percent(permuted, None)}")
    most = max(kept, key=lambda share: share.value)
    return "; ".join(texts), word(every(verdicts), some(verdicts)), Endpoint.over_images(most, 0.5)


@answer.claim(
    "",
    "",
    "the reverse: a noise too small to see changes the answer, and nullspace noise far larger does not",
    where="04 (c)",
    criterion="holds if the exact noise is at least 10 times longer and changes under 10 % of answers, the other over "
    "90 %",
    endpoint="norm of the exact noise over that of the small one, to be 10 or more",
)
def small_noise() -> tuple[str, str, Endpoint]:
    small, largest = (row(lengths, noise=noise) for noise in ("adversarial", "exact, largest"))
    by_small, by_largest = (interval(line, "answer changed") for line in (small, largest))
    longer = interval(largest, "norm / adversarial")
    share = interval(row(attacked, attack="descent (L2)"), "share in nullspace")
    measured = (
        f"norm {number(interval(small, 'norm'), '.2f', None)} changes {percent(by_small)} of answers, "
        f"exact noise {number(longer, '.0f', None)} times longer {percent(by_largest, None)}; the small noise has "
        f"{percent(share, None)} of its energy in the nullspace"
    )
    answers = at_least(longer, 10), below(by_largest, 0.1), at_least(by_small, 0.9)
    return measured, word(every(answers)), Endpoint.over_images(longer, 10)


figures.save_table(answer.table(), "04_verdicts", caption="What paper C says of network fooling, and what holds.")


def conclusion() -> str:
    left = interval(row(exact_table, through="encoder"), "relative distance")
    least = rows(curve, method="descent from t").sort_values("eps").iloc[0]
    close = interval(least, "relative distance")
    return (
        f"exactly invisible noise leaves {percent(left, None)} of the distance to it (n = {left.n:,} pairs); noise of influence "
        f"{least['eps']:g}, found by descent as an attack is, leaves {percent(close, None)} (n = {close.n:,})."
    )


answer.show(
    question="Can noise that a network does not see make an image look like one of another class?",
    answer=conclusion,
    would_change="a network whose nullspace holds as much of the differences of photographs as chance would, which training "
    "took away here; persons who find the images alike where SSIM and other networks do not.",
    limits=f"one model ({itself}) and {images:,} pairs of images of {data} (the first cell says which), {close_pairs:,} where noise "
    "is descended to; "
    "the descents find local optima, so that their distances and norms are upper bounds, and no person looked at the images: "
    "likeness is SSIM, distance, and, on CIFAR-10, what three other small networks say.",
)
