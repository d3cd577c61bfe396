"""APGD and FAB: the library's iterates on what is never fooled, its robust sets, and what an image gets in company."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchattacks
from attacked import batch, logits, vit
from torch import Tensor, nn
from torchattacks.attacks.fab import projection_linf

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.gradients import frozen
from nullpaper.models.vit import evaluating
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.autoattack import _targeted, _to_plane, apgd, apgd_t, fab_t

EPS, STEPS = 4 / 255, 9


class Unfooled(nn.Module):
    """The shipped ViT with more for the right class, by which no attack succeeds; it keeps what it was asked."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.net, self.more, self.asked = vit(), 10.0 * nn.functional.one_hot(labels, 10), []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return self.net(images) + self.more


def right() -> tuple[Tensor, Tensor]:
    images, labels = batch()
    standing = logits(images).argmax(1) == labels
    return images[standing].contiguous(), labels[standing]


OURS = {"apgd": apgd, "apgd_t": apgd_t, "fab_t": fab_t}
LIBRARY: dict[str, Callable] = {
    "apgd": torchattacks.APGD,
    "apgd_t": partial(torchattacks.APGDT, n_classes=10),
    "fab_t": partial(torchattacks.FAB, multi_targeted=True, n_classes=10),
}


@pytest.mark.parametrize("name", OURS)
def test_the_iterates_are_the_librarys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nullpaper.robustness.autoattack.at_once", lambda model, images: 1
    )  # one target after another, as there
    monkeypatch.setattr("nullpaper.robustness.autoattack.TARGETS", 2)
    images, labels = (part[:2] for part in right())
    model, theirs = Unfooled(labels), Unfooled(labels)
    with evaluating(vit()), frozen(model), torch.random.fork_rng(), torch.enable_grad():
        found = OURS[name](model, images, labels, EPS, STEPS, 5)
        library = LIBRARY[name](theirs, eps=EPS, steps=STEPS, seed=5)
        library.n_target_classes = 2
        library(images, labels)
    assert torch.equal(found, images)
    ours, library = ([x for x in one.asked if not torch.equal(x, images)] for one in (model, theirs))
    assert len(ours) == len(library) >= STEPS
    for mine, other in zip(ours, library, strict=True):
        assert ((mine - other).abs() < 1e-3).float().mean() > 0.99  # signs at a gradient near 0 differ


@pytest.mark.parametrize("name", OURS)
def test_the_robust_sets_are_the_librarys(name: str) -> None:
    (images, labels), eps = (part[:3] for part in right()), 1 / 255
    with evaluating(vit()), frozen(vit()), torch.random.fork_rng(), torch.enable_grad():
        ours, theirs = (
            OURS[name](vit(), images, labels, eps, 3, 0),
            LIBRARY[name](vit(), eps=eps, steps=3, seed=0)(images, labels),
        )
    robust, expected = (logits(points).argmax(1) == labels for points in (ours, theirs))
    assert torch.equal(robust, expected) and (ours - images).abs().max() <= eps + 1e-6
    assert torch.equal(ours[robust], images[robust])


def test_what_an_image_gets_depends_on_no_other_target_or_image(monkeypatch: pytest.MonkeyPatch) -> None:
    (images, labels), points = (part[:3] for part in right()), []
    for size in (64, 1):
        monkeypatch.setattr("nullpaper.robustness.autoattack.at_once", lambda model, images, size=size: size)
        with frozen(vit()), torch.enable_grad():
            points.append(apgd_t(vit(), images, labels, 1 / 255, 3, 0))
    assert ((points[0] - points[1]).abs() < 1e-6).float().mean() > 0.99


def test_the_first_target_that_fools_gives_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = right()
    ranked = logits(images).argsort(1, descending=True)[:, 1:]
    calls: list[int] = []

    def run(model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, begin: Tensor) -> Tensor:
        calls.append(len(images))
        found = (targets % 3 == 0)[:, None, None, None]
        return torch.where(found, images * 0 + targets[:, None, None, None] / 10, images)

    for size in (1, 3 * len(images)):
        monkeypatch.setattr("nullpaper.robustness.autoattack.at_once", lambda model, images, size=size: size)
        points = _targeted(vit(), images, labels, lambda: images, run)
        for point, classes in zip(points, ranked.tolist(), strict=True):
            assert torch.allclose(point, torch.tensor(next(one for one in classes if one % 3 == 0) / 10))
    assert calls[0] == len(images) and max(calls) == 3 * len(images)


@pytest.mark.parametrize("scale", [0.1, 1, 100])
def test_the_step_to_a_plane_is_the_librarys(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    points, slope = (torch.rand((20, 3, 8, 8), generator=generator) for _ in range(2))
    slope = (slope - 0.5) * (slope > 0.2)  # some values do not count
    offset = scale * torch.randn(20, generator=generator) - (slope * points).flatten(1).sum(1)
    step = _to_plane(points, slope, offset)
    expected = projection_linf(points.flatten(1), slope.flatten(1), -offset).view_as(step)
    assert torch.allclose(step, expected, atol=1e-5)
    assert ((points + step).clamp(0, 1) - points - step).abs().max() < 1e-6
    assert not _to_plane(points, 0 * slope, offset).any()


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 64, 16))
def test_standard_autoattack_leaves_the_images_robust_that_pyautoattack_does(first: int) -> None:
    """Of the robust net at 8/255, image by image: 64 in all, about ten minutes of one core."""
    package = pytest.importorskip("pyautoattack", reason="pyautoattack is of the extra `bench` alone")
    split, model, eps = load_data("cifar10").test.take(slice(first, first + 16)), load_classifier("vit_robust"), 8 / 255
    images, labels = to_pixels(split.images, 48).contiguous(), torch.from_numpy(split.labels).long()
    with frozen(model):
        reference = package.AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=0, device="cpu")
        theirs = reference.run_standard_evaluation(images, labels)[0]
    ours = attack(model, images, labels, "autoattack", eps=eps)
    robust, expected = ((logits(points, model).argmax(1) == labels).tolist() for points in (ours, theirs))
    assert robust == expected and any(robust)
