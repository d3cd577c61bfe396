"""A visible logo, or a hidden message, in the exact nullspace: paper C, watermarking.

`watermark` superposes a logo (the problem of section 2.4 of its code, jointly over channels, whose per-channel basis is
empty wherever p*p <= d). `encode_message` hides bits by spread spectrum (Cox et al. 1997) with the host's interference
removed in advance (Malvar and Florencio 2003), here as a convex problem: the smallest noise in the nullspace that keeps
the image legal and gives every bit its margin. `decode_message` needs the model and the key, not the original image.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.fft import dctn
from scipy.ndimage import map_coordinates
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from nullpaper.errors import InputError, check_choice, check_count, check_number, check_seed
from nullpaper.models.inputs import check_images
from nullpaper.models.vit import patchify, unpatchify
from nullpaper.nullspace.box_qp import GAP_FLOOR
from nullpaper.nullspace.l1_lp import nearest_l1
from nullpaper.nullspace.patch import PatchNullspace

STEPS = 500  # of the dual ascent; an image without saturated pixels takes one
TOLERANCE = 3e-4  # of the margin: steps this short end it
LIMIT = 16.0  # price of a missing margin: what the box cannot hold is given up in part rather than forced
LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])  # JFIF, RGB to YCbCr


@dataclass(frozen=True)
class HiddenMessage:
    """``noise`` (B, C, H, W) and, per image (B,): the least ``margin`` of any bit, and the relative optimality ``gap``.

    A margin well below the one asked for says that this image has no room for it within [0, 1]; a negative one, that a
    bit is lost.
    """

    noise: Tensor
    margin: Tensor
    gap: Tensor


def draw_logo(size: tuple[int, int]) -> Tensor:
    """A slashed circle, the empty set, black on white: (3, H, W) in [0, 1]."""
    for side in size:
        check_count("size", side)
    height, width = (8 * side for side in size)  # drawn large, since Pillow's lines are not smoothed
    sheet = Image.new("L", (width, height), "white")
    pen, line = ImageDraw.Draw(sheet), min(size)
    pen.ellipse((0.14 * width, 0.14 * height, 0.86 * width, 0.86 * height), outline="black", width=line)
    pen.line((0.85 * width, 0.06 * height, 0.15 * width, 0.94 * height), fill="black", width=line)
    small = np.array(sheet.resize(size[::-1], Image.Resampling.BOX), dtype=np.float32) / 255
    return torch.from_numpy(small).expand(3, *size).clone()


def watermark(space: PatchNullspace, images: Tensor, logo: Tensor, *, norm: str = "l2") -> tuple[Tensor, Tensor]:
    """Noise v (B, C, H, W) in the nullspace that brings images + v, kept in [0, 1], as close to the logo as it can be.

    Args:
        logo: (C, H, W) for all images or one each (B, C, H, W), in [0, 1]; the images with a logo painted over them
            (``images.lerp(logo, opacity)``) for one with a transparent ground.
        norm: ``"l1"`` minimises sum |x + v - logo| as paper C does, ``"l2"`` the Euclidean distance.

    Returns:
        ``(noise, gap)``: in the images' dtype; the gap (B,) is (primal - dual) / primal, float64.

    Raises:
        InputError: an unknown norm, a logo of another shape or outside [0, 1], an empty nullspace, images as in
            `PatchNullspace.nearest`.
    """
    check_choice("norm", norm, ("l1", "l2"))
    _check_space(space)
    images = check_images(space, images)
    logos = check_images(space, logo[None] if logo.ndim == 3 else logo, what="logos")
    if len(logos) not in (1, len(images)):
        raise InputError(f"there are {len(logos)} logos for {len(images)} images: pass one, or one for each image.")
    targets = logos.to(images).expand(images.shape)
    if norm == "l2":
        return space.nearest(images, targets)
    noise, primal, dual = space.over_patches(nearest_l1, images, targets)
    return noise, (primal - dual).abs() / primal.clamp_min(GAP_FLOOR * images[0].numel())


def official_noise(space: PatchNullspace, patch: Tensor, logo: Tensor, *, norm: str, gradient: bool) -> Tensor:
    """Noise (D,) for one patch (D,) and its part of the logo (D,) by the original's solver, to compare with.

    SciPy's SLSQP over the coefficients of the basis, from all ones, at most 5000 iterations, in pixel units. The
    original left the gradient to finite differences; ``gradient`` gives SLSQP the exact one (a subgradient for L1).
    """
    check_choice("norm", norm, ("l1", "l2"))
    basis, x, difference = (value.cpu().double().numpy() for value in (space.basis, patch, logo.to(patch) - patch))

    def objective(a: np.ndarray) -> float:
        rest = difference - basis @ a
        return np.abs(rest).sum() if norm == "l1" else np.square(rest).sum()

    def slope(a: np.ndarray) -> np.ndarray:
        rest = difference - basis @ a
        return -basis.T @ (np.sign(rest) if norm == "l1" else 2 * rest)

    legal = LinearConstraint(basis, -x, 1 - x)
    options = dict(method="SLSQP", constraints=[legal], jac=slope if gradient else None, options={"maxiter": 5000})
    return torch.from_numpy(basis @ minimize(objective, np.ones(space.dim), **options).x)


def encode_message(
    space: PatchNullspace,
    images: Tensor,
    message: Tensor,
    *,
    key: int,
    margin: float = 0.1,
    share: float = 1.0,
) -> HiddenMessage:
    """The smallest noise v in the nullspace with x + v in [0, 1] and m_b <x + v, k_b> >= margin, all bits m_b = +-1.

    The keys k_b are those of `message_keys`. Where the box does not bind, v is the sum of max(0, margin - m_b <x, k_b>)
    m_b k_b: a bit that the image happens to say already costs nothing. A margin that the box cannot hold is missed at
    the price `LIMIT` |miss|, so the problem solved minimises |v|^2 / 2 + LIMIT sum_b max(0, margin - m_b <x + v, k_b>).

    Args:
        message: bits (B, L), bool.
        key: the secret, any integer from 0 to 2^63 - 1; a seed, not cryptography.
        margin: in pixel units, as unit vectors measure them: noise of sd s per pixel moves <x, k_b> by s.
        share: of the nullspace that carries bits, the part that JPEG rounds least; 1 for all of it.

    Raises:
        InputError: a message of another shape or type, a margin out of range, images that `check_images` refuses, and
            as `message_keys`.
    """
    check_number("margin", margin, 0, math.inf, why=", in pixel units")
    images = check_images(space, images)
    if message.ndim != 2 or len(message) != len(images) or message.dtype != torch.bool:
        raise InputError(f"message has shape {tuple(message.shape)}; pass one row of bools for each image.")
    keys = message_keys(space, message.shape[1], key=key, share=share).to(images.device).flatten(1)
    signs = 2.0 * message.to(images.device) - 1
    force = _multipliers(space, images, keys, signs, margin)
    targets = images.double() + ((signs * force) @ keys).view(images.shape)
    noise, _ = space.nearest(images.double(), targets)
    slack = margin - signs * ((images.double() + noise).flatten(1) @ keys.T)
    primal = noise.flatten(1).square().sum(1) / 2 + LIMIT * slack.clamp_min(0).sum(1)
    dual = primal - (LIMIT * slack.clamp_min(0) - force * slack).sum(1)
    gap = (primal - dual) / primal.clamp_min(GAP_FLOOR**2 * images[0].numel())
    return HiddenMessage(noise.to(images.dtype), margin - slack.amax(1), gap)


def decode_message(space: PatchNullspace, images: Tensor, *, key: int, length: int, share: float = 1.0) -> Tensor:
    """Bits (B, length), bool, that images (B, C, H, W) carry under this key: whether <x, k_b> > 0. No original needed.

    Raises:
        InputError: images that `check_images` refuses, and as `message_keys`.
    """
    images = check_images(space, images)
    keys = message_keys(space, length, key=key, share=share).to(images.device)
    return images.double().flatten(1) @ keys.flatten(1).T > 0


def message_keys(space: PatchNullspace, length: int, *, key: int, share: float = 1.0) -> Tensor:
    """``length`` orthonormal directions (length, C, H, W), float64, random within a share of the image's nullspace.

    Raises:
        InputError: a length that does not fit, a bad key or share, an empty nullspace.
    """
    _check_space(space)
    key = check_seed(key, "key")
    check_number("share", share, 0, 1, "(]")
    length = check_count("length", length)
    carriers = _carriers(space, share)
    bits = space.image_dim // space.dim * carriers.shape[1]
    if length > bits:
        raise InputError(
            f"a message of {length} bits does not fit: share {share:g} of the nullspace of {space.name} holds 1 to "
            f"{bits} bits an image."
        )
    draws = torch.randn(bits, length, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
    weights = torch.linalg.qr(draws).Q.T.reshape(length, -1, carriers.shape[1])
    return unpatchify(weights @ carriers.T, space.image_size, space.patch_size)


def _multipliers(space: PatchNullspace, images: Tensor, keys: Tensor, signs: Tensor, margin: float) -> Tensor:
    """Multipliers (B, L) of the margins: accelerated projected ascent on the dual, images leaving when solved.

    With u in the row space, z = clip(x + sum_b f_b m_b k_b - u) and gradients P_row (z - x) and margin - m_b <z, k_b>.
    Keys and row space are orthonormal, so the dual's gradient is 1-Lipschitz: steps of length 1 are safe.
    """
    row = space.row_basis.to(images.device, torch.float32)
    lines = patchify(keys.float().view(-1, *images.shape[1:]), space.patch_size).flatten(1)
    x, signs = patchify(images.float(), space.patch_size), signs.float()
    result, left = torch.zeros_like(signs), torch.arange(len(images), device=images.device)
    state = [torch.zeros_like(signs), torch.zeros_like(x)]
    ahead = state
    for step in range(1, STEPS + 1):
        force, pull = ahead
        z = (x + ((signs * force) @ lines).view(x.shape) - pull).clamp(0, 1)
        missing, outside = margin - signs * (z.flatten(1) @ lines.T), ((z - x) @ row) @ row.T
        new = [(force + missing).clamp(0, LIMIT), pull + outside]
        moved = torch.cat([new[0] - force, outside.flatten(1)], 1).abs().amax(1)
        result[left] = new[0]
        keep = (moved > TOLERANCE * margin).nonzero()[:, 0]
        if len(keep) == 0:
            break
        ahead = [(value + (step - 1) / (step + 2) * (value - old))[keep] for value, old in zip(new, state, strict=True)]
        state, left, x, signs = [value[keep] for value in new], left[keep], x[keep], signs[keep]
    return result.double()


def _carriers(space: PatchNullspace, share: float) -> Tensor:
    """Orthonormal directions (C*p*p, r) of the nullspace, on the CPU: the ``share`` whose JPEG steps are smallest."""
    basis, step = space.basis.cpu(), torch.from_numpy(_jpeg_steps(space.patch_size))
    count = max(1, round(share * space.dim))
    return basis @ torch.linalg.eigh(basis.T @ step @ basis).eigenvectors[:, :count]


def _jpeg_steps(patch_size: tuple[int, int]) -> np.ndarray:
    """A quadratic form (3*p*p, 3*p*p): squared DCT coefficients, each weighted by its squared step at quality 50.

    The DCT is that of a patch, its steps those of JPEG's 8 x 8 tables at the same spatial frequency. Chroma is stored
    at half the resolution, so that it has twice the frequency and is lost beyond the table.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=50)
    luma, chroma = (np.reshape(Image.open(buffer).quantization[i], (8, 8)).astype(float) for i in (0, 1))
    frequency = np.stack(np.meshgrid(*(np.arange(side) * 8 / side for side in patch_size), indexing="ij"))
    luma = map_coordinates(luma, frequency, order=1, mode="nearest").ravel()
    chroma = map_coordinates(chroma, 2 * frequency, order=1, mode="constant", cval=255).ravel()
    size = math.prod(patch_size)
    dct = dctn(np.eye(size).reshape(size, *patch_size), axes=(1, 2), norm="ortho").reshape(size, size).T
    transform = np.kron(LUMA_CHROMA, dct)
    return transform.T * np.concatenate([luma, chroma, chroma]) ** 2 @ transform


def _check_space(space: PatchNullspace) -> None:
    if space.dim == 0:
        raise InputError(f"the nullspace of {space.name} through the {space.through} is empty: nothing hides there.")
