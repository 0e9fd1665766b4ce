"""manifest.json: everything needed to reproduce a run.

Command, working directory, git state, resolved config, seeds, package versions, data and model fingerprints, hardware.
Keys, tokens and passwords are masked (config/masking.py). Command, git state, versions and hardware are those of the
first session; `sessions` has those of the later ones (sessions.py).
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from postrain import __version__
from postrain.config.masking import masked, masked_text
from postrain.config.paths import command
from postrain.jsonl import atomic_write_text, plain, read_json
from postrain.processor import usable_cores, usable_memory
from postrain.runs.folder import RunFolder, writing
from postrain.runs.sessions import MADE_WITH, later_sessions

PACKAGES = ("torch", "lightning", "transformers", "peft", "hydra-core", "tokenizers", "numpy", "datasets")
TRAIN = tuple(command("train").split())


def write_manifest(
    folder: RunFolder,
    *,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    seeds: Mapping[str, int],
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    stand_in_for: str | None = None,
    program: Sequence[str] = TRAIN,
    update: int = 0,
) -> None:
    """Writes manifest.json, or adds a session to it.

    `config`: resolved, in plain containers. `overrides`: the arguments after `program`. `data`: fingerprint and counts
    of the rows. `model`: name, source and fingerprint of the weights. `stand_in_for`: the requested model, if another
    one replaced it. `update`: the last update before this session.
    """
    command, earlier = reproduce(overrides, program), read_json(folder.manifest)
    now = {"git": code_state(), "versions": versions(), "hardware": hardware()}
    first = {name: earlier.get(name) for name in MADE_WITH} if earlier else now
    later = [*later_sessions(earlier), {"update": update, "command": command, **now}] if earlier else []
    manifest = {
        "reproduce": earlier.get("reproduce") if earlier else command,
        # Of the last session: it has written config.yaml anew, with absolute paths for those of an earlier directory.
        "started_in": str(Path.cwd()),
        "stand_in_for": stand_in_for,
        **({"fork": fork} if (fork := read_json(folder.fork)) else {}),
        "git": first["git"],
        "seeds": dict(seeds),
        "data": masked(plain(data)),
        "model": masked(dict(model)),
        "versions": first["versions"],
        "hardware": first["hardware"],
        **({"sessions": later} if later else {}),
        "config": masked(plain(config)),
    }
    with writing(folder.manifest):
        atomic_write_text(folder.manifest, json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")


def reproduce(overrides: Sequence[str], program: Sequence[str] = TRAIN) -> str:
    """The command that reproduces the run, with secrets masked."""
    return shlex.join([*program, *map(masked_text, overrides)])


@cache
def code_state() -> Mapping[str, Any] | None:
    """`git_state` of this package; read once, since a process runs the code that it has imported."""
    return git_state(Path(__file__).parent)


def git_state(directory: Path) -> Mapping[str, Any] | None:
    """Commit of a directory and whether it has uncommitted changes; None outside a git checkout."""
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))}


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python, of this package and of the packages that affect results."""
    found = {"python": platform.python_version(), "postrain": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Platform, CPU, cores, threads, memory and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU")
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(usable_memory() / 2**30, 1),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or "unknown"
