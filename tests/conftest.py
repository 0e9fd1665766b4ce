"""What all tests share: quiet cores, no network, no colours, a cache of their own; and how two workers divide them."""

import os
import re
import signal
from collections.abc import Iterator

# Before torch is imported: OpenMP threads that spin make two processes on two cores ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("COLUMNS", "120")

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs keep for later ones is neither sought in the user's cache nor left there; each worker has its own."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("POSTRAIN_CACHE", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patched.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> None:
    """A suite in the background (`nohup make test &`) inherits that SIGINT and SIGHUP are ignored; tests send them."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs, whose tests lie at the top, go first; the many short ones then let all workers end together."""
    items.sort(key=lambda item: len(item.path.parts))


class Groups(LoadScopeScheduling):
    """A worker takes a file at a time, whose fixtures are then made once; of test_methods.py, a method at a time.

    xdist's own marks for groups (3.8) are silently without effect from pytest 9.2 on.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        method = re.search(r"\[(\w+)", test) if file.endswith("test_methods.py") else None
        return f"{file}[{method[1]}]" if method else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """In the order of collection: xdist's own is by the number of tests, which says little about how long they take."""
    config.option.loadscopereorder = False
    return Groups(config, log)
