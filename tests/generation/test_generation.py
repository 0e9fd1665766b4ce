"""Whole generations: written files, training on the selected rows, and resuming."""

from __future__ import annotations

import json

import pytest
import torch

from postrain.data.kinds.prompt import EncodedPrompt
from postrain.errors import ConfigError
from postrain.generate import main
from postrain.generation.sample import Sampler, distinct_prompts
from postrain.jobs.session import GENERATE, execute
from postrain.jsonl import JsonLines
from postrain.runs.folder import RunFolder
from tests.generation.small_generation import SMALL, composed, resume_generation, run_generation
from tests.training_runs import small_run


def completions(folder: RunFolder) -> list[dict]:
    return JsonLines(folder.path / "completions.jsonl").read()


def exit_code(*arguments: str) -> int:
    """The exit code of the generate command with these arguments."""
    try:
        return main(["generate", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def rows(folder: RunFolder) -> list[dict]:
    return JsonLines(folder.path / "data.jsonl").read()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    return run_generation(tmp_path_factory.mktemp("whole"), "selection=all", "greedy=true")


def test_completions_file_has_every_prompt_in_order(whole):
    found = completions(whole)
    assert len({record["prompt"] for record in found}) == len(found) == 10
    assert all(len(record[name]) == 3 for record in found for name in ("completions", "rewards", "finished", "gold"))
    assert all(record["greedy"] in (0.0, 1.0) for record in found)
    assert all({"answer", "gold"} <= set(record["columns"]) for record in found)
    summary = json.loads((whole.path / "summary.json").read_text())
    assert summary["reward"] == pytest.approx(sum(sum(record["rewards"]) for record in found) / 30)
    assert summary["kept"] == len(rows(whole))
    assert whole.status.read()["status"] == "done"
    assert json.loads(whole.manifest.read_text())["reproduce"].startswith("python -m postrain.generate selection=all")


def test_completions_do_not_depend_on_chunk_size_or_number_of_samples(whole, tmp_path):
    other = run_generation(tmp_path, "selection=all", "chunk=3", "samples=2", "prompt_count=7")
    for here, there in zip(completions(whole), completions(other), strict=False):
        assert here["completions"][:2] == there["completions"]
    assert len(completions(other)) == 7


def test_seed_changes_completions_and_split_changes_prompts(whole, tmp_path):
    def column(folder: RunFolder, name: str) -> list:
        return [record[name] for record in completions(folder)]

    seeded, held_out = (
        run_generation(tmp_path, "selection=none", "seed=1"),
        run_generation(tmp_path, "selection=none", "split=eval"),
    )
    assert column(seeded, "prompt") == column(whole, "prompt")
    assert column(seeded, "completions") != column(whole, "completions")
    assert not set(column(held_out, "prompt")) & set(column(whole, "prompt"))


@pytest.mark.parametrize("kept_lines", [0, 6])
def test_interrupted_generation_resumes_with_equal_results(kept_lines, whole, tmp_path, monkeypatch):
    folder = run_generation(tmp_path, "selection=all", "greedy=true")
    lines = (folder.path / "completions.jsonl").read_bytes().splitlines(keepends=True)
    # A killed run leaves whole chunks of 4, possibly a partial chunk, and half a line.
    (folder.path / "completions.jsonl").write_bytes(b"".join(lines[:kept_lines]) + lines[kept_lines][:20])
    (folder.path / "data.jsonl").unlink()
    batches = []
    real = Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda self, items: batches.append(len(items)) or real(self, items))
    resume_generation(folder)
    assert batches == {0: [4, 4, 2], 6: [4, 2]}[kept_lines]
    assert completions(folder) == completions(whole)
    assert (folder.path / "data.jsonl").read_text() == (whole.path / "data.jsonl").read_text()


def test_changed_selection_on_resume_does_not_sample_again(tmp_path, monkeypatch):
    folder = run_generation(tmp_path, "selection=all")
    monkeypatch.setattr(Sampler, "__call__", lambda self, items: pytest.fail("sampled again"))
    with pytest.raises(ConfigError, match=r"selection.count: None → 1.*allow_change"):
        resume_generation(folder, "selection.count=1")
    config = composed(f"resume={folder.path}", "++selection.count=1", "allow_change=true")
    execute(GENERATE, config, overrides=["selection.count=1", "allow_change=true"], group=None)
    assert len(rows(folder)) == len({row["prompt"] for row in rows(folder)})
    with pytest.raises(ConfigError, match=r"completions of other prompts"):
        execute(GENERATE, {**config, "samples": 2}, overrides=["samples=2", "allow_change=true"], group=None)


def test_selected_rows_can_be_trained_on(whole, tmp_path, capsys):
    path = whole.path / "data.jsonl"
    small_run(tmp_path, "method=sft", f"data.path={path}", "data.template=plain", "method.batch_size=4")
    assert "plain" in capsys.readouterr().out
    pairs = run_generation(tmp_path / "pairs", "selection=preferences", "reward=world_gold", "samples=6")
    assert set(rows(pairs)[0]) == {"prompt", "chosen", "rejected", "margin", "row", "answer", "category", "gold"}
    small_run(
        tmp_path, "method=dpo", f"data.path={pairs.path / 'data.jsonl'}", "data.template=plain", "method.batch_size=2"
    )


def test_revisions_without_reward_resume_and_can_be_trained_on(tmp_path, monkeypatch):
    small = ("data=world_stories", "prompt_count=4", "samples=3", "chunk=2", "rollout.max_new_tokens=32")
    folder = run_generation(tmp_path, "selection=revisions", *small)
    found, pairs = completions(folder), rows(folder)
    assert [record["rewards"] for record in found] == [[None] * 3] * 4
    assert [len(record["revisions"]) for record in found] == [sum(record["finished"]) for record in found]
    principles = composed("selection=revisions")["principles"]
    assert all(pair["chosen"] != pair["rejected"] and pair["principle"] in principles for pair in pairs)
    (sampled,) = {json.dumps(record["completions"]) for record in found if record["prompt"] == pairs[0]["prompt"]}
    assert pairs[0]["rejected"] in json.loads(sampled)
    # Killed in the second chunk: resuming samples the lost prompts again, with equal results.
    lines = (folder.path / "completions.jsonl").read_bytes().splitlines(keepends=True)
    (folder.path / "completions.jsonl").write_bytes(b"".join(lines[:3]))
    (folder.path / "data.jsonl").unlink()
    resume_generation(folder)
    assert (completions(folder), rows(folder)) == (found, pairs)
    overrides = [f"data.path={folder.path / 'data.jsonl'}", "data.eval_rows=1", "data.template=plain"]
    small_run(tmp_path, "method=dpo", *overrides, "method.batch_size=1")


def test_selecting_revisions_of_unrevised_completions_is_an_error(tmp_path):
    folder = run_generation(tmp_path, "selection=all")
    node = composed("selection=revisions")["selection"]
    config = composed(f"resume={folder.path}", "allow_change=true")
    with pytest.raises(ConfigError, match=r"have no revisions; start a new generation"):
        execute(
            GENERATE, {**config, "selection": node}, overrides=["selection=revisions", "allow_change=true"], group=None
        )


def test_prompts_of_several_turns_become_conversations(tmp_path):
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Name {0} colours.")]
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": [{"role": role, "content": text.format(n)} for role, text in turns], "answer": "3"})
            + "\n"
            for n in range(12)
        )
    )
    folder = run_generation(tmp_path / "runs", f"data.path={file}", "selection=all", "rollout.max_new_tokens=48")
    (first, *_) = rows(folder)
    assert [message["role"] for message in first["messages"]] == ["user", "assistant", "user", "assistant"]
    small_run(tmp_path, "method=sft", f"data.path={folder.path / 'data.jsonl'}", "method.batch_size=2")


def test_prompts_without_the_column_of_the_reward_are_refused_before_a_folder(tmp_path, capsys):
    """The remedy that the message names works, for every prompt with split=all."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} + 1 ="}) + "\n" for n in range(4)))
    words = [f"data.path={file}", "rollout.max_new_tokens=4", "samples=2", f"paths.output={tmp_path / 'runs'}"]
    assert exit_code(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "needs answer, and the prompts have no further columns" in line
    assert line.endswith("; to generate without scores write '~reward' selection=none")
    assert list(tmp_path.glob("runs/*")) == []
    assert exit_code(*words, "~reward", "selection=none", "split=all") == 0
    (made,) = (tmp_path / "runs").glob("*/*/*")
    assert len(completions(RunFolder(made))) == 4


def test_running_text_is_refused_with_the_rows_of_a_prompt(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("Some text.\n")
    assert exit_code(f"data.path={tmp_path / 'mine.txt'}", f"paths.output={tmp_path / 'runs'}") == 2
    assert capsys.readouterr().err.endswith('has text; give rows such as {"prompt": "..."}, or choose another data=\n')


def test_config_errors_are_one_line(tmp_path, capsys):
    output = [*SMALL, f"paths.output={tmp_path / 'runs'}"]
    for arguments, message in (
        ([*output, "sampls=3"], "did you mean samples?"),
        ([*output, "samples=0"], "samples: expected"),
        ([*output, "selection=bets"], "did you mean best?"),
        ([*output, "trainer=ddp_cpu"], "one process"),
        ([*output, "~reward", "selection=best"], "reward: expected one, since selection ranks completions by it"),
        ([*output, "selection=revisions", "principles=[]"], "principles: expected a list of sentences"),
        ([*output, "selection=revisions", "rollout.max_new_tokens=1"], "no completion of 10 prompts was revised"),
        ([*output, "selection.min_reward=2"], "no completion of 10 prompts was selected"),
        ([*output, "critic=postrain.world.critic.criticise"], "critic: this selection uses none; choose selection="),
        ([*output, "prompts=magpie", "greedy=true"], "greedy, samples: no effect with prompts="),
        (["resume=" + str(tmp_path / "nowhere")], "there is no folder"),
        (
            [*output, "reward=pairwise", "reward.function=m.py:f"],
            "PairwiseFunction compares two completions, but sel",
        ),
    ):
        assert exit_code(*arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    unrevised, unkept = sorted((tmp_path / "runs").glob("*/*/*"), key=lambda path: path.stat().st_ctime_ns)
    assert "was revised" in RunFolder(unrevised).status.read()["reason"]
    assert "was selected" in RunFolder(unkept).status.read()["reason"]
    assert not (unkept / "data.jsonl").exists()


def test_greedy_completion_is_scored(tmp_path):
    folder = run_generation(tmp_path, "selection=none", "greedy=true", "prompt_count=1", "samples=1")
    assert completions(folder)[0]["greedy"] in (0.0, 1.0)


def test_generate_does_not_resume_a_training_run(tmp_path, whole):
    with pytest.raises(ConfigError, match=r"is a training run; resume it with python train.py"):
        resume_generation(small_run(tmp_path, "method=sft"))


def test_duplicate_prompts_are_sampled_once():
    items = [EncodedPrompt(row, torch.tensor([1]), text, {}) for row, text in enumerate("abacb")]
    assert [item.row for item in distinct_prompts(items, None)] == [0, 1, 3]
    assert [item.row for item in distinct_prompts(items, 2)] == [0, 1]
