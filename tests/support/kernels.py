"""Files that look like kernels to whoever checks bytes: a few KiB, with a release of choice."""

from __future__ import annotations

import hashlib
import stat
import struct
from pathlib import Path

from reconciler.errors import RemoteError
from reconciler.kernel.store import KernelStore, Progress
from reconciler.model import FileSource, KernelEntry

RELEASE = "6.1.0-18-cloud-amd64"


def bzimage(release: str = RELEASE, *, bits: int = 64, body: bytes = b"") -> bytes:
    """A bzImage: the real-mode header of boot.rst, protocol 2.15, and the version text."""
    head = bytearray(1024)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x020F)
    struct.pack_into("<H", head, 0x20E, 0x300 - 0x200 + 0x80)
    head[0x211] = 1
    struct.pack_into("<H", head, 0x236, 1 if bits == 64 else 0)
    version = f"{release} (builder@host) #1 SMP\0".encode()
    head[0x380 : 0x380 + len(version)] = version
    return bytes(head) + body


def elf(
    machine: int = 62, kind: int = 2, segments: tuple[int, ...] = (1,), release: str = RELEASE
) -> bytes:
    """A 64-bit little-endian ELF file; kind 2 is an executable, segment 1 is PT_LOAD."""
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    table = b"".join(struct.pack("<IIQQQQQQ", segment, 5, 0, 0, 0, 0, 0, 0) for segment in segments)
    banner = f"Linux version %s\0Linux version {release} (builder@host)\0" if release else ""
    return identity + header + table + bytes(4096) + banner.encode()


def arm64_image(release: str = RELEASE) -> bytes:
    """An arm64 Image: its magic at 56, the banner in its data."""
    return bytes(56) + b"ARM\x64" + bytes(4096) + f"Linux version {release} (b@h)\0".encode()


INITRD = b"070701" + bytes(512)


def modules_tree(root: Path, release: str = RELEASE) -> Path:
    """`root/<release>` with two modules, an index and the links that distributions put there."""
    tree = root / release
    (tree / "kernel/drivers").mkdir(parents=True)
    (tree / "kernel/drivers/virtio.ko").write_bytes(b"\x7fELF module")
    (tree / "kernel/fs.ko").write_bytes(b"x" * 70000)
    (tree / "modules.dep").write_text("kernel/fs.ko:\n")
    (tree / "build").symlink_to("/usr/src/linux-headers")
    (tree / "source").symlink_to("build")
    return tree


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def at(path: Path, pin: str | None = None) -> FileSource:
    return FileSource(path, None, pin)


def no_download(url: str, sha256: str, destination: Path, progress: Progress) -> None:
    raise RemoteError(f"{url} was asked for")


def ignore(done: int) -> None:
    """Progress that nobody looks at."""


def make_host(root: Path) -> Path:
    """A host with a kernel, an initrd and modules."""
    boot = root / "boot"
    boot.mkdir()
    (boot / "vmlinuz").write_bytes(bzimage())
    (boot / "initrd").write_bytes(INITRD)
    modules_tree(root / "lib/modules")
    return root


def entry(host: Path, **fields: FileSource | str | None) -> KernelEntry:
    sources = {
        "kernel": at(host / "boot/vmlinuz"),
        "initrd": at(host / "boot/initrd"),
        "modules": at(host / "lib/modules" / RELEASE),
    }
    return KernelEntry(name="generic", **{**sources, **fields})  # type: ignore[arg-type]


def store(host: Path, *entries: KernelEntry) -> KernelStore:
    return KernelStore(host / "state/kernels", entries)


def fetch(host: Path, *entries: KernelEntry) -> Path:
    return store(host, *entries).fetch("generic", no_download, ignore)


def tree(root: Path) -> dict[str, tuple[str, str]]:
    """Path -> (mode, content or target), of everything below."""
    found = {}
    for path in sorted(root.rglob("*")):
        what = "dir"
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            what = sha256(path.read_bytes())
        found[str(path.relative_to(root))] = (stat.filemode(path.lstat().st_mode), what)
    return found
