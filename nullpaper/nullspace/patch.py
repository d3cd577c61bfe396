"""The exact nullspace of a ViT's patch embedding, in pixel units: paper A section 3, paper C section 3.

The patch embedding is linear and the first layer, so what it ignores the whole network ignores. Every patch may carry
its own combination of the basis, jointly over channels. `through="encoder"` takes the nullspace of P W instead of W,
P = I - 11^T/d: what a LayerNorm encoder ignores on top (see `layernorm.py`), one dimension a patch where 1 lies in the
column space of W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nullpaper.errors import InputError, check_choice, check_count, check_number
from nullpaper.models.inputs import check_images
from nullpaper.models.vit import ViT, check_vit, patchify, unpatchify
from nullpaper.nullspace.box_qp import GAP_FLOOR, Patches, largest_noise, norm_bounds, project, row_chunks
from nullpaper.nullspace.layernorm import shift_invariance

THROUGH = ("embedding", "encoder")

Solver = Callable[[Patches], tuple[Tensor, ...]]


class LargestCertificate(NamedTuple):
    """What is known of a noise of B images, (B,) each: see `PatchNullspace.certify_largest`."""

    norm: Tensor
    upper_bound: Tensor
    stationarity: Tensor


@dataclass(frozen=True, repr=False)
class PatchNullspace:
    """Nullspace of one patch: ``basis`` (C*p*p, k) and its complement ``row_basis`` (C*p*p, C*p*p - k), orthonormal.

    Both are float64, in pixel units, channel-major like `patchify`. ``singular_values`` are descending (per channel,
    (C, n), for `channel_nullspace`).
    """

    basis: Tensor
    row_basis: Tensor
    singular_values: Tensor
    through: str
    name: str
    channels: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]

    def __repr__(self) -> str:
        place = f"of {self.name} through the {self.through}"
        return (
            f"PatchNullspace({self.dim} of {len(self.basis)} dimensions a patch, {self.image_dim:,} an image, {place})"
        )

    @property
    def dim(self) -> int:
        """Dimensions a patch."""
        return self.basis.shape[1]

    @property
    def image_dim(self) -> int:
        """Dimensions an image: ``dim`` times the number of patches."""
        return self.dim * math.prod(self.image_size) // math.prod(self.patch_size)

    def project(self, images: Tensor) -> Tensor:
        """Orthogonal projection of image-shaped tensors (B, C, H, W), of any range, on the nullspace of all patches.

        Raises:
            InputError: another shape, no floats, or values that are not finite.
        """
        images = check_images(self, images, box=False)
        basis = self.basis.to(images.device)
        return self._image(patchify(images.double(), self.patch_size) @ basis @ basis.T, images.dtype)

    def sample(
        self, images_shape: Sequence[int], *, norm: float | Tensor = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Random noise (B, C, H, W), float32, isotropic in the nullspace, no box; ``norm`` is its L2 norm, one or (B,).

        Raises:
            InputError: another shape, an empty nullspace, a norm that is negative or not finite.
        """
        self._check_shape(images_shape, "images_shape")
        if not isinstance(norm, Tensor):
            check_number("norm", norm, 0, math.inf, "[)")
        norm = torch.as_tensor(norm, dtype=torch.float64)
        if norm.shape not in ((), (images_shape[0],)) or not (norm.isfinite() & (norm >= 0)).all():
            raise InputError("norm must be finite and not negative, one number or one for each image.")
        if self.dim == 0:
            raise InputError(f"the nullspace of {self.name} through the {self.through} is empty: nothing to sample.")
        shape = (images_shape[0], self.image_dim // self.dim, self.dim)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.basis.device)
        noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1) * norm.to(noise.device).view(-1, 1, 1)
        return self._image(noise @ self.basis.T, torch.float32)

    def nearest(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Noise v (B, C, H, W) that minimises |images + v - targets| with v in the nullspace, images + v in [0, 1].

        Returns:
            ``(noise, gap)``: noise in the images' dtype and on their device, images + noise in [0, 1] to the last bit
            and v in the nullspace to 2e-7 a pixel (`project` makes that exact, and leaves the box by as much), and the
            relative optimality gap (B,) of each image, float64: ``|primal - dual| / max(primal, floor)`` with the
            objective 1/2 |x + v - t|^2 and a dual lower bound, both summed over the patches; the floor is the objective
            of an rms distance of 1e-6 per pixel. The gap is 0 by closed form if the nullspace has dimension 0, 1 or
            C*p*p a patch.

        Raises:
            InputError: images as in `check_images`, targets of another shape or not finite.
        """
        images, targets = self._pair(images, targets, "targets")
        noise, primal, dual = self.over_patches(project, images, targets)
        return noise, (primal - dual).abs() / primal.clamp_min(GAP_FLOOR**2 * images[0].numel() / 2)

    def largest(self, images: Tensor, *, steps: int = 60) -> Tensor:
        """Noise (B, C, H, W) of large L2 norm in the nullspace, with images + noise in [0, 1] to the last bit.

        Maximising a norm over a polytope is NP-hard. The result is the global maximum if the nullspace has dimension 0,
        1 or C*p*p a patch. Otherwise it approaches a local one, from the corner of [0, 1] that is farthest from the
        patch: by alternating directions, then a projection on the feasible set and one step v <- projection of s v,
        s > 1, under which the norm never falls (`box_qp.ascend`). `certify_largest` says how far it is from stationary
        and from a global upper bound. One core of an AMD EPYC with AVX-512 takes 9 ms an image of 48 px with the
        shipped net, 0.32 s one of 224 px with a ViT-Ti/16.

        Args:
            steps: inexact steps before the two exact ones; more bring the result closer to stationary.

        Raises:
            InputError: images as in `check_images`, or negative ``steps``.
        """
        images = check_images(self, images)
        steps = check_count("steps", steps, least=0)
        corner = (images < 0.5).double()
        (noise,) = self.over_patches(lambda patches: (largest_noise(patches, steps),), images, corner)
        return noise

    def certify_largest(self, images: Tensor, noise: Tensor) -> LargestCertificate:
        """How good ``noise`` (B, C, H, W) is as a maximiser of the L2 norm, per image (B,).

        ``upper_bound`` on the norm of any feasible noise v, with l = -x and h = 1 - x: the farthest corner of
        [0, 1], or the root of |v|^2 <= |B^T(l + h)||v| - l.h, the sum of (v - l)(v - h) <= 0 over pixels; the smaller.
        ``stationarity`` bounds max v.q / |noise|^2 - 1 over feasible q, v the noise: 0 at a first-order local maximum.

        Raises:
            InputError: as `nearest`.
        """
        images, noise = self._pair(images, noise, "noise")
        linear, corner, span, product, square = self.over_patches(norm_bounds, images, noise)
        upper = torch.minimum(corner.sqrt(), (span.sqrt() + (span + 4 * product).sqrt()) / 2)
        stationarity = (linear / square.clamp_min(torch.finfo(torch.float64).tiny) - 1).clamp_min(0)
        return LargestCertificate(square.sqrt(), upper, stationarity)

    def over_patches(self, solve: Solver, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Run a solver of `box_qp` or `l1_lp` over the patches of all images, in chunks.

        Noises (b, D) become noise (B, C, H, W) in the images' dtype with images + noise in [0, 1] to the last bit,
        numbers (b,) their sums over patches, (B,).
        """
        null, row = self.basis.to(images.device), self.row_basis.to(images.device)
        x, t = (patchify(batch, self.patch_size).flatten(0, 1).double() for batch in (images, targets))
        chunks = row_chunks(len(x), x.shape[1], images.device)
        parts = [solve(Patches(x[chunk], t[chunk], null, row)) for chunk in chunks]
        joined = (torch.cat(values).unflatten(0, (len(images), -1)) for values in zip(*parts, strict=True))
        return [
            value.sum(1) if value.ndim == 2 else _legal(images, self._image(value, images.dtype)) for value in joined
        ]

    def _pair(self, images: Tensor, other: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Images in the box, and targets or noise of the same shape, on the images' device."""
        images, other = check_images(self, images), check_images(self, other, what=what, box=False)
        if other.shape != images.shape:
            raise InputError(f"{what} have shape {tuple(other.shape)}, images {tuple(images.shape)}; match them.")
        return images, other.to(images.device)

    def _image(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        return unpatchify(patches, self.image_size, self.patch_size).to(dtype)

    def _check_shape(self, shape: Sequence[int], what: str) -> None:
        expected = (self.channels, *self.image_size)
        if len(shape) != 4 or tuple(shape[1:]) != expected:
            raise InputError(f"{what} has shape {tuple(shape)}, but {self.name} needs (B, {str(expected)[1:]}.")


def patch_nullspace(vit: ViT, *, through: str = "embedding", rtol: float | None = None) -> PatchNullspace:
    """Joint nullspace over channels of the patch embedding, or of the embedding as a LayerNorm encoder reads it.

    Args:
        through: ``"embedding"`` for the nullspace of W, ``"encoder"`` for that of P W with P = I - 11^T/d.
        rtol: a singular value of at most ``rtol`` times the largest counts as zero. The default, eps/2 * sqrt(min(d,
            C*p*p)), is Weyl's bound on how far rounding to the weights' dtype moves a singular value, so nothing above
            it can be a rounded zero. It is tighter than NumPy's eps * max(d, C*p*p), which calls 9e-5 zero for a
            768 x 768 float32 matrix: such directions are not invisible. Half-precision weights are exact numbers here,
            cut as float32 ones.

    Raises:
        InputError: no `ViT`, unknown ``through``, an ``rtol`` outside [0, 1), or an encoder that does not ignore the
            shift.
    """
    check_vit(vit)
    check_choice("through", through, THROUGH)
    if rtol is not None:
        check_number("rtol", rtol, 0, 1, "[)")
    matrix = vit.patch_matrix.cpu()  # a nullspace has many bases: every device gets the same, as keys depend on it
    if through == "encoder":
        invariance = shift_invariance(vit)
        if not invariance.holds:
            raise InputError(f"the encoder of {vit.name} does not ignore a shift of its tokens: {invariance.reason}.")
        matrix = matrix - matrix.mean(0)
    parts = _split(matrix, _weyl_bound(vit, matrix) if rtol is None else rtol)
    parts = (part.to(vit.mean.device) for part in parts)
    return PatchNullspace(*parts, through, vit.name, vit.channels, vit.image_size, vit.patch_size)


def channel_nullspace(vit: ViT) -> PatchNullspace:
    """The official code's per-channel nullspace, a control: block-diagonal, and empty wherever p*p <= d."""
    check_vit(vit)
    channels = vit.patch_matrix.cpu().unflatten(1, (vit.channels, -1)).transpose(0, 1)
    parts = zip(*(_split(matrix, _weyl_bound(vit, matrix)) for matrix in channels), strict=True)
    bases, complements, values = parts
    joined = torch.block_diag(*bases), torch.block_diag(*complements), torch.stack(values)
    parts = (part.to(vit.mean.device) for part in joined)
    return PatchNullspace(*parts, "embedding", vit.name, vit.channels, vit.image_size, vit.patch_size)


def _weyl_bound(vit: ViT, matrix: Tensor) -> float:
    dtype = vit.net.patch_embed.proj.weight.dtype
    return min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2 * math.sqrt(min(matrix.shape))


def _split(matrix: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal bases of the nullspace and the row space, and the singular values."""
    _, values, right = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((values > rtol * values[0]).sum())
    return right[rank:].T.contiguous(), right[:rank].T.contiguous(), values


def _legal(images: Tensor, noise: Tensor) -> Tensor:
    """``noise`` with images + noise in [0, 1] to the last bit; it changes only where the sum is outside.

    Rounding is monotone, and 1 plus half the distance to the next number rounds to 1, so that x + (y - x) stays in the
    box for all x and y in it, in floating point too.
    """
    noisy = images + noise
    legal = noisy.clamp(0, 1)
    return torch.where(legal == noisy, noise, legal - images)
