"""Every attack by name: the ball, the box, no trace left, never weaker for more effort; and the checks of soundness."""

from __future__ import annotations

import sys
from functools import cache

import pytest
import torch
import torchattacks
from attacked import batch, logits, vit
from torch import Tensor, nn
from torch.nn.functional import dropout

from nullpaper.errors import InputError
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.vit import SHIPPED, evaluating, load_vit, norms, patchify
from nullpaper.robustness.attacks import ATTACKS, attack
from nullpaper.robustness.gradient_masking import diagnose
from nullpaper.robustness.patch_attack import chosen_patch, patch_attack
from nullpaper.robustness.pgd import margin

EPS = {"cw_l2": 0.3, "patch": 0.5, "autoattack": 8 / 255, "square": 16 / 255}  # else 2/255
STEPS = {"fgsm": 1, "square": 10, "apgd": 2, "autoattack": 2}  # else 4


def accuracy(images: Tensor) -> float:
    return (logits(images).argmax(1) == batch()[1][: len(images)]).float().mean().item()


def eps(name: str) -> float:
    return EPS.get(name, 2 / 255)


@cache
def attacked(name: str) -> Tensor:
    return attack(vit(), *batch(), name, eps=eps(name), steps=STEPS.get(name, 4))


class Wrapped(nn.Module):
    """The shipped ViT behind something that happens to its input or its answers."""

    image_size, num_classes = (48, 48), 10

    def __init__(self, before=lambda images: images, after=lambda answers: answers) -> None:
        super().__init__()
        self.vit, self.before, self.after = vit(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.vit(self.before(images)))


def coarse(images: Tensor) -> Tensor:
    """16 levels, hence no gradient."""
    return (images * 16).round() / 16


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


@pytest.mark.parametrize("name", ATTACKS)
def test_a_seed_fixes_the_result_and_another_changes_it(name: str) -> None:
    images, labels = (part[:3] for part in batch())

    def result(seed: int) -> Tensor:
        return attack(vit(), images, labels, name, eps=eps(name), steps=STEPS.get(name, 2), seed=seed)

    first = result(0)
    assert torch.equal(result(0), first)
    assert torch.equal(result(1), first) == (not ATTACKS[name].draws)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_radius_of_nothing_gives_the_same_images(name: str) -> None:
    images, labels = batch()
    found = attack(vit(), images, labels, name, eps=0)
    assert torch.equal(found, images) and accuracy(found) == accuracy(images)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_leaves_a_trace(name: str) -> None:
    model = load_vit(SHIPPED).train()
    model.net.blocks[1].eval()
    model.net.head.weight.requires_grad_(False)
    images, labels = batch()
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state, before = torch.get_rng_state(), images.clone()
    attack(model, images[:2], labels[:2], name, eps=eps(name), steps=1)
    calls = iter(range(100))

    def broken(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if next(calls) == 1:
            raise RuntimeError("broken")

    model.net.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        attack(model, images[:2], labels[:2], name, eps=eps(name), steps=1)
    assert modes == [m.training for m in model.modules()] and flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters()) and not images.requires_grad
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(before, images)


@pytest.mark.parametrize(("name", "radius"), [("pgd", 1 / 255), ("cw", 1 / 255), ("square", 2 / 255), ("patch", 0.1)])
def test_restarts_make_no_image_safer(name: str, radius: float) -> None:
    images, labels = batch()
    found = [attack(vit(), images, labels, name, eps=radius, steps=3, restarts=count) for count in (1, 3)]
    one, three = (margin(logits(points), labels) for points in found)
    held = one < 0
    assert (three[held] >= one[held] - 1e-5).all() and (three[held] > one[held] + 1e-4).any()
    assert ((one <= 0) | (three > 0)).all()


def test_more_effort_makes_no_attack_weaker() -> None:
    images, labels = batch()
    part, radius = slice(0, 4), 1 / 255
    single, long = (attack(vit(), images[part], labels[part], name, eps=radius) for name in ("fgsm", "pgd-100"))
    assert accuracy(long) <= accuracy(single) <= accuracy(images[part])
    pair = images[part], labels[part]
    assert not pair[0].is_contiguous() and accuracy(long) > 0  # so that FAB has work, on strides that it cannot view
    attempts = [attack(vit(), *pair, name, eps=radius, steps=2) for name in ("pgd", "autoattack")]
    assert accuracy(attempts[1]) <= accuracy(attempts[0])


def test_no_work_is_spent_on_what_is_fooled() -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    for restarts in (1, 5):
        attack(Wrapped(counting), *batch(), "pgd-5", eps=16 / 255, restarts=restarts)
    half = len(seen) // 2
    assert seen[:half] == seen[half:] and seen[0] == 8 and max(seen[1:half]) == 7


def test_an_attack_runs_in_batches_and_with_its_steps_in_the_name() -> None:
    images, labels = batch()
    whole = attack(vit(), images, labels, "mim-3", eps=2 / 255)
    parts = attack(vit(), images, labels, "mim", eps=2 / 255, steps=3, batch_size=5)
    assert ((whole - parts).abs() < 1e-6).float().mean() > 0.999
    assert not torch.equal(whole, attack(vit(), images, labels, "mim-2", eps=2 / 255))


def test_ours_and_the_librarys_pgd_agree() -> None:
    theirs = torchattacks.PGD(vit(), eps=1 / 255, alpha=2.5 / 255 / 20, steps=20)(*batch())
    assert abs(accuracy(attack(vit(), *batch(), "pgd", eps=1 / 255)) - accuracy(theirs)) <= 1 / 8


def test_one_step_is_the_librarys() -> None:
    (images, labels), result = batch(), attack(vit(), *batch(), "fgsm", eps=2 / 255)
    right = logits(images).argmax(1) == labels
    theirs = torchattacks.FGSM(vit(), eps=2 / 255)(images, labels)
    assert ((result - theirs)[right].abs() < 1e-6).float().mean() > 0.999  # a sign at a gradient near 0 may differ


def test_without_the_library_its_attacks_are_refused_in_one_sentence_and_ours_run(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # what an import meets where it is not installed
    for name in ("apgd", "autoattack", "square", "cw_l2", "mim"):
        with pytest.raises(InputError, match=r'pip install "nullpaper\[attacks\]"'):
            attack(vit(), *batch(), name, eps=1 / 255)
    for name in ("fgsm", "pgd-1", "cw-1", "patch-1"):
        assert attack(vit(), *batch(), name, eps=1 / 255).shape == batch()[0].shape


def test_steps_along_no_gradient_leave_no_nan() -> None:
    images, labels = batch()
    for name in ("mim", "cw_l2", "fgsm"):
        found = attack(Wrapped(coarse), images[:4], labels[:4], name, eps=eps(name), steps=STEPS.get(name, 2))
        assert found.isfinite().all()


def test_other_classifiers_are_attacked_too() -> None:
    model, (images, labels) = load_classifier("resnet"), batch()
    found = attack(model, images, labels, "pgd", eps=2 / 255, steps=3)
    before, after = ((logits(points, model).argmax(1) == labels).float().mean() for points in (images, found))
    assert after < before and (found - images).abs().max() <= 2 / 255 + 1e-6
    assert torch.equal(attack(model, images.double().float(), labels.int(), "pgd", eps=2 / 255, steps=3), found)
    with pytest.raises(InputError, match="'patch' chooses a patch by attention, so it needs a ViT, not Classifier"):
        attack(model, images, labels, "patch", eps=1)
    with pytest.raises(InputError, match="images span"):
        attack(model, images * 2 - 1, labels, "pgd", eps=1 / 255)


def changed_patches(found: Tensor, images: Tensor) -> Tensor:
    return patchify((found - images).abs(), vit().patch_size).amax(-1) > 0


@pytest.mark.parametrize("choice", ["attention", "saliency"])
def test_the_patch_attack_changes_one_patch_and_that_one(choice: str) -> None:
    images, labels = batch()
    found = patch_attack(vit(), images, labels, eps=0.5, steps=4, choice=choice)
    changed = changed_patches(found, images)
    right = logits(images).argmax(1) == labels
    assert changed.sum(1).max() == 1 and (changed.sum(1)[right] == 1).all()
    index = chosen_patch(vit(), images, labels, choice)
    assert torch.equal(changed[right].float().argmax(1), index[right])
    assert (found - images).abs().max() <= 0.5 + 1e-6


def test_a_patch_without_bounds_fools_more_than_one_with() -> None:
    small, free = (attack(vit(), *batch(), "patch-10", eps=radius) for radius in (0.05, 1.0))
    assert accuracy(free) < accuracy(small) and changed_patches(free, batch()[0]).sum(1).max() == 1


def test_attention_in_the_loss_draws_attention_to_the_patch() -> None:
    images, labels = batch()
    with_it, without = (patch_attack(vit(), images, labels, steps=3, attention_weight=w) for w in (10.0, 0.0))
    assert not torch.equal(with_it, without) and changed_patches(with_it, images).sum(1).max() == 1


def test_modes_come_back_one_by_one() -> None:
    model = load_vit(SHIPPED).train()
    model.net.blocks[3].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert modes == [m.training for m in model.modules()] and True in modes and False in modes


def test_a_sound_model_raises_no_doubts() -> None:
    state = torch.get_rng_state()
    assert diagnose(vit(), *batch(), eps=1 / 255, queries=40) == []
    assert torch.equal(state, torch.get_rng_state()) and not any(m.training for m in vit().modules())


@pytest.mark.parametrize(
    ("model", "doubt"),
    [
        (dict(before=coarse), "gradient is zero at 100% "),
        (dict(before=lambda images: dropout(images, 0.05, training=True)), "the model is random"),
        (dict(after=lambda answers: answers.softmax(1)), "look like probabilities"),
        (dict(before=lambda images: 2 * images.detach() - images), "Square, which sees no gradient"),
        (dict(after=lambda answers: -answers), "none of these images right"),
    ],
)
def test_an_unsound_model_raises_doubts(model: dict, doubt: str) -> None:
    found = diagnose(Wrapped(**model), *(part[:4] for part in batch()), eps=8 / 255, queries=40, steps=5)
    assert any(doubt in sentence for sentence in found), found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pdg"}, "attack 'pdg' is unknown. Did you mean 'pgd'?"),
        ({"name": "autoatack-10"}, "Did you mean 'autoattack'?"),
        ({"name": "pgd-20", "steps": 10}, "contradict each other"),
        ({"name": "pgd-0"}, "steps=0 must be a whole number of at least 1"),
        ({"name": "fgsm-3"}, "'fgsm' takes one step, not 3"),
        ({"steps": 0}, "steps=0 must be"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"name": "cw_l2", "eps": 255.0}, "eps=255.0 is above 83.14"),
        ({"restarts": 0}, "restarts=0 must be"),
        ({"batch_size": 0}, "batch_size=0 must be"),
        ({"eps": 8.0}, "divide by 255"),
        ({"eps": -0.1}, "eps=-0.1 must be a finite number of at least 0"),
        ({"eps": float("inf")}, "eps=inf must be a finite number"),
        ({"labels": torch.zeros(7).long()}, r"labels have shape \(7,\); pass one for each of the 8 images"),
        ({"labels": torch.zeros(8, 10).long()}, r"labels have shape \(8, 10\)"),
        ({"labels": torch.zeros(8)}, "labels are torch.float32; pass class indices"),
        ({"labels": torch.full((8,), 10)}, "labels span 10 to 10, but the model's classes are 0 to 9"),
        ({"labels": torch.full((8,), -1)}, "labels span -1 to -1"),
        ({"images": torch.rand(8, 3, 32, 32)}, "resize"),
        ({"images": torch.full((8, 3, 48, 48), 2.0)}, r"images span \[2, 2\], not \[0, 1\]"),
        ({"images": torch.zeros(0, 3, 48, 48), "labels": torch.zeros(0).long()}, "no images to attack"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    images, labels = batch()
    given = {"images": images, "labels": labels, "name": "pgd", "eps": 1 / 255, **options}
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        attack(vit(), **given)


def test_other_bad_requests_are_refused() -> None:
    images, labels = batch()
    small = load_vit(SHIPPED, pretrained=False, num_classes=3)
    for name in ("autoattack", "apgd"):
        with pytest.raises(InputError, match=f"'{name}' needs 4 classes"):
            attack(small, images, labels.clamp(0, 2), name, eps=1 / 255)
    with pytest.raises(InputError, match="choice 'atention' is unknown. Did you mean 'attention'"):
        patch_attack(vit(), images, labels, choice="atention")
    with pytest.raises(InputError, match="eps=0 leaves nothing to diagnose"):
        diagnose(vit(), images, labels, eps=0)
