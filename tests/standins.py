"""Tiny folders in the exact layouts of ImageNet and of the further sets of paper A, with stray and damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from nullpaper.data.photographs import IMAGENET_C, published
from nullpaper.models.vit import load_vit, save_vit

CLASSES = 4  # of a set, spread over its own


def photograph(path: Path, seed: int, size: tuple[int, int] = (80, 60)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC).save(path)


def class_folders(root: Path, name: str, each: int, suffix: str = "JPEG", first: int = 0) -> None:
    """Photographs of some classes of a published set, what is no photograph beside them, and one that is cut off."""
    folders = published(name).folders
    for place in range(0, len(folders), len(folders) // CLASSES):
        for number in range(each):
            photograph(root / folders[place] / f"{folders[place]}_{first + number}.{suffix}", 1_000 * place + number)
    folder = root / folders[0]
    (folder / "notes.txt").write_text("no photograph")
    (folder / "._hidden.JPEG").write_bytes(b"")
    (root / "LICENSE").write_text("no folder")
    whole = next(path for path in folder.iterdir() if path.suffix == f".{suffix}" and path.name[0] != ".")
    (folder / "zz_cut.JPEG").write_bytes(whole.read_bytes()[:300])


def imagenet(root: Path, train: int = 8, val: int = 2) -> Path:
    """ImageNet itself: ``train`` and ``val``."""
    class_folders(root / "train", "imagenet", train)
    class_folders(root / "val", "imagenet", val)
    return root


def further_sets(root: Path, val: Path, without: tuple[str, ...] = ()) -> Path:
    """The sets of paper A's table 1 in a folder, each by its name; those of ImageNet-C are files of ``val``."""
    for name in ("imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-sketch", "imagenet-stylized"):
        if name not in without:
            inner = root / name / "val" if name == "imagenet-stylized" else root / name
            class_folders(inner, name, 2, "jpeg" if name == "imagenet-v2" else "jpg")
    if "damagenet" not in without:
        names = [f"ILSVRC2012_val_{number:08d}" for number in range(5)]
        for number, stem in enumerate(names):
            photograph(root / "damagenet" / "DAmageNet" / f"{stem}.png", number)
        lines = [f"{stem}.JPEG {100 * number}" for number, stem in enumerate(names)]
        (root / "damagenet" / "val.txt").write_text("\n".join(lines))
    if "imagenet-c" not in without:
        family = root / "imagenet-c" / "all"
        for name in IMAGENET_C:
            for severity in range(1, 6):
                shutil.copytree(val, family / name / str(severity))
    return root


def weights(path: Path, name: str = "test_vit", **options: object) -> Path:
    """Random weights of an ImageNet model of timm, in a file."""
    save_vit(load_vit(name, pretrained=False, **options), path)
    return path
