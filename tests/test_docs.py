"""Every command, snippet and link of the README and of docs/ works; runs have fewer updates and rows."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from docs.generator.logged import words
from docs.generator.pages import DOCS, expand
from docs.generator.reference import public_names
from postrain import evaluate
from postrain.cli import export
from postrain.cli.chat import __main__ as chat
from postrain.cli.help import groups, known_keys
from postrain.config.groups import groups_of
from postrain.config.reference import options
from postrain.data.formats import parse
from postrain.data.prompt_template import PromptTemplate
from postrain.data.readers import make_table
from postrain.jobs import pipeline, sweep
from postrain.metrics import declarations
from postrain.report import __main__ as report
from tests.cli.test_main import run
from tests.training_runs import CONF, METHODS, SMALL, small_run, train_config

ROOT = CONF.parent
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {page: page.read_text() for page in (ROOT / "README.md", *PAGES)}
BLOCK = re.compile(r"^```(\w*)(?: title=\"(.*?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")

# One update on few rows; tests/test_methods.py tests training results.
SHORT = (*SMALL, "method.updates=1", "method.batch_size=4", "data.eval_rows=4", "trainer.checkpoint_every=9")
ROWS = {
    "my.jsonl": '{{"prompt": "Say {0}.", "completion": "Here it is: {0}."}}\n',
    "instructions.jsonl": '{{"prompt": "Name {0}.", "completion": "It is {0}."}}\n',
    "thumbs.jsonl": '{{"prompt": "Say {0}.", "completion": "Here it is: {0}.", "label": {1}}}\n',
    "pairs.jsonl": '{{"prompt": "Say {0}.", "chosen": "Here it is: {0}.", "rejected": "No."}}\n',
    "preferences.jsonl": '{{"prompt": "Say {0}.", "chosen": "Here it is: {0}.", "rejected": "No."}}\n',
}
"""The data files that commands name, each with 40 rows instead of those of the page."""
COMPOSED = {
    "model=smollm2": "its weights are not on every machine",
    "model=gemma-3-270m": "its weights are not on every machine",
    "experiment=recipe/": "the weights of its model are not on every machine",
    "trainer=ddp_cpu": "tests/hardware runs two ranks",
    "rollout.mode=server": "needs a server; tests/vllm_cpu runs one",
    "reward=tool_calls": "the model has to call at times, and the bundled one never does",
    "reward=countdown": "the model has to solve a puzzle at times, and the bundled one never does",
    "REWARD_RUN": "needs a trained reward model, which tests/rewards has",
}
"""Commands that are composed and checked but not run: a part of the command, and the reason."""
NOT_RUN = {
    "LORA_RUN": "needs an adapter; tests/models/test_publish.py merges and exports one",
    "make ": "targets are looked up in the Makefile",
    "source .venv": "changes the shell of the reader",
    "python make_pairs.py": "the script is executed as a Python block",
    "sweeps/my_beta": "reports of sweeps are tested in tests/report",
    "resume=runs/sft": "the same command stands in docs/howto/resume.md with RUN",
}


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    title: str
    text: str


def blocks() -> Iterator[Block]:
    for page, text in TEXTS.items():
        yield from (Block(page, *match.groups(default="")) for match in BLOCK.finditer(text))


BLOCKS = list(blocks())
COMMANDS = {
    re.sub(r"\s+# .*", "", line).strip(): block
    for block in BLOCKS
    if block.language == "bash"
    for line in block.text.splitlines()
    if line
}
"""Every distinct command, with a block that contains it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which replaces RUN in commands."""
    return small_run(tmp_path_factory.mktemp("finished"), "method=sft").path


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """A temporary working directory with the data files; import paths and config groups are reset afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    groups_of.cache_clear()
    for name, row in ROWS.items():
        Path(name).write_text("".join(row.format(number, str(number % 3 > 0).lower()) for number in range(40)))
    yield tmp_path
    groups_of.cache_clear()


def write_files(page: Path) -> None:
    """Writes the titled blocks of a page and of the tutorial on rewards, except the files of ROWS."""
    rewards = DOCS / "tutorials" / "my_reward.md"
    for block in BLOCKS:
        if block.page in (page, rewards) and block.title and block.title not in ROWS:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text)


def reason(known: dict[str, str], command: str) -> str | None:
    return next((why for part, why in known.items() if part in command), None)


@pytest.fixture
def only_planned(monkeypatch):
    """Jobs of sweeps and stages of pipelines are composed and checked, but not run: tests/jobs runs them."""
    monkeypatch.setattr(sweep, "_run", lambda sweep, jobs, planner: 0)
    monkeypatch.setattr(pipeline.StageRunner, "advance", lambda self, job: None)
    monkeypatch.setattr(pipeline, "grid", lambda jobs, root: ([], []))


@pytest.mark.parametrize("command", [command for command in COMMANDS if not reason(NOT_RUN, command)])
@pytest.mark.usefixtures("working_directory", "only_planned")
def test_command_works(command, finished, capsys, monkeypatch):
    write_files(COMMANDS[command].page)
    checked = reason(COMPOSED, command) and "pipeline=" not in command
    words = shlex.split(re.sub(r"\bRUN\b", str(finished), command))
    assert words[0] == "python", command
    program, arguments = (words[1], words[2:]) if words[1] != "-m" else (words[2], words[3:])
    if program == "train.py":
        code = run(*shortened(arguments, command), *(("--cfg", "job") if checked else ()))
    else:
        code = PROGRAMS[program](arguments, monkeypatch)
    assert code == 0, capsys.readouterr().err


def shortened(words: list[str], command: str) -> list[str]:
    """The overrides of a training command with fewer updates and rows."""
    alone = not any("=" in word for word in words) or re.search("resume=(?!auto)|pipeline=", command)
    short = [word for word in SHORT if not (word == "logger=none" and "logger=" in command)]
    completions = "evaluation.completions=2" if "evaluation" in command else "evaluation.completions=0"
    return words if alone or "sweep=" in command else [*words, *short, completions]


def run_evaluate(words: list[str], _: pytest.MonkeyPatch) -> int:
    small = [] if any("model.path=" in word for word in words) else ["data.source.count=64", "data.eval_rows=8"]
    return evaluate.main(["evaluate", *words, *small])


def run_stress(words: list[str], _: pytest.MonkeyPatch) -> int:
    small = ["data.source.count=64", "evaluation.tasks.stress.prompts=4", "evaluation.tasks.stress.rounds=1"]
    return import_module("postrain.stress").main(["stress", *words, *small])


def run_generate(words: list[str], _: pytest.MonkeyPatch) -> int:
    words = [word for word in words if word != "samples=8"]
    if any(word.startswith("prompts=") for word in words):
        return import_module("postrain.generate").main(["generate", *words, "prompts.count=8", "prompts.max_rouge_l=1"])
    small = (
        "data=world_stories",
        "data.source.count=64",
        "reward=world_mood",
        "prompt_count=4",
        "rollout.max_new_tokens=40",
    )
    return import_module("postrain.generate").main(["generate", *words, *small])


def run_report(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    Path("runs").mkdir()
    monkeypatch.setattr(sys, "argv", ["report", *words])
    return report.main()


def run_chat(words: list[str], _: pytest.MonkeyPatch) -> int:
    return chat.main([*words, "--max-new-tokens", "4"])


def run_export(words: list[str], _: pytest.MonkeyPatch) -> int:
    return export.main(words)


def run_tool_rows(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["make_tool_rows.py", *words])
    runpy.run_path(str(ROOT / "examples" / "make_tool_rows.py"), run_name="__main__")
    lines = {file.name: len(file.read_text().splitlines()) for file in Path(words[0]).iterdir()}
    return 0 if lines == {"train.jsonl": 500, "eval.jsonl": 100} else 1


PROGRAMS = {
    "examples/make_tool_rows.py": run_tool_rows,
    "postrain.cli.export": run_export,
    "postrain.evaluate": run_evaluate,
    "postrain.generate": run_generate,
    "postrain.stress": run_stress,
    "postrain.report": run_report,
    "postrain.cli.chat": run_chat,
}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert all(f"\n{target}:" in makefile for target in named)


@pytest.mark.parametrize(
    "page", [page for page in TEXTS if any(b.page == page and b.language == "python" for b in BLOCKS)]
)
@pytest.mark.usefixtures("working_directory")
def test_python_blocks_run_in_order(page):
    names: dict[str, object] = {"__name__": "example"}
    for block in BLOCKS:
        if block.page == page and block.language == "python" and not block.text.startswith("# postrain/"):
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.usefixtures("working_directory", "only_planned")
def test_yaml_blocks_are_options_that_compose():
    untitled = [block.text for block in BLOCKS if block.language == "yaml" and not block.title]
    assert all(text.startswith("# ") for text in untitled)  # of the README: the path is its first line
    page = DOCS / "howto" / "pipelines.md"
    write_files(page)
    assert run("pipeline=mine") == 0


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "json" and not b.title.endswith(".json")], ids=lambda b: b.title
)
def test_json_rows_of_a_file_are_records(block):
    rows = enumerate(map(json.loads, block.text.splitlines()), start=1)
    # The command of this page writes the prompts of the puzzles by a template.
    template = PromptTemplate("Make {target} from {nums}.") if block.title == "puzzles.jsonl" else None
    found = parse(make_table(block.title, "line", rows), {}, template)
    assert (len(found.records), found.dropped) == (len(block.text.splitlines()), {})


@pytest.fixture(scope="module")
def pages():
    """The README and every page as on the site; method pages list three metrics, without the runs that find them."""
    expanded = {page: expand(page.read_text(), lambda method: ("loss", "eval/loss", "gold/total")) for page in PAGES}
    return {ROOT / "README.md": TEXTS[ROOT / "README.md"], **expanded}


@pytest.mark.parametrize("method", METHODS)
def test_the_run_that_finds_the_metrics_of_a_method_page_has_a_valid_config(method):
    train_config(words(method))


def test_links_lead_to_files_and_anchors(pages):
    broken = []
    for page, text in pages.items():
        for target in LINK.findall(BLOCK.sub("", text)):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if target.startswith(("http:", "https:")):
                continue
            if not file.exists() or (anchor and anchor not in anchors(pages.get(file, ""))):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def anchors(text: str) -> set[str]:
    """The anchors of a page: its headings, and elements with an id."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {slugify(re.sub(r"[`*]", "", heading), "-") for heading in headings} | set(re.findall(r'id="(.*?)"', text))


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "zensical.toml").read_text()
    assert {str(page.relative_to(DOCS)) for page in PAGES} == set(re.findall(r'"([\w/-]+\.md)"', nav))


def test_every_method_group_public_name_and_metric_is_documented(pages):
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}
    own_pages = {page.stem for page in (DOCS / "reference" / "keys").glob("*.md")}
    assert own_pages == {*groups(), "index"} - {"method"}
    api = pages[DOCS / "reference" / "api.md"]
    assert [name for name in public_names() if name not in api] == []
    metrics = pages[DOCS / "reference" / "metrics.md"]
    assert all(f"`{one.name}`" in metrics for one in declarations())


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    source = "\n".join(file.read_text() for file in (ROOT / "postrain").rglob("*.py"))
    source = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\n\s*f?"', "", source))
    table = TEXTS[DOCS / "troubleshooting.md"].partition("## Usual errors")[2].partition("\n## ")[0]
    messages = [text for line in re.findall(r"^\|(.*?)\|", table, re.MULTILINE) for text in re.findall("`(.*?)`", line)]
    assert len(messages) > 5
    assert [message for message in messages if message not in source] == []


def test_inline_options_and_keys_exist():
    """Checks GROUP=OPTION and config keys in inline code."""
    inline = [(page, code) for page, text in TEXTS.items() for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]
    known = {entry.path for _, entry in known_keys()}
    own = {*(f"{group}=NAME" for group in ("method", "reward", "data", "pipeline", "sweep")), "method=hard_sft"}
    # Python arguments and attributes, not config.
    own |= {"model=model", "trainer.callback_metrics"}
    choices = {group: {*options(group)} for group in (*groups(), "experiment", "pipeline")}
    choices["sweep"] = {file.stem for file in (ROOT / "sweep").glob("*.yaml")}
    wrong = []
    for page, code in inline:
        for group, chosen in re.findall(r"\b([a-z]+)=([A-Za-z_0-9-]+)(?=[\s`,]|$)", code):
            if group in choices and chosen not in choices[group] and f"{group}={chosen}" not in own:
                wrong.append(f"{page.name}: {group}={chosen}")
        for key in re.findall(r"\b((?:method|rollout|trainer|adapter|selection|early_stop)\.[a-z_]+)(?==|$)", code):
            if key not in known | own:
                wrong.append(f"{page.name}: {key}")
    assert not wrong
