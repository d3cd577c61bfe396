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
# # 09 · Is adversarial finetuning of 5 % of the parameters as good as of all of them?
#
# Adversarial training is training on attacked images. Paper B (FullLoRA-AT) freezes a pretrained Vision Transformer and
# trains in this way low-rank branches (LoRA) in *all* of its linear layers, with a learnable LayerNorm (LN) in front of
# each branch. For a layer with frozen weights $W_0$, bias $b$ and input $x$, and branches $A$, $B$ of rank $r$ and
# scale $\alpha$:
#
# $$y = W_0 x + b + \tfrac{\alpha}{r}\, B A\, \mathrm{LN}_{\gamma, \beta}(x), \qquad B = 0 \ \text{at the start}.$$
#
# Its abstract claims a robustness comparable to adversarial training of all weights with about 5 % of the parameters,
# and less storage and training time. Only the abstract and the openings of both versions could be read. Rank, $\alpha$,
# learning rate, schedule, attack, targets inside the blocks and all numbers of its tables are unknown to us. What
# follows is *our* instantiation, and no number here reproduces one of theirs.
#
# | adapter | what trains, besides the head |
# |---|---|
# | `full` | all weights: the comparison that the claim is about |
# | `lnlora` | paper B: LayerNorm + LoRA in the patch embedding, qkv, proj, fc1, fc2 of all blocks |
# | `lora` | the same without the LayerNorm: is it needed? |
# | `bitfit`, `layernorm` | all biases; the LayerNorms that are there already |
# | `linear` | nothing but the head |
#
# All share start, batches, seeds, steps, schedule and attack. With `rates`, each has its own learning rate, chosen on
# validation images (dev) under attack. We measure accuracy in percent on clean and on attacked test images; differences
# are in percentage points. The attack is PGD: gradient steps on the pixels, within an $L_\infty$ radius.
#
# There are two starts. From a *standardly* trained start, parameter-efficient adversarial training is reported to stay
# behind; from a *robust* start even a linear probe can win (RoLI, Hua et al., CVPR 2024). The starts are the shipped
# checkpoint, and `vit_robust`, which was adversarially trained at 8/255 in all weights for 1,500 steps.
#
# **Primary endpoints**, declared before the runs. Intervals are at 95 %, and draw seeds and images anew, both. All
# other numbers are exploratory.
#
# | question | primary endpoint | bound |
# |---|---|---|
# | is LNLoRA as robust as all weights? | accuracy under PGD at `attack_eps`, standard start, LNLoRA minus full | not worse by 2 points: comparable |
# | does the LayerNorm help? | the same, LNLoRA minus LoRA of its rank | 2 points would matter |
# | is a linear probe enough on a robust start? | accuracy under PGD at the radius of that start, linear probe minus full | not worse by 2 points: enough |
# | does LayerNorm move more than other parameters? | ratio of ratios in (e) | a factor of 1.25 would matter |
#
# Sections: (a) parameters and storage, (b) memory and time, (c) runs, (d) robustness against parameters, (e) LayerNorm,
# (f) long runs.
#
# Takes about 5 min at `cpu` on 2 cores. It needs CIFAR-10, which is fetched once, and no weights but those that travel
# with the package. `model`, `weights`, `data` and `root` choose another ViT and other photographs, such as Imagenette,
# the third data set of paper B. A model of ImageNet's 1,000 classes keeps its head, of which the rows of the data's
# classes answer. A robust start and runs of 1,500 steps are there for the shipped model alone; with others (f) is left
# out.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # a ViT of this package or of timm
weights: str = ""  # a file of weights for it; empty: what ships, or timm's hub
data: str = "cifar10"  # a data set that load_data knows, or a folder of class folders
root: str = ""  # the folder of its photographs; empty: fetched where a fetch exists
images: int = 48  # test images
steps: int = 10  # gradient steps a run
batch_size: int = 64  # images a step
robust_steps: int = 10  # gradient steps a run from the robust start
rounds: int = 1  # looks at dev in a run
dev_images: int = 0  # of dev, for these looks; 0: twice as many as of test
attack_steps: int = 2  # steps of the attack in training
evaluation_steps: int = 20  # steps of PGD and CW at the end
attacks: list = ["pgd", "cw"]  # at the end; claims are decided by the first
attack_eps: float = 0.00784313725490196  # L-infinity radius from the standard start, in pixel units: 2/255
robust_eps: float = 0.03137254901960784  # the same from the robust start: 8/255, at which it was trained
other_eps: float = 0.03137254901960784  # a second radius of PGD at the end; 0: none
methods: list = ["pgd_at", "trades"]  # of adversarial training
robust_methods: list = ["pgd_at"]  # those of them that the robust start is run with too
adapters: list = ["full", "lnlora", "lora", "bitfit", "layernorm", "linear"]  # names of the table above
robust_adapters: list = ["full", "lnlora", "linear"]  # from the robust start
starts: list = ["standard", "robust"]  # the second of the shipped model alone
more_data: list = []  # further data sets, such as cifar100; other classes than the start's get a new head
rank: int = 3  # of the branches: about 5 % of the shipped ViT's parameters
wide_rank: int = 16  # the same for other models: 5 % of ViT-S
rates: list = []  # peak learning rates of which every adapter takes its own at every start, by dev; empty: RATES
rate_steps: int = 10  # gradient steps of the runs that choose
robust_rate_steps: int = 10  # the same from the robust start
autoattack_methods: list = ["pgd_at"]  # those of the methods that AutoAttack is run against
autoattack_adapters: list = ["full", "lnlora"]
autoattack_starts: list = ["standard", "robust"]
autoattack_steps: int = 5  # of each attack in AutoAttack, 100 being standard
autoattack_images: int = 10  # test images under AutoAttack
long_images: int = 128  # test images of section (f)
cost_models: list = ["nullpaper_vit_cifar10"]  # ViTs of section (b)
cost_batch: int = 32  # images a step there; an eighth of them for other models than the shipped one
repeats: int = 4  # timed steps an adapter
seeds: int = 2  # runs of full and lnlora from the standard start, on which the claim rests
other_seeds: int = 2  # runs of everything else
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
import contextlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from torch import nn

from nullpaper import load_data, load_vit, statistics
from nullpaper.adapters import inject
from nullpaper.errors import InputError
from nullpaper.finetuning import costs
from nullpaper.models.vit import SHIPPED, ViT, fingerprint
from nullpaper.robustness import gradient_masking
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts, settings
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, TrialResult, model_of, run_trials, start_of
from nullpaper.studies.verdicts import power
from nullpaper.workflow import figures
from nullpaper.workflow.provenance import device_name
from nullpaper.workflow.store import stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
given_names = {"adapters": adapters, "robust_adapters": robust_adapters, "autoattack_adapters": autoattack_adapters}
choices = [(name, given, settings.ADAPTERS) for name, given in given_names.items()]
for name, given, allowed in (*choices, ("starts", starts, settings.STARTS)):
    if wrong := [item for item in given if item not in allowed]:
        raise InputError(f"{name}: '{wrong[0]}' is unknown; choose from {', '.join(allowed)}.")
for name, given in (("adapters", adapters), ("robust_adapters", robust_adapters)):
    if "full" not in given:
        raise InputError(f"{name} lacks 'full', which all others are compared with: add it.")
if other_seeds > seeds:
    raise InputError(f"other_seeds={other_seeds} exceeds seeds={seeds}, with which all are compared: lower it.")
is_shipped = model == SHIPPED and not weights  # the model that has a robust start and long runs
if "robust" in starts and not is_shipped:
    raise InputError(f"starts: the robust start is a checkpoint of {SHIPPED}, and {model} has none: leave it out.")
kinds_of = {"standard": [name for name in settings.ADAPTERS if name in adapters]}
kinds_of["robust"] = [name for name in settings.ADAPTERS if name in robust_adapters]
kinds = [name for name in settings.ADAPTERS if any(name in kinds_of[label] for label in starts)]
eps_of = {"standard": attack_eps, "robust": robust_eps}
steps_of = {"standard": steps, "robust": robust_steps}
colors = dict(zip(settings.ADAPTERS, sns.color_palette("colorblind", len(settings.ADAPTERS)), strict=True))
colors |= {"full": (0.2,) * 3, "start": (0.6,) * 3}


def radius(eps: float) -> str:
    return f"{255 * eps:.3g}/255"


def spec_of(name: str, wide: bool) -> AdapterSpec | None:
    """The adapter of that name, at the rank that gives about 5 % of the model's parameters."""
    spec = settings.ADAPTERS[name]
    return replace(spec, r=wide_rank if wide else rank) if name in ("lora", "lnlora") else spec


def adapted(vit: ViT, name: str, wide: bool) -> ViT:
    """A copy with that adapter; the model itself for ``full``."""
    spec = spec_of(name, wide)
    return vit if spec is None else inject.adapted_copy(vit, spec.options(), seed)


# %% [markdown]
# ## The plan
#
# The runs of section (c), before anything is run: `nullpaper run 09_fulllora --dry-run` says what they cost.

# %% tags=["plan"]
vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
print(f"{vit.name}: {vit.grid_size[0]} x {vit.grid_size[1]} tokens of width {vit.embed_dim}, {vit.num_classes} classes")
print(photos)
setting_of = {
    label: settings.adversarial_setting(
        images=images,
        steps=steps_of[label],
        batch_size=batch_size,
        rounds=rounds,
        dev_images=dev_images,
        attack_eps=eps_of[label],
        other_eps=other_eps,
        attacks=attacks,
        attack_steps=attack_steps,
        evaluation_steps=evaluation_steps,
        seed=seed,
        noise_images=1_000 if len(photos.dev) > 2_000 else 0,  # set aside for 11, which finds these runs; none of few
    )
    for label in settings.STARTS
}
recipe, _ = setting_of["standard"]


def losses(label: str) -> list[str]:
    """The losses that a start is run with."""
    return [name for name in methods if label == "standard" or name in robust_methods]


data_sets = [data, *more_data]
named = {dataset: Path(dataset).name for dataset in data_sets}  # what a table says of a folder
begun: dict[tuple[str, str], dict[str, str | None]] = {}  # where the runs of a data set begin
for dataset in data_sets:
    for label in starts:
        begin = model if label == "standard" else settings.STARTS[label]
        begun[dataset, label] = dict(
            start=begin, weights=weights or None, data=dataset, root=root if dataset == data else ""
        )


def trial_of(key: tuple[str, str], method: str, name: str, s: int, rate: float | None, length: int = 0) -> Trial:
    label = key[1]
    options = dict(adapter=spec_of(name, wide=model != SHIPPED), rate=rate, **begun[key])
    return settings.adversarial_trial(method, s, length or steps_of[label], setting_of[label][0], **options)


def seeds_of(label: str, name: str) -> range:
    """Of the runs of an adapter."""
    return range(seed, seed + (seeds if label == "standard" and name in ("full", "lnlora") else other_seeds))


Key = tuple[str, str, str, str]  # data, start, loss and adapter
Rates = dict[str, float]  # by start and adapter, as in "standard, full"; RATES where there is none


def planned_at(rates: Rates) -> tuple[dict[Key, list[Trial]], dict[Key, list[Trial]]]:
    """The runs of (c), and the control of (e)."""

    def runs_of(*key: str) -> list[Trial]:
        rate = rates.get(f"{key[1]}, {key[3]}")
        return [trial_of(key[:2], *key[2:], s, rate) for s in seeds_of(key[1], key[3])]

    keys = [(*key, method, name) for key in begun for method in losses(key[1]) for name in kinds_of[key[1]]]
    planned = {key: runs_of(*key) for key in keys}
    planned |= {(*key, "", "start"): [Trial("start", **options)] for key, options in begun.items()}
    plain = [(*key, "standard", "full") for key in begun if key[1] == "standard"]
    return planned, {key: runs_of(*key) for key in plain}


def first_of(planned: dict[Key, list[Trial]], label: str) -> dict[Key, Trial]:
    """Those that AutoAttack judges, of the first seed."""
    judged = [("", "start"), *((method, name) for method in autoattack_methods for name in autoattack_adapters)]
    at = label in autoattack_starts
    return {key: runs[0] for key, runs in planned.items() if at and key[1] == label and key[2:] in judged}


length_of = {"standard": rate_steps, "robust": robust_rate_steps}
grid = {
    f"{label}, {name}": [
        trial_of((data, label), losses(label)[0], name, seed, rate, length_of[label]) for rate in sorted(rates)
    ]
    for label in starts
    if losses(label)
    for name in kinds_of[label]
}
auto_of = {
    eps: Protocol(autoattack_images, (Threat(f"autoattack-{autoattack_steps}", eps),), seed=seed)
    for eps in {*eps_of.values(), 8 / 255}
}
planned, control = planned_at({})
plan = {"rates": ([trial for tries in grid.values() for trial in tries], settings.UNJUDGED)}
for label in starts:
    runs = [trial for key, trials in (planned | control).items() if key[1] == label for trial in trials]
    plan |= {f"{label} start": (runs, setting_of[label][1])}
    plan[f"AutoAttack, {label} start"] = [*first_of(planned, label).values()], auto_of[eps_of[label]]

# %% [markdown]
# ## (a) What trains, and what has to be stored
#
# Numbers of trained parameters and bytes of files, with their shares of all parameters (head included) and of the
# checkpoint's file. To insert an adapter must change nothing: the largest difference of any logit before training is
# exactly 0.

# %%
pictures, _ = next(iter(photos.train.batches(cost_batch, image_size=vit.image_size, device=device)))


def storage_of(name: str) -> dict[str, object]:
    changed_vit, spec = adapted(vit, name, wide=model != SHIPPED), spec_of(name, wide=model != SHIPPED)
    with torch.inference_mode():
        changed = (changed_vit(pictures) - vit(pictures)).abs().max().item()
    whole = sum(parameter.numel() for parameter in vit.parameters())
    formula = whole if spec is None else inject.expected_parameters(vit, spec.kind, r=spec.r)
    return {"adapter": name, **costs.storage(changed_vit), "formula": formula, "logits_changed_by": changed}


stored_sizes = pd.DataFrame([storage_of(name) for name in kinds])
figures.save_table(stored_sizes, "09_storage", caption="Trained parameters and stored bytes, by adapter.")
stored_sizes.style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (b) Memory and time of a training step
#
# Gradients and the moments of AdamW shrink with the trained parameters. Activations shrink only in part, since
# LayerNorm, GELU and softmax keep theirs whoever trains. `step_peak` is the most that one step of adversarial training
# takes beyond weights and moments. CUDA counts it; on a CPU it is what is kept for the backward pass and the gradients.
#
# The time saved is small by construction. Let forward pass, gradient to the input and gradient to the weights cost one
# unit each. An attack of $K$ steps and the update then cost $2K + 3$ units in full and $2K + 2$ with frozen weights.
# More is saved only if the attack needlessly computes gradients of the weights too (`careless`: $3K + 3$ against
# $2K + 2$). Both are measured, interleaved in one process, as ratios to `full`.


# %%
def costs_of(name: str) -> list[dict[str, object]]:
    """Memory and time of a step of a model, a row an adapter; its weights do not matter."""
    whole = load_vit(name, pretrained=False, num_classes=len(photos.classes), device=device)
    models = {kind: adapted(whole, kind, wide=name != SHIPPED) for kind in kinds}
    batch = cost_batch if name == SHIPPED else -(-cost_batch // 8)
    points, classes = next(iter(photos.train.batches(batch, image_size=whole.image_size, device=device)))
    memory = {kind: costs.memory(model, "pgd_at", recipe, points, classes) for kind, model in models.items()}
    options = dict(repeats=repeats, seed=seed)
    times = [
        costs.step_times(models, "pgd_at", recipe, points, classes, careless=careless, **options)
        .set_index("name")
        .add_prefix("careless_" if careless else "")
        for careless in (False, True)
    ]
    timed = pd.concat(times, axis=1)
    counts = {
        kind: dict(zip(("trainable", "share"), inject.trainable(model), strict=True)) for kind, model in models.items()
    }
    labels = {"model": name, "batch": batch}
    return [{**labels, "adapter": kind, **counts[kind], **memory[kind], **timed.loc[kind].to_dict()} for kind in kinds]


def all_costs() -> list[dict[str, object]]:
    """On a CPU with one thread, whose time a busy machine does not blur."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads if device == "cuda" else 1)
        return [row for name in cost_models for row in costs_of(name)]
    finally:
        torch.set_num_threads(threads)


measured_costs = stored("costs", {"recipe": asdict(recipe), "device": device_name()}, all_costs, data=photos.identity)
cost_table = pd.DataFrame(measured_costs.metrics)
figures.save_table(cost_table, "09_costs", caption="Memory and time of a training step, by adapter.")
cost_table.style.format(precision=3).hide(axis="index")

# %%
parts = {"parameters": "weights", "optimizer": "moments of AdamW", "step_peak": "peak of a step"}
shades = "0.75", sns.color_palette()[1], sns.color_palette()[0]
attacks_timed = {"": "pixel gradients", "careless_": "pixel and weight gradients"}
figure, axes = figures.subplots(len(cost_models), 2, height=0.4 + 1.8 * len(cost_models), squeeze=False)
for (left_axis, right_axis), (name, rows) in zip(axes, cost_table.groupby("model", sort=False), strict=True):
    reached = pd.Series(0.0, index=rows.index)
    for (column, label), shade in zip(parts.items(), shades, strict=True):
        left_axis.barh(rows["adapter"], rows[column] / 1e6, left=reached, color=shade, label=label)
        reached += rows[column] / 1e6
    left_axis.set(xlabel=f"memory (MB), {name}, batch {rows['batch'].iloc[0]}")
    for number, (prefix, label) in enumerate(attacks_timed.items()):
        places = [place + 0.15 * (2 * number - 1) for place in range(len(rows))]
        value, low, high = (rows[f"{prefix}ratio{end}"] for end in ("", "_low", "_high"))
        color = sns.color_palette()[3 * number]
        right_axis.hlines(places, low, high, color=color)
        right_axis.plot(value, places, "o", color=color, label=label)
    right_axis.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    right_axis.set(xlabel="time of a step relative to full", yticks=range(len(rows)), yticklabels=[])
    right_axis.set_ylim(left_axis.get_ylim())
    for axis in (left_axis, right_axis):
        axis.invert_yaxis()
        axis.tick_params(axis="y", length=0)
for axis in axes[0]:
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=6.5, columnspacing=1, handlelength=1)
_ = figures.save_figure(figure, "09_costs")

# %% [markdown]
# ## (c) The runs
#
# `pgd_at` has the loss of Madry et al. (2018), on attacked images alone. `trades` has that of Zhang et al. (2019), on
# clean images and, with weight 6, on the distance between the answers to clean and attacked images. Dev chooses
# learning rates and no round: all runs are compared at equal length. The averaged weights of the end are evaluated on
# test images that nothing else reads. From the standard start all is at `attack_eps`, from the robust one at
# `robust_eps`, 8/255, the radius that it was trained at.
#
# **Learning rates.** Where `rates` are given, every adapter takes its own of them at every start: the one whose run of
# `rate_steps` (`robust_rate_steps`) steps, of the first seed, has the highest accuracy on dev under the attack of
# training; of equal ones the smallest. All have the same grid and the same budget. Without `rates` they are
# `studies.settings.RATES`, a guess for short runs that nothing here has chosen.

# %%
found: Rates = {}
by_rate = pd.DataFrame()
if rates:
    by_rate = settings.best_under_attack(grid, workers=workers)
    figures.save_table(by_rate, "09_rates", caption="Accuracy on dev images under attack, by learning rate.")
    found = settings.rates_of(by_rate)
    if ends := [name for name, rate in found.items() if rate in (min(rates), max(rates))]:
        print(f"{'; '.join(ends)}: the best rate is the smallest or largest tried; a better one may lie beyond.")
planned, control = planned_at(found)
finished: dict[Trial, TrialResult] = {}
for label in starts:
    wanted = [trial for key, trials in (planned | control).items() if key[1] == label for trial in trials]
    done = run_trials(wanted, setting_of[label][1], workers=workers, progress=f"from the {label} start")
    finished |= dict(zip(wanted, done, strict=True))
groups = {key: [finished[trial] for trial in trials] for key, trials in (planned | control).items()}
fixed = ["data", "start", "training", "method"]
trained = stored_sizes.set_index("adapter")[["trainable", "share"]]


def against_each_other(of: dict[str, list[TrialResult]], pairs: list[tuple[str, str]], eps: float) -> pd.DataFrame:
    """Paired differences, each over the seeds that both have."""
    parts = []
    for pair in pairs:
        common = min(len(of[name]) for name in pair if name != "start")
        parts.append(contrasts.contrast({name: of[name][:common] for name in pair}, [pair], eps))
    return pd.concat(parts, ignore_index=True)


def arranged(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One table that says first what its rows are of; an average over attacks has no meaning here."""
    whole = pd.concat(tables, ignore_index=True).query("measure != 'average'").reset_index(drop=True)
    return whole[fixed + [name for name in whole if name not in fixed]]


tables, differences = [], []
for dataset, label in begun:
    for method in losses(label):
        compared = {"start": groups[dataset, label, "", "start"]}
        compared |= {name: groups[dataset, label, method, name] for name in kinds_of[label]}
        pairs = [(one, other) for other in ("full", "start") for one in kinds_of[label] if one != other]
        pairs += [("lnlora", "lora")] if {"lnlora", "lora"} <= compared.keys() else []
        columns = {"data": named[dataset], "start": label, "training": method}
        columns |= {"steps": steps_of[label], "eps": eps_of[label]}
        tables.append(contrasts.tabulate(compared, eps_of[label]).assign(**columns))
        differences.append(against_each_other(compared, pairs, eps_of[label]).assign(**columns))
table = arranged(tables).join(trained, on="method")
paired = arranged(differences)
figures.save_table(table, "09_table", caption="Accuracy after adversarial finetuning.")
figures.save_table(paired, "09_paired", caption="Paired differences in accuracy.")

reported = list(dict.fromkeys(table["measure"]))
wide = table.assign(text=table.apply(contrasts.in_percent, axis=1))
wide = wide.pivot(index=fixed, columns="measure", values="text")[reported].fillna("")
wide.loc[list(dict.fromkeys(table[fixed].itertuples(index=False, name=None)))]

# %% [markdown]
# `pgd` and `cw` (PGD on the margin between logits) are at the radius of training; another radius is named. Values are
# means over seeds. The rows of `start` are one model, with intervals over images. Accuracies near chance (one in the
# number of classes) say nothing.
#
# **Are the runs long enough?** Accuracy on dev under the attack of training, by step. `late` is what the last quarter
# of the steps or more adds, on average over seeds. While that is large for one adapter and small for another, a longer
# run would change the difference between them. The learning rate falls along a cosine, which by itself makes the end of
# every curve flatter.


# %%
def curve_of(key: Key) -> pd.DataFrame:
    """Accuracy on dev under attack by step, over the seeds of one group of runs."""
    looks = pd.DataFrame([{**record, "run": n} for n, run in enumerate(groups[key]) for record in run.history])
    rows = [
        {"step": step} | statistics.over_seeds(part["dev_robust"]).columns("dev_robust")
        for step, part in looks.groupby("step")
    ]
    whole = pd.DataFrame(rows).assign(**dict(zip(fixed, (named[key[0]], *key[1:]), strict=True)))
    early = whole[whole["step"] <= 0.75 * whole["step"].max()].iloc[-1]
    return whole.assign(late=whole["dev_robust"].iloc[-1] - early["dev_robust"])


curves = pd.concat([curve_of(key) for key in planned if key[2]], ignore_index=True)
curves = curves[fixed + [name for name in curves if name not in fixed]]
figures.save_table(curves, "09_curves", caption="Accuracy on dev images under the attack of training.")
in_curves = [(label, method) for label in starts for method in losses(label)]
figure, axes = figures.subplots(1, len(in_curves), height=2.4, squeeze=False)
for axis, (label, method) in zip(axes[0], in_curves, strict=True):
    part = curves.query("data == @named[@data] and start == @label and training == @method")
    for name, line in part.groupby("method", sort=False):
        axis.plot(line["step"], line["dev_robust"], "o-", markersize=3, color=colors[name], label=name)
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axis.set(xlabel="step")
    count = setting_of[label][0].dev_images
    title = (
        f"{label} start, {method}, {radius(eps_of[label])}\nfull: {len(seeds_of(label, 'full'))} seeds x {count} images"
    )
    axis.set_title(title, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_ylim(-0.01, 1.1 * part["dev_robust"].max())
axes[0, 0].set_ylabel("dev accuracy under PGD")
handles = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(kinds), fontsize=7)
figures.save_figure(figure, "09_curves")
curves.groupby(fixed, sort=False)["late"].first().reset_index().style.format(precision=3).hide(axis="index")

# %% [markdown]
# **AutoAttack** (Croce & Hein 2020), a set of four attacks, on the runs of the first seed. Its standard budget is
# 100 steps; with fewer, the column names them. Prompt and adapter defences have been found to mask gradients, so PGD
# alone would not be enough.

# %%
rows = []
for label in starts:
    first_runs = first_of(planned, label)
    judged_on = auto_of[eps_of[label]]
    attacked = run_trials([*first_runs.values()], judged_on, workers=workers, progress="AutoAttack")
    rows += [
        row | dict(zip(fixed, (named[key[0]], *key[1:]), strict=True)) | {"eps": eps_of[label]}
        for key, run in zip(first_runs, attacked, strict=True)
        for row in contrasts.tabulate({"": [run]}, eps_of[label]).query("measure != 'average'").to_dict("records")
    ]
auto_table = pd.DataFrame(rows)
if rows:
    auto_table = auto_table.drop(columns=["value_low", "value_high"]).assign(steps=autoattack_steps)
    figures.save_table(auto_table, "09_autoattack", caption="Accuracy under AutoAttack.")
auto_table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (d) Robustness against trained parameters, and the gap to full adversarial training
#
# Above: accuracy of every adapter against its number of trained parameters; the dashed line is the start. Below:
# differences to `full` under the first attack, paired on the same images. Lines are intervals for new seeds and new
# images, of one run over images. The shaded band is a difference of less than 2 points, which is called comparable
# here. The claim is that the gap of `lnlora` is small. An interval that contains zero does not show that; one inside
# the band does.

# %%
first_data = named[data]
panels = [(label, method) for dataset, label in begun if dataset == data for method in losses(label)]
figure, axes = figures.subplots(2, len(panels), height=4.2, squeeze=False)
for column, (label, method) in enumerate(panels):
    part = table[(table["data"] == first_data) & (table["start"] == label) & (table["training"] == method)]
    upper, lower = axes[:, column]
    for name, row in part[part["measure"] == attacks[0]].set_index("method").iterrows():
        if name == "start":
            upper.axhline(row["value"], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            continue
        upper.plot([row["trainable"]] * 2, contrasts.ends(row), color=colors[name], linewidth=1)
        upper.plot(row["trainable"], row["value"], "o", color=colors[name], label=name)
    upper.set_xscale("log")
    upper.xaxis.set_minor_locator(NullLocator())
    upper.set_ylim(0, 1.1 * np.nanmax([part.loc[part["measure"] == attacks[0], c].max() for c in ("value", "high")]))
    upper.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    n, count = part.query("method == 'full'")[["n", "images"]].iloc[0]
    size = f"{n} seed{'s' * (n > 1)} x {count:,} images"
    upper.set_title(f"{label} start, {method}, {radius(eps_of[label])}\nfull: {size}", fontsize=7)
    upper.set_xlabel("trained parameters")
    gaps = paired[(paired["data"] == first_data) & (paired["start"] == label) & (paired["training"] == method)]
    gaps = gaps[(gaps["against"] == "full") & (gaps["measure"] == attacks[0])].set_index("method")
    names = [name for name in kinds_of[label] if name != "full"]
    shades = [colors[name] for name in names]
    figures.intervals(lower, gaps.loc[names].reset_index(), color=shades)
    lower.axvspan(-0.02, 0.02, color="0.9", zorder=0, linewidth=0)
    drawn = gaps[["low", "high"]] if n > 1 else gaps[["images_low", "images_high"]]
    drawn = drawn.join(gaps["difference"]).assign(none=0, bound=-0.02)
    lower.set_xlim(np.nanmin(drawn) - 0.01, np.nanmax(drawn) + 0.01)
    lower.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    lower.set_yticks(range(len(names)), [f"{name}, n = {gaps.loc[name, 'n']}" for name in names], fontsize=7)
    lower.set_ylim(len(names) - 0.5, -0.5)
    lower.tick_params(axis="y", length=0)
    lower.set_xlabel("accuracy minus full (points)", fontsize=8)
axes[0, 0].set_ylabel(f"accuracy under {attacks[0].upper()}")
handles = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(kinds), fontsize=7)
_ = figures.save_figure(figure, "09_parameters")
claimed = {"lnlora": "full", "lora": "lnlora"}
of_claim = {name: groups.get((data, "standard", "pgd_at", name), []) for name in ("full", *claimed)}
for name, other in claimed.items():
    common = min(len(of_claim[name]), len(of_claim[other]))
    if common > 1:
        same = {one: of_claim[one][:common] for one in (name, other)}
        pilot = contrasts.differences(same, name, other, attacks[0], attack_eps)
        print(f"{name} minus {other}, {attacks[0].upper()}: {power(pilot, 0.02)}")
gaps_of = paired[(paired["against"] == "full") & (paired["data"] == first_data)]
gaps_of[gaps_of["method"] == "lnlora"].style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (e) How far does LayerNorm move?
#
# Paper B's motivation: scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs,
# hence the learnable LayerNorm on the branch. Scales near 1 and weights near 0.05 have no common unit, so a change
# relative to a tensor's own norm compares nothing. Two measures have no unit. `ratio` is the root mean square change of
# a tensor in adversarial finetuning, divided by its change in *standard* finetuning of as many steps at the same rate
# on the same batches from the same start. `in_std` is its change in standard deviations of its entries before.
#
# **Primary endpoint**: for every LayerNorm that a linear layer reads, the ratio of its scale and bias (geometric mean)
# divided by the ratio of the weights that read it. It is 1 if LayerNorm answers an attack as these weights do; a factor
# of 1.25 would matter. The interval draws seeds and layers anew.

# %%
KINDS = ("LayerNorm scale", "LayerNorm bias", "weight", "bias")  # the last two: of linear layers and the embedding
READERS = {"norm1": "attn.qkv", "norm2": "mlp.fc1"}  # of a block: who reads which LayerNorm


def kind_of(module: nn.Module, last: str) -> str | None:
    if isinstance(module, nn.LayerNorm):
        return "LayerNorm scale" if last == "weight" else "LayerNorm bias"
    return last if isinstance(module, nn.Linear | nn.Conv2d) else None


def depth_of(path: str, blocks: int) -> int:
    """The block, from 0; -1 before the blocks and their number after them."""
    if path.startswith("blocks."):
        return int(path.split(".")[1])
    return -1 if path.startswith(("patch_embed", "norm_pre")) else blocks


def parameter_shift(before: ViT, after: ViT) -> pd.DataFrame:
    """Rows of one tensor each: how far it moved; without heads, class tokens, positions and what was 0."""
    rows, moved = [], dict(after.net.named_parameters())
    for path, module in before.net.named_modules():
        for last, value in module.named_parameters(recurse=False):
            if path not in ("head", "head_dist") and (kind := kind_of(module, last)) and value.any():
                name, depth = f"{path}.{last}", depth_of(path, len(before.net.blocks))
                old, new = (tensor.detach().double().flatten().cpu() for tensor in (value, moved[name]))
                change = (new - old).square().mean().sqrt().item()
                row = {"name": name, "kind": kind, "depth": depth, "change": change}
                spread = old.std().item()  # 0: an untrained LayerNorm
                rows.append(row | {"in_std": change / spread if spread else float("nan")})
    return pd.DataFrame(rows)


# %%
moved = {m: groups.get((data, "standard", m, "full"), []) for m in ("standard", "pgd_at")}


def all_shifts() -> list[dict[str, object]]:
    pairs = [("vit_robust", seed, vit, start_of(Trial("start", start="vit_robust")))] if is_shipped else []
    pairs += [(m, s, start_of(r.trial), model_of(r)) for m, runs in moved.items() for s, r in enumerate(runs, seed)]
    return pd.concat(parameter_shift(*pair).assign(model=m, seed=s) for m, s, *pair in pairs).to_dict("records")


ended = {model: [run.weights.fingerprint for run in runs] for model, runs in moved.items()}
shifts = pd.DataFrame(stored("shifts", ended | {"from": fingerprint(vit), "seed": seed}, all_shifts).metrics)
both = shifts[shifts["model"] != "vit_robust"].pivot(index=["seed", "name"], columns="model", values="change")
both = both[(both > 0).all(axis=1)]  # seeds that both have, and what moved in both
log_ratio = np.log(both["pgd_at"] / both["standard"]).unstack("name").dropna(axis=1)  # seeds x tensors
by_layer = shifts.groupby(["model", "kind", "depth", "name"], sort=False)[["change", "in_std"]].mean().reset_index()
by_layer["ratio"] = by_layer["name"].map(np.exp(log_ratio.mean())).where(by_layer["model"] == "pgd_at")
rows = []
for kind in KINDS:
    tensors = by_layer.loc[(by_layer["model"] == "pgd_at") & (by_layer["kind"] == kind), "name"]
    tensors = [name for name in tensors if name in log_ratio]
    if not tensors:
        continue
    whole = statistics.two_way(log_ratio[tensors].to_numpy())
    row = {"kind": kind, "ratio": np.exp(whole.value), "ratio_low": np.exp(whole.low), "ratio_high": np.exp(whole.high)}
    of_kind = by_layer[by_layer["kind"] == kind].groupby("model")["in_std"].mean()
    rows.append(row | {"n": len(log_ratio), "tensors": len(tensors)} | of_kind.add_prefix("in_std ").to_dict())
layernorm = pd.DataFrame(rows)
read_by = {
    f"blocks.{block}.{norm}": f"blocks.{block}.{reader}.weight"
    for block in range(len(vit.net.blocks))
    for norm, reader in READERS.items()
}
excess = pd.DataFrame(  # seeds x LayerNorms
    {
        norm: (log_ratio[[f"{norm}.weight", f"{norm}.bias"]].mean(axis=1) - log_ratio[weight]).to_numpy()
        for norm, weight in read_by.items()
        if {f"{norm}.weight", f"{norm}.bias", weight} <= {*log_ratio}
    }
)
figures.save_table(by_layer, "09_shift", caption="Change of every parameter tensor in finetuning.")
figures.save_table(layernorm, "09_layernorm", caption="Adversarial over standard change, by kind of parameter.")
figures.save_table(excess, "09_excess", caption="Logarithm of LayerNorm's ratio over that of the weights that read it.")
figure, axis = figures.subplots(height=2.6)
for number, kind in enumerate(KINDS):
    line = by_layer[(by_layer["model"] == "pgd_at") & (by_layer["kind"] == kind)]
    look = dict(color=sns.color_palette()[number], label=kind)
    axis.plot(line["depth"] + 0.1 * (number - 1.5), line["ratio"], "o", markersize=3, **look)
axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
axis.set_yscale("log")
axis.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8]))
axis.yaxis.set_minor_locator(NullLocator())
axis.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
axis.xaxis.set_major_locator(MaxNLocator(integer=True))
axis.set(xlabel="block (-1: embedding, last: final norm)", ylabel="change, adversarial\nover standard")
size = f"{len(log_ratio)} seed{'s' * (len(log_ratio) > 1)}"
axis.set_title(f"{radius(attack_eps)}, {steps} steps, {size}, one point a tensor", fontsize=8)
figure.legend(loc="outside lower center", ncols=4, fontsize=7)
figures.save_figure(figure, "09_layernorm")
layernorm.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (f) At 8/255, for 1,500 steps
#
# `vit_robust` was trained in all weights. The repository also carries an LNLoRA adapter of rank 3, trained from the
# same start on the same batches with the same attack and schedule, at its own learning rate. In this setting a model of
# this size has learned something at 8/255. There is one run each, so intervals are over images.
# `make checkpoint ARGS=vit_robust` makes the first again, about an hour on one core, and `vit_robust_lnlora` the other.

# %%
long_eps = 8 / 255
robust_models = ("vit_robust", "vit_robust_lnlora") if is_shipped else ()
long_runs = {"start": Trial("start")} | {name: Trial("start", start=name) for name in robust_models}
threats = (Threat(f"pgd-{evaluation_steps}", long_eps), Threat(f"cw-{evaluation_steps}", long_eps))
few = auto_of[long_eps]
long_pairs = [("vit_robust_lnlora", "vit_robust"), *((name, "start") for name in robust_models)]
long_table = long_paired = pd.DataFrame()
for judged_on, kept in (
    (Protocol(long_images, threats, seed=seed), "measure != 'average'"),
    (few, "measure.str.startswith('autoattack')"),
):
    if robust_models:
        judged = run_trials([*long_runs.values()], judged_on, workers=workers, progress="judged")
        compared = {name: [run] for name, run in zip(long_runs, judged, strict=True)}
        long_gaps = contrasts.contrast(compared, long_pairs, long_eps).query(kept)
        long_table = pd.concat([long_table, contrasts.tabulate(compared, long_eps).query(kept)], ignore_index=True)
        long_paired = pd.concat([long_paired, long_gaps], ignore_index=True)
if robust_models:
    figures.save_table(long_table, "09_long", caption="Accuracy after 1,500 steps of adversarial training at 8/255.")
    figures.save_table(long_paired, "09_long_paired", caption="Paired differences after 1,500 steps at 8/255.")
long_table.style.format(precision=3).hide(axis="index")

# %%
long_paired.style.format(precision=4).hide(axis="index")

# %% [markdown]
# What could make these two models look robust when they are not, by the checks of AutoAttack and of Carlini et al. 2019
# (see `gradient_masking`).

# %%
robust_vits = {name: start_of(long_runs[name]) for name in robust_models}


def checks() -> list[dict[str, object]]:
    """Warnings, a row a model."""
    split, n, rows = photos.test.subset(autoattack_images, seed), evaluation_steps, []
    for name, robust in robust_vits.items():
        points, classes = next(iter(split.batches(len(split), image_size=robust.image_size, device=device)))
        options = dict(eps=long_eps, seed=seed, steps=n, queries=10 * n)
        found = gradient_masking.diagnose(robust, points, classes, **options)
        rows.append({"model": name, "images": len(split), "warnings": " ".join(found) or "none"})
    return rows


warnings = pd.DataFrame()
if robust_vits:
    judged = [fingerprint(robust) for robust in robust_vits.values()]
    warnings = pd.DataFrame(stored("diagnosis", {"weights": judged}, checks, data=photos.identity).metrics)
    figures.save_table(warnings, "09_warnings", caption="Warnings of what could fake robustness.")
warnings.style.hide(axis="index")

# %% [markdown]
# ## What is ours and not paper B's
#
# | | here | paper B |
# |---|---|---|
# | rank, $\alpha$ | 3, $\alpha = r$ | not known |
# | start of LN, A, B | 1 and 0; Kaiming-uniform; 0 | not known (LoRA's convention) |
# | targets | patch embedding, fused qkv, proj, fc1, fc2 | "all key components" |
# | head | trained, counted | not known |
# | optimiser | AdamW, cosine, own rate for each adapter | not known |
# | loss, attack | PGD-AT and TRADES; few steps | adversarial finetuning; not known |
# | models, data | a ViT of 0.7 M parameters, CIFAR-10; CIFAR-100 by `more_data`, a ViT-Ti/16 on Imagenette by `model` and `data` | ViTs on CIFAR-10, CIFAR-100, Imagenette |

# %% [markdown]
# ## The answer
#
# "Comparable" is taken as not worse by 2 points: an interval that contains zero would not show it.

# %%
from nullpaper.studies.verdicts import (
    Answer,
    Endpoint,
    Verdicts,
    above,
    at_least,
    endpoint,
    every,
    number,
    over_images,
    points,
    row,
    rows,
    some,
    word,
)

answer = Verdicts()
LEAST = 0.02  # accuracy: less does not matter
FACTOR = 1.25  # the same of a ratio
AT, AT_ROBUST = f"at {255 * attack_eps:.3g}/255", f"at {255 * robust_eps:.3g}/255"
STANDARD = {"data": Path(data).name, "start": "standard", "training": "pgd_at"}
ROBUST = STANDARD | {"start": "robust"}
PGD = attacks[0]


def ends_of(gap: Endpoint) -> statistics.Interval:
    return statistics.Interval(gap.value, gap.low, gap.high, int(gap.n_seeds))


def gap_to_full(name: str, **where: str) -> Endpoint:
    """Accuracy under the first attack minus that of full, tested against a loss of 2 points."""
    return endpoint(paired, name, "full", PGD, least=LEAST, null=-LEAST, **where)


def rate_in_words(name: str) -> str:
    """The rate that dev chose from the standard start, and whether it is at an end of the grid."""
    if not len(by_rate):
        return ""
    grid = rows(by_rate, arm=f"standard, {name}")
    rate = rows(grid, chosen=True)["rate"].item()
    return f" at rate {rate:g}" + " (an end of the grid)" * (rate in (grid["rate"].min(), grid["rate"].max()))


def late_of(name: str) -> str:
    """What the last quarter of the steps adds on dev, in points."""
    return f"{name} {100 * rows(curves, method=name, **STANDARD)['late'].iloc[0]:+.1f}"


def elsewhere() -> str:
    """The same gap from the robust start and under AutoAttack, of which the claim says nothing or has one seed."""
    texts = []
    with contextlib.suppress(KeyError):
        texts.append(f"; from the robust start {AT_ROBUST} {gap_to_full('lnlora', **ROBUST).in_points()}")
    with contextlib.suppress(KeyError):
        measure = "autoattack" if autoattack_steps == 100 else f"autoattack-{autoattack_steps}"
        by_name = [rows(auto_table, method=name, measure=measure, **STANDARD).iloc[0] for name in ("lnlora", "full")]
        shares = " and ".join(f"{100 * line['value']:.1f} %" for line in by_name)
        texts.append(f"; {measure} {AT} leaves {shares} (first seed, {by_name[0]['images']} images)")
    return "".join(texts)


def in_long_runs() -> str:
    """The same gap in the two runs of 1,500 steps; it has one seed, so that it decides nothing."""
    if not len(long_paired):
        return ""
    gain = over_images(long_paired, "vit_robust_lnlora", "vit_robust", "pgd")
    return f"; after 1,500 steps at 8/255 {points(gain, None)} (one run, {gain.n:,} images)"


@answer.claim(
    "B",
    "abstract",
    "adversarial training of about 5 % of the parameters (LNLoRA) is as robust as of all of them",
    where="09 (c), (d)",
    criterion=f"holds if the 95 % interval of LNLoRA minus full, PGD accuracy {AT} from the standard start, is above -2 points, "
    "does not hold if it is below",
    endpoint=f"PGD accuracy {AT} from the standard start, LNLoRA minus full, tested against -2 points",
)
def comparable() -> tuple[str, str, Endpoint]:
    share, gap = row(stored_sizes, adapter="lnlora")["share"], gap_to_full("lnlora", **STANDARD)
    late = ", ".join(late_of(name) + rate_in_words(name) for name in ("full", "lnlora"))
    measured = (
        f"{100 * share:.1f} % of the parameters; {gap.in_points()} after {steps} steps{in_long_runs()}{elsewhere()}"
    )
    measured += f"; accuracy on dev images gained in the last quarter of the steps, in points: {late}"
    return measured, word(at_least(ends_of(gap), -LEAST)), gap


@answer.claim(
    "B",
    "abstract",
    "the LayerNorm in front of the branch makes the difference to LoRA",
    where="09 (c)",
    criterion=f"holds if the 95 % interval of LNLoRA minus LoRA, PGD accuracy {AT} from the standard start, is above 0 and "
    "reaches 2 points, does not hold if all of it is below 2 points",
    endpoint=f"PGD accuracy {AT} from the standard start, LNLoRA minus LoRA of its rank",
)
def norm_matters() -> tuple[str, str, Endpoint]:
    gain = endpoint(paired, "lnlora", "lora", PGD, least=LEAST, **STANDARD)
    return f"{gain.in_points()} after {steps} steps", gain.word, gain


@answer.claim(
    "B",
    "motivation",
    "scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs",
    where="09 (e)",
    criterion="holds if the 95 % interval of LayerNorm's ratio, adversarial over standard change, over that of its reader is above "
    f"1 and reaches {FACTOR:g}, does not hold if all of it is below {FACTOR:g}",
    endpoint="logarithm of r(scale and bias of LayerNorm) / r(weights that read it), where r is the change in adversarial over "
    "that in standard finetuning",
)
def layernorm_shift() -> tuple[str, str, Endpoint]:
    if excess.empty:
        raise KeyError("LayerNorms that moved in both runs")
    found = statistics.crossed(excess.to_numpy())
    ends, factors = found.interval, {line["kind"]: line["ratio"] for _, line in layernorm.iterrows()}
    number_of = Endpoint(ends.value, ends.low, ends.high, found.p(), ends.n, least=float(np.log(FACTOR)))
    each = ", ".join(f"{kind} x {ratio:.2f}" for kind, ratio in factors.items())
    times = statistics.Interval(*np.exp([ends.value, ends.low, ends.high]), ends.n)
    measured = f"LayerNorm over its reader x {number(times, '.2f', 'seeds')}; adversarial over standard change: {each}"
    return measured, number_of.word, number_of


@answer.claim(
    "B",
    "abstract",
    "LNLoRA saves storage",
    where="09 (a)",
    criterion="holds if the files of the adapter take less than a tenth of the checkpoint's bytes",
    endpoint="bytes of the adapter's files over those of the checkpoint (exact), to be below 0.1",
)
def storage() -> tuple[str, str, Endpoint]:
    lines = {name: row(stored_sizes, adapter=name) for name in ("full", "lnlora")}
    sizes = {name: f"{line['stored_bytes'] / 1e3:,.0f} kB" for name, line in lines.items()}
    share = lines["lnlora"]["stored_share"]
    return f"{sizes['lnlora']} of {sizes['full']}, {100 * share:.1f} %", word(bool(share < 0.1)), Endpoint(share)


def model_named(line: pd.Series) -> str:
    name = "shipped ViT" if line["model"] == "nullpaper_vit_cifar10" else line["model"]
    return f"{name} (batch {line['batch']})"


@answer.claim(
    "B",
    "abstract",
    "LNLoRA saves training time",
    where="09 (b)",
    criterion="holds if on every model measured the 95 % interval of the time of a step, relative to full, is below 0.9 if the "
    "attack computes pixel gradients alone; in part if it is on some models, or if the attack computes weight gradients too",
    endpoint="largest time of a step over that of full, with pixel gradients alone, to be below 0.9",
)
def training_time() -> tuple[str, str, Endpoint]:
    answers: dict[str, list[Answer]] = {"pixel": [], "pixel and weight": []}
    texts, careful = [], []
    for _, line in rows(cost_table, adapter="lnlora").iterrows():
        told = []
        for kind, prefix in (("pixel", ""), ("pixel and weight", "careless_")):
            bounds = (float(line[f"{prefix}ratio{end}"]) for end in ("", "_low", "_high"))
            ratio = statistics.Interval(*bounds, int(line[f"{prefix}n"]))
            told.append(f"with {kind} gradients {number(ratio, '.2f', None)}")
            answers[kind].append(above(statistics.Interval(0.9, 0.9, 0.9, 1), ratio))
            careful += [ratio] * (kind == "pixel")
        texts.append(f"{model_named(line)} {', '.join(told)}")
    part = some([*answers["pixel"], *answers["pixel and weight"]])
    slowest = max(careful, key=lambda ratio: ratio.value)
    number_of = Endpoint(slowest.value, slowest.low, slowest.high)
    return f"time of a step over full: {'; '.join(texts)}", word(every(answers["pixel"]), part), number_of


@answer.claim(
    "",
    "",
    "LNLoRA saves memory in training",
    where="09 (b)",
    criterion="holds if on every model measured the sum of weights, moments and the peak of a step is less than 0.9 of that "
    "of full; in part if on some models",
    endpoint="largest sum of memory over that of full (exact), to be below 0.9",
)
def training_memory() -> tuple[str, str, Endpoint]:
    texts, answers, totals = [], [], []
    for _, line in rows(cost_table, adapter="lnlora").iterrows():
        full = row(cost_table, adapter="full", model=line["model"])
        ratios = {name: line[name] / full[name] for name in ("gradients", "optimizer", "step_peak", "total")}
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items())
        texts.append(f"{model_named(line)} {told}")
        totals.append(ratios["total"])
        answers.append(bool(ratios["total"] < 0.9))
    return f"memory over full: {'; '.join(texts)}", word(every(answers), some(answers)), Endpoint(max(totals))


@answer.claim(
    "",
    "RoLI, CVPR 2024, on other adapters",
    "from a standard start LNLoRA stays behind full adversarial training, from a robust start a linear probe is enough",
    where="09 (c), (d)",
    criterion=f"holds if the 95 % interval of LNLoRA minus full under PGD {AT} from the standard start is below 0, and that of "
    f"the linear probe minus full {AT_ROBUST} from the robust start is above -2 points; in part if one of the two",
    endpoint=f"PGD accuracy {AT_ROBUST} from the robust start, linear probe minus full, tested against -2 points",
)
def robust_start() -> tuple[str, str, Endpoint]:
    behind, probe = gap_to_full("lnlora", **STANDARD), gap_to_full("linear", **ROBUST)
    answers = above(statistics.Interval(0, 0, 0, 1), ends_of(behind)), at_least(ends_of(probe), -LEAST)
    measured = f"minus full: LNLoRA, standard {behind.in_points()}; linear probe, robust {probe.in_points()}"
    return measured, word(every(answers), some(answers)), probe


figures.save_table(answer.table(), "09_verdicts", caption="What paper B says of LNLoRA.")
first = row(answer.table(), name="comparable")
small = min(seeds, other_seeds) < statistics.FEWEST_SEEDS
answer.show(
    f"our reading of paper B, {steps} steps of {batch_size} images, {images} test images, {seeds} seeds of full and "
    f"LNLoRA and {other_seeds} of other adapters, {model} on {Path(data).name}; (f) is one run each."
    + " Too small to decide: the profile gpu is for that."
    * small,
    question="Is adversarial finetuning of 5 % of the parameters as good as of all of them?",
    answer=f"LNLoRA against full finetuning under {PGD.upper()} {AT}: {first['measured']} ({first['holds']}).",
    would_change="runs of many epochs, a larger ViT, or paper B's rank and recipe, which are unknown.",
)
