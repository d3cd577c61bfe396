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

# %% tags=["parameters"]
profile: str = "cpu"
images: int | None = None  # test images; None: the profile's, as for all below down to severities
steps: int | None = None  # gradient steps a run
steps_per_noise: int | None = None  # steps between fresh noises
batch_size: int | None = None  # images a step
noise_images: int | None = None  # dev images behind a noise
noise_steps: int | None = None  # steps of its synthesis; the published one also ends with 3 passes over its images
attack_steps: int | None = None  # steps of the attack in adversarial training
evaluation_steps: int | None = None  # steps of PGD and CW at the end, half those of the patch attack
severities: list[int] | None = None  # of the corruptions
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
eps_values: list[float] | None = None  # bounds in (a); None: the profile's
lims: list[float] | None = None  # sizes of the published procedure's start in (b); None: the profile's
noises: list[int] | None = None  # numbers of noises in (c), divisors of the steps; None: the profile's
attack_eps: float = 0.00392156862745098  # L-infinity radius of the table's attacks in pixel units: 1/255, as in 07
strong_eps: float = 0.03137254901960784  # radius of adversarial training and of its own column: 8/255
learning_rate: float = 0.0005  # peak, the same for all methods
methods: list[str] | None = None  # finetuning methods in (d); None: those of 07
seeds: int | None = None  # runs a method in (d); None: as in 07
variant_seeds: int | None = None  # runs of everything else; None: the profile's
seed: int = 0  # the first of the seeds
workers: int | None = None  # processes side by side; None: one a thread on a CPU, one on a GPU

# %%
from collections.abc import Mapping
from dataclasses import asdict, replace

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, NullLocator

from nullpaper import statistics
from nullpaper.data import datasets as data
from nullpaper.errors import InputError
from nullpaper.finetuning import methods as methods_module
from nullpaper.models.vit import fingerprint
from nullpaper.studies import contrasts, design
from nullpaper.studies import trials as experiments
from nullpaper.studies.trials import Trial
from nullpaper.workflow import figures as plots
from nullpaper.workflow.store import Result, stored

plots.use_style()
own = {
    "smoke": dict(variant_seeds=1, eps_values=[0.03, 0.1], lims=[1.0], noises=[2]),
    "cpu": dict(variant_seeds=1, eps_values=[0.01, 0.03, 0.1], lims=[0.3, 1.0, 3.0], noises=[1, 2, 8]),
}.get(profile, dict(variant_seeds=5, eps_values=[0.01, 0.03, 0.1], lims=[0.3, 1.0, 3.0], noises=[1, 5, 20, 80]))
size = design.chosen(design.SIZES[profile] | own, globals())
chosen = size["methods"]
if missing := {"zero", "nullspace", "random"} - set(chosen):
    raise InputError(f"methods lacks {', '.join(sorted(missing))}, which every section compares with: add it.")
if uneven := [count for count in size["noises"] if size["steps"] % count]:
    raise InputError(f"{uneven[0]} noises do not divide {size['steps']} steps: choose divisors in noises.")

# %% [markdown]
# ## The runs
#
# Those of 07 are described exactly as there, so that the store knows them; each variant has its own change of the recipe.

# %%
radii = dict(attack_eps=attack_eps, strong_eps=strong_eps)
recipe, protocol, boundary = design.shared(size, eps=eps, learning_rate=learning_rate, seed=seed, **radii)
run_seeds = range(seed, seed + size["seeds"])
variant_runs = range(seed, seed + size["variant_seeds"])


def of_07(method: str, s: int) -> Trial:
    return design.trial(method, s, size["steps"], recipe, boundary)


def variant(method: str, input_scale: str = "own", **changes: object) -> list[Trial]:
    """One trial a seed; those of 07 where nothing changes."""
    changed = replace(recipe, **changes)
    if changed == recipe and input_scale == "own":
        return [of_07(method, s) for s in variant_runs]
    return [Trial(method, s, size["steps"], changed, input_scale=input_scale) for s in variant_runs]


def named(method: str, change: str, same: bool) -> str:
    return method if same else f"{method}, {change}"


plane = {"start": [Trial("start")]} | {method: [of_07(method, s) for s in run_seeds] for method in chosen}
base = {"start": [Trial("start")]} | {method: variant(method) for method in chosen}
by_eps = {
    (method, e): named(method, f"eps {e:g}", e == eps) for method in ("nullspace", "random") for e in size["eps_values"]
}
planned = base | {name: variant(method, noise_eps=e) for (method, e), name in by_eps.items()}
makers = {"nullspace, free tokens": dict(spread=False), "official": dict(official=True)}
makers["official, no early stop"] = dict(official=True, early_stop=False)
makers |= {
    f"official, lim {lim:g}": dict(official=True, noise_lim=lim) for lim in size["lims"] if lim != recipe.noise_lim
}
planned |= {name: variant("nullspace", **changes) for name, changes in makers.items()}
per_noise = {count: size["steps"] // count for count in size["noises"]}
by_count = {
    (method, count): named(method, f"{count} x {length} steps", length == size["steps_per_noise"])
    for method in ("nullspace", "zero")
    for count, length in per_noise.items()
}
planned |= {name: variant(method, steps_per_noise=per_noise[count]) for (method, count), name in by_count.items()}
planned["start, mismatched"] = [Trial("start", input_scale="mismatched")]
planned |= {f"{method}, mismatched": variant(method, "mismatched") for method in ("zero", "nullspace")}

wanted = list(dict.fromkeys(trial for trials in [*planned.values(), *plane.values()] for trial in trials))
shared = {trial for trials in plane.values() for trial in trials}
wanted.sort(key=shared.__contains__)  # last those of 07, which may be at them just now
finished = dict(zip(wanted, experiments.run_trials(wanted, protocol, workers=workers, progress="runs"), strict=True))
groups = {name: [finished[trial] for trial in trials] for name, trials in planned.items()}


def sources(names: object) -> list[Result]:
    return [source for name in names for run in groups[name] for source in run.sources]


pd.DataFrame({"run": groups.keys(), "seeds": map(len, groups.values())}).style.hide(axis="index")

# %% [markdown]
# ## Paired differences
#
# All comparisons of this notebook in one table, as in 07: Student's t over seeds, bootstrap over images, and resolved when both exclude zero.

# %%
scales = ("", ", mismatched")
pairs = [(name, "zero") for name in planned if name != "zero" and "mismatched" not in name]
pairs += [
    (name, "nullspace") for name in (*makers, *by_eps.values(), *by_count.values()) if name.startswith(("null", "off"))
]
pairs += [(by_eps["nullspace", e], by_eps["random", e]) for e in size["eps_values"]]
pairs += [("official, no early stop", "official")]
pairs += [(by_count["nullspace", count], by_count["zero", count]) for count in per_noise]
pairs += [(f"{method}{scale}", f"start{scale}") for method in ("zero", "nullspace") for scale in scales]
pairs += [("nullspace, mismatched", "zero, mismatched"), ("start", "start, mismatched")]
pairs += [(f"{method}, mismatched", "start") for method in ("zero", "nullspace")]
pairs = list(dict.fromkeys((first, second) for first, second in pairs if first != second))
paired = contrasts.contrast(groups, pairs, attack_eps)
table = contrasts.tabulate(groups, attack_eps)
_ = plots.save_table(paired, "08_paired", caption="Paired differences.", sources=sources(groups))
drawn = ["clean", "fgsm", "pgd", "cw", "patch", "corruptions", "average"]


def rows_of(listed: list[tuple[str, str]], measures: list[str]) -> pd.DataFrame:
    """Rows of the paired table, in the order of the pairs."""
    rows = [paired[(paired["method"] == first) & (paired["against"] == second)] for first, second in listed]
    return pd.concat(rows).query("measure in @measures")


def draw_difference(axis: Axes, place: float, row: pd.Series, color: object) -> None:
    """A difference with its interval over images (thin) and, of several seeds, over seeds (thick)."""
    axis.plot([place] * 2, [row["images_low"], row["images_high"]], color=color, linewidth=0.8)
    if row["n"] > 1:
        axis.plot([place] * 2, [row["difference_low"], row["difference_high"]], color=color, linewidth=2.6, alpha=0.6)
    axis.plot(place, row["difference"], "o", color=color)


def points(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
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
used = sources([*by_eps.values(), "zero"])
_ = plots.save_table(of_eps, "08_eps", caption="Accuracies by eps.", sources=used)

figure, axes = plots.subplots(1, 3, height=2.3)
for axis, measure in zip(axes, ("average", "clean", "corruptions"), strict=True):
    for number, method in enumerate(("nullspace", "random")):
        color = sns.color_palette()[3 if method == "nullspace" else 0]
        rows = rows_of([(by_eps[method, e], "zero") for e in size["eps_values"]], [measure])
        places = [e * 1.06 ** (1 - 2 * number) for e in size["eps_values"]]  # side by side
        axis.plot(places, rows["difference"], color=color, label=method)
        for place, (_, row) in zip(places, rows.iterrows(), strict=True):
            draw_difference(axis, place, row, color)
    axis.set_xscale("log")
    axis.set_xticks(size["eps_values"], [f"{e:g}" for e in size["eps_values"]])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=r"$\varepsilon$", title=measure)
    points(axis)
axes[0].set_ylabel("accuracy minus\nthat of zero (points)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=7)
_ = plots.save_figure(figure, "08_eps", sources=used)
rows_of([(by_eps["nullspace", e], by_eps["random", e]) for e in size["eps_values"]], drawn).style.format(
    precision=4
).hide(axis="index")

# %% [markdown]
# ## (b) How the noise is made: does a larger one help more?
#
# Our solver puts its noise on the boundary of $\varepsilon$, every token of one norm (`nullspace`) or not (`free tokens`). The published one (`official`) draws it uniformly in
# $(-\mathrm{lim}, \mathrm{lim})$ and descends on $\|z' - z\|^2$ until one batch falls below $\varepsilon$; nothing pushes its norm up, so its size is that of the start. It has three ways to
# go: a start that is within $\varepsilon$ already comes back as it was drawn, random; one that is too large ends outside; in between it stops after few steps. `no early stop` takes all steps.
# `steps` below are those taken for the first noise of the first run, against the model as it comes; norm and influence are those of all noises that training used, on images that made none
# of them. `within` is the share of the noises whose measured influence is at most $\varepsilon$.

# %%
noisy = ["zero", *(name for name in ("random", "random_norm", "permuted") if name in chosen), "nullspace", *makers]
cifar, model = data.load_data("cifar10", progress=False), experiments.start_of(Trial("start"))


def first_noises() -> dict[str, object]:
    """The synthesis of the first noise of each learned variant's first run, step by step."""
    found = {}
    for name in makers_of:
        changed = groups[name][0].trial.recipe
        split = cifar.dev.subset(changed.noise_images, seed)
        made = methods_module.make_noise(model, split, "learned", changed, 10_007 * seed)
        history = [{key: record[key] for key in ("step", "norm", "influence")} for record in made.history]
        stopped = changed.official and changed.early_stop and history[-1]["influence"] < changed.noise_eps
        ended = {"norm": made.norm, "influence": made.influence.value}
        found[name] = {"history": history, "steps": len(history) - stopped, "stopped": stopped} | ended
    return found


makers_of = ["nullspace", *makers]
described = {"recipes": {name: asdict(groups[name][0].trial.recipe) for name in makers_of}, "seed": seed}
described["weights"] = fingerprint(model)
first = stored("first_noises", described, first_noises, code=[methods_module], data=cifar.identity)
firsts = first.metrics


def used_noises(name: str) -> dict[str, object]:
    """Norm and influence of the noises that a group was trained with."""
    records = pd.DataFrame([{"run": i} | h for i, run in enumerate(groups[name]) for h in run.history if h["step"]])
    within = (records["noise_influence"] <= eps).mean()
    means = records.groupby("run")[["noise_norm", "noise_influence"]].mean()
    row = {"noise": name, "steps": firsts[name]["steps"] if name in firsts else None}
    for column in ("norm", "influence"):
        row |= statistics.over_seeds(means[f"noise_{column}"]).columns(column)
    return row | {"within": within}


values = table.pivot(index="method", columns="measure", values="value")
over_zero = paired[(paired["against"] == "zero") & (paired["measure"] == "average")].set_index("method")
found = pd.DataFrame([used_noises(name) for name in noisy])
found = found.astype({"steps": "Int64"}).join(values[["clean", "fgsm", "pgd", "corruptions", "average"]], on="noise")
found = found.join(over_zero[["difference", "images_low", "images_high", "resolved"]], on="noise")
found = found.rename(columns={"difference": "average over zero"})
used = [*sources(noisy), first]
_ = plots.save_table(found, "08_noise", caption="Noises and what they are worth.", sources=used)
shown = [
    "noise",
    "steps",
    "norm",
    "influence",
    "within",
    "clean",
    "fgsm",
    "pgd",
    "corruptions",
    "average",
    "average over zero",
]
found[shown].style.format(precision=3, na_rep="").hide(axis="index")


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


def label_beside(axis: Axes, found: Mapping[str, tuple[float, float, object]], gap: float = 0.1) -> None:
    """Name points (x, y, colour) in a column right of the axis, with a line to each; limits must be final."""
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    to_axes = axis.transData + axis.transAxes.inverted()
    places = spaced([to_axes.transform((x, y))[1] for x, y, _ in found.values()], gap)
    for (name, (x, y, color)), place in zip(found.items(), places, strict=True):
        leader = dict(arrowstyle="-", color="0.75", linewidth=0.5, shrinkA=1, shrinkB=2, relpos=(0, 0.5))
        options = dict(xycoords="data", textcoords="axes fraction", va="center", fontsize=6.5, color=color)
        axis.annotate(name, (x, y), (1.05, place), arrowprops=leader, annotation_clip=False, **options)


figure, axes = plots.subplots(1, 3, height=2.7, width_ratios=[1.15, 1, 1])
published = [name for name in noisy if name.startswith("official")]
palette = dict(zip(published, sns.color_palette("dark:limegreen", len(published) + 1)[1:], strict=True))
palette |= dict(zip(("random", "random_norm", "permuted"), sns.color_palette("Blues_d", 3), strict=True))
palette |= {"nullspace": sns.color_palette()[3], "nullspace, free tokens": sns.color_palette()[5], "zero": (0.3,) * 3}
for name, known in firsts.items():
    path = pd.DataFrame(known["history"])
    axes[0].plot(path["step"], path["influence"], color=palette[name])
    axes[0].plot(path["step"].iloc[-1], path["influence"].iloc[-1], "o", color=palette[name])
axes[0].axhline(eps, color="0.6", linewidth=0.8, zorder=0)
axes[0].set_yscale("log")
axes[0].yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
axes[0].yaxis.set_minor_formatter(NullFormatter())
axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
axes[0].set(xlabel="step of the synthesis", ylabel="influence on its batch", title="first noise")
for axis, column in zip(axes[1:], ("norm", "influence"), strict=True):
    for _, row in found.iterrows():
        difference = 0.0 if row["noise"] == "zero" else row["average over zero"]
        axis.plot(row[column], difference, "o", color=palette[row["noise"]])
        if row["noise"] != "zero":
            ends = row["images_low"], row["images_high"]
            axis.plot([row[column]] * 2, ends, color=palette[row["noise"]], linewidth=0.8, alpha=0.6)
    axis.set(xlabel=f"mean {column}", title="average minus zero's" if column == "norm" else None)
    points(axis)
axes[2].sharey(axes[1])
axes[2].axvline(eps, color="0.6", linewidth=0.8, zorder=0)
places = found.set_index("noise").assign(y=found.set_index("noise")["average over zero"].fillna(0))
named_points = {name: (places.loc[name, "influence"], places.loc[name, "y"], palette[name]) for name in noisy}
label_beside(axes[2], named_points)
_ = plots.save_figure(figure, "08_noise", sources=used)

# %% [markdown]
# Grey lines: $\varepsilon$, and no difference. The questions as pairs: our noise against the published one at the same $\varepsilon$; the published one without its early stop
# against itself with it, which is the authors' comparison; tokens of free norm against equal norms.

# %%
asked = [("official", "nullspace"), ("official, no early stop", "official"), ("nullspace, free tokens", "nullspace")]
rows_of(asked, drawn).style.format(precision=4).hide(axis="index")

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
used = sources(by_count.values())
_ = plots.save_table(counts, "08_rounds", caption="Accuracies by number of noises.", sources=used)

compared = {
    "nullspace minus zero of as many rounds": {c: (by_count["nullspace", c], by_count["zero", c]) for c in per_noise},
    "zero minus zero of 07": {c: (by_count["zero", c], "zero") for c in per_noise if by_count["zero", c] != "zero"},
}
compared = {title: by for title, by in compared.items() if by}
figure, axes = plots.subplots(1, 3, height=2.4)
for axis, measure in zip(axes, ("average", "clean", "corruptions"), strict=True):
    for number, (title, by) in enumerate(compared.items()):
        color = sns.color_palette()[3 - 3 * number]
        rows = rows_of([*by.values()], [measure])
        places = [count * 1.08 ** (1 - 2 * number) for count in by]
        axis.plot(places, rows["difference"], color=color, label=title)
        for place, (_, row) in zip(places, rows.iterrows(), strict=True):
            draw_difference(axis, place, row, color)
    axis.set_xscale("log")
    axis.set_xticks([*per_noise], [f"{count}" for count in per_noise])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=f"noises in {size['steps']} steps", title=measure)
    points(axis)
axes[0].set_ylabel("difference (points)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=7)
_ = plots.save_figure(figure, "08_rounds", sources=used)
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
used = [source for runs in plane_runs.values() for run in runs for source in run.sources]
_ = plots.save_table(everywhere, "08_plane", caption="All methods of notebook 07.", sources=used)
of = everywhere.set_index(["method", "measure"])


def ends_of(row: pd.Series) -> tuple[float, float]:
    return (row["value_low"], row["value_high"]) if row["n"] > 1 else (row["images_low"], row["images_high"])


colors = {name: sns.color_palette()[0] for name in plane} | {"nullspace": sns.color_palette()[3], "start": (0.4,) * 3}
colors |= dict.fromkeys(("pgd_at", "trades"), sns.color_palette()[2])
figure, axes = plots.subplots(1, 2, height=2.8)
titles = {"pgd": f"PGD at {255 * attack_eps:.3g}/255", "corruptions": "corruptions"}
for axis, (measure, under) in zip(axes, titles.items(), strict=True):
    for name in plane:
        x, y = of.loc[(name, "clean")], of.loc[(name, measure)]
        axis.plot(ends_of(x), [y["value"]] * 2, color=colors[name], linewidth=0.8, alpha=0.6)
        axis.plot([x["value"]] * 2, ends_of(y), color=colors[name], linewidth=0.8, alpha=0.6)
        axis.plot(x["value"], y["value"], "o", color=colors[name])
    axis.set(xlabel="clean accuracy", ylabel=f"accuracy under {under}")
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    marks = {name: (of.loc[(name, "clean"), "value"], of.loc[(name, measure), "value"], colors[name]) for name in plane}
    label_beside(axis, marks)
_ = plots.save_figure(figure, "08_plane", sources=used)

# %% [markdown]
# ## (e) A wrong input scale, on purpose
#
# The published pipeline puts ImageNet's mean and deviation before all models, also before weights of timm that expect 0.5 and 0.5: what the embedding sees is stretched by about 2.2 and
# shifted. Whoever finetunes such a model and compares with its start also measures how finetuning repairs the scale. Here the same map goes before the shipped model, whose own
# statistics are known to be right, and the comparison of the paper's table 1 is repeated: start, `zero` and `nullspace`, all three behind the wrong scale.
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
used = sources([f"{name}{scale}" for name in ("start", "zero", "nullspace") for scale in scales])
_ = plots.save_table(scaled, "08_normalisation", caption="Gains behind the right and the wrong scale.", sources=used)

figure, axes = plots.subplots(1, 2, height=2.6, sharey=True, sharex=True)
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
_ = plots.save_figure(figure, "08_normalisation", sources=used)
scaled[scaled["measure"].isin(drawn)].style.format(precision=3, na_rep="").hide(axis="index")

# %% [markdown]
# The pairs behind it, with both intervals. If `zero, mismatched` against `start, mismatched` is resolved and `nullspace, mismatched` against `zero, mismatched` is not, then what table 1 would report
# is a gain of finetuning on a handicapped start, and none of it is shown to be the noise's.

# %%
asked = [
    ("start", "start, mismatched"),
    ("zero, mismatched", "start, mismatched"),
    ("nullspace, mismatched", "zero, mismatched"),
]
rows_of([*asked, ("nullspace, mismatched", "start")], drawn).style.format(precision=4).hide(axis="index")
