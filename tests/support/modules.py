"""Kernel modules that say who they are, and nothing else: enough for whoever reads .modinfo."""

from __future__ import annotations

import struct
from pathlib import Path


def module(*information: str, machine: int = 62) -> bytes:
    """An ELF object whose section .modinfo says this."""
    info = b"".join(line.encode() + b"\0" for line in information)
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, 64, len(info)),
        (10, 3, 0, 0, 64 + len(info), len(names)),
    ]
    rest = b"".join(struct.pack("<IIQQQQIIQQ", *one, 0, 0, 1, 0) for one in sections)
    return head + info + names + rest


def tree(root: Path, modules: dict[str, bytes], built_in: str = "", aliases: bytes = b"") -> Path:
    for path, content in modules.items():
        place = root / "kernel" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    (root / "modules.builtin").write_text(built_in)
    (root / "modules.builtin.modinfo").write_bytes(aliases)
    return root


PLAIN = {
    "drivers/virtio/virtio.ko": module("depends="),
    "drivers/virtio/virtio_pci.ko": module("depends=virtio,virtio_ring"),
    "drivers/virtio/virtio_ring.ko": module("depends=virtio"),
    "drivers/block/virtio_blk.ko": module("depends=virtio,virtio_ring"),
    "fs/ext4/ext4.ko": module("license=GPL", "depends=mbcache,jbd2", "softdep=pre: crc32c"),
    "fs/jbd2/jbd2.ko": module("depends="),
    "fs/mbcache.ko": module("depends="),
    "drivers/char/hw_random/virtio-rng.ko": module("depends=rng-core"),
    "drivers/char/hw_random/rng-core.ko": module("depends="),
    "drivers/unrelated.ko": module("depends="),
}
