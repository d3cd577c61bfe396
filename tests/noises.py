"""Parts of the synthesis tests: the shipped ViT, a tiny CNN, pools of real CIFAR-10 images, learned noises."""

from __future__ import annotations

from functools import cache

import timm
import torch

from nullpaper.data.datasets import load_data
from nullpaper.models.vit import SHIPPED, Classifier, load_vit
from nullpaper.synthesis.influence import Pool, read_pool
from nullpaper.synthesis.noise import encoder_noise

EPS, STEPS = 0.2, 12  # generous and short: small pools have wide intervals


@cache
def vit():
    return load_vit(SHIPPED)


def batches(count: int = 16, seed: int = 0):
    return load_data("cifar10").test.subset(count, seed).batches(8, image_size=48)


@cache
def pools() -> tuple[Pool, Pool]:
    data = load_data("cifar10")
    train, test = data.train.subset(48), data.test.subset(64)
    return tuple(read_pool(vit(), split.batches(12, image_size=48)) for split in (train, test))


@cache
def learned(**options):
    pool, held_out = pools()
    form = {} if {"lam", "norm"} & options.keys() else {"eps": EPS}
    return encoder_noise(vit(), pool, held_out=held_out, **{"steps": STEPS, **form, **options})


@cache
def tiny_cnn() -> Classifier:
    torch.manual_seed(0)
    return Classifier(timm.create_model("test_resnet", num_classes=10), (0.0,) * 3, (1.0,) * 3).eval()
