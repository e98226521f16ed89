"""ACLs in their two spellings, and which of them a kernel takes."""

from __future__ import annotations

import struct

import pytest
from support.filesystems import ACL, NOBODY, acl

from reconciler.errors import HostError
from reconciler.ext4.xattr import acl_from_disk, blocks_needed, parse_block
from reconciler.oci.acl import is_acl, normal_acl

BASE = ((1, 6, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY))


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (ACL, True),
        (acl(*BASE), True),
        (acl((1, 6, 0), (4, 4, 0), (32, 4, 0)), True),
        (b"", False),
        (acl(), False),
        (ACL[:-1], False),
        (b"\1" + ACL[1:], False),
        (acl(BASE[0], (2, 7, 5), *BASE[1:]), False),
        (acl(*BASE[::-1]), False),
        (acl(*BASE[:2]), False),
        (acl(BASE[0], *BASE), False),
        (acl((1, 15, NOBODY), *BASE[1:]), False),
        (acl(*BASE[:2], (64, 4, NOBODY), BASE[2]), False),
        (acl(BASE[0], (2, 7, NOBODY), BASE[1], (16, 7, NOBODY), BASE[2]), False),
    ],
)
def test_an_acl_is_what_a_kernel_takes(value: bytes, valid: bool) -> None:
    assert is_acl(value) is valid


def test_ids_that_mean_nothing_are_not_kept() -> None:
    assert normal_acl(acl((1, 6, 0), (4, 4, 7), (32, 4, 0))) == acl(*BASE)
    assert normal_acl(ACL) == ACL


def test_the_form_of_the_disk_is_converted() -> None:
    disk = struct.pack("<IHHHHIHHHH", 1, 1, 6, 2, 7, 1234, 4, 4, 32, 4)
    assert acl_from_disk(disk) == acl(BASE[0], (2, 7, 1234), *BASE[1:])


@pytest.mark.parametrize("raw", [b"", b"\2\0\0\0", b"\1\0\0\0\1", b"\1\0\0\0\2\0\7\0\1"])
def test_a_broken_acl_is_a_typed_error(raw: bytes) -> None:
    with pytest.raises(HostError):
        acl_from_disk(raw)


@pytest.mark.parametrize("at", [0, 33, 34, 36, 40])
def test_a_broken_block_is_a_typed_error(at: int) -> None:
    block = bytearray(4096)
    struct.pack_into("<I", block, 0, 0xEA020000)
    struct.pack_into("<BBHIII", block, 32, 1, 1, 4000, 0, 3, 0)
    block[48:49] = b"x"
    assert parse_block(bytes(block)) == {b"user.x": bytes(3)}
    block[at : at + 4] = b"\xff" * 4
    with pytest.raises(HostError):
        parse_block(bytes(block))


@pytest.mark.parametrize(
    ("value", "blocks"), [(20, 0), (60, 0), (70, 1), (3900, 1), (4040, None), (9000, None)]
)
def test_room_for_attributes(value: int, blocks: int | None) -> None:
    assert blocks_needed([(b"user.a", bytes(value))]) == blocks
