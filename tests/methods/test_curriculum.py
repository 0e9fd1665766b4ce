"""Curricula: pass rates and the prompts drawn by them, with worked numbers; resume and ranks."""

from __future__ import annotations

import shutil
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.data.schedule import Stream, epoch_order
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.methods.curriculum import Curriculum, PassRates, draw_prompts
from tests.methods.builders import float64_model, make_method
from tests.training_runs import final_state, records, resumed, small_run


def draw(curriculum: Curriculum, table: PassRates, *, update: int = 0, count: int = 4, **changes: Any) -> list[int]:
    return draw_prompts(
        curriculum, table, **{"items": 8, "streams": (), "update": update, "count": count, "seed": 0, **changes}
    )


def test_pass_rate_weighs_earlier_visits_by_decay():
    table = PassRates()
    assert table.rate(3) is None
    # 1 of 4; then ½ · 1 + 4 of ½ · 4 + 4: 4.5 / 6.
    table.add(3, 1, 4, decay=0.5)
    assert table.rate(3) == 0.25
    table.add(3, 4, 4, decay=0.5)
    assert table.rate(3) == 0.75
    # Rates 0.75, 1 and 0: one of three in the fourth, the last and the first fifth; an unscorable prompt has none.
    table.add(5, 2, 2, decay=0.5)
    table.add(6, 0, 2, decay=0.5)
    table.add(7, 0, 0, decay=0.5)
    found = {name: mean.value() for name, mean in table.histogram().items()}
    assert found == pytest.approx(
        {
            "pass_rate/mean": 1.75 / 3,
            "pass_rate/0_20": 1 / 3,
            "pass_rate/20_40": 0,
            "pass_rate/40_60": 0,
            "pass_rate/60_80": 1 / 3,
            "pass_rate/80_100": 1 / 3,
        }
    )


def test_window_skips_prompts_that_are_known_to_be_outside():
    order = epoch_order(8, 0, 0, 0).tolist()
    table = PassRates({order[0]: (0.0, 8.0), order[1]: (4.0, 8.0), order[2]: (8.0, 8.0)})
    # Of the first four of the epoch, those with pass rates 0 and 1 are replaced by the next two.
    assert sorted(draw(Curriculum(window=(0.1, 0.9)), table)) == sorted([order[1], *order[3:6]])
    assert table.positions == {0: 6}


def test_window_with_few_prompts_repeats_them_in_every_epoch():
    # Only items 2 and 5 are in the window: twelve prompts are six epochs.
    table = PassRates({item: (4.0 if item in (2, 5) else 8.0, 8.0) for item in range(8)})
    assert sorted(draw(Curriculum(window=(0.1, 0.9)), table, count=12)) == [2] * 6 + [5] * 6


def test_window_with_one_prompt_never_draws_another():
    # In two epochs it can be first and then last, more than an epoch apart.
    table = PassRates({item: (4.0 if item == 2 else 8.0, 8.0) for item in range(8)})
    assert draw(Curriculum(window=(0.1, 0.9)), table, count=64) == [2] * 64
    # 64 epochs, up to its place in the last one.
    assert table.positions == {0: 63 * 8 + epoch_order(8, 0, 63, 0).tolist().index(2) + 1}


def test_window_without_any_prompt_draws_in_order():
    table = PassRates(dict.fromkeys(range(8), (8.0, 8.0)))
    assert sorted(draw(Curriculum(window=(0.1, 0.9)), table)) == sorted(epoch_order(8, 0, 0, 0).tolist()[:4])
    assert table.positions == {0: 4}


def test_replay_draws_known_prompts_that_do_not_always_pass():
    # Two of four from items 0 (pass rate ½) and 1 (0); item 2 always passes.
    table = PassRates({0: (4.0, 8.0), 1: (0.0, 8.0), 2: (8.0, 8.0)})
    order = epoch_order(8, 0, 0, 0).tolist()
    assert sorted(draw(Curriculum(replay=0.5), table)) == sorted([0, 1, *order[:2]])
    assert sorted(draw(Curriculum(replay=0.5), PassRates())) == sorted(order[:4])


def test_stages_use_the_sources_one_after_the_other():
    streams = (Stream(0, 3, 0.5), Stream(3, 5, 0.5))
    for update, source in ((1, range(3)), (2, range(3, 8))):
        found = draw(Curriculum(stages=(2,)), PassRates(), update=update, count=3, streams=streams)
        assert set(found) <= set(source)
        assert len(found) == 3


def test_mixture_without_stages_keeps_its_weights_in_the_window():
    streams, table = (Stream(0, 3, 0.25), Stream(3, 5, 0.75)), PassRates({4: (8.0, 8.0), 6: (0.0, 8.0)})
    found = [draw(Curriculum(window=(0.1, 0.9)), table, update=u, count=2, streams=streams) for u in range(4)]
    # A quarter of 8 from the first source; the other 6 from items 3, 5 and 7, the window of the second: twice each.
    counts = Counter(item for each in found for item in each)
    assert sum(counts[item] for item in range(3)) == 2
    assert {item: counts[item] for item in range(3, 8)} == {3: 2, 4: 0, 5: 2, 6: 0, 7: 2}
    assert PassRates.from_state(table.state()) == table
    Curriculum(window=(0.1, 0.9)).check(sources=2)


@pytest.mark.parametrize(
    ("curriculum", "sources", "message"),
    [
        (Curriculum(window=(0.9, 0.1)), 1, r"^method\.curriculum\.window=\[0\.9, 0\.1\]: expected low < high$"),
        (Curriculum(stages=(50,)), 1, r"^method\.curriculum\.stages=\[50\]: the data has 1 source; expected 0 incr"),
        (Curriculum(stages=(50, 20)), 3, r"^method\.curriculum\.stages=\[50, 20\]: .* expected 2 increasing updates"),
    ],
)
def test_contradicting_settings_are_one_line(curriculum, sources, message):
    with pytest.raises(ConfigError, match=message):
        curriculum.check(sources)


def test_passes_of_all_ranks_are_counted(monkeypatch):
    method = make_method("grpo", float64_model(), group_size=2, curriculum={"replay": 0.5, "passing_reward": 0.5})
    method.accumulated, method.drawn_items = {}, [5, 7, 6, 4]
    # Rank 0 has items 5 and 6; rank 1 reports 1 of 2 passes of item 7.
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "rank", lambda: 0)
    monkeypatch.setattr(collectives, "gather", lambda own: [own, [(7, 1, 2)]])
    # At least 0.5: one of two, and one of one, because NaN is not scored.
    method.count_passes(SimpleNamespace(reward_B=torch.tensor([1.0, 0.25, 1.0, torch.nan])))
    assert method.next_pass_rates.counts == {5: (1, 2), 6: (1, 1), 7: (1, 2)}
    # Until the end of the update.
    assert method.pass_rates == PassRates()


def test_resumed_curriculum_equals_an_uninterrupted_one(tmp_path):
    words = ("method=grpo", "method.updates=3", "method.curriculum.window=[0.1,0.9]", "method.curriculum.replay=0.5")
    words += ("evaluation.completions=0", "data.eval_rows=2", "data.source.count=24", "method.batch_size=4")
    whole = small_run(tmp_path / "whole", *words)
    state = final_state(whole)["postrain"]
    before = records(whole)
    for path in sorted(whole.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    shutil.rmtree(whole.model)
    assert records(resumed(whole)) == before
    assert final_state(whole)["postrain"] == state
    assert len(state["state"]["pass_rates"]["counts"]) > 4
