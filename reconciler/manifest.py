"""`manifest.json`: what an artifact is made of, and whether that is still so.

The manifest lies beside the files that it lists; `store` publishes it with them, `observe` compares
the two. It is enough to write a lost record again.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconciler.digests import is_sparse_digest, sparse_digest
from reconciler.errors import BangerError
from reconciler.files import file_digest
from reconciler.kernel.files import modules_digest, scan_modules
from reconciler.model import StageKeys

ROOTFS, KERNEL, INITRD, MODULES = "rootfs.ext4", "kernel", "initrd.img", "modules"
MANIFEST = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artifact, as its manifest lists it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    size: int
    digest: str


class Manifest(BaseModel):
    """What an artifact is made of. modules: the digest of the whole tree `modules/`.

    kernel_from: the images, by digest, that the kernel was taken out of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    schema_version: int = 1
    id: str
    ref: str
    digest: str
    platform: str
    size: int
    keys: StageKeys
    kernel: str | None = None
    kernel_from: str = ""
    cmdline: str = ""
    modules: str | None = None
    blobs: tuple[str, ...] = ()
    not_carried: tuple[str, ...] = ()
    files: dict[str, FileEntry]


def damage(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Read every file back: name -> what is wrong with it. Empty means whole."""
    found = {
        name: problem
        for name, entry in manifest.files.items()
        if (problem := _file_problem(directory / name, entry))
    }
    if ROOTFS not in manifest.files:
        found[ROOTFS] = "is not in the manifest"
    if manifest.modules and (problem := _tree_problem(directory / MODULES, manifest.modules)):
        found[MODULES] = problem
    return found


def digest_like(path: Path, known: str) -> str:
    """The digest of a file, in the same form as `known`: sparse or plain."""
    if is_sparse_digest(known):
        return sparse_digest(path, known.partition(":")[0])
    return file_digest(path)


def _file_problem(path: Path, entry: FileEntry) -> str | None:
    try:
        info = path.lstat()
        if not path.is_file() or path.is_symlink():
            return "is no regular file"
        if info.st_size != entry.size:
            return f"has {info.st_size} bytes instead of {entry.size}"
        digest = digest_like(path, entry.digest)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == entry.digest else "has other content than was published"


def _tree_problem(path: Path, known: str) -> str | None:
    try:
        digest = modules_digest(scan_modules(path))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except BangerError as error:
        return error.brief
    return None if digest == known else "has other content than was published"
