"""A virtual machine without KVM, as docs and specification start it; its serial console is read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

QEMU = "qemu-system-x86_64"
PATIENCE = 1500
"""Seconds until a machine that says nothing more is ended; a boot takes 10 to 40."""
ANSWER = "REPORT ping pong"


@dataclass(frozen=True)
class Boot:
    """What one boot said on its console, without carriage returns, and what it cost.

    agent_seconds: of processor time when the agent's answer arrived, 0.0 when none did.
    """

    console: str
    processor_seconds: float
    agent_seconds: float

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
    return watch(command_of(artifact, disk, command_line))


def command_of(artifact: Path, disk: Path, command_line: str) -> list[str | Path]:
    """The machine that `boot` starts."""
    return [
        *f"{QEMU} -accel tcg -M q35 -cpu max -m 1024 -nodefaults -no-user-config".split(),
        *["-nographic", "-serial", "stdio", "-no-reboot"],
        *("-kernel", artifact / "kernel", "-initrd", artifact / "initrd.img"),
        *("-append", f"console=ttyS0 root=/dev/vda rw panic=-1 quiet {command_line}"),
        *("-drive", f"id=d,file={disk},format=raw,if=none", "-device"),
        *("virtio-blk-pci,drive=d", "-netdev", "user,id=n,restrict=on", "-device"),
        "virtio-net-pci,netdev=n",
    ]


@contextmanager
def running(command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that is ended with the block."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield machine
    finally:
        machine.kill()
        machine.wait()


def ask_vsock(machine: subprocess.Popen[bytes], cid: int, port: int, request: bytes) -> bytes:
    """The answer of a guest that is still booting: asked again until it comes."""
    until = time.monotonic() + PATIENCE
    while machine.poll() is None and time.monotonic() < until:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stream:
            try:
                stream.connect((cid, port))
            except OSError:
                time.sleep(0.5)
                continue
            stream.sendall(request)
            return b"".join(iter(lambda: stream.recv(4096), b""))
    return b""


def watch(command: Sequence[str | Path]) -> Boot:
    """Run a machine to its end and read its console, line by line."""
    pipe = subprocess.PIPE
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    giving_up = threading.Timer(PATIENCE, machine.kill)
    giving_up.start()
    lines, answered, spent = [], 0.0, 0.0
    try:
        assert machine.stdout is not None
        for raw in machine.stdout:
            line = raw.decode(errors="replace").replace("\r", "")
            lines.append(line)
            spent = _processor_seconds(machine.pid)
            if ANSWER in line:
                answered = answered or spent
        _, complaints = machine.communicate()
    finally:
        giving_up.cancel()
        machine.kill()
    console = "".join(lines)
    assert machine.returncode == 0, console + complaints.decode(errors="replace")
    return Boot(console, spent, answered)


def _processor_seconds(pid: int) -> float:
    """User and system time of a process and its threads so far (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def disk_of(artifact: Path, place: Path, size: int) -> Path:
    """A disk of `size` bytes that begins with the artifact's filesystem, as a launcher makes it."""
    subprocess.run(["cp", "--sparse=always", artifact / "rootfs.ext4", place], check=True)
    with place.open("r+b") as stream:
        stream.truncate(size)
    return place
