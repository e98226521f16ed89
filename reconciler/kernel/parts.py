"""The three parts of a kernel triple, whatever each is: files here, a directory tree there.

`kernel` and `stages.kernel` treat parts alike through these functions; which of them is a tree,
what each must look like, and whose fault a failure is, stands here. So does the note beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconciler.errors import Code, HostError, ImageError
from reconciler.files import file_digest, host_error
from reconciler.kernel.files import (
    changed,
    copy_file,
    copy_modules,
    file_fingerprint,
    modules_digest,
    modules_release,
    scan_modules,
)
from reconciler.kernel.image import KernelImage, check_initrd, inspect_kernel
from reconciler.model import FileSource, KernelEntry, Platform
from reconciler.text import printable

KERNEL, INITRD, MODULES = "kernel", "initrd.img", "modules"
"""The names of the parts, in the store and beside a rootfs."""
PARTS = (KERNEL, INITRD, MODULES)


class Part(BaseModel):
    """One part as the note knows it. Fingerprints are those of `fingerprint`, "" for a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    digest: str
    source: str
    source_fingerprint: str
    fingerprint: str


class Note(BaseModel):
    """`kernel.json`: what makes a pass over unchanged kernels cost a few stat calls."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    schema_version: int = 1
    cmdline: str
    kind: str
    architecture: str
    release: str | None
    parts: dict[str, Part]

    @property
    def image(self) -> KernelImage:
        """What the kernel was recognised as."""
        return KernelImage(self.kind, self.architecture, self.release)


def sources(entry: KernelEntry) -> dict[str, FileSource]:
    """The parts that an entry has, the kernel first."""
    every = zip(PARTS, (entry.kernel, entry.initrd, entry.modules), strict=True)
    return {part: source for part, source in every if source is not None}


def fingerprint(part: str, path: Path) -> str:
    """Equal fingerprints: not touched meanwhile. Reads no content; OSError passes through."""
    return scan_modules(path).fingerprint if part == MODULES else file_fingerprint(path)


def digest(part: str, path: Path) -> str:
    """`sha256:<hex>` of a part's bytes. OSError passes through."""
    if part == MODULES:
        return modules_digest(scan_modules(path))
    file_fingerprint(path)  # a FIFO would never end
    return file_digest(path)


def copy(part: str, path: Path, target: Path) -> tuple[str, str]:
    """Copy a part to `target`, fsynced: (digest of the copy, fingerprint of its source).

    OSError passes through. Raises HostError (retryable) when the source changed meanwhile.
    """
    if part == MODULES:
        modules = scan_modules(path)
        return copy_modules(modules, target), modules.fingerprint
    before = file_fingerprint(path)
    copied = copy_file(path, target)
    if file_fingerprint(path) != before:
        raise changed(path)
    return copied, before


def recognise(ref: str, paths: dict[str, Path]) -> KernelImage:
    """Check parts by their bytes, and the kernel's release by the modules'; gives the kernel's.

    paths: part -> where it lies, the kernel among them. Raises ImageError (kernel-invalid).
    """
    with source_errors(ref, paths[KERNEL]):
        image = inspect_kernel(paths[KERNEL], label(ref, paths[KERNEL]))
    if INITRD in paths:
        with source_errors(ref, paths[INITRD]):
            check_initrd(paths[INITRD], label(ref, paths[INITRD]))
    if MODULES in paths:
        with source_errors(ref, paths[MODULES]):
            release = modules_release(paths[MODULES])
        if release and image.release and release != image.release:
            raise invalid(
                f"{label(ref, paths[MODULES])} is for release {printable(release, 80)}, "
                f"but the kernel is {image}",
                "Give the modules that were built with this kernel.",
            )
    return image


def check_platform(image: KernelImage, platform: Platform, ref: str) -> None:
    """A kernel must be of its image's architecture. Raises ImageError (kernel-invalid)."""
    if image.architecture != platform.architecture:
        raise invalid(
            f'kernel "{printable(ref, 80)}" is {image}, but the image is for {platform}',
            "Set `kernel-ref` to a kernel for that architecture, or change `platform`.",
        )


def label(ref: str, path: Path) -> str:
    """A file of a kernel as messages name it."""
    return f'kernel "{printable(ref, 80)}": {printable(str(path))}'


def invalid(what: str, advice: str) -> ImageError:
    """The error for a kernel that is there but is not right."""
    return ImageError(what, code=Code.KERNEL_INVALID, resolution=advice)


@contextmanager
def source_errors(ref: str, path: Path) -> Iterator[None]:
    """Turn an OSError about a source into whose fault it is: not there, not readable, the host."""
    try:
        yield
    except OSError as error:
        about = Path(str(error.filename)) if error.filename else path
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise ImageError(
                f"{label(ref, path)} does not exist",
                code=Code.KERNEL_NOT_FOUND,
                resolution="Put the file there, or correct its [[kernel]] entry.",
                retryable=True,
            ) from None
        if isinstance(error, PermissionError) and about.is_relative_to(path):
            raise HostError(
                f"{label(ref, about)} may not be read",
                code=Code.NOT_PERMITTED,
                resolution="Make it readable; some distributions install kernels for root alone.",
                retryable=False,
            ) from None
        raise host_error(f'kernel "{printable(ref, 80)}" cannot be copied', error) from error
