"""The one runner of child processes: started clean, watched, bounded, and never left behind.

The only module that starts processes. A child gets a process group of its own, no terminal, a
clean environment in the C locale, bounded output, a deadline, and dies with us. Hostile input can
crash or wedge what it runs, so killed, hung, missing and failed are errors that can be told apart.
`tools` runs e2fsprogs by it, `logins` credential helpers, `oci.beside` our own decompression.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reconciler.errors import Code, HostError
from reconciler.files import host_errors
from reconciler.text import printable

SYSTEM_DIRECTORIES = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
)
_OUTPUT_LIMIT = 64 * 1024
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1

Checkpoint = Callable[[], None]
"""Called again and again while a child runs; what it raises ends the child and goes up."""


class _OutOfTime(Exception):
    """The deadline has passed: from the loop that waits up to `run`."""


def never() -> None:
    """The checkpoint of work that nobody interrupts."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A child that ran to its end. `stdout` and `stderr` hold at most the last 64 KiB of each."""

    status: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    checkpoint: Checkpoint = never,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    directory: Path = Path("/"),
    keep_stdout: bool = True,
    may_fork: bool = False,
) -> Completed:
    """Run a program to its end and return its exit status, whatever that is.

    argv: the program's absolute path and its arguments. timeout: seconds. environment: the whole of
    it, but for LC_ALL and a PATH. stdin: at most 64 KiB. may_fork: False forbids an unprivileged
    child to start others (RLIMIT_NPROC), which stops the shell escape of debugfs.

    Raises HostError: TOOL_MISSING when it cannot be started, TOOL_FAILED when a signal ended it or
    the time ran out. Whatever happens, nothing of its process group survives the call.
    """
    name = Path(argv[0]).name
    process = _start(
        [str(part) for part in argv],
        environment={"PATH": ":".join(SYSTEM_DIRECTORIES), **(environment or {}), "LC_ALL": "C"},
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE if keep_stdout else subprocess.DEVNULL,
        directory=directory,
        setup=_child_setup(may_fork),
    )
    try:
        with host_errors(f"cannot run {name}"), process:
            outputs = _attend(process, stdin, time.monotonic() + timeout, checkpoint)
            status = process.wait()
    except _OutOfTime:
        raise HostError(
            f"{name} did not end within {timeout:g} seconds and was killed", code=Code.TOOL_FAILED
        ) from None
    if status < 0:
        raise HostError(
            f"{name} was killed by {_signal_name(-status)}{quoted(outputs[1])}",
            code=Code.TOOL_FAILED,
        )
    return Completed(status, outputs[0], outputs[1])


def _start(
    argv: Sequence[str],
    *,
    environment: dict[str, str],
    stdin: int,
    stdout: int,
    stderr: int = subprocess.PIPE,
    directory: Path,
    setup: Callable[[], None],
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd=directory,
            pass_fds=descriptors,
            process_group=0,
            preexec_fn=setup,  # noqa: PLW1509 - a few system calls, see there
        )
    except (FileNotFoundError, PermissionError) as error:
        raise HostError(
            f"cannot start {printable(argv[0])}: {error.strerror}", code=Code.TOOL_MISSING
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"cannot start {printable(argv[0])}: {error}") from None


def _child_setup(may_fork: bool) -> Callable[[], None]:
    """What the child does between fork and exec.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends, not the process. That is what is
    wanted: `run` stays in that thread until the child is reaped. PyDLL, because it calls without
    letting go of the interpreter lock, which another thread may have held at the fork.
    """
    prctl = ctypes.PyDLL(None, use_errno=False).prctl
    parent = os.getpid()
    limit = not may_fork and os.geteuid() != 0

    def setup() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(137)
        if limit:
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    return setup


def _attend(
    process: subprocess.Popen[bytes], stdin: bytes, deadline: float, checkpoint: Checkpoint
) -> tuple[bytes, bytes]:
    """Feed and drain the child until it ends. Its group is killed on every way out of here."""
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    try:
        _feed(process, stdin)
        with contextlib.closing(selectors.DefaultSelector()) as selector:
            pidfd = os.pidfd_open(process.pid)
            try:
                selector.register(pidfd, selectors.EVENT_READ, None)
                _register(selector, process.stdout, kept["stdout"])
                _register(selector, process.stderr, kept["stderr"])
                _pump(selector, deadline, checkpoint)
            finally:
                os.close(pidfd)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return bytes(kept["stdout"]), bytes(kept["stderr"])


def _feed(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(stdin)


def _register(selector: selectors.BaseSelector, pipe: IO[bytes] | None, kept: bytearray) -> None:
    if pipe is not None:
        os.set_blocking(pipe.fileno(), False)
        selector.register(pipe, selectors.EVENT_READ, kept)


def _pump(selector: selectors.BaseSelector, deadline: float, checkpoint: Checkpoint) -> None:
    """Read until the process has ended and its output is read; nobody waits for its helpers."""
    ended = False
    while not ended:
        checkpoint()
        if time.monotonic() > deadline:
            raise _OutOfTime
        ready = [key for key, _ in selector.select(_POLL_SECONDS)]
        ended = any(key.data is None for key in ready)
        # Once it has ended, every pipe is read to its present end, ready or not.
        for key in list(selector.get_map().values()) if ended else ready:
            if key.data is not None:
                _drain(selector, key, to_the_end=ended)


def _drain(
    selector: selectors.BaseSelector, key: selectors.SelectorKey, *, to_the_end: bool
) -> None:
    budget = 4 * _OUTPUT_LIMIT if to_the_end else 1
    while budget > 0:
        try:
            chunk = os.read(key.fd, _OUTPUT_LIMIT)
        except BlockingIOError:
            return
        if not chunk:
            selector.unregister(key.fileobj)
            return
        budget -= len(chunk)
        key.data.extend(chunk)
        del key.data[:-_OUTPUT_LIMIT]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def quoted(stderr: bytes) -> str:
    """The end of what a tool said, safe to print, behind a colon; empty when it said nothing."""
    tail = b" ".join(stderr[-2000:].split())
    return f": {printable(tail[-180:])}" if tail else ""


def can_start() -> bool:
    """Whether this interpreter knows how to start another of its kind."""
    return bool(sys.executable)


class Companion:
    """A child that runs `main` of a module of ours beside us, until it ends or is killed.

    It is this interpreter with the same modules. It dies with the thread that started it. Its
    streams lead nowhere: what it has to say goes through the descriptors that it is given.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """words: what `main` gets. descriptors: they stay open, with their numbers.

        Raises HostError.
        """
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is here
        program = _PROGRAM.format(path, module)
        self._process = _start(
            [sys.executable, "-I", "-S", *_bytecode(), "-c", program, *words],
            environment={
                "PATH": ":".join(SYSTEM_DIRECTORIES),
                **(environment or {}),
                "LC_ALL": "C",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            directory=Path("/"),
            setup=_child_setup(may_fork=True),
            descriptors=descriptors,
        )

    def kill(self) -> None:
        """End it, if it has not ended, and reap it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def end(self) -> str:
        """How it ended, for people; it must have closed its descriptors."""
        status = self._process.wait()
        return f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with {status}"


_PROGRAM = "import sys;sys.path={0!r};from {1} import main;main(sys.argv[1:])"


def _bytecode() -> list[str]:
    """The same habits with compiled modules as ours, since -I forgets the environment."""
    prefix = ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
    return [*prefix, "-B"] if sys.dont_write_bytecode else prefix
