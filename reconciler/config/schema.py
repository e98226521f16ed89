"""The shape of `banger.toml`: every key, its type, its default and its limits, as pydantic models.

`config` validates a parsed file with `Document` and makes frozen data of it; nobody else sees these
models. Keys are kebab-case in the file. What is checked here concerns one key or one table; names
that clash are found by `config`, and what a host or a registry must answer, by nobody here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from reconciler.config.problems import toml_value
from reconciler.durations import parse_duration
from reconciler.errors import BangerError
from reconciler.model import Platform, printable
from reconciler.oci.limits import DEFAULTS
from reconciler.oci.reference import parse_reference
from reconciler.sizes import format_size, parse_size

VERSION = 1
"""The newest `version` of the file that this program understands."""
BLOCK = 4096
"""Bytes: the block size of the filesystems, of which a size must be a multiple."""
ARCHITECTURES = ("amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "s390x", "loong64")
"""Architectures by the names that OCI indexes use (GOARCH)."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")
"""As apt-get takes it: a name, an architecture, a version (deb-control(5))."""
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_HOST_PORT = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_HOST = re.compile(_HOST_PORT)
_MIRROR = re.compile(rf"{_HOST_PORT}(?:/[a-z0-9._-]+)*")
_PERCENT = re.compile(r"([0-9]{1,3})%")
_LONGEST_COMMAND_LINE = 2047  # COMMAND_LINE_SIZE of x86 is 2048, with its NUL


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
FilePath = Annotated[str, Field(min_length=1), AfterValidator(_no_nul)]


class Table(BaseModel):
    """What all tables have in common: kebab-case keys, no unknown ones, no conversions."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        strict=True,
    )


class Retry(Table):
    """`retry` of [reconcile]: the waits between tries are base, base*factor, ... up to max."""

    base: Duration = 5.0
    factor: float = Field(default=2.0, ge=1, le=100)
    max: Duration = 600.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.base <= self.max:
            raise ValueError("base must be more than 0s and at most max")
        return self


class Reconcile(Table):
    """[reconcile]: how passes run."""

    interval: Duration = 600.0
    jitter: float = Field(default=0.1, ge=0, le=1)
    jobs: int = Field(default=2, ge=1, le=64)
    timeout: Duration = 1800.0
    settle: Duration = 0.5
    retry: Retry = Retry()

    @field_validator("interval", "timeout")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0:
            raise ValueError("must be longer than 0s")
        return value


class ImageKeys(Table):
    """What [defaults] and [[image]] have in common."""

    size: Size = 2 << 30
    kernel_ref: Annotated[str, AfterValidator(lambda v: v and check_name(v))] = ""
    pull: Literal["missing", "always", "never"] = "missing"
    platform: PlatformText = Platform("linux", "amd64")
    retain: int = Field(default=1, ge=0, le=1000)
    guest: bool = True
    inject_modules: bool = False
    builder: Literal["auto", "direct", "tools"] = "auto"
    protect: bool = False
    suspend: bool = False


class Defaults(ImageKeys):
    """[defaults]: what an entry gets that does not say otherwise."""


class Image(ImageKeys):
    """An [[image]] entry."""

    ref: Annotated[str, AfterValidator(check_reference)]
    name: Name | None = None


class Prune(Table):
    """[prune]: what happens to images that left the configuration."""

    images: bool = False
    grace: Duration = 3600.0
    max: Limit = "25%"
    allow_empty: bool = False


class Gc(Table):
    """[gc]: how old an unreferenced object must be to be collected."""

    staging_min_age: Duration = 3600.0
    blob_min_age: Duration = 86400.0


class Guest(Table):
    """[guest]: what the guest assets are made with."""

    vsock_port: int = Field(default=42070, ge=1, le=2**32 - 2)  # 2**32 - 1 is VMADDR_PORT_ANY


class Limits(Table):
    """[limits]: what one image may ask for; `oci.limits` holds the defaults and their meaning."""

    layer_bytes: Bytes = DEFAULTS.layer_bytes
    zstd_window: Bytes = DEFAULTS.zstd_window
    entries: int = Field(default=DEFAULTS.entries, ge=1)
    metadata_bytes: Bytes = DEFAULTS.metadata_bytes
    directory_entries: int = Field(default=DEFAULTS.directory_entries, ge=1)
    pax_bytes: Bytes = DEFAULTS.pax_bytes
    layers: int = Field(default=DEFAULTS.layers, ge=1)
    document_bytes: Bytes = DEFAULTS.document_bytes
    archive_entries: int = Field(default=DEFAULTS.archive_entries, ge=1)


class Source(Table):
    """Where a kernel file comes from."""

    path: FilePath | None = None
    url: str | None = None
    sha256: Annotated[str, AfterValidator(check_sha256)] | None = None

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^\s/]+/\S*", value):
            raise ValueError(f"{toml_value(value)} is no https:// URL of a file")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("needs either `path` or `url`")
        if self.url is not None and self.sha256 is None:
            raise ValueError("a `url` needs the `sha256` of the file")
        return self


class ModulesSource(Source):
    """Where a modules directory comes from."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("modules are a directory, which no URL can be: give a `path`")
        return value


class Kernel(Table):
    """A [[kernel]] entry of the catalog."""

    name: Name
    kernel: Source | None = None
    apt: str | None = None
    host: bool = False
    initrd: Source | Literal["generated"] | None = None
    modules: ModulesSource | None = None
    cmdline: str = Field(default="", max_length=_LONGEST_COMMAND_LINE)

    @field_validator("cmdline")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.isprintable() or not value.isascii():
            raise ValueError(f'"{printable(value, 60)}" must be one line of ASCII')
        return value

    @field_validator("apt")
    @classmethod
    def _package(cls, value: str | None) -> str | None:
        if value is not None and not _PACKAGE.fullmatch(value):
            raise ValueError(f"{toml_value(value)} is no name of a package")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum((self.kernel is not None, self.apt is not None, self.host)) != 1:
            raise ValueError("needs one of `kernel`, `apt` and `host`")
        if self.kernel is None and self.modules is not None:
            raise ValueError("`apt` and `host` bring their own `modules`")
        if self.kernel is not None and self.initrd == "generated" and self.modules is None:
            raise ValueError('initrd = "generated" needs `modules`')
        return self


class Registry(Table):
    """A [[registry]] entry."""

    host: str
    mirrors: list[str] = []
    auth_file: FilePath | None = None
    username_file: FilePath | None = None
    password_file: FilePath | None = None
    ca_file: FilePath | None = None
    plain_http: bool = False

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        if not _HOST.fullmatch(value):
            raise ValueError(
                f"{toml_value(value)} is no HOST[:PORT]; it has no https:// and no path"
            )
        return value.lower()

    @field_validator("mirrors")
    @classmethod
    def _mirrors(cls, value: list[str]) -> list[str]:
        for mirror in value:
            if not _MIRROR.fullmatch(mirror):
                raise ValueError(f"{toml_value(mirror)} is no HOST[:PORT][/PREFIX]")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.username_file is None) != (self.password_file is None):
            raise ValueError("`username-file` and `password-file` need each other")
        if self.auth_file is not None and self.username_file is not None:
            raise ValueError("give either `auth-file`, or `username-file` and `password-file`")
        return self


class Document(Table):
    """The whole file."""

    version: int = Field(default=VERSION, ge=1)
    reconcile: Reconcile = Reconcile()
    defaults: Defaults = Defaults()
    prune: Prune = Prune()
    gc: Gc = Gc()
    guest: Guest = Guest()
    limits: Limits = Limits()
    kernel: list[Kernel] = []
    registry: list[Registry] = []
    image: list[Image] = []
