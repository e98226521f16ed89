"""What the guest stage drops into an image: binary, units, scripts, links, the image's config.

`stages.guest` writes what `guest_assets` lists, `stages.ext4` makes room for `asset_sizes`, and
`observe` puts `assets_digest` into the image's id. The files themselves lie in `files/`, the binary
that the wheel's build made in `bin/<architecture>/`.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler.errors import Code, HostError, ImageError
from reconciler.guest.inits import Init, has_modules, init_of
from reconciler.model import DesiredImage, Platform, canonical
from reconciler.oci.entries import Tree
from reconciler.text import printable

_HERE = Path(__file__).parent
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

_LIBRARY = "/usr/local/lib/banger"
_UNITS = "/etc/systemd/system"
_BINARY = f"{_LIBRARY}/banger-guest"
_SERVICES = ("banger-vsock-agent", "banger-network", "banger-first-boot")
_ENTRYPOINT = "banger-entrypoint"
_SIGNAL = re.compile(r"[A-Z][A-Z0-9]{1,9}(?:[+-][0-9]{1,2})?")
"""A stop signal as the image specification and signal(7) spell them."""
_BLOCK = 4096
_PIECE = 1 << 20

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

    mode: permission bits; of a link they mean nothing. Exactly one of content, target and source
    is set; source is a file of the host that holds still, for what is too large to keep.
    """

    path: str
    mode: int
    content: bytes | None = None
    target: str | None = None
    source: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of its content; 0 for a link."""
        return self.source.stat().st_size if self.source else len(self.content or b"")

    def pieces(self) -> Iterator[bytes]:
        """Its content, a piece at a time."""
        if self.source is None:
            yield self.content or b""
            return
        with self.source.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece


def guest_assets(
    image: DesiredImage, tree: Tree, modules: tuple[Asset, ...] = ()
) -> tuple[Asset, ...]:
    """All that goes into one image; nothing when its entry says `guest = false`.

    tree: the merged image, whose init decides. modules: those of the kernel, where they go in, too.
    Raises HostError GUEST_UNAVAILABLE when there is no guest binary for its architecture, and
    ImageError when its config is not one.
    """
    if not image.spec.guest:
        return ()
    config = _image_config(image.pinned.digest, image.pinned.runtime)
    loads_modules = bool(modules) or has_modules(tree)
    init = init_of(tree)
    port = f"{image.vsock_port}\n".encode()
    return (
        *_common(image.pinned.platform, config, port),
        *(_modules() if loads_modules else ()),
        *_for_init(init),
        *(_entrypoint(init, config) if image.spec.run_entrypoint else ()),
        *modules,
    )


def asset_sizes(
    image: DesiredImage, tree: Tree, modules: tuple[Asset, ...] = ()
) -> tuple[int, ...]:
    """The bytes of each inode that the guest stage may add: files, links, and their directories.

    Every directory that an asset lies in counts as one block, whether it is there or not: one that
    is there may have to grow by a block for the new name.
    """
    assets = guest_assets(image, tree, modules)
    parents = {parent for asset in assets for parent in PurePosixPath(asset.path).parents}
    return tuple(asset.size for asset in assets) + (_BLOCK,) * len(parents)


def assets_digest(platform: Platform) -> str:
    """A digest over all assets of all inits, but for what comes from image and configuration.

    Those two are in the image's id by themselves. Raises HostError GUEST_UNAVAILABLE.
    """
    total = hashlib.sha256()
    every = (a for init in Init for a in (*_for_init(init), *_program(init, "")))
    for asset in (*_common(platform, b"", b""), *_modules(), *every):
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


def _common(platform: Platform, config: bytes, port: bytes) -> tuple[Asset, ...]:
    """What every image gets, parents and order included; the digest covers each column of it."""
    return (
        Asset(_BINARY, 0o755, binary(platform)),
        Asset(f"{_LIBRARY}/network", 0o777, target=_BINARY),
        Asset(f"{_LIBRARY}/first-boot", 0o777, target=_BINARY),
        Asset("/etc/banger/image.json", 0o644, config),
        Asset("/etc/banger/vsock-port", 0o644, port),
        Asset("/var/lib/banger/first-boot-pending", 0o644, b""),
    )


def _for_init(init: Init) -> tuple[Asset, ...]:
    """What makes an init start ours. The units of systemd go in everywhere: it may be added."""
    units = (*map(_unit, _SERVICES), *map(_wanted, _SERVICES))
    return (*units, *_scripts(init))


def _unit(name: str) -> Asset:
    return Asset(f"{_UNITS}/{name}.service", 0o644, _file(f"{name}.service"))


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


def _openrc(name: str, runlevel: str) -> tuple[Asset, ...]:
    """A script, and what `rc-update add` would make of it."""
    script = f"/etc/init.d/banger-{name}"
    link = f"/etc/runlevels/{runlevel}/banger-{name}"
    return (
        Asset(script, 0o755, _file(f"openrc-{name}")),
        Asset(link, 0o777, target=script),
    )


def _scripts(init: Init) -> tuple[Asset, ...]:
    """Besides the units of systemd, by init."""
    match init:
        case Init.OPENRC:
            early = (*_openrc("network", "boot"), *_openrc("first-boot", "boot"))
            return (*early, *_openrc("vsock-agent", "default"))
        case Init.SYSVINIT:
            script = Asset("/etc/init.d/banger", 0o755, _file("sysvinit"))
            links = (f"/etc/rc{level}.d/S01banger" for level in (2, 3, 4, 5))
            tab = Asset("/etc/inittab.d/banger.tab", 0o644, _file("sysvinit.tab"))
            # startpar passes over links that insserv has not seen: the line is for where it runs
            return (script, tab, *(Asset(link, 0o777, target="../init.d/banger") for link in links))
        case Init.NONE:
            return (Asset("/sbin/init", 0o777, target=_BINARY),)
        case _:
            return ()


def _entrypoint(init: Init, config: bytes) -> tuple[Asset, ...]:
    """`run-entrypoint`: what starts the image's program where another init is PID 1.

    config: that of the image, as the guest gets it. Raises ImageError when there is no program, or
    an init of which we do not know how to tell it.
    """
    known = json.loads(config)
    if not known.get("Entrypoint") and not known.get("Cmd"):
        raise ImageError(
            "run-entrypoint = true, and the image has neither Entrypoint nor Cmd",
            resolution="Take out run-entrypoint for this image.",
        )
    if init in (Init.SYSVINIT, Init.OTHER):
        raise ImageError(
            "run-entrypoint = true needs systemd, OpenRC, or an image without an init",
            resolution="Take out run-entrypoint for this image, and start its program yourself.",
        )
    return _program(init, _signal_name(known.get("StopSignal", "")))


def _signal_name(spelt: str) -> str:
    """A stop signal by its name: OpenRC takes a number for seconds."""
    if spelt.isdecimal():
        numbers = {int(one): one.name for one in signal.Signals}
        return numbers.get(int(spelt), "SIGTERM")
    return spelt if _SIGNAL.fullmatch(spelt) else "SIGTERM"


def _program(init: Init, stop: str) -> tuple[Asset, ...]:
    """A service that becomes the image's program, and that the signal `stop` ends."""
    if init is Init.SYSTEMD:
        unit = _unit(_ENTRYPOINT)
        return (_filled(unit, stop), _wanted(_ENTRYPOINT))
    if init is Init.OPENRC:
        script, link = _openrc("entrypoint", "default")
        return (_filled(script, stop), link)
    return ()  # ours starts it anyway


def _filled(asset: Asset, stop: str) -> Asset:
    content = (asset.content or b"").replace(b"@SIGNAL@", stop.encode("ascii"))
    return replace(asset, content=content)


def _modules() -> tuple[Asset, ...]:
    """Only where there are modules: elsewhere loading them fails, and a unit of systemd with it."""
    return (Asset("/etc/modules-load.d/banger-vsock.conf", 0o644, _file("banger-vsock.conf")),)
