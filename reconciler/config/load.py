"""`banger.toml`, read: TOML bytes in, one frozen `Config` out, or all of its problems at once.

`cli` and `watch` load a file with it and pass the `Config` down; nobody below reads the file. The
shape of the file is `schema`, the wording of problems `problems`; here is what needs
the whole of it: reading, defaults, names, and paths that are relative to the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from reconciler.config import schema
from reconciler.config.file import decode, invalid, read_bytes
from reconciler.config.kernels import Kernel, Source
from reconciler.config.problems import Problem, report, schema_problems, toml_value
from reconciler.errors import BangerError, ConfigError
from reconciler.model import FileSource, ImageSpec, KernelEntry, RegistryConfig
from reconciler.oci.limits import DEFAULTS, Limits
from reconciler.oci.reference import LOCAL_SCHEMES, default_name, parse_reference
from reconciler.text import printable


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Waits between tries: base, base*factor, base*factor**2, ... up to max (seconds)."""

    base: float
    factor: float
    max: float


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """[reconcile]; times in seconds, jitter a share of 1, jobs images at a time."""

    interval: float
    jitter: float
    jobs: int
    timeout: float
    settle: float
    retry: RetrySettings


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """[prune]; grace in seconds. Of max_count and max_percent exactly one is not None."""

    images: bool
    grace: float
    max_count: int | None
    max_percent: int | None
    allow_empty: bool


@dataclass(frozen=True, slots=True)
class GcSettings:
    """[gc]; ages in seconds."""

    staging_min_age: float
    blob_min_age: float


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """[guest]."""

    vsock_port: int


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that holds: names are unique, references parse, paths are absolute.

    path: as given to `load`, or the label of `parse`; base: the directory of its relative paths.
    sha256: 64 hex digits over the file's bytes. lock: the bytes of the lock file that the images
    were pinned by, None without one; warnings: where that file does not fit.
    """

    path: Path
    base: Path
    sha256: str
    images: tuple[ImageSpec, ...]
    kernels: tuple[KernelEntry, ...]
    registries: tuple[RegistryConfig, ...]
    reconcile: ReconcileSettings
    prune: PruneSettings
    gc: GcSettings
    guest: GuestSettings
    limits: Limits = DEFAULTS
    lock: bytes | None = None
    warnings: tuple[str, ...] = ()


def load(path: Path) -> Config:
    """Read a configuration file. Raises ConfigError: unreadable, or with every problem in it.

    Relative paths in it are relative to the directory in which `path` lies, links not followed.
    """
    return parse(read_bytes(path), path.absolute().parent, path)


def parse(data: bytes, base: Path, label: Path = Path("-")) -> Config:
    """Make a Config of the bytes of a file. Raises ConfigError with every problem in them.

    base: the absolute directory that relative paths are relative to; label: the file's name in
    messages, `-` for standard input.
    """
    name = printable(str(label), 400) if label != Path("-") else "standard input"
    text = decode(data, name)
    document = toml_document(text, name)
    _check_version(document, name)
    problems = list(_clashes(document))
    try:
        tables = schema.Document.model_validate(document)
    except ValidationError as error:
        problems = [*schema_problems(error, schema.Document), *problems]
    else:
        problems += _base_problems(tables, base)
    if problems:
        raise invalid(name, report(problems, name, text, document))
    return _config(tables, base, label, hashlib.sha256(data).hexdigest())


def toml_document(text: str, name: str) -> dict[str, Any]:
    """A parsed TOML text. Raises ConfigError with the line and column that are wrong."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise _syntax_error(error, name) from None
    except (ValueError, RecursionError) as error:
        # beyond what the parser takes: a number of thousands of digits, arrays nested as deep
        raise invalid(name, (f"{name}: {printable(str(error))}",)) from None


def _syntax_error(error: tomli.TOMLDecodeError, name: str) -> ConfigError:
    """One problem of four lines: position and cause, the line, a mark under the column."""
    wrong = error.doc.split("\n")[error.lineno - 1]
    start = max(0, error.colno - 60)
    shown = printable(wrong[start : start + 100].replace("\t", " "))
    mark = " " * (error.colno - 1 - start) + "^"
    problem = (
        f"{name}:{error.lineno}:{error.colno}: {printable(error.msg)}\n    {shown}\n    {mark}"
    )
    # what most often stands where TOML wants none: text without its quotes
    is_bare = error.doc[error.pos : error.pos + 1].isalnum() and "key" not in error.msg
    advice = 'Put text into quotes: size = "4GiB".' if is_bare else ""
    return invalid(name, (problem,), advice)


def _check_version(document: Mapping[str, Any], name: str) -> None:
    """A newer file is refused at once: what else looks wrong in it may be right in its version."""
    version = document.get("version")
    if isinstance(version, int) and version > schema.VERSION:
        found = (
            f"{name}: version {version} is newer than this program, which knows {schema.VERSION}"
        )
        raise invalid(name, (found,), "Install a newer banger-reconcile.")


def _clashes(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that stand twice; in the raw document, so that no other error hides them."""
    for table, key in (("kernel", "name"), ("registry", "host")):
        named = [(i, entry.get(key)) for i, entry in _entries(document, table)]
        for index, name, first in _twice((i, n.lower()) for i, n in named if isinstance(n, str)):
            other = f"[[{table}]] number {first + 1}"
            yield Problem((table, index, key), f"{toml_value(name)} stands in {other} already")
    yield from _image_clashes(document)


def _image_clashes(document: Mapping[str, Any]) -> Iterator[Problem]:
    names: list[tuple[int, str]] = []
    derived: set[int] = set()
    for index, entry in _entries(document, "image"):
        name, problem = _image_name(entry)
        if problem:
            yield Problem(("image", index, "ref"), problem)
        if name is not None:
            names.append((index, name))
        if "name" not in entry:
            derived.add(index)
    for index, name, first in _twice(names):
        words = f"the name {toml_value(name)} is taken by [[image]] number {first + 1}"
        if derived & {index, first}:
            words += "; it is derived from the reference: set `name`"
        yield Problem(("image", index, "ref" if index in derived else "name"), words)


def _entries(document: Mapping[str, Any], table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    entries = document.get(table)
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, dict):
            yield index, entry


def _twice(named: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, int]]:
    """(index, name, index of the first) of each name that was there before."""
    seen: dict[str, int] = {}
    for index, name in named:
        if seen.setdefault(name, index) != index:
            yield index, name, seen[name]


def _image_name(entry: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(name, None), or (None, problem), or neither when the schema has complained already."""
    if "name" in entry:
        return (entry["name"], None) if isinstance(entry["name"], str) else (None, None)
    try:
        reference = parse_reference(str(entry.get("ref", "")))
    except BangerError:
        return None, None
    try:
        return default_name(reference), None
    except BangerError as error:
        return None, f"{error.brief}: set `name`"


def _base_problems(tables: schema.Document, base: Path) -> Iterator[Problem]:
    """A path in a reference ends at its first colon, so a directory with one cannot stand there."""
    if not set(":@") & set(str(base)):
        return
    words = f"the file's directory {toml_value(str(base))} holds a colon or an @"
    for place, ref in _references(tables):
        if is_relative(ref):
            yield Problem(place, f"{words}: write an absolute path without them")


def _references(tables: schema.Document) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every reference of the file, and where it stands."""
    for index, image in enumerate(tables.image):
        yield ("image", index, "ref"), image.ref
    for index, kernel in enumerate(tables.kernel):
        if kernel.image:
            yield ("kernel", index, "image"), kernel.image
        for part in ("kernel", "initrd", "modules"):
            source = getattr(kernel, part)
            if isinstance(source, Source) and source.image:
                yield ("kernel", index, part, "image"), source.image


def _config(tables: schema.Document, base: Path, label: Path, sha256: str) -> Config:
    reconcile, limit = tables.reconcile, tables.prune.max
    retry = reconcile.retry
    return Config(
        path=label,
        base=base,
        sha256=sha256,
        images=tuple(_image(entry, tables.defaults, base) for entry in tables.image),
        kernels=tuple(_kernel(entry, tables.defaults, base) for entry in tables.kernel),
        registries=tuple(_registry(entry, base) for entry in tables.registry),
        reconcile=ReconcileSettings(
            interval=reconcile.interval,
            jitter=reconcile.jitter,
            jobs=reconcile.jobs,
            timeout=reconcile.timeout,
            settle=reconcile.settle,
            retry=RetrySettings(retry.base, retry.factor, retry.max),
        ),
        prune=PruneSettings(
            images=tables.prune.images,
            grace=tables.prune.grace,
            max_count=limit if isinstance(limit, int) else None,
            max_percent=int(limit.rstrip("%")) if isinstance(limit, str) else None,
            allow_empty=tables.prune.allow_empty,
        ),
        gc=GcSettings(tables.gc.staging_min_age, tables.gc.blob_min_age),
        guest=GuestSettings(tables.guest.vsock_port),
        limits=Limits(**tables.limits.model_dump()),
    )


def _image(entry: schema.Image, defaults: schema.Defaults, base: Path) -> ImageSpec:
    """One entry over the defaults: what it sets wins, the built-in value included."""
    keys = {
        key: getattr(entry if key in entry.model_fields_set else defaults, key)
        for key in schema.ImageKeys.model_fields
    }
    keys["kernel_ref"] = keys["kernel_ref"] or None
    name = entry.name or default_name(parse_reference(entry.ref))
    return ImageSpec(name=name, ref=_reference(entry.ref, base), **keys)


def _reference(ref: str, base: Path) -> str:
    """A reference whose path, if it has one, is absolute."""
    if not is_relative(ref):
        return ref
    scheme, _, rest = ref.partition(":")
    return f"{scheme}:{base / rest}"


def is_relative(ref: str) -> bool:
    """Whether a reference names a path relative to the file that it stands in."""
    scheme, _, rest = ref.partition(":")
    return scheme in LOCAL_SCHEMES and not rest.startswith("/")


def _kernel(entry: Kernel, defaults: schema.Defaults, base: Path) -> KernelEntry:
    return KernelEntry(
        name=entry.name,
        kernel=_source(entry.kernel, base) if entry.kernel else None,
        initrd=_source(entry.initrd, base) if isinstance(entry.initrd, Source) else None,
        modules=_source(entry.modules, base) if entry.modules else None,
        cmdline=entry.cmdline,
        package=entry.apt,
        is_host=entry.host,
        image=_reference(entry.image, base) if entry.image else None,
        platform=entry.platform or defaults.platform,
        optional=entry.optional,
        generates_initrd=entry.initrd == "generated",
    )


def _source(source: Source, base: Path) -> FileSource:
    return FileSource(
        path=_path(source.path, base),
        url=source.url,
        sha256=source.sha256,
        image=_reference(source.image, base) if source.image else None,
        file=source.file,
    )


def _registry(entry: schema.Registry, base: Path) -> RegistryConfig:
    return RegistryConfig(
        host=entry.host,
        mirrors=tuple(entry.mirrors),
        auth_file=_path(entry.auth_file, base),
        username_file=_path(entry.username_file, base),
        password_file=_path(entry.password_file, base),
        ca_file=_path(entry.ca_file, base),
        plain_http=entry.plain_http,
    )


def _path(path: str | None, base: Path) -> Path | None:
    return None if path is None else base / path
