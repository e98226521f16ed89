"""The shape of `banger.toml`: every key, its type, its default and its limits, as pydantic models.

`config` validates a parsed file with `Document` and makes frozen data of it; nobody else sees these
models. Keys are kebab-case in the file. What is checked here concerns one key or one table; names
that clash are found by `config`, and what a host or a registry must answer, by nobody here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from reconciler.config.kernels import Kernel
from reconciler.config.problems import toml_value
from reconciler.config.values import (
    Bytes,
    Duration,
    FilePath,
    Limit,
    Name,
    PlatformText,
    ReferenceText,
    Size,
    Table,
    check_name,
)
from reconciler.model import Platform
from reconciler.oci.limits import DEFAULTS

VERSION = 1
"""The newest `version` of the file that this program understands."""

_HOST_PORT = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_HOST = re.compile(_HOST_PORT)
_MIRROR = re.compile(rf"{_HOST_PORT}(?:/[a-z0-9._-]+)*")


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
    run_entrypoint: bool = False
    builder: Literal["auto", "direct", "tools"] = "auto"
    protect: bool = False
    suspend: bool = False


class Defaults(ImageKeys):
    """[defaults]: what an entry gets that does not say otherwise."""


class Image(ImageKeys):
    """An [[image]] entry."""

    ref: ReferenceText
    name: Name | None = None

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        for key in ("inject_modules", "run_entrypoint"):
            if getattr(self, key) and not self.guest:
                spelt = key.replace("_", "-")
                raise ValueError(f"guest = false puts nothing in, and {spelt} = true asks for it")
        return self


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
