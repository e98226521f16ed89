"""File operations that must hold over crashes, holes and strangers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.errors import Code
from reconciler.files import (
    allocated,
    clone_file,
    host_error,
    is_open_elsewhere,
    remove_tree,
    rename_exchange,
    rename_new,
    switch_link,
    write_durably,
)


def sparse(path: Path, size: int, at: dict[int, bytes]) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
        for position, data in at.items():
            stream.seek(position)
            stream.write(data)
    return path


def test_a_clone_has_the_bytes_and_the_holes(tmp_path: Path) -> None:
    path = sparse(tmp_path / "f", 64 << 20, {5 << 20: b"data"})
    clone_file(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert allocated(tmp_path / "copy") < 1 << 20


def test_a_clone_moves_no_byte_through_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reflink, or the kernel's own copy: a name or a kernel must not cost an image's bytes."""
    path = sparse(tmp_path / "f", 64 << 20, {5 << 20: os.urandom(1 << 20)})
    before = Path("/proc/self/io").read_text().splitlines()
    monkeypatch.setattr(os, "pread", None)
    clone_file(path, tmp_path / "copy")
    after = Path("/proc/self/io").read_text().splitlines()
    monkeypatch.undo()
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    calls = [int(lines[2].split()[1]) for lines in (before, after)]  # syscr: reads of this process
    assert calls[1] - calls[0] < 10


def test_rename_new_refuses_even_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "new", tmp_path / "taken")
    rename_new(tmp_path / "new", tmp_path / "free")
    assert (tmp_path / "free").is_dir()


def test_exchange_swaps_a_directory_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("file")
    rename_exchange(tmp_path / "d", tmp_path / "f")
    assert (tmp_path / "d").read_text() == "file"
    assert (tmp_path / "f").is_dir()


def test_switch_link_replaces_and_does_nothing_when_it_points_there(tmp_path: Path) -> None:
    link = tmp_path / "l"
    switch_link(link, "../a")
    switch_link(link, "../b")
    before = link.lstat()
    switch_link(link, "../b")
    assert str(link.readlink()) == "../b"
    assert link.lstat().st_ino == before.st_ino
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_write_durably_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.mkdir()
    with pytest.raises(OSError):
        write_durably(target, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_another_process_that_has_a_file_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rootfs.ext4"
    path.write_bytes(b"x")
    assert not is_open_elsewhere(path)
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdin
    holder.stdout.readline()
    assert is_open_elsewhere(path)
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    assert not is_open_elsewhere(path)
    assert not is_open_elsewhere(tmp_path / "missing")


def test_remove_tree_takes_locked_directories_and_never_follows_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "f").write_text("x")
    (tree / "a" / "link").symlink_to(outside)
    (tree / "a" / "b").chmod(0)
    (tree / "a").chmod(0o500)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "keep").exists()
    remove_tree(tree)


@pytest.mark.parametrize(
    ("number", "code", "retryable"),
    [
        (errno.ENOSPC, Code.DISK_FULL, True),
        (errno.EDQUOT, Code.DISK_FULL, True),
        (errno.EACCES, Code.NOT_PERMITTED, False),
        (errno.EROFS, Code.NOT_PERMITTED, False),
        (errno.EIO, Code.HOST_IO, True),
    ],
)
def test_host_errors_say_whose_turn_it_is(number: int, code: Code, retryable: bool) -> None:
    error = host_error("writing failed", OSError(number, os.strerror(number), "/some/file"))
    assert (error.code, error.retryable) == (code, retryable)
    assert "/some/file" in error.brief
