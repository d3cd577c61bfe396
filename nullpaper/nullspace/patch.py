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

import torch
from torch import Tensor
from tqdm import tqdm

from nullpaper.errors import InputError, check_count, nearest
from nullpaper.models.vit import ViT, check_images, patchify, unpatchify
from nullpaper.nullspace.box_qp import Patches, largest_noise, norm_bounds, project, row_chunks
from nullpaper.nullspace.layernorm import shift_invariance

THROUGH = ("embedding", "encoder")
GAP_FLOOR = 1e-6  # a distance to the target below this, per pixel (rms), counts as none

Solver = Callable[[Patches], tuple[Tensor, ...]]


@dataclass(frozen=True)
class LargestCertificate:
    """What is known of a noise (B images) as a maximiser of |v|: see `PatchNullspace.certify_largest`."""

    norm: Tensor
    upper_bound: Tensor
    stationarity: Tensor
    exact: bool


@dataclass(frozen=True)
class PatchNullspace:
    """Nullspace of one patch: ``basis`` (C*p*p, k) and its complement ``row_basis`` (C*p*p, C*p*p - k), orthonormal.

    Both are float64, in pixel units, channel-major like `patchify`. ``singular_values`` are descending (per channel,
    (C, n), for `channel_nullspace`); a value of at most ``rtol`` times the largest counts as zero.
    """

    basis: Tensor
    row_basis: Tensor
    singular_values: Tensor
    rtol: float
    through: str
    name: str
    channels: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]

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
        self._check_shape(tuple(images.shape), "images")
        _check_finite(images, "images")
        basis = self.basis.to(images.device)
        return self._image(patchify(images.double(), self.patch_size) @ basis @ basis.T, images.dtype)

    def sample(
        self,
        images_shape: Sequence[int],
        *,
        norm: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Random noise (B, C, H, W), isotropic in the nullspace, no box; ``norm`` is its L2 norm, one or (B,).

        Raises:
            InputError: another shape, an empty nullspace, a norm that is negative or not finite.
        """
        self._check_shape(tuple(images_shape), "images_shape")
        norm = torch.as_tensor(norm, dtype=torch.float64).cpu()
        if norm.ndim > 1 or (norm.ndim == 1 and len(norm) != images_shape[0]):
            raise InputError(f"norm has shape {tuple(norm.shape)}; pass a number or one norm per image.")
        if not (norm.isfinite().all() and (norm >= 0).all()):
            raise InputError("norm must be finite and not negative.")
        if self.dim == 0:
            raise InputError(f"the nullspace of {self.name} through the {self.through} is empty: nothing to sample.")
        device = generator.device if generator is not None else "cpu"
        patches = self.image_dim // self.dim
        noise = torch.randn(images_shape[0], patches, self.dim, generator=generator, dtype=torch.float64, device=device)
        noise = noise.to(self.basis.device)
        noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1) * norm.to(noise.device).view(-1, 1, 1)
        return self._image(noise @ self.basis.T, dtype)

    def nearest(self, images: Tensor, targets: Tensor, *, progress: bool = False) -> tuple[Tensor, Tensor]:
        """Noise v (B, C, H, W) that minimises |images + v - targets| with v in the nullspace, images + v in [0, 1].

        Returns:
            ``(noise, gap)``: noise in the images' dtype and on their device ([0, 1] kept to 1e-6, membership to that
            dtype's precision), and the relative optimality gap (B,) of each image, float64:
            ``|primal - dual| / max(primal, floor)`` with the objective 1/2 |x + v - t|^2 and a dual lower bound, both
            summed over the patches; the floor is the objective of an rms distance of 1e-6 per pixel. The gap is
            0 by closed form if the nullspace has dimension 0, 1 or C*p*p a patch.

        Raises:
            InputError: images outside [0, 1], another shape, or NaN.
        """
        check_images(images, self.channels, self.image_size, self.name)
        if targets.shape != images.shape:
            raise InputError(f"targets have shape {tuple(targets.shape)}, images {tuple(images.shape)}; match them.")
        _check_finite(targets, "targets")
        noise, primal, dual = self._over_patches(project, images, targets.to(images.device), progress)
        primal, dual = (value.view(len(images), -1).sum(1) for value in (primal, dual))
        floor = GAP_FLOOR**2 * images[0].numel() / 2
        return self._image(noise, images.dtype), (primal - dual).abs() / primal.clamp_min(floor)

    def largest(self, images: Tensor, *, steps: int = 15, progress: bool = False) -> Tensor:
        """Noise (B, C, H, W) of large L2 norm in the nullspace, with images + noise in [0, 1].

        Maximising a norm over a polytope is NP-hard. The result is the global maximum if the nullspace has dimension 0,
        1 or C*p*p a patch. Otherwise it approaches a local one: a fixed point of v <- projection of 3 v on the feasible
        set (`box_qp.ascend` proves that the norm never falls), started from the feasible point nearest to the corner of
        [0, 1] that is farthest from the patch. `certify_largest` says how far it is from stationary and from a global
        upper bound.

        Args:
            steps: inexact steps before the two exact ones; more bring the result closer to stationary.

        Raises:
            InputError: images outside [0, 1], another shape, NaN, or negative ``steps``.
        """
        check_images(images, self.channels, self.image_size, self.name)
        check_count("steps", steps, least=0)
        corner = (images < 0.5).double()
        (noise,) = self._over_patches(lambda patches: (largest_noise(patches, steps),), images, corner, progress)
        return self._image(noise, images.dtype)

    def certify_largest(self, images: Tensor, noise: Tensor) -> LargestCertificate:
        """How good ``noise`` (B, C, H, W) is as a maximiser of the L2 norm, per image (B,).

        ``upper_bound`` on the norm of any feasible noise v, with l = -x and h = 1 - x: the farthest corner of
        [0, 1], or the root of |v|^2 <= |B^T(l + h)||v| - l.h, the sum of (v - l)(v - h) <= 0 over pixels; the smaller.
        ``stationarity`` bounds max v.q / |noise|^2 - 1 over feasible q, v the noise: 0 at a first-order local maximum.
        ``exact``: a closed form exists, so that `largest` returns the global maximum.

        Raises:
            InputError: as `largest`.
        """
        check_images(images, self.channels, self.image_size, self.name)
        self._check_shape(tuple(noise.shape), "noise")
        _check_finite(noise, "noise")
        sums = self._over_patches(norm_bounds, images, noise.to(images.device), False)
        linear, corner, span, product, square = (value.view(len(images), -1).sum(1) for value in sums)
        upper = torch.minimum(corner.sqrt(), (span.sqrt() + (span + 4 * product).sqrt()) / 2)
        stationarity = (linear / square.clamp_min(torch.finfo(torch.float64).tiny) - 1).clamp_min(0)
        stationarity = torch.where(square > 0, stationarity, torch.where(linear > GAP_FLOOR, torch.inf, 0.0))
        exact = self.dim <= 1 or self.row_basis.shape[1] == 0
        return LargestCertificate(square.sqrt(), upper, stationarity, exact)

    def _over_patches(self, solve: Solver, images: Tensor, targets: Tensor, progress: bool) -> list[Tensor]:
        """Run ``solve`` over chunks of patches of all images; outputs (B, N, D) for noises, (B*N,) for numbers."""
        null, row = self.basis.to(images.device), self.row_basis.to(images.device)
        x = patchify(images, self.patch_size).flatten(0, 1)
        t = patchify(targets, self.patch_size).flatten(0, 1)
        chunks = list(row_chunks(len(x), x.shape[1], images.device))
        parts = [
            solve(Patches(x[part].double(), t[part].double(), null, row))
            for part in tqdm(chunks, "patches", disable=not progress)
        ]
        joined = (torch.cat(values) for values in zip(*parts, strict=True))
        return [value.view(len(images), -1, value.shape[1]) if value.ndim == 2 else value for value in joined]

    def _image(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        return unpatchify(patches, self.image_size, self.patch_size).to(dtype)

    def _check_shape(self, shape: tuple[int, ...], what: str) -> None:
        expected = (self.channels, *self.image_size)
        if len(shape) != 4 or shape[1:] != expected:
            raise InputError(f"{what} has shape {shape}, but {self.name} needs (B, {', '.join(map(str, expected))}).")


def patch_nullspace(vit: ViT, *, through: str = "embedding", rtol: float | None = None) -> PatchNullspace:
    """Joint nullspace over channels of the patch embedding, or of the embedding as a LayerNorm encoder reads it.

    Args:
        through: ``"embedding"`` for the nullspace of W, ``"encoder"`` for that of P W with P = I - 11^T/d.
        rtol: relative cut on singular values. The default, eps/2 * sqrt(min(d, C*p*p)), is Weyl's bound on how far
            rounding to the weights' dtype moves a singular value, so nothing above it can be a rounded zero. It is
            tighter than NumPy's eps * max(d, C*p*p), which calls 9e-5 zero for a 768 x 768 float32 matrix: such
            directions are not invisible. Half-precision weights are exact numbers here, cut as float32 ones.

    Raises:
        InputError: unknown ``through``, an ``rtol`` outside [0, 1), or an encoder that does not ignore the shift.
    """
    if through not in THROUGH:
        raise InputError(f"through={through!r} is unknown; pass one of {THROUGH}.{nearest(str(through), THROUGH)}")
    if through == "encoder":
        invariance = shift_invariance(vit)
        if not invariance.holds:
            raise InputError(f"the encoder of {vit.name} does not ignore a shift of its tokens: {invariance.reason}.")
    matrix = _pixel_matrix(vit)
    if through == "encoder":
        matrix = matrix - matrix.mean(0)
    rtol = _cut(vit, matrix.shape, rtol)
    rows, null, values = _split(matrix, rtol)
    return PatchNullspace(null, rows, values, rtol, through, *_shape(vit))


def channel_nullspace(vit: ViT, *, rtol: float | None = None) -> PatchNullspace:
    """The official code's per-channel nullspace, a control: block-diagonal, and empty wherever p*p <= d."""
    channels = _pixel_matrix(vit).unflatten(1, (vit.channels, -1)).transpose(0, 1)
    rtol = _cut(vit, channels.shape[1:], rtol)
    rows, null, values = zip(*(_split(matrix, rtol) for matrix in channels), strict=True)
    basis, complement = torch.block_diag(*null), torch.block_diag(*rows)
    return PatchNullspace(basis, complement, torch.stack(values), rtol, "embedding", *_shape(vit))


def _shape(vit: ViT) -> tuple[str, int, tuple[int, int], tuple[int, int]]:
    return vit.name, vit.channels, vit.image_size, vit.patch_size


def _pixel_matrix(vit: ViT) -> Tensor:
    matrix = vit.patch_matrix
    if not matrix.isfinite().all():
        raise InputError(f"the patch embedding of {vit.name} holds NaN or infinity; load other weights.")
    return matrix


def _cut(vit: ViT, shape: Sequence[int], rtol: float | None) -> float:
    if rtol is None:
        dtype = vit.net.patch_embed.proj.weight.dtype
        eps = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        return eps / 2 * math.sqrt(min(shape))
    if not 0 <= rtol < 1:
        raise InputError(f"rtol={rtol} must lie in [0, 1).")
    return float(rtol)


def _split(matrix: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal bases of the row space and the nullspace, and the singular values."""
    _, values, right = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((values > rtol * values[0]).sum())
    return right[:rank].T.contiguous(), right[rank:].T.contiguous(), values


def _check_finite(tensor: Tensor, what: str) -> None:
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise InputError(f"{what} must be floats without NaN or infinity; convert or clean them first.")
