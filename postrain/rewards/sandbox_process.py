"""A script that sandbox.py starts in a separate process: runs one program that a model wrote, under limits.

It contains mistakes: endless loops, excessive memory, forks, network access, files written or removed outside the
working folder. It does not protect against malicious code: the program runs under the user's account, can read what the
user can, and can find where this process writes its score. Against that, train in a container or a virtual machine.
Standard library only and no import of postrain: it starts in 30 ms.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

OUT_OF_LIMITS = 124
"""Exit status of a program that exceeded a limit."""
WALL_PER_CPU_SECOND = 5
"""Wall-clock seconds per CPU second, since other programs may run too."""
FILE_BYTES, OPEN_FILES, PROCESSES = 1 << 20, 64, 64
MAX_FILES = 256
"""Files and folders that a program may create; times FILE_BYTES, the limit of its disk space."""
# Calls without an audit event.
UNAUDITED = ("mkfifo", "mknod")
NEW_USER, NEW_NET, NEW_PIDS = 0x10000000, 0x40000000, 0x20000000
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36
AF_UNIX = 1

# Audit events (docs.python.org, "Audit events table").
DENIED_EVENTS = (
    {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.killpg", "pty.spawn"}
    | {"subprocess.Popen", "ctypes.dlopen", "ctypes.dlsym", "socket.bind", "socket.connect", "socket.sendto"}
    | {"socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
)
WRITE_EVENTS = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
} | {"os.utime", "os.setxattr", "os.removexattr", "shutil.rmtree"}
CREATE_EVENTS = {"os.mkdir", "os.link", "os.symlink"}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(job_file: str) -> int:
    """Runs the job in a file and removes the file; returns the program's exit status, or OUT_OF_LIMITS."""
    with open(job_file) as file:
        job = json.load(file)
    os.unlink(job_file)
    sys.path += job["packages"]
    isolate()
    program = os.fork()
    if not program:
        run(job)
        return 0
    status = watch(program, job["seconds"] * WALL_PER_CPU_SECOND)
    sweep()
    return status


def isolate() -> None:
    """Disables the network and opens a process namespace that is killed when its parent dies.

    The kernel may refuse the first two, as in many containers; then only `guard` and `sweep` apply.
    """
    kernel = ctypes.CDLL(None)
    kernel.unshare(NEW_USER | NEW_NET | NEW_PIDS)
    kernel.prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    kernel.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def run(job: dict[str, Any]) -> None:
    """Runs the program in the forked process; with tests, writes one byte per test to the original standard output."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    tests = job["tests"]
    report = os.dup(1)
    if tests is not None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
    limit(job["seconds"], job["memory_mb"])
    # Otherwise set by `site`, which is not imported.
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    for module in (os, sys.modules["posix"]):
        for name in UNAUDITED:
            delattr(module, name)
    sys.addaudithook(guard(os.path.realpath(os.getcwd())))
    # With tests the program is imported, so __name__ is not "__main__".
    module = ModuleType("__main__" if tests is None else "program")
    sys.modules[module.__name__] = module
    exec(compile(job["program"], "program.py", "exec"), module.__dict__)
    for test in tests or ():
        os.write(report, b"1" if passes(test, module.__dict__) else b"0")


def passes(test: str, names: dict[str, Any]) -> bool:
    """Whether a test runs to its end; sys.exit() in the program counts as a failure."""
    with suppress(BaseException):
        exec(compile(test, "tests.py", "exec"), names)
        return True
    return False


def limit(seconds: int, memory_mb: int) -> None:
    """Limits CPU time, memory, files and (except for root) processes of this process and its children."""
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        most = resource.getrlimit(kind)[1]
        # Soft limit = hard limit: the first process of a namespace ignores the signal of the soft one.
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that denies other processes, the network, writes outside `folder` and too many files in it.

    Folders outside cannot be opened, since paths relative to one (dir_fd) would lie outside without an event that shows
    it.
    """
    created = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal created
        creates = event in CREATE_EVENTS or (event == "open" and bool((arguments[2] or 0) & os.O_CREAT))
        created += creates
        if creates and created > MAX_FILES:
            raise PermissionError(f"a program that is being scored may make {MAX_FILES} files")
        if event == "open" and not _inside(arguments[0], folder) and os.path.isdir(arguments[0]):
            raise PermissionError("a folder outside is not opened to a program that is being scored")
        outward = event == "socket.__new__" and arguments[1] != AF_UNIX
        writes = event == "open" and bool((arguments[2] or 0) & WRITE_FLAGS)
        paths = arguments[:1] if writes else arguments if event in WRITE_EVENTS else ()
        if event in DENIED_EVENTS or outward or not all(_inside(path, folder) for path in paths):
            raise PermissionError(f"{event} is not allowed to a program that is being scored")

    return hook


def _inside(path: Any, folder: str) -> bool:
    """Also True for arguments that are not paths: a mode, a time, a file descriptor."""
    if not isinstance(path, str | bytes | os.PathLike):
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == os.devnull or os.path.commonpath([real, folder]) == folder


def watch(program: int, seconds: float) -> int:
    """Waits for a process, kills it after `seconds` of wall-clock time; returns its exit status or OUT_OF_LIMITS."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(program, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return OUT_OF_LIMITS if status == -signal.SIGKILL else abs(status)


def sweep() -> None:
    """Kills processes that the program left behind; this process has adopted them."""
    while True:
        for child in children():
            os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> Iterator[int]:
    """Ids of the child processes."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{number}/stat") as file:  # a process that has just ended is missing
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
