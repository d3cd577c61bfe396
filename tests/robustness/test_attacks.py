"""Every attack by name: the ball, the box, no trace left, never weaker for more effort; and what is refused."""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch
import torchattacks
from attacked import batch, logits, vit
from torch import Tensor, nn

from nullpaper.errors import InputError
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.vit import SHIPPED, load_vit, norms
from nullpaper.robustness.attacks import ATTACKS, attack, measure_of
from nullpaper.robustness.pgd import margin

EPS = {"cw_l2": 0.3, "patch": 0.5, "patch_fool": 0.5, "autoattack": 8 / 255, "square": 16 / 255}  # else 2/255
STEPS = {"fgsm": 1, "square": 10, "apgd": 2, "autoattack": 2}  # else 4
DRAWLESS = {"fgsm", "mim", "cw_l2"}


def accuracy(images: Tensor) -> float:
    return (logits(images).argmax(1) == batch()[1][: len(images)]).float().mean().item()


def eps(name: str) -> float:
    return EPS.get(name, 2 / 255)


def short(name: str) -> str:
    """The name with few steps."""
    return f"{name}-{STEPS.get(name, 4)}"


@cache
def attacked(name: str) -> Tensor:
    return attack(vit(), *batch(), short(name), eps=eps(name))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_result_is_legal_and_fools_more(name: str) -> None:
    (images, _), found = batch(), attacked(name)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1
    size = norms(found - images) if ATTACKS[name].norm == "L2" else (found - images).abs()
    assert size.max() <= eps(name) + 1e-6 and size.max() > 0.5 * eps(name)
    assert accuracy(found) < accuracy(images)


@pytest.mark.parametrize("name", ATTACKS)
def test_only_correct_images_change_and_their_margin_never_falls(name: str) -> None:
    (images, labels), found = batch(), attacked(name)
    clean = logits(images)
    wrong = clean.argmax(1) != labels
    assert 0 < wrong.sum() < len(images) and torch.equal(found[wrong], images[wrong])
    assert (margin(logits(found), labels) >= margin(clean, labels) - 1e-5).all()
    assert torch.equal(attack(vit(), images, labels, name, eps=0), images)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_seed_fixes_the_result_and_another_changes_it(name: str) -> None:
    images, labels = (part[:3] for part in batch())
    first, again, other = (
        attack(vit(), images, labels, f"{name}-{STEPS.get(name, 2)}", eps=eps(name), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and torch.equal(first, other) == (name in DRAWLESS)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_leaves_a_trace(name: str) -> None:
    model = load_vit(SHIPPED).train()
    model.net.blocks[1].eval()
    model.net.head.weight.requires_grad_(False)
    images, labels = batch()
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state, before = torch.get_rng_state(), images.clone()
    attack(model, images[:2], labels[:2], f"{name}-1", eps=eps(name))
    calls = iter(range(100))

    def broken(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if next(calls) == 1:
            raise RuntimeError("broken")

    model.net.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        attack(model, images[:2], labels[:2], f"{name}-1", eps=eps(name))
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters()) and not images.requires_grad
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(before, images)


@pytest.mark.parametrize("name", ["square-1", "cw_l2-1"])
def test_a_stage_of_the_library_leaves_batch_statistics_alone(name: str) -> None:
    model, (images, labels) = load_classifier("resnet"), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack(model, images, labels, name, eps=2 / 255)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_more_effort_makes_no_attack_weaker() -> None:
    images, labels = (part[:4] for part in batch())
    assert not images.is_contiguous()  # strides that FAB cannot view
    names = ("fgsm", "mim", "pgd-20", "autoattack-2")
    found = [accuracy(attack(vit(), images, labels, name, eps=1 / 255)) for name in names]
    assert accuracy(images) >= found[0] >= max(found[1:3]) >= min(found[1:3]) >= found[3] and found[2] > 0


def test_an_attack_runs_in_batches_and_with_its_steps_in_the_name() -> None:
    whole, parts, other = (
        attack(vit(), *batch(), name, eps=2 / 255, batch_size=size)
        for name, size in (("fgsm-3", 250), ("fgsm-3", 5), ("fgsm-2", 250))
    )
    assert ((whole - parts).abs() < 1e-6).float().mean() > 0.999 and not torch.equal(whole, other)


def test_tables_call_only_the_standard_budget_autoattack() -> None:
    for name in ("autoattack", "autoattack-100"):
        assert measure_of(name) == "autoattack"
    assert measure_of("autoattack-10") == "autoattack-10" and measure_of("pgd-100") == "pgd"
    with pytest.raises(InputError, match="Did you mean 'autoattack'"):
        measure_of("autoatack-10")


def test_one_step_is_the_librarys() -> None:
    (images, labels), result = batch(), attack(vit(), *batch(), "fgsm", eps=2 / 255)
    right = logits(images).argmax(1) == labels
    theirs = torchattacks.FGSM(vit(), eps=2 / 255)(images, labels)
    assert ((result - theirs)[right].abs() < 1e-6).float().mean() > 0.999  # a sign at a gradient near 0 may differ


def test_without_the_library_its_attacks_are_refused_in_one_sentence_and_ours_run(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # what an import meets where it is not installed
    for name in ("autoattack", "square", "cw_l2"):
        with pytest.raises(InputError, match=r'pip install "nullpaper\[attacks\]"'):
            attack(vit(), *batch(), name, eps=1 / 255)
    for name in ("fgsm", "pgd-1", "cw-1", "apgd-1", "patch-1"):
        assert attack(vit(), *batch(), name, eps=1 / 255).shape == batch()[0].shape


def test_other_classifiers_are_attacked_too() -> None:
    model, (images, labels) = load_classifier("resnet"), batch()
    found = attack(model, images, labels, "pgd-3", eps=2 / 255)
    before, after = ((logits(points, model).argmax(1) == labels).float().mean() for points in (images, found))
    assert after < before and (found - images).abs().max() <= 2 / 255 + 1e-6
    assert torch.equal(attack(model, images, labels.int(), "pgd-3", eps=2 / 255), found)
    with pytest.raises(InputError, match="'patch' chooses a patch by attention, so it needs a ViT, not Classifier"):
        attack(model, images, labels, "patch", eps=1)
    with pytest.raises(InputError, match="images span"):
        attack(model, images * 2 - 1, labels, "pgd", eps=1 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pdg"}, "attack 'pdg' is unknown. Did you mean 'pgd'?"),
        ({"name": "autoatack-10"}, "Did you mean 'autoattack'?"),
        ({"name": "pgd-0"}, "steps=0 must be a whole number of at least 1"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0"),
        ({"name": "cw_l2", "eps": 255.0}, "eps=255.0 is above 83.14"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"eps": 8.0}, "divide by 255"),
        ({"eps": -0.1}, "eps=-0.1 must be a number in .0, inf., in pixel units"),
        ({"eps": float("inf")}, "eps=inf must be a number in .0, inf."),
        (
            {"labels": torch.zeros(7).long()},
            r"shape \(7,\) and type torch.int64; pass one class index for each of the 8",
        ),
        ({"labels": torch.zeros(8)}, "torch.float32; pass one class index"),
        ({"labels": torch.full((8,), 10)}, "labels span 10 to 10, but the classes of the model are 0 to 9"),
        ({"labels": torch.full((8,), -1)}, "labels span -1 to -1"),
        ({"images": torch.rand(8, 3, 32, 32)}, "resize"),
        ({"images": torch.full((8, 3, 48, 48), 2.0)}, r"images span \[2, 2\], not \[0, 1\]"),
        ({"images": torch.zeros(0, 3, 48, 48), "labels": torch.zeros(0).long()}, "at least one"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    images, labels = batch()
    given = {"images": images, "labels": labels, "name": "pgd", "eps": 1 / 255, **options}
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        attack(vit(), **given)


def test_a_targeted_attack_needs_four_classes() -> None:
    small = load_vit(SHIPPED, pretrained=False, num_classes=3)
    with pytest.raises(InputError, match="'autoattack' needs 4 classes"):
        attack(small, batch()[0], batch()[1].clamp(0, 2), "autoattack", eps=1 / 255)
