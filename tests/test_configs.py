"""Every YAML in conf/ composes, begins with a description, and matches the constructors it names."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import RunDir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from postrain.cli.early_check import check_early
from postrain.config.arguments import resolved
from postrain.config.check import check
from postrain.config.overrides import PROGRAMS
from postrain.config.tree import complete
from postrain.training.config import TrainConfig
from tests.fast_compose import hydras_own
from tests.training_runs import CONF, METHODS, SMALL, composed, forced, without_defaults

# Groups that tests/generation and tests/jobs compose: those of conf/generate.yaml, and pipelines.
ELSEWHERE = ("selection", "prompts", "pipeline")
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
RECIPES = sorted(f"recipe/{path.stem}" for path in (CONF / "experiment" / "recipe").glob("*.yaml"))
OPTIONS = sorted((group, path.stem) for group in GROUPS for path in (CONF / group).glob("*.yaml"))
OPTIONS += [("experiment", name) for name in RECIPES]
# Keys that have no default in these options.
REQUIRED = {
    ("data", "jsonl"): ["data.path=rows.jsonl"],
    ("data", "mix"): ["data.mix={rows.jsonl: 1}"],
    ("data", "environment"): ["environment=guess_number"],
    ("evaluation", "lm_eval"): ["evaluation.tasks.lm_eval.tasks=[mine]"],
    ("environment", "gymnasium"): ["environment.id=mine"],
    ("environment", "openenv"): ["environment.url=http://127.0.0.1:8000"],
    ("environment", "verifiers"): ["environment.id=mine"],
    ("evaluation", "win_rate"): ["evaluation.tasks.win_rate.against=somewhere"],
    ("model", "local"): ["model.path=somewhere"],
    ("model", "run"): ["model.path=somewhere"],
    ("reward", "function"): ["reward.function=math.sqrt"],
    ("reward", "learned"): ["reward.path=somewhere"],
    ("reward", "pairwise"): ["reward.function=math.sqrt"],
    ("reward", "process"): ["reward.path=somewhere"],
    ("reward", "judge"): ["reward.url=http://127.0.0.1:8000/v1", "reward.model=judge"],
    ("reward", "rubric"): ["reward.url=http://127.0.0.1:8000/v1", "reward.model=judge"],
    ("reward", "rubric_local"): ["reward.path=somewhere"],
    ("reward", "judge_pairwise"): ["reward.url=http://127.0.0.1:8000/v1", "reward.model=judge"],
    ("reward", "self_judge"): ["reward.path=somewhere"],
    **{("experiment", name): ["data.path=rows.jsonl"] for name in RECIPES if not name.endswith("ppo")},
    **{("experiment", name): ["data.path=rows.jsonl", "reward.path=run"] for name in RECIPES if name.endswith("ppo")},
}
GPU_MODELS = ("qwen2.5-1.5b", "qwen3-0.6b", "llama-3.2-1b")


def is_elsewhere(group: str, option: str) -> bool:
    """Whether another test composes the option; an experiment may be a pipeline."""
    return group in ELSEWHERE or "pipeline:" in (CONF / group / f"{option}.yaml").read_text()


@pytest.mark.parametrize(("group", "option"), [option for option in OPTIONS if not is_elsewhere(*option)])
def test_every_option_fits_its_constructor(group, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    method = [] if group in ("method", "experiment") else ["method=ppo"]
    words = [*method, f"{group}={option}", *REQUIRED.get((group, option), [])]
    check(composed(words), TrainConfig)
    check_early(OmegaConf.create(without_defaults("config", words)), "config")


@pytest.mark.parametrize("model", GPU_MODELS)
def test_gpu_recipes_take_other_models(model):
    config = composed(["experiment=recipe/gpu_dpo", f"model={model}", "data.path=rows.jsonl"])
    check(config, TrainConfig)
    assert (config["model"]["name"], config["method"]["batch_size"], config["data"]["max_length"]) == (model, 32, 1024)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_begins_with_a_one_line_description(group, option):
    lines = [line for line in (CONF / group / f"{option}.yaml").read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# ")
    assert 10 < len(lines[0]) <= 110
    # It begins with an upper-case letter, a digit or a name such as rsLoRA.
    assert not lines[0].split()[1].islower()


@pytest.mark.parametrize("method", METHODS)
def test_command_line_overrides_the_method(method):
    config = composed([f"method={method}", "data=jsonl", "data.path=x", "adapter=none", "rollout.temperature=0.25"])
    assert config["data"]["path"] == "x"
    assert config["adapter"]["_target_"].endswith("NoAdapter")
    assert config["rollout"]["temperature"] == 0.25


def test_experiment_overrides_the_method_and_the_command_line_overrides_both():
    assert composed(["method=pretrain"])["method"]["batch_size"] == 16
    assert composed(["experiment=nano"])["method"]["batch_size"] == 36
    assert composed(["experiment=nano", "method.batch_size=5"])["method"]["batch_size"] == 5


@pytest.mark.parametrize(
    "words",
    [
        [*SMALL, "method=dpo", "method.loss={sigmoid:0.8,bco:0.2}", "++method.learning_rat=1"],
        ["method.updates=7", "experiment=nano", "adapter=lora", "~data.source.kind", "paths.output='/a b/c'"],
    ],
)
def test_composed_config_equals_that_of_hydra(words):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        expected = resolved(complete(compose("config", forced(words)), TrainConfig))
    assert composed(words) == expected


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["method=grpo", "experiment=nano", "adapter=lora", "logger=[tensorboard,wandb]", "++method.seeds=[1,2]"],
        ["method=ppo", "dialect=trl", "reward=weighted", "++model.path=x", "hydra.sweep.dir=y", "hydra.job.chdir=true"],
        ["hydra/launcher=basic", "data=mix", "+evaluation/task@evaluation.tasks.win_rate=win_rate", "trainer=fsdp"],
        ["hydra.searchpath=[file://.]", "method=mine"],
    ],
)
@pytest.mark.parametrize("run_mode", [RunMode.RUN, RunMode.MULTIRUN])
def test_faster_steps_compose_what_hydras_own_steps_compose(words, run_mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [sft]\nupdates: 3\nloss: {a: [1]}\n")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        ours = [loader.load_configuration("config", words, run_mode) for _ in range(2)]
        with hydras_own():
            theirs = loader.load_configuration("config", words, run_mode)
    assert [OmegaConf.to_yaml(each) for each in ours] == [OmegaConf.to_yaml(theirs)] * 2
    assert all(OmegaConf.is_struct(each) and OmegaConf.get_type(each.hydra.run) is RunDir for each in [*ours, theirs])


def test_every_yaml_is_an_option_a_program_or_shared():
    shared = {path for path in CONF.rglob("*.yaml") if path.parent.name in ("base", "task", "launcher")}
    # Those of dialects: tests/methods/test_dialects.py; those of papers: the jobs of sweep/literature.yaml.
    shared |= {*(CONF / "dialect").glob("*/*.yaml"), *(CONF / "experiment" / "paper").glob("*.yaml")}
    recipes = {CONF / "experiment" / f"{name}.yaml" for name in RECIPES}
    assert {path for path in CONF.rglob("*.yaml") if path.parent.parent == CONF} | shared | recipes == {
        path for path in CONF.rglob("*.yaml") if path not in [CONF / f"{name}.yaml" for name in PROGRAMS]
    }
