"""What a file that is meant to be a kernel really is: told by its bytes, never by its name.

`kernel` and `stages.kernel` ask. Sources: the ELF specification; the Linux kernel's
Documentation/arch/x86/boot.rst (the real-mode header) and Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import Code, ImageError
from reconciler.text import printable

_HEAD = 2048
_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}
_ET_REL, _ET_EXEC, _ET_DYN = 1, 2, 3
_PT_LOAD, _PT_INTERP = 1, 3
_XLF_KERNEL_64, _LOADED_HIGH = 1, 1
_BANNER = re.compile(rb"Linux version ([0-9]+\.[0-9]+[!-~]*) ")
_COMPRESSED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\x04\x22\x4d\x18", "lz4-compressed"),
    (b"\x02\x21\x4c\x18", "lz4-compressed"),
    (b"\x89LZO\0", "lzo-compressed"),
    (b"\x5d\0\0", "lzma-compressed"),
)
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"07070", "a cpio archive, as an initrd is"),
    (0, b"!<arch>\n", "an ar archive, perhaps a Debian package"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"hsqs", "a squashfs image"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 filesystem"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"version https://git-lfs", "a Git LFS pointer; the file itself was not fetched"),
    (0, b"#!", "a script"),
    (4, b"zimg", "an EFI zboot image, compressed; the kernel is inside"),
    (0, b"MZ", "an EFI program"),
)


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel: kind ("ELF vmlinux", "bzImage", "Image"), OCI architecture, `uname -r` or None."""

    kind: str
    architecture: str
    release: str | None

    def __str__(self) -> str:
        start = "an" if self.kind.startswith("ELF") else "a"
        of = f", release {self.release}" if self.release else ""
        return f"{start} {self.kind} for {self.architecture}{of}"


def inspect_kernel(path: Path, label: str) -> KernelImage:
    """Recognise a kernel. `label` names the file in messages. OSError passes through.

    Raises ImageError (kernel-invalid), which says what the file is instead.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
        if head[0x202:0x206] == b"HdrS" and len(head) > 0x238:
            return _bzimage(head, os.pread(stream.fileno(), 256, _version_offset(head)), label)
        if head[56:60] == b"ARM\x64":
            return KernelImage("Image", "arm64", _banner(stream.fileno()))
        if head[:4] == b"\x7fELF":
            architecture = _elf(head, label)
            return KernelImage("ELF vmlinux", architecture, _banner(stream.fileno()))
    raise _invalid(label, f"is {describe(head)}, not a kernel", _unpack_advice(head))


def check_initrd(path: Path, label: str) -> None:
    """Refuse what surely is no initrd. Raises ImageError (kernel-invalid); OSError passes through.

    Only what is known to be something else: Linux takes filesystem images and several compressions.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    is_kernel = head[0x202:0x206] == b"HdrS" or head[56:60] == b"ARM\x64" or head[:4] == b"\x7fELF"
    what = "a kernel or a program" if is_kernel else describe(head)
    if is_kernel or what in (_EMPTY, _HTML, _TEXT):
        raise _invalid(label, f"is {what}, not an initrd", "Give a cpio archive, packed or not.")


def describe(head: bytes) -> str:
    """What the first bytes (2048 of them, if there are) of a file are, as words after "is"."""
    if not head:
        return _EMPTY
    for magic, name in _COMPRESSED:
        if head.startswith(magic):
            return name
    for offset, magic, name in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return name
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return _HTML
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return _TEXT
    return f"unknown data, beginning with {head[:8].hex(' ')}"


_EMPTY = "empty"
_HTML = "an HTML page, as servers send in place of a file"
_TEXT = "text"


def _bzimage(head: bytes, version: bytes, label: str) -> KernelImage:
    """boot.rst: protocol version at 0x206, loadflags at 0x211, xloadflags (2.12) at 0x236."""
    protocol, xloadflags = (struct.unpack_from("<H", head, at)[0] for at in (0x206, 0x236))
    if not head[0x211] & _LOADED_HIGH:
        raise _invalid(label, "is a zImage, which is too old a form of kernel")
    is_64 = protocol < 0x020C or xloadflags & _XLF_KERNEL_64
    release = version.split(b"\0")[0].split(b" ")[0] if _version_offset(head) > 0x200 else b""
    return KernelImage("bzImage", "amd64" if is_64 else "386", printable(release, 80) or None)


def _version_offset(head: bytes) -> int:
    """boot.rst, kernel_version: "set to a value" less 0x200, a pointer to a NUL-terminated text."""
    return int(struct.unpack_from("<H", head, 0x20E)[0]) + 0x200


def _elf(head: bytes, label: str) -> str:
    """The architecture of an ELF kernel; refuses programs, modules, and what no monitor loads."""
    if len(head) < 64 or head[4] != 2 or head[5] != 1:
        raise _invalid(label, "is a 32-bit or big-endian ELF file, not a kernel for 64-bit guests")
    kind, machine = struct.unpack_from("<HH", head, 16)
    (table,) = struct.unpack_from("<Q", head, 32)
    entry_size, entries = struct.unpack_from("<HH", head, 54)
    if kind == _ET_REL:
        raise _invalid(label, "is an ELF object file, such as a kernel module, not a kernel")
    starts = (table + number * entry_size for number in range(entries))
    types = {struct.unpack_from("<I", head, at)[0] for at in starts if at + 4 <= len(head)}
    if kind not in (_ET_EXEC, _ET_DYN) or _PT_LOAD not in types or _PT_INTERP in types:
        raise _invalid(label, "is an ELF program or library, not a kernel")
    architecture = _MACHINES.get(machine, f"ELF machine {machine}")
    if architecture == "arm64":
        advice = "Give the file Image of the same build (arch/arm64/boot/Image)."
        raise _invalid(label, "is an ELF vmlinux for arm64, where guests boot an Image", advice)
    return architecture


def _banner(descriptor: int) -> str | None:
    """The release in "Linux version RELEASE (...", which every uncompressed Linux contains."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        found = _BANNER.search(content)
        return printable(found[1], 80) if found else None


def _unpack_advice(head: bytes) -> str:
    packed = next((name for magic, name in _COMPRESSED if head.startswith(magic)), None)
    return "Unpack it first, and name the unpacked file." if packed else _ADVICE


_ADVICE = "Give an ELF vmlinux or a bzImage for amd64, or an Image for arm64."


def _invalid(label: str, what: str, advice: str = _ADVICE) -> ImageError:
    return ImageError(f"{label} {what}", code=Code.KERNEL_INVALID, resolution=advice)
