"""Models of the Hugging Face Hub: the local cache first, then the network, which is given seconds and not minutes.

Only safetensors, configs and tokenizers are ever asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from postrain.types import ConfigError

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# Subfolders hold other formats of the same weights; consolidated* are the same weights again.
UNWANTED = ["*/*", "consolidated*"]
REQUEST_SECONDS = 4.0
# Looking a name up in the DNS has no timeout of its own, so the whole question is given one.
PROBE_SECONDS = 8.0

Answer = TypeVar("Answer")


class Unreachable(Exception):
    """The Hub could not be asked; says why."""


def cache_directory() -> str:
    """Where downloads are kept."""
    return constants.HF_HUB_CACHE


def cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, which may be incomplete."""
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def fetch(repository: str, revision: str | None) -> Path:
    """Downloads what is missing. Raises Unreachable within PROBE_SECONDS where there is no network."""
    commit = _within(PROBE_SECONDS, lambda: _commit(repository, revision))
    try:
        return Path(snapshot_download(repository, revision=commit, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (HTTPError, OSError) as error:
        raise ConfigError(
            f"the download of {repository} broke off ({_one_line(error)}); run the command again, it goes on from there"
        ) from None


def _commit(repository: str, revision: str | None) -> str:
    """The commit to download, once it is known to hold safetensors."""
    if constants.is_offline_mode():
        raise Unreachable("HF_HUB_OFFLINE is set")
    at = f"{repository}@{revision}" if revision else repository
    try:
        found = HfApi().model_info(repository, revision=revision, timeout=REQUEST_SECONDS)
    except GatedRepoError:
        raise ConfigError(f"{at} asks for its licence to be accepted on its Hub page, then: hf auth login") from None
    except RevisionNotFoundError:
        raise ConfigError(f"the Hub has no revision {revision!r} of {repository}; check model.revision") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"the Hub has no model {repository} (or it is private); check model.path") from None
    except HfHubHTTPError as error:
        raise Unreachable(_one_line(error)) from None
    except (HTTPError, OSError) as error:
        raise Unreachable(_one_line(error)) from None
    if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or ()):
        raise ConfigError(f"{at} has no safetensors weights, and nothing else is loaded; look for a conversion of it")
    return found.sha or "main"


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """The answer of `ask`, which is left behind in a daemon thread when it takes longer."""
    answers: queue.Queue[Answer | Unreachable | ConfigError] = queue.Queue()

    def work() -> None:
        try:
            answers.put(ask())
        except (Unreachable, ConfigError) as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise Unreachable(f"no answer within {seconds:.0f} s") from None
    if isinstance(answer, Unreachable | ConfigError):
        raise answer
    return answer


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
