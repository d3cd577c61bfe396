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
# Paper B (FullLoRA-AT) freezes a pretrained ViT and trains low-rank branches in *all* of its linear layers adversarially, with a learnable LayerNorm in front of each:
#
# $$y = W_0 x + b + \tfrac{\alpha}{r}\, B A\, \mathrm{LN}_{\gamma, \beta}(x), \qquad B = 0 \ \text{at the start}.$$
#
# It claims a robustness comparable to adversarial training of all weights with about 5 % of the parameters, and less storage and training time. Only its abstract and the openings of both versions
# could be read. Rank, $\alpha$, learning rate, schedule, attack, targets inside the blocks and all numbers of its tables are unknown to us: what follows is *our* instantiation, and no number here is a
# reproduction of one of theirs.
#
# | adapter | what trains, besides the head |
# |---|---|
# | `full` | all weights: the comparison that the claim is about |
# | `lnlora` | paper B: LayerNorm + LoRA in the patch embedding, qkv, proj, fc1, fc2 of all blocks |
# | `lora` | the same without the LayerNorm: is it needed? |
# | `bitfit`, `layernorm` | all biases; the LayerNorms that are there already |
# | `linear` | nothing but the head |
#
# All share start, batches, seeds, steps, schedule and attack; each has its own learning rate, chosen on dev under attack (10). There are two starts, since with a *standardly* trained start
# parameter-efficient adversarial training is reported to stay behind, and with a *robust* one even a linear probe can win (RoLI, Hua et al., CVPR 2024): the shipped checkpoint, and `vit_robust`, which
# was adversarially trained at 8/255 in all weights for 1,500 steps.
#
# Takes about 5 min at `cpu` on 2 cores; needs CIFAR-10, which is fetched once, and no weights but those that travel with the package. `model`, `weights`, `data` and `root` put another ViT
# and other photographs in their place, such as Imagenette, the third data set of paper B: a model of ImageNet's 1,000 classes keeps its head, of which the rows of the data's classes answer. A
# robust start and runs of 1,500 steps there are for the shipped model alone, and with others (f) is left out.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # a ViT of this package or of timm
weights: str = ""  # a file of weights for it; empty: what ships, or timm's hub
data: str = "cifar10"  # a data set that load_data knows, or a folder of class folders
root: str = ""  # the folder of its photographs; empty: fetched where a fetch exists
images: int = 48  # test images
steps: int = 10  # gradient steps a run
batch_size: int = 64  # images a step
rounds: int = 1  # looks at dev, of which the best is kept
attack_steps: int = 2  # steps of the attack in training
evaluation_steps: int = 20  # steps of PGD and CW at the end
attack_eps: float = 0.00784313725490196  # L-infinity radius in training and at the end, in pixel units: 2/255
other_eps: float = 0.03137254901960784  # a second radius at the end: 8/255
methods: list = ["pgd_at", "trades"]  # of adversarial training
robust_methods: list = ["pgd_at"]  # those of them that the robust start is run with too
adapters: list = ["full", "lnlora", "lora", "bitfit", "layernorm", "linear"]  # names of the table above
starts: list = ["standard", "robust"]  # the second of the shipped model alone
more_data: list = []  # further data sets, such as cifar100; other classes than the start's get a new head
rank: int = 3  # of the branches: about 5 % of the shipped ViT's parameters
wide_rank: int = 16  # the same for other models: 5 % of ViT-S
rates: list = []  # peak learning rates of which each adapter takes its own, by dev; empty: those of the small ViT
rate_steps: int = 10  # gradient steps of the runs that choose
autoattack_methods: list = ["pgd_at"]  # those of the methods that AutoAttack is run against
autoattack_starts: list = ["standard", "robust"]
autoattack_steps: int = 5  # of each attack in AutoAttack, 100 being standard
autoattack_images: int = 10  # test images under AutoAttack
long_images: int = 128  # test images of section (f)
cost_models: list = ["nullpaper_vit_cifar10"]  # ViTs of section (b)
cost_batch: int = 32  # images a step there; an eighth of them for other models than the shipped one
repeats: int = 4  # timed steps an adapter
seeds: int = 2  # runs an adapter
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import nn
from torch.nn.functional import cosine_similarity

from nullpaper import load_data, load_vit, statistics
from nullpaper.adapters import inject
from nullpaper.errors import InputError
from nullpaper.finetuning import costs
from nullpaper.models.vit import SHIPPED, ViT, fingerprint
from nullpaper.robustness import gradient_masking
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts, settings
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, model_of, run_trials, start_of
from nullpaper.workflow import figures
from nullpaper.workflow.provenance import device_name
from nullpaper.workflow.store import stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
for name, given, allowed in (("adapters", adapters, settings.ADAPTERS), ("starts", starts, settings.STARTS)):
    if wrong := [item for item in given if item not in allowed]:
        raise InputError(f"{name}: '{wrong[0]}' is unknown; choose from {', '.join(allowed)}.")
if "full" not in adapters:
    raise InputError("adapters lacks 'full', which all others are compared with: add it.")
is_shipped = model == SHIPPED and not weights  # the model that has a robust start and long runs
if "robust" in starts and not is_shipped:
    raise InputError(f"starts: the robust start is a checkpoint of {SHIPPED}, and {model} has none: leave it out.")
run_seeds = range(seed, seed + seeds)
kinds = [name for name in settings.ADAPTERS if name in adapters]
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
recipe, protocol = settings.adversarial_setting(
    images=images,
    steps=steps,
    batch_size=batch_size,
    rounds=rounds,
    attack_eps=attack_eps,
    other_eps=other_eps,
    attack_steps=attack_steps,
    evaluation_steps=evaluation_steps,
    seed=seed,
    noise_images=1_000 if len(photos.dev) > 2_000 else 0,  # set aside for 11, which finds these runs; none of few
)


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


def trial_of(key: tuple[str, str], method: str, name: str, s: int, rate: float | None, length: int = steps) -> Trial:
    options = dict(adapter=spec_of(name, wide=model != SHIPPED), rate=rate, **begun[key])
    return settings.adversarial_trial(method, s, length, recipe, **options)


Key = tuple[str, str, str, str]  # data, start, loss and adapter


def planned_at(rate_of: dict[str, float | None]) -> tuple[dict[Key, list[Trial]], dict[Key, list[Trial]]]:
    """The runs of (c), and the control of (e)."""

    def runs_of(*key: str) -> list[Trial]:
        return [trial_of(key[:2], *key[2:], s, rate_of[key[-1]]) for s in run_seeds]

    keys = [(*key, method, name) for key in begun for method in losses(key[1]) for name in kinds]
    planned = {key: runs_of(*key) for key in keys}
    planned |= {(*key, "", "start"): [Trial("start", **options)] for key, options in begun.items()}
    plain = [(*key, "standard", "full") for key in begun if key[1] == "standard"]
    return planned, {key: runs_of(*key) for key in plain}


def first_of(planned: dict[Key, list[Trial]]) -> dict[Key, Trial]:
    """Those that AutoAttack judges, of the first seed."""
    judged = "", *autoattack_methods
    return {key: runs[0] for key, runs in planned.items() if key[1] in autoattack_starts and key[2] in judged}


grid = [(name, rate) for name in kinds for rate in sorted(rates)]
tries = [trial_of((data, starts[0]), methods[0], name, seed, rate, rate_steps) for name, rate in grid]
unjudged = Protocol(1, seed=seed)  # one clean image, since a trial has to be judged on something
auto = Protocol(autoattack_images, (Threat(f"autoattack-{autoattack_steps}", attack_eps),), seed=seed)
planned, control = planned_at(dict.fromkeys(kinds))
plan = {"rates": (tries, unjudged), "table": ([t for runs in (planned | control).values() for t in runs], protocol)}
plan["AutoAttack"] = [*first_of(planned).values()], auto

# %% [markdown]
# ## (a) What trains, and what has to be stored
#
# Counts and sizes of the ViT at hand, whose share is of its own parameters (head included), and of its file. Injection must change nothing: the largest difference of any logit before training is exactly 0.

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
figures.save_table(stored_sizes, "09_storage", caption="Trained parameters and stored bytes.")
stored_sizes.style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (b) Memory and time of a training step
#
# Gradients and moments shrink with the trained parameters; activations shrink only in part, since LayerNorm, GELU and softmax keep theirs whoever trains. `step_peak` is what one step of adversarial
# training takes at its highest point beyond weights and moments: CUDA counts it, and on a CPU it is what is kept for the backward pass and the gradients. The time saved is small by construction: with forward pass, gradient to the input and gradient to the weights at one unit each, an attack of
# $k$ steps and the update cost $2k + 3$ units in full and $2k + 2$ with a frozen backbone, unless the attack carelessly differentiates with respect to the weights too ($3k + 3$ against $2k + 2$). Both are
# measured, interleaved in one process, as ratios to `full`.


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
figures.save_table(cost_table, "09_costs", caption="Memory and time of a step.")
cost_table.style.format(precision=3).hide(axis="index")

# %%
parts = {"parameters": "weights", "optimizer": "moments", "step_peak": "step, at its peak"}
shades = "0.75", sns.color_palette()[1], sns.color_palette()[0]
attacks_timed = {"": "gradients to pixels", "careless_": "and to weights"}
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
    right_axis.set(xlabel="time of a step, of full's", yticks=range(len(rows)), yticklabels=[])
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
# `pgd_at` is Madry's loss, `trades` Zhang et al.'s ($\beta = 6$). The best round is chosen on dev by accuracy under the attack of training; the averaged weights are judged on test images that nothing else reads.
# Short runs are at `attack_eps` (2/255), since 8/255 needs more steps than they have (section f has it), and TRADES runs from the standard start alone.
#
# Learning rates are those of the small ViT (10). Where `rates` are given, every adapter takes its own of them: the one whose run of `rate_steps` steps, of the first seed, has the highest accuracy
# on dev under the attack of training; of equal ones the smallest. All have the same grid and the same budget.


# %%
rate_of, tuned = dict.fromkeys(kinds), []
if rates:
    for (name, rate), run in zip(grid, run_trials(tries, unjudged, workers=workers, progress="rates"), strict=True):
        chosen = next(record for record in run.history if record["step"] == run.best_step)
        on_dev = {measure: chosen[measure] for measure in ("dev_accuracy", "dev_robust")}
        tuned.append({"adapter": name, "rate": rate, **on_dev, "steps": rate_steps})
    tuned = pd.DataFrame(tuned)
    figures.save_table(tuned, "09_rates", caption="Learning rates on dev.")
    rate_of = tuned.loc[tuned.groupby("adapter")["dev_robust"].idxmax()].set_index("adapter")["rate"].to_dict()


planned, control = planned_at(rate_of)
wanted = [trial for trials in [*planned.values(), *control.values()] for trial in trials]
finished = dict(zip(wanted, run_trials(wanted, protocol, workers=workers, progress="runs"), strict=True))
groups = {key: [finished[trial] for trial in trials] for key, trials in (planned | control).items()}
pairs = [(name, against) for against in ("full", "lora", "start") for name in kinds if name != against]
pairs = [(one, other) for one, other in pairs if other in [*kinds, "start"] and (other != "lora" or one == "lnlora")]

tables, differences = [], []
for dataset, label in begun:
    for method in losses(label):
        compared = {"start": groups[dataset, label, "", "start"]}
        compared |= {name: groups[dataset, label, method, name] for name in kinds}
        columns = {"data": named[dataset], "start": label, "training": method}
        tables.append(contrasts.tabulate(compared, attack_eps).assign(**columns))
        differences.append(contrasts.contrast(compared, pairs, attack_eps).assign(**columns))
fixed = ["data", "start", "training", "method"]
trained = stored_sizes.set_index("adapter")[["trainable", "share"]]
table = pd.concat(tables, ignore_index=True).assign(steps=steps, eps=attack_eps).join(trained, on="method")
table = table[fixed + [name for name in table if name not in fixed]]
paired = pd.concat(differences, ignore_index=True).assign(steps=steps, eps=attack_eps)
paired = paired[fixed + [name for name in paired if name not in fixed]]
figures.save_table(table, "09_table", caption="Accuracy after adversarial finetuning.")
figures.save_table(paired, "09_paired", caption="Paired differences.")

reported = ["clean", "pgd", "cw", f"pgd {radius(other_eps)}"]
wide = table[table["measure"].isin(reported)].assign(text=table.apply(contrasts.in_percent, axis=1))
wide = wide.pivot(index=fixed, columns="measure", values="text")[reported]
wide.loc[list(dict.fromkeys(table[fixed].itertuples(index=False, name=None)))]

# %% [markdown]
# `pgd` and `cw` (PGD on the margin) are at the radius of training, the last column at the second radius. Means over seeds with Student's t interval; the rows of `start` are one model, with intervals over images.
# Accuracies near chance (one in the number of classes) say nothing.
#
# **AutoAttack** (Croce & Hein 2020), of the first seed; its standard budget is 100 steps, of which the defaults are a share, on fewer images. Prompt and adapter defences have been found to
# mask gradients, so that PGD alone would not do.

# %%
first_runs = first_of(planned)
attacked = run_trials([*first_runs.values()], auto, workers=workers, progress="AutoAttack")
rows = [
    row | dict(zip(fixed, (named[key[0]], *key[1:]), strict=True))
    for key, run in zip(first_runs, attacked, strict=True)
    for row in contrasts.tabulate({"": [run]}, attack_eps).query("measure != 'average'").to_dict("records")
]
auto_table = pd.DataFrame(rows)
if rows:
    auto_table = auto_table.drop(columns=["value_low", "value_high"]).assign(steps=autoattack_steps)
    figures.save_table(auto_table, "09_autoattack", caption="AutoAttack.")
auto_table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (d) Robustness against trainable parameters, and the gap to full adversarial training
#
# Above: every adapter at its number of trained parameters; bars are intervals over seeds. Below: differences to `full`, paired on the same images; thick: Student's t over seeds, thin: bootstrap over images.
# The claim is that the gap of `lnlora` is small: an interval that contains zero does not show that, one that lies within a few points does.

# %%
first_data = named[data]
panels = [(label, method) for dataset, label in begun if dataset == data for method in losses(label)]
figure, axes = figures.subplots(2, len(panels), height=3.6, sharex=True, sharey="row", squeeze=False)
for column, (label, method) in enumerate(panels):
    part = table[(table["data"] == first_data) & (table["start"] == label) & (table["training"] == method)]
    for axis, measure in zip(axes[:, column], ("clean", "pgd"), strict=True):
        for name, row in part[part["measure"] == measure].set_index("method").iterrows():
            if name == "start":
                axis.axhline(row["value"], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
                continue
            ends = [min(max(end, 0), 1) for end in contrasts.ends(row)]  # Student's t of few seeds leaves the scale
            axis.plot([row["trainable"]] * 2, ends, color=colors[name], linewidth=1)
            axis.plot(row["trainable"], row["value"], "o", color=colors[name], label=name if column == 0 else None)
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes[0, column].set_title(f"{label} start, {method}", fontsize=8)
    axes[1, column].set_xlabel("trained parameters")
axes[0, 0].set_ylabel("clean accuracy")
axes[1, 0].set_ylabel(f"under PGD, {radius(attack_eps)}")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), fontsize=7)
_ = figures.save_figure(figure, "09_parameters")

# %%
gaps = paired[(paired["against"] == "full") & (paired["data"] == first_data) & paired["measure"].isin(reported)]
names = [name for name in kinds if name != "full"]
shades = dict(zip(panels, sns.color_palette("colorblind")[: len(panels)], strict=True))
figure, axes = figures.subplots(1, len(reported), height=2.6, sharey=True)
for axis, measure in zip(axes, reported, strict=True):
    of_measure = gaps[gaps["measure"] == measure]
    for number, ((label, method), color) in enumerate(shades.items()):
        rows = of_measure[(of_measure["start"] == label) & (of_measure["training"] == method)]
        places = [place + 0.7 * ((number + 0.5) / len(shades) - 0.5) for place in range(len(names))]
        look = dict(color=color, label=f"{label}, {method}", markersize=3)
        figures.intervals(axis, rows.set_index("method").loc[names], places=places, **look)
    reach = of_measure[["images_low", "images_high"]].abs().to_numpy().max()
    axis.set_xlim(-1.15 * reach, 1.15 * reach)  # of Student's t with two seeds only a part fits
    axis.set_title(measure, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axis.tick_params(axis="y", length=0)
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
figure.supxlabel("accuracy minus that of full (points)", fontsize=8)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(panels), fontsize=7)
figures.save_figure(figure, "09_gap")
gaps[gaps["method"] == "lnlora"].style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (e) How far does LayerNorm move?
#
# Paper B's motivation: scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs, hence the learnable LayerNorm on the branch. To be special, the change must be larger than that of the
# other parameters, and larger than what *standard* finetuning of as many steps does to them. Norm of the change over norm before it, by layer: `vit_robust` against its start, the shipped model, and
# the runs of section (c) in full with `pgd_at` and, as control, with `standard`.

# %%
KINDS = ("LayerNorm scale", "LayerNorm bias", "weight", "bias")  # the last two: of linear layers and the embedding


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
                old, new = (tensor.detach().double().flatten().cpu() for tensor in (value, moved[f"{path}.{last}"]))
                relative = (new - old).norm().item() / old.norm().item()
                cosine = cosine_similarity(old, new, dim=0).item()
                rows.append({"name": name, "kind": kind, "depth": depth, "relative": relative, "cosine": cosine})
    return pd.DataFrame(rows)


# %%
changes = {"vit_robust": [(vit, start_of(Trial("start", start="vit_robust")))]} if is_shipped else {}
for method in ("standard", "pgd_at"):
    runs = groups.get((data, "standard", method, "full"), [])
    changes[method] = [(start_of(run.trial), model_of(run)) for run in runs]
shifts = pd.concat(
    [
        parameter_shift(*pair).assign(model=model, seed=s)
        for model, models in changes.items()
        for s, pair in enumerate(models, seed)
    ]
)
by_layer = shifts.groupby(["model", "kind", "depth", "name"], sort=False)[["relative", "cosine"]].mean().reset_index()
layernorm = pd.DataFrame(
    [
        {"model": model, "kind": kind}
        | statistics.mean(rows["relative"]).columns("relative")
        | {"cosine": rows["cosine"].mean()}
        for (model, kind), rows in by_layer.groupby(["model", "kind"], sort=False)
    ]
)
figures.save_table(by_layer, "09_shift", caption="Relative change of every tensor.")
figures.save_table(layernorm, "09_layernorm", caption="Its mean over tensors.")
figure, axes = figures.subplots(1, len(changes), height=2.4, sharey=True)
titles = {"vit_robust": "vit_robust"} | {name: f"{name}, {steps} steps" for name in ("standard", "pgd_at")}
for axis, model in zip(axes, changes, strict=True):
    for number, kind in enumerate(KINDS):
        line = by_layer[(by_layer["model"] == model) & (by_layer["kind"] == kind)]
        across = line.groupby("depth")["relative"].mean()
        axis.plot(across.index, across, "o-", markersize=3, color=sns.color_palette()[number], label=kind)
        axis.plot(line["depth"], line["relative"], ".", markersize=2, alpha=0.5, color=sns.color_palette()[number])
    axis.set_yscale("log")
    axis.set(xlabel="block", title=titles[model])
axes[0].set_ylabel("relative change")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
figures.save_figure(figure, "09_layernorm")
layernorm.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (f) At 8/255, for 1,500 steps
#
# `vit_robust` was trained in all weights; the repository also carries an LNLoRA adapter of rank 3, trained from the same start on the same batches with the same attack and schedule, at its own learning
# rate. This is the setting in which a model of this size has learned something at 8/255; one run each, so that intervals are over images. `make checkpoint ARGS=vit_robust` makes it again, about an hour on one core, and `vit_robust_lnlora` the other.

# %%
long_eps = 8 / 255
robust_models = ("vit_robust", "vit_robust_lnlora") if is_shipped else ()
long_runs = {"start": Trial("start")} | {name: Trial("start", start=name) for name in robust_models}
threats = (Threat(f"pgd-{evaluation_steps}", long_eps), Threat(f"cw-{evaluation_steps}", long_eps))
few = replace(auto, threats=(replace(auto.threats[0], eps=long_eps),))
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
    figures.save_table(long_table, "09_long", caption="After 1,500 steps at 8/255.")
    figures.save_table(long_paired, "09_long_paired", caption="Paired differences.")
long_table.style.format(precision=3).hide(axis="index")

# %%
long_paired.style.format(precision=4).hide(axis="index")

# %% [markdown]
# What could fake robustness, by the checks of AutoAttack and of Carlini et al. 2019 (see `gradient_masking`), on the robust models of this section.

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
    figures.save_table(warnings, "09_warnings", caption="What could fake robustness.")
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
# | optimiser | AdamW, cosine, own rate an adapter | not known |
# | loss, attack | PGD-AT and TRADES; few steps | adversarial finetuning; not known |
# | models, data | a ViT of 0.7 M parameters, CIFAR-10; CIFAR-100 by `more_data`, a ViT-Ti/16 on Imagenette by `model` and `data` | ViTs on CIFAR-10, CIFAR-100, Imagenette |

# %% [markdown]
# ## The answer
#
# "Comparable" is taken as not worse by more than 2 points: an interval that contains zero would not show it.

# %%
from nullpaper.studies.verdicts import (
    BETTER,
    FEWEST_SEEDS,
    NAMES,
    WORSE,
    Answer,
    Verdicts,
    above,
    compare,
    difference,
    every,
    grade,
    interval,
    negate,
    number,
    over_images,
    percent,
    points,
    row,
    rows,
    some,
    word,
)

answer = Verdicts()
BOUND = statistics.Interval(-0.02, -0.02, -0.02, 1)  # accuracy that may be lost where robustness is called comparable
ATTACKED = ("pgd", "cw")
AT = f"at {255 * attack_eps:.3g}/255"
STANDARD = {"data": Path(data).name, "start": "standard", "training": "pgd_at"}
ROBUST = STANDARD | {"start": "robust"}


def comparable_to(over_seeds: statistics.Interval, images: statistics.Interval) -> Answer:
    """Whether no more than the bound is lost, by both intervals; one or two runs decide nothing."""
    answers = {above(images, BOUND), above(over_seeds, BOUND)}
    return answers.pop() if len(answers) == 1 and over_seeds.n >= FEWEST_SEEDS else None


@answer.claim(
    "B",
    "abstract",
    "adversarial training of about 5 % of the parameters (LNLoRA) is as robust as of all of them",
    where="09 (d), (f)",
    criterion="holds if under PGD and CW it loses less than 2 points beyond doubt, both after 1,500 steps at 8/255 "
    f"(the shipped model; interval over images) and in the runs {AT} from the standard start (intervals over three "
    "seeds or more and over images); in part if in one of the two; does not hold if in neither and one of them is "
    "beyond doubt worse than that",
)
def comparable() -> tuple[str, str]:
    share = row(stored_sizes, adapter="lnlora")["share"]
    after_short, _ = compare(paired, "lnlora", "full", ATTACKED, **STANDARD)
    texts, answers = [f"{100 * share:.1f} % of the parameters"], []
    if len(long_paired):
        gains = {name: over_images(long_paired, "vit_robust_lnlora", "vit_robust", name) for name in ATTACKED}
        after_long = ", ".join(
            f"{NAMES[name]} {points(gain, None).removesuffix(' points')}" for name, gain in gains.items()
        )
        texts.append(f"{after_long} points after 1,500 steps at 8/255 (one run, {gains['pgd'].n:,} images)")
        answers.append(every(above(gain, BOUND) for gain in gains.values()))
    pairs = [difference(paired, "lnlora", "full", measure, **STANDARD) for measure in ATTACKED]
    answers.append(every(comparable_to(over_seeds, images) for over_seeds, images, _ in pairs))
    measured = "; ".join([*texts, f"{AT}: {after_short}"])
    if True not in answers and False in answers:
        return measured, "does not hold"
    return measured, word(every(answers), some(answers))


@answer.claim(
    "B",
    "abstract",
    "the LayerNorm in front of the branch makes the difference to LoRA",
    where="09 (c)",
    criterion=BETTER
    + f"Holds if LNLoRA is better than LoRA of its rank under PGD and CW {AT} from the standard start, in part if "
    "on one" + WORSE,
)
def norm_matters() -> tuple[str, str]:
    measured, answers = compare(paired, "lnlora", "lora", ATTACKED, **STANDARD)
    return f"{AT}: {measured}", grade(answers.values())


@answer.claim(
    "B",
    "motivation",
    "scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs",
    where="09 (e)",
    criterion="holds if both change relatively more than the weights of the other layers do, and more than under "
    "standard finetuning of as many steps; in part if one of the two does",
)
def layernorm_shift() -> tuple[str, str]:
    def of(model: str, kind: str) -> statistics.Interval:
        return interval(row(layernorm, model=model, kind=kind), "relative")

    def in_words(changed: dict[str, statistics.Interval]) -> str:
        return ", ".join(f"{kind} {percent(change, None)}" for kind, change in changed.items())

    texts, answers, kinds_of_norm = [], [], ("scale", "bias")
    for label, name in (("vit_robust", "after 1,500 steps at 8/255"), ("pgd_at", "after the runs of (c)")):
        if label == "vit_robust" and not len(long_paired):
            continue  # the long run is the shipped model's
        others = of(label, "weight")
        changed = {kind: of(label, f"LayerNorm {kind}") for kind in kinds_of_norm}
        texts.append(f"{name} {in_words(changed)}, other weights {percent(others, None)}")
        answers += [above(change, others) for change in changed.values()]
    control = {kind: of("standard", f"LayerNorm {kind}") for kind in kinds_of_norm}
    texts.append(f"standard finetuning {in_words(control)}")
    answers += [above(of("pgd_at", f"LayerNorm {kind}"), change) for kind, change in control.items()]
    scale, bias = answers[0::2], answers[1::2]
    return "; ".join(texts), word(every(answers), some((every(scale), every(bias))))


@answer.claim(
    "B",
    "abstract",
    "it saves storage",
    where="09 (a)",
    criterion="holds if the files of the adapter take less than a tenth of the checkpoint's bytes",
)
def storage() -> tuple[str, str]:
    lines = {name: row(stored_sizes, adapter=name) for name in ("full", "lnlora")}
    sizes = {name: f"{line['stored_bytes'] / 1e3:,.0f} kB" for name, line in lines.items()}
    share = lines["lnlora"]["stored_share"]
    return f"{sizes['lnlora']} of {sizes['full']}, {100 * share:.1f} %", word(bool(share < 0.1))


def model_named(line: pd.Series) -> str:
    name = "shipped ViT" if line["model"] == "nullpaper_vit_cifar10" else line["model"]
    return f"{name} (batch {line['batch']})"


@answer.claim(
    "B",
    "abstract",
    "it saves training time",
    where="09 (b)",
    criterion="holds if on every model measured a step takes beyond doubt less than 0.9 of the time with an attack "
    "that differentiates with respect to the pixels alone; in part if on some, or with one that computes gradients of "
    "the weights too",
)
def training_time() -> tuple[str, str]:
    answers: dict[str, list[Answer]] = {"careful": [], "careless": []}
    texts = []
    for _, line in rows(cost_table, adapter="lnlora").iterrows():
        told = []
        for kind, prefix in (("careful", ""), ("careless", "careless_")):
            bounds = (float(line[f"{prefix}ratio{end}"]) for end in ("", "_low", "_high"))
            ratio = statistics.Interval(*bounds, int(line[f"{prefix}n"]))
            told.append(f"{kind} attack {number(ratio, '.2f', None)}")
            answers[kind].append(above(statistics.Interval(0.9, 0.9, 0.9, 1), ratio))
        texts.append(f"{model_named(line)} {', '.join(told)}")
    part = some([*answers["careful"], *answers["careless"]])
    return f"time of a step, of full's: {'; '.join(texts)}", word(every(answers["careful"]), part)


@answer.claim(
    "",
    "",
    "it saves memory in training",
    where="09 (b)",
    criterion="holds if on every model measured weights, moments and the highest point of a step take less than 0.9 of "
    "full's in all; in part if on some",
)
def training_memory() -> tuple[str, str]:
    texts, answers = [], []
    for _, line in rows(cost_table, adapter="lnlora").iterrows():
        full = row(cost_table, adapter="full", model=line["model"])
        ratios = {name: line[name] / full[name] for name in ("gradients", "optimizer", "step_peak", "total")}
        told = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items())
        texts.append(f"{model_named(line)} {told}")
        answers.append(bool(ratios["total"] < 0.9))
    return f"of full's: {'; '.join(texts)}", word(every(answers), some(answers))


@answer.claim(
    "",
    "RoLI, CVPR 2024, on other adapters",
    "from a standard start it stays behind full adversarial training, from a robust one a linear probe is enough",
    where="09 (d)",
    criterion=f"holds if {AT} LNLoRA is resolved worse than full under PGD from the standard start, and the linear "
    "probe loses less than 2 points to full from the robust start; in part if one of the two",
)
def robust_start() -> tuple[str, str]:
    behind, better = compare(paired, "lnlora", "full", ("pgd",), **STANDARD)
    enough, _ = compare(paired, "linear", "full", ("pgd",), **ROBUST)
    over_seeds, images, _ = difference(paired, "linear", "full", "pgd", **ROBUST)
    answers = negate(better["pgd"]), comparable_to(over_seeds, images)
    return f"LNLoRA from standard: {behind}; linear probe from robust: {enough}", word(every(answers), some(answers))


figures.save_table(answer.table(), "09_verdicts", caption="What paper B says of LNLoRA.")
answer.show(
    f"our instantiation of paper B, {steps} steps of {batch_size} images, {images} test images and {seeds} seeds, "
    f"{model} on {Path(data).name}; (f) is one run each."
)
