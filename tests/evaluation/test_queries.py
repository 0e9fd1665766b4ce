"""queries.py: metrics of scripted answers against worked numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.errors import ConfigError
from postrain.evaluation.differences import differences
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.queries import CODE_NOT_RUN, Queries, agreement
from postrain.evaluation.query_file import read_queries
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.models.loading import load_tokenizer
from postrain.models.sources import ModelSource
from postrain.rollout.environment import SINGLE_TURN
from postrain.types import Completion, Sampling, Stop
from tests.training_runs import CONF, composed

ROWS = [
    {"id": "sum", "category": "paraphrase", "phrasings": ["4 + 3?", "Add 4 and 3.", "4 plus 3?"]},
    {"id": "sky", "category": "factual", "phrasings": ["Sky?", "The sky is"]},
    {"id": "one", "category": "code", "phrasings": ["Write one()."]},
]
EXPECT = [{"number": 7}, {"any_of": ["blue"]}, {"function": "one()", "tests": ["assert one() == 1"]}]
REFERENCES = ("7", "blue", "def one(): return 1")
ANSWERS = {
    "4 + 3?": "It is 7.",
    "Add 4 and 3.": "seven",
    "4 plus 3?": "8",
    "Sky?": "",
    "The sky is": "I'm sorry",
    "Write one().": "def one(): return 2",
}


@dataclass(frozen=True)
class ScriptedEngine:
    """An engine with a fixed answer per prompt; it truncates the answer 8."""

    tokenizer: Any
    answers: Mapping[str, str]
    temperature: float = 1.0
    max_new_tokens: int = 4
    exact_logps: bool = True

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature)

    def generate(
        self, model: Any, prompts: Sequence[torch.Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        assert self.temperature == 0.0
        return [self._completed(self.tokenizer.decode(prompt)) for prompt in prompts]

    def _completed(self, prompt: str) -> Completion:
        (text,) = [answer for question, answer in self.answers.items() if f"\n{question}<" in prompt]
        ids = [*self.tokenizer(text)["input_ids"], *([] if text == "8" else [self.tokenizer.eos_token_id])]
        return Completion(torch.tensor(ids), torch.zeros(len(ids)), finished=text != "8")


@pytest.fixture(scope="module")
def eval_model() -> EvalModel:
    source = ModelSource(
        name=None, path="bundled:nano", revision=None, gguf_package=None, offline="fail", from_scratch=False
    )
    tokenizer = load_tokenizer(source.resolve())
    return EvalModel(
        name="scripted",
        model=nn.Linear(1, 1),
        tokenizer=tokenizer,
        template=Template(tokenizer),
        engine=ScriptedEngine(tokenizer, ANSWERS),
        environment=SINGLE_TURN,
        reward=None,
        reference=None,
        seed=0,
        context=512,
        micro_batch_tokens=64,
        data_as=lambda kind: pytest.fail(f"unexpected conversion of the data to {kind}"),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("queries") / "own.jsonl"
    parts = zip(ROWS, EXPECT, REFERENCES, strict=True)
    rows = (row | {"expect": expect, "reference": reference} for row, expect, reference in parts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def queries_task(path: str | None, **changes: Any) -> Queries:
    settings: dict[str, Any] = {"categories": None, "phrasings": None, "allow_execution": False}
    return Queries(**({"temperature": 0.0, "max_new_tokens": 32, "path": path} | settings | changes))


@pytest.fixture(scope="module")
def found(eval_model: EvalModel, path: str) -> EvalResult:
    return queries_task(path)(eval_model)


def test_query_metrics_match_worked_example(found: EvalResult) -> None:
    # Accuracy per query: 2/3, 0 and 1 (code is only parsed); three observations.
    assert found.metrics["accuracy"] == Estimate.share([2 / 3, 0.0, 1.0])
    assert found.metrics["accuracy"].value == pytest.approx(5 / 9)
    values = {name: (estimate.value, estimate.n) for name, estimate in found.metrics.items()}
    assert values == {
        "accuracy": (pytest.approx(5 / 9), 3),
        "accuracy/paraphrase": (pytest.approx(2 / 3), 1),
        "accuracy/factual": (0.0, 1),
        "accuracy/code": (1.0, 1),
        "worst_phrasing": (pytest.approx(1 / 3), 3),  # only the code is correct in every phrasing
        "consistency": (0.5, 2),  # of two queries with several phrasings, `sky` has one verdict: wrong
        "agreement": (pytest.approx(1 / 3), 1),  # 7, seven and 8: one pair of three
        "agreement/paraphrase": (pytest.approx(1 / 3), 1),
        "refusals_or_empty": (pytest.approx(1 / 3), 3),  # both phrasings of `sky`
        "finished": (pytest.approx((2 / 3 + 1 + 1) / 3), 3),
        "tokens": values["tokens"],
    }


def test_tokens_are_averaged_per_query(found: EvalResult) -> None:
    tokens = [[phrasing["tokens"] for phrasing in record["phrasings"]] for record in found.records]
    assert tokens[1][0] == 1  # only the end token
    assert found.metrics["tokens"] == Estimate.mean([sum(each) / len(each) for each in tokens], 0)


def test_records_allow_paired_differences_of_every_metric(found: EvalResult) -> None:
    assert set(differences(found, found)) == set(found.metrics)


def test_records_contain_prompts_responses_and_verdicts(found: EvalResult) -> None:
    assert found.example == "<|user|>\n4 + 3?<|end|>\n<|assistant|>\n"
    first, second, _ = found.records
    assert {key: value for key, value in first.items() if key not in ("phrasings", "tokens")} == {
        "row": "sum",
        "category": "paraphrase",
        "accuracy": pytest.approx(2 / 3),
        "accuracy/paraphrase": pytest.approx(2 / 3),
        "worst_phrasing": False,
        "consistency": False,
        "agreement": pytest.approx(1 / 3),
        "agreement/paraphrase": pytest.approx(1 / 3),
        "refusals_or_empty": 0,
        "finished": pytest.approx(2 / 3),
    }
    third = dict(first["phrasings"][2])
    assert third.pop("tokens") >= 1
    assert third == {
        "phrasing": 2,
        "prompt": "<|user|>\n4 plus 3?<|end|>\n<|assistant|>\n",
        "response": "8",
        "finished": False,
        "right": False,
        "why": "missed number 7 (read 8)",
        "answer": "8",
    }
    assert [phrasing["why"] for phrasing in second["phrasings"]] == ["empty", "refused"]
    assert found.notes == (CODE_NOT_RUN,)


def test_code_is_run_if_allowed(eval_model: EvalModel, path: str) -> None:
    ran = queries_task(path, categories=("code",), allow_execution=True)(eval_model)
    assert (ran.metrics["accuracy"].value, ran.metrics["accuracy/code"].value) == (0, 0)
    assert "consistency" not in ran.metrics  # needs several phrasings
    assert ran.notes == ()


def test_categories_and_phrasings_are_limited(eval_model: EvalModel, path: str) -> None:
    few = queries_task(path, categories=("factual", "paraphrase"), phrasings=2)(eval_model)
    run = [(record["row"], phrasing["phrasing"]) for record in few.records for phrasing in record["phrasings"]]
    assert run == [("sum", 0), ("sum", 1), ("sky", 0), ("sky", 1)]


def test_small_context_limits_answers(eval_model: EvalModel, path: str) -> None:
    prompts = [eval_model.template.encode_prompt(user(text)) for text in ANSWERS if text[0] in "4A"]
    found = queries_task(path, categories=("paraphrase",))(replace(eval_model, context=max(map(len, prompts)) + 6))
    assert found.notes == ("answers were limited to 6 tokens instead of 32 by the model's context",)
    none = queries_task(path)(replace(eval_model, context=3))
    assert (none.metrics, none.notes) == ({}, ("the context of 3 tokens is too short for the queries",))


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        (
            ("factal",),
            "evaluation.tasks.queries.categories: unknown category factal; did you mean factual?",
        ),
        (
            ("x",),
            "evaluation.tasks.queries.categories: unknown category x; expected some of factual, reasoning, ",
        ),
        ((), "evaluation.tasks.queries.categories: is empty; give some of factual, "),
    ],
)
def test_unknown_category_is_an_error(categories: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{problem}"):
        queries_task(None, categories=categories)


def test_agreement_counts_pairs() -> None:
    # a b, a a, b a: one of three
    assert agreement(["a", "b", "a"]) == pytest.approx(1 / 3)


def test_option_uses_the_bundled_queries() -> None:
    node = composed(["method=sft", "evaluation=queries"])["evaluation"]["tasks"]["queries"]
    assert node.pop("_target_") == "postrain.evaluation.queries.Queries"
    text = (CONF / "evaluation" / "queries.yaml").read_text()
    assert text.startswith(f"# {len(read_queries(None))} hand-written queries")
    assert Queries(**node) == queries_task(None, max_new_tokens=128)
