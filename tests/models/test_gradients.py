"""Quicker gradients are those of the plain model, and outside the plain model is what it was, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nullpaper.adapters.inject import inject
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.gradients import CHUNK, MEMORY, _products, at_once, chunks, fast_gradients, frozen, rounds
from nullpaper.models.predict import answers
from nullpaper.models.vit import SHIPPED, load_vit

TIMM = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
SHIPPED_TOO = ["resnet", "convnext", "vit_wide", SHIPPED]


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_classifier(name) if name in SHIPPED_TOO else load_vit(name, pretrained=False, img_size=None)


def images_of(model: nn.Module, count: int) -> Tensor:
    return torch.rand(count, 3, *model.image_size, generator=torch.Generator().manual_seed(0))


def slope(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    points = images.clone().requires_grad_()
    logits = model(points)
    return torch.autograd.grad(logits[:, 0].sum(), points)[0], logits.detach()


def switches(model: nn.Module) -> list:
    return [(vars(module).get("fused_attn"), "forward" in vars(module)) for module in model.modules()]


def state_of(model: nn.Module) -> list:
    precisions = [getattr(torch.backends, name).matmul.fp32_precision for name in ("mkldnn", "cuda")]
    return [*switches(model), *precisions, *(parameter.requires_grad for parameter in model.parameters())]


@pytest.mark.parametrize("name", [*SHIPPED_TOO, *TIMM])
def test_gradients_are_equal_to_rounding_and_answers_outside_to_the_bit(name: str) -> None:
    model = model_of(name)
    images, before = images_of(model, 2), state_of(model)
    plain, logits = slope(model, images)
    with frozen(model), fast_gradients(model, exact=True):
        fast, near = slope(model, images)
    assert (fast - plain).norm() < 1e-4 * plain.norm() and torch.allclose(near, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(slope(model, images)[1], logits) and state_of(model) == before


def test_where_products_are_rounded_exact_gradients_leave_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = model_of(SHIPPED), []
    product = torch.full((64, 64), 1 + 2**-12)
    for rounded in (True, False):
        monkeypatch.setattr("nullpaper.models.gradients.rounds", lambda _, rounded=rounded: rounded)
        with fast_gradients(model, exact=True):
            seen.append(torch.backends.mkldnn.matmul.fp32_precision)
    assert seen == ["none", "bf16"] and torch.backends.mkldnn.matmul.fp32_precision == "none"
    with _products("cpu", coarse=True):
        rounded = (product @ product)[0, 0].item() == 64
    assert rounds("cpu") == rounded


def test_everything_comes_back_after_an_error_and_contexts_nest() -> None:
    model = model_of(SHIPPED)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="broken"), frozen(model), fast_gradients(model):
        inside = switches(model)
        with fast_gradients(model):
            pass
        assert switches(model) == inside != before[: len(inside)]
        raise RuntimeError("broken")
    assert state_of(model) == before


def test_an_adapted_patch_embedding_keeps_its_branch() -> None:
    model = model_of(SHIPPED)
    inject(model, "lnlora", r=2)
    assert type(model.net.patch_embed.proj) is not nn.Conv2d
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    images = images_of(model, 2)
    plain, _ = slope(model, images)
    with fast_gradients(model, exact=True):
        assert (slope(model, images)[0] - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.parametrize("name", SHIPPED_TOO)
def test_answers_in_chunks_are_those_of_all_images_at_once(name: str) -> None:
    model = model_of(name)
    for count in (65, 130):
        images = images_of(model, count)
        with torch.no_grad():
            assert torch.equal(answers(model, images), model(images))


def test_chunks_are_even_and_together_everything() -> None:
    pieces = list(chunks(torch.arange(130), torch.arange(130)))
    assert [len(first) for first, _ in pieces] == [44, 43, 43]
    assert torch.equal(torch.cat([second for _, second in pieces]), torch.arange(130))
    assert [len(part) for (part,) in chunks(torch.zeros(64))] == [64]


def test_a_pass_takes_as_many_images_as_the_memory_holds() -> None:
    images, width = torch.rand(3, 3, 4, 4), 1000
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Sigmoid(), nn.Linear(width, 2)).requires_grad_(False)
    assert at_once(net, images) == CHUNK
    kept = 4 * width  # bytes: of the sigmoid's answer; the weights, kept too, are the same for any number of images
    assert [at_once(net, images, free=int((count + 0.5) * kept / MEMORY)) for count in (1, 30)] == [1, 30]
    assert at_once(net, images, free=0) == 1
