"""Data sets of the Hugging Face Hub through `datasets`: the network if it answers within seconds, else the cache.

`datasets` by itself retries for 23 seconds before it says that there is no network.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client uses
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from postrain.data.readers import Table, make_table
from postrain.types import ConfigError

REQUEST_SECONDS = 4.0
# Looking a name up in the DNS has no timeout of its own, so the whole question is given one.
PROBE_SECONDS = 7.0


def load_split(repo: str, subset: str | None, split: str, revision: str | None) -> Table:
    """All rows of one split."""
    trouble = None if Path(repo).is_dir() else _trouble(repo, revision)
    name = "/".join(part for part in (repo, subset) if part)
    # Start-up time: only runs with Hub data pay for the import.
    import datasets.config  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        # RuntimeError: it has a loading script, which `datasets` 5 never runs.
        with _offline(datasets.config, trouble is not None):
            found = datasets.load_dataset(repo, subset, split=split, revision=None if trouble else revision)
        return make_table(f"{name} ({split})", "row", enumerate(rows_of(found)))
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError, HTTPError) as error:
        raise ConfigError(_refusal(repo, subset, split, trouble, error)) from None


def rows_of(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset` as plain values: images and audio stay bytes, which are refused by name."""
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        yield from table.to_pylist()


def _refusal(repo: str, subset: str | None, split: str, trouble: str | None, error: Exception) -> str:
    if trouble:
        return (
            f"data set {repo}: not in the cache {constants.HF_HOME}, and the Hub cannot be asked ({trouble}); run once "
            "where there is a network and copy that cache, or give a file with data=jsonl data.path=FILE"
        )
    wanted = f"the split {split}" + (f" of the subset {subset}" if subset else "")
    return f"data set {repo}: {wanted} cannot be read ({_one_line(error)}); check data.source"


@contextmanager
def _offline(config: Any, offline: bool) -> Iterator[None]:
    """Lets `datasets` look into its cache at once instead of trying a network that is known not to answer."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _trouble(repo: str, revision: str | None) -> str | None:
    """Why the Hub cannot be asked, None when it answers. Raises ConfigError when it says that there is no such set."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    answers: queue.Queue[str | ConfigError | None] = queue.Queue()
    threading.Thread(target=lambda: answers.put(_ask(repo, revision)), daemon=True).start()
    try:
        answer = answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"no answer within {PROBE_SECONDS:.0f} s"
    if isinstance(answer, ConfigError):
        raise answer
    return answer


def _ask(repo: str, revision: str | None) -> str | ConfigError | None:
    try:
        HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    except GatedRepoError:
        return ConfigError(f"data set {repo} asks for its licence to be accepted on its Hub page, then: hf auth login")
    except RevisionNotFoundError:
        return ConfigError(f"the Hub has no revision {revision!r} of {repo}; check data.source.revision")
    except RepositoryNotFoundError:
        return ConfigError(f"the Hub has no data set {repo} (or it is private); check data.source.repo")
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        return _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
