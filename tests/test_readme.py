"""Every command in the README works: the runs are cut short, nothing else about them is changed."""

import re
import shlex
import sys
from types import ModuleType

import pytest

from postrain import evaluate
from tests.cli.test_main import run
from tests.training_runs import CONF, SMALL, small_run

ROOT = CONF.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]
EVALUATE = [command.partition("#")[0].strip() for command in COMMANDS if "postrain.evaluate" in command]
TRAIN = [command.partition("#")[0].strip() for command in COMMANDS if command.startswith("python train.py")]
MAKE = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
(SHORTER,) = re.findall(r"```python\n# mine.py: .*?\n(.*?)```", README, re.DOTALL)

# One update: that methods go on rightly after it is tested elsewhere.
SHORT = (*SMALL, "method.updates=1", "method.batch_size=4", "evaluation.completions=2", "data.eval_rows=4")
THUMB = '{{"prompt": "Say {0}.", "completion": "Here it is: {0}.", "label": {1}}}\n'
JSONL = '{{"prompt": "Say {0}.", "completion": "Here it is: {0}."}}\n'


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with the files the README speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text("".join(JSONL.format(number) for number in range(40)))
    (tmp_path / "thumbs.jsonl").write_text("".join(THUMB.format(n, str(n % 3 > 0).lower()) for n in range(40)))
    (tmp_path / "mine.py").write_text(
        "def brevity(prompts, completions, **columns):\n    return [-len(text) / 100 for text in completions]\n"
        + SHORTER
    )
    return tmp_path


@pytest.mark.parametrize("command", [command for command in TRAIN if "resume=" not in command])
def test_command(command, elsewhere, capsys):
    words = shlex.split(command)[2:]
    runs = "=" in command
    # Processes of their own would only take longer.
    several = ("hydra/launcher=basic", "seed=0") if "-m" in words or "sweep=" in command else ()
    assert run(*words, *(SHORT if runs else ()), *several) == 0, capsys.readouterr().err
    assert bool(list(elsewhere.glob("**/model/README.md"))) == runs


@pytest.mark.parametrize("command", EVALUATE)
def test_evaluate_command(command, elsewhere):
    words = shlex.split(command)[3:]
    small = [word for word in SMALL if word.startswith(("data.", "rollout."))]
    assert evaluate.main(["evaluate", *words, *small]) == 0
    assert len(list(elsewhere.glob("runs/evaluate/nano/*/evaluation_stats.json"))) == 1


def test_the_sweep_it_shows_is_the_one_there_is():
    (shown,) = re.findall(r"```yaml\n# sweep/kl_coef.yaml\n(.*?)```", README, re.DOTALL)
    assert shown.strip() == (ROOT / "sweep" / "kl_coef.yaml").read_text().strip()


def test_resume_command(elsewhere):
    (command,) = [command for command in TRAIN if "resume=" in command]
    assert run("method=sft", *SMALL) == 0
    (folder,) = elsewhere.glob("runs/sft/nano/*")
    assert run(*shlex.split(command.replace("TIME-HASH", folder.name))[2:]) == 0


def test_make_targets_exist_and_the_demo_is_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text()
    assert set(MAKE) == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in MAKE)
    assert "train.py method=ppo model=gpt2 trainer=cpu" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_method_it_shows_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n# postrain/methods/hard_sft.py\n(.*?)```", README, re.DOTALL)
    (settings,) = re.findall(r"```yaml\n# conf/method/hard_sft.yaml\n(.*?)```", README, re.DOTALL)
    module = ModuleType("postrain.methods.hard_sft")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "README.md", "exec"), module.__dict__)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "hard_sft.yaml").write_text(settings)
    folder = small_run(tmp_path, "method=hard_sft", f"hydra.searchpath=[file://{tmp_path}/conf]")
    assert [record["update"] for record in folder.metrics.read()] == [0, 1, 2, 3]
