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
# # 08 · What in the recipe matters, and what a wrong input scale can fake
#
# Notebook 07 compares nullspace finetuning with its controls under one recipe. Here one thing of that recipe changes at a time:
#
# | section | what changes | the paper |
# |---|---|---|
# | (a) | $\varepsilon$, for learned and for random noise | clean 77.4, 77.5, 77.1 % at 0.01, 0.03, 0.1: hardly matters; random noise is worse |
# | (b) | how the noise is made: by our solver or by the published procedure, with and without its early stop, from a start of another size $\mathrm{lim}$ | without early stop FGSM rises by 2.9 points and clean falls by 0.5 (authors' reply) |
# | (c) | how many noises share a fixed number of gradient steps | 20 noises of 40 steps; most of the gain after the first |
# | (d) | the method: all of 07 in one plane | |
# | (e) | the input scale, wrong on purpose | ImageNet's mean and deviation before weights that expect 0.5 and 0.5 |
#
# Everything else is as in 07, whose runs are taken from the store. Variants have `variant_seeds` runs and are compared with the runs of the same seeds, on the same images.
# With one seed there is no interval over seeds: what is drawn then is the interval over images of these very weights, and no difference is called resolved.
#
# Takes about 4 min at `cpu` on 2 cores after 07, and 11 min without it; needs CIFAR-10, which is fetched once. `model`, `weights`, `data` and `root` put another ViT and other photographs
# in their place, as in 07.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # a ViT of this package or of timm
weights: str = ""  # a file of weights for it; empty: what ships, or timm's hub
data: str = "cifar10"  # a data set that load_data knows, or a folder of class folders
root: str = ""  # the folder of its photographs; empty: fetched where a fetch exists
sets: str = ""  # a folder of paper A's further sets by name, as in 07
set_images: int = 0  # images of each of them; 0: all
paper_start: str = ""  # the start in the paper's table 1 that this is, as in 07
shard: int = 1000  # images of a stored part of a judgement; below 250, or a multiple
images: int = 64  # test images
steps: int = 24  # gradient steps a run
steps_per_noise: int = 12  # steps between fresh noises
batch_size: int = 64  # images a step
noise_images: int = 400  # dev images behind a noise
noise_steps: int = 12  # steps of its synthesis; the published one also ends with 3 passes over its images
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
eps_values: list = [0.01, 0.03, 0.1]  # bounds in (a)
lims: list = [0.3, 1.0, 3.0]  # sizes of the published procedure's start in (b)
noises: list = [1, 2, 8]  # numbers of noises in (c), divisors of the steps
attack_eps: float = 0.00392156862745098  # L-infinity radius of the table's attacks in pixel units: 1/255, as in 07
strong_eps: float = 0.03137254901960784  # radius of adversarial training and of its own column: 8/255
attack_steps: int = 2  # steps of the attack in adversarial training
learning_rate: float = 0.0005  # peak, the same for all methods
methods: list = ["zero", "nullspace", "random", "random_norm", "permuted", "pgd_at", "trades"]  # in (d)
attacks: list = ["fgsm", "pgd", "cw", "pgd_strong", "patch"]  # of the tables
evaluation_steps: int = 20  # steps of PGD and CW at the end, half those of the patch attack
corruptions: list = []  # names; empty: all 15
severities: list = [1, 3, 5]  # of the corruptions
seeds: int = 3  # runs a method in (d)
variant_seeds: int = 1  # runs of everything else
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, NullLocator

from nullpaper import load_data, load_vit, statistics
from nullpaper.errors import InputError
from nullpaper.finetuning.methods import make_noise
from nullpaper.models.vit import fingerprint
from nullpaper.studies import contrasts, settings
from nullpaper.studies.published import OWN_CORRUPTIONS, UNLIKE, beside, check_start, counterparts, further_sets
from nullpaper.studies.trials import Trial, run_trials, start_of
from nullpaper.workflow import figures
from nullpaper.workflow.store import stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
if missing := {"zero", "nullspace", "random"} - set(methods):
    raise InputError(f"methods lacks {', '.join(sorted(missing))}, which every section compares with: add it.")
if uneven := [count for count in noises if steps % count]:
    raise InputError(f"{uneven[0]} noises do not divide {steps} steps: choose divisors in noises.")
if missing := {"fgsm", "pgd"} - set(attacks):
    raise InputError(f"attacks lacks {', '.join(sorted(missing))}, which every section shows: add it.")
vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
begun = dict(start=model, weights=weights or None, data=data, root=root)
print(f"{vit.name}: {vit.grid_size[0]} x {vit.grid_size[1]} tokens of width {vit.embed_dim}, {vit.num_classes} classes")
print(photos)

# %% [markdown]
# ## The runs
#
# Those of 07 are described exactly as there, so that the store knows them; each variant has its own change of the recipe.

# %% tags=["plan"]
recipe, protocol, boundary = settings.nullspace_setting(
    images=images,
    batch_size=batch_size,
    steps_per_noise=steps_per_noise,
    noise_images=noise_images,
    noise_steps=noise_steps,
    eps=eps,
    learning_rate=learning_rate,
    attack_eps=attack_eps,
    strong_eps=strong_eps,
    attack_steps=attack_steps,
    attacks=attacks,
    evaluation_steps=evaluation_steps,
    corruptions=corruptions,
    severities=severities,
    seed=seed,
)
run_seeds = range(seed, seed + seeds)
variant_seeds_used = range(seed, seed + variant_seeds)


def of_07(method: str, s: int) -> Trial:
    return settings.nullspace_trial(method, s, steps, recipe, boundary, **begun)


def variant(method: str, mismatched: bool = False, **changes: object) -> list[Trial]:
    """One trial a seed; those of 07 where nothing changes."""
    changed = replace(recipe, **changes)
    if changed == recipe and not mismatched:
        return [of_07(method, s) for s in variant_seeds_used]
    return [Trial(method, s, steps, changed, mismatched_scale=mismatched, **begun) for s in variant_seeds_used]


def named(method: str, change: str, same: bool) -> str:
    return method if same else f"{method}, {change}"


plane = {"start": [Trial("start", **begun)]} | {method: [of_07(method, s) for s in run_seeds] for method in methods}
base = {"start": [Trial("start", **begun)]} | {method: variant(method) for method in methods}
by_eps = {(method, e): named(method, f"eps {e:g}", e == eps) for method in ("nullspace", "random") for e in eps_values}
planned = base | {name: variant(method, noise_eps=e) for (method, e), name in by_eps.items()}
makers = {"nullspace, free tokens": dict(spread=False), "official": dict(official=True)}
makers["official, no early stop"] = dict(official=True, early_stop=False)
makers |= {f"official, lim {lim:g}": dict(official=True, noise_lim=lim) for lim in lims if lim != recipe.noise_lim}
planned |= {name: variant("nullspace", **changes) for name, changes in makers.items()}
per_noise = {count: steps // count for count in noises}
by_count = {
    (method, count): named(method, f"{count} x {length} steps", length == steps_per_noise)
    for method in ("nullspace", "zero")
    for count, length in per_noise.items()
}
planned |= {name: variant(method, steps_per_noise=per_noise[count]) for (method, count), name in by_count.items()}
planned["start, mismatched"] = [Trial("start", mismatched_scale=True, **begun)]
planned |= {f"{method}, mismatched": variant(method, mismatched=True) for method in ("zero", "nullspace")}

protocol, further, missing = replace(protocol, shard=shard), {}, []
if sets:
    protocol, further, missing = further_sets(sets, protocol, vit.transform, set_images)
if paper_start:
    check_start(paper_start, model, data)
for line in missing:
    print(line)

wanted = list(dict.fromkeys(trial for trials in [*planned.values(), *plane.values()] for trial in trials))
shared = {trial for trials in plane.values() for trial in trials}
wanted.sort(key=shared.__contains__)  # last those of 07, which may be at them just now
plan = {"table": (wanted, protocol)} | {name: (wanted, judged_on) for name, judged_on in further.items()}

# %%
finished = dict(zip(wanted, run_trials(wanted, protocol, workers=workers, progress="runs"), strict=True))
groups = {name: [finished[trial] for trial in trials] for name, trials in planned.items()}

pd.DataFrame({"run": groups.keys(), "seeds": map(len, groups.values())}).style.hide(axis="index")

# %% [markdown]
# ## Paired differences
#
# All comparisons of this notebook in one table, as in 07: Student's t over seeds, bootstrap over images, and resolved when both exclude zero. With `sets` and `paper_start`, paper A's ablation of eps and the
# authors' reply on early stopping stand beside ours in a second table, as table 1 does in 07; and what is behind the wrong scale stands beside table 1 too, whose start may have been there.

# %%
scales = ("", ", mismatched")
pairs = [(name, "zero") for name in planned if name != "zero" and "mismatched" not in name]
pairs += [
    (name, "nullspace") for name in (*makers, *by_eps.values(), *by_count.values()) if name.startswith(("null", "off"))
]
pairs += [(by_eps["nullspace", e], by_eps["random", e]) for e in eps_values]
pairs += [("official, no early stop", "official")]
pairs += [(by_count["nullspace", count], by_count["zero", count]) for count in per_noise]
pairs += [(f"{method}{scale}", f"start{scale}") for method in ("zero", "nullspace") for scale in scales]
pairs += [("nullspace, mismatched", "zero, mismatched"), ("start", "start, mismatched")]
pairs += [(f"{method}, mismatched", "start") for method in ("zero", "nullspace")]
pairs = list(dict.fromkeys((first, second) for first, second in pairs if first != second))
paired = contrasts.contrast(groups, pairs, attack_eps)
table = contrasts.tabulate(groups, attack_eps)
figures.save_table(paired, "08_paired", caption="Paired differences.")

# %%
paper = pd.DataFrame()
if sets or paper_start:
    on_sets = {
        name: run_trials(wanted, judged_on, workers=workers, progress=name) for name, judged_on in further.items()
    }
    found = {name: dict(zip(wanted, runs, strict=True)) for name, runs in on_sets.items()}
    by_set = {name: {m: [of[trial] for trial in trials] for m, trials in planned.items()} for name, of in found.items()}
    unlike = UNLIKE if protocol.corrupted else UNLIKE | OWN_CORRUPTIONS
    paper = beside(groups, by_set, attack_eps, counterparts(paper_start, eps) if paper_start else {}, unlike=unlike)
    figures.save_table(paper, "08_paper", caption="Paper A's columns, ours and as printed, in percent.")
paper.style.format(precision=2, na_rep="").hide(axis="index")

# %%
drawn = ["clean", "fgsm", "pgd", "cw", "patch", "corruptions", "average"]
drawn = [measure for measure in drawn if measure in set(table["measure"])]


def rows_of(listed: list[tuple[str, str]], measures: list[str]) -> pd.DataFrame:
    """Rows of the paired table, in the order of the pairs."""
    rows = [paired[(paired["method"] == first) & (paired["against"] == second)] for first, second in listed]
    return pd.concat(rows).query("measure in @measures")


def in_points(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
    axis.tick_params(labelsize=7)


# %% [markdown]
# ## (a) The bound $\varepsilon$
#
# A larger $\varepsilon$ admits a larger noise. The paper found that it hardly matters and that random noise at the same $\varepsilon$ is worse; its random rows leave out the clean column
# and probably come from another recipe. Accuracies are in `08_eps`; drawn are paired differences to `zero`, which is therefore the horizontal line.

# %%
rows = [
    table[table["method"] == name].assign(method=method, eps=e).drop(columns=["images_low", "images_high", "images"])
    for (method, e), name in by_eps.items()
]
of_eps = pd.concat(rows, ignore_index=True)
of_eps.insert(0, "eps", of_eps.pop("eps"))
figures.save_table(of_eps, "08_eps", caption="Accuracies by eps.")

figure, axes = figures.subplots(1, 3, height=2.3)
for axis, measure in zip(axes, ("average", "clean", "corruptions"), strict=True):
    for number, method in enumerate(("nullspace", "random")):
        color = sns.color_palette()[3 if method == "nullspace" else 0]
        rows = rows_of([(by_eps[method, e], "zero") for e in eps_values], [measure])
        places = [e * 1.06 ** (1 - 2 * number) for e in eps_values]  # side by side
        axis.plot(places, rows["difference"], color=color, label=method)
        figures.intervals(axis, rows, places=places, vertical=True, color=color)
    axis.set_xscale("log")
    axis.set_xticks(eps_values, [f"{e:g}" for e in eps_values])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=r"$\varepsilon$", title=measure)
    in_points(axis)
axes[0].set_ylabel("accuracy minus\nthat of zero (points)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=7)
figures.save_figure(figure, "08_eps")
rows_of([(by_eps["nullspace", e], by_eps["random", e]) for e in eps_values], drawn).style.format(precision=4).hide(
    axis="index"
)

# %% [markdown]
# ## (b) How the noise is made: does a larger one help more?
#
# Our solver puts its noise on the boundary of $\varepsilon$, every token of one norm (`nullspace`) or not (`free tokens`). The published one (`official`) draws it uniformly in
# $(-\mathrm{lim}, \mathrm{lim})$ and descends on $\|z' - z\|^2$ until one batch falls below $\varepsilon$; nothing pushes its norm up, so its size is that of the start. It has three ways to
# go: a start that is within $\varepsilon$ already comes back as it was drawn, random; one that is too large ends outside; in between it stops after few steps. `no early stop` takes all steps.
# `steps` below are those taken for the first noise of the first run, against the model as it comes; norm and influence are those of all noises that training used, on images that made none
# of them. `within` is the share of the noises whose measured influence is at most $\varepsilon$.

# %%
noisy = ["zero", *(name for name in ("random", "random_norm", "permuted") if name in methods), "nullspace", *makers]
start = start_of(Trial("start", **begun))
recipes = {name: groups[name][0].trial.recipe for name in ("nullspace", *makers)}


def first_noise(name: str) -> dict[str, object]:
    """The synthesis of the first noise of a learned variant's first run, step by step."""
    changed = recipes[name]
    made = make_noise(start, photos.dev.subset(changed.noise_images, seed), "learned", changed, 10_007 * seed)
    history = [{key: record[key] for key in ("step", "norm", "influence")} for record in made.history]
    stopped = changed.official and changed.early_stop and history[-1]["influence"] < changed.noise_eps
    ended = {"norm": made.norm, "influence": made.influence.value}
    return {"history": history, "steps": len(history) - stopped, "stopped": stopped} | ended


described = {"recipes": {name: asdict(made) for name, made in recipes.items()}, "weights": fingerprint(start)}
first = stored(
    "first_noises", described, lambda: {name: first_noise(name) for name in recipes}, data=photos.identity
).metrics


def used_noises(name: str) -> dict[str, object]:
    """Norm and influence of the noises that a group was trained with."""
    records = pd.DataFrame([{"run": i} | h for i, run in enumerate(groups[name]) for h in run.history if h["step"]])
    within = (records["noise_influence"] <= eps).mean()
    means = records.groupby("run")[["noise_norm", "noise_influence"]].mean()
    row = {"noise": name, "steps": first[name]["steps"] if name in first else None}
    for column in ("norm", "influence"):
        row |= statistics.over_seeds(means[f"noise_{column}"]).columns(column)
    return row | {"within": within}


values = table.pivot(index="method", columns="measure", values="value")
over_zero = paired[(paired["against"] == "zero") & (paired["measure"] == "average")].set_index("method")
worth = pd.DataFrame([used_noises(name) for name in noisy])
worth = worth.astype({"steps": "Int64"}).join(values[["clean", "fgsm", "pgd", "corruptions", "average"]], on="noise")
worth = worth.join(over_zero[["difference", "images_low", "images_high", "resolved"]], on="noise")
worth = worth.rename(columns={"difference": "average over zero"})
figures.save_table(worth, "08_noise", caption="Noises and what they are worth.")
listed = ["noise", "steps", "norm", "influence", "within", "clean", "fgsm", "pgd", "corruptions", "average"]
worth[[*listed, "average over zero"]].style.format(precision=3, na_rep="").hide(axis="index")


# %%
def spaced(places: list[float], gap: float) -> list[float]:
    """Places in [0, 1] near the given ones, at least a gap apart."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, index in zip(order, order[1:], strict=False):
        moved[index] = max(moved[index], moved[before] + gap)
    ceiling = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def label_beside(axis: Axes, named: Mapping[str, tuple[float, float, object]], gap: float = 0.1) -> None:
    """Name points (x, y, colour) in a column right of the axis, with a line to each; limits must be final."""
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    to_axes = axis.transData + axis.transAxes.inverted()
    places = spaced([to_axes.transform((x, y))[1] for x, y, _ in named.values()], gap)
    for (name, (x, y, color)), place in zip(named.items(), places, strict=True):
        leader = dict(arrowstyle="-", color="0.75", linewidth=0.5, shrinkA=1, shrinkB=2, relpos=(0, 0.5))
        options = dict(xycoords="data", textcoords="axes fraction", va="center", fontsize=6.5, color=color)
        axis.annotate(name, (x, y), (1.05, place), arrowprops=leader, annotation_clip=False, **options)


figure, axes = figures.subplots(1, 3, height=2.7, width_ratios=[1.15, 1, 1])
published = [name for name in noisy if name.startswith("official")]
palette = dict(zip(published, sns.color_palette("dark:limegreen", len(published) + 1)[1:], strict=True))
palette |= dict(zip(("random", "random_norm", "permuted"), sns.color_palette("Blues_d", 3), strict=True))
palette |= {"nullspace": sns.color_palette()[3], "nullspace, free tokens": sns.color_palette()[5], "zero": (0.3,) * 3}
for name, made in first.items():
    path = pd.DataFrame(made["history"])
    axes[0].plot(path["step"], path["influence"], color=palette[name])
    axes[0].plot(path["step"].iloc[-1], path["influence"].iloc[-1], "o", color=palette[name])
axes[0].axhline(eps, color="0.6", linewidth=0.8, zorder=0)
axes[0].set_yscale("log")
axes[0].yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
axes[0].yaxis.set_minor_formatter(NullFormatter())
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].set(xlabel="step of the synthesis", ylabel="influence on its batch", title="first noise")
for axis, column in zip(axes[1:], ("norm", "influence"), strict=True):
    for _, row in worth.iterrows():
        gain = 0.0 if row["noise"] == "zero" else row["average over zero"]
        axis.plot(row[column], gain, "o", color=palette[row["noise"]])
        if row["noise"] != "zero":
            ends = row["images_low"], row["images_high"]
            axis.plot([row[column]] * 2, ends, color=palette[row["noise"]], linewidth=0.8, alpha=0.6)
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set(xlabel=f"mean {column}", title="average minus zero's" if column == "norm" else None)
    in_points(axis)
axes[2].sharey(axes[1])
axes[2].axvline(eps, color="0.6", linewidth=0.8, zorder=0)
places = worth.set_index("noise").assign(y=worth.set_index("noise")["average over zero"].fillna(0))
named_points = {name: (places.loc[name, "influence"], places.loc[name, "y"], palette[name]) for name in noisy}
label_beside(axes[2], named_points)
_ = figures.save_figure(figure, "08_noise")

# %% [markdown]
# Grey lines: $\varepsilon$, and no difference. The questions as pairs: our noise against the published one at the same $\varepsilon$; the published one without its early stop
# against itself with it, which is the authors' comparison; tokens of free norm against equal norms.

# %%
listed = [("official", "nullspace"), ("official, no early stop", "official"), ("nullspace, free tokens", "nullspace")]
rows_of(listed, drawn).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (c) Many noises or one?
#
# The number of gradient steps is fixed; what changes is among how many noises they are divided. More noises also mean more rounds for dev to choose from, so each is compared with
# `zero` of as many rounds; `zero` against `zero` of 07 shows what that choice alone is worth.

# %%
rows = []
for (method, count), name in by_count.items():
    rows += [
        {"noises": count, "steps_per_noise": per_noise[count], **row}
        for row in table[table["method"] == name].assign(method=method).to_dict("records")
    ]
counts = pd.DataFrame(rows)
figures.save_table(counts, "08_rounds", caption="Accuracies by number of noises.")

compared = {
    "nullspace minus zero of as many rounds": {c: (by_count["nullspace", c], by_count["zero", c]) for c in per_noise},
    "zero minus zero of 07": {c: (by_count["zero", c], "zero") for c in per_noise if by_count["zero", c] != "zero"},
}
compared = {title: by for title, by in compared.items() if by}
figure, axes = figures.subplots(1, 3, height=2.4)
for axis, measure in zip(axes, ("average", "clean", "corruptions"), strict=True):
    for number, (title, by) in enumerate(compared.items()):
        color = sns.color_palette()[3 - 3 * number]
        rows = rows_of([*by.values()], [measure])
        places = [count * 1.08 ** (1 - 2 * number) for count in by]
        axis.plot(places, rows["difference"], color=color, label=title)
        figures.intervals(axis, rows, places=places, vertical=True, color=color)
    axis.set_xscale("log")
    axis.set_xticks([*per_noise], [f"{count}" for count in per_noise])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=f"noises in {steps} steps", title=measure)
    in_points(axis)
axes[0].set_ylabel("difference (points)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=7)
figures.save_figure(figure, "08_rounds")
rows_of(
    [pair for by in compared.values() for pair in by.values()], ["clean", "pgd", "corruptions", "average"]
).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (d) Accuracy against robustness
#
# All methods of 07 with all their seeds. Crosses are 95 % intervals, Student's t over seeds; `start` is one model, its cross is over images, as are all of a single seed. Further up and to the right is
# better in both. Crosses are not paired: methods whose crosses overlap may still differ (07, section c).

# %%
plane_runs = {name: [finished[trial] for trial in trials] for name, trials in plane.items()}
everywhere = contrasts.tabulate(plane_runs, attack_eps)
figures.save_table(everywhere, "08_plane", caption="All methods of notebook 07.")
of = everywhere.set_index(["method", "measure"])

colors = {name: sns.color_palette()[0] for name in plane} | {"nullspace": sns.color_palette()[3], "start": (0.4,) * 3}
colors |= dict.fromkeys(("pgd_at", "trades"), sns.color_palette()[2])
figure, axes = figures.subplots(1, 2, height=2.8)
titles = {"pgd": f"PGD at {255 * attack_eps:.3g}/255", "corruptions": "corruptions"}
for axis, (measure, under) in zip(axes, titles.items(), strict=True):
    for name in plane:
        x, y = of.loc[(name, "clean")], of.loc[(name, measure)]
        axis.plot(contrasts.ends(x), [y["value"]] * 2, color=colors[name], linewidth=0.8, alpha=0.6)
        axis.plot([x["value"]] * 2, contrasts.ends(y), color=colors[name], linewidth=0.8, alpha=0.6)
        axis.plot(x["value"], y["value"], "o", color=colors[name])
    axis.set(xlabel="clean accuracy", ylabel=f"accuracy under {under}")
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    marks = {name: (of.loc[(name, "clean"), "value"], of.loc[(name, measure), "value"], colors[name]) for name in plane}
    label_beside(axis, marks)
_ = figures.save_figure(figure, "08_plane")

# %% [markdown]
# ## (e) A wrong input scale, on purpose
#
# The published pipeline puts ImageNet's mean and deviation before all models, also before weights of timm that expect 0.5 and 0.5: what the embedding sees is stretched by about 2.2 and
# shifted. Whoever finetunes such a model and compares with its start also measures how finetuning repairs the scale. Here the same map goes before a model whose own statistics
# are known (`load_vit` says from where), and the comparison of the paper's table 1 is repeated: start, `zero` and `nullspace`, all three behind the wrong scale.
#
# - `reported`: nullspace minus its start, as in table 1, with the interval over images;
# - `of zero`: the part of it that finetuning without noise has too, and `share` of the reported gain where that gain's interval excludes zero;
# - `honest`: nullspace minus the start at its own scale; reported minus honest is what the handicap of the baseline adds, whatever the method does.

# %%
lookup = paired.set_index(["method", "against", "measure"])
rows = []
for scale in scales:
    for measure in dict.fromkeys(table["measure"]):
        gain = lookup.loc[(f"nullspace{scale}", f"start{scale}", measure)]
        plain = lookup.loc[(f"zero{scale}", f"start{scale}", measure)]
        honest = lookup.loc[(f"nullspace{scale}", "start", measure)]
        row = {"input_scale": "mismatched" if scale else "own", "measure": measure}
        row |= {name: values.loc[f"{name}{scale}", measure] for name in ("start", "zero", "nullspace")}
        row |= {
            "reported": gain["difference"],
            "reported_low": gain["images_low"],
            "reported_high": gain["images_high"],
        }
        row |= {
            "of zero": plain["difference"],
            "of zero_low": plain["images_low"],
            "of zero_high": plain["images_high"],
        }
        clear = gain["images_low"] * gain["images_high"] > 0
        row["share"] = plain["difference"] / gain["difference"] if clear else float("nan")
        rows.append(row | {"honest": honest["difference"], "n": gain["n"], "images": gain["images"]})
scaled = pd.DataFrame(rows)
figures.save_table(scaled, "08_normalisation", caption="Gains behind the right and the wrong scale.")

figure, axes = figures.subplots(1, 2, height=2.6, sharey=True, sharex=True)
looks = {
    "start": dict(marker="|", color="0.3", markersize=13, markeredgewidth=1.5),
    "zero": dict(marker="s", color=sns.color_palette()[0]),
}
looks["nullspace"] = dict(marker="o", color=sns.color_palette()[3])
lifts = {"start": 0.0, "zero": -0.16, "nullspace": 0.16}
for axis, (scale, part) in zip(axes, scaled.groupby("input_scale", sort=False), strict=True):
    part = part.set_index("measure").loc[drawn]
    for place, (_, row) in enumerate(part.iterrows()):
        for name, lift in lifts.items():
            axis.plot([row["start"], row[name]], [place + lift] * 2, color=looks[name]["color"], linewidth=0.8)
            label = name if place == 0 else None
            axis.plot(row[name], place + lift, linestyle="none", label=label, **looks[name])
    axis.set(title=f"{scale} scale", xlabel="accuracy")
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
axes[0].set_yticks(range(len(drawn)), drawn)
axes[0].invert_yaxis()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=7)
figures.save_figure(figure, "08_normalisation")
scaled[scaled["measure"].isin(drawn)].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# The pairs behind it, with both intervals. If `zero, mismatched` against `start, mismatched` is resolved and `nullspace, mismatched` against `zero, mismatched` is not, then what table 1 would report
# is a gain of finetuning on a handicapped start, and none of it is shown to be the noise's.

# %%
listed = [
    ("start", "start, mismatched"),
    ("zero, mismatched", "start, mismatched"),
    ("nullspace, mismatched", "zero, mismatched"),
]
rows_of([*listed, ("nullspace, mismatched", "start")], drawn).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import (
    BETTER,
    FEWEST_SEEDS,
    Verdicts,
    above,
    compare,
    difference,
    every,
    intervals,
    negate,
    percent,
    rows,
    some,
    word,
)

answer = Verdicts()


@answer.claim(
    "A",
    "ablation",
    "eps hardly matters between 0.01 and 0.1",
    where="08",
    criterion="holds if average accuracies differ by less than a point and all intervals over seeds overlap, does not "
    "hold if two do not overlap; fewer than three seeds decide nothing",
)
def eps_matters() -> tuple[str, str]:
    lines = rows(of_eps, method="nullspace", measure="average").sort_values("eps")
    averages = intervals(lines, "value")
    apart = any(above(*pair) is not None for pair in combinations(averages, 2))
    spread = max(average.value for average in averages) - min(average.value for average in averages)
    texts = (f"{percent(average)} at {e:g}" for e, average in zip(lines["eps"], averages, strict=True))
    decided = False if apart else True if spread < 0.01 else None
    return f"average {', '.join(texts)}", word(
        decided if min(average.n for average in averages) >= FEWEST_SEEDS else None
    )


@answer.claim(
    "A",
    "authors' reply",
    "without early stop, robustness to attacks rises and clean accuracy falls",
    where="08",
    criterion=BETTER
    + "Holds if the published noise without early stop is better under FGSM and worse on clean images, in part if one "
    "of them",
)
def early_stop() -> tuple[str, str]:
    measured, better = compare(paired, "official, no early stop", "official", ("fgsm", "clean"))
    answers = better["fgsm"], negate(better["clean"])
    return measured, word(every(answers), some(answers))


@answer.claim(
    "",
    "",
    "a gain over a start that is given a wrong input scale, as in the published pipeline, is the finetuning's",
    where="08",
    criterion=BETTER
    + "Holds if behind the wrong scale finetuning with noise 0 is better than the start on the average and nullspace "
    "noise is not better than noise 0, in part if only the former",
)
def faked_gain() -> tuple[str, str]:
    names = [f"{method}, mismatched" for method in ("start", "zero", "nullspace")]
    plain, repaired = compare(paired, names[1], names[0], ("average",))
    extra, added = compare(paired, names[2], names[1], ("average",))
    over_seeds, _, _ = difference(paired, names[2], names[1], "average")
    no_more = negate(added["average"])
    if (
        no_more is None
        and over_seeds.n >= FEWEST_SEEDS
        and max(abs(end) for end in (over_seeds.low, over_seeds.high)) < 0.01
    ):
        no_more = True  # undecided, but less than a point either way
    measured = f"noise 0: {plain}; nullspace over noise 0: {extra}"
    return measured, word(every((repaired["average"], no_more)), repaired["average"])


figures.save_table(answer.table(), "08_verdicts", caption="What paper A says of its recipe.")
answer.show(
    f"{steps} steps of {batch_size} images, {images} test images, {variant_seeds} seeds a variant, {model} on "
    f"{Path(data).name}; one thing of the recipe changes at a time, and nothing is corrected for the number of comparisons."
)
