"""A real Debian image, built as a normal user, equals its layers in everything that a file has.

mmdebstrap makes the system (systemd, python3, git), umoci three layers, docker-registry serves
it. The oracle reads the same layers with Python's tarfile and merges them its own simple way: these
layers are well-formed, which is all that it can handle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import unprivileged
from support.images import push
from support.registry import RunningRegistry

NEEDS = ["mmdebstrap", "umoci", "docker-registry", "skopeo", "setfacl", "setcap"]
MISSING = [name for name in NEEDS if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mmdebstrap, umoci and mount need root here"),
]


def sh(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """debian:3 in an OCI layout: the base system, a layer of changes, a layer of odd things."""
    work = tmp_path_factory.mktemp("debian")
    layout, image = work / "layout", f"{work / 'layout'}:3"
    include = "--include=systemd-sysv,python3,git,iputils-ping"
    sh("mmdebstrap", "--variant=minbase", "--mode=root", include, "bookworm", work / "base.tar")
    sh("umoci", "init", "--layout", layout)
    sh("umoci", "new", "--image", image)
    sh("umoci", "raw", "add-layer", "--image", image, work / "base.tar")
    (work / "base.tar").unlink()
    for change in (second_layer, third_layer):
        bundle = work / "bundle"
        sh("umoci", "unpack", "--image", image, bundle)
        change(bundle / "rootfs")
        sh("umoci", "repack", "--image", image, bundle)
        shutil.rmtree(bundle)
    return layout


def second_layer(root: Path) -> None:
    shutil.rmtree(root / "usr/share/doc")
    (root / "etc/motd").unlink(missing_ok=True)
    (root / "etc/hostname").write_text("guest\n")
    shutil.copy(root / "usr/bin/ls", root / "usr/bin/ls-with-caps")
    sh("setcap", "cap_net_raw+ep", root / "usr/bin/ls-with-caps")
    (root / "srv/data").mkdir()
    os.chown(root / "srv/data", 70_000, 70_001)
    sh("setfacl", "-m", "u:1234:rwx,d:g:5678:rx", root / "srv/data")


def third_layer(root: Path) -> None:
    odd = root / "srv/odd"
    odd.mkdir()
    (odd / "two words").write_text("a")
    (odd / "new\nline").write_text("b")
    (odd / "!touch PWNED").write_text("c")
    (odd / '"quoted" \\').write_text("d")
    Path(os.fsdecode(bytes(odd) + b"/\xff\xfe")).write_text("e")
    (odd / "secret").write_text("f")
    (odd / "secret").chmod(0)
    os.mknod(odd / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(odd / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo(odd / "pipe", 0o622)
    os.link(odd / "two words", root / "srv/linked")
    (odd / "dangling").symlink_to("/nowhere/" + "x" * 100)
    (odd / "locked").mkdir()
    (odd / "locked" / "inside").write_text("g")
    (odd / "locked").chmod(0o555)
    (root / "usr/bin/suid").write_text("#!/bin/sh\n")
    (root / "usr/bin/suid").chmod(0o6755)
    (root / "etc/hostname").write_text("third\n")


@dataclass
class Thing:
    """One path as the layers, or the mounted result, tell it."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    digest: str = ""
    target: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    group: object = None


def merged(layout: Path) -> dict[str, Thing]:
    """The layers merged by the image specification, as far as well-formed layers need it."""
    found: dict[str, Thing] = {}
    for digest in layer_digests(layout):
        layer: dict[str, Thing] = {}
        hidden: list[str] = []
        with tarfile.open(layout / "blobs" / digest.replace(":", "/")) as archive:
            for member in archive:
                path = member.name.removeprefix("./").strip("/")
                parent, _, base = path.rpartition("/")
                if base.startswith(".wh."):
                    assert base != ".wh..wh..opq", "umoci writes no opaque whiteouts"
                    hidden.append(f"{parent}/{base[4:]}".strip("/"))
                elif member.islnk():
                    target = member.linkname.removeprefix("./").strip("/")
                    layer[path] = layer.get(target) or found[target]
                else:
                    layer[path] = thing_of(archive, member)
        for path in hidden + [p for p, t in layer.items() if t.kind != stat.S_IFDIR]:
            for old in [p for p in found if p == path or p.startswith(f"{path}/")]:
                del found[old]
        found.update(layer)
    found.pop("", None), found.pop(".", None)
    return found


def layer_digests(layout: Path) -> list[str]:
    index = json.loads((layout / "index.json").read_text())
    (manifest,) = [
        m
        for m in index["manifests"]
        if m["annotations"]["org.opencontainers.image.ref.name"] == "3"
    ]
    document = json.loads((layout / "blobs" / manifest["digest"].replace(":", "/")).read_text())
    layers = [layer["digest"] for layer in document["layers"]]
    assert len(layers) == 3
    return layers


KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def thing_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Thing:
    kind = KINDS[member.type]
    thing = Thing(kind, member.mode & 0o7777, member.uid, member.gid, int(member.mtime))
    if kind == stat.S_IFREG:
        content = archive.extractfile(member)
        assert content
        thing.size = member.size
        thing.digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    if kind == stat.S_IFLNK:
        thing.target = member.linkname
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        thing.device = (member.devmajor, member.devminor)
    prefix = "SCHILY.xattr."
    thing.xattrs = {
        key.removeprefix(prefix): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith(prefix)
    }
    return thing


def walked(root: Path) -> dict[str, Thing]:
    """What the kernel shows of a mounted filesystem."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory, name)
            if path.name != "lost+found" or Path(directory) != root:
                found[str(path.relative_to(root))] = seen(path)
    return found


def seen(path: Path) -> Thing:
    info = path.lstat()
    kind = stat.S_IFMT(info.st_mode)
    thing = Thing(kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, int(info.st_mtime))
    thing.group = info.st_ino
    if kind == stat.S_IFREG:
        thing.size = info.st_size
        with path.open("rb") as stream:
            thing.digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if kind == stat.S_IFLNK:
        thing.target = str(path.readlink())
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        thing.device = (os.major(info.st_rdev), os.minor(info.st_rdev))
    if kind != stat.S_IFLNK:
        names = os.listxattr(path, follow_symlinks=False)
        thing.xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return thing


@pytest.fixture(scope="module")
def built(
    layout: Path, registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image pulled from the registry and built by a normal user; mounted read-only."""
    push(layout, registry, "lab/debian", "3", source_tag="3")
    with unprivileged.home() as home:
        (home / "banger.toml").write_text(
            f'[[registry]]\nhost = "{registry.host}"\nplain-http = true\n'
            f'[[image]]\nname = "debian"\nref = "{registry.host}/lab/debian:3"\n'
            'size = "2GiB"\nguest = false\n'
        )
        program = [sys.executable, "-m", "reconciler"]
        env = {"PYTHONPATH": str(Path(__file__).parent.parent)}
        result = unprivileged.run([*program, "banger.toml", "--json"], home, env)
        assert result.returncode == 0, result.stderr
        document = json.loads(result.stdout)
        rootfs = Path(document["images"][0]["path"]) / "rootfs.ext4"
        assert rootfs.stat().st_uid == unprivileged.NOBODY
        mount = tmp_path_factory.mktemp("mount")
        sh("mount", "-o", "loop,ro", rootfs, mount)
        try:
            yield mount, document
        finally:
            sh("umount", mount)


def test_e2fsck_finds_nothing(built: tuple[Path, dict[str, Any]]) -> None:
    rootfs = Path(built[1]["images"][0]["path"]) / "rootfs.ext4"
    found = subprocess.run(["e2fsck", "-fn", rootfs], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_every_path_equals_the_merged_layers(
    layout: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    wanted, found = merged(layout), walked(built[0])
    assert wanted.keys() == found.keys()
    assert len(found) > 5000
    different = {}
    for path, thing in wanted.items():
        other = Thing(**{**vars(found[path]), "group": None})
        if thing != other:
            different[path] = (thing, other)
    assert not different


def test_names_of_one_file_are_names_of_one_inode(
    layout: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    wanted, found = merged(layout), walked(built[0])

    def groups(things: dict[str, Thing], key: Any) -> set[frozenset[str]]:
        by: dict[Any, set[str]] = {}
        for path, thing in things.items():
            if thing.kind != stat.S_IFDIR:
                by.setdefault(key(thing), set()).add(path)
        return {frozenset(paths) for paths in by.values() if len(paths) > 1}

    links = groups(wanted, id)
    assert frozenset({"srv/linked", "srv/odd/two words"}) in links
    assert groups(found, lambda thing: thing.group) == links


def test_the_kernel_reads_acl_and_capability(built: tuple[Path, dict[str, Any]]) -> None:
    root = built[0]
    acl = subprocess.run(
        ["getfacl", "-cn", root / "srv/data"], capture_output=True, text=True, check=True
    ).stdout
    assert "user:1234:rwx" in acl
    assert "default:group:5678:r-x" in acl
    capability = subprocess.run(
        ["getcap", root / "usr/bin/ls-with-caps"], capture_output=True, text=True, check=True
    ).stdout
    assert "cap_net_raw=ep" in capability


def test_nothing_was_left_out(built: tuple[Path, dict[str, Any]]) -> None:
    assert built[1]["images"][0]["not_carried"] == []
