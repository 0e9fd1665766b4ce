"""Mixtures of several sources, replay, and held-out files by name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from postrain.data.data_options import rows_named
from postrain.data.interleave import CYCLE, Interleaving, shares
from postrain.data.mix_sources import MixSource, names
from postrain.data.module import DataModule
from postrain.data.schedule import Stream, TrainBatches
from postrain.errors import ConfigError
from postrain.types import Rows
from tests.data.helpers import write_lines
from tests.data.modules import prepared

SHORT = [{"prompt": f"short question {n}", "completion": "yes"} for n in range(40)]
LONG = [{"prompt": f"long question {n}", "completion": "the answer is rather long " * 4} for n in range(80)]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """short.jsonl, long.jsonl and base.txt in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "short.jsonl", SHORT)
    write_lines(tmp_path / "long.jsonl", LONG)
    (tmp_path / "base.txt").write_text("\n\n".join(f"Once upon a time {n} foxes ran. " * 60 for n in range(30)))


def mixed(*overrides: str, kind: str = "Demonstration", **changes: Any) -> DataModule:
    return prepared("world_demonstrations", *overrides, kind=kind, **{"batch_size": 10, "updates": 12, **changes})


def batches(data: DataModule) -> list[tuple[int, ...]]:
    return [batch.row_ids for batch in data.train_dataloader() if isinstance(batch, Rows)]


# Shares ---------------------------------------------------------------------------------------------------------------


def test_every_prefix_has_the_shares_up_to_one_item():
    rates = (0.5, 0.3, 0.2)
    pattern = Interleaving(rates)
    for length in range(1, 400):
        counts = pattern.before(length)
        assert sum(counts) == length
        assert all(abs(count - length * rate) <= 1 for count, rate in zip(counts, rates, strict=True))


def test_cycles_of_the_interleaving_continue_and_small_rates_are_kept():
    pattern = Interleaving((0.999999, 0.000001))
    assert pattern.before(2 * CYCLE + 5) == [2 * (CYCLE - 1) + 5, 2]
    assert len(pattern.sources(CYCLE - 3, 6)) == 6


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ((1, 3), 1, (0.25, 0.75)),
        ((1, 16), 2, (0.2, 0.8)),  # 1 and 4
        ((1, 16), 1e9, (0.5, 0.5)),
        ((0, 2), 4, (0, 1)),
        ((1e6, 1e6), 0.01, (0.5, 0.5)),
    ],
)
def test_temperature_flattens_the_shares(weights, temperature, expected):
    assert shares(weights, temperature) == pytest.approx(expected)


def test_mixed_batches_resume_and_split_over_ranks_and_repeat_a_source_by_epochs():
    items: Any = range(12)
    streams = (Stream(0, 4, 0.6), Stream(4, 8, 0.4))
    schedule = TrainBatches(items=items, batch_size=5, updates=8, seed=3, streams=streams)
    drawn = [schedule.indices(update) for update in range(8)]
    assert [schedule.indices(update) for update in reversed(range(8))] == drawn[::-1]
    assert all(Counter(index < 4 for index in batch) == {True: 3, False: 2} for batch in drawn)
    small = [index for batch in drawn for index in batch if index < 4]
    assert Counter(small) == dict.fromkeys(range(4), 6)
    assert schedule.drawn() == [24, 16]
    assert sorted(schedule.indices_seen()) == list(range(12))


# Prepared mixtures ----------------------------------------------------------------------------------------------------


def test_mixture_by_rows_has_the_shares_in_every_batch_and_counts_passes():
    data = mixed("data.mix={short.jsonl: 0.7, long.jsonl: 0.3}")
    first = data.audit.sources["short"].audit.rows_read
    assert all(sum(row <= first for row in batch) == 7 for batch in batches(data))
    short, long = data.audit.sources["short"], data.audit.sources["long"]
    assert (short.drawn, long.drawn) == (84, 36)
    assert short.passes == pytest.approx(84 / 36)  # four of 40 prompts are held out
    text = data.audit.render()
    assert "short (2.33 passes)" in text
    assert "long: long.jsonl" in text
    assert data.audit.held_out == {"short": 4, "long": 6}
    assert data.audit.to_dict()["sources"]["short"]["audit"]["rows_train"] == 36


def test_order_does_not_depend_on_ranks_or_on_the_first_update():
    data, later = (mixed("data.mix={short.jsonl: 0.7, long.jsonl: 0.3}") for _ in range(2))
    whole = batches(data)
    later.start_update = 5
    assert batches(later) == whole[5:]
    assert data.audit.fingerprint == later.audit.fingerprint


def test_mixture_by_tokens_gives_long_rows_fewer_draws():
    data = mixed("data.mix={short.jsonl: 0.5, long.jsonl: 0.5}", "data.mix_by=tokens", updates=200)
    assert data.audit.sources["short"].tokens == pytest.approx(0.5, abs=0.01)
    assert data.audit.sources["short"].drawn > 2 * data.audit.sources["long"].drawn


def test_list_of_sources_is_weighted_by_size_and_limited_by_max_rows():
    data = mixed("data.mix=[short.jsonl,long.jsonl]", "data.max_rows=40")
    assert data.audit.sources["short"].share == pytest.approx(0.5)
    data = mixed("data.mix={short.jsonl: null, b: {path: long.jsonl, max_rows: 20, columns: {prompt: prompt}}}")
    assert [*data.audit.sources] == ["short", "b"]
    assert data.audit.sources["b"].share == pytest.approx(18 / 54)


def test_mixture_of_data_options_gives_prompts_of_all_sources():
    data = mixed("data.mix={world_sums: 1, world_stories: {weight: 3, max_rows: 50}}", kind="Prompt")
    assert [*data.audit.sources] == ["world_sums", "world_stories"]
    assert data.audit.sources["world_stories"].audit.rows_read == 56
    assert [data.held_out_part(row) for row in data.eval_prompts(4).row_ids] == ["world_sums", "world_stories"] * 2


def test_source_of_a_mixture_has_its_own_prompt_template(tmp_path):
    write_lines(tmp_path / "puzzles.jsonl", [{"nums": [n, 2], "target": n + 2} for n in range(20)])
    puzzles = "{path: puzzles.jsonl, prompt_template: 'Make {target} of {nums}.'}"
    data = mixed(f"data.mix={{short.jsonl: 1, puzzles: {puzzles}}}", kind="Prompt")
    prompts = {data.held_out_part(row): text for row, text in zip(*_held_out(data), strict=True)}
    assert prompts["short"].startswith("short question")
    assert prompts["puzzles"].startswith("Make ")
    assert rows_named("countdown")["prompt_template"].startswith("Make {target}")


def _held_out(data: DataModule) -> tuple[Any, Any]:
    found = data.eval_prompts(6)
    return found.row_ids, found.texts


def test_source_of_weight_zero_is_evaluated_only():
    data = mixed("data.mix={short.jsonl: 1, long.jsonl: 0}")
    assert data.audit.sources["long"].drawn == data.audit.sources["long"].audit.rows_train == 0
    assert data.audit.held_out == {"short": 4, "long": 6}


def test_held_out_prompt_in_another_source_is_dropped(tmp_path):
    write_lines(tmp_path / "other.jsonl", [{"prompt": "other", "completion": "x"}])
    again = "again: {path: short.jsonl, eval_path: other.jsonl}"
    with pytest.raises(ConfigError, match=r"data\.mix\.short: every held-out row has a prompt that another source"):
        mixed(f"data.mix={{short.jsonl: 1, {again}}}")
    half = write_lines(tmp_path / "half.jsonl", [*LONG[:9], *SHORT[:20]])
    data = mixed(f"data.mix={{short.jsonl: 1, again: {{path: {half}, eval_path: other.jsonl}}}}", "data.eval_rows=20")
    trained = {record.prompt_content() for record in data.records.train}
    assert not trained & {record.prompt_content() for record in data.records.held_out}
    assert data.audit.dropped == data.audit.sources["short"].audit.dropped
    assert 0 < data.audit.dropped["held-out prompt also in training"] < 4


def test_single_source_draws_the_rows_of_data_path():
    assert batches(mixed("data.mix={short.jsonl: 1}")) == batches(mixed("data.path=short.jsonl"))


# Replay and held-out files --------------------------------------------------------------------------------------------


def test_replay_has_its_share_of_the_loss_and_held_out_rows_apart():
    data = mixed("data.path=long.jsonl", "data.replay={path: base.txt, share: 0.4, max_length: 32}", updates=100)
    assert data.audit.sources["replay"].supervised == pytest.approx(0.4, abs=0.01)
    assert data.audit.sources["replay"].audit.lengths["longest"] == 32
    assert [(part.name, part.in_total) for part in data.held_out] == [("", True), ("replay", False)]
    assert data.audit.rows_eval == len(data.eval) == 6


def test_replay_without_a_share_leaves_the_training_rows_unchanged():
    plain, evaluated = (
        mixed("data.path=long.jsonl", *more) for more in ((), ("data.replay={path: base.txt, share: 0}",))
    )
    assert all(row <= 80 for batch in batches(evaluated) for row in batch)
    assert len(evaluated.held_out[1].items) > 0
    assert plain.audit.rows_eval == evaluated.audit.rows_eval


def test_held_out_files_have_names(tmp_path):
    write_lines(tmp_path / "easy.jsonl", [{"prompt": f"e{n}", "completion": "x"} for n in range(9)])
    write_lines(tmp_path / "hard.jsonl", [{"prompt": "h", "completion": "x"}, SHORT[0]])
    data = mixed("data.path=short.jsonl", "data.eval_path={easy: easy.jsonl, hard: hard.jsonl}")
    assert data.audit.held_out == {"easy": 6, "hard": 1}
    assert data.audit.dropped == {"held-out prompt also in training": 1, "held out beyond data.eval_rows": 3}
    assert [(part.name, len(batch)) for part, batch in data.eval_batches()] == [("easy", 6), ("hard", 1)]
    assert batches(data) == batches(mixed("data.path=short.jsonl", "data.eval_path=easy.jsonl"))
    with_mix = mixed("data.mix=[short.jsonl,long.jsonl]", "data.eval_path=[easy.jsonl]")
    assert with_mix.audit.held_out == {"easy": 6}
    assert with_mix.audit.rows_train == 120


def test_sources_are_given_from_python_in_the_same_forms():
    data = DataModule(mix={"short.jsonl": 0.7, "b": MixSource(path="long.jsonl", weight=0.3)}, replay="base.txt")  # type: ignore[arg-type]
    assert {name: (one.path, one.weight) for name, one in data.mix.items()} == {
        "short": ("short.jsonl", 0.7),
        "b": ("long.jsonl", 0.3),
    }
    assert data.replay is not None
    assert data.replay.share == 0.1


def test_sources_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"data: a\.jsonl and a\.csv are both named a; name one"):
        names(["a.jsonl", "a.csv"])


def test_names_of_equal_files_contain_the_folder():
    assert names(["a/train.jsonl", "b/train.jsonl.gz", "data/*.jsonl"]) == {
        "a/train.jsonl": "a_train",
        "b/train.jsonl.gz": "b_train",
        "data/*.jsonl": "data",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mix={short.jsonl: 0, long.jsonl: 0}"], r"data\.mix: the weights sum to 0"),
        (["data.mix={short.jsonl: 1, no.jsonl: 1}"], r"data\.mix\.no: there is no file and no data option no\.jsonl"),
        (["data.mix={short.jsonl: 1, world_sum: 1}"], r"data\.mix\.world_sum: .* did you mean world_sums\?"),
        (["data.mix={short.jsonl: 1, base.txt: 1}"], r"data\.mix\.base: .*running text; .*data\.replay=base\.txt"),
        (["data.mix={short.jsonl: 1, prompts.jsonl: 1}"], r"data\.mix\.prompts: this method trains on demonstrat"),
        (["data.mix={short.jsonl: 1, empty.jsonl: 1}"], r"empty\.jsonl is empty"),
        (["data.mix=[short.jsonl,long.jsonl,short.jsonl]"], r"data\.mix: short\.jsonl is listed 2 times; give weights"),
        (["data.mix=[{short.jsonl: 1}]"], r"data\.mix: expected files or data options in a list, got \{'short\.jsonl'"),
        (
            ["data.mix={replay: {path: short.jsonl}}", "data.replay=base.txt"],
            r"data\.mix\.replay: the name of data\.re",
        ),
        (["data.replay=none.txt"], r"data\.replay: there is no file and no data option none\.txt"),
        (["data.path=short.jsonl", "data.eval_path={a: none.jsonl}"], r"there is no file none\.jsonl"),
        (["data.path=short.jsonl", "data.eval_path={a: short.jsonl}"], r"every held-out row has a prompt that is also"),
    ],
)
def test_bad_mixtures_are_one_line_errors(overrides, message, tmp_path):
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(9)])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match=message) as caught:
        mixed(*overrides)
    assert "\n" not in str(caught.value)


def test_replay_needs_a_method_that_trains_on_text():
    with pytest.raises(ConfigError, match=r"data\.replay: this method trains on preference pairs"):
        prepared("world_preferences", "data.replay=base.txt", kind="Preference")
