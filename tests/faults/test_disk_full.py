"""No space, for real: the state, the cache or TMPDIR on a filesystem of a few megabytes (F6)."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.invariants import problems
from support.program import Program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
NOISE = random.Random(1).randbytes(12 << 20)


@contextmanager
def small(path: Path, mebibytes: int) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={mebibytes}m,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


def write_config(root: Path, tag: str, content: bytes, size: str = "64MiB") -> Path:
    layer = tar(directory("etc"), file("etc/noise", content))
    make_layout(root / f"web{tag}", [layer], tag=tag, compression="none")
    ages = '[gc]\nstaging-min-age = "0s"\nblob-min-age = "0s"'
    source = f'ref = "oci:{root}/web{tag}:{tag}"\nbuilder = "tools"'
    image = f'[[image]]\nname = "web"\n{source}\nsize = "{size}"'
    (root / "banger.toml").write_text(f"version = 1\n{ages}\n{image}\n")
    return root / "banger.toml"


@pytest.mark.parametrize(("which", "mebibytes"), [("state", 12), ("cache", 6), ("tmp", 6)])
def test_a_full_disk_is_named_cleaned_up_and_got_over(
    program: Program, tmp_path: Path, which: str, mebibytes: int
) -> None:
    with small(program.root / which, mebibytes) as disk:
        assert program.run(write_config(tmp_path, "1", b"little")).code == 0
        before = program.rootfs("web").resolve()
        free = os.statvfs(disk).f_bavail
        config = write_config(tmp_path, "2", NOISE)
        result = program.run(config, "--json")
        assert result.code == 1
        error = result.images["web"]["error"]
        assert (error["code"], error["retryable"]) == ("disk-full", True), error
        assert program.rootfs("web").resolve() == before, "the old artifact stays"
        assert problems(program.state, program.cache, program.root / "tmp") == []
        assert free - os.statvfs(disk).f_bavail < 64, "in blocks: the space was given back"
        size = f"remount,size={mebibytes + 64}m"
        subprocess.run(["mount", "-o", size, disk], check=True)
        assert program.run(config).code == 0
        assert program.rootfs("web").resolve() != before


def test_a_disk_with_no_byte_left_fails_in_words(program: Program, tmp_path: Path) -> None:
    with small(program.state, 12) as disk:
        config = write_config(tmp_path, "1", b"little")
        assert program.run(config).code == 0
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        assert program.run(config).code == 0, "a pass that changes nothing needs no space"
        config = write_config(tmp_path, "2", b"other")
        result = program.run(config, "--json")
        assert result.code == 1
        assert result.images["web"]["error"]["code"] == "disk-full"
        assert "Traceback" not in result.err
        (disk / "filler").unlink()
        assert program.run(config).code == 0
        assert program.run("status", "--json").images["web"]["error"] is None
