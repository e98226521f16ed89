"""Killed at any step towards the disk, the next pass heals: F1, F2, F3, F22 of the failure table.

BANGER_FAULT_STRIDE says which steps are tried: 1 is every one, the default is every 29th, so
that a run takes a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.kernels import bzimage
from support.program import Program

CRASH = Path(__file__).with_name("crash.py")
STRIDE = int(os.environ.get("BANGER_FAULT_STRIDE", "29"))
AGES = 'staging-min-age = "0s"\nblob-min-age = "0s"'


def write_config(root: Path, **changed: str) -> Path:
    image = {"name": "web", "ref": f"oci:{root}/web:1", "size": "32MiB", "kernel-ref": "lab"}
    pairs = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (image | changed).items())
    kernel = f'[[kernel]]\nname = "lab"\nkernel = {{ path = "{root}/vmlinuz" }}'
    text = f"version = 1\n[gc]\n{AGES}\n{kernel}\n[[image]]\n{pairs}\n"
    (root / "banger.toml").write_text(text)
    return root / "banger.toml"


def new_kernel(root: Path) -> None:
    (root / "vmlinuz").write_bytes(bzimage(body=b"newer"))


def damage(root: Path) -> None:
    rootfs = root / "template/state/images/by-name/web/rootfs.ext4"
    rootfs.chmod(0o644)
    with rootfs.open("r+b") as stream:
        stream.seek(9 << 20)
        stream.write(b"damaged")


CASES: dict[str, Callable[[Path], object] | None] = {
    "create": None,
    "new-size": lambda root: write_config(root, size="36MiB"),
    "new-name": lambda root: write_config(root, name="www"),
    "new-kernel": new_kernel,
    "damaged": damage,
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_step_the_next_pass_heals(tmp_path: Path, case: str) -> None:
    make_layout(
        tmp_path / "web", [tar(directory("etc"), file("etc/hostname", b"guest\n"))], tag="1"
    )
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    config = write_config(tmp_path)
    template = []
    change = CASES[case]
    if change:
        program = Program(tmp_path / "template")
        assert program.run(config).code == 0
        change(tmp_path)
        template = [str(program.root)]
    done = subprocess.run(
        [
            sys.executable,
            str(CRASH),
            str(tmp_path / "host"),
            "1",
            str(STRIDE),
            str(config),
            *template,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *found, points = done.stdout.splitlines()
    assert found == []
    assert int(points.split()[0]) >= 3
