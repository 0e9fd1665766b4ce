"""The Python API: public names, training, generation, scoring and one-line errors."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.utils.chat_template_utils import get_json_schema

import postrain as pt
from postrain import api
from postrain.data.chat import Template
from postrain.models.provenance import unchanged
from tests.training_runs import CONF, METHODS, composed

PAGE = (CONF.parent / "docs" / "howto" / "python.md").read_text()
ANY: Any = pt
"""For arguments of wrong types."""
FROM_PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_all_public_names_resolve_and_include_every_method():
    targets = {composed([f"method={name}"])["method"]["_target_"].rpartition(".")[2] for name in METHODS}
    assert targets <= {*pt.__all__} <= {*dir(pt)}
    assert all(getattr(pt, name) is not None for name in pt.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'PPOTrainer'"):
        _ = pt.PPOTrainer  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_postrain_imports_no_torch():
    code = "import sys, postrain; assert not {'torch', 'lightning', 'transformers', 'hydra'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docstring_examples_pass():
    # Of each function: testmod leaves out decorated ones.
    functions = (api.load_model, api.generate, api.score)
    results = [doctest.DocTestRunner().run(one) for each in functions for one in doctest.DocTestFinder().find(each)]
    assert [(one.failed, one.attempted) for one in results] == [(0, 3), (0, 4), (0, 4)]


def test_python_page_trains_in_a_run_folder_and_with_a_plain_trainer(tmp_path, monkeypatch):
    """Executes the Python blocks of the how-to page with fewer rows."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(FROM_PYTHON.replace("updates=2)", "updates=1, batch_size=4, group_size=4)"), found)
    run = found["run"]
    assert [record["update"] for record in run.metrics] == [0, 1]
    assert run.result["objective"] == run.objective == run.metrics[-1]["eval/reward/total"]
    assert repr(run) == f"Run(path='{run.path}', method=GRPO, updates=1, objective={run.objective})"
    assert (run.path / "model" / "README.md").is_file()
    assert (run.path / "report.html").is_file()
    assert found["loss"].item() == pytest.approx(-1.0)
    again, _ = pt.load_model(str(run.path))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, run.model.eval()(ids).logits, atol=1e-5)


@pytest.fixture(scope="module")
def nano() -> tuple[Any, Any]:
    return pt.load_model("nano")


def test_scores_equal_sampled_log_probabilities_independent_of_the_batch(nano):
    model, _ = nano
    found = pt.generate(model, ["Tom found", "2 + 2 ="], max_new_tokens=6, num_generations=2, seed=3)
    (alone,) = pt.generate(model, ["Tom found"], max_new_tokens=6, seed=3)
    assert found[0].token_ids == alone.token_ids
    with torch.no_grad():
        logps = pt.score(model, found, micro_batch_tokens=1, entropy=True)
    for row, mask, one in zip(logps, logps.mask, found, strict=True):
        assert torch.allclose(row[mask], torch.tensor(one.logps), atol=1e-5)
    assert logps.entropy is not None
    assert logps.entropy.shape == logps.shape


def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: Name of the city.
    """
    return city


def test_generate_renders_tools_calls_and_results_as_the_chat_template_does(nano):
    model, tokenizer = nano
    tokenizer = deepcopy(tokenizer)
    Template(tokenizer, mode="tools")  # as data.template=tools leaves it in an exported model
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    turns = [
        {"role": "user", "content": "Is it cold in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "-3"},
    ]
    (found,) = pt.generate(model, [turns], tokenizer=tokenizer, tools=[get_weather], max_new_tokens=1)
    assert found.prompt_ids == tokenizer.apply_chat_template(
        turns, tools=[get_weather], add_generation_prompt=True, return_dict=False
    )
    # A template without tools gets them as text.
    (same,) = pt.generate(model, [turns], tools=[get_json_schema(get_weather)], max_new_tokens=1)
    assert same.prompt_ids == found.prompt_ids
    written = replace(found, text=f"<tool_call>{json.dumps(call['function'])}</tool_call>")
    assert written.tool_calls == [call["function"]]


def test_generate_stays_the_function_after_import_of_the_command_module(nano):
    import_module("postrain.generate")
    (found,) = pt.generate(nano[0], ["Tom found"], max_new_tokens=1)
    assert len(found.token_ids) == 1


def scalar_model() -> Any:
    config = GPT2Config(vocab_size=5, n_layer=1, n_embd=4, n_head=1)
    config.num_labels = 1
    return GPT2ForSequenceClassification(config)


def test_a_stop_text_may_be_given_alone(nano):
    found = [pt.generate(nano[0], ["Tom found"], max_new_tokens=12, seed=1, stop=stop)[0] for stop in (".", ["."])]
    assert found[0].text == found[1].text
    (letters,) = pt.generate(nano[0], ["Tom found"], max_new_tokens=12, seed=1, stop="qqq")
    assert len(letters.token_ids) >= len(found[0].token_ids)


def test_a_device_that_cannot_be_used_is_one_line():
    with pytest.raises(pt.ConfigError, match=r"^device='gpu' cannot be used here; use cpu: Expected one of"):
        pt.load_model(device="gpu")


def test_a_model_may_be_named_by_a_path():
    model, _ = pt.load_model(Path(pt.__file__).parent / "assets" / "nano")
    assert model.config.vocab_size == 1024


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (lambda model, tokenizer: pt.DPO(model, tokenizer, updates=-1, warmup=2),
         ["method.updates: expected an integer >= 1, got -1", "method.warmup: expected a number >= 0 and <= 1, got 2"]),
        (lambda model, tokenizer: ANY.DPO(model, tokenizer, lr=1e-5, epochs=3),
         ["DPO: unknown argument lr; did you mean learning_rate?",
          "DPO: unknown argument epochs; did you mean num_train_epochs or updates?"]),
        (lambda model, tokenizer: ANY.Distill(model, tokenizer, teacher="RUN"),
         ["Distill: unknown argument teacher; did you mean reference?"]),
        (lambda model, tokenizer: ANY.PPO(model, tokenizer, kl_target=6.0),
         ["PPO: unknown argument kl_target; did you mean adaptive_kl_target?"]),
        (lambda model, tokenizer: ANY.SFT(model, tokenizer, peft_config=pt.LoRA(r=8)),
         ["SFT: unknown argument peft_config; give it to the model, as in load_model(NAME, adapter=LoRA(r=8))"]),
        (lambda model, tokenizer: ANY.PPO(model, tokenizer, reward="RUN").fit(),
         ["reward: expected a function of (prompts, completions, **columns), got 'RUN'; a reward model is "
          "postrain.rewards.reward_model.OutcomeRewardModel(path=RUN)"]),
        (lambda model, _: ANY.LoRA(rank=8), ["LoRA: unknown argument rank; did you mean r?"]),
        (lambda model, _: ANY.DataModule([], max_seq_len=9),
         ["DataModule: unknown argument max_seq_len; did you mean max_length?"]),
        (lambda model, _: ANY.generate(model, ["x"], max_tokens=4),
         ["generate: unknown argument max_tokens; did you mean max_new_tokens?"]),
        (lambda model, tokenizer: pt.SFT(model, tokenizer, data=pt.DataModule([], max_rows=-3)).fit(
            evaluation=pt.Evaluation(every=0)),
         ["data.max_rows: expected an integer >= 1 or null, got -3",
          "evaluation.every: expected an integer >= 1, got 0"]),
        (lambda model, _: pt.generate(model, ["a"], temperature=-1),
         ["temperature: expected a number >= 0, got -1"]),
        (lambda model, _: ANY.generate(model, ["a"], stop=[5]), ["stop: expected text or a list of texts, got [5]"]),
        (lambda model, _: pt.generate(model, ["a"], stop=""),
         ["stop: expected non-empty texts; [] disables stop texts"]),
        (lambda model, _: pt.generate(model, ["a"], max_new_tokens=600),
         ["max_new_tokens=600: a prompt of 7 tokens and its completion need more than the model's 512 positions; "
          "shorten one of them"]),
        (lambda model, _: pt.generate(model, ["a"], template="nope"),
         ["template=nope: expected one of auto, chat, plain, alpaca, vicuna, qa, dialogue, inst, bot, random, tools"]),
        (lambda model, _: pt.score(model, [("a", "b")], template="nope"),
         ["template=nope: expected one of auto, chat, plain, alpaca, vicuna, qa, dialogue, inst, bot, random, tools"]),
        (lambda model, _: pt.generate(model, ["a"], num_generations=0),
         ["num_generations: expected an integer >= 1, got 0"]),
        (lambda model, _: pt.generate(model, "abc"), ["prompts: expected a list, got 'abc'"]),
        (lambda model, _: pt.generate(model, ["a"], tools=[{"description": "b"}]),
         ["tools: has to hold function schemas with a name, got {'description': 'b'}"]),
        (lambda model, _: pt.generate(model, ["a"], tools=[lambda x: x]),
         ["tools: Cannot generate JSON schema for <lambda> because it has no docstring!"]),
        (lambda model, _: pt.generate(torch.nn.Identity(), ["a"]),
         ["tokenizer: pass tokenizer=...; only models from load_model have one"]),
        (lambda model, _: ANY.load_model(None), ["name: expected text or a path, got null"]),
        (lambda model, _: ANY.load_model(head="value"), ["head: expected one of causal, scalar, got 'value'"]),
        (lambda model, _: ANY.load_model(adapter="lora"),
         ["adapter: expected an adapter, such as LoRA(r=8), got 'lora'"]),
        (lambda model, _: ANY.load_model(adapter=ANY.LoRA(r=0)), ["adapter.r: expected an integer >= 1, got 0"]),
        (lambda model, _: ANY.generate(model, ["a"], num_generations=1.5, seed=-1),
         ["num_generations: expected an integer >= 1, got 1.5", "seed: expected an integer >= 0, got -1"]),
        (lambda model, _: ANY.generate(model, [[]]), ["prompt: expected at least one token"]),
        (lambda model, _: ANY.generate(model, [5]), ["prompt: expected a text, messages or token ids, got 5"]),
        (lambda model, _: ANY.generate(model, [[1.5, 2]]),
         ["prompt: expected a text, messages or token ids, got [1.5, 2]"]),
        (lambda model, _: ANY.generate(model, [[3, 99999]]),
         ["token id 99999: the model has 1024 tokens; is this its tokenizer?"]),
        (lambda model, _: ANY.score(model, [([3] * 500, [4] * 13)]),
         ["a row has 513 tokens, and the model's context 512; shorten it"]),
        (lambda model, _: ANY.score(model, [("a", "b")], temperature=0, micro_batch_tokens=0),
         ["temperature: expected a number > 0, got 0", "micro_batch_tokens: expected an integer >= 1, got 0"]),
        (lambda model, _: ANY.score(scalar_model(), [([1], [2])]),
         ['model: GPT2ForSequenceClassification has a scalar head; expected a language model, as load_model(NAME, '
          'head="causal") gives']),
        (lambda model, _: pt.score(torch.nn.Identity(), [("a", "b")]),
         ["tokenizer: pass tokenizer=...; only models from load_model have one"]),
    ],
)  # fmt: skip
def test_each_python_mistake_is_a_one_line_error(make, lines, nano):
    with pytest.raises(pt.ConfigError) as caught:
        make(*nano)
    assert str(caught.value).splitlines() == lines


def test_score_of_text_equals_that_of_token_ids_and_has_a_gradient(nano):
    model, tokenizer = nano
    words = ("2 + 2 =", "4")
    text = pt.score(model, [{"prompt": words[0], "completion": words[1]}])
    (one,) = pt.generate(model, [[{"role": "user", "content": words[0]}]], max_new_tokens=1)
    ids = text.mask.sum(), one.prompt_ids, [*tokenizer(words[1]).input_ids, tokenizer.convert_tokens_to_ids("<|end|>")]
    tokens = pt.score(model, [(ids[1], ids[2])])
    assert torch.equal(text, tokens)
    text.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


def test_model_with_changed_weights_is_not_unchanged():
    model, _ = pt.load_model("nano")
    assert unchanged(model)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not unchanged(model)
