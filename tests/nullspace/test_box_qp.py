"""The convex problems in the nullspace, `.nearest` and `.largest`, against independent solvers and closed forms."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from spaces import KINDS, leaves_box, make_vit, randn, shared_pairs, shared_space

from nullpaper.models.vit import patchify
from nullpaper.nullspace import box_qp as box
from nullpaper.nullspace.patch import PatchNullspace, patch_nullspace


@pytest.fixture(params=KINDS)
def space(request) -> PatchNullspace:
    return shared_space(request.param)


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return shared_pairs()


def solve_independently(space: PatchNullspace, x: np.ndarray, t: np.ndarray) -> float:
    """Half the squared distance at the optimum for one patch, by CVXPY's interior-point solver."""
    a = cvxpy.Variable(space.dim)
    point = x + space.basis.numpy() @ a
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(point - t) / 2), [point >= 0, point <= 1])
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status == cvxpy.OPTIMAL
    return problem.value


def patch_objectives(space: PatchNullspace, images, noise, targets) -> torch.Tensor:
    return patchify((images + noise - targets).double(), space.patch_size).square().sum(2) / 2


# nearest


def test_nearest_agrees_with_an_independent_solver(space, pairs):
    images, targets = (batch.double() for batch in pairs)
    noise, gap = space.nearest(images, targets)
    ours = patch_objectives(space, images, noise, targets)
    x, t = patchify(images, (8, 8)), patchify(targets, (8, 8))
    saturated = ((x == 0) | (x == 1)).double().mean(2)
    hardest = saturated.flatten().argsort(descending=True)[:4].tolist()
    for index in hardest + [36 * 2 + 5, 36 * 3 + 20]:
        i, n = divmod(index, 36)
        reference = solve_independently(space, x[i, n].numpy(), t[i, n].numpy())
        assert abs(ours[i, n].item() - reference) <= 1e-5 * reference + 1e-8
    assert saturated.max() > 0.5 and gap.shape == (4,) and gap.max() <= 1e-4


def test_gap_bounds_the_distance_to_the_optimum_even_if_stopped_early(space, pairs, monkeypatch):
    images, targets = (batch[:2].double() for batch in pairs)
    best = patch_objectives(space, images, space.nearest(images, targets)[0], targets).sum(1)
    monkeypatch.setattr(box, "ROUNDS", ((torch.float64, 5),))
    monkeypatch.setattr(box, "NEWTON_STEPS", 1)
    noise, gap = space.nearest(images, targets)
    primal = patch_objectives(space, images, noise, targets).sum(1)
    assert gap.max() > 1e-3
    assert (primal - best <= gap * primal * (1 + 1e-6)).all()
    assert leaves_box(images, noise) <= 0
    torch.testing.assert_close(space.project(noise), noise, atol=2e-7, rtol=0)


def test_nearest_is_feasible_certified_and_keeps_dtype(space, pairs):
    images, targets = pairs
    images, targets = images[1:3], targets[1:3]
    for dtype, invisible in ((torch.float32, 1e-6), (torch.float64, 1e-6)):
        noise, gap = space.nearest(images.to(dtype), targets)
        assert noise.dtype == dtype and gap.max() <= 1e-4
        assert leaves_box(images.to(dtype), noise) <= 0
        assert (patchify(noise.double(), (8, 8)) @ space.row_basis).abs().max() < invisible


def test_nearest_of_flat_images_and_of_targets_close_by_and_outside_the_box(space, pairs):
    images, black, white = pairs[0][1:2], torch.zeros(1, 3, 48, 48), torch.ones(1, 3, 48, 48)
    cases = [(black, white), (white, pairs[1][:1])]
    cases += [(images, images + shift * randn(*images.shape).float()) for shift in (1e-3, 3.0)]
    for image, target in cases:
        noise, gap = space.nearest(image, target)
        assert gap.max() <= 1e-4 and leaves_box(image, noise) <= 0
    assert space.nearest(images, images)[0].abs().max() == 0


def test_nearest_in_closed_form(pairs):
    images, targets = (batch.double() for batch in pairs)
    none = patch_nullspace(make_vit(width=192))
    noise, gap = none.nearest(images, targets)
    assert noise.abs().max() == 0 and gap.max() == 0 and none.largest(images).abs().max() == 0
    line = patch_nullspace(make_vit(width=192), through="encoder")
    noise, gap = line.nearest(images, targets)
    assert gap.max() == 0 and leaves_box(images, noise) <= 0
    scan = torch.linspace(-1, 1, 101, dtype=torch.float64).view(-1, 1, 1, 1, 1) * noise
    legal = ((images + 1.001 * scan).flatten(2).amax(2) <= 1) & ((images + 1.001 * scan).flatten(2).amin(2) >= 0)
    distance = (images + scan - targets).flatten(2).norm(dim=2).masked_fill(~legal, torch.inf)
    assert (distance.amin(0) >= (images + noise - targets).flatten(1).norm(dim=1) - 1e-9).all()


# largest


def test_largest_is_feasible_and_near_a_local_maximum(space, pairs):
    images = pairs[0][1:3]
    noise = space.largest(images)
    certificate = space.certify_largest(images, noise)
    assert leaves_box(images, noise) <= 0
    assert (patchify(noise.double(), (8, 8)) @ space.row_basis).abs().max() < 1e-5
    assert (certificate.norm <= certificate.upper_bound).all()
    assert certificate.stationarity.max() < 0.3
    few = space.certify_largest(images, space.largest(images, steps=0))
    assert certificate.stationarity.mean() < few.stationarity.mean() and (certificate.norm > few.norm).all()
    toward = space.nearest(images, pairs[1][1:3])[0].flatten(1).norm(dim=1)
    assert (certificate.norm > toward).all()


def test_stationarity_bounds_the_linear_gain(space, pairs):
    images = pairs[0][2:3].double()
    noise = space.largest(images, steps=2)
    reported = space.certify_largest(images, noise).stationarity.item()
    for seed in range(3):
        other = space.nearest(images, images + 5 * noise + randn(*images.shape, seed=seed))[0]
        assert (noise * other).sum() / noise.square().sum() - 1 <= reported + 1e-6


def test_ascent_is_monotone(space, pairs):
    images = pairs[0][2:].double()
    noise = space.nearest(images, images + randn(*images.shape))[0]
    norms = [noise.flatten(1).norm(dim=1)]
    for _ in range(3):
        noise = space.nearest(images, images + 1.5 * noise)[0]
        norms.append(noise.flatten(1).norm(dim=1))
    assert all((after >= before - 1e-5).all() for before, after in zip(norms, norms[1:], strict=False))
    assert (norms[-1] > 1.05 * norms[0]).all()


def test_largest_in_closed_form(pairs):
    images = pairs[0].double()
    line = patch_nullspace(make_vit(width=192), through="encoder")
    noise = line.largest(images)
    assert leaves_box(images, noise) <= 0
    x, b = patchify(images, (8, 8)), line.basis[:, 0]
    scan = torch.linspace(-20, 20, 40001, dtype=torch.float64)
    for i, n in ((0, 0), (2, 7), (3, 20)):
        legal = ((x[i, n] + scan[:, None] * b >= -1e-12) & (x[i, n] + scan[:, None] * b <= 1 + 1e-12)).all(1)
        assert abs(patchify(noise, (8, 8))[i, n].norm() - scan[legal].abs().max()) <= 1e-3


def test_upper_bound_is_met_by_a_full_nullspace(pairs):
    images, vit = pairs[0].double(), make_vit()
    vit.net.patch_embed.proj.weight.data.zero_()
    space = patch_nullspace(vit)
    assert space.dim == 192
    noise = space.largest(images)
    certificate = space.certify_largest(images, noise)
    torch.testing.assert_close(certificate.norm, certificate.upper_bound)
    assert (images + noise).unique().numel() == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: compares GPU and CPU results")
def test_gpu_agrees_with_cpu(space, pairs):
    images, targets = pairs
    noise, gap = space.nearest(images.cuda(), targets.cuda())
    assert noise.is_cuda and gap.max() <= 1e-4 and leaves_box(images.cuda(), noise) <= 0
    torch.testing.assert_close(noise.cpu(), space.nearest(images, targets)[0], atol=2e-4, rtol=0)
    assert space.largest(images.cuda(), steps=2).is_cuda
