"""Images and labels as users have them, given to every public function: the same answer, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from attacked import batch as eight
from attacked import vit
from torch import Tensor

from nullpaper import attack, encoder_noise, input_noise, noise_influence, patch_nullspace
from nullpaper.data.datasets import Data, Split, load_data
from nullpaper.errors import InputError
from nullpaper.finetuning.costs import memory
from nullpaper.finetuning.finetune import finetune
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.fooling.explanations import ATTRIBUTIONS, attribute
from nullpaper.fooling.faithfulness import deletion_insertion
from nullpaper.fooling.lookalike import (
    adversarial,
    equal_norm_controls,
    farthest_along,
    library_attack,
    lookalike,
    other_class,
    without_nullspace,
)
from nullpaper.fooling.manipulation import manipulate
from nullpaper.fooling.similarity import psnr, ssim
from nullpaper.fooling.watermark import decode_message, encode_message, watermark
from nullpaper.models.inputs import check_images, check_labels
from nullpaper.models.predict import accuracy, predictions
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.nullspace.patch import PatchNullspace
from nullpaper.robustness.attacks import ATTACKS
from nullpaper.robustness.evaluation import evaluate
from nullpaper.robustness.gradient_masking import diagnose
from nullpaper.robustness.perturbation import degraded, in_box, transported_logits
from nullpaper.robustness.pgd import pgd
from nullpaper.synthesis.influence import read_pool
from nullpaper.synthesis.linearised import linearise

EPS = 2 / 255
RECIPE = FinetuneRecipe(batch_size=4, noise_images=8, dev_images=2, attack_steps=1, noise_steps=2)


@cache
def space() -> PatchNullspace:
    return patch_nullspace(vit())


def batch() -> tuple[Tensor, Tensor]:
    return tuple(values[:4] for values in eight())


def bits(count: int) -> Tensor:
    return torch.arange(3 * count).view(count, 3) % 2 == 0


@dataclass(frozen=True)
class Case:
    """A public function of (model, images, labels), which it uses or not; ``noise`` says how to find that in a result.

    ``box`` says whether images must lie in [0, 1].
    """

    call: Callable[[ViT, Tensor, Any], Any]
    labelled: bool = False
    noise: Callable[[Any], Tensor] | None = None
    box: bool = True


CASES = {
    **{
        f"attack {name}": Case(lambda v, x, y, name=name: attack(v, x, y, f"{name}-1", eps=EPS), labelled=True)
        for name in ATTACKS
        if name not in ("apgd", "autoattack")  # slow, and of the same library as the rest
    },
    "attack at eps 0": Case(lambda v, x, y: attack(v, x, y, "pgd-1", eps=0), labelled=True),
    "pgd": Case(lambda v, x, y: pgd(v, x, y, eps=EPS, steps=1), labelled=True),
    "diagnose": Case(lambda v, x, y: diagnose(v, x, y, eps=EPS, steps=1, queries=1), labelled=True),
    "memory": Case(lambda v, x, y: memory(v, "standard", RECIPE, x, y), labelled=True),
    "read_pool": Case(lambda v, x, y: read_pool(v, [(x, y)])),
    "encoder_noise": Case(lambda v, x, y: encoder_noise(v, [x, x], eps=0.1, steps=1)),
    "input_noise": Case(lambda v, x, y: input_noise(v, [x, x], eps=0.1, steps=1)),
    "noise_influence": Case(lambda v, x, y: noise_influence(v, torch.zeros(1, 36, 96), [x])),
    "linearise": Case(lambda v, x, y: linearise(v, [x])),
    "project": Case(lambda v, x, y: space().project(x), box=False),
    "nearest": Case(lambda v, x, y: space().nearest(x, x.flip(0)), noise=lambda pair: pair[0]),
    "largest": Case(lambda v, x, y: space().largest(x, steps=1), noise=lambda noise: noise),
    "certify": Case(lambda v, x, y: space().certify_largest(x, x)),
    "watermark": Case(lambda v, x, y: watermark(space(), x, 1 - x), noise=lambda pair: pair[0]),
    "watermark l1": Case(lambda v, x, y: watermark(space(), x, 1 - x, norm="l1"), noise=lambda pair: pair[0]),
    "encode": Case(lambda v, x, y: encode_message(space(), x, bits(len(x)), key=1), noise=lambda hidden: hidden.noise),
    "decode": Case(lambda v, x, y: decode_message(space(), x, key=1, length=3)),
    "without": Case(lambda v, x, y: without_nullspace(space(), x, x.flip(0) - x), noise=lambda noise: noise),
    "controls": Case(
        lambda v, x, y: equal_norm_controls(space(), x, x.flip(0), x / 9, torch.Generator().manual_seed(0)),
        noise=lambda controls: torch.stack([*controls.values()]),
    ),
    "in_box": Case(lambda v, x, y: in_box(x, 0.5 - x, torch.ones(len(x))), noise=lambda noise: noise),
    "lookalike": Case(lambda v, x, y: lookalike(v, x, x.flip(0), eps=0.1, steps=1), noise=lambda noise: noise),
    "farthest": Case(lambda v, x, y: farthest_along(v, x, x, x.flip(0), eps=0.1)),
    "adversarial": Case(lambda v, x, y: adversarial(v, x, y, steps=12), labelled=True, noise=lambda found: found.noise),
    "library": Case(
        lambda v, x, y: library_attack(v, x, y, "PGD", eps=0.5, alpha=0.1, steps=8),
        labelled=True,
        noise=lambda found: found.noise,
    ),
    **{
        f"attribute {name}": Case(lambda v, x, y, name=name: attribute(v, x, name, target=y), labelled=True)
        for name in ATTRIBUTIONS
        if name != "integrated_gradients"  # as the others, sixteen times
    },
    "deletion": Case(lambda v, x, y: deletion_insertion(v, x, torch.ones(len(x), 36), target=y), labelled=True),
    "manipulate": Case(lambda v, x, y: manipulate(v, x, "saliency", steps=1), noise=lambda noise: noise),
    "ssim": Case(lambda v, x, y: ssim(x, x)),
    "psnr": Case(lambda v, x, y: psnr(x, 1 - x)),
    "transported": Case(lambda v, x, y: transported_logits(v, x, "8 bits")),
    "degraded": Case(lambda v, x, y: degraded(x, "JPEG 75")),
}
LABELLED = [name for name, case in CASES.items() if case.labelled]
NOISY = [name for name, case in CASES.items() if case.noise]
IN_BOX = ("normalised", "other units")
BAD_IMAGES = {
    "normalised": (lambda x: x * 2 - 1, r"not \[0, 1\]"),
    "other units": (lambda x: x * 255, r"not \[0, 1\]"),
    "8 bits": (lambda x: (x * 255).byte(), "divide by 255"),
    "one axis too few": (lambda x: x[0], "takes|have shape"),
    "with NaN": (lambda x: x.masked_fill(x > 0.9, torch.nan), "NaN"),
    "none": (lambda x: x[:0], "at least one"),
}
BAD_LABELS = {
    "below 0": (lambda y: [-1, *y[1:].tolist()], "labels span -1 to 9, but"),
    "above the classes": (lambda y: torch.cat([y[:-1], torch.tensor([10])]), "labels span 0 to 10, but"),
    "too few": (lambda y: y[1:], "one class index for each"),
    "floats": (lambda y: y.float(), "one class index for each"),
    "words": (lambda y: ["cat"] * len(y), "class index"),
}
KINDS = {
    "list": lambda y: y.tolist(),
    "NumPy's int32": lambda y: y.numpy().astype(np.int32),
    "NumPy's uint16": lambda y: y.numpy().astype(np.uint16),
    "int16": lambda y: y.short(),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
@pytest.mark.parametrize("name", CASES)
def test_every_function_refuses_images_that_would_be_misread(name: str, bad: str) -> None:
    (change, words), (images, labels) = BAD_IMAGES[bad], batch()
    if bad not in IN_BOX or CASES[name].box:
        with pytest.raises(InputError, match=words):
            CASES[name].call(vit(), change(images), labels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :1], "takes"),
        (lambda x: x[..., :32, :32], "resize"),
        (lambda x: x.numpy(), "are a ndarray; pass a tensor"),
    ],
)
def test_images_for_another_model_are_refused(change: Callable, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_images(vit(), change(batch()[0]))


@pytest.mark.parametrize("bad", BAD_LABELS)
@pytest.mark.parametrize("name", LABELLED)
def test_every_function_refuses_labels_that_are_no_classes(name: str, bad: str) -> None:
    (change, words), (images, _) = BAD_LABELS[bad], batch()
    labels = torch.tensor([0, 1, 2, 9])
    with pytest.raises(InputError, match=words):
        CASES[name].call(vit(), images, change(labels))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_any_whole_type_are_the_same_labels(kind: str) -> None:
    images, labels = batch()
    given = KINDS[kind](labels)
    assert torch.equal(check_labels(given), labels) and check_labels(given).dtype == torch.int64
    assert torch.equal(other_class(given), other_class(labels))
    for name in ("attack pgd", "pgd", "attribute grad_cam"):
        assert torch.equal(CASES[name].call(vit(), images, given), CASES[name].call(vit(), images, labels))


def values(result: Any) -> list[Tensor]:
    """All tensors of a result."""
    if isinstance(result, Tensor):
        return [result]
    parts = (
        result.values() if isinstance(result, dict) else vars(result).values() if hasattr(result, "__dict__") else ()
    )
    parts = result if isinstance(result, tuple) else parts
    return [value for part in parts for value in values(part)]


@cache
def bfloat16() -> ViT:
    return deepcopy(vit()).bfloat16()


@pytest.mark.parametrize("name", CASES)
def test_every_function_takes_float64_and_what_asks_for_gradients(name: str) -> None:
    images, labels = batch()
    for value in values(CASES[name].call(vit(), images.double().requires_grad_(), labels)):
        assert value.isfinite().all() and not value.requires_grad


@pytest.mark.parametrize("name", CASES)
def test_every_function_works_in_inference_mode(name: str) -> None:
    images, labels = batch()
    with torch.inference_mode():
        result = CASES[name].call(vit(), images.clone(), labels.clone())
    assert all(value.isfinite().all() for value in values(result))


@pytest.mark.parametrize("name", [name for name in CASES if name != "memory"])
def test_every_function_takes_a_model_in_bfloat16_and_keeps_perturbations_finer(name: str) -> None:
    for value in values(CASES[name].call(bfloat16(), *batch())):
        assert value.isfinite().all() and value.dtype not in (torch.bfloat16, torch.float16)


def test_a_model_in_half_precision_is_attacked_where_it_answers() -> None:
    """Steps of 1/255 are lost in bfloat16 pixels, near 1; the attack must not look weaker for it."""
    images, labels = batch()
    noise = attack(bfloat16(), images, labels, "pgd-10", eps=EPS) - images
    assert (noise.abs() <= EPS + 1e-6).all() and len(noise.unique()) > 500


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_function_returns_is_legal_for_all_others_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    images, labels = batch()
    images = images.to(dtype).lerp(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(dtype), 0.3)
    images[:, :, :24] = batch()[0][:, :, :24].round()  # black and white, where there is no room
    noise = CASES[name].noise(CASES[name].call(vit(), images, (labels + 1) % 10))
    noisy = images + noise
    assert noise.abs().max() > 0 and noisy.min() >= 0 and noisy.max() <= 1


def test_models_come_out_of_inference_mode_fit_for_training() -> None:
    with torch.inference_mode():
        made = load_vit(SHIPPED)
    assert not any(value.is_inference() for value in made.state_dict().values())


@cache
def splits() -> Data:
    whole = load_data("cifar10")
    train, dev = (split.subset(10) for split in (whole.train, whole.dev))
    return Data("own", train, dev, dev, whole.classes)


def changed(split: Split, images: Callable | None = None, labels: Callable | None = None) -> Split:
    return Split((images or (lambda x: x))(split.images), (labels or (lambda y: y))(split.labels))


def finetuned(start: ViT, train: Split) -> Tensor:
    data = Data("own", train, splits().dev, splits().test, splits().classes)
    made = finetune(start, data, method="standard", steps=1, recipe=RECIPE, progress=False).vit
    return made.net.head.weight.detach()


def test_finetuning_takes_images_as_floats_and_labels_of_any_type() -> None:
    train, expected = splits().train, finetuned(vit(), splits().train)
    as_floats = finetuned(vit(), changed(train, lambda x: x / 255, lambda y: [int(label) for label in y]))
    assert torch.allclose(as_floats, expected, atol=1e-6)
    with torch.inference_mode():
        assert torch.equal(finetuned(vit(), changed(train, labels=lambda y: y.astype(np.int16))), expected)
    with pytest.raises(InputError, match="bfloat16, in which small steps are lost: call float"):
        finetuned(bfloat16(), train)


@pytest.mark.parametrize("judge", [evaluate, accuracy, lambda v, split: finetuned(v, split)])
def test_splits_that_the_model_cannot_be_judged_by_are_refused(judge: Callable) -> None:
    split = splits().train
    for bad, words in (
        (changed(split, labels=lambda y: y - y.max()), "labels span -"),
        (changed(split, labels=lambda y: y + 10), "the classes of the model are 0 to 9"),
        (changed(split, images=lambda x: x[..., :1]), "takes"),
        (split.take(np.arange(0)), "no images"),
    ):
        with pytest.raises(InputError, match=words):
            judge(vit(), bad)


def test_float_images_are_judged_as_they_are() -> None:
    split = load_data("cifar10").test.subset(64)
    as_floats = [accuracy(vit(), changed(split, lambda x, t=t: (x / 255).astype(t))) for t in ("float32", "float64")]
    assert as_floats == [accuracy(vit(), split)] * 2 and as_floats[0] > 0.7


def test_a_model_is_judged_by_data_of_as_many_classes_alone() -> None:
    """A head of 1,000 on the labels 0 to 9 of ten other classes would give a number, and a wrong one."""
    split, wide = load_data("cifar10").test.take(range(4)), load_vit(SHIPPED, num_classes=12)
    for judge in (accuracy, evaluate):
        with pytest.raises(
            InputError, match=r"has 12 classes, but the data have 10: pass .*restricted\(data.imagenet\)"
        ):
            judge(wide, split)
        with pytest.raises(InputError, match="a split is needed, but this is a Data: pass one, such as data.test"):
            judge(wide, load_data("cifar10"))
        judge(wide.restricted(range(10)), split)
    assert predictions(wide, split).shape == (4, 12) and split.subset(2).take([1]).classes == 10
    with pytest.raises(
        InputError, match=r"images are \(32, 32\) pixels, .* takes \(48, 48\): resize them, as split.batches"
    ):
        wide(next(iter(split.batches(4)))[0])
