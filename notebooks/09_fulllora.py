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

# %% tags=["parameters"]
profile: str = "cpu"
images: int | None = None  # test images; None: the profile's, as for all below down to adapters
steps: int | None = None  # gradient steps a run
batch_size: int | None = None  # images a step
rounds: int | None = None  # looks at dev, of which the best is kept
attack_steps: int | None = None  # steps of the attack in training
evaluation_steps: int | None = None  # steps of PGD and CW at the end
attack_eps: float | None = (
    None  # L-infinity radius in training and at the end, in pixel units; None: 2/255 at smoke and cpu, 8/255
)
other_eps: float | None = None  # a second radius at the end; None: 8/255 at smoke and cpu, 4/255
methods: list[str] | None = None  # of adversarial training
robust_methods: list[str] | None = None  # those of them that the robust start is run with too
adapters: list[str] | None = None  # names of the table above
starts: list[str] | None = None  # standard, robust
data_sets: list[str] | None = None  # cifar10, cifar100, imagenette; other classes than the start's get a new head
imagenette_start: str = "vit_small_patch16_224"  # a timm ViT
imagenette_weights: str | None = None  # a safetensors file for it; None: timm's hub
rank: int | None = None  # of the branches; None: 3, which is about 5 % of the shipped ViT, and 16 on Imagenette's
autoattack_steps: int | None = None  # of each attack in AutoAttack, 100 being standard; None: the profile's
autoattack_images: int | None = None  # test images under AutoAttack; None: the profile's
long_images: int | None = None  # test images of section (f); None: the profile's
cost_models: list[str] | None = None  # ViTs of section (b); None: the shipped one, at gpu and imagenet ViT-S/16 too
repeats: int | None = None  # timed steps an adapter; None: the profile's
seeds: int | None = None  # runs an adapter; None: the profile's
seed: int = 0  # the first of the seeds
workers: int | None = None  # processes side by side; None: one a thread on a CPU, one on a GPU
retrain: bool = False  # train vit_robust_lnlora of section (f) again instead of loading it

# %%
import json
from dataclasses import asdict, replace

import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import MaxNLocator, NullLocator

from nullpaper import statistics
from nullpaper.adapters import files as adapter_files
from nullpaper.adapters import inject as adapters_of
from nullpaper.data import datasets as data
from nullpaper.data.fetch import cache_home
from nullpaper.errors import InputError
from nullpaper.files import write_atomic
from nullpaper.finetuning import costs
from nullpaper.finetuning import finetune as finetuning
from nullpaper.models import checkpoints as classifiers
from nullpaper.models import vit
from nullpaper.robustness import attacks, evaluation
from nullpaper.robustness import gradient_masking as diagnosis
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts, design, shift
from nullpaper.studies import trials as experiments
from nullpaper.studies.trials import Protocol, Trial
from nullpaper.workflow import figures as plots
from nullpaper.workflow.provenance import device_name, project_root
from nullpaper.workflow.store import Result, stored

plots.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
WIDER = "vit_small_patch16_224"
large = dict(autoattack_steps=100, autoattack_images=1_000, long_images=10_000)
large |= dict(cost_models=[vit.SHIPPED, WIDER], cost_batch=128, repeats=20)
own = {
    "smoke": dict(autoattack_steps=1, autoattack_images=2, long_images=4, data_sets=["cifar10"])
    | dict(cost_models=[vit.SHIPPED], cost_batch=8, repeats=1),
    "cpu": dict(autoattack_steps=5, autoattack_images=10, long_images=128, data_sets=["cifar10"])
    | dict(cost_models=[vit.SHIPPED], cost_batch=32, repeats=4, robust_methods=["pgd_at"]),
    "gpu": large | dict(data_sets=["cifar10", "cifar100"]),
    "imagenet": large | dict(data_sets=["cifar10", "cifar100", "imagenette"]),
}[profile]
size = design.ADVERSARIAL_SIZES[profile] | dict(robust_methods=["pgd_at", "trades"]) | own
size = design.chosen(size, globals())
for name, given, known in (
    ("adapters", size["adapters"], design.ADAPTERS),
    ("starts", size["starts"], design.STARTS),
):
    if wrong := [item for item in given if item not in known]:
        raise InputError(f"{name}: '{wrong[0]}' is unknown; choose from {', '.join(known)}.")
if "full" not in size["adapters"]:
    raise InputError("adapters lacks 'full', which all others are compared with: add it.")
attack_eps, other_eps, run_seeds = size["attack_eps"], size["other_eps"], range(seed, seed + size["seeds"])
kinds = [name for name in design.ADAPTERS if name in size["adapters"]]
colors = dict(zip(design.ADAPTERS, sns.color_palette("colorblind", len(design.ADAPTERS)), strict=True))
colors |= {"full": (0.2,) * 3, "start": (0.6,) * 3}


def radius(eps: float) -> str:
    return f"{255 * eps:.3g}/255"


def through(name: str, wide: bool) -> experiments.Through | None:
    """The adapter of that name, at the rank that gives about 5 % of the model's parameters."""
    found = design.ADAPTERS[name]
    chosen_rank = rank or (design.RANK_WIDE if wide else design.RANK)
    return replace(found, r=chosen_rank) if name in ("lora", "lnlora") else found


# %% [markdown]
# ## (a) What trains, and what has to be stored
#
# Counts and sizes of the shipped ViT, whose share is of its own parameters (head included), and of its file. Injection must change nothing: the largest difference of any logit before training is exactly 0.

# %%
cifar = data.load_data("cifar10", progress=False)
pictures, labels = next(iter(cifar.train.batches(size["cost_batch"], image_size=48, device=device)))
models = {}
for name in kinds:
    plain, spec = vit.load_vit(vit.SHIPPED, device=device), through(name, wide=False)
    models[name] = plain if spec is None else adapters_of.adapted_copy(plain, spec.options(), seed)
plain = vit.load_vit(vit.SHIPPED, device=device)
rows = []
for name, model in models.items():
    with torch.inference_mode():
        changed = (model(pictures) - plain(pictures)).abs().max().item()
    spec = through(name, wide=False)
    formula = (
        sum(p.numel() for p in plain.parameters())
        if spec is None
        else adapters_of.expected_parameters(plain, spec.kind, r=spec.r)
    )
    rows.append({"adapter": name, **costs.storage(model), "formula": formula, "logits_changed_by": changed})
stored_sizes = pd.DataFrame(rows)
_ = plots.save_table(stored_sizes, "09_storage", caption="Trained parameters and stored bytes.")
stored_sizes.style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (b) Memory and time of a training step
#
# Gradients and moments shrink with the trained parameters; activations shrink only in part, since LayerNorm, GELU and softmax keep theirs whoever trains. `step_peak` is what one step of adversarial
# training takes at its highest point beyond weights and moments. The time saved is small by construction: with forward pass, gradient to the input and gradient to the weights at one unit each, an attack of
# $k$ steps and the update cost $2k + 3$ units in full and $2k + 2$ with a frozen backbone, unless the attack carelessly differentiates with respect to the weights too ($3k + 3$ against $2k + 2$). Both are
# measured, interleaved in one process, as ratios to `full`.

# %%
recipe, protocol = design.adversarial(size, attack_eps=attack_eps, other_eps=other_eps, seed=seed)


def measured_costs(name: str) -> list[dict[str, object]]:
    """Memory and time of a step of a model, a row an adapter; its weights do not matter."""
    whole = vit.load_vit(name, pretrained=False, num_classes=10, device=device)
    measured = {}
    for kind in kinds:
        spec = through(kind, wide=name != vit.SHIPPED)
        measured[kind] = whole if spec is None else adapters_of.adapted_copy(whole, spec.options(), seed)
    batch = size["cost_batch"] if name == vit.SHIPPED else -(-size["cost_batch"] // 8)
    points, classes = next(iter(cifar.train.batches(batch, image_size=whole.image_size, device=device)))
    taken = {kind: costs.memory(model, "pgd_at", recipe, points, classes) for kind, model in measured.items()}
    options = dict(repeats=size["repeats"], seed=seed)
    times = [
        costs.step_times(measured, "pgd_at", recipe, points, classes, careless=careless, **options)
        .set_index("name")
        .add_prefix("careless_" if careless else "")
        for careless in (False, True)
    ]
    timed = pd.concat(times, axis=1)
    counts = {
        kind: dict(zip(("trainable", "share"), adapters_of.trainable(m), strict=True)) for kind, m in measured.items()
    }
    labels = {"model": name, "batch": batch}
    return [{**labels, "adapter": kind, **counts[kind], **taken[kind], **timed.loc[kind].to_dict()} for kind in kinds]


def all_costs() -> list[dict[str, object]]:
    """On a CPU with one thread, whose time a busy machine does not blur."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads if device == "cuda" else 1)
        return [row for name in size["cost_models"] for row in measured_costs(name)]
    finally:
        torch.set_num_threads(threads)


given = {"models": size["cost_models"], "batch": size["cost_batch"], "recipe": asdict(recipe), "rank": rank}
given |= {"repeats": size["repeats"], "adapters": kinds, "seed": seed, "device": device_name()}
timed = stored("costs", given, all_costs, code=[costs], data=cifar.identity)
table_of_costs = pd.DataFrame(timed.metrics)
_ = plots.save_table(table_of_costs, "09_costs", caption="Memory and time of a step.", sources=[timed])
table_of_costs.style.format(precision=3).hide(axis="index")

# %%
parts = {"parameters": "weights", "optimizer": "moments", "step_peak": "step, at its peak"}
shades = "0.75", sns.color_palette()[1], sns.color_palette()[0]
attacks_timed = {"": "gradients to pixels", "careless_": "and to weights"}
figure, axes = plots.subplots(len(size["cost_models"]), 2, height=0.4 + 1.8 * len(size["cost_models"]), squeeze=False)
for (left_axis, right_axis), (name, rows) in zip(axes, table_of_costs.groupby("model", sort=False), strict=True):
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
_ = plots.save_figure(figure, "09_costs", sources=[timed])

# %% [markdown]
# ## (c) The runs
#
# `pgd_at` is Madry's loss, `trades` Zhang et al.'s ($\beta = 6$). The best round is chosen on dev by accuracy under the attack of training; the averaged weights are judged on test images that nothing else reads.
# Profiles without a GPU train at a radius of 2/255, since 8/255 needs more steps than they have (section f has it), and `cpu` runs TRADES from the standard start alone.


# %%
def losses(label: str) -> list[str]:
    """The losses that a start is run with."""
    return [name for name in size["methods"] if label == "standard" or name in size["robust_methods"]]


settings = [
    (dataset, label, name)
    for dataset in size["data_sets"]
    for label, name in (
        {"standard": imagenette_start}
        if dataset == "imagenette"
        else {key: design.STARTS[key] for key in size["starts"]}
    ).items()
]


def begun(dataset: str, start: str) -> dict[str, object]:
    """Where a run begins, and on what."""
    return dict(start=start, weights=imagenette_weights if dataset == "imagenette" else None, data=dataset)


def runs_of(dataset: str, start: str, method: str, name: str) -> list[Trial]:
    options = dict(adapter=through(name, wide=dataset == "imagenette"), **begun(dataset, start))
    return [design.adversarial_trial(method, s, size["steps"], recipe, **options) for s in run_seeds]


planned = {
    (dataset, label, method, name): runs_of(dataset, start, method, name)
    for dataset, label, start in settings
    for method in losses(label)
    for name in kinds
}
planned |= {
    (dataset, label, "", "start"): [Trial("start", **begun(dataset, start))] for dataset, label, start in settings
}
moved = {
    (dataset, label, "standard", "full"): runs_of(dataset, start, "standard", "full")
    for dataset, label, start in settings
}
moved = {key: trials for key, trials in moved.items() if key[1] == "standard"}  # control of section (e)
wanted = [trial for trials in [*planned.values(), *moved.values()] for trial in trials]
finished = dict(zip(wanted, experiments.run_trials(wanted, protocol, workers=workers, progress="runs"), strict=True))


def sources(trials: object) -> list[Result]:
    return [source for trial in trials for source in finished[trial].sources]


def group(dataset: str, label: str, method: str) -> dict[str, list[experiments.Trialled]]:
    """What one table compares: the start and every adapter."""
    keys = {"start": (dataset, label, "", "start")} | {name: (dataset, label, method, name) for name in kinds}
    return {name: [finished[trial] for trial in planned[key]] for name, key in keys.items()}


tables, differences = [], []
for dataset, label, _start in settings:
    for method in losses(label):
        groups, fixed = group(dataset, label, method), {"data": dataset, "start": label, "training": method}
        tables.append(contrasts.tabulate(groups, attack_eps).assign(**fixed))
        pairs = [(name, against) for against in ("full", "lora", "start") for name in kinds if name != against]
        pairs = [
            (first, second) for first, second in pairs if second in groups and (second != "lora" or first == "lnlora")
        ]
        differences.append(contrasts.contrast(groups, pairs, attack_eps).assign(**fixed))
fixed = ["data", "start", "training", "method"]
trained = stored_sizes.set_index("adapter")[["trainable", "share"]]
table = pd.concat(tables, ignore_index=True).assign(steps=size["steps"], eps=attack_eps)
table = table.join(trained, on="method")
table = table[fixed + [name for name in table if name not in fixed]]
paired = pd.concat(differences, ignore_index=True).assign(steps=size["steps"], eps=attack_eps)
paired = paired[fixed + [name for name in paired if name not in fixed]]
used = sources(trial for trials in planned.values() for trial in trials)
_ = plots.save_table(table, "09_table", caption="Accuracy after adversarial finetuning.", sources=used)
_ = plots.save_table(paired, "09_paired", caption="Paired differences.", sources=used)


def shown(row: pd.Series) -> str:
    low, high = (row["value_low"], row["value_high"]) if row["n"] > 1 else (row["images_low"], row["images_high"])
    return f"{100 * row['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


reported = ["clean", "pgd", "cw", f"pgd {radius(other_eps)}"]
wide = table[table["measure"].isin(reported)].assign(text=table.apply(shown, axis=1))
wide = wide.pivot(index=fixed, columns="measure", values="text")[reported]
wide.loc[list(dict.fromkeys(table[fixed].itertuples(index=False, name=None)))]

# %% [markdown]
# `pgd` and `cw` (PGD on the margin) are at the radius of training, the last column at the second radius. Means over seeds with Student's t interval; the rows of `start` are one model, with intervals over images.
# Accuracies near 10 % are chance.
#
# **AutoAttack** (Croce & Hein 2020), of the first seed; its standard budget of 100 steps belongs to profile `gpu`, the others take a share of it on fewer images. Prompt and adapter defences have been found to
# mask gradients, so that PGD alone would not do.

# %%
auto = Protocol(size["autoattack_images"], (Threat(f"autoattack-{size['autoattack_steps']}", attack_eps),), seed=seed)
auto_methods = size["methods"] if profile in ("gpu", "imagenet") else size["methods"][:1]
firsts = {key: trials[0] for key, trials in planned.items() if key[2] in ("", *auto_methods)}
if profile == "smoke":
    firsts = {key: trial for key, trial in firsts.items() if key[1] == "standard"}
under_auto = dict(
    zip(firsts, experiments.run_trials([*firsts.values()], auto, workers=workers, progress="AutoAttack"), strict=True)
)
rows = [
    row | dict(zip(fixed, key, strict=True))
    for key, run in under_auto.items()
    for row in contrasts.tabulate({"": [run]}, attack_eps)
    .query("measure in ('clean', 'autoattack')")
    .to_dict("records")
]
auto_table = pd.DataFrame(rows).drop(columns=["value_low", "value_high"]).assign(steps=size["autoattack_steps"])
auto_sources = [source for run in under_auto.values() for source in run.sources]
_ = plots.save_table(auto_table, "09_autoattack", caption="AutoAttack.", sources=auto_sources)
auto_table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (d) Robustness against trainable parameters, and the gap to full adversarial training
#
# Above: every adapter at its number of trained parameters; bars are intervals over seeds. Below: differences to `full`, paired on the same images; thick: Student's t over seeds, thin: bootstrap over images.
# The claim is that the gap of `lnlora` is small: an interval that contains zero does not show that, one that lies within a few points does.

# %%
first_data = size["data_sets"][0]
columns = [(label, method) for dataset, label, _ in settings if dataset == first_data for method in losses(label)]
figure, axes = plots.subplots(2, len(columns), height=3.6, sharex=True, sharey="row", squeeze=False)
for column, (label, method) in enumerate(columns):
    part = table[(table["data"] == first_data) & (table["start"] == label) & (table["training"] == method)]
    for axis, measure in zip(axes[:, column], ("clean", "pgd"), strict=True):
        for name, row in part[part["measure"] == measure].set_index("method").iterrows():
            if name == "start":
                axis.axhline(row["value"], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
                continue
            ends = (row["value_low"], row["value_high"]) if row["n"] > 1 else (row["images_low"], row["images_high"])
            ends = [min(max(end, 0), 1) for end in ends]  # Student's t of few seeds leaves the scale
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
_ = plots.save_figure(figure, "09_parameters", sources=used)

# %%
gaps = paired[(paired["against"] == "full") & (paired["data"] == first_data) & paired["measure"].isin(reported)]
names = [name for name in kinds if name != "full"]
marks = dict(zip(columns, sns.color_palette("colorblind")[: len(columns)], strict=True))
figure, axes = plots.subplots(1, len(reported), height=2.6, sharey=True)
for axis, measure in zip(axes, reported, strict=True):
    for number, ((label, method), color) in enumerate(marks.items()):
        rows = gaps[(gaps["measure"] == measure) & (gaps["start"] == label) & (gaps["training"] == method)]
        for place, (_, row) in enumerate(rows.set_index("method").loc[names].iterrows()):
            height = place + 0.7 * ((number + 0.5) / len(marks) - 0.5)
            axis.plot([row["images_low"], row["images_high"]], [height] * 2, color=color, linewidth=0.8)
            if row["n"] > 1:
                ends = [row["difference_low"], row["difference_high"]]
                axis.plot(ends, [height] * 2, color=color, linewidth=2.6, alpha=0.4)
            axis.plot(
                row["difference"],
                height,
                "o",
                color=color,
                markersize=3,
                label=f"{label}, {method}" if place == 0 else None,
            )
    reach = gaps[gaps["measure"] == measure][["images_low", "images_high"]].abs().to_numpy().max()
    axis.set_xlim(-1.15 * reach, 1.15 * reach)  # of Student's t with two seeds only a part fits
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set_title(measure, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axis.tick_params(axis="y", length=0)
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
figure.supxlabel("accuracy minus that of full (points)", fontsize=8)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(columns), fontsize=7)
_ = plots.save_figure(figure, "09_gap", sources=used)
gaps[gaps["method"] == "lnlora"].style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (e) How far does LayerNorm move?
#
# Paper B's motivation: scale and bias of LayerNorm differ strongly between standardly and adversarially trained ViTs, hence the learnable LayerNorm on the branch. To be special, the change must be larger than that of the
# other parameters, and larger than what *standard* finetuning of as many steps does to them. Norm of the change over norm before it, by layer: `vit_robust` against its start, and
# the runs of section (c) in full with `pgd_at` and, as control, with `standard`.

# %%
shifts = []
compared = {"vit_robust": [(vit.load_vit(vit.SHIPPED), classifiers.load_classifier("vit_robust"))]}
for method, key in (
    ("standard", (first_data, "standard", "standard", "full")),
    ("pgd_at", (first_data, "standard", "pgd_at", "full")),
):
    trials = {**planned, **moved}.get(key, [])
    compared[method] = [(experiments.start_of(trial), experiments.model_of(finished[trial])) for trial in trials]
for method, pairs_of_models in compared.items():
    for s, (before, after) in zip(run_seeds, pairs_of_models, strict=False):
        shifts.append(shift.parameter_shift(before, after).assign(model=method, seed=s))
shifts = pd.concat(shifts)
by_layer = shifts.groupby(["model", "kind", "depth", "name"], sort=False)[["relative", "cosine"]].mean().reset_index()
summary = pd.DataFrame(
    [
        {
            "model": model,
            "kind": kind,
            **statistics.mean(rows["relative"]).columns("relative"),
            "cosine": rows["cosine"].mean(),
        }
        for (model, kind), rows in by_layer.groupby(["model", "kind"], sort=False)
    ]
)
long_sources = sources(trial for trials in moved.values() for trial in trials)
_ = plots.save_table(by_layer, "09_shift", caption="Relative change of every tensor.", sources=long_sources)
_ = plots.save_table(summary, "09_layernorm", caption="Its mean over tensors.", sources=long_sources)
figure, axes = plots.subplots(1, len(compared), height=2.4, sharey=True)
titles = {
    "vit_robust": "vit_robust",
    "standard": f"standard, {size['steps']} steps",
    "pgd_at": f"pgd_at, {size['steps']} steps",
}
for axis, model in zip(axes, compared, strict=True):
    for number, kind in enumerate(shift.KINDS):
        line = by_layer[(by_layer["model"] == model) & (by_layer["kind"] == kind)]
        across = line.groupby("depth")["relative"].mean()
        axis.plot(across.index, across, "o-", markersize=3, color=sns.color_palette()[number], label=kind)
        axis.plot(line["depth"], line["relative"], ".", markersize=2, alpha=0.5, color=sns.color_palette()[number])
    axis.set_yscale("log")
    axis.set(xlabel="block", title=titles[model])
axes[0].set_ylabel("relative change")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
_ = plots.save_figure(figure, "09_layernorm", sources=long_sources)
summary.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (f) At 8/255, for 1,500 steps
#
# `vit_robust` was trained in all weights; the repository also carries an LNLoRA adapter of rank 3, trained from the same start on the same batches with the same attack and schedule, at its own learning
# rate. This is the setting in which a model of this size has learned something at 8/255; one run each, so that intervals are over images. `retrain` makes the adapter again (about an hour on one core).

# %%
through_lnlora = "vit_robust_lnlora"
if retrain:
    shipped = adapter_files.adapter_folder(through_lnlora)
    folder = project_root() / "build/smoke" / through_lnlora if profile == "smoke" else shipped
    known = json.loads((shipped / "record.json").read_text())
    again = dict(method=known["method"], steps=known["steps"], seed=known["seed"], adapter=known["adapter"])
    again["recipe"] = finetuning.FinetuneRecipe(**known["recipe"])
    if profile == "smoke":
        again |= dict(steps=size["steps"], recipe=recipe)
    made = finetuning.finetune(plain, cifar, folder=cache_home() / f"training-{through_lnlora}-{device}", **again)
    adapter_files.save_adapter(made.vit, folder)
    record = again | {"model": through_lnlora, "start": vit.fingerprint(plain), "recipe": asdict(again["recipe"])}
    record |= {"weights": vit.fingerprint(made.vit), "best_step": made.best_step, "seconds": made.seconds}
    record |= {"device": device_name(), "history": made.history}
    write_atomic(folder / "record.json", json.dumps(record, indent=1) + "\n")

long_eps = 8 / 255
robust_models = ("vit_robust", through_lnlora)
long_runs = {"start": [Trial("start")]} | {name: [Trial("start", start=name)] for name in robust_models}
threats = (Threat(f"fast_pgd-{size['evaluation_steps']}", long_eps), Threat(f"cw-{size['evaluation_steps']}", long_eps))
listed = [trial for trials in long_runs.values() for trial in trials]
judged = experiments.run_trials(
    listed, Protocol(size["long_images"], threats, seed=seed), workers=workers, progress="judged"
)
few = replace(auto, threats=(replace(auto.threats[0], eps=long_eps),))
attacked = experiments.run_trials(listed, few, workers=workers, progress="AutoAttack")
long_tables, long_pairs = [], []
for found in (judged, attacked):
    groups = {name: [run] for name, run in zip(long_runs, found, strict=True)}
    pairs = [(through_lnlora, "vit_robust"), *((name, "start") for name in robust_models)]
    wanted_measures = "measure != 'average'" if found is judged else "measure == 'autoattack'"
    long_tables.append(contrasts.tabulate(groups, long_eps).query(wanted_measures))
    long_pairs.append(contrasts.contrast(groups, pairs, long_eps).query(wanted_measures))
long_table, long_paired = (pd.concat(parts, ignore_index=True) for parts in (long_tables, long_pairs))
long_used = [source for run in [*judged, *attacked] for source in run.sources]
_ = plots.save_table(long_table, "09_long", caption="After 1,500 steps at 8/255.", sources=long_used)
_ = plots.save_table(long_paired, "09_long_paired", caption="Paired differences.", sources=long_used)
long_table.style.format(precision=3).hide(axis="index")

# %%
long_paired.style.format(precision=4).hide(axis="index")

# %% [markdown]
# What could fake robustness, by the checks of AutoAttack and of Carlini et al. 2019 (see `diagnosis`), on the robust models of this section.


# %%
def robust_model(name: str) -> vit.ViT:
    """One of `robust_models`."""
    load = adapter_files.load_adapted if name in adapter_files.ADAPTED else classifiers.load_classifier
    return load(name, device=device)


def checks() -> list[dict[str, str]]:
    """Warnings, a row a model."""
    split = cifar.test.subset(size["autoattack_images"], seed)
    points, classes = next(iter(split.batches(len(split), image_size=48, device=device)))
    n, rows = size["evaluation_steps"], []
    for name in robust_models:
        model = robust_model(name)
        found = diagnosis.diagnose(model, points, classes, eps=long_eps, seed=seed, steps=n, queries=10 * n)
        rows.append({"model": name, "images": len(split), "warnings": " ".join(found) or "none"})
    return rows


weights = [vit.fingerprint(robust_model(name)) for name in robust_models]
given = {"weights": weights, "seed": seed, "images": size["autoattack_images"], "steps": size["evaluation_steps"]}
checked = stored("diagnosis", given, checks, code=[attacks, diagnosis, evaluation])
warnings = pd.DataFrame(checked.metrics)
_ = plots.save_table(warnings, "09_warnings", caption="What could fake robustness.", sources=[checked])
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
# | loss, attack | PGD-AT and TRADES; steps of the profile | adversarial finetuning; not known |
# | models, data | a ViT of 0.7 M parameters, CIFAR-10; CIFAR-100 and Imagenette at `gpu` and `imagenet` | ViTs on CIFAR-10, CIFAR-100, Imagenette |
