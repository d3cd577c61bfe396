"""What decides a run, and what does not; seen from the plan, so that no kernel has to start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nullpaper.errors import InputError
from nullpaper.workflow.plan import Plan, notebook_path, plan_run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the tiny notebook."""
    return make_project(tmp_path / "one", monkeypatch)


def make_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(REPOSITORY / "tests" / "tiny", root / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("NULLPAPER_ROOT", str(root))
    return root


def plan(root: Path, /, profile: str = "cpu", label: str | None = None, **given: object) -> Plan:
    return plan_run(root / "notebooks" / "00_tiny.py", given, profile=profile, label=label)


def test_values_decide_and_where_they_come_from_does_not(project: Path) -> None:
    usual = plan(project)
    assert usual.context.parameters == {"count": 4, "eps": 0.5, "names": ["a", "b"], "label": "plain"}
    assert plan(project, count=5).digest != usual.digest
    small = plan(project, "smoke")
    assert small.context.parameters["count"] == 3 and small.given == {"count": 3}
    assert small.digest == plan(project, count="3").digest == plan(project, label="mine", count=3).digest
    assert plan(project, "smoke", count=4).digest == usual.digest


def test_code_decides_and_prose_and_place_do_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, notebook = plan(project), project / "notebooks" / "00_tiny.py"
    text = notebook.read_text()
    notebook.write_text(text.replace("One stored result", "One result") + "\n# %% [markdown]\n# Another word.\n")
    assert plan(project).digest == usual.digest
    notebook.write_text(text.replace("index**2", "index**3"))
    assert plan(project).digest != usual.digest
    other = make_project(project.with_name("two"), monkeypatch)
    assert plan(other).digest == usual.digest and plan(other).context.run == usual.context.run


def test_files_that_parameters_name_decide_by_their_content(project: Path) -> None:
    (project / "some" / "weights").mkdir(parents=True)
    file = "some/weights/a.safetensors"
    (project / file).write_text("one")
    usual, by_file, by_folder = (plan(project, names=names) for names in (["a"], [file], ["some/weights"]))
    assert usual.context.weights.keys() == {"shipped"} and by_file.context.weights.keys() == {"shipped", file}
    (project / file).write_text("another")
    again = plan(project, names=[file])
    assert again.digest != by_file.digest and again.context.parameters == by_file.context.parameters
    assert plan(project, names=["some/weights"]).digest != by_folder.digest, "the names and sizes of its files"
    assert plan(project, names=["a"]).digest == usual.digest
    (project / "copy").mkdir()
    places = [project / file, shutil.copy(project / file, project / "copy")]
    notebook = project / "notebooks" / "00_tiny.py"
    one, other = (plan_run(notebook, {"label": str(place)}, profile="cpu", label="mine") for place in places)
    assert one.digest == other.digest and one.context.weights.keys() == {"shipped", "label"}, "no absolute path decides"
    assert one.context.parameters["label"] == "a.safetensors" and str(project) not in str(one.context)
    assert one.given["label"] == str(project / file), "the kernel opens it there"
    assert plan(project, names=[str(project / file)]).out.name == "00_tiny-names=_a.safetensors_"


def test_data_sets_decide_where_they_are_named(project: Path) -> None:
    assert plan(project).context.data == {}
    assert list(plan(project, names=["cifar10"]).context.data) == ["cifar10"]


def test_a_folder_of_photographs_is_a_data_set(project: Path) -> None:
    """By the names and sizes of its files, wherever it lies; what a parameter no longer names does not count."""
    notebook = project / "notebooks" / "00_tiny.py"
    text = notebook.read_text()
    notebook.write_text(text.replace("count: int", 'data: str = "cifar10"\nroot: str = ""\ncount: int'))
    assert list(plan(project).context.data) == ["cifar10"]
    for folder in ("one", "two"):
        (project / folder / "val" / "n01440764").mkdir(parents=True)
        (project / folder / "val" / "n01440764" / "a.JPEG").write_text("a")
    one, two = (plan(project, data="imagenet", root=str(project / folder)) for folder in ("one", "two"))
    assert list(one.context.data) == ["imagenet"] and one.context.data == two.context.data
    (project / "two" / "val" / "n01440764" / "b.JPEG").write_text("a")
    other = plan(project, data="imagenet", root=str(project / "two"))
    assert other.digest != two.digest and other.context.parameters["root"] == "two"
    notebook.write_text(
        notebook.read_text().replace("count: int", "others: list = []\nother_roots: list = []\ncount: int")
    )
    several = plan(project, data="cifar10", others=["imagenet"], other_roots=[str(project / "two")])
    assert several.context.data == {**plan(project).context.data, **other.context.data}
    assert several.context.parameters["other_roots"] == ["two"] and several.context.weights.keys() == {"shipped"}


def test_a_large_folder_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullpaper.workflow.plan.LARGE", 1)
    (project / "some" / "weights").mkdir(parents=True)
    for name in "ab":
        (project / "some" / "weights" / name).write_text("one")
    first = plan(project, names=["some/weights"])
    with monkeypatch.context() as patch:
        patch.setattr("nullpaper.workflow.plan.os.walk", None)
        assert plan(project, names=["some/weights"]).digest == first.digest
    (project / "some" / "weights" / "c").write_text("one")
    assert plan(project, names=["some/weights"]).context.weights != first.context.weights


def test_what_differs_from_the_profile_gets_a_folder_of_its_own(project: Path) -> None:
    assert plan(project).out == project / "build" / "cpu"
    assert plan(project, count=4).out.name == "cpu", "the profile's own value"
    assert plan(project, count=9, eps=0.25).out.name == "00_tiny-count=9-eps=0.25"
    assert plan(project, "reference", count=9).out.name == "00_tiny-count=9-reference"
    assert plan(project, names=["a", "b/c"]).out.name == "00_tiny-names=_a_b_c_"
    long = {plan(project, names=["x" * 80, name]).out.name for name in "ab"}
    assert len(long) == 2 and max(map(len, long)) < 40
    assert plan(project, label="mine", count=9).out.name == "mine"
    with pytest.raises(InputError, match="label 'a/b' is no folder name"):
        plan(project, label="a/b")


def test_a_notebook_is_named_by_path_or_by_name(project: Path) -> None:
    assert notebook_path("00_tiny") == project / "notebooks" / "00_tiny.py"
    assert notebook_path("some/where.py") == Path("some/where.py")
    assert notebook_path("00_tiny.py", beside=project / "notebooks") == project / "notebooks" / "00_tiny.py"
