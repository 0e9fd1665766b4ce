"""python -m postrain.cli.chat MODEL: chat with a run's model, or another one, in the terminal."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from rich.console import Console

from postrain.cli.chat.commands import overview
from postrain.config.paths import command
from postrain.data.conversation import Messages
from postrain.errors import ConfigError, Parser, print_error


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    try:
        chat(parser().parse_args(argv))
    except ConfigError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("chat"),
        description="Chat with a model. From a pipe, each line is a message.",
        epilog=f"commands (Ctrl-C stops an answer):\n{overview()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("model", help="a run folder, a directory (adapters too), a Hub name, or nano, smollm2, ...")
    found.add_argument("--once", metavar="TEXT", help="print the answer to TEXT and exit")
    found.add_argument("--system", metavar="TEXT", default="", help="the system message")
    found.add_argument("--tools", metavar="FILE", type=Path, help="a JSON file with a list of function schemas")
    found.add_argument("--temperature", type=float, default=0.7, help="0 is greedy; default %(default)s")
    found.add_argument("--top-p", type=float, default=0.95, help="default %(default)s")
    found.add_argument("--max-new-tokens", type=int, default=256, help="token limit of an answer; default %(default)s")
    found.add_argument("--seed", type=int, default=0, help="sampling seed; default %(default)s")
    return found


def chat(chosen: argparse.Namespace) -> None:
    """Loads the model and answers messages."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.cli.chat.conversation import Conversation  # noqa: PLC0415
    from postrain.cli.chat.model import ChatModel, ChatOptions  # noqa: PLC0415
    from postrain.cli.chat.terminal import Terminal  # noqa: PLC0415
    from postrain.models.by_name import resolve_by_name  # noqa: PLC0415

    settings = {name: getattr(chosen, name) for name in ("temperature", "top_p", "max_new_tokens", "seed")}
    options = ChatOptions(**settings)
    # Also accepts the form of the other commands: model=nano, model.path=runs/...
    name = chosen.model.removeprefix("model=").removeprefix("model.path=")
    tools = read_tools(chosen.tools) if chosen.tools else ()
    resolved = resolve_by_name("model", name, "a run folder, a model directory, a Hub name")
    model = ChatModel(resolved, "tools" if tools else "auto")
    console, notes = Console(highlight=False), Console(highlight=False, stderr=True)
    terminal = Terminal(model, options, Conversation(system=chosen.system, tools=tools), console, notes)
    if chosen.once is not None:
        terminal.reply(chosen.once)
        return
    if sys.stdin.isatty():
        # Adds history and line editing to input().
        importlib.import_module("readline")
        kind = "a base model: it continues your text" if model.continues else "/help lists commands"
        terminal.note(f"{model.name}, {kind}", "bold")
        terminal.run(lambda: input("\n> "))
        return
    terminal.run(_piped)


def read_tools(path: Path) -> Messages:
    """The declaration of the tools in a JSON file. Raises ConfigError."""
    from postrain.data.tool_calls import declare  # noqa: PLC0415 - start-up time

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tools {path}: expected a JSON file with a list of function schemas ({error})") from None
    try:
        return declare([found] if isinstance(found, dict) else found)
    except ConfigError as error:
        raise ConfigError(f"--tools {path}: expected a list of function schemas ({error})") from None


def _piped() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
