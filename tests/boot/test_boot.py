"""Images boot: under QEMU without KVM, with a distribution's kernel and the generated initramfs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import images
from support.boots import FIRST_BOOT_STEP, MIB, NETWORK, build, check_two_boots, mmdebstrap, report
from support.machine import ask_vsock, boot, command_of, disk_of, running
from support.program import Program

SYSTEMD = """
say target "$(systemctl is-active multi-user.target)"
say failed $(systemctl --failed --plain --no-legend)
say modules "$(modprobe dummy && ls -d /sys/module/dummy)"
say program "$(systemctl is-active banger-entrypoint)"
pid=$(systemctl show -P MainPID banger-entrypoint)
say runs $(stat -c %U:%G /proc/$pid) $(tr '\\0' ' ' </proc/$pid/cmdline)
say folder $(readlink /proc/$pid/cwd)
say environment $(tr '\\0' ' ' </proc/$pid/environ)
say stops-with "$(systemctl show -P KillSignal banger-entrypoint)"
"""
UNIT = """[Unit]
DefaultDependencies=no
After=multi-user.target banger-first-boot.service banger-vsock-agent.service

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/report
"""
RUNTIME = {
    "Entrypoint": ["/bin/sleep"],
    "Cmd": ["infinity"],
    "Env": ["GREETING=hello world"],
    "User": "games",
    "WorkingDir": "/var/tmp",
    "StopSignal": "SIGINT",
}


@pytest.fixture(scope="session")
def debian(program: Program) -> Path:
    """The artifact of a Debian with systemd that reports and powers off. Its /lib is a link."""
    packages = "systemd-sysv,udev,dbus,kmod,iproute2,socat"
    base = mmdebstrap(program.root / "systemd.tar", packages)
    wants = "etc/systemd/system/multi-user.target.wants/report.service"
    reporting = images.tar(
        images.file("usr/local/sbin/report", report("systemctl poweroff --force", SYSTEMD), 0o755),
        images.file("etc/systemd/system/report.service", UNIT.encode()),
        images.symlink(wants, "/etc/systemd/system/report.service"),
        images.file("etc/resolv.conf"),  # as builds leave it, and of no use
        images.file("etc/banger/first-boot.d/10-step", FIRST_BOOT_STEP.encode(), 0o755),
    )
    layers = [images.LayerBytes(base, "none"), reporting]
    images.make_layout(program.root / "debian", layers, config=RUNTIME)
    keys = "inject-modules = true\nrun-entrypoint = true"
    return build(program, "debian", "1GiB", keys)


def test_debian_boots_once_as_new_and_then_as_itself(debian: Path, tmp_path: Path) -> None:
    disk = disk_of(debian, tmp_path / "disk", 2048 * MIB)
    first, second = boot(debian, disk, NETWORK), boot(debian, disk, NETWORK)
    check_two_boots(first, second)
    told = first.reports()
    assert (told["init"], told["lib"]) == ("systemd", "usr/lib")
    assert (told["target"], told["failed"]) == ("active", "")
    assert json.loads(told["health"])["failed_units"] == []
    assert told["modules"] == "/sys/module/dummy", "modprobe finds what inject-modules put in"
    assert told["program"] == "active", first.console
    assert told["runs"] == "games:games /bin/sleep infinity"
    assert told["folder"] == "/var/tmp"
    assert "GREETING=hello world" in told["environment"]
    assert "HOME=/usr/games" in told["environment"]
    assert told["stops-with"] == "2"


WAITING = """#!/bin/sh
exec sleep 600
"""


def test_the_agent_answers_the_host(program: Program, tmp_path: Path) -> None:
    """From outside, where the host's kernel has vsock for guests."""
    if not os.access("/dev/vhost-vsock", os.R_OK | os.W_OK):
        pytest.skip("no /dev/vhost-vsock on this machine: `modprobe vhost_vsock` where it may be")
    layer = _busybox(images.file("bin/application", WAITING.encode(), 0o755))
    images.make_layout(
        program.root / "waiting", [layer], config={"Entrypoint": ["/bin/application"]}
    )
    artifact = build(program, "waiting", "64MiB")
    cid = 3 + os.getpid()
    disk = disk_of(artifact, tmp_path / "disk", 64 * MIB)
    command = [*command_of(artifact, disk, ""), "-device", f"vhost-vsock-pci,guest-cid={cid}"]
    with running(command) as machine:
        answer = ask_vsock(machine, cid, 42070, b"GET /ping HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\npong")


def _busybox(*more: images.Entry) -> bytes:
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("no busybox: contrib/install-packages test installs it")
    return images.tar(
        *(images.directory(name) for name in ("bin", "etc", "srv")),
        images.file("bin/busybox", busybox.read_bytes(), 0o755),
        *(images.symlink(f"bin/{name}", "busybox") for name in TOOLS),
        *more,
    )


APPLICATION = """#!/bin/sh
{
    echo "REPORT user $(id -u):$(id -g) $(id -G)"
    echo "REPORT greeting $GREETING"
    echo "REPORT folder $(pwd)"
    echo "REPORT arguments $*"
    echo "REPORT home $HOME"
    echo "REPORT parent $PPID"
    echo "REPORT proc $(test -r /proc/uptime && echo mounted)"
    echo "REPORT tmp $(touch /tmp/x && echo writable)"
    echo "REPORT state $(cat /run/banger/application)"
    echo "REPORT marker $(ls /var/lib/banger)"
} >/tmp/report
cat /tmp/report # at once: the console is the kernel's and the agent's, too
(sleep 0.1 &) # an orphan for PID 1
sleep 0.3
exit 3
"""
TOOLS = ("sh", "id", "pwd", "echo", "cat", "ls", "sleep", "test", "touch")


@pytest.fixture(scope="session")
def bare(program: Program) -> Path:
    """The artifact of an image with no init: busybox and one application."""
    layer = _busybox(
        images.directory("srv/data", uid=1000, gid=1000),
        images.file("bin/application", APPLICATION.encode(), 0o755),
        images.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/data:\n"),
        images.file("etc/group", b"app:x:1001:\nmore:x:77:app\n"),
    )
    config = {
        "Entrypoint": ["/bin/application"],
        "Cmd": ["--serve", "two words"],
        "Env": ["PATH=/bin", "GREETING=hello world"],
        "User": "app",
        "WorkingDir": "/srv/data",
    }
    images.make_layout(program.root / "bare", [layer], config=config)
    return build(program, "bare", "64MiB")


def test_an_image_without_init_runs_its_entrypoint(bare: Path, tmp_path: Path) -> None:
    disk = disk_of(bare, tmp_path / "disk", 256 * MIB)
    ran = boot(bare, disk, "ip=10.0.2.15::10.0.2.2:255.255.255.0:web::off")
    told = ran.reports()
    state = told.get("state", "")
    assert state.startswith("running "), ran.console
    assert told == {
        "user": "1000:1001 1001 77",
        "greeting": "hello world",
        "folder": "/srv/data",
        "arguments": "--serve two words",
        "home": "/srv/data",
        "parent": "1",
        "proc": "mounted",
        "tmp": "writable",
        "state": state,
        "marker": "",
    }, ran.console
    assert "banger-init: the application ended with status: 3\n" in ran.console
    assert "banger-network: set as the kernel command line says: eth0\n" in ran.console
    assert "banger-grow: grown" in ran.console
    assert "listening on: vsock port 42070" in ran.console
    assert "Kernel panic" not in ran.console
