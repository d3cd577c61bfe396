"""Lookalikes keep the bound they claim, adversarial noise lives outside the nullspace, controls have equal norms."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.fooling import lookalike as fooling
from nullpaper.models.vit import SHIPPED, ViT, load_vit, norms
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace

EPS = 0.05


@cache
def vit() -> ViT:
    return load_vit(SHIPPED)


@cache
def space() -> PatchNullspace:
    return patch_nullspace(vit())


@cache
def pair() -> tuple[Tensor, Tensor]:
    """Images and targets of other classes."""
    split = load_data("cifar10").test.take(list(range(6)))
    images = to_pixels(split.images, 48)
    return images, images[fooling.other_class(torch.from_numpy(split.labels))]


@cache
def exact() -> Tensor:
    return space().nearest(*pair())[0]


@cache
def near() -> Tensor:
    """Noise of a lookalike."""
    return fooling.lookalike(vit(), *pair(), eps=EPS, steps=25, exact=exact())


@cache
def attack() -> tuple[Tensor, fooling.Adversarial]:
    images, targets = pair()
    classes = logits(targets).argmax(1)
    return classes, fooling.adversarial(vit(), images, classes, steps=25)


def logits(images: Tensor) -> Tensor:
    with torch.no_grad():
        return vit()(images)


def influence(noisy: Tensor) -> Tensor:
    return (logits(noisy).softmax(1) - logits(pair()[0]).softmax(1)).square().sum(1)


def is_legal(images: Tensor) -> bool:
    return bool(((images >= 0) & (images <= 1)).all())


def test_a_pair_is_of_two_classes_and_the_same_for_the_same_seed() -> None:
    labels = torch.tensor([0, 1, 2, 0, 0, 1])
    chosen = fooling.other_class(labels, 3)
    assert (labels[chosen] != labels).all() and torch.equal(chosen, fooling.other_class(labels, 3))
    many = torch.arange(2).repeat(50)
    assert not torch.equal(fooling.other_class(many, 0), fooling.other_class(many, 1))


def test_a_lookalike_keeps_its_bound_and_is_nearer_than_exact_noise_and_than_lines() -> None:
    images, targets = pair()
    noisy, start = images + near(), (images + exact()).clamp(0, 1)
    assert is_legal(noisy) and near().shape == images.shape and (influence(noisy) <= EPS).all()
    along = fooling.farthest_along(vit(), images, start, targets, eps=EPS)
    assert (influence(along) <= EPS).all()
    reached, line, first = (norms(end - targets) for end in (noisy, along, start))
    assert (reached <= line + 1e-5).all() and (line < first).all()
    assert (reached / norms(images - targets)).mean() < 0.3 * (first / norms(images - targets)).mean()


def test_a_larger_eps_resumed_from_a_smaller_one_is_no_farther() -> None:
    images, targets = pair()
    start = (images + near()).clamp(0, 1)
    resumed = images + fooling.lookalike(vit(), images, targets, eps=0.5, steps=3, start=start, exact=exact())
    assert (norms(resumed - targets) <= norms(images + near() - targets) + 1e-5).all()
    assert (influence(resumed) <= 0.5).all()


def test_where_the_descent_meets_nothing_it_goes_on_from_the_segment() -> None:
    images, targets = pair()
    near_segment = images + fooling.lookalike(vit(), images, targets, eps=1e-3, steps=1)
    along = fooling.farthest_along(vit(), images, (images + exact()).clamp(0, 1), targets, eps=1e-3)
    assert (norms(near_segment - targets) <= norms(along - targets) + 1e-4).all()
    assert (influence(near_segment) <= 1e-3).all()


def test_an_image_that_is_its_target_needs_no_noise_and_the_model_is_left_alone() -> None:
    images, _ = pair()
    assert norms(fooling.lookalike(vit(), images, images, eps=EPS, steps=2)).max() < 1e-4
    assert all(p.requires_grad and p.grad is None for p in vit().parameters()) and not images.requires_grad


def test_a_segment_within_the_bound_is_walked_to_its_end() -> None:
    images, targets = pair()
    assert torch.allclose(fooling.farthest_along(vit(), images, images, targets, eps=1.999), targets)


def test_adversarial_noise_changes_the_answer_and_is_short() -> None:
    images, _ = pair()
    classes, result = attack()
    assert result.success.float().mean() > 0.5
    assert is_legal(images + result.noise) and (result.noise[~result.success] == 0).all()
    assert torch.equal(
        (logits(images + result.noise).argmax(1) == classes)[result.success], result.success[result.success]
    )
    assert norms(result.noise).max() < norms(exact()).min()
    unneeded = fooling.adversarial(vit(), images, logits(images).argmax(1), steps=1)
    sure = logits(images).topk(2).values.diff(dim=1).abs().squeeze(1) > 0.01
    assert unneeded.success[sure].all() and (unneeded.noise == 0).all()


def test_adversarial_noise_lives_outside_the_nullspace() -> None:
    images, _ = pair()
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vit()(leaf).logsumexp(1).sum() - vit()(leaf)[:, 0].sum(), leaf)
    for noise, share in ((gradient, 1e-5), (attack()[1].noise, 0.1)):
        assert (norms(space().project(noise)) <= share * norms(noise)).all()


def test_noise_without_its_nullspace_part_is_shorter_and_does_the_same() -> None:
    images, _ = pair()
    classes, _ = attack()
    options = dict(eps=8 / 255, alpha=2 / 255, steps=4, random_start=False)
    result = fooling.library_attack(vit(), images, classes, "PGD", **options)
    shorter = fooling.without_nullspace(space(), images, result.noise)
    assert is_legal(images + shorter) and result.success.any()
    ratio = (norms(shorter) / norms(result.noise))[result.success]
    assert (ratio < 1 - 1e-3).all()
    assert torch.allclose(logits(images + shorter), logits(images + result.noise), atol=1e-4)
    assert norms(fooling.without_nullspace(space(), images, exact())).max() < 1e-2


def test_a_library_attack_is_seeded_and_leaves_the_draws_and_modes_of_others_alone() -> None:
    images, _ = pair()
    before = torch.get_rng_state()
    first, second = (fooling.library_attack(vit(), images, attack()[0], "PGD", steps=1) for _ in range(2))
    assert torch.equal(first.noise, second.noise) and torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in vit().modules())
    assert fooling.library_attack(vit(), images, attack()[0], "CW", steps=2).noise.isfinite().all()


def test_controls_are_legal_and_have_the_norm_of_the_noise() -> None:
    images, targets = pair()
    controls = fooling.equal_norm_controls(space(), images, targets, exact(), torch.Generator().manual_seed(0))
    assert list(controls) == ["straight step", "random exact", "permuted"]
    for noise in controls.values():
        assert is_legal(images + noise) and torch.allclose(norms(noise), norms(exact()), rtol=1e-4)
    way = targets - images
    along = (controls["straight step"] * way).flatten(1).sum(1) / norms(way) / norms(exact())
    assert torch.allclose(along, torch.ones(len(images)), atol=1e-4)
    assert (logits(images + controls["random exact"]) - logits(images)).abs().max() < 1e-3
    assert (logits(images + controls["permuted"]) - logits(images)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, r"eps=0 must be a number in \(0, 2\)"),
        ({"eps": 2.0}, r"eps=2.0 must be a number in \(0, 2\)"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"targets": torch.full((6, 3, 48, 48), 2.0)}, r"targets span \[2, 2\], not \[0, 1\]"),
        ({"images": torch.rand(6, 3, 32, 32), "targets": torch.rand(6, 3, 32, 32)}, "resize"),
        ({"start": torch.rand(6, 1, 48, 48)}, "starts have shape"),
        ({"exact": torch.rand(6, 3, 48, 48)}, "exact changes the answer by more than eps=0.05"),
    ],
)
def test_bad_lookalikes_are_refused(options: dict, message: str) -> None:
    images, targets = pair()
    with pytest.raises(InputError, match=message):
        fooling.lookalike(vit(), **{"images": images, "targets": targets, "eps": EPS, **options})


def test_other_bad_requests_are_refused() -> None:
    images, targets = pair()
    classes, training = torch.zeros(6, dtype=torch.long), load_vit(SHIPPED).train()
    for name, options in (("PDG", {}), ("GN", {}), ("PGD", {"stepz": 3})):
        with pytest.raises(InputError, match=f"{name} with .* is no targeted attack"):
            fooling.library_attack(vit(), images, classes, name, **options)
    with pytest.raises(InputError, match="at least two classes"):
        fooling.other_class(classes)
    with pytest.raises(InputError, match="eps=3 must be"):
        fooling.farthest_along(vit(), images, images, targets, eps=3)
    for call in (fooling.adversarial, lambda *given: fooling.library_attack(*given, "PGD")):
        with pytest.raises(InputError, match="labels span 0 to 10, but the classes"):
            call(vit(), images, torch.tensor([0, 1, 2, 3, 4, 10]))
        with pytest.raises(InputError, match="training mode"):
            call(training, images, classes)
    with pytest.raises(InputError, match="training mode"):
        fooling.farthest_along(training, images, images, targets, eps=EPS)
