"""The command line is checked before Hydra reads it, and reaches Hydra complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from postrain.config.arguments import composition_errors
from postrain.config.groups import listing, listing_of_named_groups, overview
from postrain.config.overrides import ParsedCommandLine, _option_problems, prepare
from postrain.errors import ConfigError
from tests.training_runs import CONF


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    files = {
        "conf/config.yaml": "defaults: [_self_, {method: sft}]\nseed: 0\n",
        "conf/method/sft.yaml": "# Trains on demonstrations.\nlr: 0.1\n",
        "conf/method/ppo.yaml": "# @package _global_\n# Trains on a reward.\nmethod: {lr: 0.2}\n",
        "conf/logger/none.yaml": "x: 1\n",
        "sweep/kl_coef.yaml": "# How much KL?\nseed: 1\n",
        "more/method/mine.yaml": "# My own.\nlr: 0.3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "conf"


def problems(argv: list[str], conf: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepare(argv, conf)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("argv", "prepared"),
    [
        (["method=ppo", "method.lr=3"], ["method=ppo", "++method.lr=3"]),
        (["+method.lr=3", "++seed=1", "~method.lr"], ["++method.lr=3", "++seed=1", "~method.lr"]),
        (["--cfg", "job", "seed=1"], ["++seed=1", "--cfg", "job"]),
        (["-cn", "config", "name='a b'"], ["++name='a b'", "-cn", "config"]),
        (["hydra.run.dir=x", "hydra.job.env_set.A=1"], ["hydra.run.dir=x", "hydra.job.env_set.A=1"]),
        (["logger=[none]", "+method@other=sft"], ["logger=[none]", "+method@other=sft"]),
        (["data.columns={prompt: question}"], ["++data.columns={prompt: question}"]),
    ],
)
def test_overrides_are_forced_for_hydra(argv: list[str], prepared: list[str], conf: Path) -> None:
    assert prepare(argv, conf) == ParsedCommandLine(prepared, None)


@pytest.mark.parametrize(
    ("argv", "prepared", "swept"),
    [
        (["seed=1,2", "-m", "method=sft,ppo"], [], ("seed=1,2", "method=sft,ppo")),
        (["-m", "method=glob(*)", "seed=3", "--cfg", "job"], ["++seed=3", "--cfg", "job"], ("method=glob(*)",)),
        (
            ["hydra/launcher=basic", "sweep=kl_coef", "seed=1,2"],
            ["hydra/launcher=basic"],
            ("sweep=kl_coef", "seed=1,2"),
        ),
        (["sweep=kl_coef", "sweep.seeds=[0]", "seed=3"], ["++seed=3"], ("sweep=kl_coef", "sweep.seeds=[0]")),
    ],
)
def test_overrides_of_the_sweep_are_not_passed_to_hydra(
    argv: list[str], prepared: list[str], swept: tuple[str, ...], conf: Path
) -> None:
    assert prepare(argv, conf) == ParsedCommandLine(prepared, swept)


@pytest.mark.parametrize(
    ("token", "line"),
    [
        ("method=pppo", "method=pppo: no such option; did you mean ppo? (available: ppo, sft)"),
        ("method=PPO", "method=PPO: no such option; did you mean ppo? (available: ppo, sft)"),
        ("method=null", "method=null: no such option; every run has one; choose an option, as in method=ppo"),
        ("logger=null", "logger=null: no such option; to use none write logger=none"),
        ("sweep=null", "sweep=null: no such option; leave out sweep= for a single run"),
        ("~method", "~method: cannot be deleted; every run has one; choose an option, as in method=ppo"),
        ("sweep=kl", "sweep=kl: no such option; available: kl_coef"),
        ("metod=ppo", "metod: no such config group; did you mean method? (available: logger, method, sweep)"),
        ("++method=ppo", "++method=ppo: method is a config group; choose an option with method=..."),
        ("hydra.ouput_subdir=x", "hydra.ouput_subdir: unknown key of Hydra; did you mean hydra.output_subdir?"),
        ("+hydra.ouput_subdir=x", "hydra.ouput_subdir: unknown key of Hydra; did you mean hydra.output_subdir?"),
        ("hydra.run.dri=x", "hydra.run.dri: unknown key of Hydra; did you mean hydra.run.dir?"),
        ("seed=1,2", "seed=1,2: several values need -m (a job for each); for one list write seed=[...]"),
        ("seed", "seed: expected NAME=VALUE, as in seed=1"),
        ("sft", "sft: expected NAME=VALUE, as in seed=1; write method=sft"),
        ("train", "train: expected NAME=VALUE, as in seed=1; leave it out, it is the command already"),
        ("chat", "chat: expected NAME=VALUE, as in seed=1; the command is python -m postrain.cli.chat"),
    ],
)
def test_wrong_argument_is_one_line(token: str, line: str, conf: Path) -> None:
    assert problems([token], conf) == [line]


def test_an_own_option_without_conf_names_the_folder(conf: Path, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    own = f"own options are read from ./conf/method (there is none in {here})"
    assert problems(["method=xyz"], conf) == [f"method=xyz: no such option; available: ppo, sft; {own}"]
    (studies,) = problems(["sweep=xyz"], conf)
    assert studies.endswith(f"; own options are read from ./sweep (there is none in {here})")
    (here / "conf").mkdir()
    assert problems(["method=xyz"], conf) == ["method=xyz: no such option; available: ppo, sft"]


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        ("data.path= my.jsonl", "data.path= my.jsonl: no space after =; write data.path=my.jsonl"),
        ("method=ppo, sft",
         "method=ppo, sft: no space after a comma; several values need -m: -m method=ppo,sft"),
        ("-m method=ppo, sft", "method=ppo, sft: no space after a comma; write method=ppo,sft"),
        ("seed=[1, 2, 3]", "seed=[1, 2, 3]: no space after a comma; write 'seed=[1,2,3]'"),
        ("method=sft --lr 1e-5 seed=3 data.path=a",
         "--lr: no such flag; settings are written KEY=VALUE without dashes, as in seed=1; did you mean "
         "method.learning_rate?"),
    ],
)  # fmt: skip
def test_value_split_by_a_space_is_one_line(tokens: str, line: str, conf: Path) -> None:
    assert problems(tokens.split(), conf) == [line]


def test_a_file_without_a_key_is_one_line_with_the_key(conf: Path, tmp_path: Path) -> None:
    file = tmp_path / "my rows.jsonl"
    file.touch()
    (line,) = problems([str(file)], conf)
    assert line.endswith(f"; to use the file write \"data.path='{file}'\"")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ray", 'hydra/launcher=ray: not installed; run `pip install "postrain[ray]" -c constraints-ray.txt`'),
        ("basik", "hydra/launcher=basik: no such option; did you mean basic? (available: basic, local)"),
    ],
)
def test_unknown_launcher_is_one_line(name: str, line: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"hydra/launcher={name}"])
    # The available launchers depend on the installed packages.
    assert list(_option_problems(override, ["basic", "local"])) == [line]


def test_message_for_unbalanced_brackets_recommends_quotes(conf: Path) -> None:
    (line,) = problems(["name=a:b,("], conf)
    assert line.startswith("name=a:b,(: cannot be read (")
    assert line.endswith("""quote special characters, as in name='"..."'""")


def test_all_problems_are_in_one_error(conf: Path) -> None:
    lines = problems(["method=sftt,ppp", "-m", "hydra.sweeep.dir=x", "logger=wandb"], conf)
    assert [line.partition(":")[0] for line in lines] == [
        "method=sftt",
        "method=ppp",
        "hydra.sweeep.dir",
        "logger=wandb",
    ]


@pytest.mark.parametrize(
    ("root", "argv", "line"),
    [
        ("config", ["method=sft", "selection=best"], "selection: belongs to python -m postrain.generate"),
        ("generate", ["method=ppo"], "method: belongs to python train.py"),
        (
            "config",
            ["pipeline=reasoning", "selection=best"],
            "selection: belongs to python -m postrain.generate; write stage.NAME.selection=best",
        ),
    ],
)
def test_group_of_another_program_names_that_program(root: str, argv: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(argv, CONF, root)
    assert str(caught.value) == line


def test_help_lists_the_groups_of_the_program(conf: Path) -> None:
    assert overview(["--help"], conf, "config") == "method: ppo, sft"
    more = str(conf.parent / "more")
    assert overview(["--help", "--config-dir", more], conf, "config") == "method: mine, ppo, sft"
    lines = overview([], CONF, "generate").splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(
        ["model", "data", "prompts", "reward", "rollout", "environment", "trainer", "selection"]
    )


def test_config_dir_adds_its_options(conf: Path) -> None:
    more = str(conf.parent / "more")
    assert prepare(["method=mine", "--config-dir", more], conf).arguments == ["method=mine", "--config-dir", more]


def test_hydra_composes_forced_overrides_including_unknown_keys(conf: Path) -> None:
    overrides = prepare(["method=ppo", "method.lr=5", "lr=1e-3", "methd.kl.coef=2"], conf).arguments
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", overrides)
    assert config == {"seed": 0, "method": {"lr": 5}, "lr": 1e-3, "methd": {"kl": {"coef": 2}}}


def test_group_without_a_value_lists_its_options(conf: Path) -> None:
    text = "method=\n  ppo  Trains on a reward.\n  sft  Trains on demonstrations."
    assert listing_of_named_groups(["method"], conf) == text == listing(conf, "method")
    assert listing(conf, "sweep") == "sweep=\n  kl_coef  How much KL?"
    assert listing_of_named_groups(["method=ppo", "-m", "seed"], conf) is None


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--resolve"], "--resolve: changes the output of --cfg; write --cfg job --resolve"),
        (["-m"], "-m: no key has several values; "),
        (["--multirun", "method=ppo", "seed=3"], "-m: no key has several values; "),
        (["-m", "sweep.metric=loss"], "-m: no key has several values; "),
        (["--run", "-m", "seed=1,2"], "--run --multirun: expected one of them"),
        (["--cfg", "job", "--info"], "--cfg --info: expected one of them"),
        (["--info"], "--info all: expected defaults, defaults-tree, plugins or searchpath; for the config of a run wr"),
        (["--info", "config", "method=ppo"], "--info config: expected defaults, "),
        (["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs'"),
        (
            ["--lr", "3"],
            "--lr: no such flag; settings are written KEY=VALUE without dashes, as in seed=1; "
            "did you mean method.learning_rate?",
        ),
        (
            ["--updates=2"],
            "--updates=2: no such flag; settings are written KEY=VALUE without dashes, as in seed=1; "
            "did you mean method.updates=...?",
        ),
        (["--xyz"], "--xyz: no such flag; settings are written KEY=VALUE without dashes, as in seed=1"),
        (["-sc"], "-sc: expected install=SHELL, uninstall=SHELL or query=SHELL, with one of bash, fish, zsh"),
        (["-sc", "install=tcsh"], "-sc: expected install=SHELL"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun: not supported; "),
    ],
)
def test_invalid_flag_is_one_line(argv: list[str], line: str, conf: Path) -> None:
    (only,) = problems(argv, conf)
    assert only.startswith(line)


def test_shell_completion_is_passed_to_hydra(conf: Path) -> None:
    assert prepare(["-sc", "install=bash"], conf) == ParsedCommandLine(["-sc", "install=bash"], None)


def test_run_folder_without_a_key_is_one_line_with_the_key(conf: Path, tmp_path: Path) -> None:
    for name, word in (("run", "model.path={}"), ("a=ü", "\"model.path='{}'\"")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        (line,) = problems([str(folder)], conf)
        assert line.endswith(
            f": expected NAME=VALUE, as in seed=1; to use the run in it write model=run {word.format(folder)}"
        )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# @package _global_\ndefaults: [{override /method: pppo}]\n",
         "method=pppo: no such option, in the defaults of a config file; did you mean ppo? (available: ppo, sft)"),
        ("defaults: [{override /method: ppo}]\n",
         "experiment/mine.yaml: cannot override method; add the first line `# @package _global_`"),
    ],
)  # fmt: skip
def test_mistake_in_the_defaults_of_an_experiment_names_the_remedy(text: str, line: str, conf: Path) -> None:
    (conf / "experiment").mkdir()
    (conf / "experiment/mine.yaml").write_text(text)
    with (
        initialize_config_dir(str(conf), version_base="1.3"),
        pytest.raises(ConfigError) as caught,
        composition_errors(),
    ):
        compose("config", ["+experiment=mine"])
    assert str(caught.value) == line
