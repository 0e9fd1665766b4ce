"""The page of a run: complete, self-contained, escaped, and written from damaged folders too."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.report import write_report
from postrain.report.folders import MaskedRow, read_run
from postrain.report.pictures import VARIABLES

FILES = ("metrics.jsonl", "samples.jsonl", "diagnostics.jsonl", "status.json", "manifest.json", "config.yaml")
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Nesting(HTMLParser):
    """Fails on a tag that is closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(path: Path) -> str:
    return checked(write_report(path).read_text(encoding="utf-8"))


def checked(text: str) -> str:
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    return text


def test_run_page_has_all_sections(full_run: Path) -> None:
    text = checked((full_run / "report.html").read_text(encoding="utf-8"))
    for wanted in (
        "<title>ppo · nano</title>",
        "nano stood in for gpt2",
        "took</span> 31.5 s",
        '<span class="was">0.24</span>',  # eval/reward/total before the first update
        "The loss is near 0, as expected",
        "Explained variance",
        "Mia found a kite in the",
        "the world: stories",
        "python train.py method=ppo model=gpt2 trainer=cpu",
        "a made-up CPU",
        "kl/coef <b>0.050</b>",
    ):
        assert wanted in text, wanted
    assert "Missing or damaged files" not in text
    assert (full_run / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_page_loads_nothing_external(full_run: Path) -> None:
    text = (full_run / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # XML namespaces, not pages.
    assert not re.search(r"<(script|link|iframe|img)\b|@import|\bsrc=", text)
    assert all(
        target.startswith("#")
        for target in re.findall(r'href="([^"]*)"|url\(([^)]*)\)', text)
        for target in target
        if target
    )


def test_inline_figures_use_css_colors(full_run: Path) -> None:
    text = (full_run / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) > 15
    for picture in pictures:
        assert set(re.findall(r"#[0-9a-f]{6}\b", picture)) <= {"#000000"}  # matplotlib's tick marks, of length 0.
        assert "var(--muted)" in picture
    style = text[: text.index("</style>")]
    for variable in VARIABLES.values():
        name = variable.removeprefix("var(").removesuffix(")")
        assert style.count(f"{name}:") == 2, f"{name} needs a light and a dark value"


def test_text_from_files_is_escaped(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True)
    injection = "</p><script>alert(1)</script>{{ 7 * 7 }}"
    sample = {"row": 0, "prompt": injection, "completion": injection, "rewards": {injection: 0.5}, "gold": {}}
    (path / "samples.jsonl").write_text("".join(json.dumps({"update": k, **sample}) + "\n" for k in (0, 60)))
    note = {"update": 1, "title": injection, "text": injection}
    (path / "diagnostics.jsonl").write_text(json.dumps(note) + "\n")
    (path / "status.json").write_text(json.dumps({"status": injection, "reason": injection}))
    with (path / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({"update": k, injection: k * 0.1}) + "\n" for k in (58, 59, 60)))
    text = page_of(path)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_listed(run_maker: Callable[..., Path], tmp_path: Path, name: str) -> None:
    path = run_maker(tmp_path, samples=2, few=True)
    (path / name).unlink()
    text = page_of(path)
    # A run without diagnostics has no diagnostics.jsonl.
    assert (f"<li>{name} is missing: " in text) == (name != "diagnostics.jsonl")


def test_run_with_an_empty_status_file_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("")
    text = page_of(tmp_path)
    assert text.count("<li>") == 5
    assert "unknown" in text
    assert not (tmp_path / "training_curves.png").exists()


@pytest.mark.parametrize("seed", range(4))
def test_page_survives_truncated_files(run_maker: Callable[..., Path], tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = run_maker(tmp_path, samples=2, seed=seed, few=True)
    for name in FILES:
        content = (path / name).read_bytes()
        junk = rng.choice([b"", b"\xff\xfe", b"[1, 2", b'\n{"update": "x", "loss": []}\n', b"\nnull\n"])
        (path / name).write_bytes(content[: rng.randrange(len(content))] + junk)
    page_of(path)


ODD = [
    None,
    True,
    -1,
    0,
    3,
    1e-320,
    1e308,
    -1e308,
    10**400,
    "nan",
    "inf",
    "text",
    "\ud800",
    "$x$ _",
    "",
    [],
    {},
    [{}],
    [1, "a"],
]


@pytest.mark.parametrize("seed", range(6))
def test_page_survives_values_of_any_type(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def odd(*names: str) -> dict[str, object]:
        return {name: rng.choice([*ODD, {"commit": rng.choice(ODD), "$x$": rng.choice(ODD)}]) for name in names}

    def lines(*names: str) -> str:
        return "".join(json.dumps(odd(*names)) + "\n" for _ in range(12))

    (tmp_path / "metrics.jsonl").write_text(lines("update", "time", "loss", "eval/loss", "$x$", "_a", "gold/$"))
    (tmp_path / "samples.jsonl").write_text(lines("update", "row", "prompt", "completion", "rewards", "gold"))
    (tmp_path / "diagnostics.jsonl").write_text(lines("update", "title", "text", "stops"))
    (tmp_path / "status.json").write_text(json.dumps(odd("status", "reason", "started", "seconds")))
    names = ("reproduce", "stand_in_for", "git", "seeds", "data", "versions", "hardware")
    (tmp_path / "manifest.json").write_text(json.dumps(odd(*names)))
    page_of(tmp_path)


def test_metrics_that_are_not_finite_are_listed_and_left_out(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True, samples=2)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 61, "loss": "nan", "grad_norm": "inf"}) + '\n{"update": 62, "lo')
    (path / "status.json").write_text(json.dumps({"status": "failed", "reason": "loss is nan at update 61"}))
    text = page_of(path)
    assert "loss was not finite, first at update 61" in text
    assert "metrics.jsonl: 1 damaged line left out" in text
    assert "Why it ended.</b> loss is nan at update 61" in text


def test_run_without_samples_and_evaluations_has_a_page(tmp_path: Path) -> None:
    path = tmp_path / "reward" / "nano" / "run"
    path.mkdir(parents=True)
    lines = [json.dumps({"update": k, "loss": 0.7 - 0.1 * k, "accuracy": 0.5 + 0.1 * k}) + "\n" for k in range(1, 4)]
    (path / "metrics.jsonl").write_text("".join(lines))
    text = page_of(path)
    assert "<strong>0.80</strong>" in text
    assert "Samples before and after training" not in text


def test_page_is_deterministic(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True, samples=2)
    assert page_of(path) == page_of(path)


def test_command_needs_no_torch(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True, samples=2)
    code = (
        "import runpy, sys; sys.argv = ['report', sys.argv[1]]\n"
        "try: runpy.run_module('postrain.report', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "loaded = {'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules); assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(path / "report.html")


def test_command_names_a_missing_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "postrain.report", str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no folder ")
    assert done.stderr.count("\n") == 1


def test_unwritable_page_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write .*report\.html: .*; write the report elsewhere with --output"):
        write_report(tmp_path)
    assert write_report(tmp_path, tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"


def test_run_page_shows_loss_mask_forgetting_and_cost(run_maker: Callable[..., Path], tmp_path: Path) -> None:
    path = run_maker(tmp_path, few=True, samples=2)
    stretches = [{"text": "<|user|>", "use": "context"}, {"text": "Paris", "use": "loss"}, {"text": 3}]
    (path / "manifest.json").write_text(json.dumps({"data": {"shown": [{"row": 7, "stretches": stretches}, "odd"]}}))
    (path / "result.json").write_text(json.dumps({"parameters": 2000, "trainable": 500, "stopped": "flat reward"}))
    with (path / "metrics.jsonl").open("a") as file:
        lines = [{"update": k, "eval/forgetting/perplexity": 2.0 + k} for k in (0, 60)]
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    text = page_of(path)
    for wanted in (
        '<span class="mask context">&lt;|user|&gt;</span><span class="mask loss">Paris</span>',
        "<td>2.00</td><td>62.0</td><td>+60.0</td>",
        "<dd>25 %</dd>",
        "It ended early.</b> flat reward",
    ):
        assert wanted in text, wanted


@pytest.mark.parametrize(
    ("saved", "use"),
    [("read", "context"), ("learned", "loss"), ("right", "positive_step"), ("wrong", "negative_step"), (3, "context")],
)
def test_loss_mask_of_an_earlier_version_is_read_under_the_present_names(tmp_path: Path, saved: Any, use: str) -> None:
    row = {"row": 1, "stretches": [{"text": "a", "use": saved}]}
    (tmp_path / "manifest.json").write_text(json.dumps({"data": {"shown": [row]}}))
    assert read_run(tmp_path).masks() == [MaskedRow("row 1", (("a", use),))]


def test_run_writes_metrics_and_samples_like_an_evaluation(full_run: Path) -> None:
    before, after = json.loads((full_run / "evaluation_stats.json").read_text())["models"]
    assert (before["name"], after["name"]) == ("before", "after")
    gold = after["tasks"]["held_out"]["metrics"]["gold/total"]
    assert gold["n"] in (None, 32)
    responses = json.loads((full_run / "sample_responses.json").read_text())
    assert [one["model"] for one in responses] == ["before"] * 32 + ["after"] * 32
    assert (full_run / "response_lengths.png").is_file()


def test_commands_and_machines_of_all_sessions_are_shown(tmp_path: Path) -> None:
    later = {"command": "python train.py resume=a allow_change=true seed=2", "versions": {"torch": "2", "python": "3"}}
    manifest = {"reproduce": "python train.py seed=1", "versions": {"torch": "1", "python": "3"}}
    manifest |= {"sessions": [{"update": 4, "command": "python train.py resume=a"}, {"update": 6, **later}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "loss": 2.0}\n')
    text = page_of(tmp_path)
    assert "python train.py seed=1" in text
    assert "After update 6, with other settings:" in text
    assert "resume=a allow_change=true seed=2" in text
    assert "After update 4" not in text
    assert "1 → 2" in text
    assert "3 → 3" not in text
