"""A distribution's kernel package: downloaded and unpacked by its own clients, and not installed.

`origins` asks. apt-get checks the signature of what it downloads; root is not needed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from reconciler.errors import Code, HostError, ImageError
from reconciler.files import host_errors
from reconciler.processes import Checkpoint, Completed, run
from reconciler.text import printable
from reconciler.tools import find

_DOWNLOAD_SECONDS = 900
_UNPACK_SECONDS = 300
_MOST_PACKAGES = 3
"""A package named after a flavour depends on one of a version; nothing goes deeper."""

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_NEEDS_APT = "`apt` needs a Debian or one of its children; elsewhere give `kernel` as files."
_NUMBER = re.compile(r"[0-9]+")


def unpack_package(package: str, unpacked: Path, staging: Path, checkpoint: Checkpoint) -> None:
    """Download a package and what it stands for, until one brings a kernel, into `unpacked`.

    unpacked: need not exist. staging: a new directory to work in. Raises HostError when apt fails
    or there is none, ImageError when the package brings no kernel.
    """
    wanted = package
    for _ in range(_MOST_PACKAGES):
        archive = _download(wanted, staging, checkpoint)
        with host_errors(f"{package} cannot be unpacked"):
            unpacked.mkdir(exist_ok=True)
        _tool(checkpoint, "dpkg-deb", "-x", archive, unpacked, seconds=_UNPACK_SECONDS)
        if kernels_in(unpacked):
            return
        fields = _tool(checkpoint, "dpkg-deb", "-f", archive, "Depends", seconds=_UNPACK_SECONDS)
        found = re.search(rb"linux-image-[a-z0-9.+-]+", fields.stdout)
        if found is None:
            break
        wanted = found[0].decode()
    raise ImageError(
        f"the package {package} brings no kernel",
        code=Code.KERNEL_INVALID,
        resolution='Name one such as apt = "linux-image-cloud-amd64".',
    )


def _download(package: str, staging: Path, checkpoint: Checkpoint) -> Path:
    folder = staging / package
    with host_errors(f"{package} cannot be stored"):
        folder.mkdir()
    done = _tool(
        checkpoint, "apt-get", "-q", "download", package, seconds=_DOWNLOAD_SECONDS, folder=folder
    )
    with host_errors(f"{package} cannot be stored"):
        archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise _failed("apt-get", done)
    return archives[0]


def _tool(
    checkpoint: Checkpoint,
    name: str,
    *words: str | Path,
    seconds: float,
    folder: Path = Path("/"),
) -> Completed:
    environment = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    done = run(
        [find(name, resolution=_NEEDS_APT), *words],
        timeout=seconds,
        checkpoint=checkpoint,
        environment=environment,
        directory=folder,
        may_fork=True,
    )
    if done.status != 0:
        raise _failed(name, done)
    return done


def kernels_in(root: Path) -> list[tuple[str, Path]]:
    """(release, path) of every kernel in boot/, by version: 6.10 comes after 6.9."""
    found = [
        (path.name.partition("-")[2], path)
        for pattern in ("vmlinuz-*", "vmlinux-*")
        for path in (root / "boot").glob(pattern)
        if path.is_file()
    ]
    return sorted(found, key=lambda one: ([int(n) for n in _NUMBER.findall(one[0])], one[0]))


def _failed(name: str, done: Completed) -> HostError:
    said = printable((done.stderr or done.stdout)[-600:].strip(), 600)
    return HostError(f"{name} failed with status {done.status}: {said}", code=Code.TOOL_FAILED)
