"""The Hugging Face Hub: the local cache first, then the network with a timeout of seconds; uploads on request.

Downloads only safetensors, configs, tokenizers and cards of models. Data sets are read in data/files.py.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from postrain.errors import ConfigError, one_line

ALLOW_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
# Subfolders and consolidated* hold the same weights in other formats.
IGNORE_PATTERNS = ["*/*", "consolidated*"]
REQUEST_SECONDS = 4.0
# DNS lookups have no timeout, so the whole request gets one.
PROBE_SECONDS = 8.0


class Unreachable(Exception):
    """The Hub could not be reached; the message gives the reason."""


def cache_directory() -> str:
    """The directory of downloads."""
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
    """Downloads missing files. Raises Unreachable within PROBE_SECONDS without a network."""
    with_timeout(PROBE_SECONDS, lambda: _check_available(repository, revision))
    try:
        return _snapshot(repository, revision, local_files_only=False)
    except (HTTPError, OSError) as error:
        raise ConfigError(
            f"the download of {repository} failed ({one_line(error)}); run the command again to continue it"
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
    """Raises unless the Hub responds, grants access to the model and has it as safetensors."""
    at = f"{repository}@{revision}" if revision else repository
    with hub_errors("model", repository, at, revision, keys=("model.path", "model.revision")):
        found = HfApi().model_info(repository, revision=revision, timeout=REQUEST_SECONDS)
    if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or ()):
        raise ConfigError(f"{at} has no safetensors weights, the only supported format; use a converted repository")


@contextmanager
def hub_errors(kind: str, repository: str, name: str, revision: str | None, *, keys: tuple[str, str]) -> Iterator[None]:
    """Turns errors of a Hub request into ConfigError (refused) or Unreachable (no response).

    `keys` are the config keys of the repository and of the revision.
    """
    if constants.is_offline_mode():
        raise Unreachable("HF_HUB_OFFLINE is set")
    try:
        yield
    except GatedRepoError:
        raise ConfigError(f"{name} is gated: accept its license on its Hub page, then run hf auth login") from None
    except RevisionNotFoundError:
        raise ConfigError(f"the Hub has no revision {revision!r} of {repository}; check {keys[1]}") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"the Hub has no {kind} {repository} (or it is private); check {keys[0]}") from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise Unreachable(one_line(error)) from None


def check_push(repository: str) -> None:
    """Raises ConfigError for a name that is not OWNER/NAME, or without a token."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise ConfigError(f"--push {repository}: expected OWNER/NAME, as in my-account/my-model")
    if constants.is_offline_mode():
        raise ConfigError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it, or leave out --push")
    if not get_token():
        raise ConfigError(f"--push {repository}: not logged in; run hf auth login, or set HF_TOKEN")


def push(directory: Path, repository: str, *, private: bool) -> str:
    """Uploads a folder to a model repository, which is created if it does not exist; returns its address."""
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=repository, commit_message="Upload from postrain")
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise ConfigError(
            f"--push {repository}: {one_line(error)}; the folder {directory} is complete, upload it with: "
            f"hf upload {repository} {directory}"
        ) from None
    return str(url)


def with_timeout(seconds: float, request: Callable[[], None]) -> None:
    """Runs `request` in a daemon thread and reraises its error; raises Unreachable after `seconds`."""
    results: queue.Queue[Unreachable | ConfigError | None] = queue.Queue()

    def work() -> None:
        try:
            request()
            results.put(None)
        except (Unreachable, ConfigError) as error:
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        problem = results.get(timeout=seconds)
    except queue.Empty:
        raise Unreachable(f"no answer within {seconds:.0f} s") from None
    if problem is not None:
        raise problem
