"""What was resolved before: asked for again by nobody, and lost without harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.model import Descriptor, Layer, PinnedImage, Platform
from reconciler.oci.memory import Memory

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")
TOP = Descriptor("application/vnd.oci.image.index.v1+json", "sha256:" + "a" * 64, 512)
CONFIG = Descriptor("application/vnd.oci.image.config.v1+json", "sha256:" + "b" * 64, 99)
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + "c" * 64, 10**10)


def image(platform: Platform = AMD64, runtime: str = '{"Env":["A=\\u00e9"]}') -> PinnedImage:
    return PinnedImage(TOP.digest, CONFIG, (Layer(BLOB, "sha256:" + "d" * 64),), platform, runtime)


def test_another_process_knows_what_was_saved(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "oci/resolved")
    memory.keep(TOP, image())
    memory.keep_tag("host/web:1", TOP)
    memory.keep(TOP, image(ARM64))
    memory.save()
    again = Memory(tmp_path / "oci/resolved")
    assert again.tag("host/web:1") == TOP
    assert again.pinned(TOP, AMD64) == image()
    assert again.pinned(TOP, ARM64) == image(ARM64)
    assert again.pinned(CONFIG, AMD64) is None


def test_nothing_is_written_when_nothing_is_new(tmp_path: Path) -> None:
    path = tmp_path / "resolved"
    memory = Memory(path)
    memory.save()
    assert not path.exists()
    memory.keep(TOP, image())
    memory.keep_tag("host/web:1", TOP)
    memory.save()
    path.chmod(0o400)
    before = path.stat()
    again = Memory(path)
    again.keep_tag("host/web:1", TOP)
    again.save()
    assert path.stat().st_ino == before.st_ino


def test_what_two_processes_learn_is_kept_side_by_side(tmp_path: Path) -> None:
    first, second = Memory(tmp_path / "resolved"), Memory(tmp_path / "resolved")
    assert first.tag("host/a:1") is None
    assert second.tag("host/b:1") is None
    first.keep(TOP, image())
    first.keep_tag("host/a:1", TOP)
    second.keep(TOP, image())
    second.keep_tag("host/b:1", TOP)
    first.save()
    second.save()
    assert Memory(tmp_path / "resolved").tag("host/a:1") == TOP
    assert Memory(tmp_path / "resolved").tag("host/b:1") == TOP


@pytest.mark.parametrize("where", [0, 70, -1], ids=["checksum", "start", "end"])
def test_a_flipped_bit_makes_it_forget_everything(tmp_path: Path, where: int) -> None:
    path = tmp_path / "resolved"
    memory = Memory(path)
    memory.keep(TOP, image())
    memory.keep_tag("host/web:1", TOP)
    memory.save()
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)
    again = Memory(path)
    assert again.tag("host/web:1") is None
    assert again.pinned(TOP, AMD64) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    memory = Memory(tmp_path / "file/resolved")
    memory.keep(TOP, image())
    memory.keep_tag("host/web:1", TOP)
    memory.save()
    assert memory.tag("host/web:1") == TOP
