"""The program as its users run it: a process with directories of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What one run gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON on stdout; fails when there is anything else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def images(self) -> dict[str, dict[str, Any]]:
        return {image["name"]: image for image in self.document["images"]}


@dataclass
class Program:
    """banger-reconcile with its state, cache and scratch below `root`."""

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "TMPDIR": str(self.root / "tmp"),
            "BANGER_STATE_DIR": str(self.state),
            "BANGER_CACHE_DIR": str(self.cache),
            **self.env,
        }

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "reconciler", *map(str, words)]

    def run(self, *words: str | Path, stdin: str = "") -> Result:
        done = subprocess.run(
            self.argv(*words),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def rootfs(self, name: str) -> Path:
        return self.state / "images" / "by-name" / name / "rootfs.ext4"


def snapshot(*roots: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below the roots with inode, mtime and ctime: equal = nothing was touched."""
    found = {}
    for root in roots:
        for path in [root, *root.rglob("*")]:
            info = path.lstat()
            found[str(path)] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
    return found
