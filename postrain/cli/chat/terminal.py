"""A conversation in a terminal: reads lines, streams answers, executes commands.

Standard output gets only answers and standard error all notes, so that both can be piped.
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
"""Returns the next line; raises EOFError at the end of the input."""


@dataclass
class Terminal:
    """One conversation."""

    model: ChatModel
    options: ChatOptions
    conversation: Conversation
    console: Console
    """The console for answers."""
    notes: Console
    """The console for notes and errors."""

    def run(self, read: ReadLine) -> None:
        """Reads lines until the end of the input, /quit, or Ctrl-C while no answer is sampled."""
        while True:
            try:
                line = read()
            except (EOFError, KeyboardInterrupt):
                return
            if not line.strip():
                continue
            try:
                parsed = parse(line.rstrip("\n"))
                if parsed == Command("quit"):
                    return
                self.execute(parsed) if isinstance(parsed, Command) else self.reply(parsed)
            except ConfigError as error:
                self.note(str(error), "red")

    def reply(self, text: str) -> None:
        """Samples and prints the answer to a message, and adds both to the conversation."""
        self.respond(self.conversation.ask(text))

    def respond(self, conversation: Conversation) -> None:
        """Samples and prints the answer to the last message, and adds it to the conversation."""
        read = self.model.fit(conversation, self.options)
        if read.cut:
            self.note("your message exceeds the model's context: its beginning was dropped", "yellow")
        elif read.dropped:
            self.note(
                f"the conversation exceeds the model's context: the first {read.dropped} exchanges were dropped",
                "yellow",
            )
        answer = self.model.answer(read, self.options, self._show)
        self.console.print()
        if answer.stopped:
            self.note("stopped", "yellow")
        elif not answer.text:
            self.note("(empty answer)", "dim")
        self.conversation = conversation.answer(answer.text)

    def execute(self, command: Command) -> None:
        """Executes a command other than /quit."""
        match command.name:
            case "reset":
                self.conversation = replace(self.conversation, turns=())
                self.note("conversation cleared", "dim")
            case "undo":
                self.note("removed the last question" if self.conversation.turns else "nothing to undo", "dim")
                self.conversation = self.conversation.undo()
            case "system":
                self.conversation = replace(self.conversation, system=command.argument)
                self.note("system message set" if command.argument else "system message removed", "dim")
            case "result":
                answered = self.conversation.result(command.argument)
                if answered.open_calls:
                    self.conversation = answered
                    self.note(f"{answered.open_calls} more calls wait for a result", "dim")
                else:
                    self.respond(answered)
            case "temperature":
                self.options = replace(self.options, temperature=temperature(command.argument))
            case _:
                self.note(overview(), "dim")

    def note(self, text: str, style: str) -> None:
        """Prints a line to the notes console."""
        self.notes.print(Text(text, style=style), soft_wrap=True)

    def _show(self, piece: str) -> None:
        self.console.print(Text(piece), end="", soft_wrap=True)
        self.console.file.flush()
