"""A finetuning of seconds, shared by tests: the shipped model, 200 images, two noises."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from nullpaper.data import datasets as data
from nullpaper.finetuning.finetune import FinetuneRecipe
from nullpaper.models.vit import SHIPPED, ViT, load_vit

QUICK = FinetuneRecipe(
    batch_size=8, steps_per_noise=2, dev_images=16, noise_images=24, noise_steps=2, noise_eps=0.1, attack_steps=2
)


@cache
def start() -> ViT:
    return load_vit(SHIPPED)


@cache
def few() -> data.Data:
    cifar = data.load_data("cifar10")
    return replace(cifar, train=cifar.train.subset(200), dev=cifar.dev.subset(100))
