"""From the command line to a job: what `train.py` and `python -m postrain.generate` call. It talks to Hydra.

Mistakes of a user end here as one line each on stderr and exit code 2; `debug=true` shows where they came from. Lists
of values and sweep=NAME make a sweep, whose jobs come through here again, in processes of their own.
"""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.cli.commands import ignore_closed_pipe
from postrain.cli.user_conf import use_user_conf
from postrain.config.arguments import full_hydra_errors, resolved, split_cfg_flags, to_config_error
from postrain.config.check import check
from postrain.config.groups import listing, listing_of_named_groups, overview
from postrain.config.masking import MASK, masked_text
from postrain.config.overrides import PROGRAMS, ParsedCommandLine, job_overrides, prepare
from postrain.config.paths import CONF, command
from postrain.config.schema import is_node
from postrain.config.tree import complete
from postrain.config.trust import UntrustedFolder, join_flags, override_items
from postrain.errors import ConfigError
from postrain.jobs.parent_watchdog import watch_parent

RESUME = re.compile(r"(?<![\w.'])resume=([^\s;,:'\"]+)")
"""Where a message tells to resume a folder."""
Run = Callable[[DictConfig, list[str], str | None, Path | None], float | None]
"""Does one job: its config, its words of the command line, the sweep it belongs to, and where its folder shall be."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """The keys that are read before a sweep or a pipeline has composed what it checks."""

    name: str | None
    debug: bool
    report: bool = True
    resume: str | None = None
    allow_change: bool = False
    paths: Mapping[str, str]


def start(argv: Sequence[str], conf: Path = CONF, *, config_name: str = "config", run: Run | None = None) -> int:
    """Runs one command line, with `run` in place of training; returns the exit code."""
    watch_parent()
    use_user_conf()
    try:
        with full_hydra_errors():
            return _start(argv, conf, config_name, run)
    except ConfigError as error:
        return report_error(error)
    except BrokenPipeError:
        return ignore_closed_pipe()
    except KeyboardInterrupt:
        # Once a run has begun, runs/interrupt.py answers to Ctrl-C.
        print("interrupted before the run started", file=sys.stderr)
        return 130
    except SystemExit as end:
        # runs/interrupt.py's Interrupted, which takes seconds to import. Behind everything else that is printed.
        if folder := getattr(end, "folder", None):
            print(f"interrupted; {_resume_hint(config_name, folder, argv[1:])}", file=sys.stderr)
        raise


def _resume_hint(config_name: str, folder: Path, argv: Sequence[str]) -> str:
    if config_name == "evaluate":
        return "an evaluation cannot be resumed; start it again"
    # How a sweep's jobs are launched is no part of the sweep.
    launched = [word for word in argv if word.startswith("hydra")] if (folder / "sweep.yaml").is_file() else []
    return masked_text(
        f"resume with: {PROGRAMS[config_name]} {resume_overrides(folder)} {shlex.join(launched)}".rstrip()
    )


def resume_overrides(folder: Path) -> str:
    """resume=FOLDER and the words that have to be said again with it, as a shell reads them."""
    from postrain.cli.confirmations import confirmations  # noqa: PLC0415 - start-up time

    return " ".join(map(_quoted, [f"resume={folder}", *confirmations(folder)]))


def _quoted(word: str) -> str:
    """For a shell; double quotes where they do, since values of Hydra's grammar hold single ones."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def _start(argv: Sequence[str], conf: Path, config_name: str, run: Run | None) -> int:
    code = 0
    shown = listing_of_named_groups(argv[1:], conf)
    line = (
        prepare(prepend_sweep_overrides(argv[1:]), conf, config_name) if shown is None else ParsedCommandLine([], None)
    )
    if shown is not None:
        print(shown)
        return 0
    words, shows = split_cfg_flags(line.arguments)
    sys.argv = [argv[0], *words]
    # Both for --help, in the primary config's hydra.help.template.
    OmegaConf.register_new_resolver("command", command, replace=True)
    OmegaConf.register_new_resolver("groups", lambda: overview(argv[1:], conf, config_name), replace=True)
    composed = False

    def one(config: DictConfig) -> float | None:
        return run_job(run or partial(train, conf), complete(config, root_of(config_name)))

    def job(config: DictConfig) -> float | None:
        nonlocal code, composed
        composed = True
        if shows is not None:
            root = root_of(config_name)
            code = show(complete(config, root), root, shows)
            return None
        with one_line_errors(config):
            if line.sweep is None:
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
    # Imported here so that --help and mistakes on the command line answer at once (start-up time).
    from postrain.jobs.session import PROGRAMS, TRAIN  # noqa: PLC0415

    return next((one.config for one in PROGRAMS.values() if one.primary == config_name), TRAIN.config)


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
    """The command line, behind that of the sweep which it goes on with."""
    said = [word.partition("=")[2].strip("'\"") for word in argv if word.startswith("resume=")]
    folders = [Path(directory.replace("\\", "")) for directory in said]
    if not folders or not (folders[-1] / "sweep.yaml").is_file():
        return list(argv)
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(folders[-1] / "sweep.yaml"))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError):
        saved = None
    words = saved.get("words") if isinstance(saved, dict) else None
    flags = (saved.get("flags") or []) if isinstance(saved, dict) else []
    if not words or not all(
        isinstance(said, list) and all(isinstance(w, str) for w in said) for said in (words, flags)
    ):
        raise ConfigError(f"resume: {folders[-1]}/sweep.yaml does not record the command line; start a new sweep")
    today = {word.partition("=")[0] for word in argv}
    # Words whose secrets were masked in the file come from today.
    words = [word for word in words if MASK not in word or word.partition("=")[0] not in today]
    if lost := [word.partition("=")[0] for word in words if MASK in word]:
        raise ConfigError(f"resume: {folders[-1]}/sweep.yaml contains no secrets; repeat {', '.join(lost)}=...")
    UntrustedFolder(folders[-1], override_items(argv)).check_overrides([*join_flags(flags), *words])
    return ["--multirun", *flags, *words, *(word for word in argv if word not in ("-m", "--multirun"))]


@contextmanager
def one_line_errors(config: DictConfig) -> Iterator[None]:
    """Ends the program with one line for a user's mistake."""
    try:
        yield
    except (ConfigError, OmegaConfBaseException) as error:
        if wants_traceback(config):
            raise
        sys.exit(report_error(error if isinstance(error, ConfigError) else to_config_error(error)))


def wants_traceback(config: DictConfig) -> bool:
    """Whether tracebacks are wanted; not where `debug` is a mistake itself."""
    try:
        return config.get("debug") is True
    except (OmegaConfBaseException, RecursionError):
        return False


def check_session(config: DictConfig) -> None:
    """Raises ConfigError for what is wrong with the keys that everything begins with."""
    # One by one: a pipeline's stages refer to folders that are not there yet.
    values = {field.name: config[field.name] for field in fields(Session) if field.name in config}
    check({key: resolved(value) if OmegaConf.is_config(value) else value for key, value in values.items()}, Session)


def run_job(run: Run, config: DictConfig) -> float | None:
    """A single run, or one of a sweep's: then Hydra has been told its folder."""
    chosen = HydraConfig.get()
    output = Path(chosen.runtime.output_dir)
    directory = None if output == Path.cwd() else output
    sweep = directory.parents[1] if directory is not None else Path()
    group = "-".join(sweep.parts[-2:]) if (sweep / "sweep.yaml").is_file() else None
    return run(config, job_overrides(), group, directory)


def train(conf: Path, config: DictConfig, words: list[str], group: str | None, directory: Path | None) -> float | None:
    """Training, or a pipeline where one is named."""
    resume = config.get("resume")
    if config.get("pipeline") or (isinstance(resume, str) and (Path(resume) / "pipeline.yaml").is_file()):
        check_session(config)
        # Imported here so that --help and mistakes on the command line answer at once (start-up time).
        from postrain.jobs.pipeline import execute as pipeline  # noqa: PLC0415

        shared = directory.parents[1] / "shared" if directory is not None and group else None
        return pipeline(config, words, conf, directory, group=group, shared=shared)
    plain = resolved(config)
    choice = HydraConfig.get().runtime.choices.get("method")
    if choice is None and not is_node(plain.get("method")) and not resume:
        print(f"Choose a method, as in: {PROGRAMS['config']} method=ppo\n\n" + listing(conf, "method"))
        sys.exit(2)
    plain["name"] = plain["name"] or choice
    from postrain.jobs.session import TRAIN, execute  # noqa: PLC0415 - as above

    return execute(TRAIN, plain, overrides=words, group=group, directory=directory)


def report_error(error: ConfigError) -> int:
    """Prints a user's mistake, with all that a command in it has to say; returns the exit code for it."""
    text = RESUME.sub(
        lambda found: resume_overrides(Path(found[1])) if Path(found[1]).is_dir() else found[0], str(error)
    )
    print(f"error: {masked_text(text)}", file=sys.stderr)
    return 2
