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
# # 07 · Does nullspace noise make a ViT robust, or any noise, or just more finetuning?
#
# Paper A learns the largest noise $v$ behind the patch embedding that the encoder $f$ ignores up to $\varepsilon$, and finetunes on
# clean and noisy tokens $u$, with a fresh noise every few steps against the current weights $\phi$:
#
# $$\min_{\phi} \ \mathbb E\ \ell(f_\phi(u), y) + \ell(f_\phi(u + v^*), y), \qquad
# v^* = \arg\max_{v} \|v\| \ \text{ s.t. } \ \mathbb E\,\| p_\phi(u + v) - p_\phi(u) \|_2^2 \le \varepsilon .$$
#
# Its table 1 compares the result with the model *before* finetuning. That leaves three explanations: the nullspace noise, any noise, or
# the finetuning itself. The methods here share the start, the batches, the seeds, the number of steps and the schedule; each control
# removes one ingredient.
#
# | method | noise, fresh every round | what it controls for |
# |---|---|---|
# | `start` | | the paper's baseline: no finetuning |
# | `standard` | | more finetuning |
# | `zero` | $v = 0$, through the same two branches | the recipe without its ingredient |
# | `nullspace` | the largest found within $\varepsilon$ (every token the same norm, see 02) | |
# | `random` | Gaussian, scaled to the same $\varepsilon$ | any noise that is as harmless |
# | `random_norm` | Gaussian, of the learned noise's norm | any noise that is as large |
# | `permuted` | the learned noise's entries in another order | its values without its direction |
# | `pgd_at`, `trades` | | adversarial training (Madry et al. 2018, Zhang et al. 2019) |
#
# Noise is learned on dev images that select nothing; the best round is chosen on other dev images, by clean accuracy (adversarial training:
# by accuracy under its own attack). Test images are read once, at the end.

# %% tags=["parameters"]
profile: str = "cpu"
images: int | None = None  # test images; None: the profile's
steps: int | None = None  # gradient steps a run; None: the profile's
steps_per_noise: int | None = None  # steps between fresh noises; None: the profile's
batch_size: int | None = None  # images a step; None: the profile's
noise_images: int | None = None  # dev images behind a noise; None: the profile's
noise_steps: int | None = None  # steps of its synthesis; None: the profile's
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
attack_eps: float = 0.00392156862745098  # L-infinity radius of the table's attacks in pixel units: 1/255, as in paper A
strong_eps: float = 0.03137254901960784  # radius of adversarial training and of its own column: 8/255
attack_steps: int | None = None  # steps of the attack in adversarial training; None: the profile's
learning_rate: float = 0.0005  # peak, the same for all methods
methods: list[str] | None = None  # finetuning methods; None: all of the table above, a few at smoke
evaluation_steps: int | None = (
    None  # steps of PGD and CW at the end, half those of the patch attack; None: the profile's
)
severities: list[int] | None = None  # of the corruptions; None: the profile's
autoattack_steps: int | None = None  # of each attack in AutoAttack, 100 being standard; None: the profile's
autoattack_images: int | None = None  # test images under AutoAttack; None: the profile's
seeds: int | None = None  # runs a method; None: the profile's
seed: int = 0  # the first of the seeds
workers: int | None = None  # processes side by side; None: one a thread on a CPU, one on a GPU
retrain: bool = False  # train vit_robust of section (e) again instead of loading it

# %%

import json
from dataclasses import asdict

import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import MaxNLocator

from nullpaper import statistics
from nullpaper.data import datasets as data
from nullpaper.data.fetch import cache_home
from nullpaper.files import write_atomic
from nullpaper.finetuning import finetune as finetuning
from nullpaper.models import checkpoints as classifiers
from nullpaper.models import vit
from nullpaper.robustness import attacks, comparison, evaluation
from nullpaper.robustness import gradient_masking as diagnosis
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import contrasts, design
from nullpaper.studies import trials as experiments
from nullpaper.studies.trials import Protocol, Trial
from nullpaper.workflow import figures as plots
from nullpaper.workflow.provenance import device_name, project_root
from nullpaper.workflow.store import stored

plots.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
own = {
    "smoke": dict(autoattack_steps=1, autoattack_images=2, checked_images=4),
    "cpu": dict(autoattack_steps=5, autoattack_images=16, checked_images=24),
}.get(profile, dict(autoattack_steps=100, autoattack_images=1_000, checked_images=200))
size = design.chosen(design.SIZES[profile] | own, globals())
run_seeds = range(seed, seed + size["seeds"])
chosen = size["methods"]

# %% [markdown]
# ## (a) The runs
#
# Clean and noisy branch go through one forward pass; AdamW, a cosine schedule, clipped gradients, averaged weights. A run that is killed
# continues from its last round, and runs that are finished are found in the store.

# %%
radii = dict(attack_eps=attack_eps, strong_eps=strong_eps)
recipe, protocol, boundary = design.shared(size, eps=eps, learning_rate=learning_rate, seed=seed, **radii)
n, watched = size["evaluation_steps"], set(design.WATCHED) & set(chosen)
trials = [Trial("start")]
trials += [design.trial(method, s, size["steps"], recipe, boundary) for method in chosen for s in run_seeds]
finished = experiments.run_trials(trials, protocol, workers=workers, progress="finetuning")
groups = {name: [run for run in finished if run.trial.method == name] for name in ["start", *chosen]}
sources = [source for run in finished for source in run.sources]

rounds = pd.DataFrame(
    [{"method": r.trial.method, "seed": r.trial.seed, "chosen": r.best_step} | h for r in finished for h in r.history]
)
rounds = rounds.drop(columns="seconds")
_ = plots.save_table(rounds, "07_rounds", caption="Every round of every run.", sources=sources)
last = rounds.sort_values("step").groupby(["method", "seed"], sort=False).last().reset_index()
last[
    [c for c in ("method", "seed", "chosen", "loss", "dev_accuracy", "noise_norm", "noise_influence") if c in last]
].style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (b) The table
#
# Rows are methods, columns what they are worth: clean; FGSM, PGD with 20 steps and CW (PGD on the margin) at $\|\delta\|_\infty \le 1/255$; PGD at 8/255, the
# radius of adversarial training; a patch attack in the manner of Patch-Fool (all pixels of the most attended patch); the four families of CIFAR-10-C; and the
# average of clean, FGSM, PGD, CW, patch and corruptions. Means over seeds with Student's t interval; `start` is one model, its intervals are over images.

# %%
table = contrasts.tabulate(groups, attack_eps).assign(steps=size["steps"])
_ = plots.save_table(table, "07_table", caption="Accuracy of the finetuned models.", sources=sources)


def shown(row: pd.Series) -> str:
    low, high = (row["value_low"], row["value_high"]) if row["n"] > 1 else (row["images_low"], row["images_high"])
    return f"{100 * row['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


wide = table.assign(text=table.apply(shown, axis=1)).pivot(index="method", columns="measure", values="text")
order = list(dict.fromkeys(table["measure"]))
wide.loc[list(groups), order]

# %% [markdown]
# Mean corruption error (mCE), as published relative to a reference net: here the start, which has 100; less is better. (A reference without errors has no mCE.)

# %%
reference = groups["start"][0].frame
errors = 1 - reference[reference["kind"] == "corruption"].groupby("name")["accuracy"].mean()
rows = [
    {"method": name}
    | statistics.over_seeds([comparison.mean_corruption_error(r.frame, reference).value for r in runs]).columns("mce")
    for name, runs in groups.items()
    if errors.min() > 0
]
if rows:
    _ = plots.save_table(pd.DataFrame(rows), "07_mce", caption="Mean corruption error, start = 100.", sources=sources)
pd.DataFrame(rows).style.format(precision=1).hide(axis="index")

# %% [markdown]
# **AutoAttack** (Croce & Hein 2020: APGD-CE, targeted APGD, targeted FAB, Square) is the headline number of a robust model. Its standard budget is 100 steps and
# 5,000 queries an image; profile `gpu` pays it, the others a share of it on fewer images of the first seed, which the table says. Intervals are over images.

# %%
auto = Protocol(size["autoattack_images"], (Threat(f"autoattack-{size['autoattack_steps']}", attack_eps),), seed=seed)
auto_seeds = run_seeds if profile in ("gpu", "imagenet") else run_seeds[:1]
auto_methods = ["start", "nullspace"] if profile == "smoke" else ["start", *chosen]
firsts = [t for t in trials if t.method in auto_methods and (t.method == "start" or t.seed in auto_seeds)]
under_auto = experiments.run_trials(firsts, auto, workers=workers, progress="AutoAttack")
auto_groups = {name: [run for run in under_auto if run.trial.method == name] for name in groups if name in auto_methods}
auto_table = contrasts.tabulate(auto_groups, attack_eps).query("measure in ('clean', 'autoattack')")
auto_table = auto_table.assign(steps=size["autoattack_steps"])
_ = plots.save_table(
    auto_table, "07_autoattack", caption="AutoAttack.", sources=[s for run in under_auto for s in run.sources]
)
auto_table.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (c) Is it the nullspace?
#
# Differences to `zero`, the same finetuning without noise, paired on the same images. Thick: Student's t over seeds (other trainings); thin: bootstrap over images
# (other test sets). A difference is called resolved when both exclude zero. Nothing is corrected for the number of comparisons, so a lone resolved one among many means little.
#
# A short run at this learning rate moves a converged model away from where its long training left it, so that `start` is ahead of every method on clean images;
# that is why the comparison that counts is with `zero` and not with `start`. `learning_rate` is a parameter.

# %%
others = [name for name in groups if name != "zero"]
pairs = [(name, "zero") for name in others if "zero" in groups]
pairs += [("nullspace", name) for name in others if "nullspace" in groups and name != "nullspace"]
pairs += [(name, "standard") for name in ("pgd_at", "trades") if {name, "standard"} <= set(groups)]
paired = contrasts.contrast(groups, pairs, attack_eps).assign(steps=size["steps"])
_ = plots.save_table(paired, "07_paired", caption="Paired differences.", sources=sources)

# %%
drawn = ["clean", "fgsm", "pgd", "cw", "patch", "corruptions", "average"]
differences = paired[(paired["against"] == "zero") & paired["measure"].isin(drawn)]
names = [name for name in others if name in set(differences["method"])]
colors = dict(zip(groups, sns.color_palette("colorblind", len(groups)), strict=True)) | {"start": (0.4,) * 3}
figure, axes = plots.subplots(1, len(drawn), height=2.6, sharey=True)
for axis, measure in zip(axes, drawn, strict=True):
    rows = differences[differences["measure"] == measure].set_index("method").reindex(names)
    for place, (name, row) in enumerate(rows.iterrows()):
        axis.plot([row["images_low"], row["images_high"]], [place, place], color=colors[name], linewidth=0.8)
        if row["n"] > 1 and name != "start":
            ends = [row["difference_low"], row["difference_high"]]
            axis.plot(ends, [place, place], color=colors[name], linewidth=2.6, alpha=0.5)
        axis.plot(row["difference"], place, "o", color=colors[name])
    axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set_title(measure, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axis.tick_params(labelsize=6.5)
    axis.tick_params(axis="y", length=0)
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
figure.supxlabel("accuracy minus that of zero (points)", fontsize=8)
_ = plots.save_figure(figure, "07_differences", sources=sources)

# %%
held = paired[(paired["method"] == "nullspace") & paired["measure"].isin(drawn)]
held.style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (d) Does finetuning enlarge the nullspace?
#
# The paper reads a growing norm off the noises that training itself made: other starts, other stops, unverified. Here the largest noise within $\varepsilon$ is measured by one
# protocol for all weights (same images, same start, verified on test images; every token the same norm), on the averaged weights after every round, for `nullspace`
# and for `zero`. Beside it, the eps-matched random noise of the same weights: a model that grows deaf to everything gains on both.

# %%
moves = rounds[rounds["method"].isin(watched)]
rows = [
    {"method": method, "step": step}
    | {k: v for name in ("norm", "norm_random") for k, v in statistics.over_seeds(at[name]).columns(name).items()}
    | {"reached": at["norm_reached"].mean()}
    for (method, step), at in moves.groupby(["method", "step"], sort=False)
]
dynamics = pd.DataFrame(rows)
_ = plots.save_table(dynamics, "07_dynamics", caption="Norm at the verified boundary of eps.", sources=sources)
gained = rounds.set_index(["method", "seed", "step"])["dev_accuracy"].sort_index()
gained = (gained - gained.groupby(level=["method", "seed"]).transform("first")).reset_index()
gained = pd.DataFrame(
    [
        {"method": method, "step": step} | statistics.over_seeds(at["dev_accuracy"]).columns("gain")
        for (method, step), at in gained.groupby(["method", "step"], sort=False)
    ]
)
figure, axes = plots.subplots(1, 3, height=2.6)
for method, line in dynamics.groupby("method", sort=False):
    plots.curve(axes[0], line, "step", "norm", label=method, color=colors[method])
    plots.curve(axes[1], line, "step", "norm_random", color=colors[method])
axes[0].set(xlabel="step", ylabel=rf"norm at $\varepsilon$ = {eps:g}", title="largest noise found")
axes[1].set(xlabel="step", title="random noise")
for method in [name for name in chosen if name not in ("pgd_at", "trades")]:
    line = gained[gained["method"] == method]
    label = None if method in watched else method
    axes[2].plot(line["step"], line["gain"], "o-", markersize=3, color=colors[method], label=label)
    if method in watched:
        axes[2].fill_between(
            line["step"], line["gain_low"], line["gain_high"], color=colors[method], alpha=0.2, linewidth=0
        )
axes[2].axhline(0, color="0.6", linewidth=0.8, zorder=0)
axes[2].set(xlabel="step", ylabel="points", title="dev accuracy gained")
axes[2].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
figure.legend(loc="outside lower center", ncols=6, fontsize=7)
_ = plots.save_figure(figure, "07_dynamics", sources=sources)
dynamics.style.format(precision=3).hide(axis="index")

# %% [markdown]
# ## (e) Can the numbers be trusted?
#
# Adversarial training must be robust where it was trained: the repository carries one model from a longer run of `pgd_at` (`vit_robust`), which a short run
# does not reach; `retrain = True` makes it again, half an hour on one core. And an attack must not be fooled by masked gradients or a random model: checks in the spirit
# of AutoAttack's own (zero gradients, random answers, stronger attacks that are not stronger, queries that beat gradients), on models of the first seed.

# %%
folder = project_root() / "build/smoke" if profile == "smoke" else vit.shipped_weights().parent
record_of = json.loads(classifiers.classifier_weights("vit_robust").with_suffix(".json").read_text())
if retrain:
    again = dict(method=record_of["method"], steps=record_of["steps"], seed=record_of["seed"])
    again["recipe"] = finetuning.FinetuneRecipe(**record_of["recipe"])
    if profile == "smoke":
        again |= dict(steps=size["steps"], recipe=recipe)
    cifar, shipped = data.load_data("cifar10"), classifiers.load_classifier(vit.SHIPPED, device=device)
    made = finetuning.finetune(shipped, cifar, folder=cache_home() / f"training-vit_robust-{device}", **again)
    vit.save_vit(made.vit, folder / "vit_robust.safetensors")
    record = again | {"model": "vit_robust", "start": vit.fingerprint(shipped), "recipe": asdict(again["recipe"])}
    record |= {"weights": vit.fingerprint(made.vit), "best_step": made.best_step, "seconds": made.seconds}
    record |= {"device": device_name(), "history": made.history}
    write_atomic(folder / "vit_robust.json", json.dumps(record, indent=1) + "\n")

robust = experiments.run_trials([Trial("start", start="vit_robust")], protocol, workers=1, progress=None)
sane_groups = {"start": groups["start"], "vit_robust": robust}
sane = contrasts.contrast(sane_groups, [("vit_robust", "start")], attack_eps)
at_strong = f"pgd {255 * strong_eps:.3g}/255"
_ = plots.save_table(
    sane, "07_robust", caption="The robust checkpoint minus its start.", sources=list(robust[0].sources)
)
worth = contrasts.tabulate(sane_groups, attack_eps).query("measure in ('clean', 'pgd', @at_strong, 'corruptions')")
worth.style.format(precision=3).hide(axis="index")


# %%
checked_runs = [
    run for run in finished if run.trial.method in ("start", "nullspace", "pgd_at") and run.trial.seed == seed
]
checked_runs += robust


def name_of(run: experiments.Trialled) -> str:
    return run.trial.method if run.trial.start == vit.SHIPPED else run.trial.start


def checks() -> list[dict[str, str]]:
    """Warnings, a row a model."""
    split = data.load_data("cifar10", progress=False).test.subset(size["checked_images"], seed)
    rows = []
    for run in checked_runs:
        model = experiments.model_of(run)
        pictures, labels = next(iter(split.batches(len(split), image_size=model.image_size, device=device)))
        options = dict(eps=attack_eps, seed=seed, steps=n, queries=10 * n)
        found = diagnosis.diagnose(model, pictures, labels, **options)
        rows.append({"model": name_of(run), "images": len(split), "warnings": " ".join(found) or "none"})
    return rows


weights = [vit.fingerprint(experiments.model_of(run)) for run in checked_runs]
given = {"weights": weights, "seed": seed, "eps": attack_eps, "images": size["checked_images"], "steps": n}
checked = stored("diagnosis", given, checks, code=[attacks, diagnosis, evaluation])
warnings = pd.DataFrame(checked.metrics)
_ = plots.save_table(warnings, "07_warnings", caption="What could fake robustness.", sources=[checked])
warnings.style.hide(axis="index")
