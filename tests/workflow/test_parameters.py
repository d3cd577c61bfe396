"""The parameters of a notebook: read as papermill reads them, checked against their types, changed by profiles."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest
from click.testing import CliRunner

from nullpaper.cli import main
from nullpaper.errors import InputError
from nullpaper.workflow.parameters import PARTIAL, PROFILES, check_parameters, parameters, profile_parameters

TINY = Path(__file__).parents[1] / "tiny" / "00_tiny.py"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the tiny notebook and of the profiles beside it."""
    shutil.copy(TINY.with_name("profiles.yaml"), tmp_path)
    return Path(shutil.copy(TINY, tmp_path))


def test_they_are_read_from_the_tagged_cell() -> None:
    read = parameters(TINY)
    assert {name: (parameter.default, parameter.type) for name, parameter in read.items()} == {
        "count": (4, "int"),
        "eps": (0.5, "float"),
        "names": (["a", "b"], "list"),
        "label": ("plain", "str"),
    }
    assert read["count"].help == "points drawn"


def test_values_are_converted() -> None:
    given = {"count": "12", "eps": "1", "names": '["x", "y"]', "label": "7"}
    assert check_parameters(TINY, given) == {"count": 12, "eps": 1.0, "names": ["x", "y"], "label": "7"}
    assert check_parameters(TINY, {"eps": 2, "names": ("x",)}) == {"eps": 2.0, "names": ["x"]}
    assert check_parameters(TINY.with_name("01_failing.py"), {"die": "true"}) == {"die": True}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("cuont", "1", "00_tiny.py has no parameter 'cuont'. Did you mean 'count'?.*count, eps, names, label"),
        ("count", "1.5", "'count' must be int, but '1.5' is not"),
        ("count", True, "'count' must be int, but True is not"),
        ("count", None, "'count' must be int, but None is not"),
        ("eps", "much", "'eps' must be float, but 'much' is not"),
        ("eps", "nan", "'eps' must be float, but 'nan' is not"),
        ("names", "[1]", r"'names' must be list\[str\]"),
        ("names", "a", r"'names' must be list\[str\]"),
        ("label", 3, "'label' must be str, but 3 is not"),
        ("count", "0", "'count' must be at least 1, but '0' is not"),
        ("count", -5, "'count' must be at least 1, but -5 is not"),
    ],
)
def test_bad_values_are_refused(name: str, value: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_parameters(TINY, {name: value})


@pytest.mark.parametrize("notebook", sorted(TINY.parents[2].glob("notebooks/[0-9]*.py")), ids=lambda path: path.stem)
def test_no_count_of_the_paper_may_be_none_or_negative(notebook: Path) -> None:
    """And no seed negative; 0 means something where it is the default."""
    for name, parameter in parameters(notebook).items():
        single = parameter.type == "int"
        numbers = [parameter.default] if single else parameter.default if parameter.type == "list" else []
        if {type(number) for number in numbers} == {int}:
            least = min(1, *numbers)
            check_parameters(notebook, {name: least if single else [least]})
            with pytest.raises(InputError, match=f"'{name}' must be at least {least}"):
                check_parameters(notebook, {name: least - 1 if single else [7, least - 1]})


def test_a_negative_default_takes_any_whole_number(tmp_path: Path) -> None:
    notebook = tmp_path / "shifted.py"
    notebook.write_text('# %% tags=["parameters"]\nshift: int = -1\nempty: list = []\n')
    assert check_parameters(notebook, {"shift": "-7", "empty": [-1]}) == {"shift": -7, "empty": [-1]}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("x = 1 +", "not valid Python"),
        ('x = len("ab")', "the parameter x = len.* must be a constant: int, float, str, bool, list"),
        ("x: Path = 'a'", "the parameter x: Path = 'a' must be a constant"),
        ("x = None", "the parameter x = None must be a constant"),
        ("x: int | None = None", r"the parameter x: int \| None = None must be a constant"),
    ],
)
def test_bad_notebooks_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(f'# %% tags=["parameters"]\n{line}\n')
    with pytest.raises(InputError, match=sentence):
        parameters(broken)


@pytest.mark.parametrize("text", ["", "# only words\n", "print(1)\n", '# + tags=["parameters"]\nimages: int = 3\n'])
def test_a_file_without_cells_is_refused_wherever_it_is_named(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path))
    script, grid = tmp_path / "script.py", tmp_path / "grid.yaml"
    script.write_text(text)
    grid.write_text(f"notebook: {script}\ngrid: {{images: [1]}}\n")
    for arguments in (["run", script], ["run", script, "--parameters"], ["sweep", grid, "--dry-run"]):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 2 and done.output.count("\n") == 1
        assert f"{script} has no cells: begin each with a line '# %%'" in done.output
    script.write_text(f"# %%\n{text}")
    assert parameters(script) == {}


@pytest.mark.parametrize(
    "mark", ['#%% tags=["parameters"]', '# %% Size {"tags": ["parameters"]}', "  # %% tags=['parameters']"]
)
def test_cells_are_marked_in_any_way_of_jupytext(tmp_path: Path, mark: str) -> None:
    notebook = tmp_path / "marked.py"
    notebook.write_text(f"x = 1\n{mark}\nimages: int = 3\n#%%\ny = 2\n")
    tags = [cell.metadata.get("tags") for cell in jupytext.read(notebook, fmt="py:percent").cells]
    assert tags == [None, ["parameters"], None] and list(parameters(notebook)) == ["images"]


def test_an_absent_notebook_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="no notebook .*00_tyni.py: .* Did you mean '00_tiny.py'?"):
        parameters(TINY.with_name("00_tyni.py"))


def test_profiles_change_defaults_and_fall_back(tiny: Path) -> None:
    changes = {profile: profile_parameters(tiny, profile) for profile in PROFILES if profile not in PARTIAL}
    assert changes == {"smoke": {"count": 3}, "cpu": {}, "gpu": {"count": 9}, "imagenet": {"count": 9}, "reference": {}}
    tiny.with_name("profiles.yaml").unlink()
    assert profile_parameters(tiny, "smoke") == {}


def test_a_profile_of_some_notebooks_is_refused_by_the_others(tiny: Path) -> None:
    with pytest.raises(
        InputError, match="00_tiny is no part of the profile photographs: add an entry for it to .*yaml"
    ):
        profile_parameters(tiny, "photographs")
    tiny.with_name("profiles.yaml").write_text("00_tiny: {photographs: {count: 5}}")
    assert profile_parameters(tiny, "photographs") == {"count": 5}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("00_tiny: {smok: {count: 3}}", "profile 'smok' is unknown. Did you mean 'smoke'?"),
        ("00_tiny: {smoke: {cuont: 3}}", "profile smoke: .*no parameter 'cuont'. Did you mean 'count'?"),
        ("00_tiny: {smoke: {count: many}}", "profile smoke: parameter 'count' must be int"),
        ("00_tiny: {smoke: [", "not valid YAML"),
        ("00_tiny: {smoke: {count: 3}, smoke: {count: 4}}", "'smoke' stands there twice"),
        ("00_tiny: {smoke: {1: 3}}", "a name must be a text"),
        ("00_tiny: {smoke: [1]}", "profile smoke must map parameters to values"),
        ("00_tiny: 3", "00_tiny must map profiles to parameters"),
        ("- 1", "must map names to values"),
    ],
)
def test_bad_profiles_are_refused(tiny: Path, text: str, sentence: str) -> None:
    tiny.with_name("profiles.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        profile_parameters(tiny, "smoke")


def test_a_missing_extra_is_one_sentence() -> None:
    """As in an environment without papermill: nothing of the package's own is to blame, and what to install is said."""
    script = (
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'papermill' else found(name, *rest)\n"
        "from nullpaper.cli import main; main(['verify'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs papermill: pip install 'nullpaper[notebooks]'" in done.stderr
