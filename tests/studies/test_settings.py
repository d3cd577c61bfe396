"""How runs are trained and judged: each arm's learning rate is chosen on dev."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nullpaper.errors import InputError
from nullpaper.finetuning.methods import FinetuneRecipe
from nullpaper.robustness.evaluation import Threat
from nullpaper.studies import settings
from nullpaper.studies.judging import Protocol
from nullpaper.studies.trials import Trial

SIZES = dict(images=4, steps=2, rounds=1, attack_eps=8 / 255, evaluation_steps=3, seed=0)
QUICK = FinetuneRecipe(batch_size=4, dev_images=40, noise_images=0, attack_steps=1, attack_eps=2 / 255)
QUICK_NOISE = replace(QUICK, noise_images=8, noise_steps=1)


def test_a_second_radius_and_the_attacks_are_those_asked_for() -> None:
    def names(**options: object) -> list[tuple[str, float]]:
        _, protocol = settings.adversarial_setting(**SIZES | options)
        return [(threat.name, round(255 * threat.eps)) for threat in protocol.threats]

    assert names() == names(other_eps=8 / 255) == [("pgd-3", 8), ("cw-3", 8)]
    assert names(attacks=["pgd"], other_eps=2 / 255) == [("pgd-3", 8), ("pgd-3", 2)]
    with pytest.raises(InputError, match="attack 'fgsm'"):
        names(attacks=["fgsm"])
    assert [settings.adversarial_setting(**SIZES, dev_images=n)[0].dev_images for n in (0, 5)] == [8, 5]


def test_every_arm_takes_the_rate_that_is_best_under_attack(tmp_path, monkeypatch) -> None:
    """A rate that ruins the model loses; of equal ones the smallest is taken, whatever the order."""
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))

    def at(rate: float, **options: object) -> Trial:
        return Trial("pgd_at", steps=1, recipe=replace(QUICK, learning_rate=rate), **options)

    arms = {"linear": {"adapter": settings.ADAPTERS["linear"]}, "full": {}}
    table = settings.best_under_attack({n: [at(rate, **o) for rate in (0.5, 1e-7, 1e-8)] for n, o in arms.items()})
    assert settings.rates_of(table) == {"full": 1e-8, "linear": 1e-8}
    assert table.groupby("arm")["rate"].is_monotonic_increasing.all() and table["chosen"].sum() == 2
    assert (table["dev_robust"] <= table["dev_accuracy"]).all()


def test_every_noise_takes_the_rate_of_the_best_average_on_dev(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    threats = tuple(Threat(*threat) for threat in (("fgsm", 1 / 255), ("pgd-2", 8 / 255), ("cw-2", 1 / 255)))
    table_of = Protocol(4, threats, ("contrast",), (1, 5))
    sizes = dict(seed=3, steps=1, images=20, eps=1 / 255)
    grid, on_dev = settings.rate_trials(["standard", "zero"], [0.5, 1e-8, 1e-9], QUICK_NOISE, table_of, **sizes)
    assert on_dev == replace(table_of, images=20, threats=threats[:1], severities=(3,), split="dev")
    assert [trial.recipe.learning_rate for trial in grid["zero"]] == [1e-9, 1e-8, 0.5]
    table = settings.best_on_average(grid, on_dev, 1 / 255)
    assert settings.rates_of(table) == {"standard": 1e-9, "zero": 1e-9}
    assert table["average"].to_numpy() == pytest.approx(table[["clean", "fgsm", "corruptions"]].mean(axis=1))
