"""The code of the book's pages runs as it stands there, with fewer images and steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from nullpaper.finetuning.methods import FinetuneRecipe

PAGES = Path(__file__).resolve().parents[2] / "book" / "pages"
SMALLER = {
    r"subset\(\d+\)": "subset(8)",
    r"batches\(\d+": "batches(8",
    r"\bsteps=\d+": "steps=1",
    r"(= finetune\(.*)\)": r"\1, recipe=RECIPE)",
    r"pgd-\d+": "pgd-2",
    r'\("patch", 1.0\)': '("patch-2", 1.0)',
}


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)  # one example writes a folder
    code = "\n".join(examples("python.md"))
    for large, small in SMALLER.items():
        code, count = re.subn(large, small, code)
        assert count, f"nothing in the examples matches {large}"
    names: dict[str, object] = {"RECIPE": FinetuneRecipe(batch_size=8, noise_images=16, dev_images=16)}
    exec(compile(code, "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "37930" in printed.replace(",", "") and str(list(names["METHODS"])) in printed
    assert (tmp_path / "build" / "adapter").is_dir()


def test_own_weights_and_an_own_folder_take_twelve_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny ViT of timm, and photographs of which colour tells the class."""
    monkeypatch.chdir(tmp_path)
    code = examples("own.md")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    tiny = {"img_size": 32, "depth": 1, "num_classes": 3}
    save_file(timm.create_model("vit_tiny_patch16_224", **tiny).state_dict(), "mine.safetensors")
    draws = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        Path("photos", name).mkdir(parents=True)
        for number in range(40):
            pixels = draws.integers(0, 100, (5, 6, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).resize((48, 40)).save(Path("photos", name, f"{number}.jpg"))
    Path("photos", "red", "40.jpg").write_bytes(b"")  # one is damaged
    smaller = {r"\bsteps=\d+": "steps=1", "pgd-20": "pgd-2"}
    for large, small in smaller.items():
        code = re.sub(large, small, code)
    sizes = f"load_vit(create_model('vit_tiny_patch16_224', **{tiny}), weights"
    code = code.replace('load_vit("vit_tiny_patch16_224", weights', sizes)
    names: dict[str, object] = {"create_model": timm.create_model}
    with pytest.warns(UserWarning, match="1 damaged image files are left out"):
        exec(compile(code, "own.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "photos: 3 classes, blue, green, red" in printed and "576 of 768 dimensions a patch" in printed
    assert "pgd-2@0.00392" in printed and "fog@5" in printed and (tmp_path / "build" / "mine").is_dir()
    vit, images, noise = (names[name] for name in ("vit", "images", "noise"))
    assert vit.num_classes == 3 and (vit(images + noise) - vit(images)).abs().max() < 1e-4 < noise.abs().max()
