"""The conversation in a terminal: reads lines, shows answers as they are drawn, does what commands ask.

Into a pipe go the answers alone, from a pipe come the questions, a line each: nothing else is printed there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from postrain.cli.chat.commands import Command, overview, parse, temperature
from postrain.cli.chat.conversation import Conversation
from postrain.cli.chat.model import ChatModel, ChatOptions
from postrain.errors import ConfigError

ReadLine = Callable[[], str]
"""The next line; raises EOFError when there is none."""


@dataclass
class Terminal:
    """One conversation."""

    model: ChatModel
    options: ChatOptions
    conversation: Conversation
    console: Console
    """Where answers go."""
    notes: Console
    """Where everything else goes."""

    def run(self, read: ReadLine) -> None:
        """Until the lines end, /quit, or Ctrl-C where nothing is being answered."""
        while True:
            try:
                line = read()
            except (EOFError, KeyboardInterrupt):
                return
            if not line.strip():
                continue
            try:
                said = parse(line.rstrip("\n"))
                if said == Command("quit"):
                    return
                self.do(said) if isinstance(said, Command) else self.say(said)
            except ConfigError as error:
                self.note(str(error), "red")

    def say(self, text: str) -> None:
        """Asks, shows the answer, and remembers both."""
        asked = self.conversation.ask(text)
        read = self.model.fit(asked, self.options)
        if read.cut:
            self.note("longer than the model can read: the beginning of your text was cut", "yellow")
        elif read.dropped:
            self.note(f"the model can no longer read the first {read.dropped} of your questions", "yellow")
        answer = self.model.answer(read, self.options, self._show)
        self.console.print()
        if answer.stopped:
            self.note("stopped", "yellow")
        elif not answer.text:
            self.note("(it ended without a word)", "dim")
        self.conversation = asked.answer(answer.text)

    def do(self, command: Command) -> None:
        """Anything but /quit."""
        match command.name:
            case "reset":
                self.conversation = Conversation(system=self.conversation.system)
                self.note("forgotten", "dim")
            case "undo":
                self.note("taken back" if self.conversation.turns else "there is nothing to take back", "dim")
                self.conversation = self.conversation.undo()
            case "system":
                self.conversation = replace(self.conversation, system=command.argument)
                self.note("from now on" if command.argument else "nothing is said before the conversation now", "dim")
            case "temperature":
                self.options = replace(self.options, temperature=temperature(command.argument))
            case _:
                self.note(overview(), "dim")

    def note(self, text: str, style: str) -> None:
        """Something that is no answer."""
        self.notes.print(Text(text, style=style), soft_wrap=True)

    def _show(self, piece: str) -> None:
        self.console.print(Text(piece), end="", soft_wrap=True)
        self.console.file.flush()
