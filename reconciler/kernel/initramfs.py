"""`initrd = "generated"`: the smallest initramfs with which a distribution's kernel finds its disk.

It holds the modules that a virtio disk with ext4 needs, those that network, vsock and random
numbers of a guest need where the kernel has them, and the guest binary as its /init
(guest/src/initramfs.c). Dependencies come from the modules themselves (`modinfo`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.kernel.cpio import Archive
from reconciler.kernel.modinfo import built_in, dependencies, module_files, unpacked, unusable

_NEEDED = ("virtio_pci", "virtio_blk", "ext4")
_USEFUL = (
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
)
_DEEPEST = 64
"""Modules in a chain of dependencies; Debian's longest has 9."""

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
        if len(path) > _DEEPEST:
            raise unusable(self.files[name], "depends on too long a chain of modules")
        content = unpacked(self.files[name])
        needed, wished = dependencies(content, self.files[name])
        for other in needed:
            if not self.want(other, (*path, name)):
                raise unusable(self.files[name], f'needs "{other}", which is not there')
        for other in wished:
            self.want(other, (*path, name))
        self.contents[name] = content
        return True

    def any_module(self) -> bytes:
        """One module, which is of the architecture that all are of."""
        for path in self.files.values():
            content = unpacked(path)
            if content.startswith(b"\x7fELF") and len(content) > _HEADER:
                return content
        return bytes(_HEADER)


def make_initramfs(modules: Path, guest_binary: Callable[[str], bytes]) -> bytes:
    """An initramfs as an unpacked cpio archive; equal inputs give equal bytes.

    modules: `<release>` of /lib/modules. guest_binary: gives it for an OCI architecture. OSError
    passes through. Raises ImageError (kernel-invalid)
    when the modules cannot be read or lack what a disk needs.
    """
    forest = _Forest(module_files(modules), built_in(modules))
    for name in _NEEDED:
        if not forest.want(name):
            raise unusable(modules, f'have no "{name}", without which no disk is found')
    for name in _USEFUL:
        forest.want(name)
    architecture = _MACHINES.get(struct.unpack_from("<H", forest.any_module(), 18)[0])
    if architecture is None:
        raise unusable(modules, "are for an architecture without a guest binary")
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
