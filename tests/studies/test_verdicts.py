"""Numbers in words, answers that an interval may leave open, and the verdicts that a notebook ends with."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nullpaper.statistics import Interval, crossed
from nullpaper.studies.endpoints import Endpoint, power
from nullpaper.studies.verdicts import (
    Verdicts,
    above,
    at_least,
    below,
    better,
    compare,
    conclude,
    difference,
    endpoint,
    every,
    grade,
    interval,
    intervals,
    negate,
    number,
    over_images,
    percent,
    points,
    row,
    rows,
    some,
    word,
)


def test_answers_are_three_valued() -> None:
    estimate = Interval(0.5, 0.4, 0.6, 10)
    assert [at_least(estimate, bound) for bound in (0.4, 0.5, 0.7)] == [True, None, False]
    assert [below(estimate, bound) for bound in (0.4, 0.5, 0.7)] == [False, None, True]
    others = (Interval(0.2, 0.1, 0.3, 9), Interval(0.5, 0.3, 0.7, 9), Interval(0.8, 0.7, 0.9, 9))
    assert [above(estimate, other) for other in others] == [True, None, False]
    for first, second in itertools.product((True, False, None), repeat=2):
        assert every((first, second)) == negate(some((negate(first), negate(second)))), "De Morgan"
    assert [word(*answers) for answers in ((True,), (False, True), (False,), (None,), (False, None))] == [
        *("holds", "in part", "does not hold", "not resolved", "not resolved")
    ]


def test_numbers_are_written_with_interval_and_n() -> None:
    share = Interval(1.0, 0.9962, 1.0, 1_000)
    assert percent(share) == "100 % [99.6, 100] (n = 1,000)"
    assert percent(share, "images") == "100 % [99.6, 100] of 1,000 images"
    assert points(Interval(0.012, -0.001, 0.02, 3), None) == "+1.2 [-0.1, +2.0] points"
    assert number(Interval(66.87, 61.8, 71.9, 2)) == "66.9 [61.8, 71.9] (n = 2)"
    assert number(Interval(66.87, 66.87, 66.87, 1)) == "66.9 (n = 1)", "one observation has no interval"


TABLE = pd.DataFrame({"key": ["a", "b", "b"], "x": [1.0, 2.0, None], "x_low": 0.0, "x_high": 3.0, "n": 5})


def test_a_number_is_taken_from_the_one_row_that_is_named() -> None:
    assert interval(row(TABLE, key="a"), "x") == Interval(1.0, 0.0, 3.0, 5)
    assert intervals(TABLE.dropna(), "x") == [Interval(1.0, 0.0, 3.0, 5), Interval(2.0, 0.0, 3.0, 5)]
    assert len(rows(TABLE, key="b", n=5)) == 2
    assert number(interval(TABLE.assign(x_low=np.nan, x_high=np.nan).iloc[0], "x")) == "1.0 [no interval] (n = 5)"
    for absent in (dict(key="c"), dict(key="a", n=6), dict(key="b")):
        with pytest.raises(KeyError):
            row(TABLE, **absent)
    with pytest.raises(KeyError, match="a value of x"):
        interval(TABLE.iloc[2], "x")


def test_a_notebook_ends_with_its_claims_judged_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Verdicts()

    @answer.claim("A, C", "eq. 1", "first | claim", where="01 (a)", criterion="holds if there is an a")
    def first() -> tuple[str, str]:
        return f"x = {number(interval(row(TABLE, key='a'), 'x'))}", word(True)

    @answer.claim("", "", "second claim", where="01 (b)", criterion="holds if there is a c")
    def second() -> tuple[str, str]:
        return "c", word(bool(len(rows(TABLE, key="c"))))

    table = answer.table()
    assert table["name"].tolist() == ["first", "second"]
    assert table["holds"].tolist() == ["holds", "not measured"]
    assert table["measured"][0] == "x = 1.0 [0.0, 3.0] (n = 5)" and "a row with key = c" in table["measured"][1]
    answer.show(limits="one table")
    printed = capsys.readouterr().out
    assert "HOLDS: first | claim (paper A, C, eq. 1)" in printed and "Limits: one table" in printed
    assert "x = 1.0 [0.0, 3.0] (n = 5)" in printed and "NOT MEASURED: second claim (no paper asks)" in printed


def test_a_word_that_is_none_is_refused() -> None:
    answer = Verdicts()
    with pytest.raises(ValueError, match="answers 'maybe': it must be one of holds"):
        answer.claim("", "", "said", where="01", criterion="holds if")(lambda: ("text", "maybe"))


def test_endpoints_of_a_paper_are_corrected_for_their_number_and_few_seeds_decide_nothing() -> None:
    answer = Verdicts()

    def state(name: str, papers: str, number: Endpoint) -> None:
        judge = lambda: (number.in_points(), number.word, number)  # noqa: E731
        judge.__name__ = name
        answer.claim(papers, "", name, where="07", criterion="holds if above 0", endpoint="PGD")(judge)

    large = Endpoint(0.05, 0.02, 0.08, 0.02, 5, 100, least=0.01)
    state("alone", "B", large)
    state("one", "A", large)
    state("other", "A, C", replace(large, p=0.04))
    state("two_seeds", "", replace(large, n_seeds=2))
    state("small", "C", Endpoint(0.001, -0.002, 0.004, 0.5, 5, 100, least=0.01))
    table = answer.table().set_index("name")
    assert table["holds"].to_dict() == {
        **{"alone": "holds", "one": "holds", "other": "not resolved"},
        **{"two_seeds": "not resolved", "small": "does not hold"},
    }
    assert table.loc["alone", ["value", "low", "high", "n_seeds", "least"]].tolist() == [0.05, 0.02, 0.08, 5, 0.01]
    assert table["measured"]["alone"] == "+5.0 [+2.0, +8.0] points (5 seeds x 100 images)"


def test_a_measure_of_one_model_has_the_p_value_of_its_interval() -> None:
    share = Interval(0.98, 0.95, 0.99, 200)
    close, far = (Endpoint.over_images(share, bound) for bound in (0.95, 0.9))
    assert close.p == pytest.approx(0.05) and far.p < 0.05 and (far.value, far.n_images) == (0.98, 200)
    assert Endpoint.over_images(share, 0.99).p == pytest.approx(0.05) and np.isnan(far.n_seeds)
    constant = Interval(1.0, 1.0, 1.0, 8)
    assert [Endpoint.over_images(constant, bound).p for bound in (0.5, 1.0)] == [0.0, 1.0]


def test_one_number_a_seed_has_the_p_value_of_its_interval() -> None:
    values = np.array([0.1, 0.2, 0.25])
    end = Endpoint.over_seeds(values, 0.05).low
    touching = Endpoint.over_seeds(values - end, 0.05, 100)
    assert touching.p == pytest.approx(0.05) and (touching.n_seeds, touching.n_images) == (3, 100)
    for tied in (values[:2], np.full(5, 0.1)):
        assert np.isnan([Endpoint.over_seeds(tied, 0.05).low, Endpoint.over_seeds(tied, 0.05).p]).all()


def test_an_endpoint_turns_with_its_pair_and_tests_what_it_is_told() -> None:
    rng = np.random.default_rng(0)
    values = 0.05 + rng.normal(0, 0.01, (4, 1)) + rng.normal(0, 0.1, (4, 200))
    estimate = crossed(values)
    line = {"difference": estimate.value, "low": estimate.interval.low, "high": estimate.interval.high}
    table = pd.DataFrame([{"method": "a", "against": "b", "measure": "pgd", "n": 4, "images": 200, **line}])
    table = table.assign(df=estimate.df, p=estimate.p())
    first, second = (endpoint(table, *pair, "pgd", least=0.02) for pair in ("ab", "ba"))
    assert (first.value, first.low, first.high) == pytest.approx((-second.value, -second.high, -second.low))
    assert first.p == pytest.approx(second.p) == estimate.p() and (first.word, second.word) == (
        "holds",
        "does not hold",
    )
    assert endpoint(table, "a", "b", "pgd", least=0.02, null=-0.02).p == pytest.approx(estimate.p(-0.02))


@pytest.mark.parametrize(("by_seed", "text"), [(0.0, "5 seeds x "), (0.02, "10 seeds x "), (0.5, "would not be")])
def test_power_says_how_many_seeds_and_images_resolve_an_effect(by_seed: float, text: str) -> None:
    rng = np.random.default_rng(1)
    pilot = np.linspace(-1, 1, 4)[:, None] * by_seed + rng.normal(0, 0.2, 400) + rng.normal(0, 0.2, (4, 400))
    assert text in power(pilot, 0.03)


def test_the_end_of_a_notebook_is_question_answer_and_what_would_change_it(capsys) -> None:
    conclude("Is it?", "Yes, 3 of 4.", "a fifth", "four of them")
    lines = capsys.readouterr().out.split("\n\n")
    conclude("Is it?", lambda: str(row(TABLE, key="c")), "a row")
    assert "the tables lack a row with key = c" in capsys.readouterr().out
    assert [line.strip() for line in lines] == [
        *("Question: Is it?", "Answer: Yes, 3 of 4.", "What would change it: a fifth", "Limits: four of them")
    ]


def paired(values: dict[str, float], half: float = 0.01, n: int = 3) -> pd.DataFrame:
    """Differences of method a to b by measure, with intervals of these half widths over images and 0.01 over seeds."""
    return pd.DataFrame(
        {"method": "a", "against": "b", "measure": measure, "n": n, "images": 100, "difference": value}
        | {"difference_low": value - 0.01, "difference_high": value + 0.01}
        | {"images_low": value - half, "images_high": value + half}
        for measure, value in values.items()
    )


@pytest.mark.parametrize(
    ("values", "half", "n", "expected"),
    [
        ({"clean": 0.05, "fgsm": 0.05}, 0.01, 3, "holds"),
        ({"clean": -0.05, "fgsm": 0.05}, 0.01, 3, "in part"),
        ({"clean": -0.05, "fgsm": -0.05}, 0.01, 3, "does not hold"),
        ({"clean": -0.05, "fgsm": 0.0}, 0.01, 3, "does not hold"),
        ({"clean": 0.05, "fgsm": 0.05}, 0.1, 3, "not resolved"),  # over seeds it is resolved, over images not
        ({"clean": 0.05, "fgsm": 0.05}, 0.01, 1, "not resolved"),  # a single seed
    ],
)
def test_better_needs_both_intervals_and_every_measure(values, half: float, n: int, expected: str) -> None:
    assert grade(compare(paired(values, half, n), "a", "b", values)[1].values()) == expected


def test_a_pair_may_stand_either_way_round() -> None:
    table = paired({"clean": -0.05, "fgsm": 0.02})
    for estimate in difference(table, "b", "a", "clean")[:2]:
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.05, 0.04, 0.06))
    assert compare(table, "b", "a", ["clean", "fgsm"])[1] == {"clean": True, "fgsm": False}
    assert over_images(table, "a", "b", "fgsm") == Interval(0.02, 0.01, 0.03, 100)


def test_differences_are_written_with_both_intervals() -> None:
    text, answers = compare(paired({"clean": 0.05, "fgsm": 0.02}, 0.03).assign(steps=40), "a", "b", ["clean", "fgsm"])
    assert text == (
        "clean +5.0 [+4.0, +6.0] / [+2.0, +8.0], FGSM +2.0 [+1.0, +3.0] / [-1.0, +5.0] points "
        "over 3 seeds / images, 40 steps"
    )
    assert answers == {"clean": True, "fgsm": None}
    with pytest.raises(KeyError):
        compare(paired({"clean": 0.05}), "a", "b", ["clean", "fgsm"])
    assert better(Interval(0.1, 0.05, 0.15, 1), Interval(0.1, 0.05, 0.15, 1)) is None
