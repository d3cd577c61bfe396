"""Paper C's watermark, the L1 problem that its authors' code gives to SLSQP, exactly: a linear programme a patch.

For one patch x (D,), a target t in [0, 1] and the nullspace with complement R (D, r), the problem is

    minimise |y - t|_1   with   R^T (y - x) = 0   and   0 <= y <= 1,        v = y - x.

With y = t + p - q it is a linear programme in 0 <= p <= 1 - t and 0 <= q <= t. Any w in range(R) bounds its optimum
from below by the sum over pixels of min(w t, t, (1 - t) + w) - w x: the minimum over y in the box is at a kink of
|y - t|.

Solver, chosen by measurement (CIFAR-10 patches at 48 px, a bright logo, CPU time a patch on one core): HiGHS 37 ms
(simplex) or 50 ms (interior point); ADMM in float32 0.9 ms for a relative gap of 3e-4 with a tail that does not end;
Mehrotra's (1992) predictor-corrector method over a batch of patches 1.9 ms for a gap of 1e-6, half of it in float32.
What that leaves uncertified is solved again in float64 from the start (degenerate programmes, in which float32 goes
astray: a logo whose ground is the image itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nullpaper.nullspace.box_qp import GAP_FLOOR, Patches, Projection, project, row_chunks

RELATIVE_GAP = 3e-5  # per patch; the last step usually goes far beyond it
MIXED = ((torch.float32, 6), (torch.float64, 8))  # interior-point steps a precision; few patches need them all
DOUBLE = ((torch.float64, 20),)  # for patches that float32 led astray, from the start again
TO_BOUNDARY = 0.995  # share of the longest step that keeps all variables positive
FIXED = 1e-6  # a variable whose bounds are this close is left out


class _Point(NamedTuple):
    """An interior point: p and q as ``length`` (2, b, D), slack to their upper bounds, multipliers of both, and ``w``.

    ``w`` (b, r) are the multipliers of R^T (p - q) = R^T (x - t).
    """

    length: Tensor
    slack: Tensor
    low: Tensor
    high: Tensor
    w: Tensor

    def take(self, index: Tensor) -> _Point:
        return _Point(*(value[..., index, :] for value in self))


def nearest_l1(patches: Patches) -> Projection:
    """Noises ``v`` (b, D) that minimise |x + v - t|_1 over K(x) of `box_qp`, the objective, and a lower bound on it.

    The bound holds whatever the accuracy; v keeps the box to `box_qp.TARGET` and is in the nullspace to float64.
    """
    best = _certify(patches, *_interior_point(patches, MIXED))
    gap = best.primal - best.dual
    rest = (gap > RELATIVE_GAP * best.primal + GAP_FLOOR * patches.x.shape[1]).nonzero()[:, 0]
    if len(rest) > 0:
        other = _certify(patches.take(rest), *_interior_point(patches.take(rest), DOUBLE))
        closer = other.primal - other.dual < gap[rest]
        for value, better in zip(best, other, strict=True):
            value[rest[closer]] = better[closer]
    return best


def _certify(patches: Patches, y: Tensor, w: Tensor) -> Projection:
    """The feasible noise nearest to y - x, its objective, and the dual bound of the multipliers R w."""
    x, t, w = patches.x, patches.t, w @ patches.row.T
    v = project(replace(patches, t=y)).v
    kinks = torch.stack([w * t, t, (1 - t) + w])
    return Projection(v, (x + v - t).abs().sum(1), (kinks.amin(0) - w * x).sum(1))


def _interior_point(patches: Patches, rounds: Sequence[tuple[torch.dtype, int]]) -> tuple[Tensor, Tensor]:
    """y (b, D) and multipliers (b, r) after at most the steps of ``rounds``, in chunks whose matrices fit the cache."""
    chunks = row_chunks(len(patches.x), patches.row.numel(), patches.x.device)
    parts = [_interior_point_chunk(patches.take(chunk), rounds) for chunk in chunks]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def _interior_point_chunk(patches: Patches, rounds: Sequence[tuple[torch.dtype, int]]) -> tuple[Tensor, Tensor]:
    """The same for one chunk; solved patches leave it."""
    room = torch.stack([1 - patches.t, patches.t])
    free = room > FIXED
    half = torch.where(free, room, 1.0) / 2
    low, high = torch.full_like(half, 1.3), torch.full_like(half, 0.3)  # 1 - low + high = 0: dual feasible with w = 0
    point = _Point(half, half.clone(), low, high, torch.zeros_like(patches.x @ patches.row))
    rest = torch.arange(len(patches.x), device=half.device)
    for dtype, steps in rounds:
        index = rest
        current, problem = _Point(*(value.to(dtype) for value in point.take(rest))), patches.take(rest).to(dtype)
        for _ in range(steps):
            current = _step(problem, free[:, index].to(dtype), current)
            for value, new in zip(point, current, strict=True):
                value[..., index, :] = new.to(value.dtype)
            keep = _unsolved(problem, free[:, index], current)
            if len(keep) == 0:
                break
            current, problem, index = current.take(keep), problem.take(keep), index[keep]
        rest = rest[_unsolved(patches.take(rest), free[:, rest], point.take(rest))]
        if len(rest) == 0:
            break
    moves = torch.where(free, point.length, 0.0).nan_to_num(0)  # a step that broke down leaves a gap, not a NaN
    return patches.t + moves[0] - moves[1], -point.w.nan_to_num(0)


def _unsolved(patches: Patches, free: Tensor, point: _Point) -> Tensor:
    """Indices of patches whose complementarity or infeasibility is still large, or that are no numbers any more."""
    moves = torch.where(free, point.length, 0.0)
    gap = torch.where(free, point.length * point.low + point.slack * point.high, 0.0).sum((0, 2))
    missed = ((patches.x - patches.t - moves[0] + moves[1]) @ patches.row).abs().amax(1)
    allowed = (RELATIVE_GAP * moves.sum((0, 2)) + GAP_FLOOR * patches.x.shape[1]) / 2
    return (~((gap <= allowed) & (missed <= allowed))).nonzero()[:, 0]


def _step(patches: Patches, free: Tensor, point: _Point) -> _Point:
    """One predictor-corrector step of Mehrotra on p and q together; ``free`` (2, b, D) is 0 where a bound is 0."""
    row, sign = patches.row, torch.tensor([1.0, -1.0], dtype=free.dtype, device=free.device).view(2, 1, 1)
    p, s, z, r = point.length, point.slack, point.low, point.high
    missed = (patches.x - patches.t - (sign * p * free).sum(0)) @ row
    slope = 1 - sign * (point.w @ row.T) - z + r
    weight = free / (z / p + r / s)
    normal = (row.T * weight.sum(0)[:, None, :]) @ row
    ridge = torch.finfo(free.dtype).eps * normal.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-30)
    normal.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    factor = torch.linalg.cholesky_ex(normal).L

    def direction(to_low: Tensor, to_high: Tensor) -> tuple[Tensor, ...]:
        """Solves z dp + p dz = to_low and s dr - r dp = to_high with the linear constraints."""
        tilt = slope - to_low / p + to_high / s
        right = missed + (sign * weight * tilt).sum(0) @ row
        dw = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        dp = weight * (sign * (dw @ row.T) - tilt)
        return dw, dp, (to_low - z * dp) / p, (to_high + r * dp) / s

    count = 2 * free.sum((0, 2)).clamp_min(1)
    mu = ((p * z + s * r) * free).sum((0, 2)) / count
    _, dp, dz, dr = direction(-p * z, -s * r)
    primal, dual = _longest(free, (p, dp), (s, -dp)), _longest(free, (z, dz), (r, dr))
    ahead = (p + primal * dp) * (z + dual * dz) + (s - primal * dp) * (r + dual * dr)
    ahead = (ahead * free).sum((0, 2)) / count
    centre = ((ahead / mu).clamp(0, 1) ** 3 * mu)[None, :, None]
    dw, dp, dz, dr = direction(centre - p * z - dp * dz, centre - s * r + dp * dr)
    primal = TO_BOUNDARY * _longest(free, (p, dp), (s, -dp))
    dual = TO_BOUNDARY * _longest(free, (z, dz), (r, dr))
    return _Point(p + primal * dp, s - primal * dp, z + dual * dz, r + dual * dr, point.w + dual[0] * dw)


def _longest(free: Tensor, *moves: tuple[Tensor, Tensor]) -> Tensor:
    """The longest steps (1, b, 1), at most 1 / `TO_BOUNDARY`, that leave all values + step * change >= 0."""
    shrink = torch.stack([(free * -change / value).amax((0, 2)) for value, change in moves]).amax(0)
    return shrink.clamp_min(TO_BOUNDARY).reciprocal()[None, :, None]
