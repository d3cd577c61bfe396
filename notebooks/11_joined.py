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
# # 11 · Nullspace noise and LoRA together: what neither paper has
#
# Paper A finetunes all weights of a Vision Transformer on nullspace noise: the largest noise $v$ on the patch tokens
# $u$ of influence $\mathbb E\,\|\operatorname{softmax} F(u + v) - \operatorname{softmax} F(u)\|_2^2 \le \varepsilon$,
# with logits $F(u)$. Paper B (FullLoRA) finetunes adversarially, on attacked images, through low-rank branches with a
# LayerNorm in front (LNLoRA); all else but the head is frozen. Here they meet.
#
# | section | question | control | primary endpoint | least effect |
# |---|---|---|---|---|
# | (a) | does nullspace finetuning through LNLoRA do what it does in all weights? | `zero`: the same two branches without noise, through the same adapter | average of accuracy when clean, attacked and corrupted, through LNLoRA, `nullspace` minus `zero` | 2 points |
# | (b) | does nullspace noise add to adversarial training? | `pgd_at` alone | accuracy under PGD at `strong_eps` through LNLoRA, `pgd_at_nullspace` minus `pgd_at` | 2 points |
# | (c) | does robustness make nullspace? | standard finetuning of equal length; random noise at the same $\varepsilon$; equal confidence | logarithm of the norm of the largest noise after adversarial training at `strong_eps` over that after standard finetuning | a factor of 1.25 |
# | (c) | does nullspace make robustness? | `zero` | accuracy under PGD at `attack_eps`, `nullspace` minus `zero` in all weights | 2 points |
# | (d) | what is left of the exact nullspace of the patch embedding? | noise in all directions; subspaces drawn at random | share of three placements of the adapter that keep it | has to be 1 |
#
# The endpoints of (a) to (c) were declared before the runs; that of (d) is a count. Accuracies are in percent,
# differences in percentage points (points). Intervals are at 95 % and draw seeds and images anew. All other numbers are
# exploratory. PGD attacks take gradient steps on the pixels within an $L_\infty$ radius. `random` in (a) and
# `pgd_at_random` in (b) are the same with Gaussian noise at the same $\varepsilon$.
#
# Runs that differ in adapter also differ in learning rate, because low-rank branches that start at zero move less at
# the same rate. Where `rates` are given, every method takes its own of them through every adapter, by validation images
# (dev): in (a) the one with the highest average of clean, PGD and corruption accuracy, in (b) the one with the highest
# accuracy under the attack of training; of equal ones the smallest. Without them the rates are `learning_rate` and
# `adapter_learning_rate` in (a) and `studies.settings.RATES` in (b), which nothing here has chosen. Differences are
# taken within an adapter first, and then between adapters.
#
# Takes about 3 min at `cpu` on 2 cores after 07; needs CIFAR-10, which is fetched once, and no weights but those that
# travel with the package.

# %% tags=["parameters"]
images: int = 64  # test images
steps: int = 24  # gradient steps a run in (a)
adversarial_steps: int = 6  # gradient steps a run in (b)
steps_per_noise: int = 12  # steps between fresh noises
batch_size: int = 64  # images a step
noise_images: int = 400  # dev images behind a noise
noise_steps: int = 12  # steps of its synthesis
boundary_images: int = 400  # of dev and of test, on which the largest noise is measured in (c)
boundary_steps: int = 12  # steps of that measurement
attack_steps: int = 2  # steps of the attack in adversarial training
evaluation_steps: int = 20  # steps of PGD and CW at the end of (a); half of it in (b), twice in patch attacks
noises: list = ["nullspace", "zero"]  # methods of (a)
attacks: list = ["fgsm", "pgd", "pgd_strong"]  # at the end of (a), as in 07
attacked: list = ["pgd_at", "pgd_at_nullspace", "pgd_at_random"]  # methods of (b)
strong_attacks: list = ["pgd", "cw"]  # at strong_eps, at the end of (b)
corruptions: list = []  # names of those that models are judged under; empty: all 15
severities: list = [3]  # of the corruptions in (a); (b) takes the middle one
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
attack_eps: float = 0.00392156862745098  # L-infinity radius of the attacks in (a) in pixel units: 1/255, as in 07
strong_eps: float = 0.03137254901960784  # radius of adversarial training and of its attacks: 8/255
learning_rate: float = 0.0005  # peak, in all weights in (a), without rates
adapter_learning_rate: float = 0.0015  # peak, through LNLoRA in (a), without rates
rates: list = []  # peak learning rates of which every method of (a) takes its own through every adapter
adversarial_rates: list = []  # the same of (b)
rate_images: int = 64  # dev images that choose in (a)
adversarial_start: str = "vit_robust"  # where (b) starts: a short run from the standard start has 0 % at 8/255
radii: list = [0.03137254901960784]  # of adversarial training in (c), in pixel units; strong_eps among them
radius_steps: int = 6  # gradient steps a run there
radius_rate: float = 0.001  # peak learning rate there, one for all
seeds: int = 2  # runs a method
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nullpaper import load_data, patch_nullspace, statistics
from nullpaper.errors import InputError
from nullpaper.models.vit import ViT
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts, settings
from nullpaper.studies.boundary import confidence
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, TrialResult, boundary_norms, model_of, run_trials
from nullpaper.studies.verdicts import power
from nullpaper.workflow import figures
from nullpaper.workflow.store import stored

figures.use_style()
needed = {"noises": (noises, ("nullspace", "zero")), "attacked": (attacked, ("pgd_at", "pgd_at_nullspace"))}
needed |= {
    "attacks": (attacks, ("pgd",)),
    "strong_attacks": (strong_attacks, ("pgd",)),
    "radii": (radii, (strong_eps,)),
}
for name, (given, wanted) in needed.items():
    if lacking := [one for one in wanted if one not in given]:
        raise InputError(f"{name} lacks {lacking[0]!r}, which a claim is about: add it.")
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
    evaluation_steps=evaluation_steps,
    attacks=attacks,
    severities=severities,
    seed=seed,
)
boundary = replace(boundary, images=boundary_images, steps=boundary_steps)
protocol = replace(protocol, corruptions=tuple(corruptions) or protocol.corruptions)
run_seeds = range(seed, seed + seeds)
adapters = ["full", "lnlora"]


def grouped(planned: dict[str, list[Trial]], judged_on: Protocol, title: str) -> dict[str, list[TrialResult]]:
    """Finished trials by the name of their group, all run in one go."""
    trials = [trial for group in planned.values() for trial in group]
    done = iter(run_trials(trials, judged_on, workers=workers, progress=title))
    return {name: [next(done) for _ in group] for name, group in planned.items()}


def described(table: pd.DataFrame, groups: dict[str, list[TrialResult]]) -> pd.DataFrame:
    """A table of `contrasts.tabulate` that says what its groups are: ``run``, as in the paired table, and its parts."""
    table = table.rename(columns={"method": "run"})
    trials = [groups[name][0].trial for name in table["run"]]
    kinds = [name.partition(", ")[2] or "none" for name in table["run"]]
    parts = {"method": [t.method for t in trials], "adapter": kinds, "start": [t.start for t in trials]}
    for place, (name, column) in enumerate(parts.items(), 1):
        table.insert(place, name, column)
    return table.assign(steps=[t.steps for t in trials])


# %% [markdown]
# ## (a) Nullspace finetuning through LNLoRA
#
# Paper A's loss through LNLoRA: cross-entropy on clean and on noisy tokens. The question is put as differences:
# `nullspace` minus `zero` through each adapter, and the difference of these differences, that through LNLoRA minus that
# in all weights (`11_kept`). The bare difference `nullspace, lnlora` minus `nullspace, full` is in the table of pairs
# beside `zero, lnlora` minus `zero, full`, which has no noise in it.

# %%
given_rates = {"full": learning_rate, "lnlora": adapter_learning_rate}


def plain_trial(method: str, adapter: str, s: int, rate: float | None = None) -> Trial:
    """In all weights and without `rates` the run of 07, where that has these sizes."""
    changed = replace(recipe, learning_rate=rate or given_rates[adapter])
    if adapter == "full":
        return settings.nullspace_trial(method, s, steps, changed, None if rates else boundary)
    return Trial(method, s, steps, changed, adapter=settings.ADAPTERS[adapter])


def chosen(table: pd.DataFrame, title: str) -> dict[str, float]:
    """The rates that dev chose, whose table is kept."""
    figures.save_table(table, title, caption="Accuracy on dev images, by learning rate.")
    rates = settings.rates_of(table)
    if ends := [name for name, rate in rates.items() if rate in (table["rate"].min(), table["rate"].max())]:
        print(f"{'; '.join(ends)}: the best rate is the smallest or largest tried; a better one may lie beyond.")
    return rates


arms = {f"{m}, {a}": (m, a) for a in reversed(adapters) for m in noises}  # last those of 07, which may be at them
rate_of: dict[str, float] = {}
if rates:
    grid = {name: [plain_trial(*arm, seed, rate) for rate in sorted(rates)] for name, arm in arms.items()}
    mild = tuple(t for t in protocol.threats if t.eps == attack_eps and t.name.startswith(("fgsm", "pgd")))
    on_dev = replace(protocol, images=rate_images, threats=mild, severities=(3,), split="dev")
    rate_of = chosen(settings.best_on_average(grid, on_dev, attack_eps, workers=workers), "11_rates")
planned = {"start": [Trial("start")]}
planned |= {name: [plain_trial(*arm, s, rate_of.get(name)) for s in run_seeds] for name, arm in arms.items()}
plain = grouped(planned, protocol, "nullspace finetuning")
plain_pairs = [(f"nullspace, {a}", f"{other}, {a}") for a in adapters for other in noises if other != "nullspace"]
plain_pairs += [(f"{m}, lnlora", f"{m}, full") for m in noises] + [(name, "start") for name in planned if "," in name]
plain_table = described(contrasts.tabulate(plain, attack_eps), plain)
plain_paired = contrasts.contrast(plain, plain_pairs, attack_eps).assign(steps=steps)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a group: percent, with the interval for new seeds and images, or over images where there is one run."""
    texts = table.assign(text=table.apply(contrasts.in_percent, axis=1)).pivot(
        index="run", columns="measure", values="text"
    )
    return texts.loc[[*dict.fromkeys(table["run"])], [*dict.fromkeys(table["measure"])]]


wide(plain_table)

# %% [markdown]
# ## (b) Adversarial training and nullspace noise
#
# `pgd_at` is adversarial training by Madry et al. `pgd_at_nullspace` applies paper A's two branches to its attacked
# images: $\ell(F(u'), y) + \ell(F(u' + v^*), y)$, where $\ell$ is the cross-entropy, $y$ the label, $u'$ the tokens of
# the attacked image and $v^*$ the nullspace noise. Without noise the two branches are equal, and their mean is the loss
# of `pgd_at`, which is therefore the control.
#
# All start from an adversarially trained checkpoint, so that robustness at 8/255 can rise and fall. The start is a row
# too, since a few more steps may do nothing or harm. Two more runs of `pgd_at`, through plain LoRA and through LNLoRA
# in the blocks alone, are for section (d).

# %%
in_blocks = AdapterSpec("lnlora", settings.RANK, targets=("qkv", "proj", "fc1", "fc2"))
extra = {"pgd_at, lora": settings.ADAPTERS["lora"], "pgd_at, lnlora in blocks": in_blocks}


def adversarial_trial(method: str, adapter: str | AdapterSpec, s: int, rate: float | None = None) -> Trial:
    changed = replace(recipe, dev_images=min(1_000, 2 * images), last=True)
    given = dict(adapter=adapter, start=adversarial_start, rate=rate)
    return settings.adversarial_trial(method, s, adversarial_steps, changed, **given)


n, middle = -(-evaluation_steps // 2), severities[len(severities) // 2]
threats = (Threat(f"pgd-{n}", attack_eps), *(Threat(f"{name}-{n}", strong_eps) for name in strong_attacks))
harder = Protocol(images, threats, protocol.corruptions, (middle,), seed)
arms = {f"{m}, {a}": (m, a) for a in adapters for m in attacked}
rate_of = {}
if adversarial_rates:
    grid = {name: [adversarial_trial(*arm, seed, rate) for rate in adversarial_rates] for name, arm in arms.items()}
    rate_of = chosen(settings.best_under_attack(grid, workers=workers), "11_adversarial_rates")
planned = {"robust start": [Trial("start", start=adversarial_start)]}
planned |= {name: [adversarial_trial(*arm, s, rate_of.get(name)) for s in run_seeds] for name, arm in arms.items()}
planned |= {
    name: [adversarial_trial("pgd_at", through, seed, rate_of.get("pgd_at, lnlora"))] for name, through in extra.items()
}
robust = grouped(planned, harder, "adversarial finetuning")
controls = [name for name in attacked if name != "pgd_at_nullspace"]
robust_pairs = [(f"pgd_at_nullspace, {a}", f"{other}, {a}") for a in adapters for other in controls]
robust_pairs += [(f"{m}, lnlora", f"{m}, full") for m in attacked]
robust_pairs += [(f"{m}, {a}", "robust start") for a in adapters for m in attacked]
other_average = "measure != 'average'"  # it would be over other measures than in (a)
robust_table = described(contrasts.tabulate(robust, attack_eps), robust).query(other_average)
robust_paired = contrasts.contrast(robust, robust_pairs, attack_eps).query(other_average)

groups = plain | robust
table = pd.concat([plain_table, robust_table], ignore_index=True)
paired = pd.concat([plain_paired, robust_paired.assign(steps=adversarial_steps)], ignore_index=True)
figures.save_table(table, "11_table", caption="Accuracy after finetuning through adapters.")
figures.save_table(paired, "11_paired", caption="Paired differences in accuracy.")
asked = {"nullspace, lnlora": ("zero, lnlora", "average"), "nullspace, full": ("zero, full", "pgd")}
asked["pgd_at_nullspace, lnlora"] = "pgd_at, lnlora", f"pgd {255 * strong_eps:.3g}/255"
for name, (against, measure) in asked.items():
    pilot = contrasts.differences(groups, name, against, measure, attack_eps)
    if len(pilot) > 1:
        print(f"{name} minus {against}, {measure}: {power(pilot, 0.02)}")
wide(robust_table)

# %% [markdown]
# **Differences.** Each row of the figure is what nullspace noise adds to the control on the left, through each adapter,
# on the same images, with the interval for new seeds and new images. Black is LNLoRA's difference minus that in all
# weights: to the left of zero, less is added through LNLoRA. Nothing but the primary endpoints is corrected for the
# number of comparisons. The upper panels are (a), with PGD at `attack_eps`; the lower ones (b), at the radius named.


# %%
def kept(groups: dict[str, list[TrialResult]], method: str, against: str) -> pd.DataFrame:
    """The gain through LNLoRA minus the gain in all weights."""
    first, second = ((f"{method}, {adapter}", f"{against}, {adapter}") for adapter in ("lnlora", "full"))
    return contrasts.contrast_of(groups, first, second, attack_eps).assign(gain=f"{method} minus {against}")


of_plain = [kept(plain, "nullspace", other) for other in noises if other != "nullspace"]
of_robust = [kept(robust, "pgd_at_nullspace", other).query(other_average) for other in controls]
more = pd.concat([*of_plain, *of_robust], ignore_index=True)
figures.save_table(more, "11_kept", caption="Gain through LNLoRA minus gain in all weights.")

colors = {"full": sns.color_palette()[0], "lnlora": sns.color_palette()[1], "lnlora minus full": (0.1,) * 3}


def draw(axis: Axes, measure: str, method: str, controls: Sequence[str]) -> None:
    """What ``method`` adds to each control, a row a control."""
    reach = 0.0
    for place, control in enumerate(controls):
        for lift, (kind, color) in zip((-0.25, 0, 0.25), colors.items(), strict=True):
            if kind in adapters:
                rows = paired[(paired["method"] == f"{method}, {kind}") & (paired["against"] == f"{control}, {kind}")]
            else:
                rows = more[more["gain"] == f"{method} minus {control}"]
            row = rows[rows["measure"] == measure].iloc[0]
            ends = [row["low"], row["high"]] if row["n"] >= statistics.FEWEST_SEEDS else [row["difference"]] * 2
            axis.plot(ends, [place + lift] * 2, color=color)
            axis.plot(row["difference"], place + lift, "o", markersize=4, color=color)
            reach = max(reach, *np.abs([*ends, row["difference"]]))
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set_xlim(-1.15 * reach - 0.005, 1.15 * reach + 0.005)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axis.tick_params(labelsize=6.5)
    axis.tick_params(axis="y", length=0)
    axis.set_yticks(range(len(controls)), [f"{method}\nminus\n{control}" for control in controls], fontsize=6)
    axis.set_ylim(len(controls) - 0.5, -0.5)
    axis.set_title(f"{measure}\n{row['n']} seed{'s' * bool(row['n'] > 1)} x {row['images']} images", fontsize=7)


strong = f"{255 * strong_eps:.3g}/255"
drawn = [("nullspace", [name for name in noises if name != "nullspace"], ["clean", "pgd", "average"])]
drawn += [("pgd_at_nullspace", controls, ["clean", f"pgd {strong}", "corruptions"])]
figure, axes = figures.subplots(2, 3, height=3.6, sharey="row")
for line, (method, against, measures) in zip(axes, drawn, strict=True):
    for axis, measure in zip(line, measures, strict=True):
        draw(axis, measure, method, against)
figure.supxlabel("difference in accuracy (points)", fontsize=8)
handles = [Line2D([], [], color=color, marker="o", label=name) for name, color in colors.items()]
figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=7)
figures.save_figure(figure, "11_differences")
more[more["measure"].isin(["clean", "pgd", f"pgd {strong}", "corruptions"])].style.format(precision=4).hide(
    axis="index"
)

# %% [markdown]
# ## (c) The arrow reversed: does robustness make nullspace, or nullspace robustness?
#
# Paper A goes from a large approximate nullspace to robustness. A robust model may as well *have* a large one because
# it is robust. Both directions are tested from one start: adversarial training in all weights at growing radii, beside
# standard finetuning of equal length (radius 0), and nullspace finetuning beside noise 0.
#
# The norm is that of the largest noise on the tokens within $\varepsilon$, every token of one norm, found and verified
# by one protocol for all weights. As $\varepsilon$ bounds a distance between probabilities, and an adversarially
# trained model is less sure of everything, that model takes larger noise for this reason alone. So first the logits of
# every model are divided by the temperature that makes its mean confidence on dev that of the start, which changes no
# prediction. Beside it stands the largest Gaussian noise: a model that reacts less to everything, or that scales its
# tokens up, gains on both. Only a learned norm that grows by more than the random one says that directions to ignore
# were gained.
#
# Every seed has its own images and draws, so an interval over seeds (Student's t) has both sources of chance. `growth`
# is the norm over that of the start, by seed; `ratio` the largest found over the Gaussian one; `reached` the share of
# noises that test images verified to be within $\varepsilon$. The others stay in the means. The two starts are one
# model each.

# %%
cifar = load_data("cifar10")
level = confidence(model_of(groups["start"][0]), cifar, boundary_images)
matched = replace(boundary, confidence=level)
mild_only = Protocol(images, (Threat(f"pgd-{n}", attack_eps),), seed=seed)


def radius_trial(radius: float, s: int) -> Trial:
    changed = replace(recipe, attack_eps=radius, dev_images=min(1_000, 2 * images), last=True)
    options = dict(adapter="full", rate=radius_rate, boundary=replace(matched, seed=s))
    return settings.adversarial_trial("pgd_at" if radius else "standard", s, radius_steps, changed, **options)


def name_of(radius: float) -> str:
    return f"pgd_at {255 * radius:.3g}/255" if radius else "standard"


radius_of = {name_of(radius): radius for radius in (0.0, *sorted(radii))}
by_radius = grouped(
    {name: [radius_trial(radius, s) for s in run_seeds] for name, radius in radius_of.items()}, mild_only, "radii"
)
sized = ["start", *by_radius, *(f"{m}, {a}" for m in ("zero", "nullspace") for a in adapters)]
sized += ["robust start", *(f"pgd_at, {a}" for a in adapters)]
of_run = groups | by_radius
asked = [(name, s) for name in sized for s in run_seeds]
jobs = [(of_run[name][(s - seed) % len(of_run[name])], replace(matched, seed=s)) for name, s in asked]
norms = pd.concat([pd.DataFrame(asked, columns=["run", "seed"]), boundary_norms(jobs, workers=workers)], axis=1)
for name in ("norm", "norm_random"):
    first = norms[norms["run"].isin(["start", "robust start"])].set_index(["run", "seed"])[name]
    base = np.where(norms["run"].isin(robust) & (norms["run"] != "robust start"), "robust start", "start")
    norms[name.replace("norm", "growth")] = norms[name] / [first[key] for key in zip(base, norms["seed"], strict=True)]
norms["ratio"] = norms["norm"] / norms["norm_random"]
figures.save_table(norms, "11_norm_by_seed", caption="Norm of the largest noise within eps, by seed.")

rows = []
for name in sized:
    by_seed, (method, _, adapter) = norms[norms["run"] == name], name.partition(", ")
    row = {"run": name, "method": method, "adapter": adapter or "none"}
    for column in ("norm", "norm_random", "growth", "growth_random", "ratio"):
        row |= statistics.over_seeds(by_seed[column]).columns(column)
    right = contrasts.tabulate({name: of_run[name]}, attack_eps).query("measure == 'pgd'")["value"].item()
    rows.append(
        row | {"reached": by_seed["norm_reached"].mean(), "temperature": by_seed["temperature"].mean(), "pgd": right}
    )
sizes = pd.DataFrame(rows).assign(images=boundary_images, confidence=level)
figures.save_table(sizes, "11_norm", caption="Norm of the largest noise within eps, at equal confidence.")
along = pd.DataFrame(
    {"run": name, "seed": run.trial.seed, **record}
    for name, runs in by_radius.items()
    for run in runs
    for record in run.history
    if "norm" in record
)[["run", "seed", "step", "norm", "norm_random", "temperature"]]
figures.save_table(along, "11_along", caption="Norm of the largest noise within eps along training.")

figure, (left, right) = figures.subplots(1, 2, height=3.0, width_ratios=(1, 1.3))
for name, line in along.groupby("run", sort=False):
    by_step = line.groupby("step")[["norm", "norm_random"]].mean()
    shade = sns.color_palette("viridis", len(radius_of))[list(radius_of).index(name)]
    left.plot(by_step.index, by_step["norm"], "o-", markersize=3, color=shade, label=name)
    left.plot(by_step.index, by_step["norm_random"], "s--", markersize=3, color=shade, fillstyle="none")
left.set(xlabel="step", ylabel=rf"norm at $\varepsilon$ = {eps:g}", ylim=(0, None))
left.set_title(f"{seeds} seed{'s' * (seeds > 1)}, {boundary_images} images each", fontsize=8)
left.xaxis.set_major_locator(MaxNLocator(4, integer=True))
left.legend(fontsize=6)
kinds = {"": ("largest found", "o", "full"), "_random": ("Gaussian", "s", "none")}
listed = sizes[~sizes["run"].isin(["start"])].reset_index(drop=True)
for lift, (suffix, (_, marker, fill)) in zip((-0.15, 0.15), kinds.items(), strict=True):
    look = dict(marker=marker, fillstyle=fill, color=sns.color_palette()[0 if not suffix else 1], markersize=4)
    places = [place + lift for place in range(len(listed))]
    figures.intervals(right, listed, places=places, value=f"growth{suffix}", thin=None, zero=None, **look)
right.axvline(1, color="0.6", linewidth=0.8, zorder=0)
right.set_yticks(range(len(listed)), listed["run"], fontsize=7)
right.set_xlabel("norm relative to its start")
right.tick_params(axis="y", length=0)
right.invert_yaxis()
handles = [Line2D([], [], color="0.2", linestyle="", marker=m, fillstyle=f, label=t) for t, m, f in kinds.values()]
figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7)
figures.save_figure(figure, "11_norm")
sizes.style.format(precision=2).hide(axis="index")

# %% [markdown]
# ## (d) What is left of the exact nullspace?
#
# No later layer can see pixels that the patch embedding maps to zero. Finetuning in all weights keeps the dimension of
# this nullspace and may turn it. Plain LoRA of rank $r$ on the embedding keeps at least what both $W_0$ (the frozen
# weights) and $A$ (the branch's first matrix) ignore, so at least $k - r$ of the start's $k$ dimensions stay. LNLoRA on
# it normalises the patch first, so the embedding is not linear and no subspace is invisible in all images. LNLoRA in
# the blocks alone leaves the embedding, and with it the nullspace, as it was: noise made for the base then passes all
# models that share it.
#
# `overlap` is the mean squared cosine of the principal angles to the start's nullspace (`chance` for subspaces at
# random). `seen` is how much noise drawn in the start's nullspace moves the tokens, divided by how much noise of its
# norm in all directions moves them, on test images: it needs no linear map. All are of the first seed.

# %%
base, probe = model_of(groups["start"][0]), torch.Generator().manual_seed(seed)
images_64 = cifar.test.subset(64, seed).batches(64, image_size=base.image_size, device=base.mean.device)
pictures, _ = next(iter(images_64))


def movement(model: ViT, noise: torch.Tensor) -> float:
    """How far noise moves the tokens of all pictures."""
    with torch.no_grad():
        clean, noisy = (model.embed(batch).double() for batch in (pictures, pictures + noise.to(pictures)))
    return (noisy - clean).norm().item()


def exact(name: str, run: TrialResult, first: TrialResult) -> dict[str, object]:
    """A row of the table: what the model of ``run`` keeps of the nullspace of ``first``."""
    model, begun = model_of(run), patch_nullspace(model_of(first))
    noise = begun.sample(pictures.shape, norm=1.0, generator=probe)
    other = torch.randn(pictures.shape, generator=probe)
    other /= other.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    row = {"model": name, "start": first.trial.start, "dimension": 0, "overlap": float("nan")}
    row |= {"chance": begun.dim / len(begun.basis), "seen": movement(model, noise) / movement(model, other), "note": ""}
    try:
        space = patch_nullspace(model)
    except InputError as refusal:
        return row | {"note": str(refusal)}
    shared = (begun.basis.T @ space.basis).square().sum().item() / min(begun.dim, space.dim)
    return row | {"dimension": space.dim, "overlap": shared}


named = ["start", "zero, full", "zero, lnlora", "robust start", "pgd_at, full", "pgd_at, lnlora", *extra]


def exact_rows() -> list[dict[str, object]]:
    rows = [exact(name, groups[name][0], groups["robust start" if name in robust else "start"][0]) for name in named]
    return rows[:4] + [exact("robust start, against start", groups["robust start"][0], groups["start"][0])] + rows[4:]


compared = {"weights": [groups[name][0].weights.fingerprint for name in ("start", *named)], "seed": seed}
exact_space = pd.DataFrame(stored("exact_space", compared, exact_rows, data=cifar.identity).metrics)
figures.save_table(exact_space, "11_exact", caption="Exact nullspace of the patch embedding after finetuning.")
exact_space.style.format(precision=6, na_rep="").hide(axis="index")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import Endpoint, Verdicts, endpoint, number, row, word

answer = Verdicts()
LEAST, FACTOR = 0.02, 1.25  # accuracy, and a ratio of norms: less does not matter
STRONG, MILD = f"{255 * strong_eps:.3g}/255", f"{255 * attack_eps:.3g}/255"


def texts_of(method: str, against: str, measures: Sequence[str]) -> str:
    """Further differences in words; nothing is decided by them."""
    found = [(name, endpoint(paired, method, against, name, least=LEAST)) for name in measures]
    return ", ".join(f"{name} {gain.in_points()}" for name, gain in found)


@answer.claim(
    "",
    "",
    "nullspace noise helps where only LNLoRA is trained",
    where="11 (a)",
    criterion="holds if the 95 % interval of nullspace minus zero, average accuracy through LNLoRA, is above 0 and "
    "reaches 2 points, does not hold if all of it is below 2 points",
    endpoint="average of accuracy when clean, attacked and corrupted, through LNLoRA, nullspace minus zero",
)
def nullspace_through_adapter() -> tuple[str, str, Endpoint]:
    pair = "nullspace, lnlora", "zero, lnlora"
    gain = endpoint(paired, *pair, "average", least=LEAST)
    return f"{gain.in_points()}; {texts_of(*pair, ('clean', 'pgd', 'corruptions'))}", gain.word, gain


@answer.claim(
    "",
    "",
    "nullspace noise adds to adversarial training",
    where="11 (b)",
    criterion=f"holds if the 95 % interval of pgd_at_nullspace minus pgd_at, PGD accuracy at {STRONG} through LNLoRA, is above 0 and "
    "reaches 2 points, does not hold if all of it is below 2 points",
    endpoint=f"PGD accuracy at {STRONG} through LNLoRA, pgd_at_nullspace minus pgd_at",
)
def joined() -> tuple[str, str, Endpoint]:
    name = f"pgd {STRONG}"
    gain = endpoint(paired, "pgd_at_nullspace, lnlora", "pgd_at, lnlora", name, least=LEAST)
    in_full = endpoint(paired, "pgd_at_nullspace, full", "pgd_at, full", name, least=LEAST)
    return f"{gain.in_points()}; in all weights {in_full.in_points()}", gain.word, gain


def log_ratio(column: str, first: str, second: str) -> np.ndarray:
    """Of a number of `norms` for two runs, by seed."""
    by_seed = norms.pivot(index="seed", columns="run", values=column)
    return np.log(by_seed[first] / by_seed[second]).to_numpy()


@answer.claim(
    "",
    "",
    "robustness makes nullspace: adversarial training enlarges the approximate nullspace",
    where="11 (c)",
    criterion=f"holds if at equal confidence the 95 % interval of the norm at eps after adversarial training at {STRONG} over that "
    f"after standard finetuning is above 1 and reaches {FACTOR:g}, does not hold if all of it is below {FACTOR:g}",
    endpoint=f"logarithm of the norm of the largest noise within eps, after adversarial training at {STRONG} over that after standard "
    "finetuning of equal length",
)
def robustness_makes_nullspace() -> tuple[str, str, Endpoint]:
    pair = f"pgd_at {STRONG}", "standard"
    gain = Endpoint.over_seeds(log_ratio("norm", *pair), float(np.log(FACTOR)), boundary_images)
    noisy = Endpoint.over_seeds(log_ratio("norm_random", *pair), gain.least)
    longer, random = (
        statistics.Interval(*np.exp([one.value, one.low, one.high]), int(one.n_seeds)) for one in (gain, noisy)
    )
    alone = sizes[(sizes["run"] == "standard") | sizes["run"].str.startswith("pgd_at ")]
    others = ", ".join(f"{name} x {growth:.2f}" for name, growth in zip(alone["run"], alone["growth"], strict=True))
    measured = f"x {number(longer, '.2f', 'seeds')}, Gaussian x {number(random, '.2f', None)}; over the start: {others}"
    return measured, gain.word, gain


@answer.claim(
    "",
    "",
    "nullspace makes robustness: finetuning on nullspace noise makes robust where the same without noise does not",
    where="11 (c)",
    criterion=f"holds if the 95 % interval of nullspace minus zero, PGD accuracy at {MILD} in all weights, is above 0 and "
    "reaches 2 points, does not hold if all of it is below 2 points",
    endpoint=f"PGD accuracy at {MILD} in all weights, nullspace minus zero",
)
def nullspace_makes_robustness() -> tuple[str, str, Endpoint]:
    gain = endpoint(paired, "nullspace, full", "zero, full", "pgd", least=LEAST)
    values = np.exp(log_ratio("norm", "nullspace, full", "zero, full"))
    return f"{gain.in_points()}, while its norm at eps is x {values.mean():.2f} that of zero", gain.word, gain


def is_same_space(line: pd.Series, first: pd.Series) -> bool:
    return bool(line["dimension"] == first["dimension"] and line["overlap"] > 1 - 1e-6)


@answer.claim(
    "",
    "",
    "an adapter leaves the exact nullspace of the patch embedding as it was",
    where="11 (d)",
    criterion="holds if dimension and subspace stay the same with LoRA and with LNLoRA in all layers and with LNLoRA in the "
    "blocks alone; in part if with some of the three",
    endpoint="share of three placements of an adapter that keep the nullspace (a count), to be 1",
)
def exact_nullspace_kept() -> tuple[str, str, Endpoint]:
    titles = {"pgd_at, lora": "LoRA in all layers", "pgd_at, lnlora": "LNLoRA in all layers"}
    titles |= {"pgd_at, lnlora in blocks": "LNLoRA in the blocks alone"}
    lines, first = {name: row(exact_space, model=name) for name in titles}, row(exact_space, model="robust start")
    kept = [is_same_space(line, first) for line in lines.values()]
    texts = (
        f"{titles[name]} {line['dimension']} dimensions"
        + (f" (overlap {line['overlap']:.3f})" if line["dimension"] else ", the embedding is not linear")
        for name, line in lines.items()
    )
    return f"of {first['dimension']}: {'; '.join(texts)}", word(all(kept), any(kept)), Endpoint(sum(kept) / len(kept))


figures.save_table(answer.table(), "11_verdicts", caption="Nullspace noise and adapters together.")
gain = row(answer.table(), name="robustness_makes_nullspace")
back = row(answer.table(), name="nullspace_makes_robustness")
answer.show(
    f"{steps} steps in (a), {adversarial_steps} in (b), {radius_steps} in (c), of {batch_size} images; {images} test images and "
    f"{seeds} seed{'s' * (seeds > 1)}, one ViT on CIFAR-10.{' Too small to decide: the profile gpu is for that.' * (seeds < 3)}",
    question="Do nullspace noise and adapters help each other, and does robustness make nullspace or nullspace robustness?",
    answer=f"Adversarial training changes the norm at eps by a factor of {np.exp(gain['value']):.2f} ({gain['holds']}); "
    f"nullspace finetuning changes PGD accuracy by {100 * back['value']:+.1f} points ({back['holds']}).",
    would_change="longer runs, other architectures, or models made equal in more than their mean confidence.",
)
