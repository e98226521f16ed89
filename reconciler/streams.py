"""The standard streams of this process, made fit to be written to whatever the caller left."""

from __future__ import annotations

import io
import os
import sys


def mend_streams() -> None:
    """Call it first: open the streams that are closed, and let any path be printed.

    A file that is opened while descriptor 2 is free would get that number, and what a library says
    on stderr would land in it, a filesystem image for one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave_stdout() -> None:
    """Call it after a failure: if stdout takes no more, its buffer is no second one."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def leave_stderr() -> None:
    """Call it last: what a full disk did not take of the log is no reason for an exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stderr.fileno())
