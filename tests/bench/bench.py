"""How long an image takes, beside others and beside what nobody can undercut.

    make bench            all images, five runs a chain, a table on stdout
    python tests/bench/bench.py --runs 1 --images many,few --chains limit,direct

Chains run interleaved, each as a process of its own on a fresh directory, with fsync included:
limit       gunzip, both sha256 of every layer, write, fdatasync; nothing is parsed
direct      this program with builder = "direct", blobs cached: verified, published, recorded
tools       the same with builder = "tools"
umoci+mkfs  `umoci unpack` and `mkfs.ext4 -d`, then fsync; needs root for true owners
umoci-raw   the same with `umoci raw unpack`, which notes nothing of what it has unpacked
tar2ext4, mke2fs-tar, erofs-tar
            the layer unpacked to a file, then `tar2ext4`, `mke2fs -d TAR` or `mkfs.erofs --tar`
            and fsync, where PATH has one that can. They know no whiteouts: for images of one layer
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import os
import queue
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib

SIZES = {"small": "1GiB", "big": "3GiB", "many": "1GiB", "few": "2GiB"}
PACKAGES = {
    "small": [""],
    "big": [
        "systemd-sysv,vim,openssh-server,perl-doc,git",
        "systemd-sysv,vim,openssh-server,perl-doc,git,build-essential,python3-venv,nodejs,npm,"
        "cmake,golang-1.19-src",
    ],
}
"""Of each layer that is a system; `big` has one more, in which much of these is removed."""
CHAINS = ("limit", "direct", "tools", "umoci+mkfs", "umoci-raw")
PEERS = {
    "tar2ext4": ["tar2ext4", "-i", "TAR", "-o", "IMAGE"],
    "mke2fs-tar": ["mkfs.ext4", "-q", "-F", "-d", "TAR", "IMAGE", "SIZE"],
    "erofs-tar": ["mkfs.erofs", "--tar=f", "IMAGE", "TAR"],
}
"""Programs that read a tar, some of them only in later versions."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """One run of one chain. Seconds, seconds, MiB."""

    wall: float
    cpu: float
    peak: float


# -- images ---------------------------------------------------------------------------------------


def make_image(name: str, base: Path) -> Path:
    """The OCI layout of one image; made when it is not there."""
    layout = base / name
    if (layout / "done").exists():
        return layout
    shutil.rmtree(layout, ignore_errors=True)
    _call("umoci", "init", "--layout", layout)
    _call("umoci", "new", "--image", f"{layout}:1")
    with tempfile.TemporaryDirectory(dir=base) as work:
        tar = Path(work, "system.tar")  # mmdebstrap goes by the ending
        if name in PACKAGES:
            first, *others = PACKAGES[name]
            _debian(first, tar)
            _call("umoci", "raw", "add-layer", "--image", f"{layout}:1", tar)
            for packages in others:
                _change(layout, Path(work, "bundle"), functools.partial(_become, packages, tar))
            if others:
                _change(layout, Path(work, "bundle"), _tidy)
        else:
            _synthetic(name, tar)
            _call("umoci", "raw", "add-layer", "--image", f"{layout}:1", tar)
    (layout / "done").touch()
    return layout


def _debian(packages: str, tar: Path) -> None:
    include = [f"--include={packages}"] if packages else []
    _call("mmdebstrap", "--quiet", "--variant=minbase", *include, "bookworm", tar)


def _change(layout: Path, bundle: Path, change: Callable[[Path], None]) -> None:
    """One more layer, of what a change does to the image as it is: whiteouts are among it."""
    _call("umoci", "unpack", "--image", f"{layout}:1", bundle)
    change(bundle / "rootfs")
    _call("umoci", "repack", "--image", f"{layout}:1", bundle)
    shutil.rmtree(bundle)


def _become(packages: str, tar: Path, root: Path) -> None:
    """What is the same in a system with more packages stays as it is, and out of the layer."""
    _debian(packages, tar)
    with tarfile.open(tar) as archive:
        wanted = {name for member in archive if (name := member.name.strip("./"))}
    for path in sorted(root.rglob("*"), reverse=True):
        if str(path.relative_to(root)) not in wanted:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    _call("tar", "-xpf", tar, "-C", root, "--numeric-owner")


def _tidy(root: Path) -> None:
    """What the end of many a Dockerfile does."""
    for name in ("usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / name)
    (root / "etc/motd").write_text("ready\n")


def _synthetic(name: str, tar: Path) -> None:
    """many: 60,000 files of up to 8 KiB, 40,000 in one directory. few: four of 200 MiB."""
    chance = random.Random(name)
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        if name == "many":
            for number in range(60_000):
                where = "one" if number < 40_000 else f"d/{number % 500}"
                _add(archive, f"{where}/{number}", chance.randbytes(chance.randrange(8192)))
        else:
            for number in range(4):
                words = [chance.randbytes(48) for _ in range(1 << 12)]
                _add(archive, f"{number}", b"".join(chance.choices(words, k=(200 << 20) // 48)))


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _call(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


# -- chains ---------------------------------------------------------------------------------------


def limit(layout: Path, work: Path) -> None:
    """The least that anybody must do who verifies an image and writes it to disk."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    work.mkdir()
    todo: queue.Queue[tuple[hashlib._Hash, bytes] | None] = queue.Queue(32)
    hasher = threading.Thread(target=_hash, args=(todo,))
    hasher.start()
    with (work / "out").open("wb", buffering=0) as out:
        for layer in manifest["layers"]:
            one, two = hashlib.sha256(), hashlib.sha256()
            inflate = isal_zlib.decompressobj(31)
            with (blobs / layer["digest"][7:]).open("rb", buffering=0) as stream:
                while chunk := stream.read(1 << 18):
                    data = inflate.decompress(chunk)
                    todo.put((one, chunk))
                    todo.put((two, data))
                    out.write(data)
        todo.put(None)
        hasher.join()
        os.fdatasync(out.fileno())


def _hash(todo: queue.Queue[tuple[hashlib._Hash, bytes] | None]) -> None:
    while item := todo.get():
        item[0].update(item[1])


def umoci(layout: Path, work: Path, *, raw: bool) -> None:
    """What one would do by hand."""
    work.mkdir()
    unpack = ["umoci", *(["raw"] if raw else []), "unpack", "--image", f"{layout}:1"]
    _call(*unpack, work / "out")
    image = work / "rootfs.ext4"
    tree = work / "out" if raw else work / "out/rootfs"
    _call("mkfs.ext4", "-q", "-F", "-d", tree, image, SIZES[layout.name][:-2])
    with image.open("rb") as stream:
        os.fsync(stream.fileno())


def peer(name: str, layout: Path, work: Path) -> None:
    """A layer as a file, and what a program makes of it."""
    work.mkdir()
    tar = work / "tar"
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    [layer] = manifest["layers"]
    with tar.open("wb") as out, (blobs / layer["digest"][7:]).open("rb") as stream:
        inflate = isal_zlib.decompressobj(31)
        while chunk := stream.read(1 << 18):
            out.write(inflate.decompress(chunk))
    _call(*_peer_words(name, tar, work / "image", SIZES[layout.name][:-2]))
    with (work / "image").open("rb") as image:
        os.fsync(image.fileno())


def _peer_words(name: str, tar: Path, image: Path, size: str) -> list[str]:
    words = {"TAR": str(tar), "IMAGE": str(image), "SIZE": size}
    return [words.get(word, word) for word in PEERS[name]]


_HAND_MADE: dict[str, Callable[[Path, Path], None]] = {
    "limit": limit,
    "umoci+mkfs": functools.partial(umoci, raw=False),
    "umoci-raw": functools.partial(umoci, raw=True),
}


def is_there(name: str) -> bool:
    """Whether this host has a program for a chain, and one that does it."""
    if name not in PEERS:
        return True
    with tempfile.TemporaryDirectory() as base:
        with tarfile.open(Path(base, "tar"), "w") as archive:
            _add(archive, "a", b"a")
        words = _peer_words(name, Path(base, "tar"), Path(base, "image"), "8M")
        try:
            return subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def ours(layout: Path, work: Path, builder: str, cache: Path) -> list[str]:
    """The command line of this program for one image, its blobs in `cache`."""
    work.mkdir()
    config = work / "banger.toml"
    entry = {"name": "x", "ref": f"oci:{layout}:1", "size": SIZES[layout.name], "builder": builder}
    pairs = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
    config.write_text(f"version = 1\n[[image]]\n{pairs}\nguest = false\n")
    places = ["--state-dir", str(work / "state"), "--cache-dir", str(cache)]
    return [sys.executable, "-m", "reconciler", *places, str(config)]


def command(chain: str, layout: Path, work: Path) -> list[str]:
    if chain in ("direct", "tools"):
        return ours(layout, work, chain, layout.parent / "cache")
    return [sys.executable, __file__, "--one", chain, str(layout), str(work)]


def measure(argv: list[str], scratch: Path) -> Run:
    """Run a command to its end; processor time and peak memory include its children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled already
    environment["PYTHONPYCACHEPREFIX"] = str(scratch.parent / "compiled")
    begin = time.monotonic()
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        said = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{argv} failed:\n{said.decode(errors='replace')}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@contextlib.contextmanager
def journaled(base: Path) -> Iterator[Path]:
    """Where the runs go: a new ext4 with a journal, so that every host measures on the same.

    Without a journal ext4 looks long for inodes when many files were removed just before, which
    would count against whoever makes files. Needs root; else it is the directory as it is.
    """
    disk, place = base / "disk.ext4", base / "disk"
    place.mkdir(exist_ok=True)
    disk.unlink(missing_ok=True)
    with disk.open("wb") as stream:
        stream.truncate(16 << 30)
    _call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk)
    try:
        # past the page cache of the directory's own filesystem: nothing is written twice
        device = _said("losetup", "--find", "--show", "--direct-io=on", disk)
    except (OSError, subprocess.CalledProcessError):
        print("no loop device: runs go to the directory itself", file=sys.stderr)
        yield base
        return
    try:
        _call("mount", device, place)
        try:
            yield place
        finally:
            _call("umount", place)
    finally:
        _call("losetup", "--detach", device)
        disk.unlink()


def _said(*words: str | Path) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def fresh(place: Path, chain: str, layout: Path) -> Run:
    """A run in a new directory, and its removal on disk before the next one starts."""
    top = place / "run"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    try:
        return measure(command(chain, layout, top / "work"), top)
    finally:
        shutil.rmtree(top)
        os.sync()


def table(name: str, found: dict[str, list[Run]]) -> None:
    """Medians, and each against the limit of the same run."""
    print(f"\n| {name} | wall s | of the limit | cpu s | peak MiB |\n|---|--:|--:|--:|--:|")
    base = statistics.median(run.wall for run in found["limit"]) if "limit" in found else 0.0
    for chain, runs in found.items():
        wall, cpu = (statistics.median(getattr(r, f) for r in runs) for f in ("wall", "cpu"))
        peak = max(run.peak for run in runs)
        ratio = f"{wall / base:.2f}" if base else "-"
        print(f"| {chain} | {wall:.2f} | {ratio} | {cpu:.2f} | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path(".bench"), help="images and runs go here")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", default=",".join(SIZES))
    parser.add_argument("--chains", default=",".join((*CHAINS, *PEERS)))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.make:
        make_image(chosen.make[0], Path(chosen.make[1]))
        return
    if chosen.one:
        chain, layout, work = chosen.one
        if chain in PEERS:
            peer(chain, Path(layout), Path(work))
        else:
            _HAND_MADE[chain](Path(layout), Path(work))
        return
    base = chosen.dir.resolve()
    base.mkdir(parents=True, exist_ok=True)
    for name in chosen.images.split(","):
        # in a process of its own: the peak of a child counts what its parent had at the fork
        _call(sys.executable, __file__, "--make", name, str(base))
        layout = base / name
        chains = [chain for chain in chosen.chains.split(",") if is_there(chain)]
        if len(PACKAGES.get(name, [""])) > 1:
            chains = [chain for chain in chains if chain not in PEERS]
        found: dict[str, list[Run]] = {chain: [] for chain in chains}
        with contextlib.suppress(KeyboardInterrupt), journaled(base) as place:
            for turn in range(chosen.runs + 1):
                for chain in chains:
                    run = fresh(place, chain, layout)
                    if turn:  # the first round fills the caches
                        found[chain].append(run)
        table(name, {chain: runs for chain, runs in found.items() if runs})


if __name__ == "__main__":
    main()
