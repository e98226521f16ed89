"""The state directory: published whole or not at all, one writer, no traps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.digests import sparse_digest
from reconciler.errors import Busy, Code, HostError
from reconciler.manifest import ROOTFS, FileEntry, Manifest, damage
from reconciler.model import StageKeys
from reconciler.store import JOURNAL, Store

ID = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "tmp").mkdir()
    made = Store(tmp_path / "state", tmp_path / "cache", tmp_path / "tmp")
    made.prepare()
    return made


def stage(store: Store, data: bytes = b"rootfs") -> Manifest:
    """A finished staging directory and the manifest that belongs to it."""
    staging = store.staging(ID)
    staging.mkdir()
    (staging / ROOTFS).write_bytes(data)
    store.write_journal(ID, {"guest": "proof"})
    return Manifest(
        id=ID,
        ref="oci:/x:1",
        digest="sha256:" + "a" * 64,
        platform="linux/amd64",
        size=len(data),
        keys=StageKeys("f", "e", "o", "g", "k"),
        files={ROOTFS: FileEntry(size=len(data), digest=sparse_digest(staging / ROOTFS))},
    )


def test_publish_leaves_a_whole_artifact_and_no_staging(store: Store) -> None:
    manifest = stage(store)
    store.publish(ID, manifest)
    final = store.artifact(ID)
    assert sorted(p.name for p in final.iterdir()) == ["manifest.json", ROOTFS]
    assert store.manifest(final) == manifest
    assert damage(final, manifest) == {}
    assert (store.artifact_ids(), store.staging_ids()) == ([ID], [])


def test_published_files_cannot_be_written_by_mistake(store: Store) -> None:
    store.publish(ID, stage(store))
    assert (store.artifact(ID) / ROOTFS).stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("kind", ["full", "empty", "file"])
def test_what_stands_in_the_way_is_swapped_out_not_overwritten(store: Store, kind: str) -> None:
    final = store.artifact(ID)
    if kind == "file":
        final.write_text("in the way")
    else:
        final.mkdir()
    if kind == "full":
        (final / "old").write_text("old")
    store.publish(ID, stage(store, b"new"))
    assert (final / ROOTFS).read_bytes() == b"new"
    assert store.staging(ID).exists()


def test_publish_syncs_in_the_order_that_survives_power_loss(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stage(store)
    calls: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.strip("."))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        Path, "rename", lambda a, b: (calls.append(f"-> {Path(b).name}"), real_rename(a, b))[1]
    )
    monkeypatch.setattr(
        "reconciler.store.rename_new",
        lambda a, b: (calls.append("publish"), real_rename(a, b))[1],
    )
    store.publish(ID, manifest)
    order = [calls.index(ROOTFS), calls.index("-> manifest.json"), calls.index("publish")]
    assert order == sorted(order)
    assert calls[calls.index("publish") - 1] == f"{ID}.staging"
    assert calls[-1] == "images"


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: (p.chmod(0o644), p.write_bytes(b"r")), "bytes"),
        (lambda p: (p.chmod(0o644), p.write_bytes(b"rootfz")), "content"),
        (lambda p: (p.unlink(), p.symlink_to("/etc/passwd")), "regular"),
    ],
)
def test_damage_is_found_and_named(store: Store, harm: object, word: str) -> None:
    manifest = stage(store)
    store.publish(ID, manifest)
    harm(store.artifact(ID) / ROOTFS)  # type: ignore[operator]
    assert word in damage(store.artifact(ID), manifest)[ROOTFS]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"id": 1}', "\xff"])
def test_a_damaged_manifest_is_no_manifest(store: Store, text: str) -> None:
    store.publish(ID, stage(store))
    path = store.artifact(ID) / "manifest.json"
    path.chmod(0o644)
    path.write_text(text, "latin-1")
    assert store.manifest(store.artifact(ID)) is None


@pytest.mark.parametrize("text", ["", "[1]", '{"guest": 5}', "nonsense"])
def test_a_journal_that_cannot_be_read_proves_nothing(store: Store, text: str) -> None:
    stage(store)
    (store.staging(ID) / JOURNAL).write_text(text)
    assert store.read_journal(ID) == {}


def test_names_are_links_that_switch(store: Store) -> None:
    other = ID[::-1]
    store.switch("web", ID)
    store.switch("web", other)
    assert store.names() == {"web": other}
    assert str((store.by_name / "web").readlink()) == f"../{other}"
    store.unname("web")
    assert store.names() == {}


def test_strangers_in_images_are_not_ours(store: Store) -> None:
    (store.images / "notes.txt").write_text("mine")
    (store.images / "backup").mkdir()
    (store.by_name / "odd").symlink_to("/etc")
    assert store.artifact_ids() == []
    assert store.staging_ids() == []
    assert store.names() == {}


def test_the_second_writer_is_told_who_the_first_is(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from reconciler.store import Store\n"
        "with Store(Path(sys.argv[1]), Path(sys.argv[1])).writer():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, store.state], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin
    assert holder.stdout
    holder.stdout.readline()
    with pytest.raises(Busy, match=f"process {holder.pid}"), store.writer():
        pass
    holder.kill()  # a killed holder leaves nothing behind
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with store.writer():
        pass


def test_taking_the_lock_again_touches_nothing(store: Store) -> None:
    with store.writer():
        pass
    before = (store.state / "lock").stat().st_mtime_ns, store.state.stat().st_mtime_ns
    with store.writer():
        pass
    assert ((store.state / "lock").stat().st_mtime_ns, store.state.stat().st_mtime_ns) == before


def test_a_scratch_directory_open_to_others_is_refused(store: Store) -> None:
    store.scratch_owner.mkdir(mode=0o777)
    store.scratch_owner.chmod(0o777)
    with pytest.raises(HostError, match="open to others") as caught:
        store.prepare_scratch()
    assert caught.value.code is Code.NOT_PERMITTED


def test_a_scratch_directory_that_is_a_link_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.scratch_owner.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError):
        store.prepare_scratch()


def test_the_manifest_file_is_stable_text(store: Store) -> None:
    store.publish(ID, stage(store))
    text = (store.artifact(ID) / "manifest.json").read_text()
    document = json.loads(text)
    assert text == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert document["files"][ROOTFS]["digest"].startswith("crc32-1m:")
