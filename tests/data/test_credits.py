"""Credits: who made a photograph is read from the table of its data set, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nullpaper.data.credits import credits
from nullpaper.data.datasets import load_data

PAGE = "https://creativecommons.org/licenses/by/2.0/"


def test_each_author_is_named_once_with_licence_and_page_where_a_table_says_so(tmp_path: Path) -> None:
    for name in ("val/n01440764/a.png", "val/n01440764/b.png", "val/n01443537/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = load_data("imagenet", tmp_path).test.images
    assert credits(images, range(3)) == [], "no table"
    escaped = r"Cy\303\251 &amp; Co"
    rows = f'val/n01440764/a.png,"Ann, B.",https://a.org/1,{PAGE}\nval/n01443537/c.png,{escaped},https://c.org/3,free\n'
    (tmp_path / "attribution.csv").write_text(f"file,author,url,license\n{rows}")
    assert credits(images, [0, 1, 0, 2]) == ["Ann, B. (CC BY 2.0), https://a.org/1", "Cyé & Co (free), https://c.org/3"]
    (tmp_path / "attribution.csv").write_text("name\nx\n")
    assert credits(np.zeros((1, 8, 8, 3), np.uint8), [0]) == []
