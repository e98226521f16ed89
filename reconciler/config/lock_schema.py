"""What may stand in a `banger.lock`, and its reader: checked values, or all problems by line.

`config.lock` imports it where there is such a file: models take their time to be made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from reconciler.config.file import LOCK_VERSION, MEND_LOCK, decode, invalid
from reconciler.config.load import is_relative, toml_document
from reconciler.config.problems import Problem, report, schema_problems
from reconciler.config.values import Name, PlatformText, Table
from reconciler.errors import BangerError, ConfigError
from reconciler.model import KernelTriple, Locked
from reconciler.oci.reference import check_digest
from reconciler.text import printable


def _digest(value: str) -> str:
    try:
        return check_digest(value)
    except BangerError as error:
        raise ValueError(error.brief) from error


_Digest = Annotated[str, AfterValidator(_digest)]


class _Entry(Table):
    """An [[image]] of the lock file."""

    name: Name
    ref: str
    digest: _Digest
    platform: PlatformText
    kernel_ref: Name | None = None
    kernel_digest: _Digest | None = None
    initrd_digest: _Digest | None = None
    modules_digest: _Digest | None = None


class _Document(Table):
    """The whole lock file. `version` is required: a torn file is not taken for an empty one."""

    version: int = Field(ge=1)
    image: list[_Entry] = Field(default=[])


def parse_lock(data: bytes, base: Path, path: Path) -> tuple[Locked, ...]:
    """The entries of a lock file; base: what its paths are relative to. Raises ConfigError."""
    name = printable(str(path), 400)
    text = decode(data, name)
    try:
        document = toml_document(text, name)
        _check_version(document, name)
        tables = _Document.model_validate(document)
    except ValidationError as error:
        problems = schema_problems(error, _Document)
        raise invalid(name, report(problems, name, text, document), MEND_LOCK) from None
    except ConfigError as error:
        raise invalid(name, error.problems, error.resolution or MEND_LOCK) from None
    names = [entry.name for entry in tables.image]
    twice = [i for i, entry in enumerate(names) if entry in names[:i]]
    if twice:
        found = [Problem(("image", i, "name"), "stands there twice") for i in twice]
        raise invalid(name, report(found, name, text, document), MEND_LOCK)
    return tuple(_locked(entry, base) for entry in tables.image)


def _check_version(document: dict[str, Any], name: str) -> None:
    version = document.get("version")
    if isinstance(version, int) and version > LOCK_VERSION:
        found = f"{name}: version {version} is newer than this program, which knows {LOCK_VERSION}"
        raise invalid(name, (found,), "Install a newer banger-reconcile.")


def _locked(entry: _Entry, base: Path) -> Locked:
    kernel = None
    if entry.kernel_ref and entry.kernel_digest:
        kernel = KernelTriple(
            entry.kernel_ref, entry.kernel_digest, entry.initrd_digest, entry.modules_digest
        )
    ref = entry.ref
    if is_relative(ref):
        scheme, _, rest = ref.partition(":")
        ref = f"{scheme}:{base / rest}"
    return Locked(entry.name, ref, entry.digest, str(entry.platform), entry.kernel_ref, kernel)
