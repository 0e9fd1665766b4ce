"""sandbox.py and sandbox_process.py: denied operations, limits, and clean-up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from postrain.rewards import sandbox_process
from postrain.rewards.sandbox import Limits, execute

LIMITS = Limits(seconds=1, memory_mb=256)
# Starts a process without an event of the audit hook: the only way that the hook does not deny.
SPAWN = """
import os, _posixsubprocess
def spawn(*arguments):
    arguments = [argument.encode() for argument in arguments]
    ends = os.pipe()
    _posixsubprocess.fork_exec(arguments, arguments[:1], True, (), None, None, -1, -1, -1, -1, -1, -1, *ends, False,
                               True, -1, None, None, None, -1, None, True)
"""
WAIT_FOR_SLEEPER = """
import time
for _ in range(400):
    if os.path.exists("asleep"):
        break
    time.sleep(0.01)
"""


def processes(mark: str) -> list[str]:
    """Command lines that contain a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:  # the process has ended
            continue
    return [line for line in found if mark in line]


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import ctypes; ctypes.CDLL(None)",
        "open('{outside}/new', 'w')",
        "open('{outside}/kept', 'a')",
        "import os; os.remove('{outside}/kept')",
        "import os; os.mkdir('{outside}/new')",
        "import os; os.symlink('{outside}/kept', 'link'); open('link', 'w')",
        "import os; os.rename('{outside}/kept', 'mine')",
        "import shutil; shutil.rmtree('{outside}')",
        "import os; os.chdir('{outside}'); open('new', 'w')",
        "import os; os.open('new', os.O_CREAT, dir_fd=os.open('{outside}', os.O_RDONLY))",
        "import os; os.remove('kept', dir_fd=os.open('{outside}', os.O_RDONLY | os.O_DIRECTORY))",
        "import os; os.mkdir('new', dir_fd=os.open('{outside}', os.O_PATH))",
        "for i in range(10_000): open(str(i), 'w')",
        "import os\n    for i in range(10_000): os.mkdir(str(i))",
    ],
)
def test_sandbox_denies_processes_network_and_outside_writes(program: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("content")
    program = f"try:\n    {program.format(outside=tmp_path)}\nexcept PermissionError:\n    refused = True\n"
    assert execute(program, tests=["assert refused"], limits=LIMITS).output == "1"
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "content"


def test_sandbox_has_no_mkfifo_and_mknod() -> None:
    program = "import os, posix\npresent = [hasattr(m, n) for m in (os, posix) for n in ('mkfifo', 'mknod')]"
    assert execute(program, tests=["assert not any(present)"], limits=LIMITS).output == "1"


def test_sandbox_allows_threads_asyncio_and_temporary_files() -> None:
    program = """
import asyncio, tempfile, threading
async def one():
    return 1
with tempfile.TemporaryDirectory() as folder:
    open(folder + "/file", "w").write(str(asyncio.run(one())))
    content = open(folder + "/file").read()
thread = threading.Thread(target=print)
thread.start()
"""
    assert execute(program, tests=["assert content == '1'"], limits=LIMITS).output == "1"


@pytest.mark.parametrize(
    "program",
    [
        "everything = [0] * 10**9",
        "file = open('big', 'w')\nwhile True:\n    file.write('a' * 2**16)\n    file.flush()",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "print('1' * 99)",
        "def f(: pass",
        "(" * 10_000,
        "a\0b",
    ],
)
def test_failing_program_passes_no_test(program: str) -> None:
    outcome = execute(program, tests=["assert f(1)"], limits=LIMITS)
    assert outcome.output in ("", "0")
    assert not outcome.limited


def test_sleeping_process_is_killed_after_wall_clock_limit() -> None:
    watcher = os.fork()
    if not watcher:  # a fork, since watch() uses the alarm of the process
        sleeper = os.fork()
        if not sleeper:
            time.sleep(99)
        os._exit(sandbox_process.watch(sleeper, 0.05))
    assert os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) == sandbox_process.OUT_OF_LIMITS


def test_tests_passed_before_an_exit_count() -> None:
    outcome = execute("import os", tests=["assert True", "assert False", "os._exit(3)", "pass"], limits=LIMITS)
    assert (outcome.output, outcome.status) == ("10", 3)


def test_fork_bomb_leaves_no_process() -> None:
    # 1 + 2 + 4 + … + 32 shells that cause no audit event, each in a new session; the last ones sleep
    last = "[ $0 -gt 5 ] && : > asleep && exec sleep 98765"
    shell = last + '; setsid sh -c "$1" $(($0 + 1)) "$1" & setsid sh -c "$1" $(($0 + 1)) "$1"'
    program = f"{SPAWN}\nspawn('/bin/sh', '-c', {shell!r}, '1', {shell!r})\n{WAIT_FOR_SLEEPER}"
    assert execute(program, tests=["assert os.path.exists('asleep')"], limits=LIMITS).output == "1"
    assert processes("sleep\x0098765") == []


def test_sweep_kills_orphans_without_a_process_namespace() -> None:
    ended = os.fork()
    if not ended:  # as isolate() in a container that forbids unshare
        sandbox_process.ctypes.CDLL(None).prctl(sandbox_process.ADOPT_ORPHANS, 1, 0, 0, 0)
        os.system("setsid setsid sleep 98766 & setsid sh -c 'sleep 98766 & sleep 98766' &")
        sandbox_process.sweep()
        os._exit(len(processes("sleep\x0098766")))
    assert os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]) == 0


def test_execute_returns_output_and_status() -> None:
    script = "print(int(input()) + 1)\nif __name__ == '__main__':\n    raise SystemExit(3)"
    outcome = execute(script, tests=None, stdin="4\n", limits=LIMITS)
    assert (outcome.output, outcome.status) == ("5\n", 3)


def test_sandbox_has_packages_no_secrets_and_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    checks = "print('SECRET' in os.environ, len(os.environ) < 5, list({'a', 'b', 'c'}), annotated_types.__name__)"
    script = f"import os, annotated_types\n{checks}"
    first, second = (execute(script, tests=None, limits=LIMITS).output for _ in range(2))
    assert first == second
    assert first.startswith("False True")
    assert "annotated_types" in first


def test_temporary_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    execute("import os\nos.mkdir('a')\nopen('a/b', 'w')\nos.chmod('a', 0)", tests=["pass"], limits=LIMITS)
    assert list(tmp_path.iterdir()) == []
