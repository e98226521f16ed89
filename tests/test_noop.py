"""A pass over 200 images that finds nothing to do asks nobody and writes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import watching
from support.program import Program, snapshot
from support.registries import Scripted, answer
from support.server import scripted

from reconciler.oci.documents import OCI_MANIFEST

IMAGES = 200


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Scripted]:
    with scripted() as script:
        yield Scripted(tmp_path / "ours", script)


def config_of(path: Path, ours: Scripted, *kinds: str) -> Path:
    """200 names for references of these kinds, all of one image so that they are quickly made."""
    host, digest = ours.host, ours.digest
    every = {"tag": f"{host}/x:1", "digest": f"{host}/x@{digest}", "both": f"{host}/x:1@{digest}"}
    rows = ["version = 1", "[reconcile]", 'settle = "50ms"', "[[registry]]", f'host = "{host}"']
    rows.append("plain-http = true")
    for number in range(IMAGES):
        rows += [
            "[[image]]",
            f'name = "i{number}"',
            f'ref = "{every[kinds[number % len(kinds)]]}"',
            'size = "16MiB"',
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("pinned_by", ["digest", "banger.lock"])
def test_no_request_and_no_write(tmp_path: Path, ours: Scripted, pinned_by: str) -> None:
    program = Program(tmp_path / "host")
    kinds = ("digest", "both") if pinned_by == "digest" else ("tag", "digest")
    config = config_of(tmp_path / "banger.toml", ours, *kinds)
    if pinned_by == "banger.lock":
        assert program.run("lock", config).code == 0
    first = program.run(config, "--json")
    assert first.document["summary"]["created"] == IMAGES, first.document["errors"][:1]
    assert ours.script.seen
    ours.script.seen.clear()
    before = snapshot(program.root, tmp_path / "ours")
    for words in ((), ("--json", "--detailed-exitcode"), ("--offline",)):
        assert program.run(config, *words).code == 0
    assert ours.script.seen == []
    assert snapshot(program.root, tmp_path / "ours") == before


def test_a_tag_costs_one_request_a_pass_however_many_name_it(
    tmp_path: Path, ours: Scripted
) -> None:
    program, config = Program(tmp_path / "host"), config_of(tmp_path / "banger.toml", ours, "tag")
    said = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": ours.digest}
    ours.script.routes["/v2/x/manifests/1"] = answer(ours.manifest, said)
    assert program.run(config).code == 0
    before = snapshot(program.root)
    ours.script.seen.clear()
    assert program.run(config).code == 0
    assert [request.method for request in ours.script.seen] == ["HEAD"]
    assert snapshot(program.root) == before


def test_a_daemon_neither(tmp_path: Path, ours: Scripted) -> None:
    program, config = (
        Program(tmp_path / "host"),
        config_of(tmp_path / "banger.toml", ours, "digest"),
    )
    with watching(program, config) as daemon:
        daemon.wait("reconcile.finished")
        ours.script.seen.clear()
        before = snapshot(program.root)
        for _ in range(3):
            daemon.signal(signal.SIGHUP)
            finished = daemon.wait("reconcile.finished")
            assert finished["message"] == f"{IMAGES} unchanged"
        assert ours.script.seen == []
        assert snapshot(program.root) == before
