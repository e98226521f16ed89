"""What a value in `banger.toml` may be: sizes, durations, names, digests, as types of pydantic.

`schema` and `kernels` make their tables of these. A reader takes what TOML gave and raises
ValueError with words for people; `problems` puts them into the list.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from reconciler.config.problems import toml_value
from reconciler.durations import parse_duration
from reconciler.errors import BangerError
from reconciler.model import Platform
from reconciler.oci.reference import parse_reference
from reconciler.sizes import format_size, parse_size

BLOCK = 4096
"""Bytes: the block size of the filesystems, of which a size must be a multiple."""
ARCHITECTURES = ("amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "s390x", "loong64")
"""Architectures by the names that OCI indexes use (GOARCH)."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_PERCENT = re.compile(r"([0-9]{1,3})%")


def read_size(value: object) -> int | None:
    """`size`: text as `sizes` reads it, an integer number of MiB, or "auto" (None)."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'must be a size such as "4GiB", or "auto", not {toml_value(value)}')
    try:
        size = parse_size(str(value))
    except BangerError as error:
        raise ValueError(_advice(error)) from error
    if size % BLOCK:
        down = size - size % BLOCK
        near = f"{format_size(down)} or {format_size(down + BLOCK)}" if down else "4KiB"
        raise ValueError(f'"{value}" is not a multiple of 4KiB, the block size; near it: {near}')
    return size


def read_bytes(value: object) -> int:
    """A number of bytes from text with a suffix; a bare number would mean MiB, which is a trap."""
    if not isinstance(value, str) or value.strip().isdigit():
        raise ValueError(f'must be a size such as "64MiB", not {toml_value(value)}')
    try:
        return parse_size(value)
    except BangerError as error:
        raise ValueError(_advice(error)) from error


def read_duration(value: object) -> float:
    """A duration in seconds, from text such as "10m"."""
    if not isinstance(value, str):
        raise ValueError(f'must be a duration such as "10m", not {toml_value(value)}')
    try:
        return parse_duration(value)
    except BangerError as error:
        raise ValueError(_advice(error)) from error


def read_platform(value: object) -> Platform:
    """A platform from `linux/ARCHITECTURE[/VARIANT]`."""
    if not isinstance(value, str):
        raise ValueError(f'must be a platform such as "linux/amd64", not {toml_value(value)}')
    os, _, rest = value.partition("/")
    architecture, _, variant = rest.partition("/")
    meant = {"x86_64": "amd64", "aarch64": "arm64"}.get(architecture)
    if meant:
        raise ValueError(f'{toml_value(value)}: images call this architecture "{meant}"')
    if os != "linux" or architecture not in ARCHITECTURES or not re.fullmatch("[a-z0-9]*", variant):
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{toml_value(value)} is no platform linux/ARCHITECTURE, of {known}")
    return Platform(os, architecture, variant)


def read_limit(value: object) -> int | str:
    """`max` of [prune]: a number of images, or a percentage as text, `N%`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1]) > 100:
        raise ValueError(
            f'must be a percentage such as "25%", or a number, not {toml_value(value)}'
        )
    return f"{int(found[1])}%"


def check_name(value: str) -> str:
    """A name: it becomes a path."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{toml_value(value)} is no name: 1 to 63 of a-z 0-9 . _ -, a letter or digit first"
        )
    return value


def check_reference(value: str) -> str:
    """A reference to an image, in one of the forms that `oci.reference` knows."""
    try:
        parse_reference(value)
    except BangerError as error:
        raise ValueError(_advice(error)) from error
    return value


def check_sha256(value: str) -> str:
    """64 hexadecimal digits; gives them bare and in lower case."""
    found = _SHA256.fullmatch(value)
    if found is None:
        raise ValueError(f"{toml_value(value)} is no sha256: it has 64 hexadecimal digits")
    return found[1].lower()


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{toml_value(value)} is no path")
    return value


def _advice(error: BangerError) -> str:
    """The words of an error that another room raised, for a problem of one key."""
    return f"{error.brief}. {error.resolution}" if error.resolution else error.brief


_SIZE_SCHEMA = {
    "anyOf": [{"type": "string", "examples": ["4GiB", "auto"]}, {"type": "integer", "minimum": 1}]
}
_DURATION_SCHEMA = {"type": "string", "examples": ["500ms", "30s", "10m", "1h30m"]}
_LIMIT_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": "^[0-9]+%$"}, {"type": "integer", "minimum": 0}]
}
_PLATFORM_SCHEMA = {"type": "string", "pattern": "^linux/[a-z0-9]+(/[a-z0-9]+)?$"}

Size = Annotated[int | None, PlainValidator(read_size), WithJsonSchema(_SIZE_SCHEMA)]
Bytes = Annotated[int, PlainValidator(read_bytes), WithJsonSchema(_SIZE_SCHEMA)]
Duration = Annotated[float, PlainValidator(read_duration), WithJsonSchema(_DURATION_SCHEMA)]
Limit = Annotated[int | str, PlainValidator(read_limit), WithJsonSchema(_LIMIT_SCHEMA)]
PlatformText = Annotated[
    Platform, PlainValidator(read_platform), PlainSerializer(str), WithJsonSchema(_PLATFORM_SCHEMA)
]
Name = Annotated[str, AfterValidator(check_name)]
ReferenceText = Annotated[str, AfterValidator(check_reference)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]


class Table(BaseModel):
    """What all tables have in common: kebab-case keys, no unknown ones, no conversions."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        allow_inf_nan=False,
        defer_build=True,
        extra="forbid",
        frozen=True,
        strict=True,
    )
