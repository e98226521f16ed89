"""The nouns that every room shares: frozen data, no behaviour that reads the host.

Pure on purpose: the planner and the merge of layers are tested as tables over these values.
Sizes are bytes, times are nanoseconds since the epoch unless a name says otherwise, digests are
`<algorithm>:<hex>` as in the OCI image specification ("Descriptor digests").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

Emit = Callable[..., None]
"""`emit(event, **fields)`: one event of the vocabulary in docs/architecture.md."""

RECIPE_VERSION = 5
"""Raised whenever the same inputs would give other bytes: it is part of every stage key."""


class Stage(StrEnum):
    """The pipeline, in order."""

    RESOLVE = "resolve"
    PULL = "pull"
    FLATTEN = "flatten"
    EXT4 = "ext4"
    OWNERSHIP = "ownership"
    GUEST = "guest"
    KERNEL = "kernel"
    PUBLISH = "publish"
    RECORD = "record"


class Action(StrEnum):
    """What a pass does about one image."""

    NOOP = "noop"
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    REPAIR = "repair"
    PRUNE = "prune"
    ORPHAN = "orphan"
    SUSPEND = "suspend"


class Reason(StrEnum):
    """Why: stable words, part of the JSON contract."""

    IN_SYNC = "InSync"
    NAME_CHANGED = "NameChanged"
    NOT_PRESENT = "NotPresent"
    REF_CHANGED = "RefChanged"
    DIGEST_CHANGED = "DigestChanged"
    SIZE_CHANGED = "SizeChanged"
    KERNEL_CHANGED = "KernelChanged"
    GUEST_CHANGED = "GuestChanged"
    RECIPE_CHANGED = "RecipeChanged"
    ARTIFACT_MISSING = "ArtifactMissing"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    STAGE_INCOMPLETE = "StageIncomplete"
    RECORD_MISSING = "RecordMissing"
    REQUESTED = "Requested"
    REMOVED_FROM_CONFIG = "RemovedFromConfig"
    PRUNE_BLOCKED_EMPTY = "PruneBlockedEmpty"
    PRUNE_BLOCKED_LIMIT = "PruneBlockedLimit"
    PROTECTED = "Protected"
    IN_USE = "InUse"
    SUSPENDED = "Suspended"
    BACKING_OFF = "BackingOff"
    NOT_SELECTED = "NotSelected"


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform; `str()` gives `os/architecture[/variant]`."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class FileSource:
    """Where a kernel file comes from: one of path, url and image. sha256 is bare hex or None.

    image: a reference; then `file` is a path inside that image, a directory for modules.
    """

    path: Path | None
    url: str | None
    sha256: str | None
    image: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A `[[kernel]]` entry: what a `kernel-ref` names."""

    name: str
    kernel: FileSource | None
    initrd: FileSource | None = None
    modules: FileSource | None = None
    cmdline: str = ""
    package: str | None = None
    """A package of apt in place of kernel and modules."""
    is_host: bool = False
    """The newest kernel of the host in place of kernel and modules."""
    image: str | None = None
    """A reference in place of kernel and modules: /boot/vmlinux or vmlinuz, and /lib/modules."""
    platform: Platform = Platform("linux", "amd64")
    """Which image to take out of an index, where a part comes out of one."""
    optional: bool = False
    """Where it cannot be had, images are built without it."""
    generates_initrd: bool = False
    """An initramfs made from the modules in place of `initrd`."""
    origin: str = ""
    """The images that parts were taken out of, by digest: `REF@DIGEST`, parted by blanks."""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """A `[[registry]]` entry: how to talk to one host (`host[:port]`)."""

    host: str
    mirrors: tuple[str, ...] = ()
    auth_file: Path | None = None
    username_file: Path | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    plain_http: bool = False


@dataclass(frozen=True, slots=True)
class Locked:
    """What a lock file says about one image: the digest of its manifest, and of its kernel's files.

    binding: `--locked` was given, so a kernel of other bytes is an error.
    """

    name: str
    ref: str
    digest: str
    platform: str
    kernel_ref: str | None = None
    kernel: KernelTriple | None = None
    """None also where an optional kernel could not be had when the file was written."""
    binding: bool = False


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One `[[image]]` entry with the defaults applied; size is bytes, or None for "auto"."""

    name: str
    ref: str
    size: int | None
    kernel_ref: str | None = None
    platform: Platform = Platform("linux", "amd64")
    pull: str = "missing"
    retain: int = 1
    guest: bool = True
    inject_modules: bool = False
    run_entrypoint: bool = False
    builder: str = "auto"
    protect: bool = False
    suspend: bool = False
    lock: Locked | None = None

    @property
    def injects_modules(self) -> bool:
        """Whether the kernel's modules go in; with `guest = false` nothing does."""
        return self.guest and self.inject_modules


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An OCI descriptor: `size` bytes whose digest is `digest`."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the blob as it travels, and `diff_id`, the digest of the tar stream inside."""

    blob: Descriptor
    diff_id: str


@dataclass(frozen=True, slots=True)
class PinnedImage:
    """What resolve found: one manifest, by digest. `runtime` is the image's own config, as data."""

    digest: str
    config: Descriptor
    layers: tuple[Layer, ...]
    platform: Platform
    runtime: str = "{}"
    """Canonical JSON of the config's `config` object (Env, Entrypoint, Cmd, User, ...)."""


@dataclass(frozen=True, slots=True)
class KernelTriple:
    """The identity of a kernel: digests of the kernel, the initrd and the modules tree."""

    name: str
    kernel: str
    initrd: str | None = None
    modules: str | None = None
    cmdline: str = ""
    origin: str = ""
    """As that of the entry; the bytes count, so it is no part of any key."""


@dataclass(frozen=True, slots=True)
class StageKeys:
    """The stage key of each stage that makes bytes: equal key and intact output = not run."""

    flatten: str
    ext4: str
    ownership: str
    guest: str
    kernel: str

    @property
    def rootfs(self) -> str:
        """The key of the finished rootfs.ext4: guest is the last stage that writes it."""
        return self.guest


@dataclass(frozen=True, slots=True)
class DesiredImage:
    """One entry, pinned: all that the pipeline needs to know, and the id that it leads to."""

    spec: ImageSpec
    pinned: PinnedImage
    kernel: KernelTriple | None
    guest_digest: str | None
    """Digest of the guest assets that go in, None when `guest = false`."""
    vsock_port: int = 42070
    builder: str = "tools"
    """What `spec.builder` comes to on this host: "direct" or "tools", never "auto"."""
    no_kernel: str = ""
    """Why it goes without its kernel, which is optional; empty when it does not."""

    keys: StageKeys = field(init=False, compare=False, repr=False)
    """The chain of stage keys: each covers its own inputs and the key before it."""
    id: str = field(init=False, compare=False, repr=False)
    """The artifact's name: 32 hex digits over everything that changes its bytes."""

    def __post_init__(self) -> None:
        keys = _keys_of(self)  # once: a pass over a thousand images asks for them again and again
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "id", key("artifact", keys.rootfs, keys.kernel)[:32])


def _keys_of(image: DesiredImage) -> StageKeys:
    # the builders give equal trees in different bytes
    how = () if image.builder == "tools" else (image.builder,)
    flatten = key("flatten", image.pinned.digest, str(image.pinned.platform), *how)
    modules = image.kernel.modules if image.kernel and image.spec.injects_modules else None
    if image.spec.size is None:  # "auto" makes room for what goes in later
        ext4 = key("ext4", flatten, "auto", image.guest_digest, modules)
    else:
        ext4 = key("ext4", flatten, image.spec.size)
    ownership = key("ownership", ext4)
    runs = ("run-entrypoint",) if image.spec.guest and image.spec.run_entrypoint else ()
    guest = key("guest", ownership, image.guest_digest, image.vsock_port, modules, *runs)
    return StageKeys(flatten, ext4, ownership, guest, kernel_key(image.kernel))


Fingerprint = tuple[int, int, int]
"""Size in bytes, mtime in nanoseconds, inode: equal = not touched since it was last verified."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a name stands for: the persisted row. Times are RFC 3339 in UTC."""

    name: str
    id: str
    ref: str
    digest: str
    platform: str
    size: int
    keys: StageKeys
    created_at: str
    updated_at: str
    kernel: str | None = None
    protect: bool = False
    retain: int = 1
    managed: bool = True
    blobs: tuple[str, ...] = ()
    """Digests of the manifest, the config and the layers: what a rebuild would need again."""
    previous: tuple[str, ...] = ()
    """Ids of earlier artifacts kept for rollback, newest first."""
    not_carried: tuple[str, ...] = ()
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of one name, kept until a pass succeeds."""

    name: str
    code: str
    stage: str
    message: str
    hint: str
    retryable: bool
    attempts: int
    since: str
    at: str
    next_retry_at: str | None = None
    """When the daemon tries again; None when nothing but another run does."""


READY = "Reconciled"
"""The reason of a Ready condition that is True."""


def camel_case(code: str) -> str:
    """An error code as the reason of a condition: `not-found` is `NotFound`."""
    return "".join(word.capitalize() for word in code.split("-"))


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of the Ready condition of a name. status is "True" or "False"."""

    at: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class History:
    """The last changes of the Ready condition of a name, oldest first; bounded."""

    name: str
    transitions: tuple[Transition, ...] = ()


def key(*parts: str | int | None) -> str:
    """A stage key: sha256, 64 hex digits, over the recipe version and the parts."""
    return hashlib.sha256(canonical([RECIPE_VERSION, *parts]).encode()).hexdigest()


@cache
def kernel_key(kernel: KernelTriple | None) -> str:
    """The stage key of a kernel triple; the catalog name is not part of it, the bytes are."""
    if kernel is None:
        return key("kernel", None)
    return key("kernel", kernel.kernel, kernel.initrd, kernel.modules, kernel.cmdline)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no blanks, ASCII only."""
    return _CANONICAL.encode(value)
