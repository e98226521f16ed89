"""The units of contrib/systemd, judged by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import directory, file, make_layout, tar
from support.program import Program

from reconciler.daemon import HEARTBEAT, SHUTDOWN_SECONDS

PR_SET_MDWE = 65
UNITS = Path(__file__).parent.parent / "contrib" / "systemd"
SERVICES = sorted(p.name for p in UNITS.glob("*.service"))
WORST_EXPOSURE = 2.0
"""Of 10; 0 to 2 is what systemd-analyze calls OK or better."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing"
)


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as a package installs them, with a program where they look for it."""
    program = shutil.which("true")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/bin/banger-reconcile", str(program))
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("unit", [*SERVICES, "banger-reconcile-once.timer"])
def test_verify_has_nothing_to_say(installed: Path, unit: str) -> None:
    done = analyze("verify", "--man=no", installed / unit)
    ours = [line for line in done.stderr.splitlines() if "banger" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_little_is_left_to_break(installed: Path, unit: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", installed / unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= WORST_EXPOSURE, done.stdout


@pytest.mark.parametrize("unit", SERVICES)
def test_setuid_files_of_an_image_can_be_unpacked(unit: str) -> None:
    text = (UNITS / unit).read_text()
    assert not [line for line in text.splitlines() if line.startswith("RestrictSUIDSGID")]
    assert "# No RestrictSUIDSGID=yes: " in text  # and why


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def test_both_services_are_hardened_alike() -> None:
    own = ("Description", "Documentation", "Type", "NotifyAccess", "ExecStart", "ExecReload")
    own += ("Restart", "RestartSec", "RestartPreventExitStatus", "TimeoutStartSec", "WatchdogSec")
    own += ("WantedBy",)
    one, other = (
        {name: value for name, value in settings(unit).items() if name not in own}
        for unit in SERVICES
    )
    assert one == other


def test_systemd_waits_longer_than_the_daemon_needs() -> None:
    daemon = settings("banger-reconcile.service")
    stop, watchdog = (
        int(daemon[name][0].rstrip("s")) for name in ("TimeoutStopSec", "WatchdogSec")
    )
    assert stop > SHUTDOWN_SECONDS + HEARTBEAT
    assert watchdog >= 3 * HEARTBEAT
    assert daemon["RestartPreventExitStatus"] == ["64 78"]


@pytest.mark.parametrize("builder", ["direct", "tools"])
def test_images_are_built_without_memory_that_is_written_and_run(
    tmp_path: Path, builder: str
) -> None:
    """What MemoryDenyWriteExecute=yes forbids, forbidden by the kernel itself: prctl(2), MDWE."""
    make_layout(tmp_path / "l", [tar(directory("etc"), file("etc/hostname", b"guest\n"))])
    config = tmp_path / "banger.toml"
    config.write_text(
        f'version = 1\n[[image]]\nname = "a"\nref = "oci:l"\nsize = "16MiB"\n'
        f'builder = "{builder}"\n'
    )
    program = Program(tmp_path / "host")
    deny = (
        "import ctypes, os, sys\n"
        f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0): sys.exit(3)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", deny, *program.argv(config)],
        env=program.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("this kernel has no PR_SET_MDWE (6.3 and newer)")
    assert done.returncode == 0, done.stderr


def test_the_daemon_is_told_from_the_timer() -> None:
    daemon = (UNITS / "banger-reconcile.service").read_text()
    assert "Type=notify" in daemon
    assert "ExecReload=/bin/kill -HUP $MAINPID" in daemon
    assert "WatchdogSec=" in daemon
    assert "Type=oneshot" in (UNITS / "banger-reconcile-once.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is missing")
def test_the_user_is_made(tmp_path: Path) -> None:
    source = UNITS / "banger.sysusers.conf"
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        [
            "systemd-sysusers",
            f"--root={tmp_path}",
            "--replace=/usr/lib/sysusers.d/banger.conf",
            "-",
        ],
        input=source.read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "banger:" in (tmp_path / "etc/passwd").read_text()
