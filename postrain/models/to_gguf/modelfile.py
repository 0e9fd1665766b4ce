"""The Modelfile of a GGUF file: Ollama has its own template language, so the chat template is translated.

Ollama's templates are Go's text/template over `.System` and `.Messages`. The translation reads the texts around each
turn off renderings of the chat template; it is used only if it reproduces conversations of every form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.models.to_gguf.tokenizer import adds_bos

Messages = Sequence[Mapping[str, str]]
SYSTEM, FIRST, ANSWER, SECOND = "SYSTEM-TEXT", "FIRST-TEXT", "ANSWER-TEXT", "SECOND-TEXT"
FORMS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
"""The roles of conversations on which a translation is checked."""


@dataclass(frozen=True)
class TurnTemplate:
    """The texts of a chat template around its turns."""

    begin: str
    """Before the first user message."""
    system: tuple[str, str] | None
    """Before and after a system message; the latter ends before the first user message. None without system turns."""
    user: tuple[str, str]
    """Before and after a later user message."""
    answer: tuple[str, str]
    """Before and after an answer."""
    generation: str
    """Before the answer to generate."""

    def render(self, messages: Messages) -> str:
        """The prompt of a conversation that ends with a user message."""
        system = "".join(each["content"] for each in messages if each["role"] == "system")
        text = f"{self.system[0]}{system}{self.system[1]}" if system and self.system else self.begin
        first = True
        for message in messages:
            if message["role"] == "user":
                text += f"{'' if first else self.user[0]}{message['content']}{self.user[1]}"
                first = False
            elif message["role"] == "assistant":
                text += self.answer[0] + message["content"] + self.answer[1]
        return text + self.generation

    def to_go(self) -> str:
        """The template in Ollama's language. Texts are quoted, so that no line break is trimmed."""
        begin = literal(self.begin)
        if self.system:
            before, after = map(literal, self.system)
            begin = f"{{{{- if $.System }}}}{before}{{{{ $.System }}}}{after}{{{{ else }}}}{begin}{{{{ end }}}}"
        return "\n".join(
            [
                "{{- $first := true }}",
                "{{- range $i, $_ := .Messages }}",
                "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
                '{{- if eq .Role "user" }}',
                f"{{{{- if $first }}}}{begin}{{{{ else }}}}{literal(self.user[0])}{{{{ end }}}}",
                f"{{{{- $first = false }}}}{{{{ .Content }}}}{literal(self.user[1])}",
                f"{{{{- if $last }}}}{literal(self.generation)}{{{{ end }}}}",
                '{{- else if eq .Role "assistant" }}',
                f"{literal(self.answer[0])}{{{{ .Content }}}}",
                f"{{{{- if not $last }}}}{literal(self.answer[1])}{{{{ end }}}}",
                "{{- end }}",
                "{{- end }}",
            ]
        )


def literal(text: str) -> str:
    """An action that writes `text` and trims the line breaks around it, also for an empty text.

    Go's quoted strings have JSON's escapes, except for pairs of surrogates.
    """
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} -}}}}"


def modelfile(tokenizer: Any, file: str, *, end_ids: Sequence[int] = ()) -> tuple[str, str | None]:
    """The Modelfile for `file`, and a note if the chat template cannot be translated."""
    note, lines = None, [f"FROM ./{file}"]
    if not tokenizer.chat_template:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif turns := turn_template(tokenizer):
        lines.append(f'TEMPLATE """{turns.to_go()}"""')
    else:
        note = "Ollama's template language cannot express this chat template; use llama.cpp with --jinja"
        lines.append(f"# {note}")
    ends = dict.fromkeys(token for token in (tokenizer.eos_token_id, *end_ids) if token is not None)
    lines += [
        f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in tokenizer.convert_ids_to_tokens(list(ends))
    ]
    return "\n".join(lines) + "\n", note


def turn_template(tokenizer: Any) -> TurnTemplate | None:
    """The chat template as texts around turns; None if it is not of this form."""
    try:
        found = _split(tokenizer)
        checks = [conversation(roles) for roles in FORMS if found.system or "system" not in roles]
        same = all(found.render(each) == prompt_of(tokenizer, each) for each in checks)
    # A template may raise for a form of conversation, or drop a message.
    except Exception:
        return None
    return found if same else None


def _split(tokenizer: Any) -> TurnTemplate:
    user = {"role": "user", "content": FIRST}
    several = [user, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]
    begin, rest = prompt_of(tokenizer, [user]).split(FIRST)
    after_user = prompt_of(tokenizer, [user], generation=False).split(FIRST)[1]
    between = prompt_of(tokenizer, several).split(FIRST)[1].split(ANSWER)
    after_answer = prompt_of(tokenizer, several[:2], generation=False).split(ANSWER)[1]
    before_second = between[1].split(SECOND)[0]
    assert rest.startswith(after_user), "the generation prompt follows the turn"
    assert between[0].startswith(after_user), "an answer follows the turn"
    assert before_second.startswith(after_answer), "a turn follows the answer"
    return TurnTemplate(
        begin=begin,
        system=_around_system(tokenizer, user),
        user=(before_second.removeprefix(after_answer), after_user),
        answer=(between[0].removeprefix(after_user), after_answer),
        generation=rest.removeprefix(after_user),
    )


def _around_system(tokenizer: Any, user: Mapping[str, str]) -> tuple[str, str] | None:
    try:
        text = prompt_of(tokenizer, [{"role": "system", "content": SYSTEM}, user])
    # Templates without system messages raise an error of their own.
    except Exception:
        return None
    before, found, rest = text.partition(SYSTEM)
    return (before, rest.split(FIRST)[0]) if found else None


def prompt_of(tokenizer: Any, messages: Messages, *, generation: bool = True) -> str:
    """The prompt that Ollama passes on: without the begin token, which it adds itself."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)
    return text.removeprefix(tokenizer.bos_token or "") if adds_bos(tokenizer) else text


def conversation(roles: Sequence[str]) -> list[dict[str, str]]:
    """Messages with these roles and different texts."""
    return [{"role": role, "content": f"Text {index}, of {role}."} for index, role in enumerate(roles)]
