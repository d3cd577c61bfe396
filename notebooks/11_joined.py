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
# Paper A finetunes all weights on nullspace noise; paper B (FullLoRA) finetunes adversarially through low-rank branches with a LayerNorm in front (LNLoRA), all else but the head frozen. Here they meet.
#
# | section | question | control |
# |---|---|---|
# | (a) | does nullspace finetuning through LNLoRA do what it does in all weights? | `zero`: the same two branches without noise, through the same adapter; `random`: Gaussian noise at the same $\varepsilon$ |
# | (b) | does nullspace noise add to adversarial training? | `pgd_at` alone; `pgd_at_random`: the same with Gaussian noise |
# | (c) | does LNLoRA change the size of the approximate nullspace? | random noise at the same $\varepsilon$ against the same weights; the start |
# | (d) | what is left of the exact nullspace of the patch embedding? | noise in all directions; subspaces drawn at random |
#
# Runs that differ in adapter also differ in learning rate (`learning_rate` and `adapter_learning_rate` in (a), `studies.settings.RATES` in (b)), because low-rank branches that start at zero move less at the same rate.
# So differences are taken within an adapter first, and then between adapters.
#
# Takes about 3 min at `cpu` on 2 cores after 07; needs CIFAR-10, which is fetched once, and no weights but those that travel with the package.

# %% tags=["parameters"]
images: int = 64  # test images
steps: int = 24  # gradient steps a run in (a)
adversarial_steps: int = 6  # gradient steps a run in (b)
steps_per_noise: int = 12  # steps between fresh noises
batch_size: int = 64  # images a step
noise_images: int = 400  # dev images behind a noise
noise_steps: int = 12  # steps of its synthesis
attack_steps: int = 2  # steps of the attack in adversarial training
evaluation_steps: int = 20  # steps of PGD and CW at the end of (a); half of it in (b), twice in patch attacks
corruptions: list = []  # names of those that models are judged under; empty: all 15
severities: list = [1, 3, 5]  # of the corruptions in (a); (b) takes the middle one
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
attack_eps: float = 0.00392156862745098  # L-infinity radius of the attacks in (a) in pixel units: 1/255, as in 07
strong_eps: float = 0.03137254901960784  # radius of adversarial training and of its attacks: 8/255
learning_rate: float = 0.0005  # peak, in all weights in (a), as in 07
adapter_learning_rate: float = 0.0015  # peak, through LNLoRA in (a)
adversarial_start: str = "vit_robust"  # where (b) starts: a short run from the standard start has 0 % at 8/255
seeds: int = 2  # runs a method
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from collections.abc import Sequence
from dataclasses import replace

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
from nullpaper.studies.boundary import boundary_norm
from nullpaper.studies.trials import AdapterSpec, Protocol, Trial, TrialResult, model_of, run_trials
from nullpaper.workflow import figures

figures.use_style()
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
    severities=severities,
    seed=seed,
)
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
# Notebook 07 found no resolved gain of `nullspace` over `zero` in all weights, so there may be no gain to keep. The question is therefore put as differences: nullspace minus zero and minus random through each
# adapter; and the difference of these differences, LNLoRA's minus that in all weights (`11_kept`). The bare difference `nullspace, lnlora` minus `nullspace, full` is in the table of pairs
# beside `zero, lnlora` minus `zero, full`, which has no noise in it. Runs in all weights are those of 07, taken from the store.

# %%
noises = ["nullspace", "zero", "random"]


def plain_trial(method: str, adapter: str, s: int) -> Trial:
    if adapter == "full":
        return settings.nullspace_trial(method, s, steps, recipe, boundary)
    changed = replace(recipe, learning_rate=adapter_learning_rate)
    return Trial(method, s, steps, changed, adapter=settings.ADAPTERS[adapter])


planned = {"start": [Trial("start")]}
planned |= {f"{m}, {a}": [plain_trial(m, a, s) for s in run_seeds] for a in reversed(adapters) for m in noises}
plain = grouped(planned, protocol, "nullspace finetuning")  # last those of 07, which may be at them just now
plain_pairs = [(f"nullspace, {a}", f"{other}, {a}") for a in adapters for other in ("zero", "random")]
plain_pairs += [(f"{m}, lnlora", f"{m}, full") for m in noises] + [(name, "start") for name in planned if "," in name]
plain_table = described(contrasts.tabulate(plain, attack_eps), plain)
plain_paired = contrasts.contrast(plain, plain_pairs, attack_eps).assign(steps=steps)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row a group: percent, with Student's t interval over seeds, or over images where there is one run."""
    texts = table.assign(text=table.apply(contrasts.in_percent, axis=1)).pivot(
        index="run", columns="measure", values="text"
    )
    return texts.loc[[*dict.fromkeys(table["run"])], [*dict.fromkeys(table["measure"])]]


wide(plain_table)

# %% [markdown]
# ## (b) Adversarial training and nullspace noise
#
# `pgd_at_nullspace` applies paper A's two branches to Madry's attacked images: $\ell(f(u'), y) + \ell(f(u' + v^*), y)$, where $u'$ are their tokens. Without noise the two branches are equal, and their
# mean is the loss of `pgd_at`, which is therefore the control without noise. All start from an adversarially trained checkpoint (07, section e) at the rate that 10 chose for the adapter, so that robustness at
# 8/255 can rise and fall; the start is a row too, since a few more steps may do nothing or harm. Two more runs of `pgd_at`, through plain LoRA and through LNLoRA in the blocks alone, are for section (d).

# %%
attacked = ["pgd_at", "pgd_at_nullspace", "pgd_at_random"]
in_blocks = AdapterSpec("lnlora", settings.RANK, targets=("qkv", "proj", "fc1", "fc2"))
extra = {"pgd_at, lora": settings.ADAPTERS["lora"], "pgd_at, lnlora in blocks": in_blocks}


def adversarial_trial(method: str, adapter: str | AdapterSpec, s: int) -> Trial:
    changed = replace(recipe, dev_images=images)
    given = dict(adapter=adapter, start=adversarial_start)
    return settings.adversarial_trial(method, s, adversarial_steps, changed, **given)


n, middle = -(-evaluation_steps // 2), severities[len(severities) // 2]
threats = (Threat(f"pgd-{n}", attack_eps), Threat(f"pgd-{n}", strong_eps), Threat(f"cw-{n}", strong_eps))
harder = Protocol(images, threats, protocol.corruptions, (middle,), seed)
planned = {"robust start": [Trial("start", start=adversarial_start)]}
planned |= {f"{m}, {a}": [adversarial_trial(m, a, s) for s in run_seeds] for a in adapters for m in attacked}
planned |= {name: [adversarial_trial("pgd_at", through, seed)] for name, through in extra.items()}
robust = grouped(planned, harder, "adversarial finetuning")
robust_pairs = [(f"pgd_at_nullspace, {a}", f"{other}, {a}") for a in adapters for other in ("pgd_at", "pgd_at_random")]
robust_pairs += [(f"{m}, lnlora", f"{m}, full") for m in attacked]
robust_pairs += [(f"{m}, {a}", "robust start") for a in adapters for m in attacked]
other_average = "measure != 'average'"  # it would be over other measures than in (a)
robust_table = described(contrasts.tabulate(robust, attack_eps), robust).query(other_average)
robust_paired = contrasts.contrast(robust, robust_pairs, attack_eps).query(other_average)

groups = plain | robust
table = pd.concat([plain_table, robust_table], ignore_index=True)
paired = pd.concat([plain_paired, robust_paired.assign(steps=adversarial_steps)], ignore_index=True)
figures.save_table(table, "11_table", caption="Accuracy after finetuning through adapters.")
figures.save_table(paired, "11_paired", caption="Paired differences.")
wide(robust_table)

# %% [markdown]
# **Differences.** Each row of the figure is what nullspace noise adds to the control on the left, through each adapter, on the same images: thick Student's t over seeds (other trainings), thin bootstrap over images
# (other test sets). Black is LNLoRA's difference minus that in all weights: to the left of zero, less is added through LNLoRA. Resolved means that both intervals exclude zero; with one seed nothing is.
# Nothing is corrected for the number of comparisons. The upper panels are (a), at 1/255; the lower ones (b), at the radius named.


# %%
def kept(groups: dict[str, list[TrialResult]], method: str, against: str) -> pd.DataFrame:
    """The gain through LNLoRA minus the gain in all weights."""
    first, second = ((f"{method}, {adapter}", f"{against}, {adapter}") for adapter in ("lnlora", "full"))
    return contrasts.contrast_of(groups, first, second, attack_eps).assign(gain=f"{method} minus {against}")


of_plain = [kept(plain, "nullspace", other) for other in ("zero", "random")]
of_robust = [kept(robust, "pgd_at_nullspace", other).query(other_average) for other in ("pgd_at", "pgd_at_random")]
more = pd.concat([*of_plain, *of_robust], ignore_index=True)
figures.save_table(more, "11_kept", caption="Gain through LNLoRA minus gain in all weights.")

colors = {"full": sns.color_palette()[0], "lnlora": sns.color_palette()[1], "lnlora minus full": (0.1,) * 3}


def draw(axis: Axes, measure: str, method: str, controls: Sequence[str]) -> None:
    """What ``method`` adds to each control, a row a control."""
    for place, control in enumerate(controls):
        for lift, (kind, color) in zip((-0.25, 0, 0.25), colors.items(), strict=True):
            if kind in adapters:
                rows = paired[(paired["method"] == f"{method}, {kind}") & (paired["against"] == f"{control}, {kind}")]
            else:
                rows = more[more["gain"] == f"{method} minus {control}"]
            row = rows[rows["measure"] == measure]
            figures.intervals(axis, row, places=[place + lift], color=color)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    axis.tick_params(labelsize=6.5)
    axis.tick_params(axis="y", length=0)
    axis.set_yticks(range(len(controls)), [f"{method}\nminus\n{control}" for control in controls], fontsize=7)
    axis.set_ylim(len(controls) - 0.5, -0.5)


strong = f"{255 * strong_eps:.3g}/255"
drawn = {
    ("nullspace", ("zero", "random")): ["clean", "pgd", "patch", "corruptions", "average"],
    ("pgd_at_nullspace", ("pgd_at", "pgd_at_random")): ["clean", "pgd", f"pgd {strong}", f"cw {strong}", "corruptions"],
}
figure, axes = figures.subplots(2, 5, height=3.9, sharey="row")
for row, ((method, controls), measures) in zip(axes, drawn.items(), strict=True):
    for axis, measure in zip(row, measures, strict=True):
        draw(axis, measure, method, controls)
        axis.set_title(f"pgd {255 * attack_eps:.3g}/255" if measure == "pgd" else measure, fontsize=8)
figure.supxlabel("difference in accuracy (points)", fontsize=8)
handles = [Line2D([], [], color=color, marker="o", label=name) for name, color in colors.items()]
figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=7)
figures.save_figure(figure, "11_differences")
more[more["measure"].isin(["clean", "pgd", f"pgd {strong}", "corruptions"])].style.format(precision=4).hide(
    axis="index"
)

# %% [markdown]
# ## (c) Does LNLoRA change the size of the approximate nullspace?
#
# As in 07 (d): the largest noise behind the patch embedding within $\varepsilon$, every token of one norm, found and verified by one protocol for all weights (those of the round that dev chose, which the table judges).
# Beside it the largest Gaussian noise: a model that grows deaf to everything, that spreads its probabilities more evenly or that scales its tokens up gains on both. Only a learned norm that grows by more than the random
# one says that directions to ignore were gained.
#
# `growth` is the norm over that of the start; `ratio` that of the largest found over the Gaussian one; `reached` the share whose bound was verified on test images. Intervals are Student's t over training seeds, with
# one noise seed for all weights: the two starts have none.

# %%
cifar = load_data("cifar10")
sized = ["start", *(f"{m}, {a}" for m in ("zero", "nullspace") for a in adapters)]
sized += ["robust start", *(f"pgd_at, {a}" for a in adapters)]

norms = {
    name: pd.DataFrame([boundary_norm(model_of(result), cifar, boundary) for result in groups[name]]) for name in sized
}
rows = []
for name, by_seed in norms.items():
    first = norms["robust start" if name in robust else "start"].iloc[0]
    method, _, adapter = name.partition(", ")
    row = {"run": name, "method": method, "adapter": adapter or "none"}
    for column in ("norm", "norm_random"):
        row |= statistics.over_seeds(by_seed[column]).columns(column)
        row |= statistics.over_seeds(by_seed[column] / first[column]).columns(column.replace("norm", "growth"))
    row |= statistics.over_seeds(by_seed["norm"] / by_seed["norm_random"]).columns("ratio")
    rows.append(row | {"reached": by_seed["norm_reached"].mean()})
sizes = pd.DataFrame(rows)
figures.save_table(sizes, "11_norm", caption="Norm at the verified boundary of eps.")

figure, axes = figures.subplots(1, 2, height=3.0, sharey=True)
kinds = {"": ("largest found", "o", "full"), "_random": ("Gaussian", "s", "none")}
shades = {"none": (0.4,) * 3, **colors}
for axis, column in zip(axes, ("norm", "growth"), strict=True):
    for lift, (suffix, (_, marker, fill)) in zip((-0.15, 0.15), kinds.items(), strict=True):
        look = dict(marker=marker, fillstyle=fill, color=[shades[name] for name in sizes["adapter"]])
        places = [place + lift for place in range(len(sizes))]
        figures.intervals(axis, sizes, places=places, value=column + suffix, thin=None, zero=None, **look)
axes[0].set_xlabel(rf"norm at $\varepsilon$ = {eps:g}")
axes[1].set_xlabel("norm over that of its start")
axes[1].axvline(1, color="0.6", linewidth=0.8, zorder=0)
axes[0].set_yticks(range(len(sizes)), sizes["run"], fontsize=7.5)
for axis in axes:
    axis.axhline(sized.index("robust start") - 0.5, color="0.85", linewidth=0.8)
    axis.tick_params(axis="y", length=0)
axes[0].invert_yaxis()
handles = [Line2D([], [], color="0.2", linestyle="", marker=m, fillstyle=f, label=t) for t, m, f in kinds.values()]
figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=7)
figures.save_figure(figure, "11_norm")
sizes.style.format(precision=2).hide(axis="index")

# %% [markdown]
# ## (d) What is left of the exact nullspace?
#
# Pixels that the patch embedding maps to zero no later layer can see (01). Finetuning in all weights keeps the dimension and may turn the subspace. Plain LoRA of rank $r$ on the embedding keeps at least what both
# $W_0$ and $A$ ignore, so that at least $k - r$ of the start's $k$ dimensions stay. LNLoRA on it normalises the patch first, so that the embedding is not linear and no subspace is invisible in all images.
# LNLoRA in the blocks alone leaves the embedding, and with it the nullspace, as it was: noise made for the base then passes all models that share it.
#
# `overlap` is the mean squared cosine of the principal angles to the start's nullspace (`chance` for subspaces at random); `seen` is how much noise drawn in the start's nullspace moves the tokens, over
# what noise of its norm in all directions moves them, on test images: it needs no linear map. First seed.

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
rows = [exact(name, groups[name][0], groups["robust start" if name in robust else "start"][0]) for name in named]
rows.insert(4, exact("robust start, against start", groups["robust start"][0], groups["start"][0]))
exact_space = pd.DataFrame(rows)
figures.save_table(exact_space, "11_exact", caption="The nullspace of the patch embedding after finetuning.")
exact_space.style.format(precision=6, na_rep="").hide(axis="index")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.verdicts import BETTER, WORSE, Verdicts, above, compare, grade, interval, number, row, word

answer = Verdicts()


@answer.claim(
    "",
    "",
    "nullspace noise helps where only LNLoRA is trained",
    where="11 (a)",
    criterion=BETTER
    + "Holds if better than the same finetuning with noise 0 on all measures, in part if on some"
    + WORSE,
)
def nullspace_through_adapter() -> tuple[str, str]:
    measures = ("clean", "fgsm", "corruptions", "average")
    measured, answers = compare(paired, "nullspace, lnlora", "zero, lnlora", measures)
    return measured, grade(answers.values())


@answer.claim(
    "",
    "",
    "nullspace noise adds to adversarial training",
    where="11 (b)",
    criterion=BETTER
    + "Holds if adversarial training with the noise is better than without on all measures, through LNLoRA and "
    "in full; in part if on some" + WORSE,
)
def joined() -> tuple[str, str]:
    texts, answers = [], []
    for adapter in ("full", "lnlora"):
        pair = f"pgd_at_nullspace, {adapter}", f"pgd_at, {adapter}"
        measured, better = compare(paired, *pair, ("clean", "pgd 8/255", "corruptions"))
        texts.append(f"{adapter}: {measured}")
        answers += better.values()
    return "; ".join(texts), grade(answers)


@answer.claim(
    "",
    "",
    "adversarial training through LNLoRA changes the size of the approximate nullspace",
    where="11 (c)",
    criterion="holds if the interval of the norm at the boundary of eps, over that of the start, excludes 1, and so "
    "does that of the norm over random noise's against the start's; in part if only the former",
)
def nullspace_size() -> tuple[str, str]:
    before, after, whole = (row(sizes, run=run) for run in ("robust start", "pgd_at, lnlora", "pgd_at, full"))
    growth, ratio = interval(after, "growth"), interval(after, "ratio")
    in_full = number(interval(whole, "growth"), ".2f", None)
    measured = (
        f"norm {number(growth, '.2f')} times the robust start's, {in_full} in full; "
        f"over random noise's {number(ratio, '.2f', None)}, at the start {before['ratio']:.2f}"
    )
    one, at_start = statistics.Interval(1, 1, 1, 1), statistics.Interval(*3 * [before["ratio"]], 1)
    changed = above(growth, one) is not None and growth.n > 1
    return measured, word(changed and above(ratio, at_start) is not None or None, changed or None)


def is_same_space(line: pd.Series, first: pd.Series) -> bool:
    return bool(line["dimension"] == first["dimension"] and line["overlap"] > 1 - 1e-6)


@answer.claim(
    "",
    "",
    "an adapter leaves the exact nullspace of the patch embedding as it was",
    where="11 (d)",
    criterion="holds if dimension and subspace stay with branches in all layers, plain and with a norm; in part if "
    "with branches in the blocks alone",
)
def exact_nullspace_kept() -> tuple[str, str]:
    titles = {"pgd_at, lora": "LoRA in all layers", "pgd_at, lnlora": "LNLoRA in all layers"}
    titles |= {"pgd_at, lnlora in blocks": "LNLoRA in the blocks alone"}
    lines, first = {name: row(exact_space, model=name) for name in titles}, row(exact_space, model="robust start")
    kept = [is_same_space(line, first) for line in lines.values()]
    texts = (
        f"{titles[name]} {line['dimension']} dimensions"
        + (f" (overlap {line['overlap']:.3f})" if line["dimension"] else ", the embedding is not linear")
        for name, line in lines.items()
    )
    return f"of {first['dimension']}: {'; '.join(texts)}", word(all(kept), any(kept))


figures.save_table(answer.table(), "11_verdicts", caption="Nullspace noise and adapters together.")
answer.show(
    f"{steps} steps in (a), {adversarial_steps} in (b), of {batch_size} images; {images} test images and {seeds} seeds, one "
    "ViT on CIFAR-10; neither paper asks any of this."
)
