"""The command `postrain` and its sub-commands; `python train.py ...` is `postrain train ...`."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from postrain import __version__
from postrain.config.paths import MODULES
from postrain.errors import ignore_closed_pipe, print_error
from postrain.suggestions import did_you_mean

COMMANDS = {
    "train": "train a model: postrain train method=ppo model=gpt2 trainer=cpu",
    "evaluate": "evaluate models: postrain evaluate model.path=RUN",
    "generate": "sample, score and select completions: postrain generate model=run model.path=RUN",
    "stress": "attack a reward before training against it: postrain stress reward=learned reward.path=RUN",
    "explain": "what makes two runs differ, by the effect of each key: postrain explain RUN_A RUN_B",
    "probe": "bias and signal-to-noise ratio of the gradient, per estimator: postrain probe RUN",
    "chat": "chat with a model: postrain chat RUN",
    "merge": "merge a run's adapter into its base model, with a check of the logits: postrain merge RUN",
    "export": "write a GGUF file and a Modelfile for llama.cpp and Ollama: postrain export RUN --gguf q8_0",
    "report": "write the report of a run or sweep, or an index of a folder: postrain report runs --open",
    "verify": "re-execute random updates of a run and compare them bit for bit: postrain verify RUN",
    "why": "rank the rows of an update by their effect on a held-out number: postrain why RUN --update 37",
    "help": "describe a key, a group or an option: postrain help method.kl_coef",
    "world": "print rows of the bundled world: postrain world --kind preferences",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    # Before torch is imported: threads that wait actively slow down other threads on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    program, *words = sys.argv if argv is None else argv
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"postrain {__version__}")
        return 0
    if name not in COMMANDS:
        return print_error(f"{name}: {_suggestion(name)}")
    try:
        return _run(name, [program, *words[1:]])
    except BrokenPipeError:
        return ignore_closed_pipe()


def overview() -> str:
    """A line for each sub-command."""
    lines = [f"  {name:<10}{meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: postrain COMMAND ...", "", *lines, "", "postrain COMMAND --help shows its options."])


def _suggestion(name: str) -> str:
    hint = did_you_mean(name, COMMANDS, f"expected one of {', '.join(COMMANDS)}", prefix="postrain ")
    return f"no such command; {'write postrain train ' + name if '=' in name else hint}"


def _run(name: str, argv: list[str]) -> int:
    # Imported here for a fast start-up: --help and a wrong sub-command need none of it.
    if name == "train":
        from postrain.cli.main import start  # noqa: PLC0415

        return start(argv)
    if name == "help":
        from postrain.cli.help import main as help_main  # noqa: PLC0415

        return help_main(argv)
    sys.argv = argv
    try:
        runpy.run_module(MODULES[name], run_name="__main__", alter_sys=False)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        raise
    return 0
