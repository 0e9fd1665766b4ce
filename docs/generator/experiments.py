"""Directives about experiments, sweeps and files of the repository."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from docs.generator.tables import comment_lines
from postrain.config.paths import CONF
from postrain.config.yaml_file import load_yaml

ROOT = CONF.parent
PARTS = re.compile(r"^(Question|Command|Rows|Result|Lesson)  ")
TITLES = {"Question": "Question", "Command": "Command", "Result": "Result", "Lesson": "What to take from it"}


def experiments(_: str) -> str:
    """All experiments: question, command, result."""
    return "\n\n".join(map(experiment, sorted((CONF / "experiment").glob("*.yaml"))))


def papers(_: str) -> str:
    """All experiments on the claims of papers: question, command, claims, result."""
    return "\n\n".join(map(paper, sorted((CONF / "experiment" / "paper").glob("*.yaml"))))


def paper(file: Path) -> str:
    """One of them, with its source and its claims."""
    node = load_yaml(file)["pipeline"]
    reference, claims = node["reference"], node["expect"]
    number = reference.get("arxiv")
    link = f"[arXiv {number}](https://arxiv.org/abs/{number})" if number else ""
    source = ", ".join(filter(None, (f"*{reference['title']}*", link, reference.get("where"), reference.get("model"))))
    rows = [f"| {claim['claim']} | `{claim['holds']}` | {claim.get('published', '')} |" for claim in claims]
    table = "\n".join(["| claim | holds if | published gap |", "|---|---|---|", *rows])
    return f"{experiment(file)}\n\n**Source.** {source}\n\n{table}"


def experiment(file: Path) -> str:
    """One experiment from the comment of its YAML."""
    first, *rest = comment_lines(file)
    name = file.relative_to(CONF / "experiment").with_name(file.stem)
    parts = [f"## {name}", f"*{first}.*", f"```bash\npython train.py experiment={name}\n```"]
    for name, lines in sections(rest).items():
        if name == "Command":
            took = re.search(r"\((.*)\)", " ".join(lines))
            parts += [took[1][0].upper() + took[1][1:] + "."] if took else []
        else:
            parts += [f"**{TITLES[name]}.** " + as_markdown(lines)]
    return "\n\n".join(parts)


def recipes(_: str) -> str:
    """A table of the recipes: name, description, columns of the data file."""
    lines = ["| `experiment=` | | columns of the rows |", "|---|---|---|"]
    for path in sorted((CONF / "experiment" / "recipe").glob("*.yaml")):
        first, *rest = comment_lines(path)
        lines.append(f"| `recipe/{path.stem}` | {first} | {' '.join(sections(rest)['Rows'])} |")
    return "\n".join(lines)


def sections(lines: list[str]) -> dict[str, list[str]]:
    """The lines of each labelled part, the label and the common indentation removed."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := PARTS.match(line):
            found[match[1]] = [line[10:]]
        elif found:
            found[[*found][-1]].append(line[10:])
    return found


def as_markdown(lines: list[str]) -> str:
    """Prose as a paragraph; indented lines, which are tables of numbers, as a code block."""
    blocks: list[tuple[bool, list[str]]] = []
    for line in lines:
        indented = line.startswith("  ")
        if not blocks or blocks[-1][0] != indented:
            blocks.append((indented, []))
        blocks[-1][1].append(line)
    return "\n\n".join(
        f"```text\n{textwrap.dedent(chr(10).join(block))}\n```" if is_table else " ".join(block).replace("<", "&lt;")
        for is_table, block in blocks
    )


def sweeps(_: str) -> str:
    """All studies in sweep/, each with its file."""
    parts = []
    for path in sorted((ROOT / "sweep").glob("*.yaml")):
        parts.append(
            f"## {path.stem}\n\n```bash\npython train.py sweep={path.stem}\n```\n\n{file(f'sweep/{path.name}')}"
        )
    return "\n\n".join(parts)


def file(path: str) -> str:
    """A file of the repository as a code block."""
    language = {".yaml": "yaml", ".py": "python"}.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8").strip()
    return f'```{language} title="{path}"\n{text}\n```'
