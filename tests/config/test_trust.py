"""Values of a run folder that run code or send data need confirmation on the command line."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.cli.main import prepend_sweep_overrides
from postrain.config.check import check
from postrain.config.schema import Confirm, provides
from postrain.config.trust import UntrustedFolder, config_items, override_items, package_class, restricted_values
from postrain.errors import ConfigError
from postrain.evaluation.config import EvaluateConfig
from postrain.evaluation.eval_models import SourceRun
from postrain.generation.config import GenerateConfig
from postrain.jobs.graph import Job, overrides_of
from postrain.jobs.pipeline import Pipeline
from postrain.jobs.plan import check_untrusted, package_calls
from postrain.jobs.stages import stages_of
from postrain.runs.folder import RunFolder
from postrain.training.config import TrainConfig
from tests.training_runs import CONF, composed

GROUPS = ("method", "model", "adapter", "data", "reward", "rollout", "environment", "trainer", "logger", "evaluation")
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]
# Required keys of options: their value in the YAML is "???".
REQUIRED = {
    *("reward.function", "reward.url", "environment.id", "environment.url"),
    *("data.source.environment.id", "data.source.environment.url"),
}
# Permission to run programs, which options for tools that run programs give.
GRANTED = {
    "environment.allow_execution",
    "data.source.environment.allow_execution",
    "data.source.environments.python_tool.allow_execution",
}
OWN = "mine.py:brevity"
TASKS = {
    name: composed(["method=ppo", f"evaluation={name}"])["evaluation"]["tasks"][name] for name in ("lm_eval", "queries")
}


def run(*words: str) -> dict[str, Any]:
    return composed(["method=ppo", *words])


def changed(path: str, value: Any) -> dict[str, Any]:
    """A run's config with the value at a dotted path replaced."""
    config = deepcopy(run("reward=weighted"))
    *above, last = path.split(".")
    inner = config
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return config


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_built_in_option_resumes_without_confirmation(group: str, option: str) -> None:
    # data=environment takes the environment of the run, which has to be one with prompts.
    words = ["environment=guess_number"] if (group, option) == ("data", "environment") else []
    config = run(f"{group}={option}", *words) if group != "method" else composed([f"method={option}"])
    assert {one.key for one in restricted_values(config, TrainConfig)} <= REQUIRED | GRANTED


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "selection").glob("*.yaml")))
def test_every_selection_resumes_without_confirmation(option: str) -> None:
    assert list(restricted_values(composed([f"selection={option}"], "generate"), GenerateConfig)) == []


def test_calls_of_built_in_pipelines_need_no_confirmation() -> None:
    names = (
        "overoptimization.overoptimization",
        "overoptimization_law.overoptimization_law",
        "entropy_law.entropy_law",
    )
    assert package_calls() == {f"postrain.report.{name}" for name in names}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # Code outside the package.
        ("method._target_", "os.system"),
        ("method._target_", "postrain.training.train.os.system"),
        ("method._target_", "postrain.rewards.user_code.load_function"),
        ("logger", {"_target_": "subprocess.call", "args": ["true"]}),
        ("data.source._target_", "mine.Source"),
        ("reward.parts.gold", {"_target_": "mine.Reward"}),
        ("evaluation.tasks.mine", {"_target_": "mine.EvalTask"}),
        ("early_stop.kl_above", {"_target_": "os.system"}),
        ("nothing", {"_target_": "os.system"}),
        ("seed", {"_target_": "os.system"}),
        ("rollout.stop", [{"_target_": "os.system"}]),
        # A class of the package at a key of another type.
        ("method._target_", "postrain.rewards.world.Gold"),
        ("trainer._target_", "postrain.training.loggers.NoTracker"),
        ("reward._target_", "postrain.methods.sft.SFT"),
        ("environment._target_", "postrain.models.adapters.NoAdapter"),
        ("reward.parts.brevity.arguments.words", {"_target_": "postrain.rewards.world.Gold", "weights": {}}),
        # Functions that are not rewards of the package.
        ("reward.parts.brevity.function", "evil.py:f"),
        ("reward.parts.brevity.function", "os.system"),
        ("reward.parts.brevity.function", "postrain.rewards.user_code.load_function"),
        ("reward.parts.brevity.function", "postrain.rewards.text.re.sub"),
        ("data.gold", "subprocess.getoutput"),
        ("data.gold", "postrain.rewards.user_code.load_function"),
        # Arguments of the package's functions that name other functions.
        ("reward.parts.brevity.arguments.scorer", "evil.py:f"),
        ("reward.parts.brevity.arguments.scorer", "dir/evil.pyc:f"),
        ("reward.parts.brevity.arguments.scorer", "os.system"),
        ("reward.parts.brevity.arguments.scorer", "postrain.rewards.user_code.load_function"),
        # URLs and permissions.
        ("reward", composed(["method=ppo", "reward=judge", "reward.url=http://a", "reward.model=m"])["reward"]),
        ("reward", composed(["method=ppo", "reward=code", "reward.allow_execution=true"])["reward"]),
        ("rollout", composed(["method=ppo", "rollout=vllm", "rollout.url=http://a"])["rollout"]),
        ("rollout", composed(["method=ppo", "rollout=vllm", "rollout.url=[http://a,http://b]"])["rollout"]),
        ("logger", composed(["method=ppo", "logger=wandb", "logger.online=true"])["logger"]),
        ("evaluation.tasks.lm_eval", {**TASKS["lm_eval"], "include_path": "x"}),
        ("evaluation.tasks.queries", {**TASKS["queries"], "allow_execution": True}),
    ],
)
def test_unconfirmed_value_of_a_run_folder_is_refused(path: str, value: Any, tmp_path: Path) -> None:
    config = changed(path, value)
    with pytest.raises(ConfigError, match="repeat it on the command line if you trust it") as caught:
        UntrustedFolder(tmp_path, config_items(run("reward=weighted"))).check(config, TrainConfig)
    assert "\n" not in str(caught.value)
    assert f"sets {path}" in str(caught.value)


def test_check_does_not_import_untrusted_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = changed("method._target_", "evil_module.Method")
    with pytest.raises(ConfigError, match=r"sets method\._target_=evil_module\.Method"):
        UntrustedFolder(tmp_path, ()).check(config, TrainConfig)


def test_only_confirmed_values_are_trusted(tmp_path: Path) -> None:
    config = run("reward=function", f"reward.function={OWN}")
    UntrustedFolder(tmp_path, config_items(config)).check(config, TrainConfig)
    UntrustedFolder(tmp_path, override_items([f"reward.function='{OWN}'"])).check(config, TrainConfig)
    UntrustedFolder(tmp_path, override_items([f"stage.ppo.reward.function={OWN}"])).check(config, TrainConfig)
    for other in ("reward=function", "reward.function=mine.py:other", "reward.function=other.py:brevity"):
        with pytest.raises(ConfigError, match=r"sets reward\.function=mine\.py:brevity \(runs this Python\)"):
            UntrustedFolder(tmp_path, override_items([other])).check(config, TrainConfig)


def test_each_argument_that_names_code_needs_confirmation(tmp_path: Path) -> None:
    config = changed("reward.parts.brevity.arguments", {"scorer": "evil.py:f", "more": [{"deep": "evil.py:g"}]})
    with pytest.raises(ConfigError, match=r"scorer=evil\.py:f .*more\[0\]\.deep=evil\.py:g \(may name Python"):
        UntrustedFolder(tmp_path, config_items(run("reward=weighted"))).check(config, TrainConfig)
    UntrustedFolder(tmp_path, config_items(config)).check(config, TrainConfig)
    plain = {"scorer": "postrain.rewards.text.exact", "pattern": r"a\.b: .*", "words": 3, "tags": ["think", "a b.c"]}
    UntrustedFolder(tmp_path, ()).check(changed("reward.parts.brevity.arguments", plain), TrainConfig)


def test_arguments_of_a_confirmed_class_are_checked(tmp_path: Path) -> None:
    own = {"_target_": "tests.config.test_trust.Own", "inner": {"_target_": "os.system"}}
    config = {**run(), "reward": own}
    with pytest.raises(ConfigError, match=r"sets reward\.inner\._target_=os\.system"):
        UntrustedFolder(tmp_path, override_items(["reward._target_=tests.config.test_trust.Own"])).check(
            config, TrainConfig
        )


class Own:
    """A reward class of the user."""

    def __init__(self, inner: Any) -> None: ...


def test_class_provides_a_type_by_inheritance_or_by_all_members_of_a_protocol() -> None:
    class Whole:
        def build(self) -> None: ...
        def close(self) -> None: ...

    class Half:
        def build(self) -> None: ...

    tracker = TrainConfig.__annotations__
    assert tracker["logger"] == "Tracker | Logger"
    from postrain.training.loggers import Tracker  # noqa: PLC0415 - beside what it is compared with

    assert provides(Whole, Tracker)
    assert not provides(Half, Tracker)
    assert package_class("postrain.training.loggers.NoTracker") is not None
    assert [
        package_class(path) for path in ("os.system", "postrain.training.train.os.system", "postrain.none", None, 3)
    ] == [None] * 5


def test_every_key_that_names_code_or_a_url_has_a_confirm_mark() -> None:
    risky = ("url", "key_variable", "allow_execution", "online", "function", "host", "endpoint")
    from postrain.config.schema import schema_of  # noqa: PLC0415 - as above

    for group, option in OPTIONS:
        config = run(f"{group}={option}") if group != "method" else composed([f"method={option}"])
        for node in nodes(config[group]):
            target = package_class(node["_target_"])
            assert target is not None
            for name, key in schema_of(target).keys.items():
                if name in risky:
                    assert any(isinstance(mark, Confirm) for mark in key.annotation.__metadata__), (target, name)


def nodes(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        own = [value] if "_target_" in value else []
        return [*own, *(node for item in value.values() for node in nodes(item))]
    return []


def run_folder(tmp_path: Path, config: dict[str, Any]) -> RunFolder:
    """A run folder with this config."""
    folder = RunFolder.at(tmp_path / "run")
    folder.config.write_text(OmegaConf.to_yaml(config))
    folder.manifest.write_text("{}")
    return folder


def test_initial_model_of_a_run_folder_is_checked(tmp_path: Path) -> None:
    source = SourceRun.of(str(run_folder(tmp_path, changed("model._target_", "os.system")).path))
    assert source is not None
    with pytest.raises(ConfigError, match=r"sets model\._target_=os\.system"):
        source.reference_model()


def test_inherited_config_of_an_evaluation_is_checked(tmp_path: Path) -> None:
    config = run("reward=function", f"reward.function={OWN}")
    current = composed(["model=nano"], "evaluate")
    with pytest.raises(ConfigError, match="runs this Python"):
        UntrustedFolder(tmp_path, config_items(current)).check({"reward": config["reward"]}, EvaluateConfig)
    named = composed(["model=nano", f"+reward.function={OWN}"], "evaluate")
    UntrustedFolder(tmp_path, config_items(named)).check({"reward": config["reward"]}, EvaluateConfig)


PIPELINE = {"stages": {"ppo": ["method=ppo"], "plot": {"call": "os.system", "arguments": {"command": "true"}}}}


def test_function_call_of_a_pipeline_needs_confirmation(tmp_path: Path) -> None:
    learn, plot = stages_of(PIPELINE)
    with pytest.raises(ConfigError, match=r"sets stage\.plot\._target_=os\.system \(calls this function\)"):
        check_untrusted(plot, {}, UntrustedFolder(tmp_path, ()))
    check_untrusted(plot, {}, UntrustedFolder(tmp_path, override_items(["stage.plot._target_=os.system"])))
    own = min(package_calls())
    hidden = replace(plot, config={"call": {"_target_": own, "runs": {"_target_": "os.system"}}})
    with pytest.raises(ConfigError, match=r"sets stage\.plot\.runs\._target_=os\.system"):
        check_untrusted(hidden, {}, UntrustedFolder(tmp_path, ()))
    evil = replace(learn, config=changed("method._target_", "os.system"))
    with pytest.raises(ConfigError, match=r"sets stage\.ppo\.method\._target_=os\.system"):
        check_untrusted(evil, {}, UntrustedFolder(tmp_path, ()))


def test_target_behind_a_reference_is_checked(tmp_path: Path) -> None:
    (learn, _) = stages_of(PIPELINE)
    config = changed("method._target_", "${name}") | {"name": "os.system"}
    with pytest.raises(ConfigError, match=r"method\._target_=os\.system"):
        check_untrusted(replace(learn, config=config), {}, UntrustedFolder(tmp_path, ()))


def test_stage_folder_outside_its_pipeline_is_rejected(tmp_path: Path) -> None:
    stages = stages_of(PIPELINE)
    config = {"name": None, "model": {"name": None, "path": "x"}, "call": {"_target_": "os.system"}}
    jobs = tuple(replace(stage, overrides=(), config=config) for stage in stages)
    Pipeline(name="x", node=PIPELINE, overrides=(), jobs=jobs).save(tmp_path)
    assert Pipeline.load(tmp_path).jobs == jobs
    text = (tmp_path / "pipeline.yaml").read_text()
    (tmp_path / "pipeline.yaml").write_text(text.replace("folder: 1-ppo", "folder: ../../home"))
    with pytest.raises(ConfigError, match="is damaged or was edited"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    "saved",
    [
        {"words": ["method=ppo", "hydra.callbacks.x._target_=os.system"]},
        {"words": ["method=ppo", "+hydra.searchpath=[file://evil]"]},
        {"words": ["method=ppo", "hydra/launcher=evil"]},
        {"words": ["method=ppo"], "flags": ["--config-dir", "evil"]},
        {"words": ["method=ppo"], "flags": ["--config-path=evil"]},
    ],
)
def test_sweep_folder_cannot_change_where_hydra_imports_code_from(saved: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(OmegaConf.to_yaml(saved))
    with pytest.raises(ConfigError, match="changes where Hydra imports code from"):
        prepend_sweep_overrides([f"resume={tmp_path}"])
    again = [*saved["words"][1:], *saved.get("flags", ())]
    assert prepend_sweep_overrides([f"resume={tmp_path}", *again])[-len(again) :] == again


def test_resumed_job_gets_its_confirmations(tmp_path: Path) -> None:
    job = Job(name="", overrides=("method=ppo",), folder="0", confirm=("reward.url=x",))
    (tmp_path / "0").mkdir()
    assert overrides_of(job, tmp_path, True) == ["method=ppo"]
    (tmp_path / "0" / "config.yaml").touch()
    assert overrides_of(job, tmp_path, True) == [f"resume={tmp_path}/0", "reward.url=x"]


def test_valid_config_of_a_run_folder_passes(tmp_path: Path) -> None:
    config = run()
    check(config, TrainConfig)
    UntrustedFolder(tmp_path, ()).check(config, TrainConfig)
