"""kernel: what lies beside the rootfs afterwards, and that it is what the plan was made with."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.kernels import INITRD, RELEASE, arm64_image, bzimage, modules_tree

from reconciler.errors import Code, HostError, ImageError
from reconciler.kernel.store import KernelStore, Progress
from reconciler.model import (
    Descriptor,
    DesiredImage,
    FileSource,
    ImageSpec,
    KernelEntry,
    KernelTriple,
    PinnedImage,
    Platform,
)
from reconciler.room import Feed, Interrupted, Room
from reconciler.stages import kernel

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def desired(triple: KernelTriple | None, platform: Platform = AMD64) -> DesiredImage:
    config = Descriptor("application/vnd.oci.image.config.v1+json", "sha256:" + "0" * 64, 2)
    pinned = PinnedImage("sha256:" + "1" * 64, config, (), platform)
    spec = ImageSpec("web", "example.org/web:1", None, kernel_ref=triple.name if triple else None)
    return DesiredImage(spec, pinned, triple, None)


class Lab:
    """A host with a kernel, the catalog over it, and a room to build in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boot = root / "boot"
        self.boot.mkdir()
        (self.boot / "vmlinuz").write_bytes(bzimage())
        (self.boot / "initrd").write_bytes(INITRD)
        modules_tree(root / "lib/modules")
        self.staging = root / "state/images/id.staging"
        self.staging.mkdir(parents=True)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.entry = KernelEntry(
            name="generic",
            kernel=FileSource(self.boot / "vmlinuz", None, None),
            initrd=FileSource(self.boot / "initrd", None, None),
            modules=FileSource(root / "lib/modules", None, None),
        )

    @property
    def kernels(self) -> KernelStore:
        return KernelStore(self.root / "state/kernels", (self.entry,))

    def plan(self) -> KernelTriple:
        return self.kernels.identify("generic")

    def room(self) -> Room:
        absent = cast(Any, None)  # what this stage has no use for
        image = desired(None)
        return Room(
            staging=self.staging,
            scratch=self.root / "scratch",
            blobs=absent,
            sources=cast(Any, SimpleNamespace(download=self.download)),
            tools=absent,
            kernels=self.kernels,
            emit=lambda event, **fields: self.events.append((event, fields)),
            store=absent,
            records=absent,
            feed=Feed(image.pinned),
            cancelled=threading.Event(),
        )

    def download(self, url: str, sha256: str, destination: Path, progress: Progress) -> None:
        for done in (100, 200, 300):
            progress(done)
        destination.write_bytes(bzimage())

    def beside(self) -> list[str]:
        return sorted(path.name for path in self.staging.iterdir())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_the_triple_lies_beside_the_rootfs(lab: Lab) -> None:
    kernel.run(desired(lab.plan()), lab.room())
    assert lab.beside() == ["initrd.img", "kernel", "modules"]
    assert (lab.staging / "kernel").read_bytes() == bzimage()
    assert (lab.staging / "initrd.img").read_bytes() == INITRD
    tree = lab.staging / "modules" / RELEASE
    assert (tree / "kernel/fs.ko").read_bytes() == b"x" * 70000
    assert (tree / "build").readlink() == Path("/usr/src/linux-headers")
    assert stat.S_IMODE((lab.staging / "kernel").stat().st_mode) & 0o111 == 0


def test_the_copies_share_no_inode_with_what_they_were_made_of(lab: Lab) -> None:
    """An artifact is immutable; the store and the host are not."""
    kernel.run(desired(lab.plan()), lab.room())
    for path in lab.staging.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_nlink == 1


def test_it_says_what_kind_of_kernel_it_is(lab: Lab) -> None:
    kernel.run(desired(lab.plan()), lab.room())
    notes = [fields["note"] for _, fields in lab.events if "note" in fields]
    assert notes == [f"generic is a bzImage for amd64, release {RELEASE}"]


def test_without_a_kernel_there_is_nothing_to_do(lab: Lab) -> None:
    kernel.run(desired(None), lab.room())
    assert lab.beside() == []
    assert not (lab.root / "state/kernels").exists()


def test_optional_parts_stay_away(lab: Lab) -> None:
    lab.entry = KernelEntry("generic", lab.entry.kernel)
    kernel.run(desired(lab.plan()), lab.room())
    assert lab.beside() == ["kernel"]


def test_what_an_interrupted_run_left_is_replaced(lab: Lab) -> None:
    (lab.staging / "kernel").write_bytes(b"half")
    (lab.staging / "modules").mkdir()
    (lab.staging / "modules/half").write_bytes(b"half")
    (lab.staging / "rootfs.ext4").write_bytes(b"rootfs")
    kernel.run(desired(lab.plan()), lab.room())
    assert lab.beside() == ["initrd.img", "kernel", "modules", "rootfs.ext4"]
    assert not (lab.staging / "modules/half").exists()
    assert (lab.staging / "rootfs.ext4").read_bytes() == b"rootfs"


def test_a_source_that_changed_since_the_plan_is_retried(lab: Lab) -> None:
    planned = lab.plan()
    (lab.boot / "vmlinuz").write_bytes(bzimage(body=b"newer"))
    with pytest.raises(HostError, match="not what the plan was made with") as caught:
        kernel.run(desired(planned), lab.room())
    assert caught.value.retryable
    kernel.run(desired(lab.plan()), lab.room())
    assert (lab.staging / "kernel").read_bytes() == bzimage(body=b"newer")


def test_a_rotten_local_copy_is_noticed_and_made_again(lab: Lab) -> None:
    """Bytes that change behind the filesystem's back leave size, time and inode as they were."""
    kernel.run(desired(lab.plan()), lab.room())
    stored = lab.root / "state/kernels/generic/kernel"
    info = stored.stat()
    with stored.open("r+b") as stream:
        stream.seek(600)
        stream.write(b"rot")
    os.utime(stored, ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(HostError, match="not what the plan was made with") as caught:
        kernel.run(desired(lab.plan()), lab.room())
    assert caught.value.retryable
    kernel.run(desired(lab.plan()), lab.room())
    assert (lab.staging / "kernel").read_bytes() == bzimage()


def test_a_kernel_of_another_architecture_is_refused(lab: Lab) -> None:
    (lab.boot / "vmlinuz").write_bytes(arm64_image())
    with pytest.raises(ImageError, match=r"Image for arm64.*linux/amd64") as caught:
        kernel.run(desired(lab.plan()), lab.room())
    assert caught.value.code is Code.KERNEL_INVALID
    kernel.run(desired(lab.plan(), ARM64), lab.room())


def test_a_download_reports_and_can_be_interrupted(lab: Lab) -> None:
    pin = lab.plan().kernel.removeprefix("sha256:")
    url = FileSource(None, "https://files.lab/vmlinuz", pin)
    lab.entry = KernelEntry("generic", url)
    room = lab.room()
    room.cancelled.set()
    with pytest.raises(Interrupted):
        kernel.run(desired(lab.plan()), room)
    assert lab.beside() == []
    kernel.run(desired(lab.plan()), lab.room())
    assert {"image": "web", "stage": "kernel", "done": 100, "unit": "bytes"} in [
        fields for _, fields in lab.events
    ]
    assert (lab.staging / "kernel").read_bytes() == bzimage()
    note = json.loads((lab.root / "state/kernels/generic/kernel.json").read_bytes())
    assert note["parts"]["kernel"]["source"] == "https://files.lab/vmlinuz"
