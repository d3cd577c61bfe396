"""Attribution on the shipped ViT and real images: what exact noise leaves, what maps satisfy, what is refused."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from torch import Tensor, nn

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.fooling import explanations, faithfulness, manipulation
from nullpaper.fooling.explanations import ATTRIBUTIONS, attribute, patch_values
from nullpaper.models.predict import probability_gap
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.nullspace.patch import patch_nullspace


@cache
def model(dtype: torch.dtype = torch.float32) -> ViT:
    return load_vit(SHIPPED).to(dtype)


@cache
def images(count: int = 4) -> Tensor:
    return to_pixels(load_data("cifar10").test.images[:count], 48)


@cache
def exact() -> tuple[Tensor, Tensor]:
    """Images and the same with large exact noise, float64; inside [0, 1] by a margin, since clamping is not exact."""
    pixels = images().double()
    space = patch_nullspace(model(torch.float64))
    noise = space.project(space.largest(pixels))  # to the last digit in the nullspace, and 1e-7 outside the box
    return 0.01 + 0.98 * pixels, 0.01 + 0.98 * (pixels + noise)


@cache
def maps(name: str) -> tuple[Tensor, Tensor]:
    """Maps of both, which explain the same class."""
    target = model(torch.float64)(exact()[0]).argmax(1)
    return tuple(attribute(model(torch.float64), shown, name, target=target) for shown in exact())


def state(vit: ViT) -> list[object]:
    """Everything that an attribution could leave behind on a model."""
    modules = [(m.training, getattr(m, "fused_attn", None), len(m._forward_hooks)) for m in vit.modules()]
    return modules + [(p.requires_grad, p.grad) for p in vit.parameters()]


def relative(first: Tensor, second: Tensor) -> float:
    return ((first - second).abs().max() / second.abs().max()).item()


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_exact_noise_leaves_every_patch_its_value_and_other_noise_of_that_norm_does_not(name: str) -> None:
    pixels, noisy = exact()
    assert (noisy - pixels).flatten(1).norm(dim=1).min() > 10
    clean, moved = (patch_values(values, model()) for values in maps(name))
    assert relative(moved, clean) < 1e-10
    target = model(torch.float64)(pixels).argmax(1)
    shuffled = (pixels + (noisy - pixels).flip(3)).clamp(0, 1)
    assert relative(patch_values(attribute(model(torch.float64), shuffled, name, target=target), model()), clean) > 0.05


def test_exact_noise_changes_pixels_of_a_map_by_gradient_times_noise_and_nothing_else() -> None:
    pixels, noisy = exact()
    vit, leaf = model(torch.float64), pixels.clone().requires_grad_()
    logits = vit(leaf)
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), leaf)
    clean, moved = maps("gradient_x_input")
    assert torch.allclose(clean, (gradient * pixels).sum(1))
    assert torch.allclose(moved - clean, (gradient * (noisy - pixels)).sum(1), atol=1e-10)
    assert relative(*maps("saliency")) < 1e-10
    assert relative(*reversed(maps("gradient_x_input"))) > 0.1
    assert relative(*reversed(maps("integrated_gradients"))) > 0.1


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_shapes_default_target_batches_and_no_traces(name: str, monkeypatch) -> None:
    vit, pixels = load_vit(SHIPPED), images()
    vit.net.blocks[2].attn.fused_attn = False  # a mixed state has to come back as it was
    before = state(vit)
    with torch.inference_mode():
        values = attribute(vit, pixels, name)
        predicted = vit(pixels).argmax(1)
    assert values.shape == (4, *(vit.grid_size if ATTRIBUTIONS[name].level == "patch" else vit.image_size))
    assert not values.requires_grad and values.isfinite().all()
    monkeypatch.setattr(explanations, "TOKENS", 3 * 36)
    assert relative(attribute(vit, pixels, name, target=predicted), values) < 1e-3
    if name != "rollout":
        assert relative(attribute(vit, pixels, name, target=torch.full((4,), 9)), values) > 0.01
    handle = vit.net.blocks[-1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribute(vit, pixels, name, target=predicted)
    handle.remove()
    assert state(vit) == before


def test_rollout_of_uniform_attention_is_known_in_closed_form() -> None:
    vit = load_vit(SHIPPED)
    for block in vit.net.blocks:
        nn.init.zeros_(block.attn.qkv.weight[:192])
        nn.init.zeros_(block.attn.qkv.bias[:192])
    depth, tokens = len(vit.net.blocks), 37
    assert torch.allclose(attribute(vit, images(), "rollout"), torch.tensor((1 - 2.0**-depth) / tokens))


class Spliced(nn.Module):
    """The shipped ViT with a module whose output is the last block's normalised patches as Captum wants them."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit, self.grid = vit, nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        net, block = self.vit.net, self.vit.net.blocks[-1]
        stream = net.blocks[:-1](net._pos_embed(self.vit.embed(pixels)))
        normed = block.norm1(stream)
        patches = self.grid(normed[:, 1:].transpose(1, 2).unflatten(2, (6, 6))).flatten(2).transpose(1, 2)
        stream = stream + block.attn(torch.cat([normed[:, :1], patches], 1))
        return net.forward_head(net.norm(stream + block.mlp(block.norm2(stream))))


def test_grad_cam_is_captums_where_the_tokens_lie_on_captums_axes() -> None:
    spliced = Spliced(model())
    target = model()(images()).argmax(1)
    assert torch.allclose(spliced(images()), model()(images()), atol=1e-4)
    reference = LayerGradCam(spliced, spliced.grid).attribute(images(), target=target)
    assert relative(attribute(model(), images(), "grad_cam"), reference.squeeze(1)) < 1e-3


@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        ("saliency", Saliency, {}),
        ("gradient_x_input", InputXGradient, {}),
        ("integrated_gradients", IntegratedGradients, {"n_steps": explanations.IG_STEPS}),
    ],
)
def test_pixel_maps_are_captums(name: str, reference: type, options: dict) -> None:
    vit, target = model(torch.float64), model()(images()).argmax(1)
    pixels = images().double()
    if name == "integrated_gradients":
        options = options | {"baselines": vit.mean.expand_as(pixels)}
    theirs = reference(vit).attribute(pixels.clone(), target=target, **options).sum(1)
    assert relative(attribute(vit, pixels, name, target=target), theirs) < 1e-6  # the nodes' weights are float32


def test_integrated_gradients_are_complete_however_many_nodes_go_through_the_model_at_once(monkeypatch) -> None:
    vit, pixels = model(torch.float64), images().double()
    target = vit(pixels).argmax(1)
    whole = attribute(vit, pixels, "integrated_gradients")
    rise = (vit(pixels) - vit(vit.mean.expand_as(pixels))).gather(1, target[:, None]).squeeze(1)
    assert torch.allclose(whole.sum((1, 2)), rise, atol=0.3)
    monkeypatch.setattr(explanations, "TOKENS", 8 * 36)
    assert relative(attribute(vit, pixels, "integrated_gradients"), whole) < 1e-10


def test_map_metrics_at_their_ends() -> None:
    first = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(faithfulness.rank_correlation(first, first.exp()), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(faithfulness.rank_correlation(first, -first), -torch.ones(3, dtype=torch.float64))
    assert faithfulness.rank_correlation(first, torch.ones(3, 6, 6)).isnan().all()
    assert (faithfulness.top_overlap(first, 2 * first) == 1).all()
    assert (faithfulness.top_overlap(first, -first) == 0).all()


def test_deletion_and_insertion_end_where_they_must_mirror_each_other_and_paint_patches() -> None:
    vit, pixels = model(), images()
    scores, target = patch_values(attribute(vit, pixels, "grad_cam"), vit), vit(pixels).argmax(1)
    forwards = faithfulness.deletion_insertion(vit, pixels, scores, target=target)
    whole = vit(pixels).softmax(1)[torch.arange(4), target].double()
    assert forwards.share[0] == 0 and forwards.share[-1] == 1 and forwards.deletion.shape == (4, 10)
    assert torch.allclose(forwards.deletion[:, 0], whole, atol=1e-5)
    assert torch.allclose(forwards.insertion[:, -1], whole, atol=1e-5)
    backwards = faithfulness.deletion_insertion(vit, pixels, -scores, target=target)
    assert torch.allclose(backwards.deletion, forwards.insertion.flip(1), atol=1e-5)
    assert torch.allclose(backwards.area("deletion"), forwards.area("insertion"), atol=1e-5)
    painted, scores = pixels.clone(), torch.arange(36.0).flip(0).expand(4, -1)
    painted[:, :, :8, :32] = vit.mean
    first = faithfulness.deletion_insertion(vit, pixels, scores, target=target).deletion[:, 1]
    assert torch.allclose(first.float(), vit(painted).softmax(1)[torch.arange(4), target], atol=1e-5)


@pytest.mark.parametrize("name", ["rollout", "grad_cam", "saliency"])
def test_optimised_noise_moves_the_map_keeps_the_prediction_and_beats_random_signs(name: str) -> None:
    vit, pixels = load_vit(SHIPPED), images()
    before, radius = state(vit), 8 / 255
    noise = manipulation.manipulate(vit, pixels, name, radius=radius, eps=0.05, steps=6)
    assert state(vit) == before
    shown = pixels + noise
    assert noise.abs().max() <= radius + 1e-6 and shown.min() >= 0 and shown.max() <= 1
    assert (probability_gap(vit(shown), vit(pixels)) <= 0.05).all()
    target = vit(pixels).argmax(1)
    assert torch.equal(vit(shown).argmax(1), target)
    signs = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).sign()
    moved, control, clean = (
        patch_values(attribute(vit, each.clamp(0, 1), name, target=target), vit)
        for each in (shown, pixels + radius * signs, pixels)
    )
    correlation = manipulation.correlation
    assert correlation(moved, clean).mean() < correlation(control, clean).mean() - 0.15


def test_optimised_noise_is_the_same_for_the_same_seed_only_and_zero_where_nothing_keeps_the_prediction() -> None:
    first, again, other = (manipulation.manipulate(model(), images(2), "rollout", steps=2, seed=i) for i in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (manipulation.manipulate(model(), images(2), "rollout", eps=1e-12, steps=2) == 0).all()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("unknown. Did you mean 'grad_cam'", dict(name="gradcam")),
        ("labels span 0 to 10, but the classes", dict(target=torch.tensor([0, 1, 2, 10]))),
        ("labels have shape", dict(target=torch.tensor([1, 2]))),
        ("pixels, but nullpaper_vit_cifar10 takes", dict(images=torch.zeros(4, 3, 32, 32))),
        ("pass pixels, not normalised values", dict(images=torch.full((4, 3, 48, 48), 1.5))),
    ],
)
def test_bad_requests_are_refused_before_any_work(message: str, change: dict) -> None:
    request = dict(images=images(), name="saliency", target=None) | change
    with pytest.raises(InputError, match=message):
        attribute(model(), request["images"], request["name"], target=request["target"])


def test_bad_options_are_refused() -> None:
    vit, pixels = model(), images()
    with pytest.raises(InputError, match="must be a number in"):
        faithfulness.top_overlap(torch.rand(2, 9), torch.rand(2, 9), 1)
    with pytest.raises(InputError, match="pass two of"):
        faithfulness.rank_correlation(torch.rand(2, 9), torch.rand(2, 8))
    with pytest.raises(InputError, match="maps have shape"):
        patch_values(torch.rand(4, 5, 5), vit)
    with pytest.raises(InputError, match="pass finite ones"):
        faithfulness.deletion_insertion(vit, pixels, torch.rand(4, 35), target=torch.zeros(4, dtype=torch.long))
    for bad in (dict(radius=0), dict(radius=2), dict(eps=0), dict(eps=2), dict(steps=0)):
        with pytest.raises(InputError, match="must"):
            manipulation.manipulate(vit, pixels, "rollout", **bad)
    with pytest.raises(InputError, match="training mode"):
        attribute(load_vit(SHIPPED).train(), pixels, "saliency")


def test_architectures_without_the_parts_are_refused() -> None:
    pooled = ViT(timm.create_model("test_vit", global_pool="avg", img_size=48), (0.5,) * 3, (0.5,) * 3).eval()
    with pytest.raises(InputError, match="rollout needs a head"):
        attribute(pooled, images(), "rollout")
    vit = load_vit(SHIPPED)
    del vit.net.blocks[-1].norm1
    with pytest.raises(InputError, match="no norm in front"):
        explanations.grad_cam(vit, images(), torch.zeros(4, dtype=torch.long), False)
