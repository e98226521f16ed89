"""mkfs.ext4, debugfs and e2fsck: finding them, running them, and what their success looks like.

The only module that starts processes. A child gets a process group of its own, no terminal, a
clean environment in the C locale, bounded output, a deadline, and dies with us. Hostile input can
crash or wedge these tools, so killed, hung, missing and failed are errors that can be told apart.
The stages `ext4`, `ownership` and `guest` use `Tools`; credential helpers are run by `run`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reconciler.errors import Code, HostError
from reconciler.ext4.debugfs import Script, complaints
from reconciler.ext4.imagefile import failure, plain_path
from reconciler.files import host_errors
from reconciler.model import printable

MINIMUM_VERSION = (1, 43)
"""The first e2fsprogs whose mkfs.ext4 has what a build needs: `-d` and `-E root_owner=`."""

FAKE_TIME = "1"
"""What the tools take for the present: the smallest second that e2fsprogs does not read as unset.

It ends in the superblock and in the creation times. Small, so that no host with a clock that has
fallen behind finds a filesystem from the future.
"""

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
            f"{name} was killed by {_signal_name(-status)}{_quoted(outputs[1])}",
            code=Code.TOOL_FAILED,
        )
    return Completed(status, outputs[0], outputs[1])


def _start(
    argv: list[str],
    *,
    environment: dict[str, str],
    stdin: int,
    stdout: int,
    directory: Path,
    setup: Callable[[], None],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=directory,
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


def _quoted(stderr: bytes) -> str:
    """The end of what a tool said, safe to print, behind a colon; empty when it said nothing."""
    tail = b" ".join(stderr[-2000:].split())
    return f": {printable(tail[-180:])}" if tail else ""


class Tools:
    """The e2fsprogs of this host, looked up when first needed and then remembered."""

    def __init__(self) -> None:
        self._found: dict[str, Path] = {}
        self._lock = threading.Lock()

    def require(self) -> None:
        """Find all tools and check their version. Raises HostError TOOL_MISSING or TOOL_TOO_OLD."""
        with self._lock:
            if not self._found:
                found = {name: find(*names) for name, names in _PROGRAMS.items()}
                _check_version(found["mkfs"])
                self._found = found

    def mkfs(
        self,
        image: Path,
        arguments: Sequence[str | Path],
        config: Path,
        *,
        timeout: float = 3600,
        checkpoint: Checkpoint = never,
    ) -> None:
        """Run mke2fs on `image`, which has its final size. config: the mke2fs.conf that counts."""
        completed = self._run(
            "mkfs",
            ["-t", "ext4", *arguments, plain_path(image)],
            timeout=timeout,
            checkpoint=checkpoint,
            environment={"MKE2FS_CONFIG": str(config)},
        )
        if completed.status != 0:
            raise failure(image, f"mkfs.ext4 failed{_quoted(completed.stderr)}")

    def debugfs_write(
        self,
        image: Path,
        script: Script,
        directory: Path,
        *,
        timeout: float = 1800,
        checkpoint: Checkpoint = never,
    ) -> None:
        """Run a script against `image`. directory: holds the files that it calls by number.

        Success here means that debugfs did not complain. That proves little: the caller syncs,
        checks the filesystem and reads back what it asked for. Two writers destroy an image.
        """
        text = script.text()
        path = directory / "script"
        path.write_text(text, encoding="ascii")
        completed = self._run(
            "debugfs",
            ["-w", "-f", path, plain_path(image)],
            timeout=timeout,
            checkpoint=checkpoint,
            directory=directory,
            keep_stdout=False,  # it echoes the script
        )
        complaint = complaints(completed.stderr)
        if complaint or completed.status != 0:
            raise failure(image, f"debugfs failed: {complaint or completed.status}")

    def e2fsck(self, image: Path, *, timeout: float = 1800, checkpoint: Checkpoint = never) -> None:
        """Check `image` without changing it. Raises HostError TOOL_FAILED on any finding."""
        completed = self._run(
            "e2fsck", ["-fn", plain_path(image)], timeout=timeout, checkpoint=checkpoint
        )
        if completed.status != 0:
            findings = b" ".join(_FINDING.findall(completed.stdout)[:3])[:180]
            said = findings or completed.stderr
            raise failure(image, f"e2fsck found errors in the new filesystem{_quoted(said)}")

    def _run(
        self,
        program: str,
        arguments: Sequence[str | Path],
        *,
        timeout: float,
        checkpoint: Checkpoint,
        environment: Mapping[str, str] | None = None,
        directory: Path = Path("/"),
        keep_stdout: bool = True,
    ) -> Completed:
        self.require()
        return run(
            [self._found[program], *arguments],
            timeout=timeout,
            checkpoint=checkpoint,
            environment=_PINNED | dict(environment or {}),
            directory=directory,
            keep_stdout=keep_stdout,
        )


_PROGRAMS = {"mkfs": ("mkfs.ext4", "mke2fs"), "debugfs": ("debugfs",), "e2fsck": ("e2fsck",)}
_PINNED = {
    "E2FSPROGS_FAKE_TIME": FAKE_TIME,
    "SOURCE_DATE_EPOCH": FAKE_TIME,
    "E2FSCK_TIME": FAKE_TIME,
    "MKE2FS_SKIP_PROGRESS": "1",
    "E2FSPROGS_UNDO_DIR": "none",
}
_FINDING = re.compile(rb"^(?!Pass [0-9]|\s*$|.*: \*\*\*\*).+", re.MULTILINE)
_INSTALL = "Install e2fsprogs >= 1.43."


def find(*names: str, resolution: str = "") -> Path:
    """The first of these programs on PATH, or where a user's PATH often does not look."""
    where = os.pathsep.join(filter(None, (os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES)))
    for name in names:
        found = shutil.which(name, path=where)
        if found:
            return Path(found).absolute()
    raise HostError(
        f"{names[0]} was not found", code=Code.TOOL_MISSING, resolution=resolution or _INSTALL
    )


def _check_version(mkfs: Path) -> None:
    said = run([mkfs, "-V"], timeout=30).stderr
    match = re.search(rb"mke2fs ([0-9]+)\.([0-9]+)", said)
    if match is None:
        raise HostError(
            f"{mkfs} does not tell its version{_quoted(said)}",
            code=Code.TOOL_TOO_OLD,
            resolution=_INSTALL,
        )
    if (int(match[1]), int(match[2])) < MINIMUM_VERSION:
        raise HostError(
            f"{mkfs} is version {match[1].decode()}.{match[2].decode()}, which is too old",
            code=Code.TOOL_TOO_OLD,
            resolution=_INSTALL,
        )
