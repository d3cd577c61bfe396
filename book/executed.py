"""An executed notebook as a page of the book: code folded, tables laid out, captions, links to what the text names."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import layout
import nbformat
import yaml

FIGURES = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8"))
FACTS = ("run", "commit", "versions", "parameters", "data", "weights")
SECTION = re.compile(r"^#{2,} (?=\((\w)\) )", re.MULTILINE)
REFERENCE = re.compile(
    r"`(?P<name>\d\d_[\w-]+)`"
    r"|```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|<[^>]+>|^#[^\n]*|^\(nb[^\n]*"  # not in these
    r"|(?<![\w.,/-])(?P<word>notebooks? )?(?P<number>[01]\d)(?P<letters> \(\w\)(?:(?:,| and| to) \(\w\))*)?"
    r"(?![\w-]|[.,]\d)"
    r"|(?<=[\s(])\((?P<own>[a-z])\)",
    re.DOTALL | re.MULTILINE,
)
VERDICT = re.compile(
    r"(?P<word>[A-Z][A-Z -]+): (?P<claim>[^\n]*)\n(?P<measured>.*?)\n    \((?P<criterion>.*)\)\s*", re.DOTALL
)
PART = re.compile(r"^(Question|Answer|What would change it|Limits): ", re.MULTILINE)


@dataclass
class Notebook:
    """An executed notebook at ``path``, whose tables and figures lie in the folders beside it."""

    path: Path
    node: nbformat.NotebookNode = field(init=False)
    names: dict[int, list[str]] = field(init=False)
    """The saved tables and figures that the outputs of a cell show."""

    def __post_init__(self) -> None:
        self.node = nbformat.read(self.path, as_version=4)
        self.names = dict(_named(self.node))

    @property
    def number(self) -> str:
        return self.path.name[:2]

    @property
    def letters(self) -> set[str]:
        return {
            letter
            for cell in self.node.cells
            if cell.cell_type == "markdown"
            for letter in SECTION.findall(cell.source)
        }

    def page(self, entry: dict[str, object], turned: Callable[[str], str]) -> nbformat.NotebookNode:
        """The page: lettered sections are named ``nb01-a``, the run is below the title, ``turned`` links the text."""
        shown = _Captions(self.path)
        for place, cell in enumerate(self.node.cells):
            if cell.cell_type == "markdown":
                cell.source = SECTION.sub(rf"(nb{self.number}-\1)=\n\g<0>", turned(cell.source))
                continue
            tags = cell.metadata.get("tags", [])
            if not {"parameters", "injected-parameters"} & set(tags):
                cell.metadata.tags = [*tags, "hide-input"]
            names = iter(self.names.get(place, []))
            cell.outputs = [out for out in (_output(out, shown, names) for out in cell.outputs) if out]
        run = "no record was found"
        if entry:
            run = f"profile {entry['profile']}, {entry['device']}, {entry['seconds'] / 60:.1f} min"
        facts = yaml.safe_dump({name: entry.get(name) for name in FACTS}, sort_keys=False)
        details = f'<details class="np-run"><summary>Run: {run}</summary>\n\n```yaml\n{facts}```\n\n</details>'
        title, _, rest = self.node.cells[0].source.partition("\n")
        self.node.cells[0].source = f"{title}\n\n{details}\n\n{rest}"
        return self.node


def linked(text: str, here: str, notebooks: dict[str, Notebook]) -> str:
    """Prose of notebook number ``here`` with links at the sections, notebooks, tables and figures that it names."""
    places = {name: n.path.stem for n in notebooks.values() for names in n.names.values() for name in names}

    def turned(match: re.Match[str]) -> str:
        found = match.groupdict()
        if found["name"] in places:
            return f'<a href="{places[found["name"]]}.html#{found["name"]}"><code>{found["name"]}</code></a>'
        if found["own"] and here in notebooks and found["own"] in notebooks[here].letters:
            return f"[({found['own']})](#nb{here}-{found['own']})"
        known = notebooks.get(found["number"] or "")
        if known is None or not (found["word"] or found["letters"] or found["number"][0] == "0"):
            return match[0]
        if known.number == here and not found["letters"]:
            return match[0]
        page = f"{known.path.stem}.ipynb"

        def section(letter: re.Match[str]) -> str:
            return f"[{letter[0]}]({page}#nb{known.number}-{letter[1]})" if letter[1] in known.letters else letter[0]

        return f"[{found['word'] or ''}{known.number}]({page})" + re.sub(r"\((\w)\)", section, found["letters"] or "")

    return REFERENCE.sub(turned, text)


class _Captions:
    """Numbers what a notebook shows and says below it what it is and where its files lie."""

    def __init__(self, path: Path) -> None:
        self.path, self.counts, self.used = path, {"Table": 0, "Figure": 0}, set[str]()

    def framed(self, kind: str, name: str | None, inside: str, text: str, links: dict[str, str]) -> str:
        self.counts[kind] += 1
        label = f"{kind} {int(self.path.name[:2])}.{self.counts[kind]}"
        anchor = name if name and name not in self.used else f"{kind.lower()}-{self.counts[kind]}"
        self.used.add(anchor)
        files = {link: target for link, target in links.items() if (self.path.parent / target).is_file()}
        files["source"] = f"source/{self.path.stem}.py.txt"
        ends = " · ".join(f'<a href="{target}">{link}</a>' for link, target in files.items())
        return (
            f'<figure class="np-{kind.lower()}" id="{anchor}">\n{inside}\n<figcaption><a href="#{anchor}">{label}</a> '
            f'{text} <span class="np-links">{ends}</span></figcaption>\n</figure>'
        )

    def table(self, html: str, name: str | None) -> str:
        """A table of pandas with its caption, which stands in the LaTeX of the table; empty if it has no rows."""
        table = layout.arranged(html)
        if table is None:
            return ""
        latex = self.path.parent / "latex" / f"{name}.tex"
        found = re.search(r"\\caption\{(.*)\}", latex.read_text(encoding="utf-8")) if latex.is_file() else None
        said = [escape(found[1].rstrip(".") + ".")] if found else []
        if table.everywhere:
            facts = (f"{layout.human(column.name)} {column.cells[0]}" for column in table.everywhere)
            said.append(escape(f"In every row: {', '.join(facts)}."))
        links = {"CSV": f"results/{name}.csv", "LaTeX": f"latex/{name}.tex"}
        return self.framed("Table", name, layout.rendered(table), " ".join(said), links)

    def figure(self, name: str) -> str:
        words = FIGURES.get(name, {})
        image = f'<img src="figures/{name}.png" alt="{escape(words.get("alt", name))}">'
        links = {"PDF": f"figures/{name}.pdf", "PNG": f"figures/{name}.png"}
        inside = f'<a href="figures/{name}.png">{image}</a>'
        return self.framed("Figure", name, inside, escape(words.get("caption", name)), links)


def _output(out: nbformat.NotebookNode, shown: _Captions, names: Iterator[str]) -> nbformat.NotebookNode | None:
    """An output as the book shows it, or None where it says nothing to a reader."""
    if out.output_type == "stream" and out.name == "stdout":
        return _shown(out, _answer(out.text)) if PART.search(out.text) else out
    data = out.get("data", {})
    if "text/html" in data:
        text = shown.table(data["text/html"], next(names, None)) if "<table" in data["text/html"] else data["text/html"]
        return _shown(out, text) if text else None
    if "image/png" in data:
        name = next(names, None)
        return (
            _shown(out, shown.figure(name))
            if name and (shown.path.parent / "figures" / f"{name}.png").is_file()
            else out
        )
    return None if data.get("text/plain", "").startswith("[PosixPath(") else out


def _shown(out: nbformat.NotebookNode, html: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": html})


def _answer(text: str) -> str:
    """What the last cell of a notebook prints, word of the verdict first, with lines as long as the page is wide."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        verdict, part = VERDICT.fullmatch(f"{block}\n"), PART.match(block)
        if verdict:
            said = {name: escape(" ".join(words.split())) for name, words in verdict.groupdict().items()}
            blocks.append(
                f'<div class="np-verdict"><p><strong>{said["word"].lower()}</strong> {said["claim"]}</p>'
                f'<p>{said["measured"]}</p><p class="np-small">{said["criterion"]}</p></div>'
            )
        elif part:
            blocks.append(f"<p><strong>{part[1]}.</strong> {escape(' '.join(block[part.end() :].split()))}</p>")
        else:
            blocks.append(f"<pre>{escape(block)}</pre>")
    return f'<div class="np-answer">{"".join(blocks)}</div>'


def _named(node: nbformat.NotebookNode) -> Iterator[tuple[int, list[str]]]:
    """For each code cell with outputs, the names under which what they show was saved, in order."""
    saved: dict[str, str] = {}
    used: dict[str, list[str]] = {}
    for place, cell in enumerate(node.cells):
        if cell.cell_type != "code":
            continue
        tree, figures, here = ast.parse(cell.source), [], []
        for part in ast.walk(tree):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and len(part.args) > 1:
                given = part.args[1].value if isinstance(part.args[1], ast.Constant) else ""
                if part.func.attr == "save_figure":
                    figures.append(given)
                elif part.func.attr == "save_table":
                    here.append(given)
                    saved |= dict.fromkeys(_identifiers(part.args[0]), given)
            elif isinstance(part, ast.Assign | ast.AugAssign | ast.FunctionDef):
                targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", part)]
                for target in targets:
                    for name in [target.name] if isinstance(target, ast.FunctionDef) else _identifiers(target):
                        used.setdefault(name, []).extend(_identifiers(part))
        last = _identifiers(tree.body[-1]) if tree.body else []
        near = [*last, *(name for one in last for name in used.get(one, []))]
        candidates = [saved[name] for name in last if name in saved] + (here if len(here) == 1 else [])
        candidates += [saved[name] for name in near if name in saved] + here[-1:]
        table = candidates[0] if candidates else ""
        queue = iter(figures)
        kinds = [out.get("data", {}) for out in cell.outputs]
        names = [
            next(queue, "") if "image/png" in kind else table
            for kind in kinds
            if {"image/png", "text/html"} & set(kind)
        ]
        if names:
            yield place, names


def _identifiers(tree: ast.AST) -> list[str]:
    return [part.id for part in ast.walk(tree) if isinstance(part, ast.Name) and part.id not in ("pd", "np")]
