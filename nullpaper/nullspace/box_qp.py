"""Convex solvers behind `patch.py`: a patch moves in a linear subspace and must stay in the pixel box.

For one patch x (D,), the nullspace with orthonormal basis B (D, k) and its complement, the row space, with orthonormal
basis R (D, r), the feasible noises are K(x) = {v in range(B) : 0 <= x + v <= 1}, which contains 0 as x is in the box.
The projection of a target t on x + K(x) is a quadratic programme with the concave dual, over u in range(R),

    g(u) = 1/2 |z - t|^2 + u.(z - x),    z = z(u) = clip(t - u, 0, 1),    grad g(u) = R R^T (z - x),

so a dual step costs two thin matrix products, for all patches of all images at once. With v = B B^T (z - x), x + v
leaves the box by at most max|grad g(u)|: optimality and feasibility are one and the same number.

Solver, chosen by measurement (CIFAR-10 pairs at 48 px, one core of an AMD EPYC with AVX-512): patches whose first
multiplier is optimal, half of them, leave at once; then conjugate gradients on g in float32 with one secant a step,
then float64 with a safe line search, then a proximal semismooth Newton method for the few patches left (few free
pixels, hence a singular Hessian). 0.05 / 0.04 ms a patch for the shipped / a random embedding, 0.85 / 0.67 of the time
of the active-set solver DAQP, and 0.06 of it at 768 pixels. Newton from the start took more than three times as long;
without its proximal term, it and conjugate gradients alone stall on patches of saturated pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

TARGET = 1e-7  # what x + v may leave the box by, in pixel units: `patch` cuts it off, which float32 hardly sees
GAP_FLOOR = 1e-6  # a distance to the target below this, per pixel (rms; mean in L1), counts as none
RELATIVE_GAP = 1e-5  # per patch; the contract promises 1e-4 per image
ROUNDS = ((torch.float32, 40), (torch.float64, 120))  # conjugate steps a precision; the cheap one does most of the work
NEWTON_STEPS = 200
GROWTH, RELAXATION = 0.3, 1.6  # of the inexact steps of an ascent; a smaller growth ends in shorter noise
LAST_SCALE = 1.02  # of the exact step that ends an ascent: a nearby target, hence a cheap projection
BOUND_SCALE = 3.0  # a larger one bounds the linear gain more tightly, but is a harder projection


@dataclass(frozen=True)
class Patches:
    """Patches ``x`` (b, D) in [0, 1], targets ``t`` (b, D), bases ``null`` (D, k) and ``row`` (D, r); float64."""

    x: Tensor
    t: Tensor
    null: Tensor
    row: Tensor

    def to(self, dtype: torch.dtype) -> Patches:
        return Patches(*(value.to(dtype) for value in vars(self).values()))

    def take(self, index: Tensor) -> Patches:
        return replace(self, x=self.x[index], t=self.t[index])

    def on_null(self, g: Tensor) -> Tensor:
        """Orthogonal projection on the nullspace, through whichever basis is thinner."""
        if self.row.shape[1] <= self.null.shape[1]:
            return g - self.on_row(g)
        return (g @ self.null) @ self.null.T

    def on_row(self, g: Tensor) -> Tensor:
        """The same on the row space."""
        if self.row.shape[1] > self.null.shape[1]:
            return g - self.on_null(g)
        return (g @ self.row) @ self.row.T

    def dual_point(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z(u) and grad g(u), (b, D) both."""
        z = (self.t - u).clamp(0, 1)
        return z, self.on_row(z - self.x)

    def dual(self, u: Tensor) -> Tensor:
        """g(u), (b,), a lower bound on the objective for u in the row space."""
        z = (self.t - u).clamp(0, 1)
        return (z - self.t).square().sum(1) / 2 + (u * (z - self.x)).sum(1)

    def unsolved(self, u: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """Indices of the patches that are not within TARGET of the box and RELATIVE_GAP of the dual bound."""
        primal = (z - grad - self.t).square().sum(1) / 2
        gap = (grad * (grad / 2 - z + self.t - u)).sum(1).abs()
        solved = (grad.abs().amax(1) <= TARGET) & (gap <= RELATIVE_GAP * primal + self.x.shape[1] * TARGET**2)
        return (~solved).nonzero()[:, 0]


class Projection(NamedTuple):
    """``v`` (b, D) in K(x), its objective ``primal`` (b,) and a lower bound ``dual`` (b,) on the optimum."""

    v: Tensor
    primal: Tensor
    dual: Tensor


def row_chunks(rows: int, row_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows whose tensors fit a CPU's cache, or a small part of a GPU's memory."""
    step = max(1, (2**20 if device.type == "cpu" else 2**26) // max(row_size, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def project(patches: Patches) -> Projection:
    """Project the targets on x + K(x), all patches at once, with a dual bound that holds whatever the accuracy."""
    if patches.null.shape[1] <= 1 or patches.row.shape[1] == 0:
        return _closed_form(patches)
    u = patches.on_row(patches.t - patches.x)
    rest = patches.unsolved(u, *patches.dual_point(u))
    for dtype, steps in ROUNDS:
        part, before = patches.take(rest), u[rest]
        after = part.on_row(_conjugate_ascent(part.to(dtype), before.to(dtype), steps).to(u.dtype))
        higher = part.dual(after) >= part.dual(before)  # a secant step may fall; NaN is no ascent either
        u[rest] = torch.where(higher[:, None], after, before)
        rest = rest[part.unsolved(u[rest], *part.dual_point(u[rest]))]
    for part in row_chunks(len(rest), patches.row.numel(), u.device):
        u[rest[part]] = _proximal_newton(patches.take(rest[part]), u[rest[part]])
    return _certify(patches, u)


def _closed_form(patches: Patches) -> Projection:
    """k = 0 (only v = 0), k = 1 (an interval) and k = D (the box itself): the optimum is known, so the gap is 0."""
    step, k = patches.t - patches.x, patches.null.shape[1]
    if k == 1:
        v = (step @ patches.null).clamp(*_interval(patches)) * patches.null.T
    else:
        v = (patches.t.clamp(0, 1) - patches.x) * bool(k)
    primal = (v - step).square().sum(1) / 2
    return Projection(v, primal, primal)


def _interval(patches: Patches) -> tuple[Tensor, Tensor]:
    """For k = 1, the ends (b, 1), (b, 1) of the interval of a such that x + a b stays in the box; it contains 0."""
    b = patches.null[:, 0]
    ends = torch.stack([-patches.x / b, (1 - patches.x) / b])
    low, high = ends.amin(0).masked_fill(b == 0, -torch.inf), ends.amax(0).masked_fill(b == 0, torch.inf)
    return low.amax(1, keepdim=True).clamp_max(0), high.amin(1, keepdim=True).clamp_min(0)


def _certify(patches: Patches, u: Tensor) -> Projection:
    """The feasible noise and the dual bound that belong to u (b, D)."""
    x, u = patches.x, patches.on_row(u)
    v = patches.on_null((patches.t - u).clamp(0, 1) - x)
    # a patch that ran out of steps is pulled towards v = 0, which is feasible: membership stays exact, the gap tells
    room = torch.where(v > 0, 1 - x, x) + TARGET
    v = v * (room / v.abs()).amin(1, keepdim=True).clamp_max(1)
    primal = (x + v - patches.t).square().sum(1) / 2
    return Projection(v, primal, patches.dual(u))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


def _line_search(
    patches: Patches,
    u: Tensor,
    d: Tensor,
    slope0: Tensor,
    *,
    steps: int = 5,
    start: float = 0.0,
    tilt: Tensor | float = 0.0,
    bend: Tensor | float = 0.0,
) -> Tensor:
    """Steps s (b, 1) along ascent directions d where the slope of g(u + s d) - s tilt - s^2 bend / 2 is slope0 / 10.

    Concave and piecewise quadratic in s: Newton on its slope from ``start``, kept inside a bracket. Where that does not
    settle, the left end of the bracket is returned, which never lowers the dual.
    """
    base = patches.t - u
    left, right = torch.zeros_like(slope0), torch.full_like(slope0, torch.inf)
    s = torch.full_like(slope0, start)
    for _ in range(steps):
        ray = base - s * d
        z = ray.clamp(0, 1)
        slope = _dot(z - patches.x, d) - tilt - s * bend
        settled = slope.abs() <= 0.1 * slope0
        left, right = torch.where(slope >= 0, s, left), torch.where(slope >= 0, right, s)
        if settled.all():
            break
        newton = s + slope / (d.square() * (z == ray)).sum(1, keepdim=True).add(bend)
        inside = (newton > left) & (newton < right) & newton.isfinite()
        outside = torch.where(right.isinf(), 4 * s + 1, (left + right) / 2)
        s = torch.where(settled, s, torch.where(inside, newton, outside))
    return torch.where(settled, s, left)


def _secant_step(patches: Patches, u: Tensor, d: Tensor, slope0: Tensor, s: Tensor) -> Tensor:
    """Steps (b, 1) along ascent directions d, by one secant from a guess s > 0, to where the slope of g is about 0.

    Exact where the same pixels stay free; at most 8 s, and no safe ascent: float64 takes `_line_search`. Looking twice,
    or for the free pixels, cost more than it saved.
    """
    slope = _dot(torch.addcmul(patches.t - u, s, d, value=-1).clamp_(0, 1), d) - _dot(patches.x, d)
    return (s * slope0 / (slope0 - slope).clamp_min(slope0 / 8)).nan_to_num(1, 1, 1)


def _conjugate_ascent(patches: Patches, u: Tensor, steps: int) -> Tensor:
    """Polak-Ribiere conjugate gradient ascent on the dual from u (b, D); every five steps, solved patches leave."""
    result, index = u.clone(), torch.arange(len(u), device=u.device)
    _, grad = patches.dual_point(u)
    d, norm = grad, _dot(grad, grad)
    slope, s = norm, torch.ones_like(norm)
    for step in range(1, steps + 1):
        rough = u.dtype == torch.float32
        s = _secant_step(patches, u, d, slope, s) if rough else _line_search(patches, u, d, slope)
        u = torch.addcmul(u, s, d)
        z, new = patches.dual_point(u)
        old, norm, along = norm, _dot(new, new), _dot(new, d)
        beta = ((norm - _dot(new, grad)) / old).clamp_min(0).nan_to_num(0, 0, 0)
        beta = torch.where(norm + beta * along > 0.01 * norm, beta, 0)
        d, slope, grad = torch.addcmul(new, beta, d), norm + beta * along, new
        if step % 5 == 0:
            result[index] = u
            keep = patches.unsolved(u, z, grad)
            index, patches = index[keep], patches.take(keep)
            u, grad, d, norm, slope, s = (value[keep] for value in (u, grad, d, norm, slope, s))
            if len(index) == 0:
                break
    return result


def _proximal_newton(patches: Patches, u: Tensor) -> Tensor:
    """Semismooth Newton on g(u) - mu/2 |u - centre|^2, whose centre follows u while mu halves (float64).

    The proximal term keeps the generalised Hessian R_F^T R_F, with F the pixels strictly inside the box, invertible.
    """
    result, index = u.clone(), torch.arange(len(u), device=u.device)
    centre, mu = u, torch.full_like(u[:, :1], 1e-2)
    identity = torch.eye(patches.row.shape[1], dtype=u.dtype, device=u.device)
    for _ in range(NEWTON_STEPS):
        z, grad = patches.dual_point(u)
        result[index] = u
        keep = patches.unsolved(u, z, grad)
        if len(keep) == 0:
            break
        index, patches = index[keep], patches.take(keep)
        u, z, grad, centre, mu = (value[keep] for value in (u, z, grad, centre, mu))
        near = ((grad - mu * (u - centre)).abs().amax(1) <= 0.1 * grad.abs().amax(1))[:, None]
        centre = torch.where(near, u, centre)
        mu = torch.where(near, mu / 2, mu).clamp_min(1e-8)
        ascent = grad - mu * (u - centre)
        free = (z == patches.t - u).to(u.dtype)
        hessian = (patches.row.T * free[:, None, :]) @ patches.row + mu[:, :, None] * identity
        d = torch.cholesky_solve((ascent @ patches.row)[:, :, None], torch.linalg.cholesky(hessian))[:, :, 0]
        d = d @ patches.row.T
        proximal = {"tilt": mu * _dot(u - centre, d), "bend": mu * _dot(d, d)}
        u = u + _line_search(patches, u, d, _dot(ascent, d), steps=15, start=1.0, **proximal) * d
    return result


def ascend(patches: Patches, steps: int) -> Tensor:
    """Noises (b, D) in K(x) of large norm, from the corners ``patches.t`` by ``steps`` inexact and two exact steps.

    The inexact ones, in float32, are over-relaxed alternating directions (Boyd et al. 2011, sections 3.4.3 and 9) for

        minimise  -c/2 |v|^2 + 1/2 |v - z|^2    with    v in range(B),   0 <= x + z <= 1,   v = z,

    with c falling to 0 in equal steps, so that v grows freely at first and is almost feasible at the end. The last two
    project: x + v on x + K(x), then v <- projection of s v, s > 1, which never lowers the norm. p = proj(s v) has
    (s v - p).(v - p) <= 0, hence (s + 1)|v||p| >= (s + 1) v.p >= s|v|^2 + |p|^2, that is (|p| - |v|)(|p| - s|v|) <= 0,
    so |v| <= |p| <= s|v|. Its fixed points are those with s v - v in the normal cone of K(x) at v, that is v.q <= v.v
    for all q in K(x): the first-order condition of max |v| over K(x), for any s > 1.
    """
    rough = patches.to(torch.float32)
    v = mixed = rough.on_null(rough.t - rough.x)
    multiplier = torch.zeros_like(v)
    for step in range(steps):
        target = mixed + multiplier
        z = (rough.x + target).clamp_(0, 1) - rough.x
        v = rough.on_null(2 * z - target) / (1 - GROWTH * (1 - step / steps))
        mixed = torch.lerp(z, v, RELAXATION)
        multiplier = (target - z) * (1 - 1 / (steps - step))  # it is proportional to c
    v = project(replace(patches, t=patches.x + v)).v
    return project(replace(patches, t=patches.x + LAST_SCALE * v)).v


def largest_noise(patches: Patches, steps: int) -> Tensor:
    """Noises (b, D) in K(x) of largest norm: exact for k = 0, 1 and D, else `ascend` from the corner ``patches.t``."""
    k = patches.null.shape[1]
    if k == 1:
        low, high = _interval(patches)
        return torch.where(-low > high, low, high) * patches.null.T
    if k == 0 or patches.row.shape[1] == 0:
        return (patches.t - patches.x) * bool(k)
    return ascend(patches, steps)


def norm_bounds(patches: Patches) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Terms (b,) of `PatchNullspace.certify_largest` for noises v = ``patches.t``, to be summed over patches.

    The first bounds v.q over q in K(x): a multiplier w in the row space bounds it by max (v - w).q in the box. A good w
    is the multiplier of the projection of s v, whose optimality condition is that of the linear problem.
    """
    x, v, low, high = patches.x, patches.t, -patches.x, 1 - patches.x
    scaled = replace(patches, t=x + BOUND_SCALE * v).to(torch.float32)
    u = _conjugate_ascent(scaled, torch.zeros_like(scaled.x), 60)
    rest = v - patches.on_row(u.to(v.dtype)) / (BOUND_SCALE - 1)
    linear = torch.maximum(rest * high, rest * low).sum(1)
    corner = torch.maximum(low.square(), high.square()).sum(1)
    span = ((low + high) @ patches.null).square().sum(1)
    return linear, corner, span, -(low * high).sum(1), v.square().sum(1)
