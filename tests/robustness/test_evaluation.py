"""Evaluation counts what it says, on the same images under every condition, and leaves the model as it was."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from nullpaper import statistics
from nullpaper.data.datasets import Split, load_data
from nullpaper.errors import InputError
from nullpaper.models.predict import correct
from nullpaper.models.vit import SHIPPED, ViT, load_vit
from nullpaper.robustness.attacks import attack
from nullpaper.robustness.corruptions import corrupt
from nullpaper.robustness.evaluation import (
    EPS,
    Corrupted,
    Threat,
    corrupted_splits,
    evaluate,
    joined,
    packed,
    unpacked,
)
from nullpaper.workflow.store import stored

CONDITION = ["condition", "kind", "name", "family", "eps", "severity"]
COLUMNS = [*CONDITION, "accuracy", "accuracy_low", "accuracy_high", "n", "correct"]


@cache
def vit() -> ViT:
    return load_vit(SHIPPED)


@cache
def split() -> Split:
    return load_data("cifar10").test.subset(60)


@cache
def table() -> pd.DataFrame:
    threats = [("pgd-2", 2 / 255), "fgsm", Threat("pgd-2", 0.0), ("fgsm", EPS)]
    return evaluate(vit(), split(), attacks=threats, corruptions=["gaussian_noise", "fog"], severities=(1, 5))


@pytest.mark.parametrize(
    ("attacks", "conditions"),
    [
        ({"pgd-2": 2 / 255}, [f"pgd-2@{2 / 255!r}"]),
        ({"pgd-2": 2 / 255, "fgsm": 0.0}, ["fgsm@0.0", f"pgd-2@{2 / 255!r}"]),
        (("pgd-2", 2 / 255), [f"pgd-2@{2 / 255!r}"]),
        (["pgd-2", np.float64(2 / 255)], [f"pgd-2@{2 / 255!r}"]),
        ([["pgd-2", 2 / 255]], [f"pgd-2@{2 / 255!r}"]),
        (("pgd-2", "fgsm"), [f"fgsm@{EPS!r}", f"pgd-2@{EPS!r}"]),
        (("fgsm", ("fgsm", 0)), ["fgsm@0.0", f"fgsm@{EPS!r}"]),
        ("fgsm", [f"fgsm@{EPS!r}"]),
        (Threat("fgsm", 0.0), ["fgsm@0.0"]),
        ((Threat("fgsm", 0.0),), ["fgsm@0.0"]),
        ((one for one in ["fgsm"]), [f"fgsm@{EPS!r}"]),
        ({}, []),
    ],
)
def test_attacks_in_any_form_keep_their_radius(attacks: object, conditions: list[str]) -> None:
    found = evaluate(vit(), split().take(np.arange(4)), attacks=attacks)
    assert found["condition"].tolist() == ["clean", *conditions]
    assert found["eps"].tolist() == [0.0, *(float(name.partition("@")[2]) for name in conditions)]


def test_one_corruption_and_one_severity_need_no_list() -> None:
    few = split().take(np.arange(4))
    for severities in (3, np.int64(3), [3], range(3, 4)):
        assert evaluate(vit(), few, corruptions="fog", severities=severities)["condition"].tolist() == [
            "clean",
            "fog@3",
        ]


def masks(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The masks by condition."""
    return dict(zip(frame["condition"], frame["correct"], strict=True))


def test_a_row_for_every_condition_in_a_fixed_order() -> None:
    assert list(table().columns) == COLUMNS
    assert table()["condition"].tolist() == [
        "clean",
        f"fgsm@{EPS!r}",
        "pgd-2@0.0",
        f"pgd-2@{2 / 255!r}",
        "gaussian_noise@1",
        "gaussian_noise@5",
        "fog@1",
        "fog@5",
    ]
    assert table()["family"].tolist() == ["clean", *3 * ["attack"], *2 * ["noise"], *2 * ["weather"]]
    assert table()["severity"].tolist() == [0, 0, 0, 0, 1, 5, 1, 5] and (table()["n"] == 60).all()


def test_accuracies_are_wilsons_of_the_masks() -> None:
    for row in table().itertuples():
        interval = statistics.proportion(row.correct)
        assert (row.accuracy, row.accuracy_low, row.accuracy_high) == (interval.value, interval.low, interval.high)


def test_masks_are_what_the_model_answers() -> None:
    found = masks(table())
    assert np.array_equal(found["clean"], correct(vit(), split()).numpy())
    foggy = Split(corrupt(split().images, "fog", 5), split().labels)
    assert np.array_equal(found["fog@5"], correct(vit(), foggy).numpy())
    images, labels = next(iter(split().batches(60, image_size=48)))
    with torch.no_grad():
        answers = vit()(attack(vit(), images, labels, "fgsm", eps=EPS)).argmax(1)
    assert np.array_equal(found[f"fgsm@{EPS!r}"], (answers == labels).numpy())


def test_an_attack_at_eps_zero_is_the_clean_row_and_none_does_better() -> None:
    found = masks(table())
    assert np.array_equal(found["pgd-2@0.0"], found["clean"])
    assert not (found[f"fgsm@{EPS!r}"] & ~found["clean"]).any()
    assert found[f"fgsm@{EPS!r}"].mean() < 0.5 * found["clean"].mean()
    assert found["fog@5"].mean() < found["fog@1"].mean()


def test_batches_draw_anew() -> None:
    twice = split().take(np.tile(np.arange(30), 2))
    mask = evaluate(vit(), twice, attacks=[Threat("square-4", 0.03)], batch_size=30)["correct"][1]
    assert not np.array_equal(mask[:30], mask[30:])


def test_prepared_corruptions_give_the_same_rows_for_any_batch_size() -> None:
    prepared = corrupted_splits(split(), ["gaussian_noise", "fog"], (1, 5))
    shared = evaluate(vit(), split(), corruptions=prepared, batch_size=17)
    own = table()[table()["kind"] != "attack"].reset_index(drop=True)
    assert_frame_equal(pd.DataFrame(shared), own)
    other = evaluate(vit(), split(), corruptions=["gaussian_noise"], severities=(5,), seed=1)
    assert not np.array_equal(masks(other)["gaussian_noise@5"], masks(own)["gaussian_noise@5"])


def test_a_table_survives_the_store(tmp_path: Path) -> None:
    result = stored("evaluation", {}, lambda: packed(table()), root=tmp_path)
    assert_frame_equal(unpacked(result.metrics, result.arrays()), table())


def test_a_table_is_printed_with_its_accuracies_and_without_its_masks() -> None:
    lines = str(table()).splitlines()
    assert len(lines) == 1 + len(table()) and max(map(len, lines)) < 80 and "False" not in str(table())
    assert all(f"{row.accuracy:.3f}" in line for row, line in zip(table().itertuples(), lines[1:], strict=True))
    assert table()._repr_html_().count("<tr") == len(lines) and len(table()["correct"].iloc[0]) == 60


def test_the_model_is_read_in_evaluation_mode_and_gets_its_modes_back() -> None:
    model = load_vit(SHIPPED).train()
    model.net.blocks[2].eval()
    model.net.blocks[1].mlp.fc1.register_forward_hook(lambda module, *_: modes.append(module.training))
    modes: list[bool] = []
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    evaluate(model, split().take(np.arange(4)), attacks=["fgsm"])
    assert modes and not any(modes)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def other_labels(label: int) -> Split:
    return Split(split().images, np.where(np.arange(60) == 5, label, split().labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": Split(np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))}, "the split holds no images"),
        ({"split": other_labels(10)}, "labels span 0 to 10, but the classes of the model are 0 to 9"),
        ({"split": other_labels(-1)}, "labels span -1"),
        ({"attacks": ["pgdd"]}, "Did you mean 'pgd'"),
        ({"attacks": ["pgd-0"]}, "steps=0"),
        ({"attacks": ["fgsm", ("pgd", 8)]}, "eps=8 .*0-255"),
        ({"corruptions": ["fogg"]}, "Did you mean 'fog'"),
        ({"corruptions": ["fog"], "severities": (1, 6)}, "severity=6"),
        ({"corruptions": {Corrupted("fog", 1): other_labels(0)}}, "another split"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_requests_are_refused_before_the_model_answers(change: dict, message: str) -> None:
    model, calls = load_vit(SHIPPED), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=message):
        evaluate(model, **{"split": split(), **change})
    assert not calls


def test_images_that_are_no_squares_are_refused_where_corruptions_are_asked_for() -> None:
    wide = Split(np.zeros((2, 32, 48, 3), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(InputError, match="square uint8 images"):
        evaluate(vit(), wide, corruptions=["fog"])
    with pytest.raises(InputError, match="square uint8 images"):
        corrupted_splits(wide, ["fog"])
    assert len(evaluate(vit(), wide)) == 1


def test_parts_of_whole_batches_join_to_what_the_whole_gives() -> None:
    """Attacks draw by batch: a run that is cut into parts, in whatever order, answers as one that is not."""
    options = dict(attacks=["pgd-2", "square-3"], batch_size=20, seed=3)
    whole = evaluate(vit(), split(), **options)
    parts = {
        first: evaluate(vit(), split().take(slice(first, first + 20)), first=first, **options) for first in (40, 0, 20)
    }
    assert_frame_equal(joined([parts[first] for first in sorted(parts)]), whole)
    second = evaluate(vit(), split().take(slice(20, 40)), **options)
    assert not all(np.array_equal(*pair) for pair in zip(second["correct"], parts[20]["correct"], strict=True))
    with pytest.raises(InputError, match="first=30 is no multiple of batch_size=20"):
        evaluate(vit(), split(), first=30, **options)
    with pytest.raises(InputError, match="other conditions"):
        joined([whole, table()])


def test_corruptions_of_parts_are_those_of_the_whole() -> None:
    made = corrupted_splits(split(), "gaussian_noise", 5)
    whole = evaluate(vit(), split(), corruptions=made, batch_size=20)
    parts = [
        evaluate(
            vit(),
            split().take(slice(first, first + 20)),
            corruptions={level: one.take(slice(first, first + 20)) for level, one in made.items()},
            batch_size=20,
            first=first,
        )
        for first in (0, 20, 40)
    ]
    assert_frame_equal(joined(parts), whole)
    with pytest.raises(InputError, match="corruptions of a part depend on the whole"):
        evaluate(vit(), split().take(slice(20, 40)), corruptions="fog", batch_size=20, first=20)
