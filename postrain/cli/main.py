"""Runs command lines of `train.py`, `postrain.generate` and `postrain.evaluate` through Hydra.

A user's mistakes are printed on stderr, one line each, with exit code 2; `debug=true` shows tracebacks. Lists of values
and sweep=NAME start a sweep, whose jobs run this module again in separate processes.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.cli.early_check import check_early
from postrain.cli.resume_auto import with_newest_run
from postrain.cli.resume_hints import resume_hint, with_full_resume_commands
from postrain.cli.transformers_files import reuse_file_list
from postrain.cli.user_conf import use_user_conf
from postrain.config.arguments import full_hydra_errors, resolved, split_cfg_flags, to_config_error
from postrain.config.check import check
from postrain.config.groups import listing, listing_of_named_groups, overview
from postrain.config.masking import MASK, masked_text
from postrain.config.overrides import DRY_RUN, PROGRAMS, job_overrides, prepare
from postrain.config.paths import CONF, command
from postrain.config.schema import is_node
from postrain.config.tree import complete
from postrain.config.trust import UntrustedFolder, join_flags, override_items
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError, ignore_closed_pipe, print_error
from postrain.hardware.environment import is_first_of_node, read_srun
from postrain.jobs.parent_watchdog import watch_parent

Run = Callable[[DictConfig, list[str], str | None, Path | None], float | None]
"""Runs one job, given its config, its overrides, the name of its sweep and its folder (None creates one)."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The keys that are read before a sweep or a pipeline composes and checks its jobs."""

    name: str | None
    debug: bool
    report: bool = True
    resume: str | None = None
    allow_change: bool = False
    paths: Mapping[str, str]


def start(argv: Sequence[str], conf: Path = CONF, *, config_name: str = "config", run: Run | None = None) -> int:
    """Runs one command line; `run` replaces training. Returns the exit code."""
    watch_parent()
    read_srun()
    use_user_conf()
    try:
        with full_hydra_errors():
            return _start(argv, conf, config_name, run)
    except ConfigError as error:
        return report_error(error)
    except BrokenPipeError:
        return ignore_closed_pipe()
    except KeyboardInterrupt:
        # In a run, runs/interrupt.py handles Ctrl-C.
        print("interrupted before the run started", file=sys.stderr)
        return 130
    except SystemExit as end:
        # For runs/interrupt.py's Interrupted, whose import takes seconds. This is the last line that is printed.
        if folder := getattr(end, "folder", None):
            print(f"interrupted; {resume_hint(config_name, folder, argv[1:])}", file=sys.stderr)
        raise


def _start(argv: Sequence[str], conf: Path, config_name: str, run: Run | None) -> int:
    code = 0
    if (options := listing_of_named_groups(argv[1:], conf)) is not None:
        print(options)
        return 0
    line = prepare(prepend_sweep_overrides(with_newest_run(argv[1:])), conf, config_name)
    words, cfg_flags = split_cfg_flags(line.arguments)
    sys.argv = [argv[0], *words]
    # hydra.help.template of the primary config uses both for --help.
    OmegaConf.register_new_resolver("command", command, replace=True)
    OmegaConf.register_new_resolver("groups", lambda: overview(argv[1:], conf, config_name), replace=True)
    composed = False

    def one(config: DictConfig) -> float | None:
        start_training = partial(train, conf, dry_run=line.dry_run)
        return run_job(run or start_training, complete(config, root_of(config_name)))

    def job(config: DictConfig) -> float | None:
        nonlocal code, composed
        composed = True
        if cfg_flags is not None:
            root = root_of(config_name)
            with one_line_errors(config):
                code = show(with_saved_settings(complete(config, root)), root, cfg_flags)
            return None
        with one_line_errors(config):
            if line.sweep is None:
                check_early(config, config_name)
                return one(config)
            from postrain.jobs.sweep import execute as sweep  # noqa: PLC0415 - start-up time of a single run

            whole = complete(config, root_of(config_name))
            check_session(whole)
            code = sweep(whole, line.sweep, conf, config_name, one, argv[1:])
        return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=config_name)(job)()
    except Exception as error:
        if composed or isinstance(error, BrokenPipeError):
            raise
        return report_error(to_config_error(error))
    return code


def root_of(config_name: str) -> type:
    """The dataclass of a primary config's top-level keys."""
    known = programs()
    return next((one.config for one in known.values() if one.primary == config_name), known["train"].config)


@cache
def programs() -> Mapping[str, Any]:
    """The programs by kind of job, imported here for a fast start-up: --help and most mistakes need no torch.

    The garbage collector is off meanwhile and leaves out the imported modules later: passing over their 800,000 objects
    again and again is a fifth of the time of their import.
    """
    gc.disable()
    try:
        reuse_file_list()
        from postrain.jobs.session import PROGRAMS  # noqa: PLC0415 - start-up time
    finally:
        gc.freeze()
        gc.enable()
    return PROGRAMS


def with_saved_settings(config: DictConfig) -> DictConfig:
    """The config of the run that resume= or fork= continues, with the overrides; unchanged without them."""
    if not config.get("resume") and not config.get("fork"):
        return config
    from postrain.runs.folder import RunFolder  # noqa: PLC0415 - start-up time
    from postrain.runs.forks import ForkPoint  # noqa: PLC0415 - as above
    from postrain.runs.resume import resumed_config  # noqa: PLC0415 - as above

    plain, words = resolved(config), job_overrides()
    if plain["resume"]:
        # Changes are shown, not refused.
        saved = resumed_config(RunFolder.open(plain["resume"]), plain | {"allow_change": True}, words)
        return OmegaConf.create(saved | {"allow_change": plain["allow_change"]})
    return OmegaConf.create(ForkPoint.parse(plain["fork"]).config(plain, words))


def show(config: DictConfig, root: type, flags: Namespace) -> int:
    """Prints a complete config for `--cfg`, or its keys for `--help`; returns the exit code."""
    if flags.cfg == "help":
        from postrain.cli.help import describe_config  # noqa: PLC0415 - start-up time

        print(describe_config(config, root))
        return 0
    parts = {"job": {}, "hydra": {"hydra": HydraConfig.get()}, "all": {"hydra": HydraConfig.get()}}[flags.cfg]
    whole = OmegaConf.create({**parts, **({} if flags.cfg == "hydra" else config)})
    package = flags.package if flags.package != "_global_" else None
    part = OmegaConf.select(whole, package) if package else whole
    if part is None:
        print(f"package '{package}' not found in config", file=sys.stderr)
        return 1
    if package and OmegaConf.is_config(part):
        print(f"# @package {package}")
    print(OmegaConf.to_yaml(part, resolve=flags.resolve).rstrip("\n") if OmegaConf.is_config(part) else part)
    return 0


def prepend_sweep_overrides(argv: Sequence[str]) -> list[str]:
    """The command line, preceded by the recorded one if it resumes a sweep.

    Raises ConfigError if sweep.yaml has no valid command line, or has restricted values that are not repeated.
    """
    given = [word.partition("=")[2].strip("'\"") for word in argv if word.startswith("resume=")]
    folders = [Path(directory.replace("\\", "")) for directory in given]
    if not folders or not (folders[-1] / "sweep.yaml").is_file():
        return list(argv)
    try:
        saved: Any = load_yaml(folders[-1] / "sweep.yaml")
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError):
        saved = None
    words = saved.get("words") if isinstance(saved, dict) else None
    flags = (saved.get("flags") or []) if isinstance(saved, dict) else []
    if not words or not all(
        isinstance(part, list) and all(isinstance(w, str) for w in part) for part in (words, flags)
    ):
        raise ConfigError(f"resume: {folders[-1]}/sweep.yaml does not record the command line; start a new sweep")
    current = {word.partition("=")[0] for word in argv}
    # The current command line replaces overrides whose secrets are masked in the file.
    words = [word for word in words if MASK not in word or word.partition("=")[0] not in current]
    if lost := [word.partition("=")[0] for word in words if MASK in word]:
        raise ConfigError(f"resume: {folders[-1]}/sweep.yaml contains no secrets; repeat {', '.join(lost)}=...")
    UntrustedFolder(folders[-1], override_items(argv)).check_overrides([*join_flags(flags), *words])
    return ["--multirun", *flags, *words, *(word for word in argv if word not in ("-m", "--multirun"))]


@contextmanager
def one_line_errors(config: DictConfig) -> Iterator[None]:
    """Prints a user's mistake as one line and ends the program, unless tracebacks are wanted."""
    try:
        yield
    except (ConfigError, OmegaConfBaseException) as error:
        if wants_traceback(config):
            raise
        sys.exit(report_error(error if isinstance(error, ConfigError) else to_config_error(error)))


def wants_traceback(config: DictConfig) -> bool:
    """Whether debug=true; False if the value of `debug` is invalid."""
    try:
        return config.get("debug") is True
    except (OmegaConfBaseException, RecursionError):
        return False


def check_session(config: DictConfig) -> None:
    """Raises ConfigError for problems of the keys in `Session`."""
    # Resolved one by one: a pipeline's stages refer to folders that do not exist yet.
    values = {field.name: config[field.name] for field in fields(Session) if field.name in config}
    check({key: resolved(value) if OmegaConf.is_config(value) else value for key, value in values.items()}, Session)


def run_job(run: Run, config: DictConfig) -> float | None:
    """Runs a single run, or a job of a sweep, whose folder is Hydra's output directory."""
    chosen = HydraConfig.get()
    output = Path(chosen.runtime.output_dir)
    directory = None if output == Path.cwd() else output
    sweep = directory.parents[1] if directory is not None else Path()
    group = "-".join(sweep.parts[-2:]) if (sweep / "sweep.yaml").is_file() else None
    from postrain.runs.folder import is_started  # noqa: PLC0415 - start-up time

    if directory is not None and "resume" in config and is_started(directory):
        # Launchers such as submitit repeat a requeued job as it was.
        config.resume = str(directory)
    return run(config, job_overrides(), group, directory)


def train(
    conf: Path,
    config: DictConfig,
    words: list[str],
    group: str | None,
    directory: Path | None,
    *,
    dry_run: bool = False,
) -> float | None:
    """Runs training, or the pipeline that the config selects or resumes; `dry_run` measures a run instead."""
    resume = config.get("resume")
    fork = config.get("fork")
    if dry_run and (resume or fork or config.get("pipeline")):
        what = "resume=" if resume else "fork=" if fork else "pipeline="
        raise ConfigError(f"{DRY_RUN}: measures a single new run; leave out {what}, or measure a stage by its settings")
    if fork and config.get("pipeline"):
        raise ConfigError("fork: continues a single training run; leave out pipeline=")
    if config.get("pipeline") or (isinstance(resume, str) and (Path(resume) / "pipeline.yaml").is_file()):
        check_session(config)
        # Imported here for a fast start-up, as above.
        from postrain.jobs.pipeline import execute as pipeline  # noqa: PLC0415

        shared = directory.parents[1] / "shared" if directory is not None and group else None
        return pipeline(config, words, conf, directory, group=group, shared=shared)
    plain = resolved(config)
    choice = HydraConfig.get().runtime.choices.get("method")
    if choice is None and not is_node(plain.get("method")) and not resume and not fork:
        print(f"Choose a method, as in: {PROGRAMS['config']} method=ppo\n\n" + listing(conf, "method"))
        sys.exit(2)
    plain["name"] = plain["name"] or choice
    from postrain.jobs.session import TRAIN, execute, measure  # noqa: PLC0415 - as above

    if dry_run:
        measure(plain, words)
        return None
    return execute(TRAIN, plain, overrides=words, group=group, directory=directory)


def report_error(error: ConfigError) -> int:
    """Prints a user's mistake, in which resume=FOLDER is completed to a full command; returns the exit code.

    Of several ranks on a machine the first prints it: all read the same command line.
    """
    if not is_first_of_node():
        return 2
    return print_error(masked_text(with_full_resume_commands(str(error))))
