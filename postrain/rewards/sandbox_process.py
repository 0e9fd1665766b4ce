"""A script, started by sandbox.py in a process of its own: runs one program that a model wrote, under limits.

It keeps mistakes in: endless loops, full memories, forks, the network, files written or removed outside the working
folder. It is no jail against malice: the program shares the user's account, can read what the user can, and one that
searches this process for it finds where its score is written. Against that, train in a container or a virtual machine.
Standard library only, and nothing of postrain: it starts in 30 ms.
"""

from __future__ import annotations

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
"""Exit status of a program that ran out of time, and of one that was killed for what it took."""
PATIENCE = 5
"""Seconds on the clock for each second of processor time, since other programs may run too."""
FILE_BYTES, OPEN_FILES, PROCESSES = 1 << 20, 64, 64
MADE = 256
"""Files and folders that a program may make; with FILE_BYTES for each, what it may take of the disk."""
# They raise no audit event.
UNHEARD = ("mkfifo", "mknod")
NEW_USER, NEW_NET, NEW_PIDS = 0x10000000, 0x40000000, 0x20000000
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36
AF_UNIX = 1

# Audit events (docs.python.org, "Audit events table").
REFUSED = (
    {"os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.killpg", "pty.spawn"}
    | {"subprocess.Popen", "ctypes.dlopen", "ctypes.dlsym", "socket.bind", "socket.connect", "socket.sendto"}
    | {"socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
)
CHANGES = {
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
MAKES = {"os.mkdir", "os.link", "os.symlink"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(job_file: str) -> int:
    """Runs the job of a file, which it removes; the exit status is the program's, or OUT_OF_LIMITS."""
    with open(job_file) as file:
        job = json.load(file)
    os.unlink(job_file)
    sys.path += job["packages"]
    isolate()
    program = os.fork()
    if not program:
        run(job)
        return 0
    status = watch(program, job["seconds"] * PATIENCE)
    sweep()
    return status


def isolate() -> None:
    """No network and a process tree of its own, which is killed when its parent dies.

    The kernel may refuse the first two, as it does in many containers: then `guard` and `sweep` are all there is.
    """
    kernel = ctypes.CDLL(None)
    kernel.unshare(NEW_USER | NEW_NET | NEW_PIDS)
    kernel.prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    kernel.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def run(job: dict[str, Any]) -> None:
    """The program, in the forked process; with tests, one byte for each of them on what was standard output."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    tests = job["tests"]
    report = os.dup(1)
    if tests is not None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
    limit(job["seconds"], job["memory_mb"])
    for module in (os, sys.modules["posix"]):
        for name in UNHEARD:
            delattr(module, name)
    sys.addaudithook(guard(os.path.realpath(os.getcwd())))
    # Tests import the program, as it were; without tests it is run.
    module = ModuleType("__main__" if tests is None else "program")
    sys.modules[module.__name__] = module
    exec(compile(job["program"], "program.py", "exec"), module.__dict__)
    for test in tests or ():
        os.write(report, b"1" if passes(test, module.__dict__) else b"0")


def passes(test: str, names: dict[str, Any]) -> bool:
    """Whether a test runs to its end; sys.exit() in the program does not end it well."""
    with suppress(BaseException):
        exec(compile(test, "tests.py", "exec"), names)
        return True
    return False


def limit(seconds: int, memory_mb: int) -> None:
    """Processor time, memory, files and (but for root) processes of this process and its children, for ever."""
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
        # Hard and soft alike: the first process of a tree of its own ignores the softer signal.
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses other processes, the network, changes outside `folder` and too many files in it.

    Folders outside cannot be opened: what is named relative to one (dir_fd) would lie outside, and events do not tell.
    """
    made = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        makes = event in MAKES or (event == "open" and bool((arguments[2] or 0) & os.O_CREAT))
        made += makes
        if makes and made > MADE:
            raise PermissionError(f"a program that is being scored may make {MADE} files")
        if event == "open" and not _inside(arguments[0], folder) and os.path.isdir(arguments[0]):
            raise PermissionError("a folder outside is not opened to a program that is being scored")
        outward = event == "socket.__new__" and arguments[1] != AF_UNIX
        writes = event == "open" and bool((arguments[2] or 0) & WRITING)
        paths = arguments[:1] if writes else arguments if event in CHANGES else ()
        if event in REFUSED or outward or not all(_inside(path, folder) for path in paths):
            raise PermissionError(f"{event} is not allowed to a program that is being scored")

    return hook


def _inside(path: Any, folder: str) -> bool:
    """True for what is no path too: a mode, a time, the number of an open file."""
    if not isinstance(path, str | bytes | os.PathLike):
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == os.devnull or os.path.commonpath([real, folder]) == folder


def watch(program: int, seconds: float) -> int:
    """Waits for a process, kills it after `seconds` on the clock, and returns its exit status or OUT_OF_LIMITS."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(program, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return OUT_OF_LIMITS if status == -signal.SIGKILL else abs(status)


def sweep() -> None:
    """Ends what the program left behind, whose parent this process has become."""
    while True:
        for child in children():
            os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> Iterator[int]:
    """The processes whose parent this one is."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{number}/stat") as file:  # one that has just ended is not there
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
