"""Kernels by their bytes: what is one, and what the others are called."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.kernels import INITRD, RELEASE, arm64_image, bzimage, elf

from reconciler.errors import Code, ImageError
from reconciler.kernel.image import KernelImage, check_initrd, inspect_kernel

KERNELS: list[tuple[bytes, KernelImage]] = [
    (bzimage(), KernelImage("bzImage", "amd64", RELEASE)),
    (bzimage(bits=32), KernelImage("bzImage", "386", RELEASE)),
    (elf(), KernelImage("ELF vmlinux", "amd64", RELEASE)),
    (elf(release=""), KernelImage("ELF vmlinux", "amd64", None)),
    (elf(machine=243), KernelImage("ELF vmlinux", "riscv64", RELEASE)),
    (arm64_image("6.6.1"), KernelImage("Image", "arm64", "6.6.1")),
    (b"MZ" + arm64_image()[2:], KernelImage("Image", "arm64", RELEASE)),
]

OTHERS: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (gzip.compress(bzimage(), mtime=0), "is gzip-compressed"),
    (lzma.compress(elf()), "is xz-compressed"),
    (b"\x28\xb5\x2f\xfd" + bytes(100), "is zstd-compressed"),
    (b"\x02\x21\x4c\x18" + bytes(100), "is lz4-compressed"),
    (b"BZh9" + bytes(100), "is bzip2-compressed"),
    (b"\n<!DOCTYPE html><title>404 Not Found</title>", "is an HTML page"),
    (b"<html>", "is an HTML page"),
    (INITRD, "is a cpio archive, as an initrd is"),
    (b"!<arch>\ndebian-binary", "is an ar archive, perhaps a Debian package"),
    (bytes(257) + b"ustar\x0000", "is a tar archive"),
    (bytes(0x438) + b"\x53\xef" + bytes(900), "is an ext2, ext3 or ext4 filesystem"),
    (b"hsqs" + bytes(100), "is a squashfs image"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"#!/bin/sh\n", "is a script"),
    (b"MZ\0\0zimg" + bytes(100), "is an EFI zboot image"),
    (b"MZ" + bytes(100), "is an EFI program"),
    (b"vmlinuz-6.1.0", "is text"),
    (bytes(range(100)), "is unknown data, beginning with 00 01 02 03"),
    (bzimage()[:0x208], "is unknown data"),
    (elf(kind=1), "is an ELF object file, such as a kernel module"),
    (elf(segments=(3, 1)), "is an ELF program or library"),
    (elf(kind=3, segments=()), "is an ELF program or library"),
    (elf(machine=183), "is an ELF vmlinux for arm64, where guests boot an Image"),
    (b"\x7fELF\x01\x01\x01" + elf()[7:], "is a 32-bit or big-endian ELF file"),
    (b"\x7fELF", "is a 32-bit or big-endian ELF file"),
    (bzimage()[:0x211] + b"\0" + bzimage()[0x212:], "is a zImage"),
]


@pytest.mark.parametrize(("raw", "expected"), KERNELS)
def test_kernels(tmp_path: Path, raw: bytes, expected: KernelImage) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(raw)
    assert inspect_kernel(path, "the kernel") == expected


@pytest.mark.parametrize(("raw", "words"), OTHERS)
def test_what_is_no_kernel_is_called_by_its_name(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(raw)
    with pytest.raises(ImageError) as caught:
        inspect_kernel(path, "the kernel")
    assert f"the kernel {words}" in caught.value.brief
    assert caught.value.code is Code.KERNEL_INVALID
    assert caught.value.resolution


def test_a_program_of_this_host_is_no_kernel() -> None:
    with pytest.raises(ImageError, match="is an ELF program"):
        inspect_kernel(Path(os.path.realpath("/bin/true")), "the kernel")


def test_a_release_from_hostile_bytes_is_printable(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(bzimage("\x1b[31m6.1"))
    assert inspect_kernel(path, "the kernel").release == "\\x1b[31m6.1"


@pytest.mark.parametrize(
    "raw", [INITRD, gzip.compress(INITRD, mtime=0), b"\x28\xb5\x2f\xfd12", b"hsqs"]
)
def test_initrds(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "initrd").write_bytes(raw)
    check_initrd(tmp_path / "initrd", "the initrd")


@pytest.mark.parametrize("raw", [b"", b"<html>", b"not found\n", bzimage(), elf(), arm64_image()])
def test_what_is_no_initrd(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "initrd").write_bytes(raw)
    with pytest.raises(ImageError, match="not an initrd"):
        check_initrd(tmp_path / "initrd", "the initrd")


@given(
    st.binary(max_size=200), st.integers(0, 700), st.sampled_from([bzimage(), elf(), arm64_image()])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_kernels_give_an_answer_or_an_image_error(
    tmp_path: Path, noise: bytes, at: int, raw: bytes
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(raw[:at] + noise + raw[at + len(noise) :])
    try:
        assert str(inspect_kernel(path, "the kernel")).isprintable()
    except ImageError as error:
        assert error.brief.isprintable()
