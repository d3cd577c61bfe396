"""Whatever takes a model says in a sentence which one it needs, over all public functions that take one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from noises import tiny_cnn
from quick import QUICK, few, start
from torch import nn

from nullpaper.adapters.files import load_adapter, save_adapter
from nullpaper.adapters.inject import base_fingerprint, inject, merge
from nullpaper.errors import InputError
from nullpaper.finetuning import scratch
from nullpaper.finetuning.costs import memory, step_times, storage
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import make_noise
from nullpaper.fooling.explanations import attribute, patch_values
from nullpaper.fooling.faithfulness import deletion_insertion
from nullpaper.fooling.lookalike import adversarial, farthest_along, library_attack, lookalike
from nullpaper.fooling.manipulation import manipulate
from nullpaper.models.attention import attention_weights
from nullpaper.models.predict import accuracy, correct, predictions
from nullpaper.models.vit import CIFAR10_MEAN, CIFAR10_STD, SHIPPED, Classifier, fingerprint, load_vit, save_vit
from nullpaper.nullspace.patch import channel_nullspace, patch_nullspace
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.evaluation import evaluate
from nullpaper.robustness.gradient_masking import diagnose
from nullpaper.robustness.perturbation import transported_logits
from nullpaper.robustness.pgd import pgd
from nullpaper.synthesis.influence import influence_of, noise_influence, read_pool
from nullpaper.synthesis.linearised import linearise
from nullpaper.synthesis.noise import encoder_noise, input_noise, rescaled, verified

IMAGES, LABELS = torch.rand(16, 3, 48, 48, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
TOKENS, PIXELS, NOWHERE = torch.ones(1, 36, 96), torch.ones(1, 3, 48, 48), Path("nowhere")
EPS = {"eps": 0.1}

OPERATIONS: dict[str, Callable[[nn.Module], object]] = {  # what needs a ViT of ours, and no classes
    "patch_nullspace": patch_nullspace,
    "channel_nullspace": channel_nullspace,
    "merge": merge,
    "save_adapter": lambda model: save_adapter(model, NOWHERE),
    "load_adapter": lambda model: load_adapter(model, NOWHERE),
    "base_fingerprint": base_fingerprint,
    "fingerprint": fingerprint,
    "save_vit": lambda model: save_vit(model, NOWHERE),
    "storage": storage,
    "memory": lambda model: memory(model, "standard", QUICK, IMAGES, LABELS),
    "step_times": lambda model: step_times({"": model}, "standard", QUICK, IMAGES, LABELS),
    "attention_weights": lambda model: attention_weights(model, IMAGES),
    "scratch.train": lambda model: scratch.train(model, few(), scratch.Recipe(), folder=NOWHERE),
    "patch_values": lambda model: patch_values(IMAGES[:, 0], model),
}
CLASSIFYING: dict[str, Callable[[nn.Module], object]] = {  # what needs classes
    "inject": lambda model: inject(model, "lora"),
    "linearise": lambda model: linearise(model, [IMAGES]),
    "read_pool": lambda model: read_pool(model, [IMAGES]),
    "encoder_noise": lambda model: encoder_noise(model, [IMAGES], **EPS),
    "rescaled": lambda model: rescaled(model, TOKENS, [IMAGES], **EPS),
    "verified": lambda model: verified(model, TOKENS, [IMAGES], **EPS),
    "make_noise": lambda model: make_noise(model, few().dev, "zero", QUICK, 0),
    "finetune": lambda model: finetune(model, few(), method="standard", recipe=QUICK),
    "attribute": lambda model: attribute(model, IMAGES, "saliency"),
    "deletion_insertion": lambda model: deletion_insertion(model, IMAGES, torch.rand(16, 36), target=LABELS),
    "manipulate": lambda model: manipulate(model, IMAGES, "saliency"),
    "lookalike": lambda model: lookalike(model, IMAGES, IMAGES, **EPS),
    "attack": lambda model: attack(model, IMAGES, LABELS, "pgd-1", **EPS),
    "attack at 0": lambda model: attack(model, IMAGES, LABELS, "pgd", eps=0),
    "evaluate": lambda model: evaluate(model, few().dev.subset(8)),
    "evaluate with attacks": lambda model: evaluate(model, few().dev, attacks=["pgd"]),
    "diagnose": lambda model: diagnose(model, IMAGES, LABELS, **EPS),
    "accuracy": lambda model: accuracy(model, few().dev),
    "correct": lambda model: correct(model, few().dev),
    "predictions": lambda model: predictions(model, few().dev),
    "farthest_along": lambda model: farthest_along(model, IMAGES, IMAGES, IMAGES, **EPS),
    "adversarial": lambda model: adversarial(model, IMAGES, LABELS),
    "library_attack": lambda model: library_attack(model, IMAGES, LABELS, "PGD"),
}
PIXELWISE: dict[str, Callable[[nn.Module], object]] = {  # what takes any classifier of images in [0, 1]
    "input_noise": lambda model: input_noise(model, [IMAGES], **EPS, steps=1),
    "noise_influence": lambda model: noise_influence(model, PIXELS, [IMAGES]),
    "pgd": lambda model: pgd(model, IMAGES, LABELS, eps=0.1, steps=1),
    "transported_logits": lambda model: transported_logits(model, IMAGES, "float32"),
}


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["bare", "DataParallel of a bare one"])
@pytest.mark.parametrize("name", [*OPERATIONS, *CLASSIFYING, *PIXELWISE])
def test_a_model_without_normalisation_is_refused_with_the_remedy(name: str, wrap: Callable) -> None:
    operation = (OPERATIONS | CLASSIFYING | PIXELWISE)[name]
    with pytest.raises(InputError, match=r"is a bare VisionTransformer .*: pass load_vit\(model, mean=") as refusal:
        operation(wrap(start().net))
    assert "\n" not in str(refusal.value) and not NOWHERE.exists()


@pytest.mark.parametrize("name", [*OPERATIONS, *CLASSIFYING])
def test_a_wrapped_model_of_ours_and_a_name_are_refused_with_the_remedy(name: str) -> None:
    operation = (OPERATIONS | CLASSIFYING)[name]
    with pytest.raises(InputError, match="is DataParallel around one: pass the ViT inside"):
        operation(nn.DataParallel(start()).eval())
    with pytest.raises(InputError, match=rf"is '{SHIPPED}': pass load_vit\(name\)"):
        operation(SHIPPED)


@pytest.mark.parametrize("name", PIXELWISE)
def test_a_wrapped_model_of_ours_takes_pixels(name: str) -> None:
    PIXELWISE[name](nn.DataParallel(start()).eval())


class Blurred(nn.Module):
    """A classifier of someone's own, with a bare network inside."""

    image_size, num_classes = (48, 48), 10

    def __init__(self) -> None:
        super().__init__()
        self.module = start().net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(2 * nn.functional.avg_pool2d(images, 3, 1, 1) - 1)


@pytest.mark.parametrize("name", ["attack", "evaluate", *PIXELWISE])
def test_a_classifier_of_other_making_is_taken(name: str) -> None:
    (CLASSIFYING | PIXELWISE)[name](Blurred().eval())


def test_the_remedies_work() -> None:
    loaded = load_vit(nn.DataParallel(start().net), mean=start().mean.flatten(), std=start().std.flatten())
    assert torch.equal(*(attack(model, IMAGES, LABELS, "pgd-1", eps=0.01) for model in (loaded, start())))
    wrapped = Classifier(start().net, CIFAR10_MEAN, CIFAR10_STD).eval()
    assert torch.equal(wrapped(IMAGES), start()(IMAGES))
    for net in (timm.create_model("test_resnet").eval(), torchvision.models.resnet18().eval()):
        with pytest.raises(InputError, match=r"ResNet: wrap it in models.vit.Classifier\(model, mean, std\) and"):
            attack(net, IMAGES, LABELS, "pgd-1", eps=0.01)
        with pytest.raises(InputError, match="a ViT is needed, but this is ResNet: pass one of load_vit"):
            patch_nullspace(net)


@pytest.mark.parametrize("name", [*CLASSIFYING, "input_noise"])
@pytest.mark.parametrize("classes", [0, 1])
def test_a_model_without_classes_is_refused_where_they_count(name: str, classes: int) -> None:
    model = load_vit(SHIPPED, num_classes=classes)
    if (name, classes) == ("inject", 1):
        return  # one logit can be trained
    with pytest.raises(InputError, match=rf"has {classes} classes|has {classes}: load|has no head"):
        (CLASSIFYING | PIXELWISE)[name](model)


def test_noise_is_measured_on_features_by_name() -> None:
    vit, whole = load_vit(SHIPPED, num_classes=0), start()
    for learn, level in ((encoder_noise, "encoder"), (input_noise, "input")):
        options = {"eps": 0.05, "steps": 3, "measure": "features"}
        noise = learn(vit, [IMAGES], **options)
        assert torch.equal(noise.value, learn(whole, [IMAGES], **options).value)  # the head takes no part
        pool = read_pool(vit, [IMAGES], level=level, measure="features")
        entered = (pool.inputs + noise.value,)
        moved = vit.features(*entered) if level == "encoder" else vit(*entered)
        clean = vit(IMAGES)
        expected = (moved - clean).square().sum(1) / clean.square().sum(1)
        torch.testing.assert_close(influence_of(vit, noise.value, pool), expected.detach(), rtol=1e-4, atol=1e-6)
        table = noise_influence(vit, noise, [IMAGES])
        assert [*table] == ["mse_features", "features"]
        assert table["features"].value == pytest.approx(expected.mean().item(), rel=1e-4)
        again = rescaled(vit, noise, [IMAGES], eps=0.05, measure="features")
        assert again.influence.value > 0
        with pytest.raises(InputError, match="measure 'features', but .*'probabilities' are needed"):
            learn(whole, pool, eps=0.1)
    assert linearise(vit, [IMAGES], measure="features").eigenvalues[0] > 0
    with pytest.raises(InputError, match="measure 'feature' is unknown. Did you mean 'features'"):
        encoder_noise(vit, [IMAGES], eps=0.1, measure="feature")
    with pytest.raises(InputError, match="a ViT is needed"):
        input_noise(tiny_cnn(), [IMAGES], eps=0.1, measure="features")
    for eps in (0, -1, float("inf")):
        with pytest.raises(InputError, match="eps="):
            encoder_noise(vit, [IMAGES], eps=eps, measure="features")
