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
from nullpaper.fooling import explanations as attribution
from nullpaper.fooling import faithfulness, manipulation
from nullpaper.fooling.explanations import ATTRIBUTIONS, attribute, patch_values
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
    noise = patch_nullspace(model(torch.float64)).largest(pixels)
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
def test_exact_noise_leaves_every_patch_its_value_on_another_image(name: str) -> None:
    pixels, noisy = exact()
    assert (noisy - pixels).flatten(1).norm(dim=1).min() > 10
    clean, moved = maps(name)
    assert relative(patch_values(moved, model()), patch_values(clean, model())) < 1e-10


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
def test_other_noise_of_that_norm_changes_every_map(name: str) -> None:
    pixels, noisy = exact()
    shuffled = (noisy - pixels).flip(3)
    shown = (pixels + shuffled).clamp(0, 1)
    moved = attribute(model(torch.float64), shown, name, target=model(torch.float64)(pixels).argmax(1))
    assert relative(patch_values(moved, model()), patch_values(maps(name)[0], model())) > 0.05


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_shapes_default_target_batches_and_no_traces(name: str) -> None:
    vit, pixels = load_vit(SHIPPED), images()
    vit.net.blocks[2].attn.fused_attn = False  # a mixed state has to come back as it was
    before = state(vit)
    with torch.inference_mode():
        found = attribute(vit, pixels, name)
        predicted = vit(pixels).argmax(1)
    assert found.shape == (4, *(vit.grid_size if ATTRIBUTIONS[name].level == "patch" else vit.image_size))
    assert not found.requires_grad and found.isfinite().all()
    assert relative(attribute(vit, pixels, name, target=predicted, batch_size=3), found) < 1e-3
    if name != "rollout":
        assert relative(attribute(vit, pixels, name, target=9), found) > 0.01
    assert state(vit) == before


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_a_failing_forward_pass_leaves_no_traces(name: str) -> None:
    vit = load_vit(SHIPPED)
    before = state(vit)
    handle = vit.net.blocks[-1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ATTRIBUTIONS[name].compute(vit, images().clone().requires_grad_(), torch.zeros(4, dtype=torch.long), False)
    handle.remove()
    assert state(vit) == before


def test_rollout_is_a_share_of_attention_that_starts_at_the_class_token() -> None:
    found = attribute(model(), images(), "rollout").flatten(1)
    assert (found >= 0).all() and (found.sum(1) <= 1).all()
    assert (found.sum(1) < 1 - 2.0 ** -len(model().net.blocks) + 1e-6).all()  # the identity keeps that much at home


def test_rollout_of_uniform_attention_is_known_in_closed_form() -> None:
    vit = load_vit(SHIPPED)
    for block in vit.net.blocks:
        nn.init.zeros_(block.attn.qkv.weight[:192])
        nn.init.zeros_(block.attn.qkv.bias[:192])
    depth, tokens = len(vit.net.blocks), 37
    assert torch.allclose(attribute(vit, images(), "rollout"), torch.tensor((1 - 2.0**-depth) / tokens))


def test_rollout_averages_the_rows_that_an_average_pooling_head_reads() -> None:
    net = timm.create_model("test_vit", global_pool="avg", num_classes=10, img_size=48, patch_size=16)
    vit = ViT(net, (0.5,) * 3, (0.5,) * 3).eval()
    assert attribute(vit, images(), "rollout").shape == (4, 3, 3)
    assert attribute(vit, images(), "grad_cam").abs().max() > 0


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
        ("integrated_gradients", IntegratedGradients, {"n_steps": attribution.IG_STEPS}),
    ],
)
def test_pixel_maps_are_captums(name: str, reference: type, options: dict) -> None:
    vit, target = model(torch.float64), model()(images()).argmax(1)
    pixels = images().double()
    if name == "integrated_gradients":
        options = options | {"baselines": vit.mean.expand_as(pixels)}
    theirs = reference(vit).attribute(pixels.clone(), target=target, **options).sum(1)
    assert relative(attribute(vit, pixels, name, target=target), theirs) < 1e-6  # the nodes' weights are float32


def test_integrated_gradients_do_not_depend_on_how_many_nodes_go_through_the_model_at_once(monkeypatch) -> None:
    whole = attribute(model(torch.float64), images().double(), "integrated_gradients")
    monkeypatch.setattr(attribution, "IG_CHUNK", 8)
    assert relative(attribute(model(torch.float64), images().double(), "integrated_gradients"), whole) < 1e-10


def test_integrated_gradients_are_complete_and_take_another_baseline() -> None:
    vit = model()
    target = vit(images()).argmax(1)
    for baseline in (None, torch.zeros(1, 3, 1, 1)):
        found = attribution.integrated_gradients(
            vit, images().clone().requires_grad_(), target, baseline=baseline, steps=48
        )
        start = (vit.mean if baseline is None else baseline).expand_as(images())
        rise = (vit(images()) - vit(start)).gather(1, target[:, None]).squeeze(1)
        assert torch.allclose(found.sum((1, 2)), rise, atol=0.05)


def test_map_metrics_at_their_ends() -> None:
    first = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(faithfulness.rank_correlation(first, first.exp()), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(faithfulness.rank_correlation(first, -first), -torch.ones(3, dtype=torch.float64))
    assert faithfulness.rank_correlation(first, torch.ones(3, 6, 6)).isnan().all()
    assert (faithfulness.top_overlap(first, 2 * first) == 1).all()
    assert (faithfulness.top_overlap(first, -first) == 0).all()


def test_deletion_and_insertion_end_where_they_must_and_mirror_each_other() -> None:
    vit, pixels = model(), images()
    scores = patch_values(attribute(vit, pixels, "grad_cam"), vit)
    found = faithfulness.deletion_insertion(vit, pixels, scores, block=5)
    target = vit(pixels).argmax(1)
    whole = vit(pixels).softmax(1).gather(1, target[:, None]).squeeze(1).double()
    assert found.share[0] == 0 and found.share[-1] == 1 and found.deletion.shape == (4, 9)
    assert torch.allclose(found.deletion[:, 0], whole, atol=1e-5)
    assert torch.allclose(found.insertion[:, -1], whole, atol=1e-5)
    backwards = faithfulness.deletion_insertion(vit, pixels, -scores, block=4)
    forwards = faithfulness.deletion_insertion(vit, pixels, scores, block=4)
    assert torch.allclose(backwards.deletion, forwards.insertion.flip(1), atol=1e-5)
    assert torch.allclose(backwards.deletion_area, forwards.insertion_area, atol=1e-5)


def test_deleting_a_patch_is_painting_it() -> None:
    vit, pixels, colour = model(), images(), torch.tensor([0.1, 0.5, 0.9])
    scores = torch.zeros(4, 36)
    scores[:, 7] = 1
    painted = pixels.clone()
    painted[:, :, 8:16, 8:16] = colour.view(1, 3, 1, 1)
    target = vit(pixels).argmax(1)
    found = faithfulness.deletion_insertion(vit, pixels, scores, block=1, colour=colour).deletion[:, 1]
    assert torch.allclose(found.float(), vit(painted).softmax(1)[torch.arange(4), target], atol=1e-5)


@pytest.mark.parametrize("name", ["rollout", "grad_cam", "saliency"])
def test_optimised_noise_moves_the_map_keeps_the_prediction_and_beats_random_signs(name: str) -> None:
    vit, pixels = load_vit(SHIPPED), images(6)
    before, radius = state(vit), 8 / 255
    found = manipulation.manipulate(vit, pixels, name, radius=radius, eps=0.05, steps=10)
    assert state(vit) == before
    shown = pixels + found.noise
    assert found.noise.abs().max() <= radius + 1e-6 and shown.min() >= -1e-6 and shown.max() <= 1 + 1e-6
    gap = (vit(shown).softmax(1) - vit(pixels).softmax(1)).square().sum(1)
    assert (gap <= 0.05).all() and torch.allclose(gap, found.gap, atol=1e-5)
    assert found.kept.all() and (vit(shown).argmax(1) == vit(pixels).argmax(1)).all()
    signs = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).sign()
    control = attribute(vit, (pixels + radius * signs).clamp(0, 1), name, target=vit(pixels).argmax(1))
    clean = attribute(vit, pixels, name)
    unmoved = manipulation.correlation(patch_values(control, vit), patch_values(clean, vit))
    assert found.correlation.mean() < unmoved.mean() - 0.2


def test_optimised_noise_is_the_same_for_the_same_seed_only() -> None:
    first, again, other = (
        manipulation.manipulate(model(), images(2), "rollout", steps=3, seed=seed).noise for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_prediction_that_cannot_be_kept_gets_no_noise() -> None:
    found = manipulation.manipulate(model(), images(2), "rollout", eps=1e-12, steps=2)
    assert (found.noise == 0).all() and found.kept.all() and torch.allclose(found.correlation, torch.ones(2))


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("unknown. Did you mean 'grad_cam'", dict(name="gradcam")),
        ("needs a ViT from load_vit, not Linear", dict(vit=nn.Linear(2, 2))),
        ("training mode", dict(vit="training")),
        ("leaves the classes 0 to 9", dict(target=10)),
        ("leaves the classes 0 to 9", dict(target=torch.tensor([0, 1, 2, -1]))),
        ("pass one class or", dict(target=torch.tensor([1, 2]))),
        ("pass one class or", dict(target=1.5)),
        ("pixels, but nullpaper_vit_cifar10 takes", dict(images=torch.zeros(4, 3, 32, 32))),
        ("pass pixels, not normalised values", dict(images=torch.full((4, 3, 48, 48), 1.5))),
        ("no images to explain", dict(images=torch.zeros(0, 3, 48, 48))),
    ],
)
def test_bad_requests_are_refused_before_any_work(message: str, change: dict) -> None:
    request = dict(vit=model(), images=images(), name="saliency", target=None) | change
    if isinstance(request["vit"], str):
        request["vit"] = load_vit(SHIPPED).train()
    with pytest.raises(InputError, match=message):
        attribute(request["vit"], request["images"], request["name"], target=request["target"])


def test_bad_options_are_refused() -> None:
    vit, pixels = model(), images()
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="must lie in"):
            faithfulness.top_overlap(torch.rand(2, 9), torch.rand(2, 9), share)
    with pytest.raises(InputError, match="pass two of"):
        faithfulness.rank_correlation(torch.rand(2, 9), torch.rand(2, 8))
    with pytest.raises(InputError, match="maps have shape"):
        patch_values(torch.rand(4, 5, 5), vit)
    with pytest.raises(InputError, match="pass finite ones"):
        faithfulness.deletion_insertion(vit, pixels, torch.rand(4, 35))
    with pytest.raises(InputError, match="between 1 and 36"):
        faithfulness.deletion_insertion(vit, pixels, torch.rand(4, 36), block=37)
    for bad in (dict(radius=0), dict(radius=2), dict(eps=0), dict(eps=2), dict(steps=0), dict(steps=1.5)):
        with pytest.raises(InputError, match="must"):
            manipulation.manipulate(vit, pixels, "rollout", **bad)


def test_architectures_without_the_parts_are_refused() -> None:
    pooled = ViT(timm.create_model("test_vit", global_pool="map", img_size=48), (0.5,) * 3, (0.5,) * 3).eval()
    with pytest.raises(InputError, match="rollout needs a head"):
        attribute(pooled, images(), "rollout")
    vit = load_vit(SHIPPED)
    del vit.net.blocks[-1].norm1
    with pytest.raises(InputError, match="no norm in front"):
        ATTRIBUTIONS["grad_cam"].compute(vit, images(), torch.zeros(4, dtype=torch.long), False)
