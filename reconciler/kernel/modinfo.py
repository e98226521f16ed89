"""Kernel modules as files: which there are, what they say about themselves, which are built in.

`initramfs` and `depmod` ask. Packages of kernels carry no modules.dep, which is made where they
are installed, so everything comes out of the modules' own section .modinfo. Sources: the ELF
specification (ELF-64), modinfo(8), and the kernel's Documentation/kbuild/kbuild.rst for the lists
of what is built in.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator
from pathlib import Path

from reconciler.errors import Code, ImageError
from reconciler.oci.compression import decompress
from reconciler.oci.limits import Limits
from reconciler.text import printable

SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""How the file of a module may end."""

LARGEST_MODULE = 64 << 20
"""Bytes of a module; the largest of a distribution have about 10 MiB."""

_LIMITS = Limits(layer_bytes=LARGEST_MODULE)


def module_name(spelt: str) -> str:
    """A module's name has underscores where its file may have hyphens."""
    return spelt.replace("-", "_")


def name_of(path: Path) -> str | None:
    """The name of the module in a file; None when it is no module by its own name."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and path.name.isascii():
            return module_name(path.name.removesuffix(suffix))
    return None


def module_files(release: Path) -> dict[str, Path]:
    """Module name -> file, of all below `<release>/kernel`, in the order of their paths."""
    found = {}
    for path in sorted((release / "kernel").rglob("*.ko*")):
        name = name_of(path)
        if name is not None and path.is_file():
            found[name] = path
    return found


def built_in(release: Path) -> set[str]:
    """Names of what is built in, and the aliases of those, by which dependencies may be spelt."""
    return built_in_names(release) | {module_name(alias) for _, alias in built_in_aliases(release)}


def built_in_names(release: Path) -> set[str]:
    """Names of what is built in; none where the kernel's package has no such list."""
    return {module_name(Path(line).stem) for line in listed(release, "modules.builtin")}


def listed(release: Path, name: str) -> list[str]:
    """The words of a list beside the modules; none where there is no such list."""
    try:
        return (release / name).read_text("ascii", "replace").split()
    except FileNotFoundError:
        return []


def built_in_aliases(release: Path) -> list[tuple[str, str]]:
    """(module, alias) of what is built in; empty where the kernel's package has no such list."""
    try:
        info = (release / "modules.builtin.modinfo").read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in info.split(b"\0"):
        name, _, entry = line.partition(b".")
        if entry.startswith(b"alias="):
            found.append((module_name(_text(name)), _text(entry[6:])))
    return found


def unpacked(path: Path) -> bytes:
    """A module's bytes, decompressed. Raises ImageError (kernel-invalid)."""
    raw = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.LZMADecompressor().decompress(raw, LARGEST_MODULE)
        return b"".join(decompress([raw], _LIMITS))
    except (lzma.LZMAError, ImageError) as error:
        raise unusable(path, f"cannot be unpacked: {error}") from None


def information(content: bytes, path: Path) -> Iterator[tuple[str, str]]:
    """(key, value) of each line in the section .modinfo (ELF-64, little-endian).

    Raises ImageError (kernel-invalid) when it is no such module. path: for the message.
    """
    for line in _section(content, path):
        key, _, value = _text(line).partition("=")
        if key:
            yield key, value


def dependencies(content: bytes, path: Path) -> tuple[list[str], list[str]]:
    """What a module needs ("depends"), and what it would like to find before it ("softdep")."""
    needed: list[str] = []
    wished: list[str] = []
    for key, value in information(content, path):
        if key == "depends":
            needed += [module_name(name) for name in value.split(",") if name]
        elif key == "softdep" and value.startswith("pre:"):
            words = value.removeprefix("pre:").partition("post:")[0].split()
            wished += map(module_name, words)
    return needed, wished


def unusable(path: Path, what: str) -> ImageError:
    """The error for modules that cannot be used. what: a clause about `path`."""
    return ImageError(
        f"kernel modules: {printable(str(path))} {what}",
        code=Code.KERNEL_INVALID,
        resolution="Give the modules of this kernel; as an `initrd`, a file does, too.",
    )


def _section(content: bytes, path: Path) -> Iterator[bytes]:
    try:
        if content[:6] != b"\x7fELF\x02\x01":
            raise unusable(path, "is no kernel module")
        (table,) = struct.unpack_from("<Q", content, 40)
        size, count, names_at = struct.unpack_from("<HHH", content, 58)
        sections = [struct.unpack_from("<IIQQQQ", content, table + n * size) for n in range(count)]
        names = sections[names_at][4]
        for section in sections:
            start = names + section[0]
            if content[start : start + 9] == b".modinfo\0":
                yield from content[section[4] : section[4] + section[5]].split(b"\0")
    except (struct.error, IndexError):
        raise unusable(path, "is a damaged kernel module") from None


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace")
