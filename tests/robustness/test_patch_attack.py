"""The patch attack changes one patch of an image, the one that is most attended."""

from __future__ import annotations

import torch
from attacked import batch, logits, vit

from nullpaper.models.vit import patchify
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.patch_attack import chosen_patch


def test_the_attack_changes_one_patch_and_that_one_and_more_without_bounds() -> None:
    images, labels = batch()
    index, right, accuracies = chosen_patch(vit(), images), logits(images).argmax(1) == labels, []
    for eps in (0.05, 1.0):
        found = attack(vit(), images, labels, "patch-10", eps=eps)
        changed = patchify((found - images).abs(), vit().patch_size).amax(-1) > 0
        assert torch.equal(changed.sum(1), right.long())
        assert torch.equal(changed[right].float().argmax(1), index[right])
        assert (found - images).abs().max() <= eps + 1e-6
        accuracies.append((logits(found).argmax(1) == labels).float().mean())
    assert accuracies[1] < accuracies[0]
