"""Claims of a pipeline: inequalities decided by intervals over seeds, and a pipeline that ends in verdicts."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from postrain.config.check import check
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError
from postrain.evaluation.estimate import Interval
from postrain.jobs.claims import Claim, claims_of, decide, record
from postrain.jobs.graph import Job, references
from postrain.jobs.quantities import claim_problems, setup, warning_signs
from postrain.jobs.stages import check_seeds, over_seeds, split, stages_of
from postrain.report.claims import read_claims
from postrain.training.config import TrainConfig
from tests.cli.test_main import run
from tests.training_runs import CONF, composed

HELD = """\
# Two seeds of a shared stage and one that refers to it; all are calls of `measure`
seeds: [0, 1]
stages:
  base: {call: tests.jobs.pipelines.measure, arguments: {values: [0.4]}, once: true}
  rl: {call: tests.jobs.pipelines.measure, arguments: {values: [0.7, 0.71], after: "${stages.base.folder}"}}
  twin: {call: tests.jobs.pipelines.measure, arguments: {values: [0.7, 0.71], after: "${stages.rl.folder}"}}
expect:
  - {claim: RL gains, holds: rl/score > base/score + 0.05}
  - {claim: RL loses, holds: rl/score < base/score, otherwise: it learns}
  - {claim: lengths, holds: rl/length = twin/length within 1}
reference:
  title: A paper
  arxiv: "2504.13837"
  values: {rl/score: 0.6}
"""


def claim(holds: str) -> Claim:
    return Claim(claim="a sentence", holds=holds, otherwise="a reason")


def seeds(**values: list[float]) -> dict[int, dict[str, float]]:
    """Values of quantities NAME/x by seed."""
    numbers = range(len(next(iter(values.values()))))
    return {seed: {f"{name}/x": each[seed] for name, each in values.items()} for seed in numbers}


def test_sides_of_an_inequality_are_sums_of_multiples():
    (first, second) = claim("a.b/x - 2 * c/y@1 > d/z + 0.05 > -1e-2").comparisons
    assert first.weights == {"a.b/x": 1, "c/y@1": -2, "d/z": -1}
    assert first.constant == -0.05
    # 0.7 - 2 · 0.1 - 0.3 - 0.05
    assert first.gap({"a.b/x": 0.7, "c/y@1": 0.1, "d/z": 0.3}) == pytest.approx(0.15)
    assert (second.weights, second.constant) == ({"d/z": 1}, pytest.approx(0.06))
    (less,) = claim("a/x < b/x").comparisons
    assert less.weights == {"b/x": 1, "a/x": -1}


@pytest.mark.parametrize(
    "holds",
    ["a/x", "a/x > b", "1 > 2", "a/x > 2 b/x", "a/x = b/x", "a/x > b/x within 0.1", "a/x = b/x within 0", "a/x>b/x"],
)
def test_unreadable_inequality_is_one_line(holds):
    with pytest.raises(ConfigError) as caught:
        claims_of([{"claim": "x", "holds": holds}])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("pipeline.expect[0].holds: ")
    assert "expected an inequality such as" in line


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({}, "expect[0]: expected {claim: sentence, holds: inequality}"),
        ({"claim": "x"}, "expect[0]: expected {claim: sentence, holds: inequality}"),
        (
            {"claim": "x", "holds": "a/x > 1", "othrwise": "y"},
            "expect[0].othrwise: unknown key; did you mean otherwise?",
        ),
        ({"claim": 1, "holds": "a/x > 1"}, "expect[0].claim: expected text, got 1"),
    ],
)
def test_wrong_claim_is_one_line(node, line):
    with pytest.raises(ConfigError) as caught:
        claims_of([node])
    (found,) = str(caught.value).splitlines()
    assert found.startswith(f"pipeline.{line}")


def test_interval_over_seeds_decides():
    values = seeds(a=[0.5, 0.7, 0.9], b=[0.3, 0.4, 0.5])
    # Gaps 0.2, 0.3, 0.4: mean 0.3, standard deviation 0.1, half width 4.30265 · 0.1 / √3 = 0.24841.
    found = decide(claim("a/x > b/x"), values)
    ((text, gap),) = found.gaps
    assert (found.decision, text) == ("reproduced", "a/x > b/x")
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.3, 0.05159, 0.54841), abs=1e-5)
    assert (decide(claim("a/x < b/x"), values).decision, found.reason) == ("not here", "")
    assert decide(claim("a/x < b/x"), values).reason == "a reason"
    # 0.3 − 0.1 = 0.2 is within 0.248; with four seeds the half width is 3.18245 · 0.1 / 2 = 0.159.
    margin = decide(claim("a/x > b/x + 0.1"), values)
    assert (margin.decision, margin.reason) == (
        "undecided",
        "the interval allows both; about 4 seeds would decide a gap of this size",
    )
    assert "more than 100 seeds" in decide(claim("a/x > b/x + 0.299"), values).reason


def test_equivalence_needs_the_interval_inside_the_tolerance():
    (within,) = claim("a/x = b/x within 0.1").comparisons
    assert within.decide(Interval(0.0, -0.09, 0.09)) == "reproduced"
    assert within.decide(Interval(0.0, -0.11, 0.09)) == "undecided"
    assert within.decide(Interval(0.2, 0.11, 0.3)) == "not here"


def test_equal_gaps_decide_nothing():
    # One item of 32 more in each seed.
    values = seeds(a=[0.96875, 0.96875, 0.9375], b=[1.0, 1.0, 0.96875])
    found = decide(claim("b/x > a/x"), values)
    assert found.decision == "undecided"
    assert found.reason == "the gap is the same in all seeds, so the spread between seeds is unknown"
    # Two shares of 0 in all seeds are no equivalence either.
    assert decide(claim("a/x = b/x within 0.05"), values).reason == found.reason
    assert decide(claim("a/x = b/x within 0.05"), seeds(a=[0.0, 0.0], b=[0.0, 0.0])).decision == "undecided"


def test_order_needs_all_neighbours_and_corrects_for_their_number():
    values = seeds(a=[0.9, 0.9, 0.9], b=[0.5, 0.6, 0.7], c=[0.4, 0.5, 0.61])
    # b − c is 0.1, 0.1, 0.09: half width 4.30265 · 0.00577 / √3 = 0.0143.
    assert decide(claim("a/x > b/x > c/x"), values).decision == "reproduced"
    # a − b is 0.4, 0.3, 0.2 with half width 0.248: an interval of level 0.975 is ± 6.2053 · 0.1 / √3 = 0.358.
    assert decide(claim("b/x > a/x"), values).decision == "not here"
    order = decide(claim("b/x > a/x > c/x"), values)
    assert order.decision == "undecided"
    # The interval that left it undecided is shown. With four seeds it is ± 4.1765 · 0.1 / 2 = 0.209 < 0.3.
    assert (order.gaps[0][1].value, order.gaps[0][1].high) == pytest.approx((-0.3, 0.058), abs=1e-3)
    assert order.reason == (
        "the interval of level 97.5 % of b/x > a/x allows both; about 4 seeds would decide a gap of this size"
    )


def test_unmeasured_quantity_is_undecided_and_named():
    values = seeds(a=[0.5, 0.7], b=[0.3, 0.4])
    found = decide(claim("a/y > b/x"), values)
    assert (found.decision, found.reason) == ("undecided", "no job has measured a/y; did you mean a/x?")
    one = {0: values[0], 1: {"a/x": 0.5}}
    assert decide(claim("a/x > b/x"), one).reason == "fewer than two seeds have measured it"
    nan = seeds(a=[0.5, float("nan")], b=[0.3, 0.4])
    assert decide(claim("a/x > b/x"), nan).decision == "undecided"


def test_seed_without_a_finite_value_makes_the_claim_undecided_and_is_named():
    values = seeds(a=[0.5, 0.7, float("nan"), 0.9], b=[0.3, 0.4, 0.5, 0.5])
    found = decide(claim("a/x > b/x"), values)
    assert (found.decision, found.reason) == ("undecided", "a/x was not measured or is not finite in seed 2")
    # The gaps of the others are shown: 0.2, 0.3, 0.4.
    assert found.gaps[0][1].value == pytest.approx(0.3)
    values[3].pop("a/x")
    assert decide(claim("a/x > b/x"), values).reason == "a/x was not measured or is not finite in seeds 2, 3"


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_recorded_without_an_error(odd):
    found = record([claim("a/x > b/x")], seeds(a=[1.0, 3.0, odd], b=[odd, odd, odd]), {}, "nano")
    one, other = found["quantities"]
    assert one["value"] == 2.0
    assert "value" not in other


def decisions(effect: float, holds: str, studies: int = 200) -> Counter[str]:
    """Decisions over studies of three seeds; neighbours differ by `effect` standard deviations of a seed."""
    source = random.Random(19)
    found: Counter[str] = Counter()
    for _ in range(studies):
        values = {seed: {f"{name}/x": source.gauss(-effect * i) for i, name in enumerate("abc")} for seed in range(3)}
        found[decide(claim(holds), values).decision] += 1
    return found


@pytest.mark.parametrize("holds", ["a/x > b/x", "a/x > b/x > c/x"])
def test_claim_without_an_effect_is_undecided_in_95_percent_of_studies(holds):
    assert decisions(0.0, holds)["undecided"] >= 190


def test_planted_effect_of_six_standard_deviations_is_found_in_90_percent_of_studies():
    assert decisions(6.0, "a/x > b/x")["reproduced"] >= 180
    assert decisions(-6.0, "a/x > b/x")["not here"] >= 180
    assert decisions(0.0, "a/x = b/x within 6")["reproduced"] >= 170


def stages() -> list[Job]:
    nano = {"model": {"name": "nano", "path": None}}
    method = {"method": {"_target_": "postrain.methods.grpo.GRPO", "updates": 20}}
    tasks = {"evaluation": {"tasks": {"accuracy": {}}}}
    return [
        Job(name="rl.low", folder="1", config=nano | method),
        Job(name="made", kind="generate", folder="2", config=nano),
        Job(name="test", kind="evaluate", folder="3", config=nano | tasks),
        Job(name="fit", kind="call", folder="4"),
    ]


@pytest.mark.parametrize(
    ("quantity", "problem"),
    [
        ("rl.low/eval/reward/total", ""),
        ("rl.low.start/eval/reward/total", ""),
        ("made/solved", ""),
        ("test/accuracy/greedy", ""),
        ("fit/anything", ""),
        ("rl.lwo/eval/reward/total", "no stage rl.lwo; did you mean rl.low?"),
        ("made.start/solved", "no stage made.start"),
        ("made/best", "stage made does not measure best; it measures greedy, sampled, solved"),
        ("test/acuracy/greedy", "stage test does not measure acuracy/greedy; its tasks are accuracy"),
        ("rl.low/acuracy_", "stage rl.low does not measure acuracy_; no metric has this name"),
    ],
)
def test_quantity_that_no_stage_measures_is_refused(quantity, problem):
    node = {"expect": [{"claim": "x", "holds": f"{quantity} > 0"}]}
    found = [*claim_problems(node, stages())]
    assert len(found) == bool(problem)
    assert all(line.startswith("pipeline.expect[0].holds: ") and problem in line for line in found)


def test_reason_names_collapsed_and_distant_policies(tmp_path):
    jobs = [Job(name="rl", folder=f"{seed}", seed=seed) for seed in (0, 1)]
    for seed, (distinct, kl) in enumerate(((0.02, "inf"), (0.9, 0.1))):
        (tmp_path / str(seed)).mkdir()
        changes = {"eval/completion/distinct": [0.8, distinct], "eval/kl/exact": [0.0, kl]}
        (tmp_path / str(seed) / "result.json").write_text(json.dumps({"changes": changes}))
    assert [*warning_signs(["rl/gold/total", "rl.start/gold/total", "test/x"], jobs, tmp_path)] == [
        "the completions of rl collapsed in 1 of 2 seeds: 2% of the completions are different (80% before training)",
        "KL(policy‖reference) of rl is up to inf nats/token",
    ]


def test_reference_is_checked():
    def problems(**node: object) -> list[str]:
        return [*claim_problems({"reference": node}, stages())]

    assert problems(title="x", values={"made/solved": 0.5}) == []
    assert "pipeline.reference.titel: unknown key; did you mean title?" in problems(titel="x")
    (line,) = problems(title="x", values={"maed/solved": 0.5})
    assert line.startswith("pipeline.reference.values: maed/solved: no stage maed; did you mean made?")
    (line,) = problems(title="x", arxiv=2504.13837)
    assert line.startswith("pipeline.reference.arxiv: expected text, got 2504.13837")
    assert setup(stages()) == "nano; GRPO for 20 updates"
    (one, *_) = stages()
    one.config["method"]["updates"] = 1
    assert setup([one]) == "nano; GRPO for 1 update"
    one.config["method"]["num_train_epochs"] = 1.5
    assert setup([one]) == "nano; GRPO for 1.5 epochs"


def test_damaged_claims_are_read_as_far_as_possible():
    known = record([claim("a/x > b/x")], seeds(a=[1.0, 2.0], b=[0.0, 1.0]), {"title": "x"}, "nano")
    found = read_claims({"claims": json.loads(json.dumps(known))})
    assert found
    assert [(one.name, dict(one.seeds)) for one in found.quantities] == [
        ("a/x", {"0": 1.0, "1": 2.0}),
        ("b/x", {"0": 0.0, "1": 1.0}),
    ]
    assert found.claims[0].gap_text == "1.00"
    odd = {**known, "seeds": 3, "quantities": [{"seeds": [1]}, 4], "reference": [], "claims": [{"decision": "maybe"}]}
    damaged = read_claims({"claims": odd})
    assert damaged
    assert (damaged.seeds, damaged.claims[0].decision, damaged.source) == ((), "undecided", "")
    assert read_claims({"claims": 3}) is None


@pytest.fixture
def conf(tmp_path) -> list[str]:
    folder = tmp_path / "conf" / "pipeline"
    folder.mkdir(parents=True)
    (folder / "held.yaml").write_text(HELD)
    return ["pipeline=held", f"paths.output={tmp_path / 'runs'}", "--config-dir", str(folder.parent)]


def test_pipeline_runs_once_per_seed_and_ends_in_verdicts(conf, tmp_path, capsys):
    assert run(*conf) == 0
    (folder,) = (tmp_path / "runs").glob("pipeline/held/*")
    names = ["1-base", "2-rl-seed_0", "2-rl-seed_1", "3-twin-seed_0", "3-twin-seed_1"]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    after = {name: json.loads((folder / name / "result.json").read_text())["after"] for name in names[1:]}
    assert [Path(path).name for path in after.values()] == ["1-base", "1-base", "2-rl-seed_0", "2-rl-seed_1"]
    found = json.loads((folder / "result.json").read_text())["claims"]
    assert [one["decision"] for one in found["claims"]] == ["reproduced", "not here", "undecided"]
    quantities = {one["name"]: one for one in found["quantities"]}
    assert quantities["rl/score"]["seeds"] == {"0": 0.7, "1": 0.71}
    assert quantities["rl/score"]["published"] == 0.6
    assert quantities["base/score"]["seeds"] == {"0": 0.4, "1": 0.4}
    printed = capsys.readouterr().out
    assert "1 of 3 claims reproduced, 1 not here, 1 undecided over seeds 0, 1" in printed
    assert "not here: RL loses: it learns" in printed
    assert "undecided: lengths: no job has measured rl/length" in printed
    page = (folder / "report.html").read_text()
    for shown in ("https://arxiv.org/abs/2504.13837", 'badge done">reproduced', 'badge failed">not here', "rl seed=1"):
        assert shown in page
    assert run(f"resume={folder}", "stage.base._target_=tests.jobs.pipelines.measure") == 0
    assert capsys.readouterr().out.count("done before") == 5


def test_unknown_stage_of_a_claim_is_one_line_before_the_first_stage(conf, tmp_path, capsys):
    assert run(*conf, "pipeline.expect=[{claim: x, holds: 'rll/score > 0'}]") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "error: pipeline.expect[0].holds: rll/score: no stage rll; did you mean rl?"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"seeds": [0]}, "pipeline.seeds: expected at least 2 different seeds, as in seeds: [0, 1, 2]; got [0]"),
        ({"seeds": [1, 1]}, "pipeline.seeds: expected at least 2 different seeds"),
        ({"seeds": "0"}, "pipeline.seeds: expected at least 2 different seeds"),
        ({"seeds": None}, "pipeline.seeds: expected at least 2 different seeds"),
        ({"claims": 3}, "pipeline: expected stages:"),
        (
            {"stages": {"rl": {"train": []}, "plot": {"call": "x", "arguments": {"x": "${stages.rl}"}, "once": True}}},
            "stage plot: ${stages.rl}: no earlier stage provides rl",
        ),
        ({"stages": {"rl": {"train": [], "once": 3}}}, "pipeline.stages.rl.once: expected true or false, got 3"),
    ],
)
def test_wrong_seeds_are_one_line(changed, line):
    with pytest.raises(ConfigError) as caught:
        stages_of({**yaml.safe_load(HELD), **changed})
    (found,) = str(caught.value).splitlines()
    assert found.startswith(line)


def test_seeds_are_needed_for_claims_and_for_shared_stages():
    node = {key: value for key, value in yaml.safe_load(HELD).items() if key != "seeds"}
    with pytest.raises(ConfigError, match=r"pipeline.seeds: missing; claims are decided over at least two seeds"):
        stages_of(node)
    with pytest.raises(ConfigError, match=r"pipeline.stages.base.once: has no effect without pipeline.seeds"):
        stages_of({"stages": node["stages"]})


def test_stages_of_a_seed_follow_each_other_and_shared_ones_run_once():
    node = {"seeds": [3, 5], "stages": {"a": ["x=1"], "b": {"generate": [], "once": True}, "c": {"evaluate": []}}}
    found = over_seeds(stages_of(node), node)
    assert [(job.label, job.folder) for job in found] == [
        ("a seed=3", "1-a-seed_3"),
        ("b", "2-b"),
        ("c seed=3", "3-c-seed_3"),
        ("a seed=5", "1-a-seed_5"),
        ("c seed=5", "3-c-seed_5"),
    ]
    assert found[3].overrides == ("x=1", "seed=5")
    assert references(found, Path("p"), 5)["a"]["folder"] == "p/1-a-seed_5"
    assert references(found, Path("p"), 5)["b"] == references(found, Path("p"), 3)["b"]


def test_seed_of_a_pipeline_with_seeds_is_not_overridden():
    stages = stages_of({"stages": {"a": [], "b": []}})
    for override in ("seed=3", "stage.a.seed=3"):
        with pytest.raises(ConfigError, match=r"seed=3: the pipeline sets the seed .* write pipeline.seeds=\[0,1,2\]"):
            check_seeds(split([override], stages), {"seeds": [0]})
        check_seeds(split([override], stages), {})


PAPERS = sorted((CONF / "experiment" / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_claims_of_a_paper_are_readable_and_about_its_stages(path):
    """Without composing the stages, which takes seconds."""
    node = load_yaml(path)["pipeline"]
    stages = {job.name for job in stages_of(node)}
    stages |= {f"{name}.start" for name in stages}
    assert node["reference"]["title"]
    for one in claims_of(node["expect"]):
        assert {name.partition("/")[0] for name in one.quantities} <= stages


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_first_stage_of_a_paper_is_a_valid_training_run(path):
    first, *_ = stages_of(load_yaml(path)["pipeline"])
    assert first.kind == "train"
    check(composed(first.overrides), TrainConfig)


def test_every_paper_is_a_job_of_the_sweep_literature():
    jobs = load_yaml(CONF.parent / "sweep" / "literature.yaml")["jobs"]
    assert {f"experiment=paper/{path.stem}" for path in PAPERS} <= {word for words in jobs.values() for word in words}
