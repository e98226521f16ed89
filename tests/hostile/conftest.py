"""Fixtures of the hostile images: one bench a worker, and the environment that it runs in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile.bench import Bench


@pytest.fixture(scope="session")
def shared_bench() -> Iterator[Bench]:
    """A host with a good image published under the name that every case takes."""
    root = Path(tempfile.mkdtemp(prefix="b-"))  # short: it becomes part of paths
    bench = Bench(root)
    yield bench
    shutil.rmtree(root)


@pytest.fixture
def bench(shared_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench with its own HOME, TMPDIR and working directory, and an artifact to lose."""
    monkeypatch.setenv("HOME", str(shared_bench.root / "home"))
    monkeypatch.setenv("TMPDIR", str(shared_bench.root / "tmp"))
    monkeypatch.chdir(shared_bench.root / "cwd")
    if not shared_bench.rootfs.exists():
        shared_bench.publish()
    shared_bench.renew_layout()
    return shared_bench
