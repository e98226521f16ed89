"""Images with an init that is not systemd boot, and start our parts in their own way."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import images
from support.boots import FIRST_BOOT_STEP, MIB, NETWORK, build, check_two_boots, mmdebstrap, report
from support.machine import boot, disk_of
from support.program import Program

PACKAGES = "sysvinit-core,kmod,iproute2,socat,busybox-static"
POWER_OFF = "busybox poweroff -f"
NOT_MERGED = "--hook-dir=/usr/share/mmdebstrap/hooks/no-merged-usr"

# As Alpine has it: busybox is init, and OpenRC does the rest.
ALPINE_INITTAB = """::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::once:/usr/local/sbin/report
::shutdown:/sbin/openrc shutdown
"""
RC_LOCAL = "#!/bin/sh\n/usr/local/sbin/report &\n"


def with_report(program: Program, name: str, base: bytes, more: list[images.Entry]) -> Path:
    upper = images.tar(
        images.file("usr/local/sbin/report", report(POWER_OFF), 0o755),
        images.file("etc/banger/first-boot.d/10-step", FIRST_BOOT_STEP.encode(), 0o755),
        images.symlink("etc/resolv.conf", "../run/nowhere"),
        *more,
    )
    images.make_layout(program.root / name, [images.LayerBytes(base, "none"), upper])
    return build(program, name, "768MiB")


@pytest.fixture(scope="session")
def openrc(program: Program) -> Path:
    """The artifact of an Alpine-like image: busybox as init, and OpenRC. Its /lib is a link."""
    base = mmdebstrap(program.root / "openrc.tar", f"openrc,{PACKAGES}")
    own = [
        images.symlink("sbin/init", "/bin/busybox"),
        images.file("etc/inittab", ALPINE_INITTAB.encode()),
    ]
    return with_report(program, "openrc", base, own)


@pytest.fixture(scope="session")
def sysvinit(program: Program) -> Path:
    """The artifact of a Debian with sysvinit, whose /lib is a directory of its own."""
    base = mmdebstrap(program.root / "sysvinit.tar", PACKAGES, NOT_MERGED)
    return with_report(
        program, "sysvinit", base, [images.file("etc/rc.local", RC_LOCAL.encode(), 0o755)]
    )


def test_an_alpine_like_image_boots(openrc: Path, tmp_path: Path) -> None:
    disk = disk_of(openrc, tmp_path / "disk", 2048 * MIB)
    first, second = boot(openrc, disk, NETWORK), boot(openrc, disk, NETWORK)
    check_two_boots(first, second)
    assert (first.reports()["init"], first.reports()["lib"]) == ("init", "usr/lib")


def test_an_image_with_sysvinit_boots(sysvinit: Path, tmp_path: Path) -> None:
    disk = disk_of(sysvinit, tmp_path / "disk", 2048 * MIB)
    first, second = boot(sysvinit, disk, NETWORK), boot(sysvinit, disk, NETWORK)
    check_two_boots(first, second)
    assert (first.reports()["init"], first.reports()["lib"]) == ("init", "")
