"""The verdicts of all notebooks are one table, with one correction for all endpoints of a paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nullpaper.errors import InputError
from nullpaper.studies.endpoints import Endpoint
from nullpaper.studies.verdicts import Verdicts
from nullpaper.workflow.verdicts import COLUMNS, collected


def judged(where: str, **endpoints: tuple[str, Endpoint | None]) -> pd.DataFrame:
    """The table of a notebook whose claims are decided by these endpoints, each with its papers."""
    answer = Verdicts()
    for name, (papers, number) in endpoints.items():
        judge = (lambda number=number: ("0 of 3", "holds")) if number is None else (lambda n=number: ("", n.word, n))
        judge.__name__ = name
        answer.claim(papers, "", f"{name}, said", where=where, criterion="", endpoint="PGD")(judge)
    return answer.table()


def endpoint(p: float, n_seeds: int = 5) -> Endpoint:
    return Endpoint(0.05, 0.01, 0.09, p, n_seeds, 200, least=0.02)


def collected_from(folder: Path, **tables: pd.DataFrame) -> pd.DataFrame:
    paths = [folder / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        table.to_csv(path, index=False)
    (folder / "verdicts.csv").write_text(collected(paths))
    return pd.read_csv(folder / "verdicts.csv").set_index("name")


def test_p_values_are_corrected_over_the_notebooks_of_a_paper(tmp_path: Path) -> None:
    seven = judged("07 (a)", noise=("A", endpoint(0.03)), counted=("", None))
    nine = judged("09", norm=("B", endpoint(0.03)), joined=("A, B", endpoint(0.04)), few=("B", endpoint(0.001, 2)))
    assert seven["holds"].tolist() == ["holds", "holds"], "alone in its notebook it is resolved"
    table = collected_from(tmp_path, seven=seven, nine=nine)
    assert tuple(table.reset_index()) == COLUMNS
    assert table["holm"].round(3).to_dict() == pytest.approx(
        {"noise": 0.06, "counted": float("nan"), "norm": 0.06, "joined": 0.06, "few": 0.003}, nan_ok=True
    )
    assert table["verdict"].to_dict() == {
        **{"noise": "not resolved", "counted": "holds", "norm": "not resolved"},
        **{"joined": "not resolved", "few": "not resolved"},
    }
    assert table.loc["noise", ["measured", "low", "high", "n_seeds", "n_images"]].tolist() == [0.05, 0.01, 0.09, 5, 200]
    assert table["claim"]["noise"] == "noise, said" and table["where"]["noise"] == "07 (a)"


def test_a_table_of_earlier_columns_is_taken_as_it_is(tmp_path: Path) -> None:
    old = judged("01", noise=("A", endpoint(0.5)))[["name", "papers", "said", "where", "measured", "holds"]]
    table = collected_from(tmp_path, old=old.assign(holds="in part"))
    assert table["verdict"].tolist() == ["in part"] and table[["measured", "holm"]].isna().all(axis=None)


def test_no_verdict_is_lost_to_another_of_its_name(tmp_path: Path) -> None:
    one = judged("01", noise=("A", endpoint(0.5)))
    with pytest.raises(InputError, match="twins.csv has two verdicts of the name noise"):
        collected_from(tmp_path, twins=pd.concat([one, one]))
