"""Settings of all tests (passive OpenMP threads, no network, a temporary cache) and their distribution over workers."""

import gc
import os
import re
import signal
import sys
from collections.abc import Iterator

# Before torch is imported: OpenMP threads that spin make two processes on two cores ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("COLUMNS", "120")

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import fast_compose

# On again after the collection of tests, whose passes then skip the 800,000 objects of imported modules.
gc.disable()
# Many processes compile the same modules, and pytest rewrites those of the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session", autouse=True)
def _temporary_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache. Each worker has a temporary one."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("POSTRAIN_CACHE", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patched.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_runs() -> Iterator[None]:
    """Nearly every test of a run composes its config and loads the bundled model."""
    from tests import shared_models  # noqa: PLC0415 - the process that distributes the tests does without

    with pytest.MonkeyPatch.context() as patched:
        fast_compose.apply(patched)
        shared_models.apply(patched)
        yield


@pytest.fixture(scope="session", autouse=True)
def _restored_signal_handlers() -> None:
    """A suite in the background (`nohup make test &`) inherits ignored SIGINT and SIGHUP, which tests send."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """In the processes that run tests: one thread each, and the garbage collector on again, for large generations."""
    import torch  # noqa: PLC0415 - the process that distributes the tests does without

    torch.set_num_threads(1)
    gc.freeze()
    # 2 % of the suite's time: configs are many small objects, and few of them are cyclic garbage.
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Top-level files, which test whole runs, go first; the short tests at the end let all workers finish together."""
    items.sort(key=lambda item: len(item.path.parts))


# Both compose every option, and share the configs that training_runs.py keeps.
TOGETHER = {"tests/config/test_trust.py": "tests/test_configs.py"}


class FileScheduling(LoadScopeScheduling):
    """A worker gets one file at a time, so that its fixtures are built once; of test_methods.py, one method at a time.

    The group marks of xdist 3.8 have no effect from pytest 9.2 on.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        method = re.search(r"\[(\w+)", test) if file.endswith("test_methods.py") else None
        return f"{file}[{method[1]}]" if method else TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Keeps the order of collection. xdist sorts by the number of tests, which does not predict their duration."""
    config.option.loadscopereorder = False
    return FileScheduling(config, log)
