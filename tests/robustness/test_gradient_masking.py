"""A sound model raises no doubts, and each kind of masking raises its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attacked import batch, vit
from torch import Tensor, nn
from torch.nn.functional import dropout

from nullpaper.errors import InputError
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.gradient_masking import diagnose


class Wrapped(nn.Module):
    """The shipped ViT behind something that happens to its input or its answers."""

    image_size, num_classes = (48, 48), 10

    def __init__(self, before: Callable = lambda images: images, after: Callable = lambda answers: answers) -> None:
        super().__init__()
        self.vit, self.before, self.after = vit(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.vit(self.before(images)))


def coarse(images: Tensor) -> Tensor:
    """16 levels, hence no gradient."""
    return (images * 16).round() / 16


def test_a_sound_model_raises_no_doubts_and_keeps_random_state_and_mode() -> None:
    model, images_and_labels = vit(), batch()
    state = torch.get_rng_state()
    assert diagnose(model, *images_and_labels, eps=1 / 255, steps=10, queries=40) == []
    assert torch.equal(state, torch.get_rng_state()) and not any(part.training for part in model.modules())


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


def test_steps_along_no_gradient_leave_no_nan() -> None:
    images, labels = (part[:4] for part in batch())
    for name in ("cw_l2-2", "fgsm"):
        assert attack(Wrapped(coarse), images, labels, name, eps=0.03).isfinite().all()


def test_a_radius_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="eps=0 leaves nothing to diagnose"):
        diagnose(vit(), *batch(), eps=0)
