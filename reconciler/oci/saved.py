"""What `docker save` and skopeo's `docker-archive:` write: images in one tar file.

`manifest.json` lists them, with a config and layers for each by their names in the archive; digests
are not there. A manifest of the usual kind is made of that, so that `oci.source` sees what it sees
everywhere: the layers' digests come from the config (`diff_ids`, since layers are stored as plain
tar), or from their names where the archive holds an OCI layout, too. All are verified on reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reconciler.errors import BangerError, Code, ImageError
from reconciler.model import Descriptor, Platform, canonical
from reconciler.oci.archive import Archive
from reconciler.oci.documents import DOCKER_MANIFEST, Entry, parse_config, parse_json
from reconciler.oci.layout import listed, small_file
from reconciler.oci.limits import Limits, exceeded
from reconciler.oci.reference import Reference, check_digest, parse_reference
from reconciler.text import printable

_LIST = "manifest.json"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class _Listed:
    """One element of manifest.json: names of members, and canonical references."""

    config: str
    layers: tuple[str, ...]
    tags: frozenset[str]


class SavedImages:
    """The images of one archive. Safe to share between threads."""

    def __init__(self, archive: Archive, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits
        self._images = self._read_list()
        self._made: dict[str, bytes] = {}
        """Manifests by digest."""
        self._places: dict[str, str] = {}
        """Names of members by digest."""

    def entries(self, ref: Reference) -> tuple[Entry, ...]:
        """What the reference can mean: one entry, or one for each platform.

        A tag is a whole reference such as `web:1`; a digest is that of an image's config, which
        docker calls the image's ID. Raises ImageError: not-found with the tags there are.
        """
        made = [self._make(image) for image in self._matching(ref)]
        found = [entry for image_id, entry in made if ref.digest in (None, image_id)]
        if not found:
            wanted = printable(ref.digest or ref.tag or "image", 100)
            raise self._no_tag(f"holds no such image: {wanted}")
        return tuple(found)

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob of one of the images, not verified. Raises ImageError."""
        digest = descriptor.digest
        if digest not in self._made and digest not in self._places:
            for image in self._images:
                with suppress(ImageError):  # it may be another image's fault
                    self._make(image)
        if digest in self._made:
            return iter([self._made[digest]])
        if digest not in self._places:
            brief = f"{self._archive.name} holds no {printable(digest, 100)}"
            raise ImageError(brief, code=Code.NOT_FOUND)
        return self._archive.chunks(self._places[digest])

    def _matching(self, ref: Reference) -> list[_Listed]:
        if ref.digest:
            return self._images
        if not ref.tag:
            if len({image.tags for image in self._images}) > 1:
                raise self._no_tag("holds several images")
            return self._images
        try:
            wanted = str(parse_reference(ref.tag))
        except BangerError:
            return []
        return [image for image in self._images if wanted in image.tags]

    def _make(self, image: _Listed) -> tuple[str, Entry]:
        """Make the manifest of one image, and note where its blobs are; its ID comes first."""
        what = f"{self._archive.name}: {printable(image.config)}"
        raw = small_file(self._archive, image.config, self._limits)
        config = parse_config(raw, what)
        if len(config.diff_ids) != len(image.layers):
            counts = f"{len(image.layers)} layers but {len(config.diff_ids)} diff_ids"
            raise ImageError(f"{what}: the image has {counts}")
        digest = _sha256(raw)
        self._places[digest] = image.config
        layers = []
        for name, diff_id in zip(image.layers, config.diff_ids, strict=True):
            found = self._layer_digest(name, diff_id)
            self._places.setdefault(found, name)
            size = self._archive.size(self._places[found])
            layers.append(_descriptor(_LAYER_TYPE, found, size))
        body = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _descriptor(_CONFIG_TYPE, digest, len(raw)),
            "layers": layers,
        }
        return digest, self._keep(canonical(body).encode(), config.platform)

    def _keep(self, manifest: bytes, platform: Platform) -> Entry:
        top = Descriptor(DOCKER_MANIFEST, _sha256(manifest), len(manifest))
        self._made[top.digest] = manifest
        return Entry(top, platform, None, attestation=False)

    def _layer_digest(self, name: str, diff_id: str) -> str:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == "blobs":
            return check_digest(f"{parts[1]}:{parts[2]}")
        if not self._archive.head(name, 4).startswith(_PACKED):
            return diff_id
        digest = hashlib.sha256()
        for chunk in self._archive.chunks(name):
            digest.update(chunk)
        return f"sha256:{digest.hexdigest()}"

    def _read_list(self) -> list[_Listed]:
        what = f"{self._archive.name}: {_LIST}"
        try:
            raw = small_file(self._archive, _LIST, self._limits)
        except ImageError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            raise ImageError(
                f"{self._archive.name} holds no {_LIST}, so nothing that `docker save` wrote",
                code=Code.NOT_FOUND,
                resolution=f"For an OCI layout, write oci-archive:{self._archive.name}.",
            ) from None
        body = parse_json(raw, what)
        if not isinstance(body, list) or not body:
            raise ImageError(f"{what} lists no images")
        return [_parse(element, what, self._limits) for element in body]

    def _no_tag(self, problem: str) -> ImageError:
        tags = {tag for image in self._images for tag in image.tags}
        return ImageError(
            f"{self._archive.name} {problem}; its tags are: {listed(tags)}",
            code=Code.NOT_FOUND,
            resolution=f"Write docker-archive:{self._archive.name}:NAME:TAG with one of them.",
        )


def _parse(element: Any, what: str, limits: Limits) -> _Listed:
    known = {"config", "layers", "repotags"}
    if not isinstance(element, dict) or any(
        key.lower() in known and key not in ("Config", "Layers", "RepoTags") for key in element
    ):
        raise ImageError(f"{what} holds something else than images")
    config = element.get("Config")
    layers, tags = _texts(element.get("Layers")), _texts(element.get("RepoTags") or [])
    if not isinstance(config, str) or layers is None or tags is None:
        raise ImageError(f"{what} does not tell config and layers of an image")
    if len(layers) > limits.layers:
        raise exceeded("layers", limits.layers, f"{what}: {len(layers)} layers")
    known_tags = set()
    for tag in tags:
        with suppress(BangerError):
            known_tags.add(str(parse_reference(tag)))
    return _Listed(config, layers, frozenset(known_tags))


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of nothing but text, or None."""
    fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value) if fine else None


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _sha256(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()
