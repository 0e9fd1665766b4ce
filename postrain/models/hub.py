"""The Hugging Face Hub: the local cache first, then the network, which is given seconds and not minutes.

Of models, only safetensors, configs and tokenizers are ever asked for. Data sets are read in data/files.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from postrain.errors import ConfigError

ALLOW_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
# Subfolders hold other formats of the same weights; consolidated* are the same weights again.
IGNORE_PATTERNS = ["*/*", "consolidated*"]
REQUEST_SECONDS = 4.0
# Looking a name up in the DNS has no timeout of its own, so the whole question is given one.
PROBE_SECONDS = 8.0


class Unreachable(Exception):
    """The Hub could not be asked; says why."""


def cache_directory() -> str:
    """Where downloads are kept."""
    return constants.HF_HUB_CACHE


def cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, which may be incomplete."""
    try:
        return _snapshot(repository, revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ConfigError(f"model.path={repository}: neither a directory here nor a name the Hub allows") from None


def fetch(repository: str, revision: str | None) -> Path:
    """Downloads what is missing. Raises Unreachable within PROBE_SECONDS where there is no network."""
    with_timeout(PROBE_SECONDS, lambda: _check_available(repository, revision))
    try:
        return _snapshot(repository, revision, local_files_only=False)
    except (HTTPError, OSError) as error:
        raise ConfigError(
            f"the download of {repository} broke off ({one_line(error)}); run the command again, it goes on from there"
        ) from None


def _snapshot(repository: str, revision: str | None, *, local_files_only: bool) -> Path:
    return Path(
        snapshot_download(
            repository,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=ALLOW_PATTERNS,
            ignore_patterns=IGNORE_PATTERNS,
        )
    )


def _check_available(repository: str, revision: str | None) -> None:
    """Raises unless the Hub answers, lets us have the model, and has it as safetensors."""
    at = f"{repository}@{revision}" if revision else repository
    with hub_errors("model", repository, at, revision, keys=("model.path", "model.revision")):
        found = HfApi().model_info(repository, revision=revision, timeout=REQUEST_SECONDS)
    if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or ()):
        raise ConfigError(f"{at} has no safetensors weights, and nothing else is loaded; look for a conversion of it")


@contextmanager
def hub_errors(kind: str, repository: str, name: str, revision: str | None, *, keys: tuple[str, str]) -> Iterator[None]:
    """A question to the Hub inside the block: ConfigError for what it refuses, Unreachable where it does not answer.

    `keys` are those of the repository and of the revision.
    """
    if constants.is_offline_mode():
        raise Unreachable("HF_HUB_OFFLINE is set")
    try:
        yield
    except GatedRepoError:
        raise ConfigError(f"{name} asks for its licence to be accepted on its Hub page, then: hf auth login") from None
    except RevisionNotFoundError:
        raise ConfigError(f"the Hub has no revision {revision!r} of {repository}; check {keys[1]}") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"the Hub has no {kind} {repository} (or it is private); check {keys[0]}") from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise Unreachable(one_line(error)) from None


def with_timeout(seconds: float, ask: Callable[[], None]) -> None:
    """Raises Unreachable and ConfigError as `ask` raises; when it takes longer it is left behind in a daemon thread."""
    answers: queue.Queue[Unreachable | ConfigError | None] = queue.Queue()

    def work() -> None:
        try:
            ask()
            answers.put(None)
        except (Unreachable, ConfigError) as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        problem = answers.get(timeout=seconds)
    except queue.Empty:
        raise Unreachable(f"no answer within {seconds:.0f} s") from None
    if problem is not None:
        raise problem


def one_line(error: BaseException) -> str:
    """The text of an error, for a message of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
