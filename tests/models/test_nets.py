"""Weights from people's own files and models: statistics, grid, classes and sizes are the right ones, or a sentence."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nullpaper.errors import InputError
from nullpaper.models.checkpoints import load_classifier
from nullpaper.models.vit import CIFAR10_MEAN, SHIPPED, Classifier, ViT, load_vit, save_vit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # not timm's for this model
STATISTICS = {"mean": MEAN, "std": STD}
NAME = "test_vit"  # of timm: patches of 16 px, width 64


@cache
def net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, img_size=32, num_classes=7).eval()


@cache
def vit() -> ViT:
    return load_vit(net(), **STATISTICS)


@cache
def images(height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def plain(folder: Path, model: nn.Module | None = None) -> Path:
    """A file with timm's names and nothing else, as a user would write it."""
    path = folder / "plain.safetensors"
    save_file({key: value.contiguous() for key, value in (model or net()).state_dict().items()}, path)
    return path


@torch.no_grad()
def test_a_saved_model_comes_back_with_statistics_classes_and_size(tmp_path) -> None:
    save_vit(vit(), tmp_path / "own.safetensors")
    again = load_vit(NAME, weights=tmp_path / "own.safetensors")
    assert torch.equal(again(images()), vit()(images()))
    assert (again.num_classes, again.image_size, again.statistics) == (7, (32, 32), "from own.safetensors")
    assert "0.485" in repr(again) and "from own.safetensors" in repr(again)
    given = load_vit(NAME, weights=tmp_path / "own.safetensors", mean=[0.5] * 3, std=[0.25] * 3)
    assert given.mean.flatten().tolist() == [0.5] * 3 and given.statistics == "as given"


@torch.no_grad()
def test_statistics_that_are_a_guess_are_announced(tmp_path) -> None:
    given = load_vit(NAME, weights=plain(tmp_path), img_size=32, **STATISTICS)
    assert torch.equal(given(images()), vit()(images()))
    for source in ({"name": NAME, "weights": plain(tmp_path)}, {"name": net()}):
        with pytest.warns(
            UserWarning, match=r"does not say its mean and std; .* guess: pass .* mean=\.\.\. and std"
        ) as told:
            guessed = load_vit(**source, img_size=32)
        assert [Path(warning.filename).name for warning in told] == ["test_nets.py"]  # the caller's line
        assert "guess" in guessed.statistics and not torch.equal(guessed(images()), vit()(images()))
    with pytest.raises(InputError, match="VisionTransformer does not say its mean and std: pass"):
        load_vit(VisionTransformer(img_size=16, patch_size=8, embed_dim=6, depth=1, num_heads=1))
    assert load_vit(NAME, pretrained=False).statistics == f"of {NAME}"  # of random weights any will do
    assert load_vit(SHIPPED).statistics == f"from {SHIPPED}.safetensors"


def test_statistics_of_the_classifiers_travel_too(tmp_path) -> None:
    model = Classifier(load_classifier("resnet", pretrained=False).net, **STATISTICS)
    save_vit(model, tmp_path / "resnet.safetensors")
    assert torch.equal(load_classifier("resnet", weights=tmp_path / "resnet.safetensors").mean, model.mean)
    with pytest.warns(UserWarning, match="guess"):
        guessed = load_classifier("resnet", weights=plain(tmp_path, model.net))
    assert torch.allclose(guessed.mean.flatten(), torch.tensor(CIFAR10_MEAN))


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,), (0.5,), "have 1 numbers, but test_vit has 3 channels"),
        ((0.5,) * 4, (0.5,) * 4, "have 4 numbers, but test_vit has 3 channels"),
        ((0.5,) * 3, (0.5,) * 2, "one number a channel"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "divide those of pixels up to 255 by 255"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), r"std in \(0, 1\]"),
        ((0.5, float("nan"), 0.5), (0.5,) * 3, "one number a channel"),
        ((0.5,) * 3, None, "belong together"),
    ],
)
def test_statistics_that_fit_no_model_are_refused(mean, std, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_vit(NAME, pretrained=False, mean=mean, std=std)


@torch.no_grad()
def test_another_number_of_classes_is_a_fresh_head(tmp_path) -> None:
    save_vit(vit(), tmp_path / "own.safetensors")
    other = load_vit(NAME, weights=tmp_path / "own.safetensors", num_classes=3)
    assert other(images()).shape == (2, 3)
    assert torch.equal(other.features(other.embed(images())), vit().features(vit().embed(images())))
    headless = load_vit(NAME, weights=tmp_path / "own.safetensors", num_classes=0)
    save_vit(headless, tmp_path / "headless.safetensors")
    assert load_vit(NAME, weights=tmp_path / "headless.safetensors").num_classes == 0


@torch.no_grad()
def test_pytorch_files_are_read_and_execute_nothing(tmp_path) -> None:
    state = net().state_dict()
    contents = {"bare": state, "training": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        own = load_vit(NAME, weights=tmp_path / f"{name}.pth", img_size=32, **STATISTICS)
        assert torch.equal(own(images()), vit()(images()))
    for bad in (net(), {"epoch": 3}, [1]):
        torch.save(bad, tmp_path / "bad.pth")
        with pytest.raises(InputError, match=r"holds more than tensors.* save model\.state_dict\(\)") as refusal:
            load_vit(NAME, weights=tmp_path / "bad.pth")
        assert len(str(refusal.value)) < 500
    (tmp_path / "bad.pth").write_bytes((tmp_path / "bare.pth").read_bytes()[:5_000])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_vit(NAME, weights=tmp_path / "bad.pth")


@torch.no_grad()
def test_a_model_of_timm_is_copied_and_stays_as_it_was() -> None:
    own = timm.create_model(NAME, img_size=32, num_classes=7).train()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    for wrapped in (own, nn.DataParallel(own)):
        loaded = load_vit(wrapped, **STATISTICS)
        changed = load_vit(wrapped, num_classes=2, img_size=(48, 64), **STATISTICS)
        loaded.net.head.weight.zero_()
        assert changed(images(48, 64)).shape == (2, 2) and not loaded.training
    assert own.training and own.num_classes == 7 and type(own.patch_embed).__name__ == "PatchEmbed"
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
    for wrapped in (vit(), nn.DataParallel(vit())):
        with pytest.raises(InputError, match="test_vit is loaded already"):
            load_vit(wrapped)


@torch.no_grad()
@pytest.mark.parametrize("name", [NAME, "deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2", "flexivit_small"])
def test_positions_are_resampled_by_timm_from_the_true_grid(name: str, tmp_path) -> None:
    patch = 14 if "patch14" in name else 16
    start = load_vit(name, pretrained=False, img_size=(4 * patch, 9 * patch))
    positions, prefix = start.net.pos_embed, start.net.pos_embed.shape[1] - 36
    save_vit(start, tmp_path / "own.safetensors")
    assert load_vit(name, weights=tmp_path / "own.safetensors").grid_size == (4, 9)
    larger = load_vit(name, weights=tmp_path / "own.safetensors", img_size=(8 * patch, 18 * patch))
    assert torch.equal(larger.net.pos_embed, resample_abs_pos_embed(positions, [8, 18], [4, 9], prefix))


@torch.no_grad()
def test_a_square_grid_is_told_from_an_oblong_one_of_as_many_patches(tmp_path) -> None:
    start = load_vit(NAME, pretrained=False, img_size=(64, 144))
    save_vit(start, tmp_path / "own.safetensors")
    square = load_vit(NAME, weights=tmp_path / "own.safetensors", img_size=96)
    assert torch.equal(square.net.pos_embed, resample_abs_pos_embed(start.net.pos_embed, [6, 6], [4, 9], 1))
    small = load_vit(NAME, weights=plain(tmp_path, square.net), img_size=48, **STATISTICS)
    assert torch.equal(small.net.pos_embed, resample_abs_pos_embed(square.net.pos_embed, [3, 3], [6, 6], 1))


@torch.no_grad()
def test_a_grid_that_is_a_guess_is_announced_and_one_that_is_none_refused(tmp_path) -> None:
    square = load_vit(NAME, pretrained=False, img_size=96)
    with pytest.warns(UserWarning, match="6 x 6 is a guess, and is resampled to 4 x 9; .* into a timm model"):
        guessed = load_vit(NAME, weights=plain(tmp_path, square.net), img_size=(64, 144), **STATISTICS)
    expected = resample_abs_pos_embed(square.net.pos_embed, [4, 9], [6, 6], 1)
    assert torch.equal(guessed.net.pos_embed, expected)
    oblong = load_vit(NAME, pretrained=False, img_size=(80, 160)).net
    file = plain(tmp_path, oblong)
    with pytest.raises(InputError, match=r"positions for 50 patches .* save_vit that, and load the new file"):
        load_vit(NAME, weights=file, img_size=96, **STATISTICS)
    save_vit(load_vit(NAME, weights=file, img_size=(80, 160), **STATISTICS), tmp_path / "new.safetensors")
    resampled = load_vit(NAME, weights=tmp_path / "new.safetensors", img_size=96).net.pos_embed
    assert torch.equal(resampled, resample_abs_pos_embed(oblong.pos_embed, [6, 6], [5, 10], 1))
    own = load_vit(oblong, **STATISTICS)
    assert torch.equal(own.net.pos_embed, oblong.pos_embed) and own.grid_size == (5, 10)


def test_a_misfit_is_told_in_shapes_that_are_in_the_file(tmp_path) -> None:
    with pytest.raises(InputError, match=r"first .*\(1, 1, 64\) in the file, \(1, 1, 192\) in the model") as refusal:
        load_vit("vit_tiny_patch16_224", weights=plain(tmp_path), **STATISTICS)
    assert "pass the name of the model that it was saved from" in str(refusal.value)


@pytest.mark.parametrize("name", [SHIPPED, NAME])
@pytest.mark.parametrize("size", [50, 7, 0, -16, 3.5, "48", (48,), (48, 50), True])
def test_image_sizes_that_the_patches_do_not_fill_are_refused(name: str, size) -> None:
    with pytest.raises(InputError, match="img_size"):
        load_vit(name, pretrained=name == SHIPPED, img_size=size)


def test_the_sizes_that_the_refusal_names_are_taken() -> None:
    with pytest.raises(InputError, match="img_size=50 is no multiple of the 16 px patch of test_vit: take 48 or 64"):
        load_vit(NAME, pretrained=False, img_size=50)
    assert load_vit(NAME, pretrained=False, img_size=64).grid_size == (4, 4)
    with pytest.raises(InputError, match=r"img_size=\(50, 50\) .* take 48 or 56"):
        ViT(VisionTransformer(img_size=50, patch_size=8, embed_dim=6, depth=1, num_heads=1), MEAN, STD)
    with pytest.raises(InputError, match="cait_xxs24_224, which are for"):
        load_vit(timm.create_model("cait_xxs24_224"), img_size=64, **STATISTICS)


@pytest.mark.parametrize("classes", [-1, 2.5, "10", True])
@pytest.mark.parametrize("name", [SHIPPED, NAME])
def test_numbers_of_classes_that_are_none_are_refused(name: str, classes) -> None:
    with pytest.raises(InputError, match="num_classes"):
        load_vit(name, pretrained=name == SHIPPED, num_classes=classes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_224.augreg_in22k", "Did you mean 'vit_tiny_patch16_224.augreg_in21k'"),
        ("vit_smal_patch32_224.augreg_in21k", "Did you mean 'vit_small_patch32_224'"),
        ("vit_tiny_patch16_224.zzz", "no weights 'zzz' of vit_tiny_patch16_224.* Choose from vit_tiny"),
        (None, "no model"),
        (7, "no model"),
    ],
)
def test_names_and_tags_that_timm_does_not_have_get_the_nearest(name, words: str) -> None:
    for pretrained in (True, False):
        with pytest.raises(InputError, match=words):
            load_vit(name, pretrained=pretrained)
