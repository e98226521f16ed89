"""Rows 44, 52 and 53: what changes under the program's hands, and what only takes long."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.images import digest_of
from support.tarball import tar

from hostile.bench import NAME, Bench, read_back
from hostile.case import f, stack


def test_a_tag_that_moves_during_a_pass(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stack([f("first")])(bench.layout, "")
    first = json.loads((bench.layout / "index.json").read_text())["manifests"][0]["digest"]
    host = bench.host()

    def emit(event: str, **fields: Any) -> None:
        if event == "plan.computed":  # resolved, and nothing fetched yet
            stack([f("second")])(bench.layout, "")

    monkeypatch.setattr(bench, "host", lambda: replace(host, emit=emit))
    result = bench.run()
    assert result.outcomes[0].error is None
    assert b"first" in read_back(bench.rootfs)
    assert result.after.records[NAME].digest == first


HARM = {
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"aaa", b"aXa", 1)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-512]),
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_cached_blob_that_is_not_what_it_was(harm: str, bench: Bench) -> None:
    layer = tar(f("a", b"aaa" * 2000), f(harm))  # another image for each, or nothing would run
    stack(layer)(bench.layout, "")
    assert bench.run("16MiB").outcomes[0].error is None
    blob = bench.store.oci / "blobs/sha256" / digest_of(layer)[7:]
    HARM[harm](blob)
    result = bench.run("17MiB")
    assert result.outcomes[0].error is None, result.outcomes[0].error
    assert read_back(bench.rootfs)[b"a"].held == b"aaa" * 2000
    assert not blob.is_symlink()
    assert blob.read_bytes() == layer
    if harm != "gone":
        assert list((bench.store.oci / "quarantine").iterdir())


def test_thousands_of_names_in_one_directory(bench: Bench) -> None:
    stack([f(f"p/{i}", b"x") for i in range(8000)])(bench.layout, "")
    assert bench.run("96MiB").outcomes[0].error is None
    assert len(read_back(bench.rootfs)) == 8003
