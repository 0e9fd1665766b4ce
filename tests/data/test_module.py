"""The `data` group whole: every YAML, every key, bad files, and the batches a trainer gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from postrain.config.arguments import resolved
from postrain.config.schema import schema_of
from postrain.config.tree import complete, instantiate
from postrain.data.kinds.judgement import Judgement, Judgements
from postrain.data.kinds.preference import Pairs
from postrain.data.kinds.prompt import Prompt, Prompts
from postrain.data.kinds.steps import StepRows
from postrain.data.kinds.text import beginning
from postrain.data.module import DataModule
from postrain.data.schedule import HeldOut
from postrain.errors import ConfigError
from postrain.types import Rows
from tests.data.helpers import write_lines
from tests.training_runs import CONF, forced

NANO = CONF.parent / "postrain" / "assets" / "nano"
OPTIONS = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
WORLD = {
    "world_text": {"Text": Rows},
    "world_demonstrations": {"Demonstration": Rows, "Prompt": Prompts, "Text": Rows},
    "world_preferences": {"Preference": Pairs, "Judgement": Judgements, "Demonstration": Rows, "Prompt": Prompts},
    "world_judgements": {"Judgement": Judgements, "Demonstration": Rows, "Prompt": Prompts},
    "world_stories": {"Prompt": Prompts},
    "world_sums": {"Prompt": Prompts},
    "world_steps": {"Steps": StepRows, "Demonstration": Rows, "Judgement": Judgements, "Prompt": Prompts},
}
HUB = {"alpaca", "dolly", "gsm8k", "hh_rlhf", "tiny_shakespeare", "ultrafeedback"}
TALKS = [
    {"prompt": f"Tell me about thing number {n}.", "completion": f"It is {n % 3} and it is green.", "task": "ab"[n % 2]}
    for n in range(30)
]


@dataclass
class Data:
    """The group alone."""

    data: DataModule


@cache
def config(option: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return resolved(complete(compose(f"data/{option}", forced(overrides)), Data))["data"]


def module(option: str, *overrides: str) -> DataModule:
    small = ("data.source.count=30",) if option.startswith("world") else ()
    return instantiate(config(option, "data.eval_rows=6", *small, *overrides))


def prepared(option: str, *overrides: str, kind: str = "Demonstration", **changes: Any) -> DataModule:
    data = module(option, *overrides)
    settings: dict[str, Any] = {"context": 512, "batch_size": 4, "updates": 3, "seed": 0, "completion_tokens": 16}
    # The template is put on the tokenizer, so each test gets one of its own.
    data.prepare(kind=kind, tokenizer=AutoTokenizer.from_pretrained(NANO), **(settings | changes))
    return data


@pytest.fixture
def talks(tmp_path) -> str:
    return f"data.path={write_lines(tmp_path / 'talks.jsonl', TALKS)}"


def test_every_option_is_tested():
    assert set(OPTIONS) == {*WORLD, *HUB, "jsonl", "reasoning_gym", "paraphrases"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_yaml_says_all_that_the_constructor_asks_for_and_starts_with_what_it_is(option):
    assert set(config(option)) == {"_target_", *schema_of(DataModule).keys}
    assert (CONF / "data" / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(("option", "kind"), [(option, kind) for option in WORLD for kind in WORLD[option]])
def test_the_world_gives_batches_of_every_kind_it_can_serve_as(option, kind):
    data = prepared(option, kind=kind)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert all(isinstance(batch, WORLD[option][kind]) for batch in batches)
    held_out = list(HeldOut(data.eval, 4))
    assert sum(map(len, held_out)) == len(data.eval) > 0
    prompts = data.eval_prompts(3)
    assert 0 < len(prompts) <= 3
    assert len(set(prompts.texts)) == len(prompts)
    # Running text is packed into pages of several documents, which have no gold score of their own.
    assert option == "world_text" or all("gold" in columns for columns in prompts.columns)
    assert data.gold_score is not None


def test_gold_scores_the_held_out_prompts():
    data = prepared("world_sums", kind="Prompt")
    prompts = data.eval_prompts(1)
    assert data.gold_score is not None
    columns = prompts.columns[0]
    right = data.gold_score(prompts.texts[0], f" The answer is {columns['answer']}.", columns["gold"])
    wrong = data.gold_score(prompts.texts[0], " The answer is no.", prompts.columns[0]["gold"])
    assert right["correct"] > wrong["correct"]


def test_rows_travel_with_their_prompts_whatever_the_order():
    data = prepared("world_sums", kind="Prompt", updates=9)
    assert data.gold_score is not None
    order = []
    for batch in data.train_dataloader():
        assert isinstance(batch, Prompts)
        for text, columns, row in zip(batch.texts, batch.columns, batch.row_ids, strict=True):
            # An oracle that knows the answer column is right about every shuffled row.
            assert data.gold_score(text, f" The answer is {columns['answer']}.", columns["gold"])["correct"] == 1
            order.append(row)
    assert order[:30] != sorted(order[:30])


@pytest.mark.parametrize("option", sorted(HUB))
def test_hub_options_say_without_a_network_what_they_looked_for(option):
    with pytest.raises(ConfigError, match=rf"data set {config(option)['source']['repo']}: not in the cache"):
        prepared(option)


@pytest.mark.parametrize(
    ("option", "kind", "rows"),
    [
        (
            "alpaca",
            "Demonstration",
            [{"instruction": f"{n}?", "input": "", "output": "b", "text": "t"} for n in range(20)],
        ),
        (
            "dolly",
            "Demonstration",
            [{"instruction": f"{n}?", "context": "", "response": "b", "category": "qa"} for n in range(20)],
        ),
        (
            "hh_rlhf",
            "Preference",
            [{side: f"\n\nHuman: {n}?\n\nAssistant: {side}" for side in ("chosen", "rejected")} for n in range(20)],
        ),
        (
            "ultrafeedback",
            "Preference",
            [
                {
                    "prompt": f"{n}?",
                    "chosen": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "a"}],
                    "rejected": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "b"}],
                    "score_chosen": 8.0,
                    "score_rejected": 3.0,
                }
                for n in range(20)
            ],
        ),
        ("gsm8k", "Prompt", [{"question": f"{n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(20)]),
        ("tiny_shakespeare", "Text", [{"Text": f"First Citizen {n}:\nBefore we proceed. Hear me."} for n in range(20)]),
    ],
)
def test_rows_as_the_hub_has_them_become_batches(option, kind, rows, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", rows)
    data = prepared(option, f"data.path={path}", kind=kind)
    assert len(next(iter(data.train_dataloader()))) == 4
    if option == "gsm8k":
        assert {"answer", "solution"} <= set(data.prompt_columns)


def test_a_path_takes_the_place_of_any_source(talks, tmp_path):
    held_out = write_lines(tmp_path / "held_out.jsonl", [{"prompt": "new", "completion": "x"}, TALKS[0]])
    data = prepared("world_demonstrations", talks, f"data.eval_path={held_out}")
    assert data.audit.source.endswith("talks.jsonl")
    assert (data.audit.rows_read, data.audit.rows_train, data.audit.rows_eval) == (32, 30, 1)
    assert data.audit.dropped == {"held-out prompt also in training": 1}
    assert data.eval_prompts(5).texts == ("new",)
    assert prepared("world_demonstrations", f"data.eval_path={held_out}").audit.rows_eval == 2


def test_training_and_held_out_rows_share_no_prompt(talks):
    data = prepared("jsonl", talks, "data.eval_fraction=0.2")
    assert (len(data.train), len(data.eval)) == (24, 6)
    trained, held_out = (
        {record.prompt_content() for record in part} for part in (data.records.train, data.records.held_out)
    )
    assert not trained & held_out


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("data.eval_fraction=0.1", lambda d: d.audit.rows_eval),
        ("data.eval_rows=4", lambda d: d.audit.rows_eval),
        ("data.columns.prompt=task", lambda d: d.eval_prompts(9).texts),
        ("data.template=alpaca", lambda d: d.audit.fingerprint),
        ("data.template=random", lambda d: d.audit.fingerprint),
        ("data.loss_on=all", lambda d: d.audit.supervised),
        ("data.max_length=20", lambda d: d.audit.lengths["longest"]),
        ("data.max_prompt_length=10", lambda d: d.audit.lengths["longest"]),
        ("data.gold=postrain.world.gold.score", lambda d: d.gold),
        ("data.show_mask=2", lambda d: d.audit.samples.count("row ")),
        ("data.quality.min_characters=29", lambda d: d.audit.rows_train),
        ("data.quality.max_characters=5", lambda d: d.audit.rows_train),
        ("data.quality.dedupe=true", lambda d: d.audit.rows_train),
        ("data.quality.near_dedupe=0.7", lambda d: d.audit.rows_train),
        ("data.quality.max_repetition=0.1", lambda d: d.audit.rows_train),
        ("data.quality.balance=task", lambda d: d.audit.rows_train),
    ],
)
def test_every_key_changes_something(override, changes, tmp_path):
    rows = [*TALKS, TALKS[7], TALKS[9], {**TALKS[11], "prompt": "x", "completion": "so on and on and on and on and on"}]
    rows += [{**TALKS[3], "completion": "short", "prompt": "y"}, {**TALKS[3], "completion": "tiny", "prompt": "z"}]
    path = f"data.path={write_lines(tmp_path / 'talks.jsonl', rows)}"
    before = prepared("jsonl", path, "data.eval_fraction=0.15")
    if override == "data.quality.max_characters=5":
        assert prepared("jsonl", path, override).audit.rows_train == 2
    assert changes(before) != changes(prepared("jsonl", path, "data.eval_fraction=0.15", override))


def test_loss_on_assistant_and_packing_change_something(tmp_path):
    turns = [{"role": role, "content": "hello there"} for role in ("user", "assistant") * 2]
    path = write_lines(
        tmp_path / "x.jsonl", [{"messages": [{**turns[0], "content": f"{n}"}, *turns[1:]]} for n in range(9)]
    )
    last, every = (
        prepared("jsonl", f"data.path={path}", f"data.loss_on={what}").audit.supervised
        for what in ("completion", "assistant")
    )
    assert every == 2 * last
    (tmp_path / "x.txt").write_text("\n\n".join(f"{n} word" * 80 for n in range(40)))
    text = f"data.path={tmp_path / 'x.txt'}"
    loose, packed = (
        prepared("jsonl", text, "data.max_length=64", f"data.pack={pack}", kind="Text").audit
        for pack in ("false", "true")
    )
    assert packed.items > loose.items == packed.rows_train
    assert loose.cut
    assert not packed.cut


@pytest.mark.parametrize("empty", ["drop", "error"])
def test_empty_completions_are_dropped_or_refused(empty, tmp_path):
    rows = [*TALKS, {"prompt": "q", "completion": ""}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    if empty == "drop":
        assert prepared("jsonl", f"data.path={path}").audit.dropped == {"empty completion": 1}
    else:
        with pytest.raises(ConfigError, match=r"x\.jsonl, line 31: the completion is empty"):
            prepared("jsonl", f"data.path={path}", "data.quality.empty=error")


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
JUDGED = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b'{"prompt": "a"\n', "Prompt", "line 1: not valid JSON"),
        (lines({"prompt": "a", "completion": "b"}, {"prompt": "a"}), "Demonstration", "line 2: the column completion"),
        (lines({"frage": "a"}), "Prompt", "the columns frage; expected for example"),
        (lines({"prompt": "a", "completion": "b", "label": 2}), "Judgement", "line 1: label has to be true or false"),
        (b'{"prompt": "\xff"}\n', "Prompt", "line 1: not UTF-8"),
        (b"", "Prompt", "is empty"),
        (lines({"prompt": "a", "completion": " "}), "Demonstration", "no row can be used: 1 empty completion"),
        (lines({**PAIR, "rejected": "b"}), "Preference", "no row can be used: 1 chosen equals rejected"),
        (lines(JUDGED, {**JUDGED, "label": "up?"}), "Judgement", "line 2: label .* got 'up\\?'; correct or remove"),
        (lines({**PAIR, "rejected": "b "}), "Judgement", "no row can be used: 1 chosen equals rejected"),
        (lines(PAIR, {"prompt": "a", "chosen": "b"}), "Preference", "line 2: the column rejected is missing"),
        (lines({"prompt": "a", "chosen": "b"}), "Preference", "row 1 has chosen but no column rejected"),
        (lines(JUDGED), "Preference", "learns from Preference records, but .* holds Judgement records"),
        (lines(PAIR), "Preference", "1 different prompts are too few"),
    ],
)
def test_bad_data_is_refused_in_one_line_that_names_the_file(content, kind, says, tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        prepared("jsonl", f"data.path={tmp_path / 'bad.jsonl'}", kind=kind)
    assert "bad.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_of_equals_are_dropped_and_printed(tmp_path):
    rows = [{**PAIR, "prompt": str(n)} for n in range(9)] + [{**PAIR, "rejected": "b"}]
    data = prepared("jsonl", f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}", kind="Preference")
    assert data.audit.dropped == {"chosen equals rejected": 1}
    assert "1 chosen equals rejected" in data.audit.render()


def test_pairs_as_judgements_stay_on_one_side_and_what_is_empty_is_counted(tmp_path):
    rows = [{**PAIR, "prompt": f"p{n}", "chosen": f"up {n}", "rejected": f"down {n}"} for n in range(10)]
    rows += [
        {**rows[0], "prompt": "empty side", "rejected": " "},
        {**rows[1], "prompt": "no prefix", "chosen": "down 1"},
    ]
    path = write_lines(tmp_path / "x.jsonl", rows)
    data = prepared("jsonl", f"data.path={path}", "data.eval_fraction=0.3", "data.eval_rows=20", kind="Judgement")
    assert data.audit.dropped == {"empty completion": 1, "chosen equals rejected": 1}
    for part in (data.records.train, data.records.held_out):
        labels = {record.prompt_content(): [] for record in part}
        for record in part:
            assert isinstance(record, Judgement)
            labels[record.prompt_content()].append(record.label)
        assert all(both == [True, False] for prompt, both in labels.items() if prompt != "empty side")
    assert "desirable" in data.audit.render()


def test_batches_of_any_size_borrow_the_same_completions(tmp_path):
    rows = [{**talk, "label": n % 3 > 0} for n, talk in enumerate(TALKS)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    found = []
    for size in (1, 5, 8):
        borrowed = {}
        for batch in prepared("jsonl", path, kind="Judgement", batch_size=size, updates=40 // size).train_dataloader():
            assert isinstance(batch, Judgements)
            assert len(batch.unrelated) == len(batch.rows) == len(batch.label_B) == size
            own = [tuple(ids.tolist()) for ids in batch.rows.ids]
            borrowed |= dict(zip(own, (tuple(ids.tolist()) for ids in batch.unrelated.ids), strict=True))
        found.append(borrowed)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == len({tuple(sorted(talk.items())) for talk in TALKS}) - 3


def test_prompts_longer_than_the_context_are_cut_counted_and_printed(tmp_path):
    rows = [{"prompt": f"{n} " + "what is this " * 40} for n in range(9)]
    data = prepared("jsonl", f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}", kind="Prompt", context=64)
    assert all(cost == 64 - 16 for batch in data.train_dataloader() for cost in batch.cost())
    assert data.audit.cut == {"prompt cut on the left": 9}
    assert "9 prompt cut on the left" in data.audit.render()
    assert all(len(ids) == 48 for ids in data.eval_prompts(9).ids)


def test_lengths_that_do_not_fit_the_model_are_refused(talks):
    with pytest.raises(ConfigError, match=r"data\.max_length=600: the model has a context of 512"):
        prepared("jsonl", talks, "data.max_length=600")
    with pytest.raises(ConfigError, match=r"rollout\.max_new_tokens=512 fills the model's context"):
        prepared("jsonl", talks, kind="Prompt", completion_tokens=512)


def test_filters_that_leave_nothing_say_what_went(talks):
    with pytest.raises(ConfigError, match=r"no row is left to learn from: 27 shorter than 999 characters; loosen"):
        prepared("jsonl", talks, "data.quality.min_characters=999", "data.eval_rows=3")


def test_a_data_option_without_rows_asks_for_a_path():
    assert config("jsonl")["path"] == "???"
    with pytest.raises(ConfigError, match=r"data\.path: has to be given"):
        module("jsonl", "data.path=null")


def test_prompts_of_several_turns_are_also_given_as_messages(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "So"},
    ]
    rows = [{"prompt": [{**turns[0], "content": f"Hi {n}"}, *turns[1:]]} for n in range(9)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    data = prepared("jsonl", path, kind="Prompt")
    prompts = data.eval_prompts(1)
    assert prompts.columns[0]["messages"][1:] == turns[1:]
    assert prompts.texts[0].endswith("\n\nYes?\n\nSo")
    assert isinstance(data.records.train[0], Prompt)


def seen(data: DataModule) -> list[tuple[int, ...]]:
    return [batch.row_ids for batch in data.train_dataloader() if isinstance(batch, Rows)]


def trainer(ranks: int, rank: int) -> Trainer:
    """What the loader asks of a trainer whose method has done one update."""
    method = SimpleNamespace(counters=SimpleNamespace(updates=1))
    return cast(Trainer, SimpleNamespace(lightning_module=method, world_size=ranks, global_rank=rank))


def test_a_trainer_gets_its_ranks_share_of_what_is_still_to_do(talks):
    data = prepared("jsonl", talks)
    whole = seen(data)
    for rank in (0, 1):
        data.trainer = trainer(2, rank)
        assert seen(data) == [ids[rank::2] for ids in whole[1:]]
    data.trainer = trainer(5, 0)
    with pytest.raises(ConfigError, match=r"method\.batch_size=4: 5 ranks need at least 5 rows"):
        data.train_dataloader()
    data.trainer = None
    data.start_update = 2
    assert seen(data) == whole[2:]


def test_the_same_rows_have_the_same_fingerprint_and_another_seed_another_split(talks):
    one, again, other = (prepared("jsonl", talks, seed=seed).audit.fingerprint for seed in (0, 0, 1))
    assert one == again != other


def test_running_text_leaves_the_tokenizers_template_alone():
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    own = tokenizer.chat_template
    data = module("world_text")
    data.prepare(kind="Text", tokenizer=tokenizer, context=512, batch_size=4, updates=3, seed=0)
    assert tokenizer.chat_template == own
    assert data.chat_template.name == "plain"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("It rained. She left.", "It rained."),
        ("Is it 3.5? Yes.", "Is it 3.5?"),
        ("one two three four", "one two"),
        ("Alone.", "Alone."),
        ("What is this", "What"),
    ],
)
def test_running_text_is_prompted_with_its_beginning(text, start):
    assert beginning(text) == start


def test_one_file_of_each_kind_reads_the_same(tmp_path: Path):
    def fingerprint(name: str, write: Sequence[Any]) -> str:
        path = tmp_path / name
        path.write_text(write[0])
        return prepared("jsonl", f"data.path={path}").audit.fingerprint

    as_csv = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in TALKS)
    found = {
        fingerprint("x.jsonl", [lines(*TALKS).decode()]),
        fingerprint("x.json", [json.dumps(TALKS)]),
        fingerprint("x.csv", [as_csv]),
    }
    assert len(found) == 1


def test_a_file_in_place_of_the_worlds_stories_keeps_the_models_template(talks):
    assert prepared("world_stories", kind="Prompt").chat_template.name == "plain"
    assert prepared("world_stories", "data.source.task=instructions", kind="Prompt").chat_template.name == "chat"
    assert prepared("world_stories", talks, kind="Prompt").chat_template.name == "chat"
    assert prepared("world_stories", "data.template=alpaca", kind="Prompt").chat_template.name == "alpaca"


def test_pairs_that_differ_only_beyond_the_cut_are_dropped_and_counted(tmp_path):
    same, answers = "no " * 40, ("yes", "never")
    rows = [{"prompt": f"Is it {n}?", "chosen": same + answers[n % 2], "rejected": same + "maybe"} for n in range(20)]
    rows += [{"prompt": f"Was it {n}?", "chosen": "yes", "rejected": "no"} for n in range(20)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    data = prepared("jsonl", f"data.path={path}", "data.max_length=24", kind="Preference")
    assert len(data.train) + len(data.eval) == 20
    assert data.audit.dropped["chosen equals rejected once cut"] == 20
