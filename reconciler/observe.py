"""Gather the facts of a pass: pin every wanted image, look at what is there. Decides nothing.

The network is asked for manifests only. Of the disk, as little is read as can answer: a record
whose fingerprints still hold is believed, and only where they do not are bytes read back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconciler.collection import Holding, Kind
from reconciler.config.load import Config
from reconciler.errors import BangerError
from reconciler.files import allocated, is_open_elsewhere
from reconciler.guest.assets import assets_digest
from reconciler.kernel.store import KernelStore
from reconciler.model import DesiredImage, ImageSpec, KernelTriple, Record, Stage
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources
from reconciler.parallel import in_threads
from reconciler.plan import Artifact, Held, Observed, Unresolved, Wanted
from reconciler.records import Contents
from reconciler.stages import flatten, resolve
from reconciler.store import ROOTFS, Manifest, Store, digest_like

_RESOLVERS = 8
"""Images that are resolved at a time: this waits for registries, not for processors."""


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Where to look. All of it reads only."""

    store: Store
    blobs: BlobCache
    sources: Sources
    kernels: KernelStore

    def wanted(self, config: Config, held: Mapping[str, Held]) -> tuple[Wanted, ...]:
        """Pin every wanted image, several at a time; one that cannot be pinned says why.

        held: by name, the images that are left alone; nobody is asked about them.
        """
        port = config.guest.vsock_port

        def pin(spec: ImageSpec) -> Wanted:
            return held.get(spec.name) or self._pin(spec, port)

        return tuple(in_threads(pin, config.images, _RESOLVERS, "resolve"))

    def _pin(self, spec: ImageSpec, vsock_port: int) -> DesiredImage | Unresolved:
        stage = Stage.RESOLVE
        try:
            pinned = resolve.run(spec, self.sources)
            stage = Stage.KERNEL
            kernel = self._identify(spec)
            stage = Stage.GUEST
            guest = assets_digest(spec.platform) if spec.guest else None
        except BangerError as error:
            return Unresolved(spec, stage, error)
        return DesiredImage(spec, pinned, kernel, guest, vsock_port)

    def _identify(self, spec: ImageSpec) -> KernelTriple | None:
        if spec.kernel_ref is None:
            return None
        return self.kernels.identify(spec.kernel_ref, spec.platform)

    def observed(self, wanted: tuple[Wanted, ...], contents: Contents) -> Observed:
        """Look at the store, as far as the wanted images and the records make it interesting."""
        records, recovered = dict(contents.records), frozenset[str]()
        if contents.unusable or contents.damaged:
            found = {r.name: r for r in self.recovered_records() if r.name not in records}
            records, recovered = records | found, frozenset(found)
        pinned = [image for image in wanted if isinstance(image, DesiredImage)]
        artifacts = self._artifacts(records, pinned)
        building = [i for i in pinned if not (i.id in artifacts and artifacts[i.id].whole)]
        return Observed(
            records=records,
            artifacts=artifacts,
            staging={i.id: proven for i in building if (proven := self._proven(i))},
            trees=frozenset(i.keys.flatten for i in building if self._tree_is_whole(i)),
            blobs=frozenset(self._cached(building)),
            recovered=recovered,
        )

    # -- artifacts ------------------------------------------------------------------------------

    def _artifacts(
        self, records: dict[str, Record], pinned: list[DesiredImage]
    ) -> dict[str, Artifact]:
        found: dict[str, Artifact] = {}
        for record in records.values():
            if record.id not in found and (artifact := self._recorded(record)):
                found[record.id] = artifact
        for image in pinned:
            if image.id not in found and (artifact := self.read_back(image.id)):
                found[image.id] = artifact
        return found

    def _recorded(self, record: Record) -> Artifact | None:
        """An artifact with a record: by its fingerprints, or read back when they have changed."""
        directory = self.store.artifact(record.id)
        seen = self.store.fingerprints(directory)
        if seen and seen == record.fingerprints:
            return Artifact(record.id, record.keys.rootfs, record.keys.kernel)
        artifact = self.read_back(record.id)
        if artifact is None and directory.exists():
            return self._damaged(record.id, "", "", "its manifest is missing or damaged")
        return artifact

    def read_back(self, image_id: str) -> Artifact | None:
        """Compare an artifact with its manifest, byte for byte. None when there is none to read."""
        directory = self.store.artifact(image_id)
        manifest = self.store.manifest(directory)
        if manifest is None or manifest.id != image_id:
            return None
        problems = self.store.damaged_files(directory, manifest)
        rootfs_key, kernel_key = manifest.keys.rootfs, manifest.keys.kernel
        if not problems:
            return Artifact(image_id, rootfs_key, kernel_key)
        problem = "; ".join(f"{name} {what}" for name, what in sorted(problems.items()))
        whole_rootfs = ROOTFS not in problems
        return self._damaged(image_id, rootfs_key, kernel_key, problem, rootfs_whole=whole_rootfs)

    def _damaged(
        self,
        image_id: str,
        rootfs_key: str,
        kernel_key: str,
        problem: str,
        *,
        rootfs_whole: bool = False,
    ) -> Artifact:
        in_use = self.store.in_use(image_id)
        return Artifact(image_id, rootfs_key, kernel_key, rootfs_whole, False, in_use, problem)

    # -- what an interrupted build left -----------------------------------------------------------

    def _proven(self, image: DesiredImage) -> frozenset[Stage]:
        staging = self.store.staging(image.id)
        manifest = self.store.manifest(staging)
        if manifest and manifest.id == image.id and not self.store.damaged_files(staging, manifest):
            return frozenset((Stage.GUEST, Stage.KERNEL))
        proof = self.store.read_journal(image.id).get(Stage.GUEST)
        rootfs = staging / ROOTFS
        if proof and rootfs.is_file() and digest_like(rootfs, proof) == proof:
            return frozenset((Stage.GUEST,))
        return frozenset()

    def _tree_is_whole(self, image: DesiredImage) -> bool:
        scratch = self.store.scratch_for(image.keys.flatten)
        return scratch.is_dir() and flatten.is_whole(image, scratch)

    def _cached(self, building: list[DesiredImage]) -> Iterator[str]:
        for layer in {layer for image in building for layer in image.pinned.layers}:
            if self.blobs.has(layer.blob):
                yield layer.blob.digest

    # -- for recovery and for the collector -------------------------------------------------------

    def recovered_records(self) -> list[Record]:
        """Records read from the manifests beside the artifacts, for a database that was lost."""
        found = []
        for name, image_id in self.store.names().items():
            manifest = self.store.manifest(self.store.artifact(image_id))
            if manifest and manifest.id == image_id:
                found.append(record_of(name, manifest))
        return found

    def holdings(self) -> Iterator[Holding]:
        """Everything on disk that the collector decides about; links are never followed."""
        store, now = self.store, time.time()
        for image_id in store.artifact_ids():
            path = store.artifact(image_id)
            yield _holding(Kind.ARTIFACT, image_id, path, now, in_use=store.in_use(image_id))
        for image_id in store.staging_ids():
            path = store.staging(image_id)
            in_use = is_open_elsewhere(path / ROOTFS)
            yield _holding(Kind.STAGING, image_id, path, now, in_use=in_use)
        for path in sorted(store.scratch.iterdir()) if store.scratch.is_dir() else ():
            yield _holding(Kind.SCRATCH, path.name, path, now)
        for name in store.names():
            yield _holding(Kind.LINK, name, store.by_name / name, now)
        for digest, path, size, mtime in self.blobs.listing():
            yield Holding(Kind.BLOB, digest, path, _age(now, mtime / 1e9), size)
        for path, size, mtime in self.blobs.leftovers():
            yield Holding(Kind.PARTIAL, path.name, path, _age(now, mtime / 1e9), size)


def _holding(kind: Kind, key: str, path: Path, now: float, *, in_use: bool = False) -> Holding:
    try:
        age = _age(now, path.lstat().st_mtime)
    except OSError:
        age = 0.0
    return Holding(kind, key, path, age, allocated(path), in_use)


def _age(now: float, mtime: float) -> float:
    return max(0.0, now - mtime)  # a clock that was set back makes nothing older


def record_of(name: str, manifest: Manifest) -> Record:
    """The record that a manifest can tell by itself; times and protection are lost."""
    never = "1970-01-01T00:00:00Z"
    return Record(
        name=name,
        id=manifest.id,
        ref=manifest.ref,
        digest=manifest.digest,
        platform=manifest.platform,
        size=manifest.size,
        keys=manifest.keys,
        created_at=never,
        updated_at=never,
        kernel=manifest.kernel,
        blobs=manifest.blobs,
        not_carried=manifest.not_carried,
    )
