"""The linearised encoder on the real net: it predicts small noise, orders directions, and finds what is ignored."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from noises import EPS, pools, vit

from nullpaper.errors import InputError
from nullpaper.synthesis.controls import centred, of_norm
from nullpaper.synthesis.influence import noise_influence
from nullpaper.synthesis.linearised import RIDGE, Linearised, linearise
from nullpaper.synthesis.noise import encoder_noise


@cache
def spectrum() -> Linearised:
    return linearise(vit(), pools()[0])


def draw(seed: int = 0) -> torch.Tensor:
    return centred(torch.randn(1, 36, 96, generator=torch.Generator().manual_seed(seed)))


def shift(noise: torch.Tensor) -> torch.Tensor:
    """E ||z' - z||^2 on the pool that the spectrum was taken from."""
    pool = pools()[0]
    with torch.no_grad():
        return (vit().encode(pool.inputs + noise) - pool.logits).square().sum(-1).mean()


def test_eigenvectors_are_orthonormal_centred_and_in_order():
    vectors, values = spectrum().eigenvectors, spectrum().eigenvalues
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(values)), atol=1e-4, rtol=0)
    assert vectors.view(36, 96, -1).mean(1).abs().max() < 1e-5
    assert (values.diff() <= 0).all() and values.min() >= 0 and spectrum().dim == 36 * 95


def test_the_trace_is_the_mean_squared_slope_in_a_random_direction():
    """E_w E ||z' - z||^2 = norm^2 trace(M) / dim for small noise; the sign probes are unbiased."""
    measured = torch.stack([shift(of_norm(draw(seed), 0.05)) for seed in range(20)]).mean()
    predicted = 0.05**2 * spectrum().eigenvalues.sum() / spectrum().dim
    assert measured == pytest.approx(predicted.item(), rel=0.4)


def test_the_first_direction_moves_the_logits_most():
    first, last = (spectrum().eigenvectors[:, i].view(1, 36, 96) for i in (0, -1))
    assert shift(first) > 20 * shift(last)


def test_filtering_keeps_the_norm_and_lowers_the_influence_on_other_images():
    noise = of_norm(draw(), 10.0)
    filtered = spectrum().filtered(noise)
    assert filtered.norm() == pytest.approx(10.0, rel=1e-4) and filtered.mean(-1).abs().max() < 1e-4
    before, after = (noise_influence(vit(), value, pools()[1])["mse_logits"].value for value in (noise, filtered))
    assert after < before


def test_coloured_noise_has_the_power_of_m_as_its_covariance():
    """On a spectrum that is known in full: every column of (M + rho I)^(gamma / 2), in units of rho^(gamma / 2)."""
    flat = centred(torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(0)).transpose(0, 1)).view(12, 3)
    vectors = torch.linalg.qr(flat.view(4, 9).T).Q[:, :2]  # 3 tokens of width 3, token-centred; 2 of 6 directions seen
    known = Linearised(torch.tensor([3.0, 0.6]), vectors, 6)
    rho = RIDGE * 3.6 / 6
    matrix = torch.eye(9) + vectors @ torch.diag(known.eigenvalues / rho) @ vectors.T  # M / rho + I
    for gamma in (-1.0, -0.5, 1.0):
        columns = [known.powered(row.view(1, 3, 3), gamma).flatten() for row in torch.eye(9)]
        covariance = torch.stack([row @ torch.stack(columns) for row in torch.stack(columns).T])
        centring = torch.kron(torch.eye(3), torch.eye(3) - 1 / 3)
        values, basis = torch.linalg.eigh(matrix)
        expected = centring @ basis @ torch.diag(values**gamma) @ basis.T @ centring
        torch.testing.assert_close(covariance, expected, rtol=1e-3, atol=1e-4)


def test_colouring_leaves_noise_at_zero_and_moves_the_logits_more_the_larger_gamma():
    torch.testing.assert_close(spectrum().powered(draw(), 0.0), draw())
    shifts = [shift(of_norm(spectrum().powered(draw(), gamma), 5.0)) for gamma in (-1.0, 0.0, 1.0)]
    assert 1.5 * shifts[0] < shifts[1] < shifts[2] / 2  # 48 images see little of what is ignored
    with pytest.raises(InputError, match="gamma=9 must be a number"):
        spectrum().powered(draw(), 9)


def test_without_removes_directions():
    cut = spectrum().without(draw(), 10)
    assert (spectrum().eigenvectors[:, :10].T @ cut.flatten()).abs().max() < 1e-3
    torch.testing.assert_close(spectrum().without(cut, 10), cut, atol=1e-4, rtol=1e-4)


def test_synthesis_from_this_start_begins_with_less_influence():
    given = dict(held_out=pools()[1], norm=20.0, steps=1)
    plain, started = (encoder_noise(vit(), pools()[0], linear=linear, **given) for linear in (False, spectrum()))
    assert started.influence.value < plain.influence.value and plain.norm == pytest.approx(started.norm, rel=1e-4)


def test_the_start_is_made_from_the_images_that_the_direction_is_learned_from_alone():
    """Three quarters of them, in the order of the seed: neither those that set the scale nor those that verify."""
    given = dict(held_out=pools()[1], eps=EPS, steps=1, seed=3)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    linear = linearise(vit(), pools()[0].take(order[:36]), seed=3)
    own, same = (encoder_noise(vit(), pools()[0], linear=linear, **given) for linear in (True, linear))
    assert torch.equal(own.value, same.value) and own.history == same.history
