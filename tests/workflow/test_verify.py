"""`nullpaper verify` names what was edited, is missing or stale, and why; `nullpaper show` tells a file's origin."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from nullpaper import cli_provenance
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.studies.claims import CLAIMS
from nullpaper.studies.judging import judge, save
from nullpaper.workflow.code_identity import dumps, loads
from nullpaper.workflow.figures import files_of, manifest, read_stamp
from nullpaper.workflow.runs import paper, run_notebook
from nullpaper.workflow.store import stored
from nullpaper.workflow.verify import Finding, verify

REPOSITORY = Path(__file__).resolve().parents[2]
HELPER = '''"""Numbers to draw."""


def first(scale):
    return [scale * index for index in range(4)]  # a straight line


def second():
    return [3, 1, 2]
'''
NOTEBOOK = """# %% [markdown]
# # Two figures and a table

# %% tags=["parameters"]
profile: str = "cpu"
scale: float = 1.0
file: str = ""  # of more numbers

# %%
import helper
import matplotlib.pyplot as plt
import pandas as pd

from nullpaper.workflow.figures import save_figure, save_table

# %%
for name, values in {"first": helper.first(scale), "second": helper.second()}.items():
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot(values)
    save_figure(figure, name)

# %%
save_table(pd.DataFrame({"x": helper.first(scale)}), "numbers")
"""
FIGURES = [f"figures/smoke/{name}.{suffix}" for name in ("first", "second") for suffix in ("pdf", "png")]
TABLES = ["results/smoke/numbers.csv", "results/smoke/numbers.tex"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one notebook has run, as the paper's and under a label with a parameter and a data file."""
    root = tmp_path_factory.mktemp("made")
    for folder, name, text in (("notebooks", "00_two.py", NOTEBOOK), ("lib", "helper.py", HELPER)):
        (root / folder).mkdir()
        (root / folder / name).write_text(text)
    (root.parent / "numbers.txt").write_text("1 2 3")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, root)
        run(root)
        run(root, given={"scale": 2.0, "file": str(root.parent / "numbers.txt")}, label="mine")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, to be tampered with."""
    copy = tmp_path / "project"
    shutil.copytree(made, copy)
    enter(monkeypatch, copy)
    yield copy
    (made.parent / "numbers.txt").write_text("1 2 3")


def enter(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("NULLPAPER_ROOT", str(root))
    patch.delenv("NULLPAPER_RUN", raising=False)
    patch.syspath_prepend(str(root / "lib"))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "lib"), str(REPOSITORY)]))


def run(root: Path, **options: object) -> str:
    report = run_notebook(root / "notebooks" / "00_two.py", profile="smoke", progress=False, **options)
    assert report.error is None
    return report.run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def amiss(**options: object) -> dict[str, Finding]:
    return {finding.path: finding for finding in verify(**options) if finding.word != "well"}


def words(**options: object) -> dict[str, str]:
    return {path: finding.word for path, finding in amiss(**options).items()}


def call(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(getattr(cli_provenance, command), arguments)


def test_a_fresh_run_is_well_wherever_one_looks(root: Path) -> None:
    found = verify()
    assert len(found) == 12 and {finding.word for finding in found} == {"well"}
    assert [finding.path for finding in verify([root / "results"])] == [
        name.replace("smoke", "mine") for name in TABLES
    ] + TABLES
    assert {finding.path for finding in verify(label="smoke")} == {*FIGURES, *TABLES}
    done = call("verify")
    assert done.exit_code == 0
    assert done.output == "12 figures and tables, 0 stored results, 0 sweep jobs: 12 well\n"


def test_hand_edits_and_losses_are_named(root: Path) -> None:
    (root / TABLES[0]).write_text("x\n9\n")
    with Image.open(root / FIGURES[1]) as image:
        image.load()
    image.putpixel((5, 5), (255, 0, 0, 255))
    image.save(root / FIGURES[1])
    (root / FIGURES[2]).unlink()
    shutil.copy(root / FIGURES[3], root / "figures" / "smoke" / "stray.png")
    (root / "results" / "smoke" / "notes.json").write_text("{}")
    expected = {TABLES[0]: "edited", FIGURES[1]: "edited", FIGURES[2]: "missing", "figures/smoke/stray.png": "stray"}
    assert words() == {**expected, "results/smoke/notes.json": "not judged"}
    assert words(paths=[root / FIGURES[1], root / "results"]) == {
        FIGURES[1]: "edited",
        TABLES[0]: "edited",
        "results/smoke/notes.json": "not judged",
    }
    done = call("verify")
    assert done.exit_code == 1
    assert f"edited         {TABLES[0]}: differs from its checksum in the manifest: edited by hand" in done.output
    assert "make figures PROFILE=smoke" in done.output
    assert done.output.splitlines()[-1].endswith("2 edited, 1 missing, 1 stray, 1 not judged, 9 well")


def test_what_changed_is_named(root: Path) -> None:
    helper, notebook = root / "lib" / "helper.py", root / "notebooks" / "00_two.py"
    edit(helper, "# a straight line", "# another comment")
    assert words() == {}, "a comment decides nothing"
    edit(helper, "[3, 1, 2]", "[3, 1, 4]")
    found = amiss()
    assert len(found) == 12 and {finding.word for finding in found.values()} == {"stale"}
    assert {finding.reason for finding in found.values()} == {"helper changed"}
    helper.write_text(HELPER)
    edit(notebook, "Two figures", "Both figures")
    assert {finding.reason for finding in amiss().values()} == {"the text of 00_two.py changed"}
    notebook.write_text(NOTEBOOK)
    edit(notebook, "scale: float = 1.0", "scale: float = 1.5")
    found = amiss()
    assert found[FIGURES[0]].reason.startswith("parameter scale was 1.0, is 1.5")
    assert "parameter" not in found["figures/mine/first.pdf"].reason, "its parameters were given"
    edit(notebook, "scale: float = 1.5\n", "")
    assert "has no parameter 'scale'" in amiss()["figures/mine/first.pdf"].reason


def test_changed_data_is_named_with_the_command_that_draws_anew(root: Path, made: Path) -> None:
    data = made.parent / "numbers.txt"
    data.write_text("1 2 4")
    found = amiss()
    assert {Path(path).parent.name for path in found} == {"mine"}
    finding = found["figures/mine/first.png"]
    assert (finding.word, finding.reason) == ("stale", f"data {data} changed")
    assert finding.remedy == f"nullpaper run 00_two --profile smoke --label mine -p file {data} -p scale 2.0"
    data.unlink()
    assert set(words().values()) == {"not judged"}, "a machine without the data cannot tell"


def test_only_what_looks_different_is_drawn_anew(root: Path) -> None:
    """One figure of two changes, then the notebook stops making the other."""

    def state() -> dict[str, tuple[int, str]]:
        return {file: ((root / file).stat().st_mtime_ns, sha256(root / file)) for file in (*FIGURES, *TABLES)}

    shutil.rmtree(root / "figures" / "mine")
    shutil.rmtree(root / "results" / "mine")
    assert set(words().values()) == {"not judged"}, "a label without any files, as in a fresh clone"
    shutil.rmtree(root / "build" / "smoke")
    assert paper("smoke", stale=True) == [], "the manifest tells a fresh clone that nothing has to be drawn"
    before, old = state(), read_stamp(root / FIGURES[0])["run"]
    edit(root / "lib" / "helper.py", "[3, 1, 2]", "[3, 1, 4]")
    (report,) = paper("smoke", stale=True, progress=False)
    new, after = report.run, state()
    assert paper("smoke", stale=True) == []
    assert {file for file in before if before[file] != after[file]} == set(FIGURES[2:])
    assert words() == {} and set(files_of(new)) == {*FIGURES, *TABLES}
    assert read_stamp(root / FIGURES[0])["run"] == old != read_stamp(root / FIGURES[2])["run"] == new
    assert manifest()[FIGURES[0]]["drawn"]["run"] == old
    shown = call("show", str(root / FIGURES[0]), str(root / TABLES[0])).output
    assert f"\nrun          {old}\n" in shown and f"\nconfirmed    by run {new}, commit " in shown
    assert f"\ndrawn        by run {old}, commit " in shown, "of the table, which the manifest tells of"

    (root / TABLES[0]).write_text("x\n9\n")
    edit(root / "notebooks" / "00_two.py", '{"first": helper.first(scale), ', "{")
    assert words() == {**dict.fromkeys((*FIGURES, TABLES[1]), "stale"), TABLES[0]: "edited"}
    last = run(root)
    assert words() == dict.fromkeys(FIGURES[:2], "no longer made") and (root / TABLES[0]).read_text() != "x\n9\n"
    assert read_stamp(root / TABLES[0])["run"] == last and state()[FIGURES[2]] == after[FIGURES[2]]
    (root / "build" / "smoke" / "00_two.run.json").unlink()
    assert set(words().values()) == {"stale"}, "an unfinished run may yet make it"


def test_what_cannot_be_judged_is_said(root: Path) -> None:
    entries = manifest()
    for file, change in (
        (FIGURES[0], {"versions": {"python": "3.9.1"}}),
        (FIGURES[1], {"notebook": None}),
        (TABLES[0], {"notebook": "elsewhere.py"}),
        (TABLES[1], {"notebook": "09_gone.py"}),
    ):
        entries[file] = entries[file] | change
    (root / "figures" / "manifest.json").write_text(dumps(entries))
    found = amiss()
    assert found[FIGURES[0]].reason.startswith("made under Python 3.9.1, this is ")
    assert [found[file].word for file in (FIGURES[0], FIGURES[1], *TABLES)] == ["not judged"] * 3 + ["no longer made"]
    (root / "figures" / "manifest.json").write_text("{ damaged")
    assert words() == {"figures/manifest.json": "damaged"}


def test_damaged_results_and_jobs_are_named(root: Path) -> None:
    results = [stored("numbers", {"index": index}, lambda: [1, 2, 3]) for index in range(3)]
    folder = root / "build" / "sweeps" / "jobs"
    for key in ("a" * 20, "b" * 20):
        (folder / f"00_two-{key}").mkdir(parents=True)
        (folder / f"00_two-{key}" / "notebook.ipynb").write_text("{}")
        files = {"notebook.ipynb": sha256(b"{}")}
        record = {"key": key, "profile": "smoke", "label": "smoke", "parameters": {"scale": 1.0}, "files": files}
        (folder / f"00_two-{key}" / "job.json").write_text(dumps(record))
    assert words() == {}
    (results[0].path / "metrics.json").write_text("[1, 2, 4]")
    params = results[1].path / "params.json"
    params.write_text('{"index": 7}')
    edit(results[1].path / "provenance.json", sha256(b'{\n "index": 1\n}\n'), sha256(params))
    (results[2].path / "provenance.json").unlink()
    (folder / f"00_two-{'b' * 20}" / "notebook.ipynb").unlink()
    found = amiss()
    names = [result.path.relative_to(root).as_posix() for result in results]
    assert {path: finding.word for path, finding in found.items()} == {
        **dict.fromkeys(names, "damaged"),
        f"build/sweeps/jobs/00_two-{'b' * 20}": "damaged",
    }
    assert [found[name].reason for name in names] == [
        "metrics.json differs from its checksum: edited by hand, or damaged",
        "its parameters, code and data do not give its name: edited by hand, or renamed",
        "has no provenance.json",
    ]
    assert found[f"build/sweeps/jobs/00_two-{'b' * 20}"].reason == "notebook.ipynb is missing"
    assert "run its sweep again" in call("verify", str(folder)).output
    shown = call("show", str(folder / f"00_two-{'b' * 20}"))
    assert shown.exit_code == 0 and "scale 1.0" in shown.output


def test_verdicts_are_compared_with_their_tables(root: Path) -> None:
    folder = root / "results" / "cpu"
    shutil.copytree(REPOSITORY / "results" / "cpu", folder)
    csv, _ = save(judge(folder, CLAIMS), folder)
    assert words(paths=[folder / "verdicts.csv", folder / "verdicts.tex"]) == {}
    edit(csv, "holds", "fails")
    found = amiss(paths=[folder / "verdicts.csv", folder / "verdicts.tex"])
    assert [(finding.path, finding.word) for finding in found.values()] == [("results/cpu/verdicts.csv", "stale")]
    assert found["results/cpu/verdicts.csv"].remedy == "nullpaper report --profile cpu"


def test_a_path_without_anything_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to verify at .*frist.png.*Did you mean 'first.png'"):
        verify([root / "figures" / "smoke" / "frist.png"])


def test_show_reads_files_far_from_their_project(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [root / FIGURES[0], root / FIGURES[1], root / TABLES[1]]
    moved = [Path(shutil.copy(file, tmp_path)) for file in files]
    kept = root / TABLES[0]
    monkeypatch.delenv("NULLPAPER_ROOT")
    monkeypatch.chdir(tmp_path)
    told = loads(call("show", "--json", *map(str, (*moved, kept))).output)
    assert list(told) == [str(file) for file in (*moved, kept)]
    for facts in told.values():
        assert facts["notebook"] == "00_two.py" and facts["parameters"]["scale"] == 1.0
        assert facts["data"].keys() == {"checkpoints"} and facts["device"]
    lines = call("show", str(moved[0])).output.splitlines()
    assert {"notebook     00_two.py", "profile      smoke", "parameters", "  scale   1.0"} <= set(lines)
    ran = call("show", str(root / "build" / "mine" / "00_two.ipynb")).output
    assert "  scale   2.0" in ran.splitlines()
    absent = call("show", str(tmp_path / "absent.png"))
    assert isinstance(absent.exception, InputError) and "there is no file" in str(absent.exception)


def test_old_stamps_say_what_they_lack(root: Path) -> None:
    path = root / TABLES[1]
    stamp, _, rest = path.read_text().partition("\n")
    facts = json.loads(stamp.removeprefix("% nullpaper: "))
    del facts["device"], facts["data"]
    path.write_text(f"% nullpaper: {json.dumps(facts)}\n{rest}")
    lines = call("show", str(path)).output.splitlines()
    assert {"device       not recorded", "data         not recorded"} <= set(lines)
