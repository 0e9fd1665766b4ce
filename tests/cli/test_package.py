"""A wheel installed outside the checkout: the command, built-in config groups, the snippet of the docs; user config."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from postrain.config.groups import groups_of
from tests.cli.test_main import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "python.md").read_text()
FROM_PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
FROM_PYTHON = FROM_PYTHON.replace("updates=2)", "updates=1, batch_size=4, group_size=4)") + "print(loss.item())\n"
TINY = ["data.source.count=32", "data.eval_rows=4", "evaluation=quick", "evaluation.completions=2", "logger=none"]
# Importing takes longer than all of it.
ONE_PROCESS = """
import ast, runpy, sys
from pathlib import Path
from postrain.cli.commands import main
train, evaluate, snippet = sys.argv[1:]
assert main(["postrain", *ast.literal_eval(train)]) == 0
(run,) = Path("runs").glob("sft/nano/*")
assert main(["postrain", *ast.literal_eval(evaluate.replace("RUN", str(run)))]) == 0
runpy.run_path(snippet)
"""
CHECKOUT_ONLY = re.compile(r"python train\.py|python -m postrain")


class Installed:
    """The package in a separate environment that uses the libraries of this one."""

    def __init__(self, home: Path) -> None:
        source, wheels, self.user = home / "source", home / "wheels", home / "user"
        parts = ("postrain", "conf", "sweep", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
        for name in parts:
            path = ROOT / name
            if path.is_dir():
                copytree(path, source / name, ignore=ignore_patterns("__pycache__"))
            else:
                (source / name).write_bytes(path.read_bytes())
        build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels)]
        self.pip(*build, str(source))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
        self.bin = home / "venv" / "bin"
        (wheel,) = wheels.iterdir()
        self.pip("--python", str(self.bin / "python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        (libraries,) = (home / "venv").glob("lib/python*/site-packages")
        # Without the .pth files of these directories, which would add the editable checkout.
        paths = sysconfig.get_paths()
        places = {paths["purelib"], paths["platlib"], *(p for p in sys.path if p.endswith("site-packages"))}
        lines = [f"import sys; sys.path.append({place!r})" for place in places]
        (libraries / "libraries.pth").write_text("\n".join(lines))
        self.user.mkdir()

    def pip(self, *words: str) -> None:
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)

    def __call__(self, program: str, *words: str, code: int = 0) -> str:
        """Runs a program in the user's directory; returns its output."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.bin / program), *words]
        done = subprocess.run(command, cwd=self.user, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


def test_the_installed_command_trains_and_evaluates_outside_the_checkout(installed: Installed) -> None:
    places = "import postrain, sys; print(postrain.__file__, 'torch' in sys.modules)"
    assert f"{installed.bin.parent}/" in (output := installed("python", "-c", places))
    assert output.endswith("False\n")
    assert "did you mean postrain train?" in installed("postrain", "trian", code=2)
    train = ["train", "method=sft", "method.updates=3", "report=false", *TINY]
    evaluate = ["evaluate", "model.path=RUN", "evaluation=perplexity", "report=false", *TINY[:2]]
    (installed.user / "snippet.py").write_text(FROM_PYTHON)
    output = installed("python", "-c", ONE_PROCESS, str(train), str(evaluate), "snippet.py")
    (run,) = installed.user.glob("runs/sft/nano/*")
    assert '"reproduce": "postrain train method=sft method.updates=3' in (run / "manifest.json").read_text()
    assert "perplexity/loss" in output
    assert output.splitlines()[-1] == "-1.0"


def test_users_conf_is_searched_first(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    groups_of.cache_clear()
    conf = tmp_path / "conf"
    for group, name, text in [
        ("method", "mine", "# @package _global_\n# Mine\ndefaults:\n  - sft\nmethod:\n  _target_: own_methods.Mine\n"),
        ("data", "own", "# My rows\n_target_: postrain.data.module.DataModule\npath: rows.jsonl\n"),
        ("trainer", "cpu", "# Mine\n_target_: postrain.hardware.trainer.Hardware\ncheckpoint_every: 7\n"),
        ("pipeline", "two", "# Mine\nstages:\n  only:\n    - method=mine\n    - method.batch_sizes=1\n"),
        # Of another Hydra program: it does not replace the primary config of postrain.
        (".", "config", "defaults:\n  - nothing: here\n"),
        ("../sweep", "own", "# My study\nquestion: Which?\nbase: [pipeline=two]\ngrid: {seed: [0, 1]}\n"),
    ]:
        (conf / group).mkdir(parents=True, exist_ok=True)
        (conf / group / f"{name}.yaml").write_text(text)
    Path("own_methods.py").write_text("from postrain.methods.sft import SFT\n\n\nclass Mine(SFT):\n    pass\n")
    try:
        assert run("method=mine", "data=own", "method.updates=5", "--cfg", "job") == 0
        output = "".join(capsys.readouterr())
        assert "own_methods.Mine" in output
        assert "path: rows.jsonl" in output
        assert "checkpoint_every: 7" in output
        assert output.count(f"note: {conf} replaces the built-in trainer/cpu") == 1
        assert run("sweep=own") == 2
        assert "stage only: method.batch_sizes: unknown key" in capsys.readouterr().err
    finally:
        groups_of.cache_clear()


def _messages(file: Path) -> list[str]:
    """The strings of a file that a user may see, without docstrings and comments."""
    text = file.read_text()
    if file.suffix == ".yaml":
        return [line for line in text.splitlines() if not line.startswith("#")]
    nodes = [*ast.walk(ast.parse(text))] if CHECKOUT_ONLY.search(text) else []
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    return [str(node.value) for node in nodes if isinstance(node, ast.Constant) and id(node) not in docs]


def test_messages_take_commands_from_paths() -> None:
    files = [file for file in (*ROOT.glob("postrain/**/*.py"), *ROOT.glob("conf/*.yaml")) if file.name != "paths.py"]
    assert len(files) > 100
    assert [f"{file}: {text}" for file in files for text in _messages(file) if CHECKOUT_ONLY.search(text)] == []
