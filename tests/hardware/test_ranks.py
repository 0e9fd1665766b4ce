"""Two ranks equal one rank: same batches, samples, gradients and metrics."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from postrain.runs.folder import RunFolder
from tests.rank import LOOPBACK, SHARDED, TWO_UPDATES, UNEVEN, hybrid, sharded
from tests.training_runs import METHODS, final_state, one_layer, records, resumed, same, shallow, small_run, teacher

ONE_RANK = ("trainer.strategy=single", "trainer.devices=1")
# One more than those of the ranks; with the checkpoints of both.
THREE_UPDATES = ("method.updates=3", "trainer.checkpoint_every=1", *UNEVEN)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Run folders of every method, trained by two processes, of one that one process began (`unsharded`), and of one by
    four processes with two copies of a model that is sharded over two (`hybrid`)."""
    output = tmp_path_factory.mktemp("ranks")
    small_run(output, *TWO_UPDATES, *sharded("sharded"), "name=unsharded")
    # The ranks use the models of this process.
    teacher()
    one_layer()
    done = subprocess.run(
        [sys.executable, "-c", "import gc; gc.disable(); from tests.rank import main; main()", str(output)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three updates of the sharded run by one process."""
    return small_run(tmp_path_factory.mktemp("whole"), *sharded("sharded"), *THREE_UPDATES)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ranks_listen_on_loopback_only(ranks):
    listening = [json.loads((ranks / f"listening-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(listening), "gloo listens, so an empty list means that no port was inspected"
    assert {address for addresses in listening for address in addresses} <= LOOPBACK


@pytest.mark.parametrize("name", [*METHODS, *SHARDED])
def test_two_ranks_equal_one(name, ranks, tmp_path):
    (path,) = ranks.glob(f"{name}/*/*")
    overrides = sharded(name) if name in SHARDED else shallow(name)
    two, one = RunFolder(path), small_run(tmp_path, *TWO_UPDATES, *overrides)
    assert [record.keys() for record in records(two)] == [record.keys() for record in records(one)]
    for mine, theirs in zip(records(two), records(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert [item["completion"] for item in two.samples.read()] == [item["completion"] for item in one.samples.read()]
    assert held_out(two).keys() == held_out(one).keys()
    for name, values in held_out(two).items():
        assert values == pytest.approx(held_out(one)[name], rel=1e-3, abs=1e-4), name
    # Momentum, not weights: where a gradient is 0 up to rounding (key biases), Adam steps by the sign of the rounding.
    mine, theirs = (momentum(final_state(folder)) for folder in (two, one))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("unsharded", None), ("sharded", ONE_RANK), ("sharded", ("trainer.devices=1", "trainer.accelerator=cpu"))],
    ids=["1-2", "2-1", "2-1-sharded"],
)
def test_a_run_resumes_with_another_number_of_ranks(name, overrides, ranks, whole, tmp_path):
    (path,) = ranks.glob(f"{name}/*/*")
    folder = RunFolder(shutil.copytree(path, tmp_path / Path(*path.parts[-3:])))
    if overrides:  # the ranks have resumed the other one
        resumed(folder, *overrides, *THREE_UPDATES, "allow_change=true")
    assert [record["update"] for record in records(folder)] == [0, 1, 2, 3]
    assert records(folder)[3] == pytest.approx(records(whole)[3], rel=2e-3, abs=2e-4)
    mine, theirs = (momentum(final_state(each)) for each in (folder, whole))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


@pytest.mark.parametrize("name", ["sharded", "moving"])
def test_a_sharded_run_resumes_bit_for_bit(name, ranks):
    (whole,), (killed,) = (map(RunFolder, ranks.glob(f"{each}/*/*")) for each in (name, f"killed-{name}"))
    assert records(killed) == records(whole)
    mine, theirs = final_state(killed), final_state(whole)
    assert all(same(mine[key], theirs[key]) for key in ("state_dict", "optimizer_states", "postrain"))
    shards = whole.checkpoints / "update=000002.shards"
    assert {path.name for path in shards.iterdir()} == {"__0_0.distcp", "__1_0.distcp", "index.json"}


def held_out(folder: RunFolder) -> dict[str, list[float]]:
    """Totals and counts of each held-out row, by update and metric."""
    return {f"{one['update']} {one['metric']}": one["totals"] + one["counts"] for one in folder.held_out.read()}


def test_two_copies_of_two_shards_equal_one_process(ranks, tmp_path):
    (path,) = ranks.glob("hybrid/*/*")
    two_by_two, whole = RunFolder(path), small_run(tmp_path, *TWO_UPDATES, *hybrid(), *THREE_UPDATES)
    shards = two_by_two.checkpoints / "update=000002.shards"
    assert {len(entry["shards"]) for entry in json.loads((shards / "index.json").read_text()).values()} == {2}
    resumed(two_by_two, *ONE_RANK, "trainer.shard_size=null", *THREE_UPDATES, "allow_change=true")
    for mine, theirs in zip(records(two_by_two), records(whole), strict=True):
        # Its second update was the last, which is evaluated.
        assert {name: mine[name] for name in theirs} == pytest.approx(theirs, rel=2e-3, abs=2e-4)
    mine, theirs = (momentum(final_state(each)) for each in (two_by_two, whole))
    assert float((mine - theirs).norm() / theirs.norm()) < 1e-3


def momentum(state: dict) -> torch.Tensor:
    """Adam's first moments of all trained parameters, sorted, since a sharded optimizer numbers them differently."""
    moments = [entry["exp_avg"].flatten() for entry in state["optimizer_states"][0]["state"].values()]
    return torch.cat(moments).sort().values
