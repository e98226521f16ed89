"""The kernel store: names, identities, copies that are whole, and sources that move."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kernels import (
    INITRD,
    RELEASE,
    arm64_image,
    at,
    bzimage,
    elf,
    entry,
    fetch,
    ignore,
    make_host,
    sha256,
    store,
    tree,
)

from reconciler.errors import BangerError, Code, HostError, ImageError
from reconciler.files import clone_file
from reconciler.kernel import files
from reconciler.kernel.store import Progress
from reconciler.model import FileSource, KernelEntry, Platform

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return make_host(tmp_path)


# -- identity ----------------------------------------------------------------------------------


def test_identify_reads_and_writes_nothing(host: Path) -> None:
    triple = store(host, entry(host, cmdline="quiet")).identify("generic", AMD64)
    assert triple.kernel == f"sha256:{sha256(bzimage())}"
    assert triple.initrd == f"sha256:{sha256(INITRD)}"
    assert triple.modules is not None
    assert triple.modules.startswith("sha256:")
    assert (triple.name, triple.cmdline) == ("generic", "quiet")
    assert not (host / "state").exists()


def test_a_url_stands_for_its_pin(host: Path) -> None:
    source = FileSource(None, "https://files.lab/vmlinux", "ab" * 32)
    triple = store(host, entry(host, kernel=source)).identify("generic")
    assert triple.kernel == "sha256:" + "ab" * 32


def test_an_unknown_kernel_says_what_there_is(host: Path) -> None:
    local = host / "state/kernels/lab-5.10"
    local.mkdir(parents=True)
    (local / "kernel").write_bytes(bzimage())
    with pytest.raises(ImageError) as caught:
        store(host, entry(host)).identify("generik")
    assert caught.value.code is Code.KERNEL_NOT_FOUND
    assert "generic" in caught.value.brief
    assert "lab-5.10" in caught.value.brief
    assert 'kernel-ref = "generic"' in caught.value.resolution


def test_without_any_kernel_the_advice_is_how_to_get_one(host: Path) -> None:
    with pytest.raises(ImageError, match="no kernel is known here") as caught:
        store(host).identify("generic")
    assert "[[kernel]]" in caught.value.resolution
    assert str(host / "state/kernels/generic/kernel") in caught.value.resolution


@pytest.mark.parametrize("ref", ["../../boot", ".generic.staging", "/boot", ""])
def test_a_name_never_leaves_the_store(host: Path, ref: str) -> None:
    (host / "state/kernels/.generic.staging").mkdir(parents=True)
    (host / "state/kernels/.generic.staging/kernel").write_bytes(bzimage())
    with pytest.raises(ImageError, match="no kernel"):
        store(host).identify(ref)


def test_a_directory_in_the_store_needs_no_entry(host: Path) -> None:
    local = host / "state/kernels/generic"
    local.mkdir(parents=True)
    shutil.copy(host / "boot/vmlinuz", local / "kernel")
    shutil.copytree(host / "lib/modules", local / "modules", symlinks=True)
    before = tree(local)
    by_hand = store(host).identify("generic")
    by_entry = store(host, entry(host, initrd=None)).identify("generic")
    assert by_hand == by_entry
    assert fetch(host) == local
    assert {**before, "kernel.json": tree(local)["kernel.json"]} == tree(local)
    assert store(host).identify("generic") == by_hand


def test_missing_sources(host: Path) -> None:
    (host / "boot/initrd").unlink()
    with pytest.raises(ImageError, match="boot/initrd does not exist") as caught:
        store(host, entry(host)).identify("generic")
    assert (caught.value.code, caught.value.retryable) == (Code.KERNEL_NOT_FOUND, True)


def test_unreadable_sources(host: Path) -> None:
    (host / "boot").chmod(0o700)
    (host / "boot/vmlinuz").chmod(0o600)
    user = os.geteuid()
    if user != 0:
        (host / "boot/vmlinuz").chmod(0o000)
    else:
        os.seteuid(65534)
    try:
        with pytest.raises(HostError) as caught:
            store(host, entry(host)).identify("generic")
    finally:
        os.seteuid(user)
    assert caught.value.code is Code.NOT_PERMITTED
    assert "readable" in caught.value.resolution


WRONG: list[tuple[str, Callable[[Path], KernelEntry], str]] = [
    ("pin", lambda h: entry(h, kernel=at(h / "boot/vmlinuz", "00" * 32)), "its entry pins 0000"),
    ("modules pin", lambda h: entry(h, modules=at(h / "lib/modules", "00" * 32)), "pins 0000"),
    ("a directory", lambda h: entry(h, kernel=at(h / "boot")), "is no regular file"),
    ("a device", lambda h: entry(h, kernel=at(Path("/dev/zero"))), "is no regular file"),
    ("an initrd as kernel", lambda h: entry(h, kernel=at(h / "boot/initrd")), "is a cpio archive"),
    ("a kernel as initrd", lambda h: entry(h, initrd=at(h / "boot/vmlinuz")), "not an initrd"),
]


@pytest.mark.parametrize(("make", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_kernels_are_refused_before_any_work(
    host: Path, make: Callable[[Path], KernelEntry], words: str
) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        store(host, make(host)).identify("generic")
    assert caught.value.code is Code.KERNEL_INVALID
    assert not caught.value.retryable
    with pytest.raises(ImageError, match=words):
        fetch(host, make(host))
    assert not (host / "state/kernels/generic").exists()
    assert not (host / "state/kernels/.generic.staging").exists()


def test_a_fifo_does_not_hang(host: Path) -> None:
    os.mkfifo(host / "boot/fifo")
    with pytest.raises(ImageError, match="is no regular file"):
        store(host, entry(host, kernel=at(host / "boot/fifo"))).identify("generic")


def test_architecture_must_be_the_images(host: Path) -> None:
    kernels = store(host, entry(host))
    kernels.identify("generic", AMD64)
    with pytest.raises(ImageError, match=r"bzImage for amd64.*the image is for linux/arm64"):
        kernels.identify("generic", ARM64)
    (host / "boot/vmlinuz").write_bytes(arm64_image())
    store(host, entry(host)).identify("generic", ARM64)


def test_release_must_be_the_modules(host: Path) -> None:
    (host / "boot/vmlinuz").write_bytes(bzimage("6.2.0"))
    words = f"is for release {RELEASE}, but the kernel is a bzImage for amd64, release 6.2.0"
    with pytest.raises(ImageError, match=words):
        store(host, entry(host)).identify("generic")
    (host / "boot/vmlinuz").write_bytes(elf(release=""))
    store(host, entry(host)).identify("generic")


# -- fetching ----------------------------------------------------------------------------------


def test_fetch_makes_a_whole_copy(host: Path) -> None:
    local = fetch(host, entry(host, cmdline="quiet"))
    assert local == host / "state/kernels/generic"
    assert (local / "kernel").read_bytes() == bzimage()
    assert (local / "initrd.img").read_bytes() == INITRD
    assert tree(local / "modules") == tree(host / "lib/modules")
    assert {path.name for path in (host / "state/kernels").iterdir()} == {
        "generic",
        ".generic.lock",
    }


def test_a_second_fetch_touches_no_file(host: Path) -> None:
    def stamps() -> dict[Path, tuple[int, int]]:
        below = (host / "state/kernels").rglob("*")
        return {p: (p.lstat().st_ino, p.lstat().st_ctime_ns) for p in below}

    fetch(host, entry(host))
    before = stamps()
    fetch(host, entry(host))
    assert stamps() == before


def test_what_is_known_is_not_hashed_again(host: Path) -> None:
    """Other bytes of the same size, time and inode: only who reads them notices."""
    triple = store(host, entry(host)).identify("generic")
    fetch(host, entry(host))
    path = host / "boot/vmlinuz"
    info = path.stat()
    with path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"other")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert store(host, entry(host)).identify("generic") == triple


def test_a_changed_source_is_another_kernel(host: Path) -> None:
    fetch(host, entry(host))
    (host / "boot/vmlinuz").write_bytes(bzimage(body=b"new"))
    triple = store(host, entry(host)).identify("generic")
    assert triple.kernel == f"sha256:{sha256(bzimage(body=b'new'))}"
    local = fetch(host, entry(host))
    assert (local / "kernel").read_bytes() == bzimage(body=b"new")


def test_a_source_that_is_gone_is_stood_in_for_by_its_copy(host: Path) -> None:
    triple = store(host, entry(host)).identify("generic")
    fetch(host, entry(host))
    shutil.rmtree(host / "boot")
    shutil.rmtree(host / "lib")
    assert store(host, entry(host)).identify("generic", AMD64) == triple
    fetch(host, entry(host))
    with pytest.raises(ImageError, match="boot2/vmlinuz does not exist"):
        store(host, entry(host, kernel=at(host / "boot2/vmlinuz"))).identify("generic")


def test_a_pinned_copy_outlives_a_changed_source(host: Path) -> None:
    pinned = entry(host, kernel=at(host / "boot/vmlinuz", sha256(bzimage())))
    fetch(host, pinned)
    (host / "boot/vmlinuz").write_bytes(bzimage(body=b"new"))
    assert store(host, pinned).identify("generic").kernel == f"sha256:{sha256(bzimage())}"


def test_an_entry_that_leaves_the_catalog_leaves_its_kernel(host: Path) -> None:
    triple = store(host, entry(host, cmdline="quiet")).identify("generic")
    fetch(host, entry(host, cmdline="quiet"))
    assert store(host).identify("generic") == triple


def test_a_part_that_the_entry_drops_is_dropped(host: Path) -> None:
    fetch(host, entry(host))
    local = fetch(host, entry(host, initrd=None, modules=None))
    assert sorted(path.name for path in local.iterdir()) == ["kernel", "kernel.json"]


@pytest.mark.parametrize("damage", ["kernel", "initrd.img", f"modules/{RELEASE}/modules.dep"])
def test_a_damaged_copy_is_made_again(host: Path, damage: str) -> None:
    local = fetch(host, entry(host))
    before = tree(local / "modules")
    (local / damage).unlink()
    (local / damage).write_bytes(b"")
    fetch(host, entry(host))
    assert (local / "kernel").read_bytes() == bzimage()
    assert (local / "initrd.img").read_bytes() == INITRD
    assert tree(local / "modules") == before


@pytest.mark.parametrize("note", [b"", b"[]", b'{"parts": {}}', b"\xff"])
def test_a_spoilt_note_costs_a_copy(host: Path, note: bytes) -> None:
    triple = store(host, entry(host)).identify("generic")
    local = fetch(host, entry(host))
    (local / "kernel.json").write_bytes(note)
    assert store(host, entry(host)).identify("generic") == triple
    fetch(host, entry(host))
    assert json.loads((local / "kernel.json").read_bytes())["release"] == RELEASE


def test_forgetting_makes_the_next_fetch_copy(host: Path) -> None:
    local = fetch(host, entry(host))
    first = (local / "kernel").stat().st_ino
    store(host, entry(host)).forget("generic")
    fetch(host, entry(host))
    assert (local / "kernel").stat().st_ino != first


def test_what_a_killed_fetch_left_is_cleared(host: Path) -> None:
    left = host / "state/kernels/.generic.staging"
    left.mkdir(parents=True)
    (left / "kernel").write_bytes(b"half")
    local = fetch(host, entry(host))
    assert (local / "kernel").read_bytes() == bzimage()
    assert not left.exists()


def test_a_source_that_changes_while_it_is_copied(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clone_file

    def clone_and_change(source: Path, destination: Path) -> None:
        real(source, destination)
        if source.name == "vmlinuz":
            source.write_bytes(bzimage(body=b"changed"))

    monkeypatch.setattr(files, "clone_file", clone_and_change)
    with pytest.raises(HostError, match="changed while it was copied") as caught:
        fetch(host, entry(host))
    assert caught.value.retryable
    assert not (host / "state/kernels/generic").exists()


def test_another_filesystem_is_no_obstacle(host: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == host.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    path = memory / f"kernel-{os.getpid()}"
    try:
        path.write_bytes(bzimage(body=bytes(3 << 20)))
        local = fetch(host, entry(host, kernel=at(path)))
        assert (local / "kernel").read_bytes() == path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


# -- downloads ---------------------------------------------------------------------------------


class Server:
    """Serves one file by URL, counts, and fails when told to."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.requests = 0
        self.source = FileSource(None, "https://files.lab/vmlinuz", sha256(raw))

    def __call__(self, url: str, pin: str, destination: Path, progress: Progress) -> None:
        self.requests += 1
        progress(len(self.raw))
        destination.write_bytes(self.raw)
        assert (url, pin) == (self.source.url, self.source.sha256)


def test_a_url_is_downloaded_once(host: Path) -> None:
    server = Server(bzimage())
    seen: list[int] = []
    for cmdline in ("", "", "quiet"):
        wanted = entry(host, kernel=server.source, cmdline=cmdline)
        local = store(host, wanted).fetch("generic", server, seen.append)
        assert (local / "kernel").read_bytes() == bzimage()
    assert server.requests == 1
    assert seen == [len(bzimage())]


def test_a_page_in_place_of_a_kernel(host: Path) -> None:
    server = Server(b"<!doctype html><p>Not found")
    kernels = store(host, entry(host, kernel=server.source))
    with pytest.raises(ImageError, match="is an HTML page"):
        kernels.fetch("generic", server, ignore)
    assert not (host / "state/kernels/generic").exists()


def test_a_failed_download_keeps_what_was_there(host: Path) -> None:
    local = fetch(host, entry(host))
    pinned = FileSource(None, "https://files.lab/vmlinuz", "00" * 32)
    with pytest.raises(BangerError, match="was asked for"):
        fetch(host, entry(host, kernel=pinned))
    assert (local / "kernel").read_bytes() == bzimage()
    assert not (host / "state/kernels/.generic.staging").exists()


def test_two_that_want_one_kernel_download_it_once(host: Path) -> None:
    server = Server(bzimage())
    wanted = entry(host, kernel=server.source)
    threads = [
        threading.Thread(target=store(host, wanted).fetch, args=("generic", server, ignore))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == 1
    assert (host / "state/kernels/generic/kernel").read_bytes() == bzimage()
