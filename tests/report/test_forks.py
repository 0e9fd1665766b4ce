"""The tree of forks in the report of a run."""

import json

from postrain.report.forks import ancestors, children, fork_section, lines


def made(path, parent=None, update=0, changes=(), objective=None):
    """A run folder with the files that the tree is read from."""
    path.mkdir(parents=True)
    if parent:
        known = {"run": str(parent), "update": update, "changes": [*changes]}
        (path / "fork.json").write_text(json.dumps(known))
    if objective is not None:
        (path / "result.json").write_text(json.dumps({"metric": "gold/correct", "objective": objective}))
    return path


def test_tree_shows_ancestors_siblings_and_forks_with_their_changes(tmp_path):
    first = made(tmp_path / "runs/grpo/nano/a", objective=0.5)
    late = made(tmp_path / "runs/grpo/nano/b", first, 20, ["seed: 0 → 1"])
    early = made(tmp_path / "runs/grpo/nano/c", first, 8)
    below = made(tmp_path / "sweeps/x/y/jobs/00-d", late, 22, objective=0.75)
    assert ancestors(below) == [first, late, below]
    assert ancestors(early) == [first, early]
    assert lines(first, below, children(first, below)) == [
        "a · gold/correct 0.50",
        "├─ @8 c no change",
        "└─ @20 b seed: 0 → 1",
        "   └─ @22 00-d no change · gold/correct 0.75 ← this run",
    ]


def test_run_without_forks_has_no_section_and_a_deleted_parent_is_named(tmp_path):
    alone = made(tmp_path / "runs/sft/nano/a")
    assert fork_section(alone) is None
    orphan = made(tmp_path / "runs/sft/gpt2/b", tmp_path / "gone", 3)
    assert lines(tmp_path / "gone", orphan, children(orphan)) == ["gone (deleted)", "└─ @3 b no change ← this run"]


def test_folders_that_name_each_other_end(tmp_path):
    one, other = tmp_path / "r/m/a", tmp_path / "r/m/b"
    made(one, other, 1)
    made(other, one, 1)
    assert ancestors(one) == [other, one]
    assert len(lines(other, one, children(one))) <= 101
