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
# # 14 · From nullspace to adversarial in one family of noise
#
# Paper A finetunes with noise that the network *ignores*; adversarial training with perturbations that it is *most
# sensitive* to. One family of noise lies between the two. Let $J$ be the Jacobian of the logits $F(u)$ with respect to
# the patch tokens $u$, and $M = \mathbb E\,[J^\top J]$ a mean over images. Draw
#
# $$ v \sim \mathcal N\!\left(0,\ (M + \rho I)^{\gamma}\right), $$
#
# scaled until its influence, the squared change of the predicted probabilities averaged over images, is $\varepsilon$:
#
# $$ \mathbb E\,\| \operatorname{softmax} F(u + v) - \operatorname{softmax} F(u) \|_2^2 = \varepsilon . $$
#
# At $\gamma = -1$ the noise lies in the directions that change the logits least, at $\gamma = 0$ it is Gaussian, at
# $\gamma = 1$ it lies along those that change them most. All members have the same influence $\varepsilon$ on the
# output (by the scale), cost the same, and are drawn anew every round against the current weights. So one number,
# $\gamma$, orders all noise between paper A's and an attack's.
#
# **Question.** Does robustness rise or fall with $\gamma$? Paper A's premise predicts that it falls.
#
# **Primary endpoint**, declared before the runs: the least squares slope of robustness against $\gamma$. Robustness is
# the mean of the accuracy under PGD (gradient steps on the pixels, within an $L_\infty$ radius) and of that on noise
# corruptions. Intervals are at 95 %, for new seeds and new test images at once. The least slope that matters is
# `least_slope`, one point from end to end.
#
# Two more comparisons are declared. The largest $\gamma$ is compared with $\gamma = 0$, which costs the same, and with
# PGD training at the radius of the test, whose `attack_steps` of 1 costs the same too: an image is twice in a forward
# and a backward pass. The least difference that matters is `least_gain`. The control without noise is `zero`. All else
# is exploratory, also the slope at a second bound, `other_eps`, ten times as large.
#
# $M$ is that of the logits and not of the probabilities: those of confident images hardly move, and a few uncertain
# images would be all of $M$. The mean of $J^\top \xi \xi^\top J$ over images with random signs $\xi$ estimates it
# without bias (`synthesis.linearised`). Directions that no image has sampled get the ridge $\rho$, a hundredth of the
# mean eigenvalue.
#
# Takes about 4 min at `cpu` on 2 cores, which is too small to decide; `reference` decides. Needs CIFAR-10, which is
# fetched once.

# %% tags=["parameters"]
model: str = "nullpaper_vit_cifar10"  # a ViT of this package or of timm
weights: str = ""  # a file of weights for it; empty: what ships, or timm's hub
data: str = "cifar10"  # a data set that load_data knows, or a folder of class folders
root: str = ""  # the folder of its photographs; empty: fetched where a fetch exists
gammas: list = [-1.0, -0.5, 0.0, 0.5, 1.0]  # powers of M, with 0 and a larger one among them
images: int = 200  # test images
rate_images: int = 200  # dev images that choose a learning rate
steps: int = 24  # gradient steps a run
steps_per_noise: int = 12  # steps between fresh noises
batch_size: int = 64  # images a step
noise_images: int = 400  # dev images behind a noise: half for M, a quarter each for scale and verification
spectrum_images: int = 400  # training images behind the spectrum of (a)
draws: int = 3  # noises a gamma in (a)
top: float = 0.1  # share of the directions in (a), those that move the logits most
eps: float = 0.03  # bound on the mean squared distance between softmax vectors
other_eps: float = 0.3  # a second one, exploratory
other_gammas: list = []  # powers of M at that bound, two or more; empty: none
attack_eps: float = 0.00392156862745098  # L-infinity radius of PGD in pixel units, in training and at the end: 1/255
attack_steps: int = 1  # steps of the attack in adversarial training
rates: list = [0.0003]  # peak learning rates of which each method takes its own, by dev
evaluation_steps: int = 10  # steps of PGD at the end
severities: list = [3]  # of the noise corruptions
least_slope: float = 0.005  # accuracy for each unit of gamma
least_gain: float = 0.01  # accuracy
least_steps: int = 200  # of runs that decide
seeds: int = 3  # runs a method
seed: int = 0  # the first of the seeds
workers: int = 0  # processes side by side; 0: one a thread on a CPU, four on a GPU

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch

from nullpaper import load_data, load_vit, statistics
from nullpaper.errors import InputError
from nullpaper.finetuning.methods import make_noise
from nullpaper.models.vit import fingerprint
from nullpaper.robustness.corruptions import CORRUPTIONS
from nullpaper.studies import contrasts, settings
from nullpaper.studies.endpoints import power
from nullpaper.studies.estimates import noise_passes
from nullpaper.studies.trials import Trial, run_trials
from nullpaper.synthesis.influence import influence_of, read_pool
from nullpaper.synthesis.linearised import linearise
from nullpaper.workflow import figures
from nullpaper.workflow.store import stored

figures.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
gammas, other_gammas = (sorted(map(float, several)) for several in (gammas, other_gammas))
if 0.0 not in gammas or gammas[-1] <= 0 or len(set(gammas)) < len(gammas):
    raise InputError(f"gammas are {gammas}: give each once, with 0 and one above 0 among them.")
if other_gammas and (other_eps == eps or len(set(other_gammas)) < 2):
    raise InputError(f"other_gammas are {other_gammas} at {other_eps:g}: give two or more at another eps, or none.")
vit = load_vit(model, weights=weights or None, device=device)
photos = load_data(data, root or None, transform=vit.transform)
directions = round(top * vit.grid_size[0] * vit.grid_size[1] * (vit.embed_dim - 1))
if not 1 <= directions <= spectrum_images:
    raise InputError(f"top={top:g} asks for {directions} directions of {spectrum_images} spectrum_images: lower it.")
begun = dict(start=model, weights=weights or None, data=data, root=root)
print(f"{vit.name}: {vit.grid_size[0]} x {vit.grid_size[1]} tokens of width {vit.embed_dim}, {vit.num_classes} classes")
print(photos)

# %% [markdown]
# ## The runs
#
# `zero` is the same training without noise, `pgd_at` is PGD training at the radius of the test. Every method takes from
# `rates` the learning rate whose run of the first seed is the most robust on validation images (dev), by the same
# measure as at the end. All have the same grid and the same budget; of equal rates the smallest is taken. Every run
# ends with its last weights, so all are of one length. If instead the best round were chosen by clean accuracy on dev,
# as in 07, noise that costs some of that accuracy would be stopped early.

# %% tags=["plan"]
noise_corruptions = [name for name, corruption in CORRUPTIONS.items() if corruption.family == "noise"]
recipe, protocol, _ = settings.nullspace_setting(
    images=images,
    batch_size=batch_size,
    steps_per_noise=steps_per_noise,
    noise_images=noise_images,
    eps=eps,
    attack_eps=attack_eps,
    strong_eps=attack_eps,
    attack_steps=attack_steps,
    attacks=["pgd"],
    evaluation_steps=evaluation_steps,
    corruptions=noise_corruptions,
    severities=severities,
    seed=seed,
    last=True,
)
family = {f"gamma {gamma:g}": gamma for gamma in gammas}
arms = {name: ("spectral", replace(recipe, gamma=gamma)) for name, gamma in family.items()}
wider = {f"gamma {gamma:g}, eps {other_eps:g}": gamma for gamma in other_gammas}
arms |= {name: ("spectral", replace(recipe, gamma=gamma, noise_eps=other_eps)) for name, gamma in wider.items()}
arms |= {"zero": ("zero", recipe), "pgd_at": ("pgd_at", recipe)}
run_seeds = range(seed, seed + seeds)


def trial(arm: str, rate: float, s: int) -> Trial:
    method, changed = arms[arm]
    return Trial(method, s, steps, replace(changed, learning_rate=rate), **begun)


grid = [(arm, rate) for arm in arms for rate in sorted(rates)]
tries = [trial(arm, rate, seed) for arm, rate in grid] if len(rates) > 1 else []
on_dev = replace(protocol, images=min(rate_images, len(photos.dev)), split="dev")


def trials_at(rate_of: dict[str, float]) -> dict[str, list[Trial]]:
    """By arm, a run a seed at its rate; the start is one for all seeds."""
    return {"start": [Trial("start", **begun)]} | {
        arm: [trial(arm, rate_of[arm], s) for s in run_seeds] for arm in arms
    }


rate_of = dict.fromkeys(arms, min(rates))
expected = trials_at(rate_of)
plan = {"rates": (tries, on_dev), "table": ([one for several in expected.values() for one in several], protocol)}

# %% [markdown]
# ## (a) The family, before any training
#
# `draws` noises of each $\gamma$ against the model before finetuning, made as training makes them. `norm` is that at
# equal $\varepsilon$, `relative` the same in units of that at $\gamma = 0$ of the same images. `influence` is that on
# images that took no part in making the noise.
#
# The directions are those of an $M$ of other images. `energy` is the share of the noise's squared norm in the `top`
# share of all directions, those that move the logits most. `carried` is the share of its influence that is lost when
# these are taken out of it.


# %%
def member(gamma: float, draw: int, spectrum, others) -> dict[str, float]:
    """One noise of the family, and where it lies."""
    split = photos.dev.subset(noise_images, draw)
    noise = make_noise(vit, split, "spectral", replace(recipe, gamma=gamma), 10_007 * draw)
    rest = spectrum.without(noise.value, directions)
    whole, left = (influence_of(vit, value, others).mean().item() for value in (noise.value, rest))
    energy = 1 - (rest.norm() / noise.norm).square().item()
    row = {"gamma": gamma, "draw": draw, "norm": noise.norm, "influence": noise.influence.value}
    return row | {"energy": energy, "carried": 1 - left / whole}


def members() -> list[dict[str, float]]:
    def of(split):
        return read_pool(vit, split.batches(250, image_size=vit.image_size, device=device))

    spectrum = linearise(vit, of(photos.train.subset(spectrum_images, seed)), seed=seed)
    others = of(photos.train.subset(min(spectrum_images, 1_000), seed + 1))
    return [member(gamma, draw, spectrum, others) for gamma in gammas for draw in range(seed, seed + draws)]


given = dict(noise_images=noise_images, spectrum_images=spectrum_images, draws=draws, directions=directions)
given |= {"eps": eps, "gammas": gammas, "seed": seed, "weights": fingerprint(vit)}
drawn = pd.DataFrame(stored("spectral_noises", given, members, data=photos.identity).metrics)
drawn["relative"] = drawn["norm"] / drawn["draw"].map(drawn.query("gamma == 0").set_index("draw")["norm"])
rows = []
for gamma, part in drawn.groupby("gamma"):
    row = {"gamma": gamma}
    for column in ("norm", "relative", "influence", "energy", "carried"):
        row |= statistics.over_seeds(part[column]).columns(column)
    rows.append(row)
members_table = pd.DataFrame(rows)
figures.save_table(members_table, "14_family", caption="The family before any training.")

figure, axes = figures.subplots(1, 2, height=2.2)
figures.curve(axes[0], members_table, "gamma", "norm")
axes[0].set(
    ylim=(min(0.0, members_table["norm_low"].min()), None),
    xlabel=r"$\gamma$",
    ylabel=rf"norm at $\varepsilon$ = {eps:g}",
)
for column, label in (("energy", "of its energy"), ("carried", "of its influence")):
    figures.curve(axes[1], members_table, "gamma", column, label=label)
axes[1].axhline(top, color="0.6", linewidth=0.8, zorder=0)
axes[1].set(xlabel=r"$\gamma$", ylabel=f"share in the top {100 * top:g} %")
for axis in axes:
    axis.set_title(f"n = {draws} noises", fontsize=7, loc="right")
axes[1].legend(fontsize=7, frameon=False)
figures.save_figure(figure, "14_family")
members_table[["gamma", "norm", "relative", "influence", "energy", "carried"]].style.format(precision=3).hide(
    axis="index"
)

# %% [markdown]
# ## (b) Learning rates


# %%
def accuracies(run) -> pd.DataFrame:
    """Of every image (rows): right when clean, under PGD, the share of noise corruptions, and robustness, their mean."""
    table = contrasts.measures(run.frame, attack_eps)[["clean", "pgd", "noise"]]
    return table.assign(robustness=table[["pgd", "noise"]].mean(axis=1))


tuned = []
if tries:
    for (arm, rate), run in zip(grid, run_trials(tries, on_dev, workers=workers, progress="rates"), strict=True):
        row = {"arm": arm, "rate": rate, **accuracies(run).mean()}
        tuned.append(row | {"images": on_dev.images, "steps": steps})
    tuned = pd.DataFrame(tuned)
    figures.save_table(tuned, "14_rates", caption="Learning rates on dev.")
    rate_of = tuned.loc[tuned.groupby("arm")["robustness"].idxmax()].set_index("arm")["rate"].to_dict()
pd.DataFrame(tuned).style.format(precision=4).hide(axis="index")

# %% [markdown]
# ## (c) Robustness against $\gamma$

# %%
trials = trials_at(rate_of)
finished = iter(run_trials([one for several in trials.values() for one in several], protocol, workers=workers))
groups = {arm: [next(finished) for _ in several] for arm, several in trials.items()}
measures = ["robustness", "pgd", "noise", "clean"]
values = {arm: np.stack([accuracies(run)[measures] for run in runs]) for arm, runs in groups.items()}


def tabulated(name: str, array: np.ndarray) -> list[dict[str, object]]:
    """A row a measure of values (seeds, images, measures): mean, two-way interval and p value of no effect."""
    rows = []
    for measure, part in zip(measures, np.moveaxis(array, -1, 0), strict=True):
        crossed = statistics.crossed(part)
        ends = crossed.interval if len(part) > 1 else statistics.mean(part)  # of a single model, over images
        row = {"name": name, "measure": measure, "value": crossed.value, "low": ends.low, "high": ends.high}
        rows.append(row | {"p": crossed.p(), "n": len(part), "images": part.shape[1]})
    return rows


table = pd.DataFrame([row for arm, array in values.items() for row in tabulated(arm, array)]).drop(columns="p")
table["rate"] = table["name"].map(rate_of)
table["passes"] = table["name"].map(lambda arm: {"start": 0, "pgd_at": attack_steps + 1}.get(arm, 2))
figures.save_table(table, "14_arms", caption="Accuracies.")
added = noise_passes("spectral", recipe) * noise_images / (3 * 2 * steps_per_noise * batch_size)
print(f"making a noise adds {added:.0%} to the passes of the steps that it is used in")


def slope_of(members: dict[str, float]) -> np.ndarray:
    """Least squares slope against gamma of every image, (seeds, images, measures)."""
    centred = np.array([*members.values()]) - np.mean([*members.values()])
    return np.tensordot(centred / (centred**2).sum(), np.stack([values[arm] for arm in members]), 1)


lowest, largest = (f"gamma {gamma:g}" for gamma in (gammas[0], gammas[-1]))
effects = {"slope": slope_of(family)} | ({f"slope, eps {other_eps:g}": slope_of(wider)} if wider else {})
pairs = [(largest, "gamma 0"), ("pgd_at", largest), (lowest, "gamma 0"), (largest, "zero"), ("gamma 0", "zero")]
pairs += [("pgd_at", "zero"), ("zero", "start"), *((arm, "zero") for arm in family | wider)]
effects |= {f"{first} - {second}": values[first] - values[second] for first, second in pairs if first != second}
effects = pd.DataFrame([row for name, array in effects.items() for row in tabulated(name, array)])
figures.save_table(effects, "14_effects", caption="The slope against gamma, and paired differences.")
effects.query("measure == 'robustness'").style.format(precision=4, na_rep="").hide(axis="index")

# %% [markdown]
# `slope` is accuracy for each unit of $\gamma$. The other rows are paired differences in accuracy, on the same images
# and of the same seeds. `passes` in `14_arms` is how often an image is in a forward and a backward pass of a step, the
# price of a method. The figure shows differences to `zero`, with their intervals for new seeds and new images.

# %%
of = effects.set_index(["name", "measure"])


def draw(axis, members: dict[str, float], measure: str, color, label: str, shift: float = 0.0) -> None:
    """Differences to `zero` against gamma, in points."""
    rows = of.loc[[(f"{arm} - zero", measure) for arm in members]]
    places = np.array([*members.values()]) + shift
    axis.plot(places, 100 * rows["value"], "o", color=color, label=label, markersize=4)
    axis.vlines(places, 100 * rows["low"], 100 * rows["high"], color=color, linewidth=1.2)


blue, orange, green, red, purple = sns.color_palette()[:5]
figure, axes = figures.subplots(1, 2, height=2.7)
for members, bound, color, shift in ((family, eps, blue, -0.03), (wider, other_eps, purple, 0.03)):
    if members:
        draw(axes[0], members, "robustness", color, rf"noise at $\varepsilon$ = {bound:g}", shift)
        slope = of.loc[("slope" if members is family else f"slope, eps {bound:g}", "robustness"), "value"]
        middle = np.mean([of.loc[(f"{arm} - zero", "robustness"), "value"] for arm in members])
        places = np.array([*members.values()])
        axes[0].plot(places, 100 * (middle + slope * (places - places.mean())), color=color, linewidth=0.8)
attacked = of.loc[("pgd_at - zero", "robustness")]
axes[0].axhline(100 * attacked["value"], color=red, linewidth=0.8, label=f"PGD-{attack_steps} training")
axes[0].axhspan(100 * attacked["low"], 100 * attacked["high"], color=red, alpha=0.12, linewidth=0)
for place, (measure, label, color) in enumerate(
    (
        ("pgd", f"PGD at {255 * attack_eps:.3g}/255", orange),
        ("noise", "noise corruptions", green),
        ("clean", "clean", "0.35"),
    )
):
    draw(axes[1], family, measure, color, label, 0.06 * (place - 1))
for axis, title in zip(axes, ("robustness: PGD and noise", "its parts, and clean images"), strict=True):
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set(xlabel=r"$\gamma$", xticks=gammas)
    axis.set_title(f"{title} ({seeds} seeds x {images:,} images)", fontsize=7)
axes[0].set_ylabel("accuracy minus\nthat of zero (points)")
handles, labels = (sum(parts, []) for parts in zip(*(axis.get_legend_handles_labels() for axis in axes), strict=True))
figure.legend(handles, labels, loc="outside upper center", ncols=6, fontsize=6.5, frameon=False)
figures.save_figure(figure, "14_robustness")
table.pivot(index="name", columns="measure", values="value").loc[[*groups], measures].style.format("{:.1%}")

# %% [markdown]
# How large a study would have to be to resolve the least effects that matter, by the variance components of these runs:

# %%
if seeds > 1:
    print(f"slope: {power(slope_of(family)[..., 0], least_slope)}")
    print(f"{largest} against gamma 0: {power((values[largest] - values['gamma 0'])[..., 0], least_gain)}")

# %% [markdown]
# ## The answer

# %%
from nullpaper.studies.endpoints import Endpoint
from nullpaper.studies.verdicts import Verdicts, row

answer = Verdicts()
wide = f"slope, eps {other_eps:g}"
top_arm = f"gamma {max(map(float, gammas)):g}"
UNLESS = (
    ", does not hold if the interval excludes that or an effect that matters, else not resolved, as by fewer than "
    f"{least_steps} steps, after which methods hardly differ"
)


def decided(endpoint: Endpoint) -> str:
    return endpoint.word if steps >= least_steps else "not resolved"


def effect(name: str, least: float, measure: str = "robustness", sign: int = 1) -> Endpoint:
    """A row of the effects, or its negative."""
    line = row(effects, name=name, measure=measure)
    value, low, high = (sign * float(line[end]) for end in ("value", *("low", "high")[::sign]))
    return Endpoint(value, low, high, float(line["p"]), int(line["n"]), int(line["images"]), least)


@answer.claim(
    "A",
    "its premise",
    "the more the network ignores the noise that it is finetuned with, the more robust it becomes",
    where="14",
    criterion=f"holds if robustness falls with gamma{UNLESS}; least that matters: {100 * least_slope:g} points a unit",
    endpoint="minus the slope of robustness against gamma",
)
def ignored_noise() -> tuple[str, str, Endpoint]:
    falls = effect("slope", least_slope, sign=-1)
    return (
        f"robustness rises by {effect('slope', least_slope).in_points()} for each unit of gamma",
        decided(falls),
        falls,
    )


@answer.claim(
    "",
    "",
    "noise along what moves the logits most makes more robust than random noise of the same eps and price",
    where="14",
    criterion=f"holds if more robust than with gamma 0{UNLESS}; least that matters: {100 * least_gain:g} points",
    endpoint=f"robustness, {top_arm} minus gamma 0",
)
def sensitive_noise() -> tuple[str, str, Endpoint]:
    gain = effect(f"{top_arm} - gamma 0", least_gain)
    return f"{top_arm} minus gamma 0: {gain.in_points()}", decided(gain), gain


@answer.claim(
    "",
    "",
    "PGD training at the radius of the test makes more robust than any such noise",
    where="14",
    criterion=f"holds if more robust than with the largest gamma{UNLESS}; least that matters: {100 * least_gain:g} points",
    endpoint=f"robustness, PGD training minus {top_arm}",
)
def attack_over_noise() -> tuple[str, str, Endpoint]:
    gain = effect(f"pgd_at - {top_arm}", least_gain)
    parts = ", ".join(f"{name} {effect(f'pgd_at - {top_arm}', 0, name).in_points()}" for name in ("pgd", "noise"))
    return f"PGD training minus {top_arm}: {gain.in_points()}; {parts}", decided(gain), gain


figures.save_table(answer.table(), "14_verdicts", caption="From nullspace to adversarial.")
answer.show(
    f"{steps} steps of {batch_size} images, {noise_images // 2} images behind M, one model, {model} on {Path(data).name}"
    + ("." if steps >= least_steps else "; this is too small to decide: see the run of the profile reference."),
    question="does robustness rise or fall from noise that the network ignores to noise that it is most sensitive to?",
    answer=f"for each unit of gamma it changes by {effect('slope', least_slope).in_points()}; {top_arm} minus no noise: "
    f"{effect(f'{top_arm} - zero', least_gain).in_points()}, PGD training minus no noise: "
    f"{effect('pgd_at - zero', least_gain).in_points()}."
    + (
        f" At eps {other_eps:g}, exploratory: {effect(wide, least_slope).in_points()} a unit."
        if wide in set(effects["name"])
        else ""
    ),
    would_change="more seeds and images, as printed above; longer training; another model, whose start is adversarial.",
)
