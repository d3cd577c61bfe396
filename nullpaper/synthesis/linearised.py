"""The encoder to first order: which small token noises do the logits ignore on average over images?

With J the Jacobian of the logits with respect to the patch tokens, E ||z' - z||^2 = v^T M v + O(|v|^3), M = E[J^T J]
(a Gauss-Newton matrix). Directions of small eigenvalue are an approximate nullspace in closed form, where papers A and
C learn one noise at a time by gradient descent; its noises are the start for those that have to reach further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nullpaper.errors import check_count, check_number, check_seed
from nullpaper.models.gradients import fast_gradients
from nullpaper.models.vit import ViT
from nullpaper.synthesis.controls import centred
from nullpaper.synthesis.influence import Batches, Pool, logits_at, read_pool

RIDGE = 0.01  # rho in units of the mean eigenvalue
GAMMA = 8  # the largest power of M, either way: float32 holds no more


@dataclass(frozen=True)
class Linearised:
    """Spectrum of M on token-centred noise: ``eigenvalues`` (r,) descending, ``eigenvectors`` (N*d, r) orthonormal.

    ``r`` is the smaller of the dimension N (d - 1) and the number of images; directions beyond it were not sampled.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    dim: int

    def filtered(self, noise: Tensor) -> Tensor:
        """Noise (1, N, d) turned towards what the logits ignore, its norm kept: multiplied by (M + rho I)^-2."""
        values, vectors = self.eigenvalues.to(noise), self.eigenvectors.to(noise)
        rho = RIDGE * values.sum() / self.dim
        kept = 1 - (rho / (values + rho)) ** 2
        flat = centred(noise).flatten()
        turned = flat - vectors @ (kept * (vectors.T @ flat))
        return turned.view_as(noise) / turned.norm() * noise.norm()

    def powered(self, noise: Tensor, gamma: float) -> Tensor:
        """White noise (1, N, d) coloured to the covariance (M + rho I)^gamma, in units of rho^gamma, and centred.

        So gamma = -1 draws what the logits ignore, 0 leaves the noise as it is, and 1 draws what moves them most.
        Directions that no image sampled have eigenvalue 0, and so rho.

        Raises:
            InputError: a gamma beyond `GAMMA`.
        """
        check_number("gamma", gamma, -GAMMA, GAMMA, "[]")
        values, vectors = self.eigenvalues.to(noise), self.eigenvectors.to(noise)
        rho = RIDGE * values.sum() / self.dim
        gain = (1 + values / rho) ** (gamma / 2) - 1
        flat = centred(noise).flatten()
        return (flat + vectors @ (gain * (vectors.T @ flat))).view_as(noise)

    def without(self, noise: Tensor, count: int) -> Tensor:
        """Noise (1, N, d) without its components along the ``count`` directions that move the logits most.

        Raises:
            InputError: a count below 0 or above the number of directions.
        """
        count = check_count("count", count, 0, self.eigenvectors.shape[1])
        seen = self.eigenvectors[:, :count].to(noise)
        flat = centred(noise).flatten()
        return (flat - seen @ (seen.T @ flat)).view_as(noise)


@torch.inference_mode(False)
def linearise(vit: ViT, batches: Batches | Pool, *, seed: int = 0, measure: str = "probabilities") -> Linearised:
    """Estimate M from ``batches`` and diagonalise it.

    One random sign vector s an image stands for its logits, as E[J^T s s^T J] = E[J^T J]: a backward pass an image
    instead of one a class.

    Args:
        vit: in evaluation mode; its flags and gradients stay as they are.
        measure: "features" has what the head reads in place of the logits, as in `influence.read_pool`.
        batches: images, or a pool from `influence.read_pool`; more than N (d - 1) of them sample every direction.

    Raises:
        InputError: as `influence.read_pool`, or a negative seed.
        FloatingPointError: gradients that are not finite.
    """
    seed = check_seed(seed)
    pool = read_pool(vit, batches, measure=measure)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([_slopes(vit, pool, part, generator) for part, _ in pool.parts()])
    if not rows.isfinite().all():
        raise FloatingPointError("the gradients of the logits are not finite; load other weights.")
    rows = rows / math.sqrt(len(rows))
    dim = pool.inputs.shape[1] * (pool.inputs.shape[2] - 1)
    wide = rows.shape[0] < rows.shape[1]  # the smaller of the two Gram matrices has the same non-zero spectrum
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    values, vectors = values.flip(0)[:dim].clamp_min(0), vectors.flip(1)[:, :dim]
    if wide:
        vectors = torch.linalg.qr(rows.T @ vectors).Q  # the columns are orthogonal up to rounding: only scaled
    return Linearised(values, vectors.contiguous(), dim)


def _slopes(vit: ViT, pool: Pool, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """J^T s of each image (B, N*d), token-centred, s random signs."""
    with torch.enable_grad(), fast_gradients(vit, exact=True):  # a spectrum is reported
        tokens = tokens.detach().requires_grad_()
        logits = logits_at(vit, pool, tokens)
        signs = torch.randint(0, 2, logits.shape, generator=generator).to(logits) * 2 - 1
        (slopes,) = torch.autograd.grad((logits * signs).sum(), tokens)
    return centred(slopes).flatten(1)
