"""What tells the finetuning methods apart: the batch they build, the loss on it, and the noise they renew.

Paper A's loss is CE(f(u), y) + CE(f(u + v), y) with one universal noise v behind the patch embedding, made anew against
the current weights once a round (algorithm 1; its code makes 20 noises and takes 40 steps with each). Every control
differs from it in v alone. Losses over two branches are means, so that clipping treats all methods alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from nullpaper.data.datasets import Split
from nullpaper.errors import check_choice, check_count, check_number
from nullpaper.finetuning.trainer import check_training
from nullpaper.models.gradients import fast_gradients, frozen
from nullpaper.models.vit import ViT, check_vit, evaluating
from nullpaper.robustness.pgd import ascent, start
from nullpaper.synthesis.controls import gaussian, permuted
from nullpaper.synthesis.influence import EncoderNoise, Noise, Pool, read_pool
from nullpaper.synthesis.linearised import GAMMA, linearise
from nullpaper.synthesis.noise import encoder_noise, rescaled, verified
from nullpaper.synthesis.problem import pose


@dataclass(frozen=True)
class FinetuneRecipe:
    """Everything but method, steps and seed that decides a finetuning run; the same for all methods."""

    batch_size: int = 128
    # optimiser: AdamW, cosine from the full rate to a share of it
    learning_rate: float = 5e-4
    final_share: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    label_smoothing: float = 0.1  # as the shipped checkpoint was trained, or its confidence would change
    ema: float = 0.98  # decay per step; 0: off
    amp: bool = True  # bfloat16 autocast of both branches, on CUDA alone
    # rounds: a noise, its steps, a look at dev
    steps_per_noise: int = 40
    dev_images: int = 1_000  # that select the best round
    last: bool = False  # the last round counts, whatever dev says: methods are then compared at equal length
    # noise
    noise_eps: float = 0.03
    noise_images: int = 1_000  # of dev, and not used for the selection
    noise_steps: int = 40
    noise_lim: float = 1.0
    gamma: float = 0.0  # spectral only: the power of M, the mean of J^T J of the logits, that is the noise's covariance
    spread: bool = True  # every token the same norm: without it the largest noise has no answer (notebook 02)
    official: bool = False  # the published synthesis instead of ours
    early_stop: bool = True  # official only: False runs all steps, as in the authors' reply to reviewers
    # adversarial training
    attack_eps: float = 8 / 255
    attack_steps: int = 10
    beta: float = 6.0  # TRADES' weight, Zhang et al. 2019

    def __post_init__(self) -> None:
        """Raise an `InputError` for a value out of range."""
        check_training(self)
        for name in ("steps_per_noise", "dev_images", "noise_steps", "attack_steps"):
            check_count(name, getattr(self, name))
        check_count("noise_images", self.noise_images, least=0)
        check_number("final_share", self.final_share, 0, 1, "[]")
        check_number("noise_eps", self.noise_eps, 0, 2)
        check_number("noise_lim", self.noise_lim, 0, math.inf)
        check_number("gamma", self.gamma, -GAMMA, GAMMA, "[]")
        check_number("attack_eps", self.attack_eps, 0, 1, "[]", ", in pixel units")
        check_number("beta", self.beta, 0, math.inf, "[)")


@dataclass(frozen=True)
class Batch:
    """What a loss sees: images (B, C, H, W) in [0, 1], labels (B,), the round's noise (1, N, d) or None."""

    images: Tensor
    labels: Tensor
    noise: Tensor | None
    begin: Tensor | None  # where the attack of training begins, (B, C, H, W)
    recipe: FinetuneRecipe


@dataclass(frozen=True)
class Method:
    """A finetuning method: its loss, and what is renewed and chosen in a round."""

    loss: Callable[[ViT, Batch], Tensor]
    noise: str | None = None  # a kind of `make_noise`
    attack: str = ""  # the loss in `pgd.LOSSES` that its attack raises; dev then chooses the best round under PGD
    static: bool = False  # the same operators at every step, so that a GPU may replay one: see `trainer.Trainer.run`

    def begin(self, images: Tensor, recipe: FinetuneRecipe, generator: torch.Generator) -> Tensor | None:
        """Where its attack begins, drawn on the CPU."""
        return start(images, recipe.attack_eps, self.attack, generator) if self.attack else None


def _clean(vit: ViT, batch: Batch) -> Tensor:
    return _cross_entropy(vit(batch.images), batch)


def _noisy(vit: ViT, batch: Batch) -> Tensor:
    """Paper A: clean and noisy branch, one embedding and one forward pass for both."""
    tokens = vit.embed(batch.images)
    return _cross_entropy(vit.encode(torch.cat([tokens, tokens + batch.noise])), batch)


def _madry(vit: ViT, batch: Batch) -> Tensor:
    """Madry et al. 2018: the loss at the attacked images alone."""
    return _clean(vit, replace(batch, images=_attacked(vit, batch)))


def _madry_noisy(vit: ViT, batch: Batch) -> Tensor:
    """Papers A and B together: both branches of `_noisy` at the attacked images."""
    return _noisy(vit, replace(batch, images=_attacked(vit, batch)))


def _trades(vit: ViT, batch: Batch) -> Tensor:
    """Zhang et al. 2019: clean loss + beta KL(f(x) || f(x'))."""
    clean, attacked = vit(torch.cat([batch.images, _attacked(vit, batch, "kl")])).float().chunk(2)
    gap = kl_div(attacked.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return _cross_entropy(clean, batch) + batch.recipe.beta * gap


def _attacked(vit: ViT, batch: Batch, loss: str = "ce") -> Tensor:
    """PGD against the model in evaluation mode: dropout would move the target of the attack from step to step."""
    recipe, images = batch.recipe, batch.images
    options = {"eps": recipe.attack_eps, "steps": recipe.attack_steps, "loss": loss}
    with evaluating(vit), frozen(vit), fast_gradients(vit):
        return ascent(vit, images, batch.labels, batch.begin, **options)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of the logits of one or more branches, whose mean it is."""
    branches = len(logits) // len(batch.labels)
    labels = batch.labels.repeat(branches) if branches > 1 else batch.labels
    return cross_entropy(logits.float(), labels, label_smoothing=batch.recipe.label_smoothing)


METHODS: dict[str, Method] = {
    "standard": Method(_clean, static=True),
    "nullspace": Method(_noisy, "learned", static=True),  # paper A, algorithm 1
    "zero": Method(_noisy, "zero", static=True),  # paper A's recipe with v = 0
    "random": Method(_noisy, "random", static=True),  # Gaussian noise at the same eps, paper A's ablation
    "random_norm": Method(_noisy, "random_norm", static=True),  # Gaussian noise of the learned noise's norm
    "permuted": Method(_noisy, "permuted", static=True),  # the learned noise's entries in another order
    # from what the logits ignore (gamma -1) to what moves them most (1)
    "spectral": Method(_noisy, "spectral", static=True),
    "pgd_at": Method(_madry, attack="ce", static=True),
    "pgd_at_nullspace": Method(_madry_noisy, "learned", attack="ce", static=True),
    "pgd_at_random": Method(_madry_noisy, "random", attack="ce", static=True),  # Gaussian noise at the same eps
    "trades": Method(_trades, attack="kl", static=True),
}
"""Finetuning methods by name; a reader may add to them."""


def check_method(name: str) -> Method:
    """The method of that name in `METHODS`.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    check_choice("method", name, METHODS)
    return METHODS[name]


def loss_of(method: Method, vit: ViT, batch: Batch) -> Tensor:
    """The loss of a batch; where CUDA computes and the recipe says ``amp``, in bfloat16."""
    kind = batch.images.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=batch.recipe.amp and kind == "cuda"):
        return method.loss(vit, batch)


def make_noise(vit: ViT, images: Split, kind: str, recipe: FinetuneRecipe, seed: int) -> Noise:
    """The noise of one round against the present weights, with its influence on images that it was not made from.

    Args:
        images: learned from, scaled and verified on, in disjoint parts.
        kind: "learned", or a control: "zero", "random" (at the same eps), "spectral" (random with the covariance
            M^gamma, at the same eps: `Linearised.powered`), or of the learned noise "random_norm" or "permuted".
    """
    check_vit(vit)
    batches = images.batches(250, image_size=vit.image_size, device=vit.mean.device)
    generator = torch.Generator().manual_seed(seed + 1)  # or a control would start from the learned noise's own draws
    given = {"eps": recipe.noise_eps, "seed": seed}
    with evaluating(vit):
        pool = read_pool(vit, batches)
        if kind == "random":
            return rescaled(vit, torch.randn(pool.noise_shape, generator=generator), pool, margin=False, **given)
        if kind == "spectral":
            draw = torch.randn(pool.noise_shape, generator=generator).to(pool.inputs)
            fit = pose(vit, pool, level="encoder", **given).fit  # M is of the images that neither scale nor verify
            coloured = linearise(vit, fit, seed=seed).powered(draw, recipe.gamma)
            return rescaled(vit, coloured, pool, margin=False, **given)
        if kind == "zero":
            return verified(vit, torch.zeros(pool.noise_shape), pool, **given)
        learned = _learned(vit, pool, recipe, seed)
        if kind == "learned":
            return learned
        control = gaussian if kind == "random_norm" else permuted
        return verified(vit, control(learned.value, generator), pool, **given)


def _learned(vit: ViT, pool: Pool, recipe: FinetuneRecipe, seed: int) -> EncoderNoise:
    """Our noise, or the published one."""
    options = {"eps": recipe.noise_eps, "lim": recipe.noise_lim, "steps": recipe.noise_steps, "seed": seed}
    if recipe.official:
        return encoder_noise(vit, pool, official=True, early_stop=recipe.early_stop, **options)
    return encoder_noise(vit, pool, spread=recipe.spread, margin=False, **options)
