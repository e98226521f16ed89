"""Kernels that are no files yet: a package, an OCI image, the host's own, a generated initrd.

`KernelStore` asks for every catalog entry, and gets one of plain files back; from there on all
kernels are alike. A package stays as it is until its directory is removed: a kernel does not change
because a mirror did. A tag of an image is looked up once a pass, like those of guest images. What
is made lies in

    <state>/kernels/.origins/<name>/
      package/                   the package, unpacked: boot/, lib/modules/
      image/, kernel.image/...   what was taken out of OCI images
      <each of them>.from        what it is: its name or reference, and what that stood for
      initrd.img                 generated; `initrd.stamp` says from what
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from reconciler.errors import Code, HostError, ImageError, RemoteError
from reconciler.files import host_errors, remove_tree, rename_new, write_durably
from reconciler.guest.assets import binary
from reconciler.kernel.files import modules_release, scan_modules
from reconciler.kernel.package import kernels_in, unpack_package
from reconciler.kernel.parts import INITRD, KERNEL, MODULES, source_errors, sources
from reconciler.kernel.unpack import KernelImages, Pick, pick_kernel, pick_path
from reconciler.model import FileSource, KernelEntry, Platform
from reconciler.processes import Checkpoint, never
from reconciler.text import printable

_HOST = Path("/")
_MADE = "made"


@dataclass(slots=True)
class Origins:
    """Makes plain files of catalog entries.

    root: `<state>/kernels`. aside: where to put what is made when nothing may be kept there: then
    nothing is downloaded either. checkpoint: called while a package is. images: reads OCI images.
    """

    root: Path
    aside: Path | None = None
    checkpoint: Checkpoint = never
    images: KernelImages | None = None
    _seen: dict[tuple[str, str], tuple[Path, str]] = field(default_factory=dict)

    def plain(self, entry: KernelEntry) -> KernelEntry:
        """The entry with files in place of whatever it names; makes what is not there yet.

        Raises ImageError (kernel-not-found, kernel-invalid), HostError, RemoteError.
        """
        if entry.package:
            entry = _with_files(entry, self._package(entry.name, entry.package))
        elif entry.is_host:
            entry = _with_files(entry, _HOST)
        elif entry.image:
            entry = self._from_image(entry, entry.image)
        for part, source in sources(entry).items():
            if source.image and source.file:
                entry = self._part_from_image(entry, part, source)
        if entry.generates_initrd:
            path = self._initrd(entry)
            entry = replace(entry, initrd=FileSource(path, None, None))
        return entry

    # -- what is kept ------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        return self.root / ".origins" / name

    def _noted(self, name: str, slot: str) -> list[str]:
        """What lies there unpacked, line by line; nothing when nothing does."""
        place = self._place(name)
        with host_errors(f"kernel {name} cannot be read"):
            if (place / slot).is_dir() and (place / f"{slot}.from").is_file():
                return (place / f"{slot}.from").read_text("utf-8", "replace").splitlines()
        return []

    @contextmanager
    def _renewed(self, name: str, slot: str, lines: list[str]) -> Iterator[Path]:
        """Gives a new directory; what the block leaves in its `made` is kept, and noted as that."""
        place = self._place(name)
        staging = self.root / f".{name}.ORIGIN.staging"  # the collector knows the ending
        wrong = f"kernel {name} cannot be stored"
        with host_errors(wrong):
            remove_tree(staging)
            staging.mkdir(parents=True)
        try:
            yield staging
            with host_errors(wrong):
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{slot}.from").unlink(missing_ok=True)
                remove_tree(place / slot)
                rename_new(staging / _MADE, place / slot)
                write_durably(place / f"{slot}.from", "".join(f"{x}\n" for x in lines).encode())
        finally:
            with host_errors(f"{staging} cannot be removed"):
                remove_tree(staging)

    # -- packages ---------------------------------------------------------------------------------

    def _package(self, name: str, package: str) -> Path:
        """Where a package lies unpacked."""
        if self._noted(name, "package") != [package]:
            if self.aside is not None:
                raise _not_here(name, f"the package {package}")
            with self._renewed(name, "package", [package]) as staging:
                unpack_package(package, staging / _MADE, staging, self.checkpoint)
        return self._place(name) / "package"

    # -- OCI images -------------------------------------------------------------------------------

    def _from_image(self, entry: KernelEntry, ref: str) -> KernelEntry:
        place, origin = self._unpacked(entry, "image", ref, "", pick_kernel)
        modules = place / MODULES
        return replace(
            entry,
            kernel=FileSource(place / KERNEL, None, None),
            modules=FileSource(modules, None, None) if modules.is_dir() else None,
            origin=origin,
        )

    def _part_from_image(self, entry: KernelEntry, part: str, source: FileSource) -> KernelEntry:
        """One part replaced by a file; its pin is checked like that of any other file."""
        ref, file = source.image or "", source.file or ""
        place, origin = self._unpacked(entry, f"{part}.image", ref, file, pick_path(file, part))
        local = FileSource(place / part, None, source.sha256)
        entry = replace(entry, origin=" ".join(dict.fromkeys((*entry.origin.split(), origin))))
        if part == KERNEL:
            return replace(entry, kernel=local)
        return replace(entry, initrd=local) if part == INITRD else replace(entry, modules=local)

    def _unpacked(
        self, entry: KernelEntry, slot: str, ref: str, file: str, pick: Pick
    ) -> tuple[Path, str]:
        """(where it lies unpacked, REF@DIGEST). Looked up once a pass."""
        if (entry.name, slot) not in self._seen:
            asked = [ref, file, str(entry.platform)]
            found, digest = self._unpack(entry, slot, asked, pick)
            self._seen[entry.name, slot] = found, f"{ref.partition('@')[0]}@{digest}"
        return self._seen[entry.name, slot]

    def _unpack(
        self, entry: KernelEntry, slot: str, asked: list[str], pick: Pick
    ) -> tuple[Path, str]:
        if self.images is None:
            raise HostError("kernels cannot be read out of images here", code=Code.INTERNAL)
        name, ref, place = entry.name, asked[0], self._place(entry.name) / slot
        digest, *noted = self._noted(name, slot) or [""]
        try:
            pinned = self.images.pin(name, ref, entry.platform)
        except RemoteError:
            if noted == asked:
                return place, digest  # the copy stands in for it, as it does for a path
            raise
        if [digest, *noted] == [pinned.digest, *asked]:
            return place, digest
        if self.aside is not None:
            if not self.images.is_local(ref, pinned):
                raise _not_here(name, f"the image {printable(ref)}")
            self.images.unpack(name, ref, pinned, pick, self.aside / name / slot)
            return self.aside / name / slot, pinned.digest
        with self._renewed(name, slot, [pinned.digest, *asked]) as staging:
            self.images.unpack(name, ref, pinned, pick, staging / _MADE)
        return place, pinned.digest

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
            kept = self._place(entry.name)
            place = self.aside / entry.name if self.aside else kept
            path, noted = place / "initrd.img", place / "initrd.stamp"
            if self.aside and _is_stamped(kept / "initrd.stamp", stamp):
                return kept / "initrd.img"
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
        kernels = kernels_in(root)
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


def _not_here(name: str, what: str) -> ImageError:
    return ImageError(
        f'kernel "{name}": {what} is not downloaded yet, which the next pass does',
        code=Code.KERNEL_NOT_FOUND,
        resolution="Until then nothing can be planned with it.",
    )


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
