"""Results that travel in one file: found on the other machine, verified first, and never in place of others."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nullpaper.cli import main
from nullpaper.errors import InputError
from nullpaper.files import sha256
from nullpaper.workflow.archive import SUMS, pack, unpack
from nullpaper.workflow.reference import read_manifest
from nullpaper.workflow.runs import run_notebooks
from nullpaper.workflow.store import load, stored

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests" / "tiny"


def project_in(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A project of one notebook, which is this process's from now on."""
    (folder / "notebooks").mkdir(parents=True)
    for name in ("00_tiny.py", "profiles.yaml"):
        shutil.copy(TINY / name, folder / "notebooks" / name)
    patch.setenv("NULLPAPER_ROOT", str(folder))
    patch.setenv("PYTHONPATH", str(REPOSITORY))
    patch.delenv("NULLPAPER_RUN", raising=False)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a project packed after a run of its notebook, which stored one result, and one result more."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        root = project_in(folder / "project", patch)
        (report,) = run_notebooks([root / "notebooks" / "00_tiny.py"], profile="smoke")
        assert report.error is None
        noise(1.0)
        (root / "build" / "store" / "noise" / ".abandoned.tmp").mkdir()
        assert pack(folder / "results.tar.gz", "smoke") == {"results": 2, "runs": 1}
    return folder / "results.tar.gz"


def noise(value: float) -> Path:
    """A result whose key does not depend on ``value``, as if another machine had computed it."""
    values = np.full(9, value)
    return stored("noise", {"seed": 0}, lambda: ({}, {"noise": values})).path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return project_in(tmp_path / "other machine", monkeypatch)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="nullpaper")


def files(root: Path) -> dict[str, str]:
    """The store and the runs under build/, apart from locks."""
    paths = (path for room in ("store", "smoke") for path in (root / "build" / room).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256(path) for path in paths if path.suffix != ".lock"}


def test_what_was_packed_elsewhere_is_not_run_again(packed: Path, project: Path) -> None:
    taken = call("store", "unpack", str(packed))
    assert taken.exit_code == 0 and taken.stdout == "3 results and runs are new, 0 were there already.\n"
    before = files(project)
    assert files(packed.parent / "project") == before
    done = call("paper", "--profile", "smoke")
    assert done.exit_code == 0 and done.stderr.startswith("00_tiny ") and "up to date" in done.stderr
    assert call("store", "unpack", str(packed)).stdout == "0 results and runs are new, 3 were there already.\n"
    assert files(project) == before


def test_weights_that_were_left_out_are_asked_for_in_one_sentence(project: Path, tmp_path: Path) -> None:
    noise(1.0)
    assert pack(tmp_path / "light.tar.gz", "smoke", largest=10) == {"results": 1}
    shutil.rmtree(project / "build" / "store")
    assert unpack(tmp_path / "light.tar.gz") == {"new": 1}
    with pytest.raises(InputError, match="left out when it was packed"):
        load(noise(1.0)).tensors()
    assert pack(tmp_path / "again.tar.gz", "smoke") == {"results": 1}


def test_a_different_result_stays(packed: Path, project: Path) -> None:
    mine = noise(2.0)
    before = files(project)
    said = call("store", "unpack", str(packed)).stdout
    assert said.startswith("2 results and runs are new, 0 were there already. 1 differ from those here, which stay")
    assert before.items() <= files(project).items()
    (mine / "metrics.json").write_text("{")
    assert unpack(packed) == {"new": 1, "there": 2}, "a damaged one gives way"
    run = project / "build" / "smoke"
    manifest = read_manifest(run)
    manifest["00_tiny"]["run"] = "00_tiny-of-other-parameters"
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = files(project)
    assert unpack(packed) == {"there": 2, "different": 1} and files(project) == before


def altered_copy(packed: Path, folder: Path, change) -> Path:
    """The file with other members: ``change`` gets and returns (name, content) pairs; sums are made anew."""
    with tarfile.open(packed) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive if member.name != SUMS]
    members = change(members)
    members.append((SUMS, "".join(f"{sha256(content)}  {name}\n" for name, content in members).encode()))
    with tarfile.open(folder / "altered.tar.gz", "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder / "altered.tar.gz"


def changed(end: str, content: bytes):
    return lambda members: [(name, content if name.endswith(end) else old) for name, old in members]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda members: [*members, ("../../outside", b"x")], "it holds '../../outside'"),
        (lambda members: [*members, ("/elsewhere/outside", b"x")], "it holds '/elsewhere/outside'"),
        (lambda members: [*members, ("store/noise/../outside", b"x")], "it holds 'store/noise/../outside'"),
        (lambda members: [*members, ("runs/smoke/00_tiny/figures/.hidden", b"x")], "it holds"),
        (lambda members: [*members, ("runs/smoke/00_tiny/more.txt", b"x")], "00_tiny is no whole run"),
        (lambda members: [*members, ("runs/store/00_tiny/manifest.json", b"{}")], "profile 'store' is unknown"),
        (changed("squares.csv", b"1,2"), "00_tiny is no whole run"),
        (changed("manifest.json", b"[]"), "is no manifest"),
        (changed("metrics.json", b"{}"), "is no whole result"),
        (changed("provenance.json", b"[]"), "is no whole result"),
    ],
)
def test_what_does_not_belong_into_the_file_is_refused(
    packed: Path, project: Path, tmp_path: Path, change, reason: str
) -> None:
    file = altered_copy(packed, tmp_path, change)
    result = call("store", "unpack", str(file))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and f"{file} is damaged or was not" in result.stderr
    assert reason in result.stderr and "nothing of it was used" in result.stderr
    assert files(project) == {} and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_what_is_no_file_are_refused(project: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        member = tarfile.TarInfo("store/noise/key/metrics.json")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InputError, match="is damaged or was not .*it holds 'store/noise/key/metrics.json'"):
        unpack(tmp_path / "links.tar")
    assert files(project) == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_damaged_file_is_one_sentence(packed: Path, project: Path, tmp_path: Path, share: float) -> None:
    content = packed.read_bytes()
    place, file = int(share * (len(content) - 8)), tmp_path / "results.tar.gz"
    flipped = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
    for damaged in (flipped, content[:place]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged or was not written by nullpaper store pack"):
            unpack(file)
    assert files(project) == {}


def test_a_flipped_bit_that_no_compression_guards_is_found(packed: Path, project: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(tmp_path / "results.tar", "w") as archive:
        for member, content in members:
            content = (
                content.replace(b'"seconds"', b'"sEconds"') if member.name.endswith("provenance.json") else content
            )
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError, match="the checksums do not agree"):
        unpack(tmp_path / "results.tar")
    assert files(project) == {}


def test_bad_input_is_one_sentence(project: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (["unpack", str(tmp_path / "absent")], "there is no file"),
        (["pack", str(tmp_path / "x.tar.gz"), "--profile", "smoke"], "no stored result and no finished run of smoke"),
        (["pack", str(tmp_path / "no" / "x.tar.gz"), "--profile", "smoke"], "cannot write to"),
    ):
        result = call("store", *arguments)
        assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [project.name], "nothing was written"
