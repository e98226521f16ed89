"""The shape of `[[kernel]]`: where a kernel, its initrd and its modules come from.

Part of `schema`, in a file of its own because it has the most ways to say one thing.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from reconciler.config.problems import toml_value
from reconciler.config.values import (
    FilePath,
    Name,
    PlatformText,
    ReferenceText,
    Table,
    check_sha256,
)
from reconciler.text import printable

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~-]+)?")
"""As apt-get takes it: a name, an architecture, a version (deb-control(5))."""
_LONGEST_COMMAND_LINE = 2047  # COMMAND_LINE_SIZE of x86 is 2048, with its NUL


class Source(Table):
    """Where a kernel file comes from."""

    path: FilePath | None = None
    url: str | None = None
    image: ReferenceText | None = None
    file: FilePath | None = None
    sha256: Annotated[str, AfterValidator(check_sha256)] | None = None

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^\s/]+/\S*", value):
            raise ValueError(f"{toml_value(value)} is no https:// URL of a file")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.path, self.url, self.image)) != 1:
            raise ValueError("needs one of `path`, `url` and `image`")
        if (self.image is None) != (self.file is None):
            raise ValueError("`image` and `file`, a path inside it, need each other")
        if self.url is not None and self.sha256 is None:
            raise ValueError("a `url` needs the `sha256` of the file")
        return self


class ModulesSource(Source):
    """Where a modules directory comes from."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("modules are a directory, which no URL can be: give `path` or `image`")
        return value


class Kernel(Table):
    """A [[kernel]] entry of the catalog."""

    name: Name
    kernel: Source | None = None
    apt: str | None = None
    host: bool = False
    image: ReferenceText | None = None
    platform: PlatformText | None = None
    optional: bool = False
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
        given = (self.kernel is not None, self.apt is not None, self.host, self.image is not None)
        if sum(given) != 1:
            raise ValueError("needs one of `kernel`, `apt`, `host` and `image`")
        if self.kernel is None and self.modules is not None:
            raise ValueError("`apt`, `host` and `image` bring their own `modules`")
        if self.kernel is not None and self.initrd == "generated" and self.modules is None:
            raise ValueError('initrd = "generated" needs `modules`')
        return self
