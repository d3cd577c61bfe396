"""The verdicts on the papers' claims: they follow from the tables, and the README says what follows."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from nullpaper.cli import main
from nullpaper.errors import InputError
from nullpaper.studies.claims import CLAIMS
from nullpaper.studies.claims_finetuning import FINETUNING
from nullpaper.studies.claims_fulllora import FULLLORA
from nullpaper.studies.judging import BEGIN, END, WORDS, judge, markdown, section

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "cpu"
FROZEN = [claim for claim in CLAIMS if claim not in FINETUNING + FULLLORA]
SHOWN = f"{BEGIN}\n(.*)\n{END}"


def verdicts(folder: Path, name: str | None = None) -> dict[str, tuple[str, str]]:
    """Word and measured text by claim, of one or all."""
    claims = [claim for claim in CLAIMS if name in (None, claim.name)]
    return {verdict.claim.name: (verdict.holds, verdict.measured) for verdict in judge(folder, claims)}


def about(column: str, value: float, half: float = 1e-3) -> dict[str, float]:
    return {column: value, f"{column}_low": value - half, f"{column}_high": value + half}


def alter(folder: Path, name: str, where: dict[str, object], changes: dict[str, float]) -> None:
    """Write the changes into the rows of a table whose columns have the values of ``where``."""
    table = pd.read_csv(folder / f"{name}.csv")
    chosen = pd.Series(True, index=table.index)
    for column, value in where.items():
        chosen &= table[column] == value
    assert chosen.any() and changes.keys() <= set(table.columns)
    for column, value in changes.items():
        table[column] = table[column].mask(chosen, value)
    table.to_csv(folder / f"{name}.csv", index=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the reference results, to be altered."""
    copied = tmp_path / "results" / "cpu"
    shutil.copytree(
        REFERENCE, copied, ignore=shutil.ignore_patterns("verdicts.*", "*.tex", "*.json", "0[789]_*", "1?_*")
    )
    return copied


def committed(tmp_path: Path) -> Path:
    """The reference results that belong to the README: those of the commit, where a run has made this tree's anew."""

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)

    tracked = git("ls-files", "--error-unmatch", "README.md", "results/cpu").returncode == 0
    if not tracked or git("diff", "--quiet", "HEAD", "--", "README.md").returncode != 0:
        return REFERENCE  # no repository, or a README that is being written
    with tarfile.open(fileobj=io.BytesIO(git("archive", "HEAD", "results").stdout)) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / member.name).write_bytes(archive.extractfile(member).read())
    return tmp_path / "results" / "cpu"


def test_the_readme_says_what_follows_from_the_reference_results(tmp_path: Path) -> None:
    results = committed(tmp_path)
    shown = re.search(SHOWN, (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert shown == section(judge(results, CLAIMS), results), "the README is stale: run 'make report'"


def test_every_claim_on_frozen_models_is_measured_and_says_where_and_by_which_criterion() -> None:
    judged = verdicts(REFERENCE)
    assert len(judged) == len(CLAIMS), "names are unique"
    assert {name: word for name, (word, _) in judged.items() if word not in WORDS} == {}
    assert [claim.name for claim in FROZEN if judged[claim.name][0] == "not measured"] == []
    for claim in CLAIMS:
        assert re.match(r"(holds|ill-posed|no|better: .*Holds) if ", claim.criterion), claim.name
    for claim in FROZEN:
        notebook, *parts = claim.where.split(" ", 1)
        (source,) = (ROOT / "notebooks").glob(f"{notebook}_*.py")
        headings = source.read_text()
        assert all(f"\n# ## {part}" in headings for part in re.findall(r"\(\w\)", " ".join(parts))), claim.name


ALTERED = [
    ("existence", [("01_nullity", {}, {"dim_embedding": 1})], "holds"),
    ("per_channel", [("01_nullity", {}, {"dim_per_channel": 5_000})], "holds"),
    (
        "numerical_rank",
        [("01_nullity", {}, {"dim_embedding": 1}), ("01_ranks", {}, {"dim, SciPy float64": 1})],
        "holds",
    ),
    ("layer_norm", [("01_token_shift", {"noise": "shift along 1"}, about("relative_change", 0.5))], "no"),
    ("exact_noise", [("01_stability", {"noise": "exact nullspace"}, about("unchanged", 0.9))], "no"),
    ("stored_noise", [("01_stability", {"transport": "JPEG 90"}, about("unchanged", 0.999))], "holds"),
    ("largest_noise", [("02_lost_by_token", {}, about("influence", 0.5))], "not resolved"),
    ("permutation_control", [("02_unlearned", {"noise": "permuted"}, about("match", 0.9))], "not resolved"),
    ("learned_noise", [("02_lambda", {"noise": "learned"}, about("match", 0.5))], "no"),
    ("norm_of_lambda", [("02_lambda", {"lambda": 0.1}, about("norm", 100))], "no"),
    ("published_procedure", [("02_eps_runs", {"method": "official"}, about("influence", 0.01))], "holds"),
    ("norm_at_eps", [("02_eps", {"method": "random"}, about("norm", 100))], "no"),
    ("closure", [("02_closure", {"factor": -1}, about("influence", 0.01))], "holds"),
    ("size", [("02_dimension", {"dimension": 3420}, {"norm": 100})], "no"),
    ("own_noise", [("03_transfer", {}, about("over permuted locally", -0.1))], "no"),
    ("share_in_nullspace", [("03_nullspace_share", {}, {"share learned": 0.95})], "holds"),
    ("look_alike", [("04_exact", {}, about("relative distance", 0.3))], "holds"),
    ("approximate_look_alike", [("04_approximate", {"eps": 0.01}, about("relative distance", 0.9))], "no"),
    ("second_models", [("04_second_models", {"noise": "exact, largest"}, about("class of x", 0.1))], "holds"),
    ("small_noise", [("04_distance", {}, about("norm / adversarial", 2))], "no"),
    ("explanations", [("05_exact_agreement", {"level": "patch"}, about("rank_correlation", 0.1))], "holds"),
    ("moved_explanations", [("05_moved_agreement", {"map": "saliency"}, about("rank_correlation", 0.9))], "in part"),
    ("faithfulness", [("05_faithfulness", {"image": "noisy"}, about("deletion_change", -0.5))], "no"),
    ("watermarks", [("06_logo", {"transport": "float32"}, about("unchanged", 0.5))], "no"),
    ("any_logo", [("06_logo", {}, about("free", 0.9))], "holds"),
    ("survival", [("06_message", {"arrival": "JPEG 75"}, about("bits", 0.5))], "no"),
    ("solver", [("06_solver", {}, about("excess", 0, 1e-9))], "holds"),
]


@pytest.mark.parametrize(("name", "changes", "expected"), ALTERED, ids=[name for name, _, _ in ALTERED])
def test_a_verdict_turns_with_its_numbers(folder: Path, name: str, changes: list, expected: str) -> None:
    word, measured = verdicts(folder, name)[name]
    for change in changes:
        alter(folder, *change)
    turned, other = verdicts(folder, name)[name]
    assert word != expected and turned == expected and measured != other


def test_no_claim_is_left_out_of_the_test_above() -> None:
    assert [name for name, _, _ in ALTERED] == [claim.name for claim in FROZEN]


def test_intervals_without_end_decide_nothing(folder: Path) -> None:
    for path in folder.glob("*.csv"):
        table = pd.read_csv(path)
        for column in table.columns:
            if column.endswith(("_low", "_high")):
                table[column] = -1e9 if column.endswith("_low") else 1e9
        table.to_csv(path, index=False)
    counts = {"existence", "per_channel", "numerical_rank", "share_in_nullspace", "size"}  # no sample behind them
    judged = verdicts(folder)
    assert {judged[claim.name][0] for claim in FROZEN if claim.name not in counts} == {"not resolved"}


def test_what_is_missing_is_not_measured(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert {judged for judged in verdicts(tmp_path / "none").values()} == {
        ("not measured", "not measured at this profile")
    }
    (folder / "04_exact.csv").unlink()
    pd.read_csv(folder / "06_solver.csv").drop(columns="speedup").to_csv(folder / "06_solver.csv", index=False)
    alter(folder, "02_unlearned", {"noise": "permuted"}, {"match_low": float("nan")})
    judged = verdicts(folder)
    lacking = {claim.name for claim in FROZEN if judged[claim.name][0] == "not measured"}
    assert lacking == {"look_alike", "solver", "permutation_control"}
    (folder / "06_solver.csv").write_text("")
    with pytest.raises(InputError, match=r"06_solver.csv is no table"):
        judge(folder, CLAIMS)


MEASURES = ("clean", "fgsm", "pgd", "cw", "patch", "corruptions")


def compared(**differences: float | tuple[float, float]) -> pd.DataFrame:
    """Paired differences of nullspace to each control; a pair is a difference and half its interval over images."""
    rows = []
    for against in ("start", "zero", "random", "random_norm", "permuted", "pgd_at", "trades"):
        for measure in MEASURES:
            known = differences.get(f"{against}_{measure}", differences.get(measure, 0.0))
            value, half = known if isinstance(known, tuple) else (known, 0.01)
            images = {"images_low": value - half, "images_high": value + half}
            pair = {"method": "nullspace", "against": against, "measure": measure, "n": 3}
            rows.append(pair | about("difference", value, 0.01) | images)
    return pd.DataFrame(rows)


def words(folder: Path, **tables: pd.DataFrame) -> dict[str, str]:
    for name, table in tables.items():
        table.to_csv(folder / f"{name.removeprefix('t')}.csv", index=False)
    return {name: word for name, (word, _) in verdicts(folder).items()}


PAIRED = ("finetuning", "noise_or_finetuning", "random_noise", "matched_noise")


def test_better_needs_both_intervals_and_every_measure(tmp_path: Path) -> None:
    gains = dict.fromkeys(MEASURES, 0.05)
    cases = {
        "holds": gains,
        "in part": gains | {"clean": -0.05},
        "no": dict.fromkeys(MEASURES, -0.05),
        "not resolved": dict.fromkeys(MEASURES, (0.05, 0.1)),  # over the seeds it is resolved, over the images not
    }
    for expected, differences in cases.items():
        judged = words(tmp_path, t07_paired=compared(**differences))
        assert {judged[name] for name in PAIRED} == {expected}
    judged = words(tmp_path, t07_paired=compared(**gains, zero_fgsm=0.0))
    assert judged["noise_or_finetuning"] == "in part" and judged["random_noise"] == "holds"


def test_a_pair_may_be_stored_either_way_round_and_optional_attacks_may_lack(tmp_path: Path) -> None:
    table = compared(clean=-0.05, fgsm=0.05)
    before = verdicts_of(tmp_path, table)
    turned = table.rename(columns={"method": "against", "against": "method"})
    for low, high in (("difference_low", "difference_high"), ("images_low", "images_high")):
        turned[low], turned[high] = -table[high], -table[low]
    turned["difference"] = -table["difference"]
    assert verdicts_of(tmp_path, turned) == before
    assert words(tmp_path, t07_paired=table[~table["measure"].isin(["cw", "patch"])])["finetuning"] == "in part"
    assert words(tmp_path, t07_paired=table[table["measure"] != "fgsm"])["finetuning"] == "not measured"


def verdicts_of(folder: Path, table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    table.to_csv(folder / "07_paired.csv", index=False)
    return verdicts(folder)


def test_adversarial_training_trades_clean_accuracy_for_robustness(tmp_path: Path) -> None:
    trade = {"pgd": -0.2, "clean": 0.1, "corruptions": 0.1}
    assert words(tmp_path, t07_paired=compared(**trade))["adversarial_training"] == "holds"
    part = compared(**trade, trades_pgd=0.2)
    assert words(tmp_path, t07_paired=part)["adversarial_training"] == "in part"
    free = compared(**trade | {"clean": -0.1})
    assert words(tmp_path, t07_paired=free)["adversarial_training"] == "no"
    gains = {"pgd 8/255": 0.25, "clean": -0.3, "corruptions": -0.3}
    for sign, expected in ((1, "in part"), (-1, "no")):
        rows = [
            {"method": "vit_robust", "against": "start", "measure": measure, "difference": sign * gain, "images": 64}
            | {"images_low": sign * gain - 0.1, "images_high": sign * gain + 0.1}
            for measure, gain in gains.items()
        ]
        found = words(tmp_path, t07_paired=free, t07_robust=pd.DataFrame(rows))
        assert found["adversarial_training"] == expected


@pytest.mark.parametrize(
    ("last", "control", "expected"), [(30, 20, "holds"), (30, 40, "in part"), (10, 5, "no"), (20, 5, "not resolved")]
)
def test_the_nullspace_has_grown_if_the_norm_has(tmp_path: Path, last: float, control: float, expected: str) -> None:
    rows = [
        ("nullspace", 0, 20),
        ("nullspace", 40, 12),
        ("nullspace", 160, last),
        ("zero", 0, 20),
        ("zero", 160, control),
    ]
    table = pd.DataFrame({"method": m, "step": step, "n": 3} | about("norm", norm, 1) for m, step, norm in rows)
    assert words(tmp_path, t07_dynamics=table)["growth"] == expected


def test_ablations(tmp_path: Path) -> None:
    rows = [{"eps": eps, "method": "nullspace", "measure": "average", "n": 3} for eps in (0.01, 0.03, 0.1)]
    for values, half, expected in (((0.4, 0.405, 0.4), 0.02, "holds"), ((0.4, 0.5, 0.4), 0.02, "no")):
        table = pd.DataFrame(row | about("value", value, half) for row, value in zip(rows, values, strict=True))
        assert words(tmp_path, t08_eps=table)["eps_matters"] == expected
        assert words(tmp_path, t08_eps=table.assign(n=1))["eps_matters"] == "not resolved"
    stopped = compared(fgsm=0.03, clean=-0.02).query("against == 'zero'")
    stopped = stopped.assign(method="official, no early stop", against="official")
    assert words(tmp_path, t08_paired=stopped)["early_stop"] == "holds"
    single = stopped.assign(n=1, difference_low=stopped["difference"], difference_high=stopped["difference"])
    assert words(tmp_path, t08_paired=single)["early_stop"] == "not resolved"


def test_the_table_is_well_formed_markdown() -> None:
    lines = markdown(judge(REFERENCE, CLAIMS)).splitlines()
    assert len(lines) == len(CLAIMS) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="nullpaper")


@pytest.fixture
def root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NULLPAPER_ROOT", str(folder.parents[2]))
    return folder.parents[2]


def test_report_prints_stores_and_writes_between_the_markers(root: Path) -> None:
    readme = root / "README.md"
    readme.write_text(f"# before\n\n{BEGIN}\nstale words\n{END}\n\nafter | it\n")
    result = call("report", "--profile", "cpu", "--write", str(readme))
    assert result.exit_code == 0
    text = readme.read_text()
    assert (
        text.startswith(f"# before\n\n{BEGIN}\n")
        and text.endswith(f"\n{END}\n\nafter | it\n")
        and "stale words" not in text
    )
    assert re.search(SHOWN, text, re.DOTALL)[1] == result.stdout.rstrip("\n")
    table = pd.read_csv(root / "results/cpu/verdicts.csv")
    assert table["name"].tolist() == [claim.name for claim in CLAIMS] and table["criterion"].notna().all()
    assert r"\begin{longtable}" in (root / "results/cpu/verdicts.tex").read_text()
    assert call("report", "--profile", "cpu", "--write", str(readme)).exit_code == 0 and readme.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "cpuu"], "profile 'cpuu' is unknown. Did you mean 'cpu'?"),
        (["--profile", "gpu"], "run 'make paper PROFILE=gpu' first"),
        (["--profile", "cpu", "--write", "plain.md"], f"plain.md has no line '{BEGIN}'"),
        (["--profile", "cpu", "--write", "absent.md"], "there is no file absent.md"),
        (["--profile", "gpu", "--write", "marked.md"], "there are no results in"),
    ],
)
def test_bad_input_is_one_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(root)
    files = {"plain.md": f"{END}\n{BEGIN}\n", "marked.md": f"{BEGIN}\n{END}\n"}
    for name, content in files.items():
        Path(name).write_text(content)
    result = call("report", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Error: ") and sentence in result.stderr and result.stderr.count("\n") == 1
    assert {name: Path(name).read_text() for name in files} == files
    assert not (root / "results/cpu/verdicts.csv").exists(), "nothing was begun"


def test_a_paper_ends_with_the_verdicts_on_its_tables(root: Path) -> None:
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "tests/notebooks/00_tiny.py", root / "notebooks")
    result = call("paper", "--profile", "smoke")
    assert result.exit_code == 0 and result.stdout.endswith("results/smoke/verdicts.csv\n")
    assert set(pd.read_csv(root / "results/smoke/verdicts.csv")["holds"]) == {"not measured"}


def test_a_gain_is_faked_if_finetuning_without_noise_has_it_too(tmp_path: Path) -> None:
    def pair(method, against, value):
        return {
            "method": f"{method}, mismatched",
            "against": f"{against}, mismatched",
            "measure": "average",
            "n": 3,
        } | {**about("difference", value, 0.004), "images_low": value - 0.004, "images_high": value + 0.004}

    for gain, extra, expected in ((0.1, 0.0, "holds"), (0.1, 0.05, "in part"), (-0.1, 0.0, "no")):
        table = pd.DataFrame([pair("zero", "start", gain), pair("nullspace", "zero", extra)])
        assert words(tmp_path, t08_paired=table)["faked_gain"] == expected


SHIFTED = [("vit_robust", 0.4), ("pgd_at", 0.2), ("standard", 0.1)]


def adapted(folder: Path, gap: float, linear: float = 0.0, norm: float = 0.05, n: int = 3) -> dict[str, str]:
    """Words on paper B if LNLoRA loses ``gap`` to full, and the linear probe ``linear`` from the robust start."""
    rows, pairs = [], {("lnlora", "full"): -gap, ("lnlora", "lora"): norm, ("linear", "full"): -linear}
    for start in ("standard", "robust"):
        for (method, against), value in pairs.items():
            for measure in ("pgd", "cw", "clean"):
                key = {"data": "cifar10", "start": start, "training": "pgd_at", "method": method, "against": against}
                ends = {"images_low": value - 0.01, "images_high": value + 0.01}
                rows.append(key | {"measure": measure, "n": n} | about("difference", value, 0.005) | ends)
    long = [
        {"method": "vit_robust_lnlora", "against": "vit_robust", "measure": measure, "images": 100, "difference": -gap}
        | {"images_low": -gap - 0.01, "images_high": -gap + 0.01}
        for measure in ("pgd", "cw")
    ]
    sizes = pd.DataFrame({"adapter": ["full", "lnlora"], "share": [1, 0.05], "stored_bytes": [1e6, 9e4]})
    sizes["stored_share"] = sizes["stored_bytes"] / 1e6
    return words(folder, t09_paired=pd.DataFrame(rows), t09_long_paired=pd.DataFrame(long), t09_storage=sizes)


@pytest.mark.parametrize(("gap", "expected"), [(0.0, "holds"), (0.1, "no"), (0.02, "not resolved"), (-0.1, "holds")])
def test_comparable_means_that_little_is_lost_beyond_doubt(tmp_path: Path, gap: float, expected: str) -> None:
    assert adapted(tmp_path, gap)["comparable"] == expected


def test_the_norm_must_beat_lora_and_a_robust_start_may_make_adapters_needless(tmp_path: Path) -> None:
    found = adapted(tmp_path, gap=0.1, linear=0.0)
    assert found["norm_matters"] == "holds" and found["robust_start"] == "holds" and found["storage"] == "holds"
    found = adapted(tmp_path, gap=0.0, linear=0.1, norm=-0.05)
    assert found["norm_matters"] == "no" and found["robust_start"] in ("no", "not resolved")
    assert adapted(tmp_path, gap=0.1, linear=0.1)["robust_start"] == "in part"


def test_layernorm_must_move_more_than_the_rest_and_than_without_attack(tmp_path: Path) -> None:
    for factor, expected in ((2, "holds"), (0.5, "no")):
        rows = [
            {"model": model, "kind": kind, "n": 12} | about("relative", size, 0.01)
            for model, base in SHIFTED
            for kind, size in (("weight", base), ("LayerNorm scale", factor * base), ("LayerNorm bias", factor * base))
        ]
        table = pd.DataFrame(rows)
        if factor < 1:
            table.loc[table["model"] == "standard", ["relative", "relative_low", "relative_high"]] += 1
        assert words(tmp_path, t09_layernorm=table)["layernorm_shift"] == expected


def test_costs_are_judged_with_a_careful_and_a_careless_attack(tmp_path: Path) -> None:
    def table(careful: float, careless: float, total: float) -> pd.DataFrame:
        row = {"model": "nullpaper_vit_cifar10", "batch": 8, "n": 5, "careless_n": 5}
        row |= about("ratio", careful, 0.01) | about("careless_ratio", careless, 0.01)
        parts = dict.fromkeys(("gradients", "optimizer", "step_peak", "total"), total)
        return pd.DataFrame([{"adapter": "full"} | row | dict.fromkeys(parts, 1), {"adapter": "lnlora"} | row | parts])

    for given, expected in (((0.7, 0.6, 0.5), ("holds", "holds")), ((0.95, 0.7, 0.95), ("in part", "no"))):
        found = words(tmp_path, t09_costs=table(*given))
        assert (found["training_time"], found["training_memory"]) == expected
    assert words(tmp_path, t09_costs=table(1.1, 1.1, 1.0))["training_time"] == "no"
    wider = pd.concat([table(1.1, 1.1, 1.2), table(0.7, 0.6, 0.5).assign(model="wider")])
    found = words(tmp_path, t09_costs=wider)
    assert (found["training_time"], found["training_memory"]) == ("in part", "in part")
