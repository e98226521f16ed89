"""A virtual machine without KVM, as docs and specification start it; its serial console is read."""

from __future__ import annotations

import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

QEMU = "qemu-system-x86_64"
PATIENCE = 1500
"""Seconds until a machine that says nothing more is ended; a boot takes 10 to 40."""


@dataclass(frozen=True)
class Boot:
    """What one boot said on its console, without carriage returns, and what it cost."""

    console: str
    processor_seconds: float

    def reports(self) -> dict[str, str]:
        """The lines `REPORT name value` of a guest that tells about itself."""
        found = {}
        for line in self.console.splitlines():
            _, mark, rest = line.partition("REPORT ")
            name, _, value = rest.partition(" ")
            if mark:
                found[name] = value.strip()
        return found


def require_qemu() -> None:
    """Skip, by name of what is missing."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"no {QEMU} on this machine: contrib/install-packages test installs it")


def boot(artifact: Path, disk: Path, command_line: str) -> Boot:
    """Boot `disk` with the kernel and initrd of an artifact, until the guest powers off."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            *f"{QEMU} -accel tcg -M q35 -cpu max -m 1024 -nodefaults -no-user-config".split(),
            *["-nographic", "-serial", "stdio", "-no-reboot"],
            *("-kernel", artifact / "kernel", "-initrd", artifact / "initrd.img"),
            *("-append", f"console=ttyS0 root=/dev/vda rw panic=-1 quiet {command_line}"),
            *("-drive", f"id=d,file={disk},format=raw,if=none", "-device"),
            *("virtio-blk-pci,drive=d", "-netdev", "user,id=n,restrict=on", "-device"),
            "virtio-net-pci,netdev=n",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    console = done.stdout.decode(errors="replace").replace("\r", "")
    assert done.returncode == 0, console + done.stderr.decode(errors="replace")
    return Boot(console, seconds)


def disk_of(artifact: Path, place: Path, size: int) -> Path:
    """A disk of `size` bytes that begins with the artifact's filesystem, as a launcher makes it."""
    subprocess.run(["cp", "--sparse=always", artifact / "rootfs.ext4", place], check=True)
    with place.open("r+b") as stream:
        stream.truncate(size)
    return place
