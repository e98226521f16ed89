"""`initrd = "generated"`: the smallest initramfs with which a distribution's kernel finds its disk.

It holds the modules that a virtio disk with ext4 needs, those that network, vsock and random
numbers of a guest need where the kernel has them, and the guest binary as its /init
(guest/src/initramfs.c). Dependencies come from the modules themselves: packages of kernels carry
no modules.dep, which is made where they are installed.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.errors import Code, ImageError
from reconciler.kernel.cpio import Archive
from reconciler.model import printable
from reconciler.oci.compression import decompress
from reconciler.oci.limits import Limits

_NEEDED = ("virtio_pci", "virtio_blk", "ext4")
_USEFUL = (
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
)
_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
_LARGEST = 64 << 20
"""Bytes of a module; the largest of a distribution have about 10 MiB."""

_LIMITS = Limits(layer_bytes=_LARGEST)

_MACHINES = {62: "amd64", 183: "arm64"}
_HEADER = 64
"""Bytes of an ELF-64 header."""

_MODULES = "modules"
_LIST = "list"


@dataclass(slots=True)
class _Forest:
    """The modules of one kernel: where each lies, and which are built in."""

    files: dict[str, Path]
    built_in: set[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    """Those that are wanted, each behind what it depends on."""

    def want(self, name: str, path: tuple[str, ...] = ()) -> bool:
        """Add a module behind its dependencies; False when this kernel has it in no form."""
        if name in self.contents or name in self.built_in or name in path:
            return True
        if name not in self.files:
            return False
        content = _unpacked(self.files[name])
        needed, wished = _dependencies(content, self.files[name])
        for other in needed:
            if not self.want(other, (*path, name)):
                raise _invalid(self.files[name], f'needs "{other}", which is not there')
        for other in wished:
            self.want(other, (*path, name))
        self.contents[name] = content
        return True

    def any_module(self) -> bytes:
        """One module, which is of the architecture that all are of."""
        for path in self.files.values():
            content = _unpacked(path)
            if content.startswith(b"\x7fELF") and len(content) > _HEADER:
                return content
        return bytes(_HEADER)


def make_initramfs(modules: Path, guest_binary: Callable[[str], bytes]) -> bytes:
    """An initramfs as an unpacked cpio archive; equal inputs give equal bytes.

    modules: `<release>` of /lib/modules. guest_binary: gives it for an OCI architecture. OSError
    passes through. Raises ImageError (kernel-invalid)
    when the modules cannot be read or lack what a disk needs.
    """
    forest = _Forest(_files(modules), _built_in(modules))
    for name in _NEEDED:
        if not forest.want(name):
            raise _invalid(modules, f'have no "{name}", without which no disk is found')
    for name in _USEFUL:
        forest.want(name)
    architecture = _MACHINES.get(struct.unpack_from("<H", forest.any_module(), 18)[0])
    if architecture is None:
        raise _invalid(modules, "are for an architecture without a guest binary")
    return _archive(forest.contents, guest_binary(architecture))


def _archive(modules: dict[str, bytes], guest_binary: bytes) -> bytes:
    archive = Archive()
    for name in ("dev", "proc", "sys", _MODULES):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    for name, content in modules.items():
        archive.file(f"{_MODULES}/{name}.ko", content)
    names = "".join(f"{name}.ko\n" for name in modules)
    archive.file(f"{_MODULES}/{_LIST}", names.encode("ascii"))
    archive.file("init", guest_binary, 0o755)
    return archive.finish()


def _files(modules: Path) -> dict[str, Path]:
    """Module name -> file. A name has underscores where its file may have hyphens."""
    found = {}
    for path in sorted((modules / "kernel").rglob("*.ko*")):
        for suffix in _SUFFIXES:
            if path.name.endswith(suffix) and path.name.isascii():
                found[_name(path.name.removesuffix(suffix))] = path
    return found


def _built_in(modules: Path) -> set[str]:
    """Names of what is built in, and the aliases of those, by which dependencies may be spelt."""
    listed = (modules / "modules.builtin").read_text("ascii", "replace").split()
    names = {_name(Path(line).stem) for line in listed}
    try:
        info = (modules / "modules.builtin.modinfo").read_bytes()
    except FileNotFoundError:
        return names
    for line in info.split(b"\0"):
        _, _, entry = line.partition(b".")
        if entry.startswith(b"alias="):
            names.add(_name(entry[6:].decode("ascii", "replace")))
    return names


def _name(spelt: str) -> str:
    return spelt.replace("-", "_")


def _unpacked(path: Path) -> bytes:
    raw = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.LZMADecompressor().decompress(raw, _LARGEST)
        return b"".join(decompress([raw], _LIMITS))
    except (lzma.LZMAError, ImageError) as error:
        raise _invalid(path, f"cannot be unpacked: {error}") from None


def _dependencies(content: bytes, path: Path) -> tuple[list[str], list[str]]:
    """What a module needs ("depends"), and what it would like to find before it ("softdep")."""
    needed: list[str] = []
    wished: list[str] = []
    for line in _information(content, path):
        key, _, value = line.decode("ascii", "replace").partition("=")
        if key == "depends":
            needed += [_name(name) for name in value.split(",") if name]
        elif key == "softdep" and value.startswith("pre:"):
            words = value.removeprefix("pre:").partition("post:")[0].split()
            wished += map(_name, words)
    return needed, wished


def _information(content: bytes, path: Path) -> Iterator[bytes]:
    """The strings of the section .modinfo (ELF-64, little-endian)."""
    try:
        if content[:6] != b"\x7fELF\x02\x01":
            raise _invalid(path, "is no kernel module")
        (table,) = struct.unpack_from("<Q", content, 40)
        size, count, names_at = struct.unpack_from("<HHH", content, 58)
        sections = [struct.unpack_from("<IIQQQQ", content, table + n * size) for n in range(count)]
        names = sections[names_at][4]
        for section in sections:
            start = names + section[0]
            if content[start : start + 9] == b".modinfo\0":
                yield from content[section[4] : section[4] + section[5]].split(b"\0")
    except (struct.error, IndexError):
        raise _invalid(path, "is a damaged kernel module") from None


def _invalid(path: Path, what: str) -> ImageError:
    return ImageError(
        f'initrd = "generated": {printable(str(path))} {what}',
        code=Code.KERNEL_INVALID,
        resolution="Give the modules of this kernel, or a file for `initrd`.",
    )
