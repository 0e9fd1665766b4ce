"""A teacher behind a fake vLLM server: top-k log-probabilities, the outcome of all other tokens, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from postrain import losses
from postrain.errors import ConfigError
from postrain.methods.server_teacher import PROBE, ServerTeacher
from postrain.methods.teacher_cache import TeacherCache
from postrain.models.top_k import TopK, score_top_k
from tests.methods.builders import float64_model, rows
from tests.methods.test_distill import COMPLETIONS, distill, given_rows, mean_loss, prompts
from tests.rollout.fake_vllm import Calls, Handler, fake_server
from tests.tiny import VOCABULARY


def test_divergence_of_known_tokens_and_the_rest_is_a_worked_number():
    # Student 0.5 and 0.2, rest 0.3; teacher 0.6 and 0.3, rest 0.1.
    student, teacher = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.6, 0.3]).log()
    expected = 0.5 * math.log(0.5 / 0.6) + 0.2 * math.log(0.2 / 0.3) + 0.3 * math.log(0.3 / 0.1)
    found = losses.exact_kl(losses.with_rest(student), losses.with_rest(teacher))
    assert float(found) == pytest.approx(expected) == pytest.approx(0.15733, abs=1e-5)
    # A rest of rounding counts as 1e-6.
    assert losses.with_rest(torch.zeros(1)).exp().tolist() == pytest.approx([1, 1e-6])


def test_merging_the_other_tokens_lowers_the_divergence_and_none_keeps_it():
    model, other = float64_model(), float64_model(1)
    row = rows([torch.tensor([5, 6])], [torch.tensor([2, 7, 0])])
    student, teacher = (each(row.ids[0][None]).logits[0, 1:-1].log_softmax(-1) for each in (model, other))

    def loss(count: int) -> float:
        best = teacher.topk(count)
        known = TopK((best.indices,), (best.values.float(),))
        options: Any = {"temperature": 1.0, "divergence": losses.exact_kl}
        return float(score_top_k(model, row, known, **options)[0].detach().sum())

    exact = float(losses.exact_kl(student, teacher).detach().sum())
    assert loss(VOCABULARY) == pytest.approx(exact, rel=1e-4)
    assert loss(2) < loss(8) < loss(VOCABULARY)


def test_loss_from_a_server_equals_that_of_the_same_teacher_in_memory():
    with fake_server(Calls(teacher=float64_model(1))) as (url, _):
        for changes, batch in (({}, prompts()), ({"on_policy": 0.0}, given_rows())):
            method = distill(student=float64_model(), **changes)
            expected = float(mean_loss(method, batch).detach())
            method = distill(student=float64_model(), **changes)
            method.server_url, method.server = url, ServerTeacher(url, VOCABULARY, 5.0)
            assert float(mean_loss(method, batch).detach()) == pytest.approx(expected, rel=1e-4)
        cached = distill(student=float64_model(), on_policy=0.0)
        cached.server_url, cached.server = url, ServerTeacher("http://127.0.0.1:1", VOCABULARY, 5.0)
        cached.teacher_cache = TeacherCache.of_server(ServerTeacher(url, VOCABULARY, 5.0), given_rows())
        assert float(mean_loss(cached, given_rows()).detach()) == pytest.approx(expected, rel=1e-4)
        # Of three tokens, the row's own is one.
        known = ServerTeacher(url, 3, 5.0).score(given_rows())
    for ids, completion in zip(known.ids, COMPLETIONS, strict=True):
        assert ids.shape == (len(completion), 3)
        assert all(token in row for token, row in zip(completion, ids.tolist(), strict=True))


def respond_with_half_an_object(self: Handler) -> None:
    """Text that is declared as JSON."""
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", "1")
    self.end_headers()
    self.wfile.write(b"{")


def test_problems_of_the_server_are_one_line():
    with fake_server(Calls()) as (url, handler):
        teacher = ServerTeacher(url, 3, 5.0)
        letters = [ord(letter) for letter in PROBE]
        teacher.check_tokens(lambda text, **_: {"input_ids": letters})
        with pytest.raises(ConfigError, match=r"the tokenizer of served gives other tokens than the student's; serve"):
            teacher.check_tokens(lambda text, **_: {"input_ids": letters[1:]})
        handler.complete = lambda self, request: self.respond({"choices": [{"text": "4"}]})
        with pytest.raises(ConfigError, match=r"^teacher=http.*gives no prompt_logprobs for 3 tokens; expected vLLM"):
            teacher.score(given_rows())
        handler.down = True
        with pytest.raises(ConfigError, match=r"^teacher=http.*cannot be reached .*start it with vllm serve"):
            ServerTeacher(url, 3, 5.0).score(given_rows())
    method = distill(cross_tokenizer=True)
    with pytest.raises(ConfigError, match="log-probabilities of a server are those of the student's tokens"):
        method.check_teacher(url)
    method = distill(temperature=0.7)
    method.check_teacher(url)
    assert not method.needs_reference()
    with pytest.raises(ConfigError, match="a server sends log-probabilities at temperature 1"):
        method.check()


@pytest.mark.parametrize(("body", "kind"), [("<html>", "text/plain"), ({"data": []}, "application/json")])
def test_an_address_without_models_is_a_one_line_error(body: Any, kind: str):
    with fake_server(Calls()) as (url, handler):
        handler.do_GET = lambda self: self.respond(body, kind=kind)
        with pytest.raises(ConfigError, match=r"^teacher=http.*/v1/models gives no data\.0\.id; expected vLLM"):
            _ = ServerTeacher(url, 3, 5.0).model


def test_answers_other_than_those_of_vllm_are_one_line_errors():
    with fake_server(Calls()) as (url, handler):
        teacher = ServerTeacher(url, 3, 5.0)
        handler.do_POST = lambda self: self.respond({"error": {"message": "no such route"}})
        with pytest.raises(ConfigError, match=r"^teacher=http.*/tokenize gives no tokens; expected vLLM"):
            teacher.check_tokens(lambda text, **_: {"input_ids": []})
        handler.do_POST = respond_with_half_an_object
        with pytest.raises(ConfigError, match=r"^teacher=http.*/completions does not answer with JSON .*started with"):
            teacher.score(given_rows())
