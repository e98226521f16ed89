"""A database that is locked or damaged, and things in the state directory that are not ours.

F4, F14, F16, F17 and F18 of the failure table, at the program's own door.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.kernels import bzimage
from support.program import Program, snapshot


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


def write_config(root: Path, name: str = "web", size: str = "32MiB", extra: str = "") -> Path:
    ages = '[gc]\nstaging-min-age = "0s"\nblob-min-age = "0s"'
    image = f'[[image]]\nname = "{name}"\nref = "oci:{root}/web"\nsize = "{size}"\n{extra}'
    (root / "banger.toml").write_text(f"version = 1\n{ages}\n{image}\n")
    return root / "banger.toml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_layout(tmp_path / "web", [tar(directory("etc"), file("etc/hostname", b"guest\n"))])
    return write_config(tmp_path)


def change(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_database_that_somebody_holds_is_waited_for_and_never_put_aside(
    program: Program, config: Path
) -> None:
    assert program.run(config).code == 0
    holder = sqlite3.connect(program.state / "records.db", check_same_thread=False)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(2, holder.close).start()
    result = program.run(config)
    assert result.code == 0, result.err
    assert not (program.state / "records.db.damaged").exists()
    assert program.run("status", "--json").images["web"]["path"]


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE records SET name = 'wec'",
        "UPDATE records SET document = CAST(document AS BLOB)",
        "UPDATE records SET document = replace(document, '37748736', '37748737')",
        "UPDATE records SET sha256 = 'x'",
    ],
)
def test_a_flipped_bit_is_healed_by_the_manifest_and_nothing_is_lost(
    program: Program, config: Path, tmp_path: Path, harm: str
) -> None:
    program.run(config)
    first = program.rootfs("web").resolve()
    config = write_config(tmp_path, size="36MiB")
    program.run(config)
    change(program.state / "records.db", harm)
    result = program.run(config, "--json")
    assert result.code == 0, result.err
    assert result.images["web"]["reason"] == "RecordMissing"
    assert first.exists(), "kept for a rollback"
    settled = program.run(config, "--json").document
    assert (settled["changed"], settled["warnings"]) == (False, [])
    assert first.exists()


def test_a_damaged_note_of_a_failure_does_not_keep_collection_off(
    program: Program, config: Path
) -> None:
    program.run(config)
    rows = "INSERT INTO failures VALUES ('web', '{}', 'x')"
    change(program.state / "records.db", rows)
    program.run(config)
    assert program.run(config, "--json").document["warnings"] == []


def test_status_says_that_the_database_is_damaged(program: Program, config: Path) -> None:
    program.run(config)
    (program.state / "records.db").write_bytes(b"garbage, more than a page of it" * 400)
    assert "damaged" in program.run("status").out


def test_a_link_that_leads_elsewhere_is_put_right_and_its_goal_kept(
    program: Program, config: Path, tmp_path: Path
) -> None:
    """As a crash leaves it that falls between the link and the record."""
    program.run(config)
    first = program.rootfs("web").parent.resolve()
    shutil.copytree(first, tmp_path / "copy")
    program.run(write_config(tmp_path, size="36MiB"))
    link = program.state / "images" / "by-name" / "web"
    link.unlink()
    link.symlink_to(f"../{first.name}")
    result = program.run(config, "--json")
    assert result.images["web"]["action"] == "repair"
    assert link.resolve().name == result.images["web"]["id"]
    assert program.run(config, "--json").document["changed"] is False


@pytest.mark.parametrize("harm", ["file", "empty", "link"])
def test_something_else_where_the_artifact_belongs_gives_way(
    program: Program, config: Path, tmp_path: Path, harm: str
) -> None:
    found = program.run("plan", config, "--json").images["web"]["id"]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    for place in (program.state / "images" / found, program.state / "images" / f"{found}.staging"):
        place.parent.mkdir(parents=True, exist_ok=True)
        if harm == "file":
            place.write_text("in the way")
        elif harm == "empty":
            place.mkdir()
        else:
            place.symlink_to(outside)
    result = program.run(config)
    assert result.code == 0, result.err
    assert program.rootfs("web").is_file()
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert "nothing changed" in program.run(config).out


def test_the_collector_follows_nothing_and_names_what_is_not_ours(
    program: Program, config: Path, tmp_path: Path
) -> None:
    program.run(config)
    images, outside = program.state / "images", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (images / ("0" * 32)).symlink_to(outside)
    (images / ("1" * 32)).mkdir()
    (images / ("1" * 32) / "rootfs.ext4").symlink_to(outside / "precious")
    (images / "notes.txt").write_text("a stranger's")
    before = snapshot(outside)
    result = program.run("gc", "--json")
    assert result.code == 0, result.out + result.err
    assert snapshot(outside) == before
    assert (images / "notes.txt").exists()
    assert "notes.txt" in result.out
    assert not (images / ("1" * 32)).is_symlink() and not (images / ("0" * 32)).is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_the_collector_removes_nothing_from_a_mount(program: Program, config: Path) -> None:
    program.run(config)
    place = program.state / "images" / ("0" * 32) / "mounted"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "strange", place], check=True)
    try:
        (place / "precious").write_text("mine")
        result = program.run("gc", "--json")
        assert (place / "precious").read_text() == "mine"
        assert result.code == 1
        assert "mounted" in result.out
    finally:
        subprocess.run(["umount", place], check=True)


def test_modules_that_were_edited_are_made_again(
    program: Program, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    modules = tmp_path / "modules"
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel" / "one.ko").write_bytes(b"module")
    entry = (
        f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{tmp_path}/vmlinuz" }}\n'
        f'modules = {{ path = "{modules}" }}'
    )
    config = write_config(tmp_path, extra=f'kernel-ref = "lab"\n{entry}')
    assert program.run(config).code == 0
    there = program.rootfs("web").parent / "modules"
    shutil.rmtree(there)
    result = program.run(config, "--json")
    assert result.images["web"]["reason"] == "ArtifactCorrupt", result.out
    assert any(path.name == "one.ko" for path in there.rglob("*"))
    assert program.run(config, "--json").document["changed"] is False


def test_an_artifact_that_was_touched_is_read_back_once_only(
    program: Program, config: Path
) -> None:
    program.run(config)
    os.utime(program.rootfs("web"))
    assert program.run(config).code == 0
    before = snapshot(program.root)
    assert program.run(config).code == 0
    assert snapshot(program.root) == before


def test_an_image_whose_donor_fails_is_built_by_itself(
    program: Program, config: Path, tmp_path: Path
) -> None:
    """Both share a filesystem; the first, which was to publish it, can never get its kernel."""
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    missing = f'{{ url = "http://127.0.0.1:9/vmlinuz", sha256 = "{"0" * 64}" }}'
    kernels = (
        f'[[kernel]]\nname = "gone"\nkernel = {missing}\n'
        f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{tmp_path}/vmlinuz" }}\n'
    )
    images = "".join(
        f'[[image]]\nname = "{name}"\nref = "oci:{tmp_path}/web"\nsize = "32MiB"\n'
        f'kernel-ref = "{kernel}"\n'
        for name, kernel in (("a", "gone"), ("b", "lab"))
    )
    config.write_text(f"version = 1\n{kernels}{images}")
    result = program.run(config, "--json", "--jobs", "2")
    assert result.images["a"]["error"]["stage"] == "kernel"
    assert result.images["b"]["error"] is None, result.err
    assert program.rootfs("b").is_file()


def test_a_host_without_home_or_tmpdir_is_told_so(tmp_path: Path, config: Path) -> None:
    missing = Program(tmp_path / "host", {"TMPDIR": str(tmp_path / "missing")})
    result = missing.run(config, "--json")
    assert result.code == 1
    assert "TMPDIR" in result.images["web"]["error"]["message"]
    assert not (tmp_path / "missing").exists()
