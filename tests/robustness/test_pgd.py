"""The training attack: in the ball and the box, optimal where the optimum is known, and it leaves no trace."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from attacked import batch, logits, vit
from torch import Tensor, nn

from nullpaper.errors import InputError
from nullpaper.models.gradients import frozen
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.robustness.pgd import LOSSES, REACH, ascent, gradient, margin, pgd

EPS = 2 / 255


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Two classes and one linear map, so that the worst image of a ball is known."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 4 * 4, 2)
        nn.init.normal_(self.map.weight, generator=seeded(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.flatten(1))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_result_is_in_the_ball_and_the_box_and_the_loss_is_higher(loss: str) -> None:
    images, labels = batch()
    found = pgd(vit(), images, labels, eps=EPS, steps=3, loss=loss)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert (found - images).abs().max() <= EPS + 1e-6 and found.min() >= 0 and found.max() <= 1
    target = logits(images) if loss == "kl" else labels
    value = [LOSSES[loss](logits(points), target) for points in (images, found)]
    assert (value[1] > value[0]).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_on_a_linear_model_the_worst_image_is_found(loss: str) -> None:
    model, images = Linear(), torch.rand(6, 3, 4, 4, generator=seeded(1))
    labels = logits(images, model).argmax(1)
    weight = model.map.weight.detach()
    away = (weight[1 - labels] - weight[labels]).view_as(images).sign()
    worst = (images + 0.1 * away).clamp(0, 1)
    found = pgd(model, images, labels, eps=0.1, steps=20, loss=loss, generator=seeded(2))
    assert torch.allclose(found, worst, atol=1e-6)


def test_the_margin_is_that_of_the_best_wrong_class() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
    assert margin(values, torch.tensor([2, 0])).tolist() == [1.0, -5.0]


def test_without_a_random_start_it_is_pgd_of_torchattacks() -> None:
    images, labels = batch()
    theirs = torchattacks.PGD(vit(), eps=EPS, alpha=REACH * EPS / 3, steps=3, random_start=False)(images, labels)
    ours = pgd(vit(), images, labels, eps=EPS, steps=3, random_start=False)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.999  # a sign at a gradient near 0 may differ


def test_without_momentum_mim_is_plain_sign_steps_and_with_it_that_of_torchattacks() -> None:
    (images, labels), steps, found = batch(), 4, {}
    for momentum in (0.0, 1.0):
        with frozen(vit()):
            found[momentum] = ascent(vit(), images, labels, images, eps=EPS, steps=steps, reach=1.0, momentum=momentum)
    plain = images
    for _ in range(steps):
        plain = (plain + EPS / steps * gradient(vit(), plain, labels, LOSSES["ce"])[0].sign()).clamp(0, 1)
    assert ((found[0.0] - plain).abs() < 1e-6).float().mean() > 0.999
    theirs = torchattacks.MIFGSM(vit(), eps=EPS, alpha=EPS / steps, steps=steps, decay=1.0)(images, labels)
    assert ((found[1.0] - theirs).abs() < 1e-6).float().mean() > 0.99  # a sign at a gradient near 0 may differ
    assert ((found[1.0] - found[0.0]).abs() > 1e-6).float().mean() > 0.01


def test_stopping_when_fooled_changes_nothing_but_what_is_fooled_earlier() -> None:
    images, labels = batch()
    options = dict(eps=EPS, steps=6)
    full, short = (pgd(vit(), images, labels, stop_when_fooled=stop, **options) for stop in (False, True))
    wrong = logits(images).argmax(1) != labels
    assert wrong.any() and torch.equal(short[wrong], images[wrong])
    holds, held = (logits(points).argmax(1) == labels for points in (short, full))
    assert holds.any() and not holds.all() and (held | ~holds).all()
    assert ((short - full).abs()[holds] < 1e-6).float().mean() > 0.99


def test_stopping_saves_the_work_on_what_is_fooled() -> None:
    images, labels = batch()
    seen: list[int] = []

    def counting(points: Tensor) -> Tensor:
        seen.append(len(points))
        return vit()(points)

    pgd(counting, images, labels, eps=8 / 255, steps=8, stop_when_fooled=True)
    assert seen[0] == len(images) and sum(seen) < 0.6 * len(images) * 8 and seen == sorted(seen, reverse=True)


def flat(images: Tensor) -> Tensor:
    """Two logits without a slope, so that an attack stays at its start."""
    return 0 * images.flatten(1)[:, :2]


def test_the_start_comes_from_the_generator_alone() -> None:
    images, labels = batch()[0], torch.zeros(8).long()
    before = torch.get_rng_state()

    def start(seed: int | None, eps: float = EPS, **options: str) -> Tensor:
        generator = None if seed is None else seeded(seed)
        return pgd(flat, images, labels, eps=eps, steps=1, generator=generator, **options) - images

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert torch.equal(start(None), start(None)) and torch.equal(torch.get_rng_state(), before)
    inside = (images > 0.1) & (images < 0.9)
    uniform, gaussian = start(3)[inside], start(3, 0.1, loss="kl")[inside]
    assert abs(uniform.std() - EPS / 3**0.5) < 0.02 * EPS and abs(gaussian.std() - 1e-3) < 2e-5
    assert (start(3, random_start=False) == 0).all()


def test_a_radius_of_nothing_gives_the_same_images() -> None:
    images, labels = batch()
    found = pgd(vit(), images, labels, eps=0)
    assert torch.equal(found, images) and found.data_ptr() != images.data_ptr()


def test_it_leaves_modes_flags_and_gradients_as_they_were() -> None:
    model = load_vit(SHIPPED)
    model.net.blocks[2].train()
    model.net.head.weight.requires_grad_(False)
    modes, flags = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    images, labels = batch()
    for stop in (False, True):
        pgd(model, images, labels, eps=EPS, steps=1, stop_when_fooled=stop)

    def broken(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        raise RuntimeError("broken")

    model.net.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        pgd(model, images, labels, eps=EPS, steps=1)
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters()) and not images.requires_grad


def test_it_works_inside_inference_mode_and_in_half_precision_of_the_model() -> None:
    images, labels = batch()
    expected = pgd(vit(), images, labels, eps=EPS, steps=1)
    with torch.inference_mode():
        assert torch.equal(pgd(vit(), images.clone(), labels.clone(), eps=EPS, steps=1), expected)
    double = load_vit(SHIPPED).double()
    assert pgd(double, images.double(), labels, eps=EPS, steps=1).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1e-3}, "eps=-0.001 must be a number in"),
        ({"eps": float("nan")}, "eps=nan must be a number in"),
        ({"eps": 8}, "probably in 0-255 units; divide by 255"),
        ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
        ({"steps": 1.5}, "steps=1.5 must be a whole number"),
        ({"loss": "margn"}, "Did you mean 'margin'"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pgd(vit(), *batch(), **{"eps": EPS, **options})
