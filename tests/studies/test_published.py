"""The paper's tables are what they say they are, and ours stand beside them with an interval that is ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nullpaper import statistics
from nullpaper.errors import InputError
from nullpaper.robustness.comparison import ALEXNET
from nullpaper.robustness.corruptions import SEVERITIES
from nullpaper.robustness.evaluation import Clean, Corrupted, Threat, from_masks
from nullpaper.studies.judging import Protocol
from nullpaper.studies.published import COLUMNS, average, beside, check_reference, check_start, counterparts, published
from nullpaper.studies.trials import Trial, TrialResult

EPS = 1 / 255
IRREPRODUCIBLE = {
    ("table 1", "ViT-B + DAT + NS"): 43.62,  # printed: 43.61, as a mean of unrounded numbers may be
    ("cnn", "ResNet18"): 26.09,  # printed: 25.75
    ("cnn", "ResNet50"): 35.03,  # printed: 34.82
}
"""Printed averages that are not the mean of the printed columns, and what that is."""


def test_the_printed_averages_are_the_means_of_the_printed_columns_but_three() -> None:
    table = published()
    printed = table[table["average"].notna()]
    assert len(printed) == 10
    columns = {row: [name for name in COLUMNS if pd.notna(printed.loc[row, name])] for row in printed.index}
    assert {row: len(names) for row, names in columns.items() if row[0] == "cnn"} == dict.fromkeys(
        printed.loc[["cnn"]].index, 9
    )
    assert all(len(names) == 11 for row, names in columns.items() if row[0] == "table 1")
    means = {row: round(average(printed.loc[row], names), 2) for row, names in columns.items()}
    unlike = {row: mean for row, mean in means.items() if abs(mean - printed.loc[row, "average"]) > 0.0051}
    assert unlike == IRREPRODUCIBLE


def test_a_number_that_stands_in_several_tables_is_the_same_number() -> None:
    table = published()[list(COLUMNS)]
    for same in (
        [("table 1", "ViT-S + NS"), ("table 2", "NS"), ("eps", "NS 0.03"), ("early stop", "yes")],
        [("table 1", "ViT-S"), ("table 2", "ViT-S")],
    ):
        shared = table.loc[same].dropna(axis=1)
        assert shared.shape[1] == 9 and (shared == shared.iloc[0]).all(axis=None)
    assert not table.index.duplicated().any() and published()["source"].notna().all()


def test_every_counterpart_is_a_row() -> None:
    rows = counterparts("ViT-S", 0.03)
    assert rows["nullspace"] == ("table 1", "ViT-S + NS") and rows["random"] == ("eps", "Random 0.03")
    assert rows["nullspace, eps 0.1"] == ("eps", "NS 0.1") and "nullspace, eps 0.03" not in rows
    assert counterparts("ViT-B + DAT", 0.03)["nullspace"] == ("table 1", "ViT-B + DAT + NS")
    for start in ("ViT-S", "ViT-B", "ViT-B + DAT"):
        assert set(counterparts(start, 0.03).values()) <= set(published().index)


def test_only_the_papers_model_and_data_stand_beside_its_numbers() -> None:
    check_start("ViT-S", "vit_small_patch16_224.augreg_in21k_ft_in1k", "imagenet")
    for start, model, data in (("ViT-S", "vit_tiny_patch16_224", "imagenet"), ("ViT-B", "vit_base_patch16_224", "x")):
        with pytest.raises(InputError, match="leave paper_start empty"):
            check_start(start, model, data)
    with pytest.raises(InputError, match="paper_start 'ViT-L' is unknown"):
        check_start("ViT-L", "vit_large_patch16_224", "imagenet")


def test_alexnet_normalises_whole_tables_of_corruptions_alone() -> None:
    whole = Protocol(4, corruptions=tuple(ALEXNET))
    for name in ("start", "alexnet"):
        check_reference(name, whole)
    check_reference("start", replace(whole, severities=(3,)))
    for part in (replace(whole, severities=(1, 3, 5)), replace(whole, corruptions=("fog",))):
        with pytest.raises(InputError, match="needs all corruptions at severities 1 to 5"):
            check_reference("alexnet", part)
    with pytest.raises(InputError, match="mce_by 'alex' is unknown"):
        check_reference("alex", whole)


def results(shares: dict[str, float], seeds: int, count: int, corrupted: float | None = None) -> list[TrialResult]:
    """Trials that are right on these shares of the images, whichever they are, a little apart over seeds."""
    conditions = {
        "clean": Clean(),
        "fgsm": Threat("fgsm", EPS),
        "cw": Threat("cw-20", EPS),
        "patch": Threat("patch", 1.0),
    }
    made = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        masks = {conditions[name]: rng.permutation(count) < share * count + seed for name, share in shares.items()}
        if corrupted is not None:
            levels = [(name, severity) for name in ALEXNET for severity in SEVERITIES]
            masks |= {Corrupted(*level): rng.permutation(count) < corrupted * count for level in levels}
        made.append(TrialResult(Trial("start", seed), [], 0, from_masks(masks), None))
    return made


def test_ours_beside_the_papers() -> None:
    shares = {"clean": 0.74, "patch": 0.01, "cw": 0.05, "fgsm": 0.14}
    sets = ("damagenet", "imagenet-a", "imagenet-v2", "imagenet-r", "imagenet-sketch", "imagenet-stylized")
    groups = {"start": results(shares, 3, 400, corrupted=0.4)}
    others = {name: {"start": results({"clean": 0.3}, 3, 200)} for name in sets}
    table = beside(groups, others, EPS, counterparts("ViT-S", 0.03)).set_index("column")
    assert list(table.index) == [*COLUMNS, "average"]
    assert table.loc["clean", "published"] == 74.19 and table.loc["average", "columns"] == 11
    assert table.loc["imagenet-c", "ours"] == pytest.approx(
        100 * 0.6 * np.mean([1 / error for error in ALEXNET.values()])
    )
    assert table.loc["average", "ours"] == pytest.approx(average(table["ours"]))
    assert table.loc["average", "published"] == pytest.approx(26.54, abs=0.005)
    assert np.allclose(table["difference"], table["ours"] - table["published"])
    assert (table["images_low"] < table["ours"]).all() and (table["ours"] < table["images_high"]).all()
    seeds = [100 * run.frame["accuracy"][0] for run in groups["start"]]
    assert (
        table.loc["clean", "ours_high"] == pytest.approx(statistics.over_seeds(seeds).high)
        and table.loc["clean", "n"] == 3
    )
    alone = beside(groups, others, EPS, {}).set_index("column")
    assert alone["published"].isna().all() and (alone["ours"] == table["ours"]).all()


def test_an_average_is_over_what_both_have() -> None:
    """Columns that we did not measure, or the paper did not print, count on neither side."""
    groups = {"pgd_at": results({"clean": 0.7, "cw": 0.3, "fgsm": 0.4}, 2, 400)}
    table = beside(
        groups, {"imagenet-r": {"pgd_at": results({"clean": 0.4}, 2, 100)}}, EPS, counterparts("ViT-S", 0.03)
    )
    last = table.set_index("column").loc["average"]
    assert last["columns"] == 3 and last["published"] == pytest.approx((70.53 + 39.37 + 39.04) / 3)
    ours = table.set_index("column")["ours"]
    assert last["ours"] == pytest.approx(ours[["clean", "fgsm", "imagenet-r"]].mean()) and last["images"] == 500
