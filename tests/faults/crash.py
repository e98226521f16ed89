"""Run as a program: a pass that dies at the n-th step towards the disk, then one that heals; all n.

    python crash.py ROOT FIRST STRIDE CONFIG [TEMPLATE]

A step is anything that changes files or the database: open for writing, write, fsync, rename,
renameat2, link, unlink, mkdir, rmdir, truncate, a statement of SQLite, the start of a child. ROOT
gets `state`, `cache` and `tmp` afresh for every n, copied from TEMPLATE when there is one. Prints
each problem, then the number of points tried. Forks of one process: no start-up is paid twice.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.invariants import artifact_problems, problems

import reconciler.cli
import reconciler.config.load
import reconciler.files
import reconciler.reconcile
import reconciler.render
import reconciler.report
from reconciler.store import Store

KILLED = 137
_EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "subprocess.Popen",
)


class Countdown:
    """Dies at the n-th step."""

    def __init__(self, number: int) -> None:
        self.left = number

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os._exit(KILLED)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & 0x3
        if event in _EVENTS or writing:
            self.step()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.step()
            return function(*arguments, **named)

        return counted

    def arm(self) -> None:
        sys.addaudithook(self.audit)
        os.fsync = self.before(os.fsync)
        os.write = self.before(os.write)
        reconciler.files._renameat2 = self.before(reconciler.files._renameat2)
        connect = sqlite3.connect

        def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
            database: sqlite3.Connection = connect(*arguments, **named)
            database.set_trace_callback(lambda _: self.step())
            return database

        sqlite3.connect = traced  # type: ignore[assignment]


def run(config: str, number: int) -> int:
    """One pass in a fork, killed at its step `number`; 0: never. Its status."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2) if number else (0, 1):
            os.dup2(null, descriptor)
        sys.argv = ["banger-reconcile", "--progress", "none", config]
        if number:
            Countdown(number).arm()
        try:
            reconciler.cli.main()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fresh(root: Path, template: Path | None) -> None:
    for name in ("state", "cache", "tmp"):
        shutil.rmtree(root / name, ignore_errors=True)
        if template:
            shutil.copytree(template / name, root / name, symlinks=True)
    (root / "tmp").mkdir(parents=True, exist_ok=True)


def main(root: Path, first: int, stride: int, config: str, template: Path | None) -> None:
    state, cache, scratch = root / "state", root / "cache", root / "tmp"
    os.environ |= {"BANGER_STATE_DIR": str(state), "BANGER_CACHE_DIR": str(cache)}
    os.environ |= {"TMPDIR": str(scratch), "HOME": str(root)}
    store, tried, number, status = Store(state, cache, scratch), 0, first, KILLED
    while status == KILLED:
        fresh(root, template)
        known = set(artifact_problems(store))
        status = run(config, number)
        found = [problem for problem in artifact_problems(store) if problem not in known]
        if template:
            found += [
                f"{n}: leads nowhere"
                for n, i in store.names().items()
                if not store.artifact(i).exists()
            ]
            found += [] if store.names() else ["neither the old name nor the new is there"]
        healed = run(config, 0)
        found += problems(state, cache, scratch)
        if status not in (0, KILLED) or healed != 0:
            found.append(f"exit {status}, then {healed}")
        for problem in found:
            print(f"step {number}: {problem}", flush=True)
        tried, number = tried + 1, number + stride
    print(f"{tried} points, {number - stride} steps", flush=True)


if __name__ == "__main__":
    where, begin, by, path, *rest = sys.argv[1:]
    main(Path(where), int(begin), int(by), path, Path(rest[0]) if rest else None)
