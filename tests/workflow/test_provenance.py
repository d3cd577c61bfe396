"""The project's folder, the commit with or without changes, and the device, wherever the process runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nullpaper.errors import InputError
from nullpaper.workflow.provenance import RunContext, commit_of, device_name, project_root, run_context


def test_a_context_reaches_another_process_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLPAPER_RUN", raising=False)
    assert run_context() == RunContext() and run_context().notebook == "interactive"
    context = RunContext("01_x-abc", "01_x", parameters={"limit": float("inf"), "names": ["ü"]}, out="/out")
    for name, value in context.environment().items():
        monkeypatch.setenv(name, value)
    assert run_context() == context


def test_the_project_is_found_from_a_folder_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NULLPAPER_ROOT", raising=False)
    deep = tmp_path / "notebooks" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert project_root() == deep, "a folder called notebooks is not enough"
    (tmp_path / "notebooks" / "profiles.yaml").touch()
    assert project_root() == tmp_path
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
    monkeypatch.chdir(deep)
    (deep / "notebooks").mkdir()
    assert project_root() == tmp_path
    (deep / "notebooks" / "00_mine.py").touch()
    assert project_root() == deep
    monkeypatch.setenv("NULLPAPER_ROOT", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="NULLPAPER_ROOT names .*absent, which is not a folder: create it"):
        project_root()


def test_a_commit_says_whether_sources_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert commit_of(tmp_path) is None
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    commit = commit_of(tmp_path)
    assert commit and len(commit) == 40
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "drawn.png").touch()
    assert commit_of(tmp_path) == commit, "what runs generate does not count"
    (tmp_path / "code.py").touch()
    assert commit_of(tmp_path) == f"{commit} with changes"


def test_a_device_has_a_name_and_its_threads() -> None:
    assert "None" not in device_name() and len(device_name()) > 5
