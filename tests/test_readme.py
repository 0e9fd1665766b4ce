"""Every command in the README works: the runs are cut short, nothing else about them is changed."""

import re
import shlex

import pytest

from tests.runs import CONF, SMALL
from tests.test_main import run

ROOT = CONF.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
TRAIN = [command.partition("#")[0].strip() for command in COMMANDS if command.startswith("python train.py")]
MAKE = [command.split()[1] for command in COMMANDS if command.startswith("make ")]

JSONL = '{{"prompt": "Say {0}.", "completion": "Here it is: {0}."}}\n'


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the files the README speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(JSONL.format(number) for number in range(40)))
    (tmp_path / "mine.py").write_text(
        "def brevity(prompts, completions, **columns):\n    return [-len(text) / 100 for text in completions]\n"
    )
    return tmp_path


@pytest.mark.parametrize("command", TRAIN)
def test_command(command, elsewhere, capsys):
    words = shlex.split(command)[2:]
    if any(word.startswith("resume=") for word in words):
        assert run("method=sft", "paths.output=first", *SMALL) == 0
        (folder,) = elsewhere.glob("first/*/*/*")
        assert run(f"resume={folder}") == 0
        return
    own = [word for word in SMALL if not ("data.path" in command and word.startswith("data.source"))]
    small = own if any("=" in word for word in words) else []
    code = run(*words, *small)
    assert code == (0 if small or words != [] else 2), capsys.readouterr().err
    assert not small or list(elsewhere.glob("runs/*/*/*/model/config.json")) or list(
        elsewhere.glob("runs/*/*/*/model/adapter_config.json")
    )


def test_make_targets_exist_and_the_demo_is_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    assert set(MAKE) == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in MAKE)
    assert "train.py method=ppo model=gpt2 trainer=cpu" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
