"""Children: how they are run, how each kind of failure is told, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.filesystems import MIB, build, file, tree_of

from reconciler import tools
from reconciler.errors import Code, HostError
from reconciler.ext4.debugfs import Script
from reconciler.processes import run
from reconciler.tools import Tools

SH = "/bin/sh"


def shell(script: str, **options: object) -> tools.Completed:
    return run([SH, "-c", script], **{"timeout": 20, "may_fork": True} | options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_status_and_output_come_back() -> None:
    done = shell("cat; echo out; echo err >&2; exit 3", stdin=b"in ")
    assert (done.status, done.stdout, done.stderr) == (3, b"in out\n", b"err\n")


def test_the_environment_is_clean_and_stdin_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANGER_CANARY", "secret")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    done = run(["/usr/bin/env"], timeout=20, environment={"ONE": "1"})
    names = {line.partition(b"=")[0] for line in done.stdout.splitlines()}
    assert names == {b"PATH", b"ONE", b"LC_ALL"}
    assert b"LC_ALL=C\n" in done.stdout
    assert shell("cat").stdout == b""


def test_output_is_bounded_and_its_end_is_kept() -> None:
    done = shell("head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2; echo end; echo end >&2")
    assert len(done.stdout) == len(done.stderr) == 65536
    assert done.stdout.endswith(b"end\n")
    assert done.stderr.endswith(b"end\n")


def test_a_hung_child_is_killed_with_its_group(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(HostError, match=r"sh did not end within 0\.5 seconds") as caught:
        shell("sleep 600 & echo $! > pid; wait", timeout=0.5, directory=tmp_path)
    assert caught.value.code is Code.TOOL_FAILED
    assert time.monotonic() - begin < 5
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_helper_left_behind_is_neither_waited_for_nor_spared(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert shell("sleep 600 & echo $! > pid", directory=tmp_path).status == 0
    assert time.monotonic() - begin < 5
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("name", ["KILL", "ABRT", "SEGV", "XFSZ"])
def test_a_killed_child_is_told_by_its_signal(name: str) -> None:
    with pytest.raises(HostError, match=f"sh was killed by SIG{name}: so .x1b.31m long") as caught:
        shell(f"ulimit -c 0; printf 'so \\033[31m long\\n' >&2; kill -{name} $$")
    assert caught.value.code is Code.TOOL_FAILED


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HostError, match=r"cannot start /nowhere/mkfs\.ext4") as caught:
        run(["/nowhere/mkfs.ext4"], timeout=1)
    assert caught.value.code is Code.TOOL_MISSING


def test_a_checkpoint_that_raises_ends_the_child(tmp_path: Path) -> None:
    def stop() -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell("sleep 600 & echo $! > new; mv new pid; wait", checkpoint=stop, directory=tmp_path)
    assert gone(int((tmp_path / "pid").read_text()))


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = f"from reconciler.processes import run; run(['{SH}', '-c', 'echo $$ > pid; sleep 600'], "
    code += f"timeout=600, may_fork=True, directory=__import__('pathlib').Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(tools.__file__).parents[1])
    end = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    child = int((tmp_path / "pid").read_text())
    assert alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(child)


def test_no_descriptor_and_no_zombie_is_left() -> None:
    shell("true")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        shell("exit 1", stdin=b"x")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = [
        Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in children
    ]
    assert "Z" not in states


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become an unprivileged user")
def test_an_unprivileged_tool_cannot_start_others() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # a fork and no new program: the interpreter may not be readable for others
        try:
            os.setuid(65534)
            os.write(writer, run([SH, "-c", "(echo pwned); exit 0"], timeout=9).stderr)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    assert b"Cannot fork" in os.read(reader, 99)
    os.close(reader)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of one empty directory, and no system directories."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "SYSTEM_DIRECTORIES", ())
    return tmp_path


def program(where: Path, text: str = "exit 0") -> None:
    where.write_text(f"#!/bin/sh\n{text}\n")
    where.chmod(0o755)


def test_tools_are_found_where_a_users_path_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    Tools().require()


@pytest.mark.parametrize("missing", ["mkfs.ext4", "debugfs", "e2fsck"])
def test_a_missing_tool_is_named(path: Path, missing: str) -> None:
    for name in {"mkfs.ext4", "debugfs", "e2fsck"} - {missing}:
        program(path / name)
    with pytest.raises(HostError, match=f"{missing} was not found") as caught:
        Tools().require()
    assert caught.value.code is Code.TOOL_MISSING
    assert "e2fsprogs >= 1.43" in caught.value.resolution


@pytest.mark.parametrize(
    ("banner", "accepted"),
    [
        ("mke2fs 1.42.13 (17-May-2015)", False),
        ("mke2fs 1.43 (17-May-2016)", True),
        ("mke2fs 1.43.4 (31-Jan-2017)", True),
        ("mke2fs 2.0 (1-Jan-2030)", True),
        ("BusyBox v1.36", False),
    ],
)
def test_the_version_is_checked(path: Path, banner: str, accepted: bool) -> None:
    program(path / "mke2fs", f"echo '{banner}' >&2")  # no mkfs.ext4 there: mke2fs will do
    program(path / "debugfs")
    program(path / "e2fsck")
    if accepted:
        Tools().require()
        return
    with pytest.raises(HostError) as caught:
        Tools().require()
    assert caught.value.code is Code.TOOL_TOO_OLD
    assert "e2fsprogs >= 1.43" in caught.value.resolution


def test_debugfs_that_fails_with_status_0_is_an_error(tmp_path: Path) -> None:
    room = build(tree_of({b"a": file(5)}), tmp_path, 16 * MIB)
    script = Script()
    script.set_field(2, "uid", 0)
    room.tools.debugfs_write(room.rootfs, script, tmp_path)
    script.set_field(999_999, "uid", 0)
    with pytest.raises(HostError, match="debugfs failed: <999999>") as caught:
        room.tools.debugfs_write(room.rootfs, script, tmp_path)
    assert caught.value.code is Code.TOOL_FAILED


def test_debugfs_on_a_file_that_is_no_filesystem(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(bytes(1 << 20))
    script = Script()
    script.set_field(2, "uid", 0)
    with pytest.raises(HostError, match="Bad magic number"):
        Tools().debugfs_write(tmp_path / "junk", script, tmp_path)


def test_e2fsck_says_what_it_found(tmp_path: Path) -> None:
    room = build(tree_of({b"a": file(5)}), tmp_path, 16 * MIB)
    room.tools.e2fsck(room.rootfs)
    script = Script()
    script.set_field(12, "links_count", 7)
    room.tools.debugfs_write(room.rootfs, script, tmp_path)
    with pytest.raises(HostError, match="Inode 12 ref count is 7, should be 1") as caught:
        room.tools.e2fsck(room.rootfs)
    assert caught.value.code is Code.TOOL_FAILED


def test_a_path_that_libext2fs_would_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot open") as caught:
        Tools().e2fsck(tmp_path / "what?" / "rootfs.ext4")
    assert not caught.value.retryable
