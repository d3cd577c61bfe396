"""The L1 watermark problem: what comes back is legal, in the nullspace and proved optimal, by whichever rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from spaces import KINDS, randn, shared_pairs, shared_space

from nullpaper.models.vit import patchify
from nullpaper.nullspace import l1_lp as l1
from nullpaper.nullspace.box_qp import Patches, Projection


def patches(kind: str, step: int = 7) -> Patches:
    """Real patches, those with the most saturated pixels among them."""
    space, pairs = shared_space(kind), shared_pairs()
    x, t = (patchify(batch.double(), space.patch_size).flatten(0, 1)[::step] for batch in pairs)
    return Patches(x, t, space.basis, space.row_basis)


def gaps(found: Projection) -> torch.Tensor:
    return (found.primal - found.dual) / found.primal.clamp_min(1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_legal_and_its_gap_is_closed(kind: str) -> None:
    problem = patches(kind)
    found = l1.nearest_l1(problem)
    assert (problem.x + found.v).min() >= -1e-6 and (problem.x + found.v).max() <= 1 + 1e-6
    assert (found.v @ problem.row).abs().max() < 1e-12
    assert torch.allclose(found.primal, (problem.x + found.v - problem.t).abs().sum(1))
    assert gaps(found).max() < 1e-4 and gaps(found).min() > -1e-6  # the box is kept to 1e-7


def test_objective_is_that_of_a_general_solver_in_other_variables() -> None:
    """minimise sum s with -s <= x + B a - t <= s and 0 <= x + B a <= 1: paper C's form, in the coefficients a."""
    problem = patches("smooth", 42)
    found = l1.nearest_l1(problem)
    basis, size = problem.null.numpy(), problem.x.shape[1]
    eye, none = np.eye(size), np.zeros((size, size))
    left = np.block([[basis, -eye], [-basis, -eye], [basis, none], [-basis, none]])
    for x, t, ours in zip(problem.x.numpy(), problem.t.numpy(), found.primal, strict=True):
        right = np.concatenate([t - x, x - t, 1 - x, x])
        cost = [0.0] * basis.shape[1] + [1.0] * size
        optimum = linprog(cost, A_ub=left, b_ub=right, bounds=(None, None)).fun
        assert ours.item() == pytest.approx(optimum, rel=1e-5, abs=1e-5)


def test_what_the_first_rounds_leave_open_is_solved_from_the_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = patches("random", 28)
    ours = l1.nearest_l1(problem)
    monkeypatch.setattr(l1, "MIXED", ((torch.float64, 1),))
    again = l1.nearest_l1(problem)
    assert gaps(again).max() < 1e-4 and torch.allclose(ours.primal, again.primal, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(l1, "DOUBLE", ((torch.float64, 1),))
    short = l1.nearest_l1(problem)  # out of steps: legal all the same, and the gap says so
    assert gaps(short).max() > 1e-3 and (short.primal >= ours.dual).all() and (short.dual <= ours.primal).all()


def test_the_target_is_reached_where_the_nullspace_does() -> None:
    problem = patches("random")
    start = problem.x.clamp(0.2, 0.8)
    target = start + 0.01 * problem.on_null(randn(*start.shape))
    assert l1.nearest_l1(replace(problem, x=start, t=target)).primal.max() < 1e-3
