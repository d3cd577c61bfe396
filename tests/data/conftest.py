"""What tests of photographs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import three_classes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return three_classes(tmp_path)
