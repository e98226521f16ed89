"""Every hostile image through the whole program: refused by name, or held inside its filesystem."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import BUILDERS

from hostile import peer
from hostile.bench import Bench, Canaries, compare, failure, read_back
from hostile.table import ACCEPTED, REJECTED
from reconciler.report import pass_document


@pytest.fixture
def spot() -> Iterator[Path]:
    """A directory of its own in the real /tmp."""
    with tempfile.TemporaryDirectory(prefix="banger-canary-", dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name: str, builder: str, bench: Bench, spot: Path) -> None:
    case = REJECTED[name]
    case.make(bench.layout, str(bench.root / "outside"))
    published, canaries = bench.artifact(), Canaries(bench, spot, builder)
    result = bench.run(case.size, builder=builder)
    canaries.check()
    canaries.remove()
    line = failure(result.outcomes[0])
    error = result.outcomes[0].error
    assert error is not None
    assert re.search(case.rejects, line), line
    assert line.isprintable()
    assert len(line) < 1000
    assert (error.code, error.retryable) == (case.code, case.retryable)
    assert bench.artifact() == published
    assert bench.leftovers() == []
    [image] = json.loads(json.dumps(pass_document(result)))["images"]
    assert image["error"]["code"] == case.code
    assert image["error"]["message"] == line


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, builder: str, bench: Bench, spot: Path, tmp_path: Path) -> None:
    case = ACCEPTED[name]
    case.make(bench.layout, str(bench.root / "outside"))
    canaries = Canaries(bench, spot, builder)
    result = bench.run(case.size, builder=builder)
    canaries.check()
    canaries.remove()
    assert result.outcomes[0].error is None, result.outcomes[0].error
    assert bench.leftovers() == []
    found = read_back(bench.rootfs)
    compare(case, found)
    [image] = json.loads(json.dumps(pass_document(result)))["images"]
    listed = image["not_carried"]
    assert len(listed) == len(case.lists), listed
    assert all(any(word in line for line in listed) for word in case.lists), listed
    assert all(line.isprintable() for line in listed)
    if not case.peer and builder == BUILDERS[0]:  # both give the same, and umoci takes its time
        if not shutil.which("umoci"):
            pytest.skip("all right so far, but umoci is not installed to compare with")
        peer.compare(bench.layout, found, tmp_path / "peer")
