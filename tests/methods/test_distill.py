"""Distillation: zero at the teacher, equality of on-policy and off-policy losses, shares of a batch, and refusals."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch

import postrain as pt
from postrain import losses
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.methods.distill import Divergence
from postrain.methods.teacher_cache import TeacherCache
from postrain.rollout.environment import SINGLE_TURN
from postrain.types import Rows, Sampling
from tests.cli.test_main import run
from tests.methods.builders import ScriptedEngine, float64_model, make_method, rows
from tests.methods.test_rollouts import NumberTemplate
from tests.training_runs import small_run, teacher

COMPLETIONS = [[2, 7, 0], [3, 0], [2, 4, 9]]
PROMPTS = [torch.tensor([5, 6]), torch.tensor([8]), torch.tensor([9, 1, 4])]


def distill(
    *,
    student: Any = None,
    completions: Any = None,
    temperature: float = 1.0,
    environment: Any = SINGLE_TURN,
    **changes: Any,
) -> Any:
    """The method with another tiny model as teacher, and an engine that returns `completions`."""
    engine = ScriptedEngine(completions or COMPLETIONS, sampling=Sampling(16, temperature=temperature))
    components = {"engine": engine, "template": NumberTemplate(), "environment": environment}
    return make_method(
        "distill",
        float64_model() if student is None else student,
        reference=float64_model(1),
        components=components,
        **{"batch_size": 3, **changes},
    )


def given_rows() -> Rows:
    return rows(PROMPTS, [torch.tensor(ids) for ids in COMPLETIONS])


def prompts() -> Prompts:
    return Prompts(tuple(PROMPTS), ("a", "b", "c"), ({},) * 3, (0, 1, 2))


def mean_loss(method: Any, batch: Any) -> torch.Tensor:
    prepared = method.prepare(batch)
    return method.loss_sum(prepared).total / method.denominator(prepared)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_loss_and_gradient_are_zero_at_the_teacher(divergence: str) -> None:
    method = distill(student=float64_model(1), divergence=divergence)
    loss = mean_loss(method, prompts())
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert max(float(p.grad.abs().max()) for p in method.policy.parameters() if p.grad is not None) < 1e-10


@pytest.mark.parametrize(
    ("changes", "function"),
    [
        ({}, losses.exact_kl),
        ({"divergence": "forward_kl"}, losses.forward_kl),
        ({"divergence": "jsd", "beta": 0.3, "temperature": 0.7}, lambda s, t: losses.generalized_jsd(s, t, beta=0.3)),
    ],
)
def test_on_policy_and_off_policy_loss_equal_the_divergence_of_plain_logits(changes: Any, function: Any) -> None:
    """The engine samples what the rows hold, so both are the same mean over tokens."""
    tables = []
    for ids, mask in zip(given_rows().ids, given_rows().supervised, strict=True):
        both = (model(ids[None]).logits[0, :-1][mask[1:]] for model in (float64_model(), float64_model(1)))
        tables.append([(logits / changes.get("temperature", 1.0)).log_softmax(-1) for logits in both])
    expected = torch.cat([function(*pair) for pair in tables]).mean()
    for found in (
        mean_loss(distill(**changes), prompts()),
        mean_loss(distill(**changes, on_policy=0.0), given_rows()),
        mean_loss(distill(**changes, on_policy=0.5), given_rows()),
    ):
        assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_share_of_the_batch_is_sampled_and_the_rest_keeps_its_completions() -> None:
    method = distill(completions=[[1, 1, 0]], on_policy=2 / 3)
    prepared = method.prepare(given_rows())
    completions = [ids[mask].tolist() for ids, mask in zip(prepared.rows.ids, prepared.rows.supervised, strict=True)]
    assert completions == [[1, 1, 0], [1, 1, 0], COMPLETIONS[2]]
    assert [len(ids) for ids in prepared.rows.ids] == [5, 4, 6]
    assert [distill(on_policy=share).data_kind() for share in (1, 0.5, 0)] == ["Prompt", *["Demonstration"] * 2]


def test_truncated_completions_can_be_masked() -> None:
    method = distill(mask_truncated_completions=True)
    prepared = method.prepare(prompts())
    assert prepared.in_loss_B.tolist() == [True, True, False]
    assert (method.denominator(prepared), prepared.cost()) == (5, [5, 3, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"missing_eos_penalty": 1.0}, r"method\.missing_eos_penalty=1 is subtracted from a reward"),
        ({"precompute_teacher": True}, r"method\.precompute_teacher: sampled completions are not known.*on_policy=0"),
        (
            {"environment": object(), "on_policy": 0.5},
            r"^method\.on_policy=0\.5: rows .*; set method\.on_policy=1 or environment=none$",
        ),
    ],
)
def test_contradicting_settings_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distill(**changes)


def test_loss_from_states_of_the_teacher_equals_that_of_its_forward_pass() -> None:
    method, batch = distill(on_policy=0.0), given_rows()
    expected = float(mean_loss(method, batch).detach())
    # Two micro-batches, in another order than the rows of the batch.
    method.teacher_cache = TeacherCache.of_model(method.teacher, batch, [[2], [0, 1]])
    with method.teacher.scoring() as model, torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
    assert float(mean_loss(method, batch).detach()) == pytest.approx(expected, rel=1e-12)
    # Three rows of 3, 2 and 3 completion tokens, 16 numbers of 8 bytes each.
    assert method.teacher_cache.bytes() == 8 * 16 * 8
    # Rows that it does not know need the forward pass.
    other = rows(PROMPTS, [torch.tensor(ids) for ids in reversed(COMPLETIONS)])
    assert method.teacher_cache.states_of(other) is None


def test_a_run_with_a_precomputed_teacher_gives_the_numbers_of_one_without(tmp_path, capsys) -> None:
    words = ("method=distill", "method.on_policy=0", "evaluation.completions=0", "trainer.checkpoint_every=9")
    runs = [small_run(tmp_path / each, *words, f"method.precompute_teacher={each}") for each in ("true", "false")]
    assert "teacher: reading " in capsys.readouterr().out
    for one, other in zip(*(folder.metrics.read() for folder in runs), strict=True):
        logged = [{name: record[name] for name in ("loss", "eval/loss") if name in record} for record in (one, other)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_missing_teacher_is_refused_in_one_line_before_the_run_folder_exists(tmp_path, capsys) -> None:
    output = tmp_path / "runs"
    assert run("method=distill", f"paths.output={output}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: teacher: Distill learns from another model; give one")
    assert not output.exists()
    model, tokenizer = pt.load_model("nano")
    with pytest.raises(ConfigError, match="give the teacher, as Distill"):
        pt.Distill(model, tokenizer, data=[{"prompt": "Say 1."}]).fit(output=output)


def test_rows_without_completions_need_on_policy_1(tmp_path, capsys) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(40)))
    words = ("data=jsonl", f"data.path={file}", f"teacher={teacher()}", "method.on_policy=0.5")
    assert run("method=distill", *words, f"paths.output={tmp_path / 'runs'}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "this method trains on demonstrations" in line
    assert line.endswith("or set method.on_policy=1, which needs prompts only")
    assert not list((tmp_path / "runs").glob("*/*/*"))


def test_mixed_batches_train(tmp_path) -> None:
    words = ("method.on_policy=0.5", "method.divergence=jsd", "evaluation.completions=0", "trainer.checkpoint_every=9")
    folder = small_run(tmp_path, "method=distill", *words)
    first, *_, last = folder.metrics.read()
    assert last["eval/loss"] < first["eval/loss"]
