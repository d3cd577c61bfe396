"""What synthesis refuses: options out of range, bad images, training mode, stale pools, a loss that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from noises import batches, pools, tiny_cnn, vit

from nullpaper.errors import InputError
from nullpaper.models.vit import SHIPPED, load_vit
from nullpaper.synthesis.influence import noise_influence
from nullpaper.synthesis.noise import encoder_noise, input_noise, rescaled


def test_options_out_of_range_are_named():
    for options, words in [
        ({}, "exactly one"),
        ({"eps": 0.1, "lam": 0.1}, "exactly one"),
        ({"norm": 1.0, "eps": 0.1}, "exactly one"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": 2.0}, "eps=2.0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"lam": -1.0}, "lam=-1.0"),
        ({"lam": math.inf}, "lam=inf"),
        ({"norm": 0.0}, "norm=0.0"),
        ({"lam": 0.1, "official": True}, "published procedure"),
        ({"eps": 0.1, "lim": 0.0}, "lim=0.0"),
        ({"eps": 0.1, "steps": 0}, "steps=0"),
    ]:
        with pytest.raises(InputError, match=words):
            encoder_noise(vit(), pools()[0], **options)
    for options, words in (({}, "exactly one"), ({"eps": 0.1, "spread": True}, "tokens")):
        with pytest.raises(InputError, match=words):
            input_noise(vit(), [], **options)


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
    model = load_vit(SHIPPED, pretrained=False)
    model.net.blocks[0].train()
    for learn in (encoder_noise, input_noise):
        with pytest.raises(InputError, match="training mode"):
            learn(model, [], eps=0.1)
    assert model.net.blocks[0].training and not model.training


def test_noise_of_the_wrong_shape_is_refused():
    for wrong in (torch.zeros(1, 35, 96), torch.zeros(2, 36, 96)):
        with pytest.raises(InputError, match="shape"):
            noise_influence(vit(), wrong, pools()[0])
    for wrong in (torch.zeros(36, 96), torch.zeros(1, 3, 8, 8)):
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
        encoder_noise(tiny_cnn(), [], eps=0.1)


@pytest.mark.parametrize("official", [False, True])
def test_a_loss_that_is_not_finite_names_the_step(official):
    model, pool, calls = load_vit(SHIPPED), pools()[0], []

    def breaks_later(module, inputs, logits):
        calls.append(len(logits))
        return logits if len(calls) <= 3 else logits * math.nan  # the pool's check, then two steps

    model.net.head.register_forward_hook(breaks_later)
    with pytest.raises(FloatingPointError, match="step 2"):
        encoder_noise(model, pool, eps=1e-6, steps=5, lim=0.5, official=official, linear=False)
