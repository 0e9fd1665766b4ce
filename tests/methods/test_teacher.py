"""Teachers of distillation: another prompt, moving weights, another tokenizer, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import postrain as pt
from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.methods.teacher_context import TeacherContext, end_token
from postrain.models.parts import model_width
from postrain.models.scoring import score_with_reference
from postrain.models.token_alignment import Vocabularies
from tests.cli.test_main import run
from tests.methods.builders import float64_model, rows
from tests.methods.test_distill import COMPLETIONS, PROMPTS, distill, mean_loss, prompts


class HintedTemplate:
    """Encodes the texts a, b, c as the prompts, each after token 3."""

    def encode_prompt(self, messages: Any, *, row: int = 0) -> torch.Tensor:
        return torch.cat([torch.tensor([3]), PROMPTS["abc".index(messages[-1].content)]])


HINTED: Any = HintedTemplate()


def self_taught(**changes: Any) -> Any:
    """A student that is its own teacher, which reads a hint."""
    method = distill(student=float64_model(), teacher_prompt="{prompt} hint", **changes)
    method.components.reference._frozen.load_state_dict(float64_model().state_dict())
    method.teacher_context = TeacherContext(HINTED, "{prompt}", None, 64)
    return method


def test_teacher_with_another_prompt_scores_the_same_completion():
    """The loss is the divergence of the student's rows and the rows with the hint."""
    method = self_taught()
    plain = rows(PROMPTS, [torch.tensor(ids) for ids in COMPLETIONS])
    hinted = rows([torch.cat([torch.tensor([3]), ids]) for ids in PROMPTS], [torch.tensor(ids) for ids in COMPLETIONS])
    model = float64_model()
    expected = score_with_reference(model, method.reference_policy, plain, reference_rows=hinted).kl_BT.sum() / 8
    assert float(mean_loss(method, prompts()).detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(expected.detach()) > 0.01


def test_teacher_prompt_is_filled_with_the_columns_of_the_row():
    _, tokenizer = pt.load_model("nano")
    template = Template(tokenizer, install=False)
    context = TeacherContext(template, "{prompt} Hint: {answer}", "Be brief.", 99)
    found = context.messages("2 + 2?", {"answer": 4}, 7)
    assert [(turn.role, turn.content) for turn in found] == [("system", "Be brief."), ("user", "2 + 2? Hint: 4")]
    # The system message and earlier turns of a conversation.
    turns: list[dict[str, Any]] = [
        {"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")
    ]
    found = context.messages("-", {"answer": 4, "messages": turns}, 7)
    assert [turn.content for turn in found] == ["Be brief.", "u", "a", "u Hint: 4"]
    # Declared tools, calls without text and a prefill are those of the student's prompt.
    turns[2:] = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is"},
    ]
    found = context.messages("-", {"messages": turns, "tools": [{"name": "add"}]}, 7)
    assert [turn.role for turn in found] == ["tools", "system", "user", "assistant", "tool", "assistant"]
    assert found[3].tool_calls == ({"name": "add", "arguments": {}},)
    assert found[-1].prefill
    with pytest.raises(ConfigError, match=r"row 7 has no column answer; it has gold, prompt"):
        context.messages("2 + 2?", {"gold": 4}, 7)
    batch = Prompts((torch.tensor([5]),), ("2 + 2?",), ({"answer": 4},), (7,))
    row = rows([torch.tensor([5])], [torch.tensor([9, 0])])
    found = TeacherContext(template, "{prompt} {answer}", None, 99).rows(batch, row).rows
    assert template.decode_all(found.ids[0][~found.supervised[0]].tolist()).count("2 + 2? 4") == 1
    assert found.ids[0][found.supervised[0]].tolist() == [9, 0]
    with pytest.raises(ConfigError, match=r"row 7: the teacher's prompt and completion have \d+ tokens.* has 4;"):
        TeacherContext(template, "{prompt}", None, 4).rows(batch, row)


@pytest.mark.parametrize(("kind", "share"), [("base", 0.0), ("live", 1.0), ("ema", 0.25)])
def test_teacher_model_kind_sets_the_share_of_the_student_in_the_teacher(kind: str, share: float):
    """After one update, θ_teacher = α θ + (1 − α) θ_0 with α = 0 (base), 1 (live) or teacher_update_rate (ema). Only
    the average is part of the checkpoint."""
    rate = {"teacher_update_rate": 0.25} if kind == "ema" else {}
    method = distill(teacher_prompt="{prompt} hint", teacher_model_kind=kind, **rate)
    method.move_teacher()
    triples = zip(
        *(model.parameters() for model in (method.teacher.frozen, float64_model(1), float64_model())), strict=True
    )
    for found, initial, student in triples:
        assert torch.allclose(found, share * student + (1 - share) * initial)
    assert ("teacher" in method.state()) == (kind == "ema")


def test_student_as_its_teacher_with_another_tokenizer_has_no_loss():
    """The same tokenizer, given as another one: the aligned loss is 0, and every token is aligned."""
    model, tokenizer = pt.load_model("nano")
    template = Template(tokenizer, install=False)
    end = end_token(template)
    vocabularies = Vocabularies.of(tokenizer, tokenizer, (model_width(model), model_width(model)), (end, end))
    context = TeacherContext(template, "{prompt}", None, 99, vocabularies)
    prompt = template.encode_prompt(context.messages("Tom found a", {}, 0))
    completion = torch.tensor([*tokenizer(" big red ball.").input_ids, end])
    batch = Prompts((prompt,), ("Tom found a",), ({},), (0,))
    found = context.rows(batch, rows([prompt], [completion]))
    assert found.rows.ids[0].tolist() == [*prompt.tolist(), *completion.tolist()]
    assert found.spans is not None
    assert found.spans[0].tolist() == [[i, 1, i, 1] for i in range(len(completion))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_prompt": "{prompt} {", "on_policy": 1.0}, r"teacher_prompt: .*write braces that are text as \{\{"),
        ({"teacher_prompt": "{prompt} {0}"}, r"teacher_prompt: \{0\} is not the name of a column"),
        ({"teacher_system_prompt": "Be brief.", "on_policy": 0.5}, r"set method\.on_policy=1, got 0\.5"),
        ({"cross_tokenizer": True, "on_policy": 0.5}, r"method\.cross_tokenizer: .*set method\.on_policy=1"),
    ],
)
def test_contexts_that_cannot_be_built_are_refused(changes: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        distill(**changes).data_kind()


def test_command_line_names_the_remedy_of_each_teacher(tmp_path, capsys):
    output = f"paths.output={tmp_path / 'runs'}"
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(40)))
    for words, message in (
        (["teacher=self"], "the student with the same prompt has a loss of 0; give the teacher another one"),
        (
            ["teacher=nano", "method.teacher_model_kind=ema"],
            "method.teacher_model_kind=ema moves the weights of teacher=self; remove it",
        ),
        (
            ["teacher=self", "method.teacher_prompt='{completion}'", "data=jsonl", f"data.path={file}"],
            "this method trains on prompts with a completion",
        ),
    ):
        assert run("method=distill", *words, output) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not list((tmp_path / "runs").glob("*/*/*"))
