#!/usr/bin/env python3
"""Make examples/hello, the OCI image layout that the example configuration is built from.

    contrib/make-hello-image.py [DIRECTORY]

It needs nothing but Python and gives the same bytes everywhere, which a test compares with the
committed ones. The image is tiny and has one of everything that a real one has: owners and modes
that matter, a setuid program, links of both kinds, a merged /usr, a whiteout, a replaced file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path

TIME = 1704067200  # 2024-01-01: a date that is neither zero nor the day of the build
ADA = 1000
MAIL, SHADOW, USERS = 8, 42, 100
OCI = "application/vnd.oci.image"

OS_RELEASE = b"""NAME="Hello"
ID=hello
VERSION_ID=1
PRETTY_NAME="Hello, the example image of banger-reconcile"
"""
PASSWD = b"root:x:0:0:root:/root:/bin/hello\nada:x:1000:1000:Ada:/home/ada:/bin/hello\n"
GROUP = b"root:x:0:\nmail:x:8:\nshadow:x:42:\nusers:x:100:ada\nada:x:1000:\n"
SHADOW_FILE = b"root:*:19723:0:99999:7:::\nada:!:19723:0:99999:7:::\n"


def program(message: bytes) -> bytes:
    """A static x86-64 program of a few bytes that writes `message` and ends with status 0.

    One ELF header, one loaded segment, two system calls: write(1, message, len) and exit(0).
    """
    base, start = 0x400000, 64 + 56
    code_size = 33
    code = struct.pack(
        "<BI BI BBBI BI BB BI BB BB",
        *(0xB8, 1),  # mov eax, 1 (write)
        *(0xBF, 1),  # mov edi, 1 (standard output)
        *(0x48, 0xC7, 0xC6, base + start + code_size),  # mov rsi, message
        *(0xBA, len(message)),  # mov edx, its length
        *(0x0F, 0x05),  # syscall
        *(0xB8, 60),  # mov eax, 60 (exit)
        *(0x31, 0xFF),  # xor edi, edi
        *(0x0F, 0x05),  # syscall
    )
    if len(code) != code_size:
        raise ValueError(f"the program has {len(code)} bytes instead of {code_size}")
    size = start + code_size + len(message)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return identity + header + segment + code + message


class Layer:
    """A layer as a tar stream in the making; every call adds one entry."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Add a directory."""
        self._add(path, tarfile.DIRTYPE, mode, uid, gid)

    def file(
        self, path: str, content: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0
    ) -> None:
        """Add a regular file."""
        self._add(path, tarfile.REGTYPE, mode, uid, gid, content=content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, tarfile.SYMTYPE, 0o777, 0, 0, target=target)

    def hardlink(self, path: str, target: str, mode: int) -> None:
        """Add another name of a file that is there already."""
        self._add(path, tarfile.LNKTYPE, mode, 0, 0, target=target)

    def _add(
        self,
        path: str,
        kind: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        content: bytes = b"",
        target: str = "",
    ) -> None:
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.uid, entry.gid = kind, mode, uid, gid
        entry.mtime, entry.size, entry.linkname = TIME, len(content), target
        self._blocks += [entry.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % 512)]

    def tar(self) -> bytes:
        """The whole stream, with the two empty blocks at its end."""
        return b"".join(self._blocks) + bytes(1024)


def base_layer() -> bytes:
    """The lower layer: a system of a few files."""
    layer = Layer()
    for path in ("etc", "home", "usr", "usr/bin", "usr/lib", "usr/sbin", "var", "var/lib"):
        layer.directory(path)
    for name in ("bin", "lib", "sbin"):
        layer.symlink(name, f"usr/{name}")
    layer.directory("root", 0o700)
    layer.directory("tmp", 0o1777)
    layer.directory("home/ada", 0o750, ADA, ADA)
    layer.directory("srv", 0o2775, 0, USERS)
    layer.directory("var/mail", 0o2775, 0, MAIL)
    layer.file("usr/lib/os-release", OS_RELEASE)
    layer.symlink("etc/os-release", "../usr/lib/os-release")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    layer.file("etc/shadow", SHADOW_FILE, 0o640, 0, SHADOW)
    layer.file("etc/hostname", b"base\n")
    layer.file("etc/motd", b"This file is removed by the next layer.\n")
    layer.file("usr/bin/hello", program(b"hello\n"), 0o755)
    layer.hardlink("usr/bin/greet", "usr/bin/hello", 0o755)
    layer.file("usr/bin/whoami-root", program(b"root\n"), 0o4755)
    layer.file("home/ada/.profile", b"export LANG=C.UTF-8\n", 0o600, ADA, ADA)
    return layer.tar()


def top_layer() -> bytes:
    """The upper layer: a file replaced, one removed, one added."""
    layer = Layer()
    layer.directory("etc")
    layer.file("etc/.wh.motd")
    layer.file("etc/hostname", b"hello\n")
    layer.directory("home/ada", 0o750, ADA, ADA)
    layer.file("home/ada/notes.txt", b"Built without root.\n", 0o640, ADA, USERS)
    return layer.tar()


def gzipped(raw: bytes) -> bytes:
    """Stored blocks (RFC 1951, 3.2.4): not all zlibs compress alike, but all unpack this."""
    blocks = [raw[at : at + 65535] for at in range(0, len(raw), 65535)]
    body = b"".join(
        struct.pack("<BHH", number == len(blocks), len(block), len(block) ^ 0xFFFF) + block
        for number, block in enumerate(blocks, start=1)
    )
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + body + struct.pack("<II", zlib.crc32(raw), len(raw))


class Layout:
    """An OCI image layout directory (image-layout.md of the image specification)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs/sha256"

    def blob(self, media_type: str, raw: bytes) -> dict[str, object]:
        """Store a blob; gives its descriptor."""
        digest = hashlib.sha256(raw).hexdigest()
        (self.blobs / digest).write_bytes(raw)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}

    def document(self, media_type: str, content: dict[str, object]) -> dict[str, object]:
        """Store a JSON document; gives its descriptor."""
        return self.blob(media_type, json_bytes(content))


def json_bytes(content: dict[str, object]) -> bytes:
    """JSON with one spelling, and readable in the repository."""
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def make(directory: Path) -> None:
    """Replace `directory` by the layout."""
    if directory.exists():
        shutil.rmtree(directory)
    layout = Layout(directory)
    layout.blobs.mkdir(parents=True)
    tars = [base_layer(), top_layer()]
    layers = [
        layout.blob(f"{OCI}.layer.v1.tar+gzip", gzipped(tars[0])),
        layout.blob(f"{OCI}.layer.v1.tar", tars[1]),
    ]
    config = layout.document(f"{OCI}.config.v1+json", image_config(tars))
    manifest = layout.document(
        f"{OCI}.manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": config,
            "layers": layers,
        },
    )
    manifest["platform"] = {"os": "linux", "architecture": "amd64"}
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [manifest]}
    (directory / "index.json").write_bytes(json_bytes(index))
    (directory / "oci-layout").write_bytes(json_bytes({"imageLayoutVersion": "1.0.0"}))


def image_config(tars: list[bytes]) -> dict[str, object]:
    """The image configuration (config.md of the image specification)."""
    return {
        "created": "2024-01-01T00:00:00Z",
        "os": "linux",
        "architecture": "amd64",
        "config": {
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Entrypoint": ["/usr/bin/hello"],
            "User": "ada",
            "WorkingDir": "/home/ada",
            "StopSignal": "SIGTERM",
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars],
        },
        "history": [
            {"created": "2024-01-01T00:00:00Z", "created_by": "a base system of a few files"},
            {"created": "2024-01-01T00:00:00Z", "created_by": "a name, notes, and no motd"},
        ],
    }


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "examples/hello"
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
