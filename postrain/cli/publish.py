"""What `postrain merge` and `postrain export` share: the output folder, --push, the model's card and manifest."""

from __future__ import annotations

import json
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from postrain.errors import ConfigError, Parser, print_error


def run_command(work: Callable[[Namespace], None], parser: Parser, argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    # Before torch is imported, as in train.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        chosen = parser.parse_args(argv)
        # Also accepts the form of the other commands: model.path=runs/...
        chosen.run = chosen.run.removeprefix("model=").removeprefix("model.path=")
        work(chosen)
    except ConfigError as error:
        return print_error(error)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def add_arguments(parser: Parser, default_out: str) -> None:
    """The arguments of both commands."""
    parser.add_argument("run", metavar="RUN", help="a run folder, a model directory, a Hub name, or nano, smollm2, ...")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"output folder, which must not exist; {default_out}"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="make a repository that --push creates public")


def run_folder(name: str) -> Path | None:
    """The run folder of a name; None for a model that is not a run's."""
    path = Path(name).expanduser()
    path = path.parent if path.name == "model" else path
    return path if (path / "manifest.json").is_file() and (path / "model").is_dir() else None


def check_output(chosen: Namespace, default: str) -> Path:
    """The output folder: `--output`, else `default` in the run's folder.

    Raises ConfigError if it exists, or if --push cannot succeed.
    """
    run = run_folder(chosen.run)
    if chosen.output is None and run is None:
        raise ConfigError(f"{chosen.run} is not a run folder; name the output folder with --output DIR")
    out = chosen.output.expanduser() if chosen.output else (run or Path()) / default
    if out.exists():
        raise ConfigError(f"{out} exists; delete it, or name another folder with --output DIR")
    if chosen.public and not chosen.push:
        raise ConfigError("--public has no effect without --push OWNER/NAME")
    if chosen.push:
        from postrain.models.hub import check_push  # noqa: PLC0415 - start-up time

        check_push(chosen.push)
    return out


def push_folder(chosen: Namespace, out: Path) -> None:
    """Uploads the folder if asked."""
    if chosen.push:
        from postrain.models.hub import push  # noqa: PLC0415 - start-up time

        print(f"pushed  {push(out, chosen.push, private=not chosen.public)}")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises ConfigError if the output folder cannot be written; it is complete or absent."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error}); name a folder with enough space with --output DIR"
        ) from None


def manifest(program: str, argv: Sequence[str], resolved: Any, **results: Mapping[str, Any] | str) -> str:
    """The manifest of the folder: command, model, package versions and the results of checks."""
    from postrain.runs.manifest import code_state, versions  # noqa: PLC0415 - start-up time

    content = {
        "reproduce": shlex.join(["postrain", program, *argv]),
        "model": {"name": resolved.name, "source": resolved.source, "fingerprint": resolved.fingerprint},
        "git": code_state(),
        "versions": versions(),
        **results,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def derived_card(source: Path, *, kind: Any, title: str, scalar: bool, file: str = "", **sections: str) -> str:
    """The card of a converted model: that of `source` with another library, way to load it and added sections."""
    from postrain.models import card  # noqa: PLC0415 - start-up time

    known = card.metadata(source)
    data = card.front_matter(
        kind=kind,
        base_model=known.get("base_model"),
        license=known.get("license"),
        tags=[tag for tag in known.get("tags") or () if tag not in ("peft", "gguf")],
        datasets=known.get("datasets") or (),
        scalar=scalar,
    )
    earlier = card.read_card(source)
    text = card.render(data, title, {}, intro="")
    if earlier is not None:
        text = f"---\n{data.to_yaml()}\n---\n\n{earlier.text.lstrip()}"
    text = card.with_section(text, card.LOADING, card.loading(kind, scalar=scalar, file=file))
    for heading, body in sections.items():
        text = card.with_section(text, heading.replace("_", " "), body)
    return text
