"""What the guest stage drops into an image: binary, scripts, units, links, the image's config.

`stages.guest` writes what `guest_assets` lists, `stages.ext4` makes room for `asset_sizes`, and
`observe` puts `assets_digest` into the image's id. The files themselves lie in `files/`, the binary
that the wheel's build made in `bin/<architecture>/`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler.errors import Code, HostError, ImageError
from reconciler.model import DesiredImage, Platform, canonical, printable

_HERE = Path(__file__).parent
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

_LIBRARY = "/usr/local/lib/banger"
_UNITS = "/etc/systemd/system"
_SERVICES = ("banger-vsock-agent", "banger-network", "banger-first-boot")
_BLOCK = 4096

_RUNTIME = {
    "Env": list,
    "Entrypoint": list,
    "Cmd": list,
    "User": str,
    "WorkingDir": str,
    "StopSignal": str,
}
"""What of the image's config the guest gets (OCI image configuration, "config"), and its types."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file or symlink of ours in the guest, owned 0:0. `path` is absolute, in plain ASCII.

    mode: permission bits; of a link they mean nothing. Exactly one of content and target is set.
    """

    path: str
    mode: int
    content: bytes | None = None
    target: str | None = None


def guest_assets(image: DesiredImage) -> tuple[Asset, ...]:
    """All that goes into one image; nothing when its entry says `guest = false`.

    Raises HostError GUEST_UNAVAILABLE when there is no guest binary for its architecture, and
    ImageError when its config is not one.
    """
    if not image.spec.guest:
        return ()
    config = _image_config(image.pinned.digest, image.pinned.runtime)
    return _assets(image.pinned.platform, image.vsock_port, config)


def asset_sizes(image: DesiredImage) -> tuple[int, ...]:
    """The bytes of each inode that the guest stage may add: files, links, and their directories.

    Every directory that an asset lies in counts as one block, whether it is there or not: one that
    is there may have to grow by a block for the new name.
    """
    assets = guest_assets(image)
    parents = {parent for asset in assets for parent in PurePosixPath(asset.path).parents}
    return tuple(len(asset.content or b"") for asset in assets) + (_BLOCK,) * len(parents)


def assets_digest(platform: Platform) -> str:
    """A digest over all assets, but for what comes from the image and the configuration.

    Those two are in the image's id by themselves. Raises HostError GUEST_UNAVAILABLE.
    """
    total = hashlib.sha256()
    for asset in _assets(platform, 0, b""):
        content = hashlib.sha256(asset.content or b"").hexdigest()
        total.update(canonical([asset.path, asset.mode, content, asset.target]).encode() + b"\n")
    return f"sha256:{total.hexdigest()}"


def binary(platform: Platform) -> bytes:
    """The guest binary for a platform. Raises HostError GUEST_UNAVAILABLE when there is none."""
    architecture = _ARCHITECTURES.get(platform.architecture)
    if platform.os == "linux" and architecture:
        path = _HERE / "bin" / architecture / "banger-guest"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
    raise HostError(
        f"this installation has no guest binary for {printable(str(platform))}",
        code=Code.GUEST_UNAVAILABLE,
        resolution=_advice(architecture),
        retryable=False,
    )


def _advice(architecture: str | None) -> str:
    if architecture is None:
        return "Set guest = false for this image."
    return (
        f"Reinstall from source with BANGER_GUEST_ARCHS={architecture} (or all) in the environment,"
        " or set guest = false for this image."
    )


def _assets(platform: Platform, vsock_port: int, config: bytes) -> tuple[Asset, ...]:
    """The table, parents and order included; `assets_digest` covers each column of it."""
    return (
        Asset(f"{_LIBRARY}/banger-guest", 0o755, binary(platform)),
        Asset(f"{_LIBRARY}/network", 0o755, _file("network")),
        Asset(f"{_LIBRARY}/first-boot", 0o755, _file("first-boot")),
        *(_unit(name, vsock_port) for name in _SERVICES),
        *(_wanted(name) for name in _SERVICES),
        Asset("/etc/modules-load.d/banger-vsock.conf", 0o644, _file("banger-vsock.conf")),
        Asset("/etc/banger/image.json", 0o644, config),
        Asset("/var/lib/banger/first-boot-pending", 0o644, b""),
    )


def _unit(name: str, vsock_port: int) -> Asset:
    text = _file(f"{name}.service").replace(b"@VSOCK_PORT@", str(vsock_port).encode())
    return Asset(f"{_UNITS}/{name}.service", 0o644, text)


def _wanted(name: str) -> Asset:
    """What `systemctl enable` would make of `WantedBy=multi-user.target`."""
    link = f"{_UNITS}/multi-user.target.wants/{name}.service"
    return Asset(link, 0o777, target=f"{_UNITS}/{name}.service")


def _file(name: str) -> bytes:
    return (_HERE / "files" / name).read_bytes()


def _image_config(digest: str, runtime: str) -> bytes:
    """/etc/banger/image.json: one JSON object, keys sorted, without what the image does not set."""
    kept: dict[str, Any] = {"Digest": digest}
    config = json.loads(runtime)
    for name, kind in _RUNTIME.items():
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, kind) or not all(isinstance(part, str) for part in value):
            raise ImageError(f"{name} in the image's config is not of its type")
        kept[name] = value
    return canonical(kept).encode() + b"\n"
