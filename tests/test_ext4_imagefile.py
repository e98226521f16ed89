"""The file under the filesystem: made anew, held, and judged by what the disk says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reconciler.errors import Code, HostError
from reconciler.ext4.imagefile import durable, failure


def test_the_file_is_new_sparse_and_of_that_size(tmp_path: Path) -> None:
    image = tmp_path / "rootfs.ext4"
    image.write_bytes(b"old" * 100_000)
    before = image.stat().st_ino
    with image.open("rb"), durable(image, create=1 << 30) as descriptor:
        assert os.fstat(descriptor).st_size == 1 << 30
    assert image.stat().st_ino != before, "who has the old one open keeps it"
    assert image.stat().st_blocks < 64


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    image = tmp_path / "rootfs.ext4"
    (tmp_path / "canary").write_bytes(b"alive")
    image.symlink_to("canary")
    with pytest.raises(HostError), durable(image):
        pass
    with durable(image, create=4096):
        pass
    assert not image.is_symlink()
    assert (tmp_path / "canary").read_bytes() == b"alive"


def test_trouble_with_the_file_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught, durable(tmp_path / "none" / "x", create=1):
        pass
    assert caught.value.code is Code.HOST_IO


def test_no_descriptor_is_left_when_the_work_fails(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KeyError), durable(tmp_path / "x", create=1):
        raise KeyError
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_failure_with_room_on_the_disk_is_the_tools(tmp_path: Path) -> None:
    assert failure(tmp_path / "x", "mkfs.ext4 failed").code is Code.TOOL_FAILED
