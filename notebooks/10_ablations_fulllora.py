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
# # 10 · What of FullLoRA's adapter matters?
#
# Paper B freezes a standardly pretrained Vision Transformer and trains low-rank branches (LoRA) in all of its layers on
# attacked images, with a learnable LayerNorm (LN) in front of each branch (LNLoRA). For a layer with frozen weights
# $W_0$, bias $b$ and input $x$, and branches $A$, $B$ of rank $r$:
#
# $$y = W_0 x + b + \tfrac{\alpha}{r}\, B\, A\, \mathrm{LN}_{\gamma,\beta}(x), \qquad \alpha = r .$$
#
# Here one thing of this adapter changes at a time, under adversarial finetuning with PGD (Madry et al. 2018: gradient
# steps on the pixels, within an $L_\infty$ radius):
#
# | section | what changes | against |
# |---|---|---|
# | (a) | the rank | plain LoRA at the same rank and at the same number of parameters; all weights |
# | (b) | what stands in front of $A$: nothing, LayerNorm with and without weights, RMSNorm | the same rank |
# | (c) | which layers have a branch | all of them |
# | (d) | one branch on the fused qkv, or one on each of q, k and v | about as many parameters, and the same rank |
# | (e) | the head: the checkpoint's, drawn anew, or drawn anew and first trained alone | as many steps in all |
# | (f) | the learning rate, which every kind of adapter takes from validation images (dev) | all others of the grid |
#
# Of paper B only the abstract could be read: it states the LayerNorm in front of LoRA, in all key components, and about
# 5 % of the parameters. Rank, layers, head, learning rate and the paper's own ablation are unknown, so nothing here
# repeats a table of it, and no claim of it is decided.
#
# The base is LNLoRA of rank 3 in all layers. We measure accuracy on clean and on attacked test images, in percent. The
# endpoint of every question is the difference to the base under the attack of training, in percentage points; all of
# them are exploratory. Every variant has `variant_seeds` runs, compared with runs of the same seeds on the same images.
# With one seed there is no interval over seeds: what is drawn then is the interval over images of these very weights,
# and no difference counts as resolved.
#
# All start from the standardly trained checkpoint, as in paper B; `start = "robust"` repeats everything from an
# adversarially trained one. Takes about 3 min at `cpu` on 2 cores; needs CIFAR-10, which is fetched once.

# %% tags=["parameters"]
images: int = 48  # test images
steps: int = 10  # gradient steps a run
batch_size: int = 64  # images a step
attack_steps: int = 2  # steps of PGD in training
evaluation_steps: int = 20  # steps of PGD and CW at the end
attack_eps: float = 0.00784313725490196  # L-infinity radius in training and at the end, in pixel units: 2/255
other_eps: float = 0.0  # a second radius at the end, such as 0.03137254901960784 (8/255); 0: none
rounds: int = 1  # looks at dev in a run
dev_images: int = 0  # of dev, for these looks; 0: twice as many as of test
ranks: list = [16, 64]  # in (a), beside the base rank
norms: list = ["plain", "rms"]  # in front of A in (b), beside LayerNorm with weights
layers: list = ["all but patch_embed", "attention", "MLP", "patch_embed"]  # with a branch in (c)
apart_ranks: list = [2]  # of branches on q, k and v apart in (d)
longer_head: bool = True  # in (e), also the new head trained for twice the steps
rates: list = [0.001, 0.005, 0.02]  # learning rates of which each kind of adapter takes its own, by dev (f)
rate_kinds: list = ["full", "lnlora", "lora"]  # adapters that do; others take those of studies.settings.RATES
variant_seeds: int = 1  # runs of everything
seed: int = 0  # the first of the seeds
start: str = "standard"  # what is finetuned: "standard" or "robust"
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from collections.abc import Iterable

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from nullpaper import load_data, statistics
from nullpaper.adapters.inject import expected_parameters
from nullpaper.errors import InputError, nearest
from nullpaper.models.vit import patchify
from nullpaper.studies import contrasts, settings
from nullpaper.studies.trials import AdapterSpec, Trial, run_trials, start_of
from nullpaper.workflow import figures

figures.use_style()
LAYERS = {"all but patch_embed": ("qkv", "proj", "fc1", "fc2"), "attention": ("qkv", "proj"), "MLP": ("fc1", "fc2")}
LAYERS |= {"patch_embed": ("patch_embed",)}
APART = ("patch_embed", "q", "k", "v", "proj", "fc1", "fc2")
for name, given, allowed in (("start", [start], settings.STARTS), ("layers", layers, LAYERS)):
    if wrong := [item for item in given if item not in allowed]:
        raise InputError(
            f"{name} '{wrong[0]}' is unknown.{nearest(wrong[0], allowed)} Choose from {', '.join(allowed)}."
        )
run_seeds = range(seed, seed + variant_seeds)

# %% [markdown]
# ## The runs
#
# Each kind of adapter first takes its learning rate from dev, by one grid (f); its variants share it. `trainable`
# counts what a run trains, head included, by the closed formula that `inject` is tested against. `share` is relative to
# the model without branches. `steps` are gradient steps in all.

# %%
recipe, protocol = settings.adversarial_setting(
    images=images,
    steps=steps,
    batch_size=batch_size,
    rounds=rounds,
    dev_images=dev_images,
    attack_eps=attack_eps,
    other_eps=other_eps,
    attack_steps=attack_steps,
    evaluation_steps=evaluation_steps,
    seed=seed,
)
origin = settings.STARTS[start]
vit = start_of(Trial("start", start=origin))
total = sum(parameter.numel() for parameter in vit.parameters())


def parameters_of(spec: AdapterSpec | None) -> int:
    if spec is None:
        return total
    return expected_parameters(vit, spec.kind, r=spec.r, targets=spec.targets, norm=spec.norm)


def run_of(adapter: str | AdapterSpec, s: int, **options: object) -> Trial:
    """At the rate that its kind took, unless an option says otherwise."""
    kind = adapter if isinstance(adapter, str) else adapter.kind
    options = {"steps": steps, "start": origin, "rate": rate_of.get(kind)} | options
    return settings.adversarial_trial("pgd_at", s, recipe=recipe, adapter=adapter, **options)


def runs_of(adapter: str | AdapterSpec, **options: object) -> list[Trial]:
    return [run_of(adapter, s, **options) for s in run_seeds]


rate_of: dict[str, float] = {}
by_rate = pd.DataFrame()
if rates:
    grid = {kind: [run_of(kind, seed, rate=rate) for rate in rates] for kind in rate_kinds}
    by_rate = settings.best_under_attack(grid, workers=workers)
    figures.save_table(by_rate, "10_rates", caption="Accuracy on dev images, by learning rate.")
    rate_of = settings.rates_of(by_rate)


def lnlora(r: int = settings.RANK, **options: object) -> AdapterSpec:
    return AdapterSpec("lnlora", r, **options)


base = {name: runs_of(name) for name in ("lnlora", "lora", "full")}
budget = parameters_of(lnlora())
matched_rank = min(range(1, 10 * settings.RANK), key=lambda r: abs(parameters_of(AdapterSpec("lora", r)) - budget))
matched = f"lora, r = {matched_rank}"
by_rank = {r: "lnlora" if r == settings.RANK else f"lnlora, r = {r}" for r in sorted({settings.RANK, *ranks})}

planned = {"probe alone": runs_of("linear", new_head=True)} | base  # first, since others wait for the probe
planned |= {name: runs_of(lnlora(r)) for r, name in by_rank.items()}
planned[matched] = runs_of(AdapterSpec("lora", matched_rank))
planned |= {f"lnlora, {norm} norm": runs_of(lnlora(norm=norm)) for norm in norms}
planned |= {f"lnlora, {name}": runs_of(lnlora(targets=LAYERS[name])) for name in layers}
apart = {f"lnlora, q k v apart, r = {r}": runs_of(lnlora(r, targets=APART)) for r in apart_ranks}
heads = {"lnlora, new head": runs_of("lnlora", new_head=True)}
if longer_head:
    heads["lnlora, new head, twice the steps"] = runs_of("lnlora", new_head=True, steps=2 * steps)
heads["lnlora, probed head"] = [run_of("lnlora", s, start=run_of("linear", s, new_head=True)) for s in run_seeds]
planned |= apart | heads

sections = {"rank": [*by_rank.values(), "lora", matched, "full"]}
sections["norm"] = ["lnlora", "lora", *(f"lnlora, {norm} norm" for norm in norms)]
sections["layers"] = ["lnlora", *(f"lnlora, {name}" for name in layers)]
sections["qkv"] = ["lnlora", *apart]
sections["head"] = ["lnlora", *heads, "probe alone"]

wanted = list(dict.fromkeys(trial for trials in planned.values() for trial in trials))
finished = dict(zip(wanted, run_trials(wanted, protocol, workers=workers, progress="runs"), strict=True))
groups = {name: [finished[trial] for trial in trials] for name, trials in planned.items()}


def steps_of(trial: Trial) -> int:
    """Gradient steps, with those of the trial that it starts from."""
    return trial.steps + (steps_of(trial.start) if isinstance(trial.start, Trial) else 0)


taken = {name: steps_of(trials[0]) for name, trials in planned.items()}
trained = {name: parameters_of(trials[0].adapter) for name, trials in planned.items()}
values = contrasts.tabulate(groups, attack_eps)
for place, (column, of_method) in enumerate({"trainable": trained, "steps": taken}.items(), start=1):
    values.insert(place, column, values["method"].map(of_method))
values.insert(2, "share", values["trainable"] / total)
rows = [(section, values[values["method"] == name]) for section, names in sections.items() for name in names]
table = pd.concat([part.assign(section=section) for section, part in rows], ignore_index=True)
table.insert(0, "section", table.pop("section"))
figures.save_table(table, "10_table", caption="Accuracy by variant of LNLoRA.")

titles_of = {"clean": "clean", "pgd": f"PGD {255 * attack_eps:.3g}/255", "cw": f"CW {255 * attack_eps:.3g}/255"}
titles_of[f"pgd {255 * other_eps:.3g}/255"] = f"PGD {255 * other_eps:.3g}/255"
titles_of = {name: title for name, title in titles_of.items() if name in set(table["measure"])}
size = f"{variant_seeds} seed{'s' * (variant_seeds > 1)} x {images} images"
drawn = list(titles_of)[:3]  # at the second radius short runs keep nothing

wide = table.assign(text=table.apply(contrasts.in_percent, axis=1), share=table["share"].map("{:.2%}".format))
fixed = ["section", "method", "trainable", "share", "steps"]
wide = wide.pivot(index=fixed, columns="measure", values="text")[list(titles_of)].reset_index(fixed[2:])
wide.loc[[(section, name) for section, names in sections.items() for name in names]]

# %% [markdown]
# ## Paired differences
#
# All comparisons of this notebook in one table. A difference is `resolved` where its interval for new seeds and new
# images excludes zero. Nothing is corrected for their number.

# %%
pairs = [(name, "lnlora") for name in planned if name != "lnlora"]
pairs += [("lnlora", "lora"), ("lnlora", matched), ("lnlora", "full"), ("lora", "full"), (matched, "lora")]
pairs += [(f"lnlora, {norm} norm", "lora") for norm in norms]
pairs += [(name, "full") for name in by_rank.values()]
pairs += [("lnlora, probed head", name) for name in heads if name != "lnlora, probed head"]
pairs += [("lnlora, probed head", "probe alone")]
pairs = list(dict.fromkeys(pairs))
paired = contrasts.contrast(groups, pairs, attack_eps)
paired["steps"] = paired["method"].map(taken)
figures.save_table(paired, "10_paired", caption="Paired differences in accuracy.")


def rows_of(listed: list[tuple[str, str]]) -> pd.DataFrame:
    """Rows of the paired table, in the order of the pairs."""
    rows = [paired[(paired["method"] == first) & (paired["against"] == second)] for first, second in listed]
    return pd.concat(rows).query("measure in @drawn")


# %% [markdown]
# ## (a) Is more rank more robust?
#
# Paper B's rank is unknown. Its abstract says about 5 % of the parameters, and that is rank 3 here. At the width of the
# shipped ViT, 96, rank 64 is close to all weights: it shows whether the low rank is what limits the adapter. Plain LoRA
# stands beside it at the base rank and at the rank whose number of parameters is nearest, since LayerNorms add two
# parameters an input.
#
# Numbers are ranks; the square is full finetuning. A line that is flat from the base rank on says that rank is not what
# limits the adapter; one that still rises says that it is. All ranks share the learning rate of the base. A branch of
# higher rank moves further at the same rate, so the learning rate may cause a fall at high ranks.

# %%
palette = sns.color_palette()
looks = {"LNLoRA": dict(color=palette[3], marker="o"), "LoRA": dict(color=palette[0], marker="^")}
looks["all weights"] = dict(color=(0.3,) * 3, marker="s")
lines = {"LNLoRA": by_rank, "LoRA": {settings.RANK: "lora", matched_rank: matched}, "all weights": {0: "full"}}
looked_up = values.set_index(["method", "measure"])
figure, axes = figures.subplots(1, 3, height=2.5)
for axis, measure in zip(axes, drawn, strict=True):
    for label, named in lines.items():
        rows = looked_up.loc[[(name, measure) for name in named.values()]]
        axis.plot(rows["share"], rows["value"], label=label, **looks[label])
        for (_, row), rank in zip(rows.iterrows(), named, strict=True):
            ends = np.clip(contrasts.ends(row), 0, 1)  # Student's t knows no bounds
            axis.plot([row["share"]] * 2, ends, color=looks[label]["color"], linewidth=0.8, alpha=0.6)
            if label == "LNLoRA":
                options = dict(xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=6.5)
                top = row["value"] if np.isnan(ends[1]) else ends[1]
                axis.annotate(f"{rank}", (row["share"], top), color=looks[label]["color"], **options)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([0.03, 0.1, 0.3, 1]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axis.set_title(f"{titles_of[measure]}\n{size}", fontsize=8)
    axis.set_xlim(0.03, 1.3)
axes[0].set_ylabel("accuracy")
figure.supxlabel("trainable parameters", fontsize=8)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=7)
figures.save_figure(figure, "10_rank")

# %% [markdown]
# ## (b) Is it the LayerNorm?
#
# Paper B motivates it by LayerNorm's scales and biases, which differ strongly between standardly and adversarially
# trained ViTs: a learnable one is to ease that gap. If so, LayerNorm without weights should not help, at the same
# number of parameters as plain LoRA. Another reading is that attacked activations cannot inflate a normalised branch.
# Then all norms should help alike, with weights or without. In front of qkv and fc1 the inputs are outputs of a
# LayerNorm already; what changes most is at proj, fc2 and the patch embedding.
#
# The base has more parameters than plain LoRA of its rank, so it is also compared with LoRA of the nearest number of
# parameters.

# %%
of_norms = [("lnlora", "lora"), ("lnlora", matched), *((f"lnlora, {norm} norm", "lora") for norm in norms)]
rows_of(of_norms).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (c) Which layers?
#
# Paper B has branches in all key components. A branch less is also fewer parameters. So a part that equals the whole is
# the stronger result, and a part that falls behind may only be too small (see (a)).
#
# On the patch embedding the LayerNorm sees raw patches and divides by their standard deviation $\sigma$. An attack of
# $L_\infty$ radius $\varepsilon_\infty$ thus changes its output by up to about $\varepsilon_\infty / \sigma$: on flat
# patches the branch amplifies the attack. The table has the share of patches of dev images whose deviation is below
# each of the two radii. The effect on accuracy is the difference between all layers and `all but patch_embed`.

# %%
dev = load_data("cifar10").dev.subset(200, seed)
pictures, _ = next(iter(dev.batches(len(dev), image_size=vit.image_size)))
deviations = patchify(pictures, vit.patch_size).std(-1, correction=0).flatten()
flat = {f"{255 * eps:.3g}/255": (deviations < eps).double().mean().item() for eps in (attack_eps, other_eps)}
flatter = pd.DataFrame({"radius": flat.keys(), "flatter patches": flat.values()}).assign(patches=len(deviations))
flatter.style.format({"flatter patches": "{:.1%}"}).hide(axis="index")

# %%
rows_of([(name, "lnlora") for name in sections["layers"][1:]]).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (d) One branch on qkv, or three?
#
# timm fuses q, k and v into one layer; the branch on it shares one $A$ and one LayerNorm among the three. Whether paper
# B's code did so is unknown. Separate branches of the same rank have more parameters and those of one rank less have
# fewer, so the base lies between the two.

# %%
rows_of([(name, "lnlora") for name in apart]).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (e) The head
#
# The shipped checkpoint was trained on CIFAR-10, so its head fits. A checkpoint from other data needs a new head, as
# presumably in paper B, and then the first gradients that reach the branches come through random weights. RoLI (Hua et
# al., CVPR 2024) first trains the head alone, adversarially (linear probing), and reports gains of 3.88 points clean
# and 2.44 robust on average over five data sets. Here this probe takes as many steps as the run after it, so a new head
# with twice the steps is the fair comparison. `probe alone` is the model at the end of the probe.
#
# The figure shows all variants of (b) to (e) as paired differences to the base. Lines are intervals for new seeds and
# new images; thin ones, of a single run, over images alone. New heads have an axis of their own.

# %%
short = {"lora": "none, equal rank", matched: f"none, r = {matched_rank}"}
blocks = {"in front of A": ["lora", matched, *sections["norm"][2:]], "layers": sections["layers"][1:]}
blocks |= {"q, k, v": list(apart), "head": list(heads)}
color_of = dict(zip(blocks, palette, strict=False))


def draw_blocks(row_of_axes: Iterable[Axes], titles: list[str]) -> None:
    """Differences to the base, a panel a measure and a line a variant, under a heading a block."""
    for axis, measure in zip(row_of_axes, drawn, strict=True):
        ticks, place, reach = {}, 0, [0.0]
        for title in titles:
            ticks[place] = title
            for name in blocks[title]:
                place += 1
                ticks[place] = short.get(name, name.removeprefix("lnlora, "))
                row = paired.query("method == @name and against == 'lnlora' and measure == @measure")
                figures.intervals(axis, row, places=[place], color=color_of[title])
                ends = ["low", "high"] if row["n"].item() > 1 else ["images_low", "images_high"]
                reach += [end for end in (*row[ends].iloc[0], row["difference"].item()) if not np.isnan(end)]
            place += 1
        axis.set_yticks(list(ticks), ticks.values(), fontsize=7)
        spare = 0.05 * (max(reach) - min(reach)) or 0.05
        axis.set(ylim=(place - 0.4, -0.6), xlim=(min(reach) - spare, max(reach) + spare))
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
        axis.tick_params(axis="x", labelsize=6.5)
        axis.tick_params(axis="y", length=0, labelleft=measure == drawn[0])
        for text in axis.get_yticklabels():
            text.set_fontweight("bold" if text.get_text() in titles else "normal")


upper, lower = ["in front of A", "layers", "q, k, v"], ["head"]
heights = [sum(1 + len(blocks[title]) for title in titles) for titles in (upper, lower)]
figure, axes = figures.subplots(2, len(drawn), height=0.9 + 0.17 * sum(heights), height_ratios=heights)
draw_blocks(axes[0], upper)
draw_blocks(axes[1], lower)
for axis, measure in zip(axes[0], drawn, strict=True):
    axis.set_title(f"{titles_of[measure]}\n{size}", fontsize=8)
figure.supxlabel("accuracy minus that of the base, LNLoRA (points)", fontsize=8)
figures.save_figure(figure, "10_variants")

# %%
of_heads = [(name, "lnlora") for name in heads] + [("lnlora, probed head", name) for name in (*heads, "probe alone")]
rows_of([pair for pair in of_heads if pair in pairs]).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (f) The learning rate
#
# An adapter that trains fewer parameters needs another learning rate than all weights, and a comparison at one rate for
# all compares the rate. Every kind was trained at each, and takes the rate with the highest accuracy on dev under the
# attack of training; of equals the smallest. Test images play no part. Filled points mark the rate taken. A best rate
# at the end of its line says that the best is there or beyond.

# %%
if rates:
    figure, axes = figures.subplots(1, 2, height=2.4, sharex=True)
    titles = {"dev_robust": f"dev images, PGD {255 * attack_eps:.3g}/255", "dev_accuracy": "dev images, clean"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        for number, (kind, line) in enumerate(by_rate.groupby("arm", sort=False)):
            look = dict(color=palette[number], markersize=4)
            axis.plot(line["rate"], line[column], "o-", label=kind, markerfacecolor="white", **look)
            axis.plot(line.loc[line["chosen"], "rate"], line.loc[line["chosen"], column], "o", **look)
        axis.set_xscale("log")
        axis.set_xticks(sorted(rates), [f"{rate:g}" for rate in sorted(rates)])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        axis.set(xlabel="learning rate", title=f"{title}, first seed")
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=6, fontsize=7)
    figures.save_figure(figure, "10_rates")

# %% [markdown]
# ## The answer
#
# Paper B's ablations are unknown, so no claim is decided. The lines below say how each change of the adapter changes
# accuracy under the attack of training. All are exploratory and not corrected for their number.

# %%
from nullpaper.studies.verdicts import conclude

under_attack = paired[(paired["against"] == "lnlora") & (paired["measure"] == "pgd")]
for row in under_attack.itertuples():
    both = "no interval" if pd.isna(row.low) else f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    size = f"{row.n} seed{'s' * (row.n > 1)} x {row.images} images"
    print(f"{row.method} minus the base LNLoRA: {100 * row.difference:+.1f} {both} points ({size})")
resolved = [f"{row.method} {100 * row.difference:+.1f}" for row in under_attack.itertuples() if row.resolved]
small = variant_seeds < statistics.FEWEST_SEEDS
conclude(
    "What of FullLoRA's adapter matters?",
    f"Accuracy under PGD at {255 * attack_eps:.3g}/255 minus the base LNLoRA: {', '.join(resolved) or 'no interval excludes 0.'}"
    + " points; no other interval excludes 0." * bool(resolved)
    + " Too small to decide: the profile gpu is for that." * small,
    "longer runs, after which the order may be another, and a larger ViT.",
    f"{steps} steps of {batch_size} images, {images} test images, {variant_seeds} seed{'s' * (variant_seeds > 1)}, one ViT on CIFAR-10; no claim of a paper.",
)
