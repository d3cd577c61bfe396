"""The patch attacks change one patch of an image, the one that is most attended; Patch-Fool has it attended more."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from attacked import batch, logits, vit
from torch import Tensor

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.models.attention import attention_weights
from nullpaper.models.gradients import frozen
from nullpaper.models.vit import patchify
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.patch_attack import ATTENTION, chosen_patch, patch_attack, without_conflict


@pytest.mark.parametrize("name", ["patch-10", "patch_fool-10"])
def test_the_attack_changes_one_patch_and_that_one_and_more_without_bounds(name: str) -> None:
    images, labels = batch()
    index, right, accuracies = chosen_patch(vit(), images), logits(images).argmax(1) == labels, []
    for eps in (0.05, 1.0):
        found = attack(vit(), images, labels, name, eps=eps)
        changed = patchify((found - images).abs(), vit().patch_size).amax(-1) > 0
        assert torch.equal(changed.sum(1), right.long())
        assert torch.equal(changed[right].float().argmax(1), index[right])
        assert (found - images).abs().max() <= eps + 1e-6
        accuracies.append((logits(found).argmax(1) == labels).float().mean())
    assert accuracies[1] < accuracies[0]


@cache
def pictures() -> tuple[Tensor, Tensor]:
    """Of 32 images those that the model gets right, and their labels."""
    split = load_data("cifar10").test.take(range(32))
    images, labels = to_pixels(split.images, 48), torch.from_numpy(split.labels).long()
    right = logits(images).argmax(1) == labels
    return images[right], labels[right]


def test_the_attention_term_fools_as_many_images_as_without_it() -> None:
    images, labels = pictures()
    standing = [
        (logits(attack(vit(), images, labels, name, eps=1.0)).argmax(1) == labels).sum().item()
        for name in ("patch_fool-10", "patch-10")
    ]
    assert 0 < standing[0] <= standing[1] + 1  # another machine's rounding may decide one image
    assert standing[1] < 0.6 * len(images)


def test_the_term_raises_the_attention_to_the_patch() -> None:
    images, labels = (part[:8] for part in pictures())
    index, run, paid = chosen_patch(vit(), images), partial(patch_attack, vit(), images, labels, 0.1, 8, 0), []
    for weight in (0.0, ATTENTION, 1.0):
        with frozen(vit()), torch.enable_grad():
            found = run(attention=weight)
        maps = attention_weights(vit(), found)[1:3]  # of six blocks
        patch = torch.stack([one.mean(1)[..., -36:][torch.arange(8), :, index] for one in maps])
        paid.append(patch.detach().log().mean().item())
    assert paid[2] > paid[0] + 0.01 and paid[1] > paid[0] - 0.05


def test_what_conflicts_is_projected_out_and_nothing_else() -> None:
    draws = torch.Generator().manual_seed(0)
    slope, first = (torch.randn(20, 3, 4, 4, generator=draws) for _ in range(2))
    kept = without_conflict(slope, first)
    before, after = ((part * first).flatten(1).sum(1) for part in (slope, kept))
    against = before < 0
    assert 0 < against.sum() < 20 and after[against].abs().max() < 1e-4
    assert torch.equal(kept[~against], slope[~against])
    assert torch.equal(without_conflict(slope, 0 * first), slope)
