"""What a run reads besides its code: data sets, shipped checkpoints, and files or folders that its parameters name."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nullpaper.data.fetch import DATASETS
from nullpaper.files import sha256
from nullpaper.workflow.code_identity import identity, syntax_tree

__all__ = ["Inputs"]

CHECKPOINTS = Path(__file__).parent.parent / "models" / "shipped"


@dataclass(frozen=True)
class Inputs:
    """Digests of what a notebook may read; each file is read once for any number of runs.

    Attributes:
        text: of the notebook, whose string constants are searched for names of known data sets.
        root: where the notebook runs, from which relative paths lead.
    """

    text: str
    root: Path
    _literals: set[Any] = field(init=False, repr=False)
    _known: dict[Path, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        constants = (node.value for node in ast.walk(syntax_tree(self.text)) if isinstance(node, ast.Constant))
        object.__setattr__(self, "_literals", {value for value in constants if isinstance(value, str)})

    def datasets(self, values: Mapping[str, Any]) -> list[str]:
        """The known data sets that the notebook or its parameters mention by name."""
        mentioned = self._literals.union(_strings(values))
        return [name for name in DATASETS if name in mentioned]

    def digests(self, values: Mapping[str, Any]) -> dict[str, str]:
        """By name: part of the identity of a run with these parameters, and stamped into its figures.

        A known data set stands by the sums that its arrays must have; weights and other files that parameters name
        stand by their content, folders by the names and sizes of their files.
        """
        found = {name: DATASETS[name].digest for name in self.datasets(values)}
        for value in _strings(values):
            path = self.root / value
            is_folder = len(Path(value).parts) > 1 and path.is_dir()  # a bare word is rather a name
            if value and (path.is_file() or is_folder):
                found[value] = self._digest(path)
        return found | {"checkpoints": self._digest(CHECKPOINTS, content=True)}

    def _digest(self, path: Path, *, content: bool = False) -> str:
        if path not in self._known:
            if path.is_file():
                self._known[path] = sha256(path)[:16]
            else:
                files = sorted(file for file in path.rglob("*") if file.is_file())
                facts = (sha256(file) if content else file.stat().st_size for file in files)
                names: Iterable[str] = (file.relative_to(path).as_posix() for file in files)
                self._known[path] = identity([*zip(names, facts, strict=True)])[:16]
        return self._known[path]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
