"""What synthesis refuses: options out of range, bad images, training mode, stale pools, a loss that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from noises import batches, pools, tiny_cnn, vit

from nullpaper.errors import InputError
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.synthesis.influence import noise_influence
from nullpaper.synthesis.noise import NonFiniteLoss, encoder_noise, input_noise, rescaled


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one"),
        ({"eps": 0.1, "lam": 0.1}, "exactly one"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": 2.0}, "eps=2.0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"lam": -1.0}, "lam=-1.0"),
        ({"norm": 0.0}, "norm=0.0"),
        ({"norm": 1.0, "eps": 0.1}, "exactly one"),
        ({"lam": math.inf}, "lam=inf"),
        ({"lam": 0.1, "official": True}, "published procedure"),
        ({"eps": 0.1, "lim": 0.0}, "lim=0.0"),
        ({"eps": 0.1, "steps": 0}, "steps=0"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        encoder_noise(vit(), pools()[0], **options)
    if "official" not in options:
        with pytest.raises(InputError, match=words):
            input_noise(vit(), batches(8), **options)


def test_bad_images_are_refused():
    for bad, words in (([], "no images"), ([torch.rand(3, 48, 48)], "shape"), ([torch.rand(1, 3, 48, 48)], "too few")):
        with pytest.raises(InputError, match=words):
            encoder_noise(vit(), bad, eps=0.1)
    for bad in (2 * torch.ones(8, 3, 48, 48), torch.full((8, 3, 48, 48), math.nan)):
        with pytest.raises(InputError, match="not normalised|NaN"):
            input_noise(tiny_cnn(), [bad], eps=0.1)
    with pytest.raises(InputError, match="no images"):
        encoder_noise(vit(), pools()[0], held_out=[], eps=0.1)


def test_a_model_in_training_mode_is_refused_and_stays_in_it():
    model = load_vit(SHIPPED)
    model.net.blocks[0].train()
    for call in (lambda: encoder_noise(model, batches(8), eps=0.1), lambda: input_noise(model, batches(8), eps=0.1)):
        with pytest.raises(InputError, match="training mode"):
            call()
    assert model.net.blocks[0].training and not model.training


def test_noise_of_the_wrong_shape_is_refused():
    for wrong in (torch.zeros(1, 35, 96), torch.zeros(2, 36, 96), torch.zeros(36, 96), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(InputError, match="shape"):
            noise_influence(vit(), wrong, batches(8))
    with pytest.raises(InputError, match="NaN"):
        noise_influence(vit(), torch.full((1, 36, 96), math.nan), pools()[0])
    with pytest.raises(InputError, match="length 0"):
        rescaled(vit(), torch.zeros(1, 36, 96), pools()[0], eps=0.1)


def test_a_stale_pool_or_the_wrong_model_is_refused():
    with pytest.raises(InputError, match="other weights"):
        encoder_noise(load_vit(SHIPPED, pretrained=False), pools()[0], eps=0.1)
    with pytest.raises(InputError, match="level"):
        input_noise(vit(), pools()[0], eps=0.1)
    with pytest.raises(InputError, match="ViT"):
        encoder_noise(tiny_cnn(), batches(8), eps=0.1)


@pytest.mark.parametrize("official", [False, True])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_noise(official):
    model, pool, calls = load_vit(SHIPPED), pools()[0], []

    def breaks_later(module, inputs, logits):
        calls.append(len(logits))
        return logits if len(calls) <= 3 else logits * math.nan  # the pool's check, then two steps

    model.net.head.register_forward_hook(breaks_later)
    with pytest.raises(NonFiniteLoss, match="step 2") as caught:
        encoder_noise(model, pool, eps=1e-6, steps=5, lim=0.5, official=official)
    error = caught.value
    assert error.step == 2 and len(error.history) == 2
    assert error.value.isfinite().all() and error.value.norm().item() == pytest.approx(error.history[-1]["norm"])
