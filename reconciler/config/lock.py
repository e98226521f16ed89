"""`banger.lock`: which digest every image of a `banger.toml` stands for, so that no tag moves it.

The file lies beside the configuration and is committed with it. `lock` alone writes it; passes and
the daemon read it. Where it speaks of an image, that image is pinned to the digest it names; with
`--locked` it has to speak of every image, and of nothing else. The bytes are the same for the same
content: sorted by name, local paths relative to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from reconciler.config.file import LOCK_VERSION, MEND_LOCK, read_bytes
from reconciler.config.load import Config, load
from reconciler.config.problems import toml_value
from reconciler.errors import ConfigError, StaleLock
from reconciler.files import host_errors, write_durably
from reconciler.model import ImageSpec, KernelTriple, Locked
from reconciler.oci.reference import LOCAL_SCHEMES
from reconciler.text import printable

_HEAD = "# Written by `banger-reconcile lock`. Commit it with the configuration; do not edit it.\n"


def lock_path(config: Path) -> Path:
    """Where the lock file of a configuration lies: `banger.lock` for `banger.toml`."""
    return config.with_suffix(".lock") if config.suffix == ".toml" else Path(f"{config}.lock")


def load_with_lock(path: Path, *, demanded: bool) -> Config:
    """Read a configuration and its lock file. Raises ConfigError, or its child StaleLock."""
    return under_lock(load(path), read_lock(path), demanded=demanded)


def read_lock(config: Path) -> bytes | None:
    """The bytes of a configuration's lock file, None without one. Raises ConfigError."""
    path = lock_path(config)
    if not os.path.lexists(path):
        return None
    _demand_a_file(path)
    return read_bytes(path)


def under_lock(config: Config, data: bytes | None, *, demanded: bool) -> Config:
    """The configuration with every image pinned that the lock file speaks of.

    demanded: `--locked`. Raises StaleLock when the file is missing then, or fits no longer, and
    ConfigError when it is no lock file.
    """
    path = lock_path(config.path)
    if data is None:
        if demanded:
            raise _stale(config.path, f"{printable(str(path))} does not exist", ())
        return config
    from reconciler.config.lock_schema import parse_lock  # most configurations have no lock file

    locked = {entry.name: entry for entry in parse_lock(data, config.base, path)}
    found = tuple(differences(config.images, locked))
    if demanded and found:
        brief = f"{printable(str(path))} does not fit {printable(str(config.path))}"
        raise _stale(config.path, brief, found)
    images = tuple(
        replace(spec, lock=_of(entry, spec, binding=demanded))
        if (entry := locked.get(spec.name)) and _fits(spec, entry)
        else spec
        for spec in config.images
    )
    advice = f"run banger-reconcile lock {printable(str(config.path))}"
    warnings = tuple(f"{printable(str(path))}: {words}; {advice}" for words in found)
    return replace(config, images=images, lock=data, warnings=warnings)


def differences(images: Iterable[ImageSpec], locked: dict[str, Locked]) -> Iterator[str]:
    """In words, where a lock file is not that of these images."""
    names = set()
    for spec in images:
        names.add(spec.name)
        entry = locked.get(spec.name)
        if entry is None:
            yield f'image "{spec.name}" is not locked'
            continue
        said = (
            ("ref", spec.ref, entry.ref),
            ("platform", str(spec.platform), entry.platform),
            ("kernel-ref", spec.kernel_ref, entry.kernel_ref),
        )
        for key, wanted, was in said:
            if wanted != was:
                yield f'image "{spec.name}": {key} is {_said(wanted)}, but {_said(was)} is locked'
    for name in sorted(locked.keys() - names):
        yield f'image "{name}" is locked, but the configuration does not list it'


def _said(value: str | None) -> str:
    return "none" if value is None else toml_value(value)


def _of(entry: Locked, spec: ImageSpec, *, binding: bool) -> Locked:
    """What holds of an entry: of a kernel, nothing when the image asks for another one now."""
    kernel = entry.kernel if entry.kernel_ref == spec.kernel_ref else None
    return replace(entry, kernel=kernel, binding=binding)


def _fits(spec: ImageSpec, entry: Locked) -> bool:
    return (spec.ref, str(spec.platform)) == (entry.ref, entry.platform)


def kernel_difference(lock: Locked | None, kernel: KernelTriple | None) -> str:
    """In words, which file of an image's kernel is another than the locked one; empty for none."""
    if lock is None or lock.kernel is None:
        return ""
    if kernel is None:
        return f'the kernel "{lock.kernel.name}" cannot be had, but {lock.kernel.kernel} is locked'
    for part in ("kernel", "initrd", "modules"):
        now, was = getattr(kernel, part), getattr(lock.kernel, part)
        if now != was:
            name = f'{part} of kernel "{kernel.name}"'
            return f"the {name} is {now or 'none'}, but {was or 'none'} is locked"
    return ""


def format_lock(entries: Iterable[Locked], base: Path) -> bytes:
    """The bytes of a lock file."""
    blocks = [_HEAD + f"version = {LOCK_VERSION}\n"]
    for entry in sorted(entries, key=lambda one: one.name):
        kernel = entry.kernel
        fields = {
            "name": entry.name,
            "ref": _written(entry.ref, base),
            "digest": entry.digest,
            "platform": entry.platform,
            "kernel-ref": entry.kernel_ref,
            "kernel-digest": kernel and kernel.kernel,
            "initrd-digest": kernel and kernel.initrd,
            "modules-digest": kernel and kernel.modules,
        }
        # JSON's escapes of printable text are TOML's, too
        rows = (f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in fields.items() if v)
        blocks.append("[[image]]\n" + "".join(rows))
    return "\n".join(blocks).encode()


def _written(ref: str, base: Path) -> str:
    """A reference as it may stand in any clone: a path below the file's directory is relative."""
    scheme, _, rest = ref.partition(":")
    if scheme in LOCAL_SCHEMES and Path(rest).is_relative_to(base):
        return f"{scheme}:{Path(rest).relative_to(base)}"
    return ref


def write_lock(config: Path, data: bytes) -> None:
    """Put the lock file in place, atomically; a link is followed. Raises HostError."""
    path = lock_path(config)
    _demand_a_file(path)
    with host_errors(f"{printable(str(path))} cannot be written"):
        write_durably(Path(os.path.realpath(path)), data)


def _demand_a_file(path: Path) -> None:
    """A pipe would be waited for, and a device replaced by a file: neither is meant."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{printable(str(path))} is no regular file", resolution=MEND_LOCK)


def _stale(config: Path, brief: str, found: tuple[str, ...]) -> StaleLock:
    advice = f"Run `banger-reconcile lock {printable(str(config))}`, and look at what it changes."
    return StaleLock(brief, found, resolution=advice)
