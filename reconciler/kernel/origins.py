"""Kernels that are no files yet: a distribution's package, the host's own, a generated initrd.

`KernelStore` asks for every catalog entry, and gets one of plain files back; from there on all
kernels are alike. A package is downloaded and unpacked by the distribution's own clients, which
check its signature; nothing is installed and root is not needed. It stays as it is until its
directory is removed: a kernel does not change because a mirror did. What is made lies in

    <state>/kernels/.origins/<name>/
      package/        the package, unpacked: boot/, lib/modules/
      package.name    what it was asked for as
      initrd.img      generated; `initrd.stamp` says from what
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

from reconciler.errors import Code, HostError, ImageError
from reconciler.files import host_errors, remove_tree, rename_new, write_durably
from reconciler.guest.assets import binary
from reconciler.kernel.files import modules_release, scan_modules
from reconciler.kernel.parts import source_errors
from reconciler.model import FileSource, KernelEntry, Platform, printable
from reconciler.processes import Checkpoint, Completed, never, run
from reconciler.tools import find

_HOST = Path("/")
_DOWNLOAD_SECONDS = 900
_UNPACK_SECONDS = 300
_MOST_PACKAGES = 3
"""A package named after a flavour depends on one of a version; nothing goes deeper."""

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_NEEDS_APT = "`apt` needs a Debian or one of its children; elsewhere give `kernel` as files."
_NUMBER = re.compile(r"[0-9]+")


class Origins:
    """Makes plain files of catalog entries.

    root: `<state>/kernels`. aside: where to put what is made when nothing may be kept there: then
    no package is downloaded either. checkpoint: called while one is downloaded.
    """

    def __init__(
        self,
        root: Path,
        aside: Path | None = None,
        checkpoint: Checkpoint = never,
    ) -> None:
        self._root = root / ".origins"
        self._aside = aside
        self._checkpoint = checkpoint

    def plain(self, entry: KernelEntry) -> KernelEntry:
        """The entry with files in place of whatever it names; makes what is not there yet.

        Raises ImageError (kernel-not-found, kernel-invalid), HostError.
        """
        if entry.package:
            entry = _with_files(entry, self._package(entry.name, entry.package))
        elif entry.is_host:
            entry = _with_files(entry, _HOST)
        if entry.generates_initrd:
            path = self._initrd(entry)
            entry = replace(entry, initrd=FileSource(path, None, None))
        return entry

    # -- packages ---------------------------------------------------------------------------------

    def _package(self, name: str, package: str) -> Path:
        """Where a package lies unpacked."""
        place = self._root / name
        unpacked, noted = place / "package", place / "package.name"
        with host_errors(f"kernel {name} cannot be read"):
            if unpacked.is_dir() and noted.is_file() and noted.read_text() == package:
                return unpacked
        if self._aside is not None:
            raise ImageError(
                f'kernel "{name}": the package {package} is not downloaded yet',
                code=Code.KERNEL_NOT_FOUND,
                resolution="The next pass downloads it; until then nothing can be planned with it.",
            )
        staging = self._root.parent / f".{name}.PACKAGE.staging"  # the collector knows the ending
        with host_errors(f"kernel {name} cannot be stored"):
            remove_tree(staging)
            staging.mkdir(parents=True)
        try:
            self._unpack(package, staging)
            with host_errors(f"kernel {name} cannot be stored"):
                place.mkdir(parents=True, exist_ok=True)
                remove_tree(unpacked)
                rename_new(staging / "package", unpacked)
                write_durably(noted, package.encode())
        finally:
            with host_errors(f"{staging} cannot be removed"):
                remove_tree(staging)
        return unpacked

    def _unpack(self, package: str, staging: Path) -> None:
        """Download a package and what it stands for, until one brings a kernel."""
        unpacked, wanted = staging / "package", package
        for _ in range(_MOST_PACKAGES):
            archive = self._download(wanted, staging)
            with host_errors(f"{package} cannot be unpacked"):
                unpacked.mkdir(exist_ok=True)
            self._tool("dpkg-deb", "-x", archive, unpacked, seconds=_UNPACK_SECONDS)
            if _kernels(unpacked):
                return
            fields = self._tool("dpkg-deb", "-f", archive, "Depends", seconds=_UNPACK_SECONDS)
            found = re.search(rb"linux-image-[a-z0-9.+-]+", fields.stdout)
            if found is None:
                break
            wanted = found[0].decode()
        raise ImageError(
            f"the package {package} brings no kernel",
            code=Code.KERNEL_INVALID,
            resolution='Name one such as apt = "linux-image-cloud-amd64".',
        )

    def _download(self, package: str, staging: Path) -> Path:
        folder = staging / package
        with host_errors(f"{package} cannot be stored"):
            folder.mkdir()
        done = self._tool(
            "apt-get", "-q", "download", package, seconds=_DOWNLOAD_SECONDS, folder=folder
        )
        with host_errors(f"{package} cannot be stored"):
            archives = sorted(folder.glob("*.deb"))
        if not archives:
            raise _failed("apt-get", done)
        return archives[0]

    def _tool(
        self, name: str, *words: str | Path, seconds: float, folder: Path = Path("/")
    ) -> Completed:
        environment = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        done = run(
            [find(name, resolution=_NEEDS_APT), *words],
            timeout=seconds,
            checkpoint=self._checkpoint,
            environment=environment,
            directory=folder,
            may_fork=True,
        )
        if done.status != 0:
            raise _failed(name, done)
        return done

    # -- the generated initrd ---------------------------------------------------------------------

    def _initrd(self, entry: KernelEntry) -> Path:
        if entry.modules is None or entry.modules.path is None:
            raise ImageError(
                f'kernel "{entry.name}": an initrd is generated from modules, and it has none',
                code=Code.KERNEL_INVALID,
                resolution="Give `modules`, or a file for `initrd`.",
            )
        from reconciler.kernel.initramfs import make_initramfs  # only where one is asked for

        modules = entry.modules.path
        with source_errors(entry.name, modules):
            release = _release_directory(modules)
            stamp = _stamp(modules)
            place = (self._aside or self._root) / entry.name
            path, noted = place / "initrd.img", place / "initrd.stamp"
            if self._aside and _is_stamped(self._root / entry.name / "initrd.stamp", stamp):
                return self._root / entry.name / "initrd.img"
            if path.is_file() and _is_stamped(noted, stamp):
                return path
            made = make_initramfs(release, lambda arch: binary(Platform("linux", arch)))
        with host_errors(f"kernel {entry.name} cannot be stored"):
            place.mkdir(parents=True, exist_ok=True)
            noted.unlink(missing_ok=True)
            write_durably(path, made)
            write_durably(noted, stamp.encode())
        return path


def _with_files(entry: KernelEntry, root: Path) -> KernelEntry:
    """The newest kernel below `root`, with the modules of its release where there are some."""
    with source_errors(entry.name, root / "boot"):
        kernels = _kernels(root)
    if not kernels:
        raise ImageError(
            f'kernel "{entry.name}": there is no /boot/vmlinuz-* on this host',
            code=Code.KERNEL_NOT_FOUND,
            resolution='Install a kernel, or use apt = "linux-image-cloud-amd64".',
        )
    release, kernel = kernels[-1]
    found = (root / folder / "modules" / release for folder in ("lib", "usr/lib"))
    modules = next((path for path in found if path.is_dir()), None)
    return replace(
        entry,
        kernel=FileSource(kernel, None, None),
        modules=FileSource(modules, None, None) if modules else None,
    )


def _kernels(root: Path) -> list[tuple[str, Path]]:
    """(release, path) of every kernel in boot/, by version: 6.10 comes after 6.9."""
    found = [
        (path.name.partition("-")[2], path)
        for pattern in ("vmlinuz-*", "vmlinux-*")
        for path in (root / "boot").glob(pattern)
        if path.is_file()
    ]
    return sorted(found, key=lambda one: ([int(n) for n in _NUMBER.findall(one[0])], one[0]))


def _release_directory(modules: Path) -> Path:
    release = modules_release(modules)
    return modules if release is None or modules.name == release else modules / release


def _stamp(modules: Path) -> str:
    """What an initrd is made from: the modules as they lie there, and the guest binaries."""
    binaries = hashlib.sha256()
    for architecture in ("amd64", "arm64"):
        try:
            binaries.update(hashlib.sha256(binary(Platform("linux", architecture))).digest())
        except HostError:
            binaries.update(b"none")
    return f"{scan_modules(modules).fingerprint} {binaries.hexdigest()}"


def _is_stamped(noted: Path, stamp: str) -> bool:
    return noted.is_file() and noted.read_text("utf-8", "replace") == stamp


def _failed(name: str, done: Completed) -> HostError:
    said = printable((done.stderr or done.stdout)[-600:].strip(), 600)
    return HostError(f"{name} failed with status {done.status}: {said}", code=Code.TOOL_FAILED)
