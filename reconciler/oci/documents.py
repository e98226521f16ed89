"""OCI and docker documents (index, manifest, image config): bytes in, checked values out.

Pure apart from parsing: nothing is fetched here. The bytes come from registries and layouts and are
hostile until proven harmless: whatever is ambiguous or unusual in a way that two readers could
understand differently is an ImageError. The formats are those of the OCI image specification 1.1
("Image Manifest", "Image Index", "Image Configuration") and docker's image manifest version 2,
schema 2.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from reconciler.errors import ImageError
from reconciler.model import Descriptor, Layer, PinnedImage, Platform, canonical
from reconciler.oci.limits import DEFAULTS, Limits, exceeded
from reconciler.oci.reference import check_digest
from reconciler.text import printable

MAX_DEPTH = 64
MAX_INTEGER_DIGITS = 19

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))

CONFIG_TYPES = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_LAYER_TYPES = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_SAYS_NOTHING = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_REF_NAME = "org.opencontainers.image.ref.name"
_ATTESTATION = "vnd.docker.reference.type"
_VARIANTS = {"amd64": ("", "v1"), "arm64": ("", "v8"), "arm": ("v7", "", "v6", "v5")}
"""What `os/architecture` without a variant stands for, best first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One child of an index: `platform` None where the index does not say, `name` its tag."""

    descriptor: Descriptor
    platform: Platform | None
    name: str | None
    attestation: bool


@dataclass(frozen=True, slots=True)
class Index:
    """An image index or docker manifest list."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: layers oldest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image config: `runtime` is its `config` object as canonical JSON."""

    platform: Platform
    diff_ids: tuple[str, ...]
    runtime: str


class _Document(BaseModel):
    """Unknown keys are ignored, as the specification demands; near-misses of known ones are not:
    other readers (Go's) take `Layers` for `layers`, and would see another image than we do."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _no_case_variants(cls, value: Any) -> Any:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        lowered = {name.lower() for name in known}
        for name in value if isinstance(value, dict) else ():
            if name not in known and name.lower() in lowered:
                raise ValueError(
                    f"key {printable(name, 40)!r} differs from a known one in case only"
                )
        return value


_Size = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Annotations = dict[StrictStr, StrictStr]


class _Platform(_Document):
    os: StrictStr = ""
    architecture: StrictStr = ""
    variant: StrictStr = ""


class _Descriptor(_Document):
    media_type: StrictStr = Field("", alias="mediaType")
    digest: StrictStr
    size: _Size
    urls: tuple[StrictStr, ...] | None = None
    platform: _Platform | None = None
    annotations: _Annotations | None = None


class _Manifest(_Document):
    schema_version: Annotated[int, Field(strict=True, alias="schemaVersion")]
    media_type: StrictStr | None = Field(None, alias="mediaType")
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] | None = None
    manifests: tuple[_Descriptor, ...] | None = None


class _RootFs(_Document):
    type: StrictStr = "layers"
    diff_ids: tuple[StrictStr, ...]


class _Config(_Document):
    os: StrictStr
    architecture: StrictStr
    variant: StrictStr = ""
    rootfs: _RootFs
    config: dict[str, Any] | None = None


_Model = TypeVar("_Model", bound=_Document)


def parse_json(raw: bytes, what: str) -> Any:
    """JSON without surprises: UTF-8, no duplicate keys, no huge or non-finite numbers, not deep.

    Raises ImageError that begins with `what`.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_int=_bounded_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ImageError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ImageError(f"{what} is no valid JSON: {printable(str(error))}") from error
    _check_depth(value, what)
    return value


def parse_document(
    raw: bytes, media_type: str, what: str, limits: Limits = DEFAULTS
) -> Index | Manifest:
    """An index or a manifest, told by its fields; `media_type` is what its carrier called it.

    Raises ImageError when carrier, `mediaType` and fields disagree, and for other artifacts.
    """
    body = _validate(_Manifest, raw, what)
    if body.schema_version != 2:
        version = body.schema_version
        raise ImageError(f"{what} has schema version {version}, only 2 is supported")
    carrier = media_type.partition(";")[0].strip().lower()
    claims = {body.media_type or "", carrier} - _SAYS_NOTHING
    if len(claims) > 1:
        listed = " and ".join(sorted(printable(claim, 80) for claim in claims))
        raise ImageError(f"{what} has media types that disagree: {listed}")
    is_index = body.manifests is not None
    if is_index and (body.layers is not None or body.config is not None):
        raise ImageError(f"{what} has layers beside manifests")
    if not claims <= (INDEX_TYPES if is_index else MANIFEST_TYPES):
        kind = "an index" if is_index else "a manifest"
        raise ImageError(f"{what} is {kind} called {printable(claims.pop(), 80)!r}")
    return _index(body) if is_index else _manifest(body, what, limits)


def parse_config(raw: bytes, what: str) -> ImageConfig:
    """An image config. Raises ImageError."""
    body = _validate(_Config, raw, what)
    if body.rootfs.type != "layers":
        raise ImageError(f"{what} has a root filesystem that is not made of layers")
    return ImageConfig(
        Platform(body.os, body.architecture, body.variant),
        tuple(check_digest(diff_id) for diff_id in body.rootfs.diff_ids),
        canonical(body.config or {}),
    )


def choose(entries: tuple[Entry, ...], wanted: Platform, what: str) -> Entry:
    """The child for a platform: the first of the best variant; else the only one that tells none.

    Attestations are never chosen. Raises ImageError that lists the platforms there are.
    """
    images = [entry for entry in entries if not entry.attestation]
    for variant in _acceptable(wanted):
        for entry in images:
            if entry.platform == Platform(wanted.os, wanted.architecture, variant):
                return entry
    silent = [entry for entry in images if entry.platform is None]
    if len(silent) == 1:
        return silent[0]
    there = sorted({printable(str(entry.platform), 60) for entry in images if entry.platform})
    raise _no_platform(what, wanted, ", ".join(there) or "none")


def pin(manifest: Descriptor, body: Manifest, config: ImageConfig, wanted: Platform) -> PinnedImage:
    """One image out of its documents. Raises ImageError when they contradict each other."""
    what = f"image {manifest.digest}"
    have = config.platform
    same = (have.os, have.architecture) == (wanted.os, wanted.architecture)
    if not same or (wanted.variant and have.variant not in ("", *_acceptable(wanted))):
        raise _no_platform(what, wanted, printable(str(have), 60))
    if len(config.diff_ids) != len(body.layers):
        counts = f"{len(body.layers)} layers but {len(config.diff_ids)} diff_ids"
        raise ImageError(f"{what} has {counts}")
    layers = tuple(map(Layer, body.layers, config.diff_ids))
    return PinnedImage(manifest.digest, body.config, layers, wanted, config.runtime)


def _index(body: _Manifest) -> Index:
    return Index(tuple(_entry(child) for child in body.manifests or ()))


def _entry(child: _Descriptor) -> Entry:
    notes = child.annotations or {}
    where = child.platform
    platform = Platform(where.os, where.architecture, where.variant) if where else None
    attestation = _ATTESTATION in notes or (platform is not None and platform.os == "unknown")
    return Entry(_descriptor(child), platform, notes.get(_REF_NAME), attestation)


def _manifest(body: _Manifest, what: str, limits: Limits) -> Manifest:
    if body.config is None or body.layers is None:
        raise ImageError(f"{what} has no config or no layers")
    if body.config.media_type not in CONFIG_TYPES:
        kind = printable(body.config.media_type, 80)
        raise ImageError(f"{what} is no container image: its config is {kind!r}")
    if len(body.layers) > limits.layers:
        raise exceeded("layers", limits.layers, f"{what}: {len(body.layers)} layers")
    for layer in body.layers:
        _check_layer(layer, what)
    layers = tuple(_descriptor(layer) for layer in body.layers)
    if len({layer.digest for layer in layers}) != len({(x.digest, x.size) for x in layers}):
        raise ImageError(f"{what} gives one layer two sizes")
    return Manifest(_descriptor(body.config), layers)


def _check_layer(layer: _Descriptor, what: str) -> None:
    name = printable(layer.digest, 80)
    if layer.urls or "foreign" in layer.media_type or "nondistributable" in layer.media_type:
        raise ImageError(f"{what}: layer {name} is a foreign layer; its URLs are never fetched")
    if layer.media_type not in _LAYER_TYPES:
        kind = printable(layer.media_type, 80)
        raise ImageError(f"{what}: layer {name} has the unknown type {kind!r}")


def _descriptor(body: _Descriptor) -> Descriptor:
    return Descriptor(body.media_type, check_digest(body.digest), body.size)


def _acceptable(wanted: Platform) -> tuple[str, ...]:
    """The variants that satisfy `wanted`, best first."""
    usual = _VARIANTS.get(wanted.architecture, ("",))
    if not wanted.variant or (wanted.variant in usual[:2] and usual[0] == ""):
        return usual
    return (wanted.variant,)


def _no_platform(what: str, wanted: Platform, there: str) -> ImageError:
    return ImageError(
        f"{what} has nothing for {wanted}; there is: {there}",
        resolution="Set `platform` in the [[image]] entry to one of those, or another reference.",
    )


def _validate(model: type[_Model], raw: bytes, what: str) -> _Model:
    try:
        return model.model_validate(parse_json(raw, what))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        detail = printable(f"{place}: {first['msg']}")
        raise ImageError(f"{what} is invalid: {detail}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _bounded_integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError("an integer has too many digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    return value


def _check_depth(value: Any, what: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ImageError(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in nested if isinstance(child, dict | list)]
