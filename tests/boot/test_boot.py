"""Images boot: under QEMU without KVM, with a distribution's kernel and the generated initramfs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import images
from support.machine import Boot, boot, disk_of, require_qemu
from support.program import Program

MIB = 1 << 20
NETWORK = "ip=10.0.2.15::10.0.2.2:255.255.255.0:web::off:10.0.2.3"

# What Debian tells about itself once it is up. socat is the curl of vsock.
REPORT = """#!/bin/sh
exec >/dev/console 2>&1
ask() {
    printf 'GET /%s HTTP/1.0\\r\\n\\r\\n' "$1" | socat -t 5 - VSOCK-CONNECT:1:42070 | tail -n 1
}
say() { echo "REPORT $*"; }
socat TCP-LISTEN:8080,fork EXEC:/bin/true &
tries=0
until ask ping | grep -q pong || [ $((tries += 1)) -gt 50 ]; do sleep 0.2; done
say ping "$(ask ping)"
read -r up idle </proc/uptime
say uptime "$up"
say health "$(ask health)"
say ports "$(ask ports)"
say target "$(systemctl is-active multi-user.target)"
say failed $(systemctl --failed --plain --no-legend)
say address $(ip -4 -o address show scope global)
say route $(ip -4 route show default)
say resolver $(grep nameserver /etc/resolv.conf)
say hostname "$(hostname) $(cat /etc/hostname)"
say machine-id "$(cat /etc/machine-id)"
say marker $(ls /var/lib/banger)
say blocks $(stat -f -c %b /)
say own-steps $(cat /own-steps)
systemctl poweroff --force
"""

UNIT = """[Unit]
DefaultDependencies=no
After=multi-user.target banger-first-boot.service banger-vsock-agent.service

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/report
"""

STEP = "#!/bin/sh\necho run >>/own-steps\n"


@pytest.fixture(scope="session")
def debian_layer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    require_qemu()
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        pytest.skip("needs mmdebstrap (contrib/install-packages test installs it) and root")
    place = tmp_path_factory.mktemp("debian") / "base.tar"
    packages = "--include=systemd-sysv,udev,dbus,kmod,iproute2,socat"
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", packages, "bookworm", place]
    subprocess.run(command, check=True, capture_output=True)
    return place.read_bytes()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("boot"))


@pytest.fixture(scope="session")
def debian(debian_layer: bytes, program: Program) -> Path:
    """The artifact of a Debian with systemd that reports and powers off."""
    wants = "etc/systemd/system/multi-user.target.wants/report.service"
    report = images.tar(
        images.file("usr/local/sbin/report", REPORT.encode(), 0o755),
        images.file("etc/systemd/system/report.service", UNIT.encode()),
        images.symlink(wants, "/etc/systemd/system/report.service"),
        images.file("etc/resolv.conf"),  # as builds leave it, and of no use
        images.file("etc/banger/first-boot.d/10-step", STEP.encode(), 0o755),
    )
    plain = images.LayerBytes(debian_layer, "none")
    images.make_layout(program.root / "debian", [plain, report])
    return build(program, "debian", "768MiB")


def build(program: Program, name: str, size: str) -> Path:
    config = program.root / f"{name}.toml"
    config.write_text(
        f"""
        [[kernel]]
        name = "cloud"
        apt = "linux-image-cloud-amd64"
        initrd = "generated"

        [[image]]
        name = "{name}"
        ref = "oci:{program.root / name}"
        size = "{size}"
        kernel-ref = "cloud"
        """
    )
    result = program.run("--json", config)
    assert result.code == 0, result.out + result.err
    return Path(result.images[name]["path"])


def test_debian_boots_once_as_new_and_then_as_itself(debian: Path, tmp_path: Path) -> None:
    disk = disk_of(debian, tmp_path / "disk", 2048 * MIB)
    first, second = boot(debian, disk, NETWORK), boot(debian, disk, NETWORK)
    told = first.reports()
    assert told["ping"] == "pong", first.console
    assert told["target"] == "active"
    check_network(told)
    check_health(told, first)
    check_ports(told)
    assert int(told["blocks"]) * 4096 > 1900 * MIB, "the filesystem has grown to its disk"
    again = second.reports()
    assert again["ping"] == "pong", second.console
    assert told["own-steps"] == again["own-steps"] == "run"
    assert told["marker"] == again["marker"] == ""
    assert told["machine-id"] == again["machine-id"]
    assert json.loads(told["health"])["boot_id"] != json.loads(again["health"])["boot_id"]
    print(f"agent after {told['uptime']} s; boot {first.processor_seconds:.1f} s of processor time")


def check_network(told: dict[str, str]) -> None:
    assert "inet 10.0.2.15/24" in told["address"]
    assert told["route"].startswith("default via 10.0.2.2")
    assert told["resolver"] == "nameserver 10.0.2.3"
    assert told["hostname"] == "web web"


def check_ports(told: dict[str, str]) -> None:
    report = json.loads(told["ports"])
    held = {(port["protocol"], port["port"], port["process"]) for port in report["ports"]}
    assert ("tcp", 8080, "socat") in held
    assert report["truncated"] is False


def check_health(told: dict[str, str], first: Boot) -> None:
    health = json.loads(told["health"])
    assert health["status"] == "ok", first.console
    assert health["failed_units"] == told["failed"].split() == []
    assert health["first_boot"] == "done"
    assert health["uptime_seconds"] > 0


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
    require_qemu()
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("no busybox: contrib/install-packages test installs it")
    layer = images.tar(
        *(images.directory(name) for name in ("bin", "etc", "srv")),
        images.directory("srv/data", uid=1000, gid=1000),
        images.file("bin/busybox", busybox.read_bytes(), 0o755),
        *(images.symlink(f"bin/{name}", "busybox") for name in TOOLS),
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
