"""The bound holds as often as it says on distributions whose mean is known; a certificate is what its tests passed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from noises import learned, pools, tiny_cnn, vit
from scipy.stats import binom

from nullpaper.errors import InputError
from nullpaper.statistics import mean
from nullpaper.synthesis.certified import certified, images_for, largest_within, upper_bound

Draw = Callable[[np.random.Generator, int], np.ndarray]

KNOWN: dict[str, tuple[float, Draw]] = {  # means of distributions on [0, 2]
    "rare": (0.02, lambda rng, n: 2.0 * (rng.random(n) < 0.01)),
    "common": (1.0, lambda rng, n: 2.0 * (rng.random(n) < 0.5)),
    "small": (0.02, lambda rng, n: 2.0 * rng.beta(1, 99, n)),
    "uniform": (1.0, lambda rng, n: rng.uniform(0, 2, n)),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_the_mean_is_below_the_bound_as_often_as_promised(name: str, confidence: float) -> None:
    truth, draw = KNOWN[name]
    rng, repeats = np.random.default_rng(0), 300
    held = sum(truth <= upper_bound(draw(rng, 200), confidence=confidence) for _ in range(repeats))
    assert held >= binom.ppf(0.001, repeats, confidence)


def test_where_the_bootstrap_fails_the_bound_holds() -> None:
    truth, draw = KNOWN["rare"]
    rng = np.random.default_rng(0)
    samples = [draw(rng, 200) for _ in range(60)]
    assert all(truth <= upper_bound(values) for values in samples)
    assert sum(truth > mean(values).high for values in samples) > 5  # a sample without the rare value has no width


@pytest.mark.parametrize("name", KNOWN)
def test_the_bound_is_above_the_estimate_and_falls_towards_it(name: str) -> None:
    values = KNOWN[name][1](np.random.default_rng(1), 20_000)
    few, many = (upper_bound(values[:count]) for count in (200, 20_000))
    assert values.mean() < many < few <= 2 and many - values.mean() < 0.05


def test_the_bound_grows_with_the_values_the_confidence_and_the_range() -> None:
    values = KNOWN["small"][1](np.random.default_rng(2), 400)
    bound = upper_bound(values)
    assert bound < upper_bound(values + 0.01) and bound < upper_bound(values, confidence=0.999)
    assert upper_bound(3 * values, largest=6.0) == pytest.approx(3 * bound, rel=1e-4)


def test_nothing_is_known_of_a_single_image() -> None:
    assert upper_bound([0.0]) == 2.0


def test_a_sequence_of_tests_passes_beyond_eps_no_more_often_than_one() -> None:
    rng, eps, chances = np.random.default_rng(3), 0.1, (0.02, 0.04, 0.055, 0.065, 0.075)  # means of twice that
    repeats, beyond = 200, 0
    for _ in range(repeats):
        shares = rng.random(400)  # the same images in every test
        place, _ = largest_within((2.0 * (shares < chance) for chance in chances), eps, confidence=0.9)
        beyond += place >= 2
    assert beyond <= binom.ppf(0.999, repeats, 0.1)


def test_a_sequence_ends_at_its_first_failure() -> None:
    asked = []

    def values(mean: float) -> np.ndarray:
        asked.append(mean)
        return np.full(1_000, mean)

    place, bounds = largest_within((values(m) for m in (0.01, 0.02, 0.2, 0.01)), 0.1)
    assert place == 1 and asked == [0.01, 0.02, 0.2] and bounds[0] < bounds[1] < 0.1 < bounds[2]
    assert largest_within([np.ones(100)], 0.1)[0] == -1


def test_a_certificate_is_the_last_multiple_that_passed() -> None:
    noise, (_, held_out) = learned(), pools()
    short = certified(vit(), noise, held_out, 0.5, scales=(0.01, 0.1, 10.0))
    assert short.scale in (0.01, 0.1) and short.n == len(held_out) and short.bound <= 0.5 < short.tested[-1][1]
    assert short.norm == pytest.approx(short.scale * noise.norm, rel=1e-5)
    again = certified(vit(), noise, held_out, 0.5, scales=(0.01, 0.1, 10.0))
    assert again.tested == short.tested
    nothing = certified(vit(), noise, held_out, 0.5, scales=(100.0, 200.0))
    assert (nothing.scale, nothing.norm, len(nothing.tested)) == (0.0, 0.0, 1)


def test_a_noise_that_changes_nothing_passes_everywhere() -> None:
    for model, shape in ((vit(), (1, 36, 96)), (tiny_cnn(), (1, 3, 48, 48))):
        images = torch.rand(images_for(1.0) + 8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        certificate = certified(model, torch.zeros(shape), [images], 1.0, scales=(0.5, 1.0))
        assert certificate.scale == 1.0 and certificate.bound <= 1.0


def test_bad_input_is_refused_in_one_sentence() -> None:
    noise, (_, held_out) = learned(), pools()

    def refused(match: str, eps: float = 0.5, **options) -> None:
        with pytest.raises(InputError, match=match):
            certified(vit(), noise, held_out, eps, **options)

    refused("eps", eps=2.5)
    refused("confidence", confidence=1.0)
    refused("scales", scales=())
    refused("increasing", scales=(0.5, 0.5))
    refused("scales", scales=(-1.0,))
    refused(f"pass {images_for(0.03)} or more", eps=0.03)
    for values in ([], [0.1, 2.5], [-0.1], [float("nan")]):
        with pytest.raises(InputError, match=r"values in \[0, 2\]"):
            upper_bound(values)
