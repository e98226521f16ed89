"""`guest = false` leaves an image as it is: what the kernel mounts is what umoci unpacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.program import Program
from test_debian import walked

HELLO = Path(__file__).parent.parent / "examples/hello"


@pytest.mark.parametrize("builder", ["direct", "tools"])
def test_guest_false_changes_nothing(builder: str, tmp_path: Path) -> None:
    if shutil.which("umoci") is None or os.geteuid() != 0:
        pytest.skip("needs umoci (contrib/install-packages test installs it) and root, to mount")
    program = Program(tmp_path)
    config = tmp_path / "banger.toml"
    config.write_text(
        f'[[image]]\nname = "hello"\nref = "oci:{HELLO}:latest"\nsize = "64MiB"\n'
        f'guest = false\nbuilder = "{builder}"\n'
    )
    done = program.run(config)
    assert done.code == 0, done.out + done.err
    bundle, mount = tmp_path / "bundle", tmp_path / "mount"
    unpack = ["umoci", "unpack", "--image", f"{HELLO}:latest", bundle]
    subprocess.run(unpack, check=True, capture_output=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop,ro", program.rootfs("hello"), mount], check=True)
    try:
        found, wanted = walked(mount), walked(bundle / "rootfs")
    finally:
        subprocess.run(["umount", mount], check=True)
    for things in (found, wanted):
        for thing in things.values():
            thing.group = None  # the number of an inode differs from filesystem to filesystem
        things.pop("", None)
        things.pop("lost+found", None)
    assert found == wanted
    assert "usr/bin/whoami-root" in found
