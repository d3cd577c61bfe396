"""The code of the book's page on Python runs as it stands there, with fewer images and steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nullpaper.finetuning.methods import FinetuneRecipe

PAGE = Path(__file__).resolve().parents[2] / "book" / "pages" / "python.md"
SMALLER = {
    r"subset\(\d+\)": "subset(8)",
    r"batches\(\d+": "batches(8",
    r"\bsteps=\d+": "steps=1",
    r"(= finetune\(.*)\)": r"\1, recipe=RECIPE)",
    r"pgd-\d+": "pgd-2",
    r'\("patch", 1.0\)': '("patch-2", 1.0)',
}


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)  # one example writes a folder
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for large, small in SMALLER.items():
        code, count = re.subn(large, small, code)
        assert count, f"nothing in the examples matches {large}"
    names: dict[str, object] = {"RECIPE": FinetuneRecipe(batch_size=8, noise_images=16, dev_images=16)}
    exec(compile(code, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "37930" in printed.replace(",", "") and str(list(names["METHODS"])) in printed
    assert (tmp_path / "build" / "adapter").is_dir()
