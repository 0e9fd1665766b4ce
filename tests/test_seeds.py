"""Derived seeds depend on all arguments and on nothing else."""

from postrain.seeds import derive_seed


def test_seeds_depend_on_every_argument_and_on_nothing_else():
    seeds = {derive_seed(0, "rollout", 3, 1), derive_seed(1, "rollout", 3, 1), derive_seed(0, "dropout", 3, 1)}
    seeds |= {derive_seed(0, "rollout", 4, 1), derive_seed(0, "rollout", 3, 2), derive_seed(0, "rollout", 31)}
    assert len(seeds) == 6
    # A hash of the arguments: equal in every process and on every machine.
    assert derive_seed(0, "rollout", 3, 1) == derive_seed(0, "rollout", 3, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
