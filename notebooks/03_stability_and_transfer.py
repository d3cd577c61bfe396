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
# # 03 · Whose noise is it? Stability and transfer between architectures
#
# Paper C learns noise at the *input* of several architectures and carries the noise of one to the others. Nothing about that
# needs a transformer, so it asks what is special about one. Three questions: how stable is each architecture under its own noise,
# against noise of equal norm that is not its own? Does noise that one model ignores leave another alone? And what has the learning
# found: is it the exact nullspace?
#
# **Protocol.** One universal noise $v$ a model and seed, learned on training images at a *fixed norm*, so that models can be compared:
#
# $$\min_{v} \ \mathbb E\,\| f(\mathrm{clip}(x + v)) - f(x) \| \quad\text{s.t.}\quad \|v\|_2 = r .$$
#
# Images are clipped to $[0, 1]$, during learning and afterwards, since a stored image cannot leave it (the original code adds noise
# to normalised pixels, and, when it carries noise to another model, adds that model's channel mean to a *difference*). Everything is
# in pixel units, and each model normalises inside. Match is agreement with a model's own clean prediction on test images. Controls of
# equal norm: Gaussian noise; the same noise *permuted* over the whole image, the papers' control; and permuted only *within* blocks of
# 8 x 8 pixels, which keeps where the noise is strong and loses what it looks like there.

# %% tags=["parameters"]
profile: str = "cpu"
images: int | None = None  # training images that noise is learned from; None: the profile's
held_out: int | None = None  # test images; None: the profile's
steps: int | None = None  # steps a noise; None: the profile's
seeds: int | None = None  # noises a model; None: the profile's
norm: float = 6.0  # L2 norm of a noise over the 3 x 48 x 48 pixels
factors: list[float] = [0.5, 1.0, 2.0, 4.0]  # multiples of that norm in the stability curve
retrain: bool = False  # train the classifiers again instead of loading them
train_images: int | None = None  # training images for retrain; None: all
epochs: dict[str, int] | None = None  # epochs by classifier for retrain; None: as recorded, or 1 at smoke
seed: int = 0  # the first of the seeds

# %%
import json
from dataclasses import asdict, replace
from functools import cache, partial

import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn

from nullpaper import statistics
from nullpaper.data import datasets as data
from nullpaper.data.fetch import cache_home
from nullpaper.files import write_atomic
from nullpaper.finetuning import trainer as training
from nullpaper.models import checkpoints as classifiers
from nullpaper.models import predict, vit
from nullpaper.nullspace import patch as nullspace
from nullpaper.robustness import perturbation
from nullpaper.synthesis import ascent, influence
from nullpaper.synthesis import noise as synthesis
from nullpaper.workflow import figures as plots
from nullpaper.workflow.provenance import device_name, project_root
from nullpaper.workflow.store import stored

plots.use_style()
device = "cuda" if torch.cuda.is_available() else "cpu"
everything = dict(images=8_000, held_out=10_000, steps=300, seeds=3)
sizes = {
    "smoke": dict(images=32, held_out=32, steps=2, seeds=1),
    "cpu": dict(images=2_000, held_out=500, steps=60, seeds=1),
    "gpu": everything,
    "imagenet": everything,
}[profile]
images, held_out = images or sizes["images"], held_out or sizes["held_out"]
steps = steps or sizes["steps"]
noise_seeds = range(seed, seed + (seeds or sizes["seeds"]))
names = list(classifiers.ARCHITECTURES)
short = {vit.SHIPPED: "ViT (shipped)", "vit_wide": "ViT (wide)", "resnet": "ResNet", "convnext": "ConvNeXt"}
cifar = data.load_data("cifar10")

# %% [markdown]
# ## (a) The classifiers
#
# Trained by the recipe of notebook 00 with fewer epochs, on the same split; a second ViT and two convolutional networks at the same
# image size and about the same number of parameters. Their weights travel with the package; `retrain = True` trains them again and
# continues where a killed run stopped.

# %%
folder = project_root() / "build/smoke" if profile == "smoke" else vit.shipped_weights().parent


def train_again(name: str) -> None:
    """Train one classifier and write weights and record."""
    recipe = training.Recipe(**record_of(name)["recipe"])
    recipe = replace(recipe, epochs=(epochs or {}).get(name, 1 if profile == "smoke" else recipe.epochs))
    torch.manual_seed(recipe.seed)
    fresh = classifiers.load_classifier(name, pretrained=False, device=device)
    sample = replace(cifar, train=cifar.train.subset(train_images))
    run = training.train(
        fresh, sample, recipe, folder=cache_home() / f"training-{name}-{train_images or 'all'}-{device}"
    )
    vit.save_vit(run.vit, folder / f"{name}.safetensors")
    record = {"model": name, "recipe": asdict(recipe), "weights": vit.fingerprint(run.vit), "seconds": run.seconds}
    record |= {"device": device_name(), "history": run.history}
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")


def record_of(name: str) -> dict[str, object]:
    return json.loads(classifiers.classifier_weights(name).with_suffix(".json").read_text())


if retrain:
    for name in names[1:]:
        train_again(name)
own = {name: folder / f"{name}.safetensors" if retrain and name != vit.SHIPPED else None for name in names}
models = {name: classifiers.load_classifier(name, weights=own[name], device=device) for name in names}
identity = cifar.identity | {name: vit.fingerprint(model) for name, model in models.items()}
code = [synthesis, influence, ascent, nullspace, perturbation, statistics, training, classifiers, data]


def measure_accuracy() -> list[dict[str, object]]:
    test = cifar.test.subset(max(held_out, 2_000) if profile != "smoke" else held_out, seed)
    return [
        {"model": short[name], "parameters": sum(p.numel() for p in model.parameters())}
        | statistics.proportion(predict.correct(model, test)).columns("accuracy")
        for name, model in models.items()
    ]


worth = stored("classifiers", {"held_out": held_out, "seed": seed}, measure_accuracy, code=code, data=identity)
accuracy = pd.DataFrame(worth.metrics)
_ = plots.save_table(accuracy, "03_classifiers", caption="The classifiers on test images.", sources=[worth])
accuracy.style.hide(axis="index").format(precision=3)

# %% [markdown]
# ## (b) Learning, and where the noise went
#
# A ViT has exactly invisible pixel directions, and noise that is free to choose should move there: the share of its energy in the
# exact nullspace starts at $k / C p^2$ (a random direction), and would be one at the optimum of the problem above. Does descent find it?
# The gradient has no component in the nullspace, so the share rises only as far as the visible part shrinks while the norm is held.


# %%
class Clipped(nn.Module):
    """The classifier as a stored image reaches it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.clamp(0, 1))


clipped = {name: Clipped(model).eval() for name, model in models.items()}
spaces = {name: nullspace.patch_nullspace(model) for name, model in models.items() if isinstance(model, vit.ViT)}


@cache
def pool(name: str, split: str, count: int) -> influence.Pool:
    batches = getattr(cifar, split).subset(count, seed).batches(250, image_size=48, device=device)
    return influence.read_pool(clipped[name], batches, level="input")


def learn(name: str, noise_seed: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    """A model's noise and its two controls, (1, C, H, W), and how much of each lies in the exact nullspace."""
    given = dict(norm=norm, seed=noise_seed, held_out=pool(name, "test", held_out))
    train = pool(name, "train", images)
    learned = synthesis.input_noise(clipped[name], train, steps=steps, **given)
    noises = {"learned": learned.value}
    for control in ("permuted", "random_norm"):
        noises[control] = synthesis.CONTROLS[control](clipped[name], train, like=learned, level="input", **given).value
    generator = torch.Generator().manual_seed(noise_seed)
    noises["permuted locally"] = perturbation.permuted_in_patches(learned.value, (8, 8), generator)
    row = {"model": short[name], "seed": noise_seed}
    if name in spaces:
        for kind, value in noises.items():
            row[f"share {kind}"] = (spaces[name].project(value).norm() / value.norm()).square().item()
        row["share of dimensions"] = spaces[name].dim / spaces[name].basis.shape[0]
    return row, noises


protocol = {"images": images, "held_out": held_out, "steps": steps, "norm": norm, "seed": seed}
learned = {
    (name, s): stored(
        "input_noise", protocol | {"model": name, "noise_seed": s}, partial(learn, name, s), code=code, data=identity
    )
    for name in names
    for s in noise_seeds
}
shares = pd.DataFrame([run.metrics for (name, _), run in learned.items() if name in spaces])
_ = plots.save_table(
    shares, "03_nullspace_share", caption="Energy in the exact nullspace.", sources=list(learned.values())
)
shares.style.hide(axis="index").format(precision=3)

# %% [markdown]
# **It hardly does.** The optimum of a ViT's problem is known in closed form and at any norm (notebook 01), and a learned noise stays far from
# it: its share of the nullspace ends close to where it began. So a learned input noise shows what descent found, not what is there, and
# norms of learned noise say little about the size of a nullspace.
#
# ## (c) Stability: each model under its own noise
#
# The noise was learned at one norm; here it is scaled. If match stays high far beyond the norm of learning, a *direction* is
# ignored, as the exact nullspace is; if it falls quickly, only a small neighbourhood was flattened.


# %%
def agreement(reader: str, noise: Tensor) -> Tensor:
    """Which test images (n,) keep their clean prediction."""
    seen, hits = pool(reader, "test", held_out), []
    with torch.inference_mode():
        for inputs, logits in zip(seen.inputs.split(250), seen.logits.split(250), strict=True):
            hits.append(clipped[reader](inputs + noise).argmax(1) == logits.argmax(1))
    return torch.cat(hits).cpu()


KINDS = {
    "learned": "learned",
    "permuted locally": "permuted locally",
    "permuted": "permuted",
    "random_norm": "Gaussian",
}


def stability() -> list[dict[str, object]]:
    """Match of each model under multiples of its own noise and of the controls; images of all seeds together."""
    rows = []
    for name in names:
        for kind in KINDS:
            for factor in factors:
                noises = [learned[name, s].tensors(device)[kind] for s in noise_seeds]
                kept = torch.stack([agreement(name, factor * noise) for noise in noises]).double().mean(0)
                row = {"model": short[name], "noise": KINDS[kind], "norm": factor * norm}
                rows.append(row | statistics.mean(kept).columns("match"))
    return rows


given = {"factors": factors, "noises": [run.key for run in learned.values()]}
stable = stored("input_stability", protocol | given, stability, code=code, data=identity)
curves = pd.DataFrame(stable.metrics)
_ = plots.save_table(curves, "03_stability", caption="Match under own noise and controls.", sources=[stable])
figure, axes = plots.subplots(1, len(names), height=2.3, sharey=True)
for axis, name in zip(axes, names, strict=True):
    for kind, line in curves[curves["model"] == short[name]].groupby("noise", sort=False):
        plots.curve(axis, line, "norm", "match", label=kind)
    axis.set(title=short[name], xlabel="norm", xscale="log", ylim=(0, 1))
    axis.set_xticks([f * norm for f in factors], [f"{f * norm:g}" for f in factors])
    axis.minorticks_off()
axes[0].set_ylabel("match")
axes[0].yaxis.set_major_formatter(PercentFormatter(1))
axes[0].legend(fontsize=6, loc="lower left")
_ = plots.save_figure(figure, "03_stability", sources=[stable])

# %% [markdown]
# ## (d) Transfer: the noise of A on model B
#
# Rows: whose noise; columns: who reads it; on the diagonal, its own model. First panel: match. The others: what A's noise gains over each
# control, paired on the same images; a star where the 95 % interval excludes zero. If cells off the diagonal are no better than the
# controls, the noise is the model's own. What it gains over the *local* permutation is owed to its pattern; what remains of the gain over
# the others, to where the noise is strong.


# %%
CONTROLS = ("permuted locally", "permuted", "random_norm")


def transfer() -> list[dict[str, object]]:
    """Match for every (noise, reader), and paired differences to the controls."""
    rows = []
    for maker in names:
        for reader in names:
            kept = {
                kind: torch.stack([agreement(reader, learned[maker, s].tensors(device)[kind]) for s in noise_seeds])
                for kind in KINDS
            }
            kept = {kind: masks.double().mean(0) for kind, masks in kept.items()}
            row = {"noise of": short[maker], "read by": short[reader]}
            row |= statistics.mean(kept["learned"]).columns("match")
            for control in CONTROLS:
                row[f"match {control}"] = kept[control].mean().item()
                difference = statistics.paired_difference(kept["learned"], kept[control])
                row |= {k: v for k, v in difference.columns(f"over {control}").items() if k != "n"}
            rows.append(row)
    return rows


matrix = stored("transfer", protocol | {"noises": given["noises"]}, transfer, code=code, data=identity)
cells = pd.DataFrame(matrix.metrics)
_ = plots.save_table(cells, "03_transfer", caption="Noise of A read by B.", sources=[matrix])

# %%
figure, axes = plots.subplots(2, 2, height=5.0, sharex=True, sharey=True)
order = [short[name] for name in names]
panels = {"match": "match"} | {f"over {kind}": f"minus {KINDS[kind]}" for kind in CONTROLS}
for axis, (column, title) in zip(axes.flat, panels.items(), strict=True):
    table = cells.pivot(index="noise of", columns="read by", values=column).loc[order, order]
    text = (100 * table).round().astype(int).map(("{}" if column == "match" else "{:+d}").format)
    if column != "match":
        away = cells.assign(away=cells[f"{column}_low"].gt(0) | cells[f"{column}_high"].lt(0))
        away = away.pivot(index="noise of", columns="read by", values="away").loc[order, order]
        text = text + away.map(lambda value: "*" if value else "")
    limits = dict(vmin=0, vmax=1, cmap="crest") if column == "match" else dict(vmin=-0.5, vmax=0.5, cmap="vlag")
    sns.heatmap(table, annot=text, fmt="", ax=axis, cbar=False, square=True, annot_kws={"fontsize": 7}, **limits)
    axis.set(title=f"{title} (points)" if column != "match" else "match (%)", xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=35)
    axis.tick_params(axis="y", rotation=0)
figure.supylabel("noise of", fontsize=9)
figure.supxlabel("read by", fontsize=9)
_ = plots.save_figure(figure, "03_transfer", sources=[matrix])

# %%
own = cells["noise of"] == cells["read by"]
for title, part in (("own noise", cells[own]), ("noise of another", cells[~own])):
    gains = ", ".join(
        f"{100 * part[f'over {kind}'].mean():+.1f} over {KINDS[kind]} ({(part[f'over {kind}_low'] > 0).sum()} of {len(part)})"
        for kind in CONTROLS
    )
    print(
        f"{title}: mean match {part['match'].mean():.1%}; points gained (cells whose interval is above zero): {gains}"
    )

# %% [markdown]
# **What this says of transformers.** Nothing in particular: noise to ignore is found for convolutional networks as well as for ViTs, and at
# this norm the diagonal is much alike for all. Nor is the noise the model's own: other architectures match more often under it than under
# controls of the papers' kind. The local permutation tells two reasons apart. Part of the gain is *place*: images carry little at their
# borders and corners, every network looks there less, and noise that sits there is ignored by all. The rest is a *pattern* that networks
# trained on the same images share; the two ViTs share no more of it than the others.
#
# ## (e) What does the noise look like?

# %%
figure, axes = plots.subplots(1, len(names), height=1.9)
for axis, name in zip(axes, names, strict=True):
    noise = learned[name, seed].tensors()["learned"][0].permute(1, 2, 0)
    axis.imshow((noise / noise.abs().max() / 2 + 0.5).numpy())
    axis.set(title=short[name], xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)
_ = plots.save_figure(figure, "03_noises", sources=list(learned.values()))
