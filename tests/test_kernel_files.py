"""Copies of modules trees: what their digest covers, and what is no modules tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kernels import (
    RELEASE,
    at,
    entry,
    fetch,
    make_host,
    store,
    tree,
)

from reconciler.errors import Code, ImageError
from reconciler.kernel import files
from reconciler.model import Platform

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return make_host(tmp_path)


def test_modules_are_the_same_by_either_directory(host: Path) -> None:
    outer = store(host, entry(host, modules=at(host / "lib/modules"))).identify("generic")
    inner = store(host, entry(host)).identify("generic")
    (host / "link").symlink_to(host / "lib/modules" / RELEASE)
    linked = store(host, entry(host, modules=at(host / "link"))).identify("generic")
    assert outer.modules == inner.modules == linked.modules


CHANGES: list[Callable[[Path], object]] = [
    lambda m: (m / "modules.dep").write_text("kernel/fs.ko: x\n"),
    lambda m: (m / "modules.dep").chmod(0o755),
    lambda m: (m / "kernel").chmod(0o711),
    lambda m: (m / "kernel/empty").touch(),
    lambda m: (m / "kernel/empty").mkdir(),
    lambda m: (m / "modules.dep").rename(m / "modules.dop"),
    lambda m: (m / "other").symlink_to("build"),
    lambda m: (m / "source").replace(m / "build"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_modules_changes_the_digest(
    host: Path, change: Callable[[Path], object]
) -> None:
    before = store(host, entry(host)).identify("generic").modules
    change(host / "lib/modules" / RELEASE)
    assert store(host, entry(host)).identify("generic").modules != before


def test_times_owners_and_order_do_not_change_the_digest(host: Path) -> None:
    before = store(host, entry(host)).identify("generic")
    copy = host / "copy" / RELEASE
    shutil.copytree(host / "lib/modules" / RELEASE, copy, symlinks=True)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert store(host, entry(host, modules=at(copy))).identify("generic") == before


def test_links_are_copied_never_followed(host: Path) -> None:
    secret = host / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (host / "lib/modules" / RELEASE / "out").symlink_to(secret)
    local = fetch(host, entry(host))
    assert (local / "modules" / RELEASE / "out").readlink() == secret
    assert tree(local / "modules") == tree(host / "lib/modules")


def test_names_that_are_no_text(host: Path) -> None:
    (host / "lib/modules" / RELEASE / os.fsdecode(b"\xff\n x")).write_text("odd")
    local = fetch(host, entry(host))
    assert tree(local / "modules") == tree(host / "lib/modules")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: os.mkfifo(m / "fifo"), "fifo is a device, socket or FIFO"),
        (lambda m: (m.parent / "5.10.0").mkdir(), "holds several releases: 5.10.0, 6.1.0"),
    ],
)
def test_what_is_no_modules_tree(host: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(host / "lib/modules" / RELEASE)
    with pytest.raises(ImageError, match=words) as caught:
        store(host, entry(host, modules=at(host / "lib/modules"))).identify("generic")
    assert caught.value.code is Code.KERNEL_INVALID


def test_a_tree_that_is_far_too_large(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_ENTRIES", 3)
    with pytest.raises(ImageError, match="more than 3 entries"):
        store(host, entry(host)).identify("generic")
