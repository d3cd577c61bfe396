"""The L1 watermark problem: what comes back is legal, in the nullspace and proved optimal, by whichever solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from spaces import KINDS, shared_pairs, shared_space

from nullpaper.models.vit import patchify
from nullpaper.nullspace import l1_lp as l1
from nullpaper.nullspace.box_qp import Patches, Projection


def patches(kind: str, lo: float = 0.0, hi: float = 1.0) -> Patches:
    """Real patches, those with the most saturated pixels among them."""
    space, (images, targets) = shared_space(kind), shared_pairs()
    x, t = (patchify(batch.double(), space.patch_size).flatten(0, 1)[::7] for batch in (images, targets))
    return Patches(x, t, space.basis, space.row_basis, lo, hi)


def gaps(found: Projection) -> torch.Tensor:
    return (found.primal - found.dual) / found.primal.clamp_min(1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_legal_and_its_gap_is_closed(kind: str) -> None:
    problem = patches(kind)
    found = l1.nearest_l1(problem)
    assert (problem.x + found.v).min() >= -1e-6 and (problem.x + found.v).max() <= 1 + 1e-6
    assert (found.v @ problem.row).abs().max() < 1e-12
    assert torch.allclose(found.primal, (problem.x + found.v - problem.t).abs().sum(1))
    assert gaps(found).max() < 1e-4 and gaps(found).min() > -1e-6  # the box is kept to 4e-7


def test_objective_is_that_of_a_general_solver_in_other_variables() -> None:
    """minimise sum s with -s <= x + B a - t <= s and 0 <= x + B a <= 1: paper C's form, in the coefficients a."""
    problem = patches("smooth")
    problem = problem.take(torch.arange(0, len(problem.x), 6))
    found = l1.nearest_l1(problem)
    basis, size = problem.null.numpy(), problem.x.shape[1]
    eye, none = np.eye(size), np.zeros((size, size))
    left = np.block([[basis, -eye], [-basis, -eye], [basis, none], [-basis, none]])
    for x, t, ours in zip(problem.x.numpy(), problem.t.numpy(), found.primal, strict=True):
        right = np.concatenate([t - x, x - t, 1 - x, x])
        cost = [0.0] * basis.shape[1] + [1.0] * size
        optimum = linprog(cost, A_ub=left, b_ub=right, bounds=(None, None)).fun
        assert ours.item() == pytest.approx(optimum, rel=1e-5, abs=1e-5)


def test_what_interior_points_leave_open_goes_to_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = patches("random")
    problem = problem.take(torch.arange(0, len(problem.x), 4))
    ours = l1.nearest_l1(problem)
    for rounds in ("MIXED", "DOUBLE"):
        monkeypatch.setattr(l1, rounds, ((torch.float64, 1),))
    theirs = l1.nearest_l1(problem)
    assert gaps(theirs).max() < 1e-4
    assert torch.allclose(ours.primal, theirs.primal, rtol=1e-4, atol=1e-4)


def test_the_target_is_reached_where_the_nullspace_does() -> None:
    problem = patches("random")
    v = 0.01 * problem.on_null(
        torch.randn(problem.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    start = problem.x.clamp(0.2, 0.8)
    found = l1.nearest_l1(replace(problem, x=start, t=start + v))
    assert found.primal.max() < 1e-3


def test_targets_outside_a_narrow_box_keep_the_bound_honest() -> None:
    problem = patches("random", 0.1, 0.9)
    problem = replace(problem, x=problem.x.clamp(0.1, 0.9))
    found = l1.nearest_l1(problem)
    assert (problem.x + found.v).min() >= 0.1 - 1e-6 and (problem.x + found.v).max() <= 0.9 + 1e-6
    assert torch.allclose(found.primal, (problem.x + found.v - problem.t).abs().sum(1))
    assert gaps(found).min() > -1e-6 and gaps(found).max() < 1e-4


def test_trivial_nullspaces_have_closed_forms() -> None:
    problem = patches("random")
    eye, none = torch.eye(192, dtype=torch.float64), torch.zeros(192, 0, dtype=torch.float64)
    everything = l1.nearest_l1(replace(problem, null=eye, row=none))
    nothing = l1.nearest_l1(replace(problem, null=none, row=eye))
    assert everything.primal.max() < 1e-12 and nothing.v.abs().max() == 0
    assert torch.equal(everything.primal, everything.dual) and torch.equal(nothing.primal, nothing.dual)
