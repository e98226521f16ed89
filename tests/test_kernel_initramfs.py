"""The generated initramfs: what is in it, in which order, and what is refused."""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import pytest
from support.modules import PLAIN, module, tree

from reconciler.errors import Code, ImageError
from reconciler.kernel.initramfs import make_initramfs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def contents(archive: bytes) -> dict[str, bytes]:
    """A newc archive, read by its documentation."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + n * 8 : at + 14 + n * 8], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = archive[at : at + size]
        at = (at + size + 3) & ~3


def make(root: Path) -> dict[str, bytes]:
    return contents(make_initramfs(root, lambda architecture: architecture.encode()))


def order(found: dict[str, bytes]) -> list[str]:
    return found["modules/list"].decode().split()


def test_dependencies_come_first_and_nothing_else_comes(tmp_path: Path) -> None:
    found = make(tree(tmp_path, PLAIN))
    names = order(found)
    assert sorted(names) == sorted(
        ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_blk.ko", "mbcache.ko", "jbd2.ko",
         "ext4.ko", "rng_core.ko", "virtio_rng.ko"]
    )  # fmt: skip
    for before, after in (("virtio", "virtio_ring"), ("jbd2", "ext4"), ("rng_core", "virtio_rng")):
        assert names.index(f"{before}.ko") < names.index(f"{after}.ko")
    assert {f"modules/{name}" for name in names} <= found.keys()
    assert found["modules/ext4.ko"] == PLAIN["fs/ext4/ext4.ko"]
    assert found["init"] == b"amd64"
    assert {"dev", "dev/console", "proc", "sys"} <= found.keys()


def test_the_same_modules_give_the_same_bytes(tmp_path: Path) -> None:
    one = make_initramfs(tree(tmp_path / "one", PLAIN), lambda _: b"x")
    backwards = dict(reversed(PLAIN.items()))
    assert make_initramfs(tree(tmp_path / "two", backwards), lambda _: b"x") == one


def test_packed_modules_are_unpacked(tmp_path: Path) -> None:
    packed = {
        **{f"{path}.xz": lzma.compress(raw) for path, raw in list(PLAIN.items())[::2]},
        **{f"{path}.zst": zstd.compress(raw) for path, raw in list(PLAIN.items())[1::2]},
    }
    assert make(tree(tmp_path / "packed", packed)) == make(tree(tmp_path / "plain", PLAIN))


def test_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    some = {path: raw for path, raw in PLAIN.items() if "virtio" not in path}
    built_in = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n"
    names = order(make(tree(tmp_path, some, built_in)))
    assert sorted(names) == ["ext4.ko", "jbd2.ko", "mbcache.ko"]


def test_a_soft_dependency_is_found_where_there_is_one(tmp_path: Path) -> None:
    names = order(make(tree(tmp_path, PLAIN | {"lib/crc32c.ko": module("depends=")})))
    assert names.index("crc32c.ko") < names.index("ext4.ko")


def test_arm64_gets_its_own_binary(tmp_path: Path) -> None:
    arm = dict.fromkeys(PLAIN, b"")
    arm = {path: raw.replace(b"\1\0\x3e\0", b"\1\0\xb7\0", 1) for path, raw in PLAIN.items()}
    assert make(tree(tmp_path, arm))["init"] == b"arm64"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"fs/ext4/ext4.ko": None}, 'no "ext4"'),
        ({"fs/mbcache.ko": None}, 'needs "mbcache"'),
        ({"fs/ext4/ext4.ko": b"hello"}, "no kernel module"),
        ({"fs/ext4/ext4.ko": PLAIN["fs/ext4/ext4.ko"][:100]}, "damaged"),
        ({"fs/ext4/ext4.ko": None, "fs/ext4/ext4.ko.xz": b"\xfd7zXZ\0broken"}, "unpacked"),
        ({"fs/ext4/ext4.ko": None, "fs/ext4/ext4.ko.zst": b"\x28\xb5\x2f\xfdxx"}, "unpacked"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, bytes | None], complaint: str) -> None:
    changed = {path: raw for path, raw in (PLAIN | change).items() if raw is not None}
    with pytest.raises(ImageError, match=complaint) as caught:
        make(tree(tmp_path, changed))
    assert caught.value.code is Code.KERNEL_INVALID
    assert "initrd" in caught.value.resolution
