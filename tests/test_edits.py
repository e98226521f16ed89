"""The edit matrix: every way in which a configuration comes to be another, on one daemon each."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.daemon import Daemon, watching
from support.program import Program

TIMES = 4


def text(size: int) -> str:
    """A configuration without images, told from others by its interval."""
    return f'version = 1\n[reconcile]\ninterval = "{1000 + size}s"\nsettle = "50ms"\n'


def plain(root: Path) -> Path:
    (root / "etc").mkdir()
    path = root / "etc" / "banger.toml"
    path.write_text(text(0))
    return path


def through_a_link(root: Path) -> Path:
    plain(root)
    (root / "link.toml").symlink_to("etc/banger.toml")
    return root / "link.toml"


def configmap(root: Path) -> Path:
    (root / "..0").mkdir()
    (root / "..0" / "banger.toml").write_text(text(0))
    (root / "..data").symlink_to("..0")
    (root / "banger.toml").symlink_to("..data/banger.toml")
    return root / "banger.toml"


def git_sync(root: Path) -> Path:
    (root / "trees/0").mkdir(parents=True)
    (root / "trees/0/banger.toml").write_text(text(0))
    (root / "current").symlink_to("trees/0")
    return root / "current" / "banger.toml"


def git_checkout(root: Path) -> Path:
    git(root, "init", "-q", "-b", "main", "origin")
    (root / "origin" / "banger.toml").write_text(text(0))
    commit(root / "origin", "0")
    git(root, "clone", "-q", "origin", "clone")
    return root / "clone" / "banger.toml"


def git(directory: Path, *words: str) -> None:
    who = (
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "protocol.file.allow=always",
    )
    subprocess.run(["git", *who, *words], cwd=directory, check=True, capture_output=True)


def commit(directory: Path, message: str) -> None:
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", message)


def rename_over(path: Path, root: Path, number: int) -> None:
    new = path.with_name(".banger.toml.new")
    new.write_text(text(number))
    new.rename(path)


def write_in_place(path: Path, root: Path, number: int) -> None:
    path.write_text(text(number))


def write_behind_the_link(path: Path, root: Path, number: int) -> None:
    (root / "etc/banger.toml").write_text(text(number))


def rename_behind_the_link(path: Path, root: Path, number: int) -> None:
    rename_over(root / "etc/banger.toml", root, number)


def replace_the_link(path: Path, root: Path, number: int) -> None:
    (root / f"other{number}").mkdir()
    (root / f"other{number}/c.toml").write_text(text(number))
    (root / "new").symlink_to(f"other{number}/c.toml")
    (root / "new").rename(path)


def unlink_and_create(path: Path, root: Path, number: int) -> None:
    path.unlink()
    path.write_text(text(number))


def swap_configmap(path: Path, root: Path, number: int) -> None:
    (root / f"..{number}").mkdir()
    (root / f"..{number}" / "banger.toml").write_text(text(number))
    (root / "..tmp").symlink_to(f"..{number}")
    (root / "..tmp").rename(root / "..data")
    shutil.rmtree(root / f"..{number - 1}")


def swap_git_sync(path: Path, root: Path, number: int) -> None:
    (root / f"trees/{number}").mkdir()
    (root / f"trees/{number}/banger.toml").write_text(text(number))
    (root / "tmp").symlink_to(f"trees/{number}")
    (root / "tmp").rename(root / "current")
    shutil.rmtree(root / f"trees/{number - 1}")


def swap_directory(path: Path, root: Path, number: int) -> None:
    (root / "new").mkdir()
    (root / "new/banger.toml").write_text(text(number))
    (root / "etc").rename(root / f"old{number}")
    (root / "new").rename(root / "etc")


def delete_and_recreate_directory(path: Path, root: Path, number: int) -> None:
    shutil.rmtree(root / "etc")
    (root / "etc").mkdir()
    (root / "etc/banger.toml").write_text(text(number))


def pull(path: Path, root: Path, number: int) -> None:
    (root / "origin/banger.toml").write_text(text(number))
    commit(root / "origin", str(number))
    git(root / "clone", "pull", "-q")


def same_size_same_second(path: Path, root: Path, number: int) -> None:
    before = path.stat()
    path.write_text(text(number))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def slow_writer(path: Path, root: Path, number: int) -> None:
    whole = text(number)
    with path.open("w", buffering=1) as stream:
        for piece in (whole[:5], whole[5:20], whole[20:]):
            stream.write(piece)
            stream.flush()


Edit = Callable[[Path, Path, int], None]

EDITS: list[tuple[Callable[[Path], Path], Edit]] = [
    (plain, rename_over),
    (plain, write_in_place),
    (plain, unlink_and_create),
    (plain, same_size_same_second),
    (plain, slow_writer),
    (plain, swap_directory),
    (plain, delete_and_recreate_directory),
    (through_a_link, write_behind_the_link),
    (through_a_link, rename_behind_the_link),
    (through_a_link, replace_the_link),
    (configmap, swap_configmap),
    (git_sync, swap_git_sync),
    (git_checkout, pull),
]


def follows(daemon: Daemon, path: Path, root: Path, edit: Edit) -> None:
    """Each edit is seen, after the one before it was worked by."""
    for number in range(1, TIMES + 1):
        edit(path, root, number)
        event = daemon.wait("config.loaded")
        assert event["generation"] == number + 1
        finished = daemon.wait("reconcile.finished")
        assert finished["generation"] == number + 1


@pytest.mark.parametrize(
    ("layout", "edit"), EDITS, ids=[f"{lay.__name__}-{edit.__name__}" for lay, edit in EDITS]
)
def test_an_edit_is_seen_every_time(
    tmp_path: Path, layout: Callable[[Path], Path], edit: Edit
) -> None:
    (tmp_path / "conf").mkdir()
    path = layout(tmp_path / "conf")
    with watching(Program(tmp_path / "host"), path) as daemon:
        daemon.wait("watch.armed")
        daemon.wait("reconcile.finished")
        follows(daemon, path, tmp_path / "conf", edit)


def without_inotify() -> list[str]:
    """A prefix that takes inotify from a command: a user namespace whose limit is zero."""
    limit = "/proc/sys/user/max_inotify_instances"
    words = ["unshare", "-Ur", "sh", "-c", f'echo 0 >{limit} && exec "$@"', "sh"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no unprivileged user namespaces on this machine")
    return words


@pytest.mark.parametrize("edit", [rename_over, same_size_same_second])
def test_without_inotify_the_bytes_are_hashed(tmp_path: Path, edit: Edit) -> None:
    path = plain(tmp_path)
    with watching(Program(tmp_path / "host"), path, before=without_inotify()) as daemon:
        assert daemon.wait("watch.degraded")["poll_seconds"] == 5.0
        daemon.wait("reconcile.finished")
        follows(daemon, path, tmp_path, edit)


def test_a_storm_of_edits_ends_in_the_last_content(tmp_path: Path) -> None:
    path = plain(tmp_path)
    with watching(Program(tmp_path / "host"), path) as daemon:
        daemon.wait("reconcile.finished")
        for number in range(1, 2001):
            rename_over(path, tmp_path, number)
        path.write_text(text(5000) + "# the last\n")
        while True:
            daemon.wait("config.loaded")
            finished = daemon.wait("reconcile.finished")
            if path.read_bytes() and finished["generation"] >= 2:
                shown = [e for e in daemon.events if e["event"] == "config.loaded"][-1]
                if shown["sha256"] == sha256(path):
                    break
        assert daemon.names().count("reconcile.finished") < 50


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
