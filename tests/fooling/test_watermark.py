"""Marks keep the image legal and every logit; messages come back under their key, and under no other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from nullpaper.data.datasets import load_data, to_pixels
from nullpaper.errors import InputError
from nullpaper.fooling.watermark import (
    HiddenMessage,
    decode_message,
    draw_logo,
    encode_message,
    message_keys,
    official_noise,
    watermark,
)
from nullpaper.models.vit import SHIPPED, ViT, load_vit, patchify
from nullpaper.nullspace.patch import PatchNullspace, channel_nullspace, patch_nullspace
from nullpaper.robustness import perturbation

SECRET = torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) < 0.5
MARGIN = 0.1


@cache
def vit() -> ViT:
    return load_vit(SHIPPED)


@cache
def space() -> PatchNullspace:
    return patch_nullspace(vit())


@cache
def images() -> torch.Tensor:
    return to_pixels(load_data("cifar10").test.images[:6], 48)


@cache
def logo() -> torch.Tensor:
    return draw_logo((48, 48))


@cache
def hidden(share: float = 1.0) -> HiddenMessage:
    return encode_message(space(), images(), SECRET, key=7, margin=MARGIN, share=share)


def assert_invisible(noise: torch.Tensor) -> None:
    with torch.inference_mode():
        before, after = vit()(images()), vit()(images() + noise)
    assert torch.equal(before.argmax(1), after.argmax(1)) and (before - after).abs().max() < 1e-3
    assert (images() + noise).min() >= 0 and (images() + noise).max() <= 1
    assert (noise - space().project(noise)).abs().max() < 1e-6


def test_logo_is_legal_invisible_to_the_model_and_optimal_and_each_form_wins_in_its_own_norm() -> None:
    rest = {}
    for norm in ("l1", "l2"):
        noise, gap = watermark(space(), images(), logo(), norm=norm)
        assert_invisible(noise)
        assert noise.dtype == images().dtype and gap.shape == (len(images()),) and gap.max() < 1e-4
        rest[norm] = images() + noise - logo()
    taxi, euclid = ({norm: value.flatten(1).norm(p, 1) for norm, value in rest.items()} for p in (1, 2))
    assert (taxi["l1"] < taxi["l2"]).all() and (euclid["l2"] < euclid["l1"]).all()


def test_l1_mark_of_a_transparent_logo_stays_in_the_strokes() -> None:
    strokes = 1 - logo()
    shares = {}
    for norm in ("l1", "l2"):
        noise, _ = watermark(space(), images()[:2], images()[:2] * (1 - strokes), norm=norm)
        shares[norm] = ((noise * (strokes > 0)).square().sum() / noise.square().sum()).item()
    assert shares["l1"] > 0.95 and shares["l1"] > shares["l2"] + 0.1


@pytest.mark.parametrize("gradient", [False, True])
def test_the_original_solver_finds_no_better_point(gradient: bool) -> None:
    x, t = (patchify(batch[:1].double(), (8, 8))[0, 14] for batch in (images(), logo().expand_as(images())))
    for norm, order in (("l1", 1), ("l2", 2)):
        ours = patchify(watermark(space(), images()[:1].double(), logo(), norm=norm)[0], (8, 8))[0, 14]
        theirs = official_noise(space(), x, t, norm=norm, gradient=gradient)
        assert (x + ours - t).norm(order) <= (x + theirs - t).norm(order) * (1 + 1e-5)
        assert (theirs @ space().row_basis).abs().max() < 1e-9


def test_message_comes_back_blind_exact_and_only_under_its_key() -> None:
    assert_invisible(hidden().noise)
    marked = (images() + hidden().noise).clamp(0, 1)
    for arrived in (marked, perturbation.degraded(marked, "8 bits")):
        assert torch.equal(decode_message(space(), arrived, key=7, length=64), SECRET)
    for pixels, key in ((marked, 8), (images(), 7)):
        assert 0.4 < (decode_message(space(), pixels, key=key, length=64) == SECRET).double().mean() < 0.6


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_every_bit_has_its_margin_and_no_smaller_noise_gives_it(share: float) -> None:
    found = hidden(share)
    keys = message_keys(space(), 64, key=7, share=share)
    signs = 2.0 * SECRET - 1
    read = signs * ((images() + found.noise).double().flatten(1) @ keys.flatten(1).T)
    assert torch.allclose(read.amin(1), found.margin, atol=1e-5)
    assert (found.margin > 0.98 * MARGIN).all() and found.gap.median() < 1e-2 and (found.gap > -1e-4).all()
    host = signs * (images().double().flatten(1) @ keys.flatten(1).T)
    unboxed = (MARGIN - host).clamp_min(0).norm(dim=1)  # the optimum without the box, a lower bound
    assert (perturbation.norms(found.noise) >= unboxed * (1 - 1e-2)).all()


def test_keys_are_orthonormal_secret_and_in_the_nullspace() -> None:
    keys = message_keys(space(), 64, key=7, share=0.125)
    flat = keys.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(64, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(space().project(keys), keys, atol=1e-10)
    assert torch.equal(keys, message_keys(space(), 64, key=7, share=0.125))
    assert (flat @ message_keys(space(), 64, key=8, share=0.125).flatten(1).T).abs().max() < 0.3


def test_smooth_carriers_survive_jpeg_better() -> None:
    right = {}
    for share in (1.0, 0.25):
        marked = (images() + hidden(share).noise).clamp(0, 1)
        read = decode_message(space(), perturbation.degraded(marked, "JPEG 95"), key=7, length=64, share=share)
        right[share] = (read == SECRET).double().mean()
    assert right[0.25] > right[1.0] + 0.1


def test_an_image_without_room_is_reported_not_forced() -> None:
    found = encode_message(space(), torch.ones(1, 3, 48, 48), SECRET[:1], key=7)
    assert found.margin < 0 and found.noise.abs().max() < 1e-5 and found.noise.isfinite().all()
    noise, gap = watermark(space(), torch.ones(1, 3, 48, 48), logo(), norm="l1")
    assert (1 + noise).max() <= 1 and noise.isfinite().all() and gap.item() < 1e-3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"message": SECRET[:5]}, r"message has shape \(5, 64\)"),
        ({"message": SECRET.repeat(1, 55)}, "3520 bits does not fit.* 1 to 3456 bits"),
        ({"message": SECRET[:, :0]}, "length=0 must be"),
        ({"share": 0.01}, "64 bits does not fit.* 1 to 36 bits"),
        ({"share": 0.0}, r"share=0.0 must be a number in \(0, 1\]"),
        ({"key": -1}, "key=-1 must be a whole number"),
        ({"margin": 0.0}, "margin=0.0 must be a number in .0, inf."),
    ],
)
def test_bad_messages_and_options_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        encode_message(space(), images(), **{"message": SECRET, "key": 7, **options})


def test_bad_logos_norms_and_images_and_an_empty_nullspace_are_refused() -> None:
    for bad, complaint in ((logo()[:, :40], "logos are"), (2 * logo(), "logos span"), (logo() / 0, "NaN")):
        with pytest.raises(InputError, match=complaint):
            watermark(space(), images(), bad)
    with pytest.raises(InputError, match="norm 'L11' is unknown"):
        watermark(space(), images(), logo(), norm="L11")
    for call in (lambda x: watermark(space(), x, logo()), lambda x: decode_message(space(), x, key=7, length=64)):
        with pytest.raises(InputError, match="not normalised values"):
            call(images() * 3 - 1)
    empty = channel_nullspace(vit())  # 64 pixels a channel, 96 dimensions: nothing left
    for call in (lambda: watermark(empty, images(), logo()), lambda: message_keys(empty, 64, key=7)):
        with pytest.raises(InputError, match="is empty"):
            call()


def test_the_same_message_elsewhere_does_reach_the_model() -> None:
    """The control of the notebook: swap the nullspace and its complement."""
    rows = replace(space(), basis=space().row_basis, row_basis=space().basis)
    noise = encode_message(rows, images(), SECRET, key=7, margin=MARGIN).noise
    with torch.inference_mode():
        assert (vit()(images() + noise) - vit()(images())).abs().max() > 0.05
