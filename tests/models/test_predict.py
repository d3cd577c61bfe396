"""Which classes a model is asked for, by the data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nullpaper.data.datasets import Data, Split
from nullpaper.errors import InputError
from nullpaper.models.predict import answering
from nullpaper.models.vit import SHIPPED, load_vit

NAMES = ("tench", "springer", "church")


def three_classes(places: tuple[int, ...] | None) -> Data:
    split = Split(np.zeros((3, 8, 8, 3), np.uint8), [0, 1, 2])
    return Data("three", split, split, split, NAMES, imagenet=places)


def test_a_head_of_imagenet_answers_with_the_classes_of_the_set_and_another_must_fit() -> None:
    vit = load_vit("vit_tiny_patch16_224", pretrained=False)
    part, image = answering(vit, three_classes((0, 217, 497))), torch.rand(1, 3, 224, 224)
    assert part.num_classes == 3
    with torch.no_grad():
        assert torch.equal(part(image), vit(image)[:, [0, 217, 497]])
    fitting = load_vit(SHIPPED, num_classes=3)
    assert answering(fitting, three_classes(None)) is fitting
    with pytest.raises(InputError, match="answers with 1,000 classes, but three has 3 others"):
        answering(vit, three_classes(None))
    with pytest.raises(InputError, match="answers with 10 classes"):
        answering(load_vit(SHIPPED), three_classes((0, 217, 497)))
