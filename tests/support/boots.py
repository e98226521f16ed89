"""Guests that tell about themselves on their console: images for the boot tests, and what they say.

A guest's `report` asks the agent over vsock from within (loopback), looks around, and powers off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.machine import Boot
from support.program import Program

MIB = 1 << 20
NETWORK = "ip=10.0.2.15::10.0.2.2:255.255.255.0:web::off:10.0.2.3"
FIRST_BOOT_STEP = "#!/bin/sh\necho run >>/own-steps\n"

# socat is the curl of vsock. What an init can tell comes in the middle.
_REPORT = """#!/bin/sh
exec >/dev/console 2>&1
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
ask() {
    printf 'GET /%s HTTP/1.0\\r\\n\\r\\n' "$1" | socat -t 5 - VSOCK-CONNECT:1:42070 | tail -n 1
}
say() { echo "REPORT $*"; }
socat TCP-LISTEN:8080,fork EXEC:/bin/true &
tries=0
until ask ping | grep -q pong || [ $((tries += 1)) -gt 50 ]; do sleep 0.2; done
say ping "$(ask ping)"
say init "$(cat /proc/1/comm)"
say lib "$(readlink /lib)"
say health "$(ask health)"
say ports "$(ask ports)"
say address $(ip -4 -o address show scope global)
say route $(ip -4 route show default)
say resolver $(grep nameserver /etc/resolv.conf)
say hostname "$(hostname) $(cat /etc/hostname)"
say machine-id "$(cat /etc/machine-id)"
say marker $(ls /var/lib/banger)
say blocks $(stat -f -c %b /)
say own-steps $(cat /own-steps)
ENOUGH
sync
POWEROFF
"""


def report(power_off: str, more: str = "") -> bytes:
    """The script. power_off: a command; more: lines of shell."""
    return _REPORT.replace("ENOUGH", more).replace("POWEROFF", power_off).encode()


def mmdebstrap(place: Path, packages: str, *options: str) -> bytes:
    """A Debian as a tar stream. Skips by name of what is missing."""
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        pytest.skip("needs mmdebstrap (contrib/install-packages test installs it) and root")
    if options and not Path(options[0].partition("=")[2]).exists():
        pytest.skip(f"this mmdebstrap has no {options[0]}")
    common = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={packages}"]
    command = [*common, *options, "bookworm", place]
    subprocess.run(command, check=True, capture_output=True)
    return place.read_bytes()


def build(program: Program, name: str, size: str, keys: str = "") -> Path:
    """The artifact of the layout `name`, with a distribution's kernel and a generated initrd."""
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
        {keys}
        """
    )
    result = program.run("--json", config)
    assert result.code == 0, result.out + result.err
    return Path(result.images[name]["path"])


def check_two_boots(first: Boot, second: Boot) -> None:
    """What holds for every image whose own init starts our parts, booted twice with NETWORK."""
    told, again = first.reports(), second.reports()
    assert told["ping"] == "pong", first.console
    assert again["ping"] == "pong", second.console
    check_network(told)
    check_health(told, first)
    check_ports(told)
    assert int(told["blocks"]) * 4096 > 1900 * MIB, "the filesystem has grown to its disk"
    assert told["own-steps"] == again["own-steps"] == "run", second.console
    assert told["marker"] == again["marker"] == ""
    assert len(told["machine-id"]) == 32
    assert told["machine-id"] == again["machine-id"]
    assert json.loads(told["health"])["boot_id"] != json.loads(again["health"])["boot_id"]
    print(
        f"{told['init']}: agent after {first.agent_seconds:.1f} s and {second.agent_seconds:.1f} s"
        f" of processor time; whole boots {first.processor_seconds:.1f} s and"
        f" {second.processor_seconds:.1f} s"
    )


def check_network(told: dict[str, str]) -> None:
    """As NETWORK says it."""
    assert "inet 10.0.2.15/24" in told["address"]
    assert told["route"].startswith("default via 10.0.2.2")
    assert told["resolver"] == "nameserver 10.0.2.3"
    assert told["hostname"] == "web web"


def check_ports(told: dict[str, str]) -> None:
    """The report's own socat is seen, by name."""
    ports = json.loads(told["ports"])
    held = {(port["protocol"], port["port"], port["process"]) for port in ports["ports"]}
    assert ("tcp", 8080, "socat") in held
    assert ports["truncated"] is False


def check_health(told: dict[str, str], first: Boot) -> None:
    """All is well, and the first boot is done."""
    health = json.loads(told["health"])
    assert health["status"] == "ok", first.console
    assert health["first_boot"] == "done"
    assert health["uptime_seconds"] > 0
