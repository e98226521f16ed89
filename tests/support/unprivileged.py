"""Run a command as a normal user, also from tests that run as root.

Where the interpreter lies in a directory that only root may enter, the command gets a private view
of the file tree in which that directory holds nothing but the interpreter and others may enter.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import reconciler

NOBODY = 65534


@contextmanager
def home() -> Iterator[Path]:
    """A fresh directory that the normal user owns and can reach."""
    path = Path(tempfile.mkdtemp(prefix="banger-home-", dir="/tmp"))
    path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run(
    argv: list[str | Path], home: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `argv` with an environment of HOME, TMPDIR, PATH and `env`."""
    environment = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": os.environ["PATH"],
        **(env or {}),
    }
    command = [str(word) for word in argv]
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "sh", "-euc", _script(command)]
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, check=False
    )


def _script(command: list[str]) -> str:
    package = Path(reconciler.__file__).parent.parent
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), package.resolve()}
    locked = {gate for path in needed if (gate := _gate(path))}
    inside = sorted(path for path in needed if any(path.is_relative_to(gate) for gate in locked))
    lines = ["side=$(mktemp -d)", "mount -t tmpfs -o mode=755 side $side"]
    for number, path in enumerate(inside):
        lines.append(f"mkdir $side/{number}; mount --bind {shlex.quote(str(path))} $side/{number}")
    lines += [
        f"mount -t tmpfs -o mode=755 gate {shlex.quote(str(gate))}" for gate in sorted(locked)
    ]
    for number, path in enumerate(inside):
        there = shlex.quote(str(path))
        lines.append(f"mkdir -p {there}; mount --bind $side/{number} {there}")
    user = f"--reuid={NOBODY} --regid={NOBODY} --clear-groups"
    lines.append(f"exec setpriv {user} -- {shlex.join(command)}")
    return "\n".join(lines)


def _gate(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that others may not enter."""
    for directory in reversed([path, *path.parents]):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None
