"""The largest noise within eps of models that are equally sure."""

from __future__ import annotations

import pytest
import torch
from quick import few, start

from nullpaper.errors import InputError
from nullpaper.models.predict import predictions
from nullpaper.studies.boundary import Boundary, at_confidence, boundary_norm, confidence
from nullpaper.studies.trials import _whole


def test_a_temperature_gives_the_confidence_and_changes_no_prediction() -> None:
    vit, data = start(), few()
    softer, temperature = at_confidence(vit, data, 0.5, 64)
    assert confidence(softer, data, 64) == pytest.approx(0.5, abs=1e-4) and temperature > 1
    clean, soft = (predictions(model, data.test.subset(50)) for model in (vit, softer))
    torch.testing.assert_close(soft, clean / temperature)
    same, one = at_confidence(vit, data, confidence(vit, data, 64), 64)
    assert one == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="confidence=0.05"):
        at_confidence(vit, data, 0.05, 64)


def test_an_unsure_model_takes_more_noise_for_that_alone_and_none_at_equal_confidence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    vit, data = start(), few()
    softer, _ = at_confidence(vit, data, 0.5, 64)
    own = confidence(vit, data, 64)
    plain, soft, matched = (
        boundary_norm(_whole(model), data, Boundary(0.1, 64, 2, confidence=level))
        for model, level in ((vit, None), (softer, None), (softer, own))
    )
    assert soft["norm_random"] > 1.2 * plain["norm_random"]
    assert matched["norm_random"] == pytest.approx(plain["norm_random"], rel=0.01) and "temperature" not in plain
    other = boundary_norm(_whole(vit), data, Boundary(0.1, 64, 2, seed=1))
    assert other["norm"] != plain["norm"]
