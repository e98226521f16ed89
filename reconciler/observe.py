"""Gather the facts of a pass: pin every wanted image, look at what is there. Decides nothing.

The network is asked for manifests only. Of the disk, as little is read as can answer: a record
whose fingerprints still hold is believed, and only where they do not are bytes read back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from reconciler.collection import Holding, Kind, References
from reconciler.config.load import Config
from reconciler.config.lock import kernel_difference
from reconciler.errors import REPORT, BangerError, Code, HostError, ImageError, RemoteError
from reconciler.ext4 import libext2fs
from reconciler.files import allocated, host_error
from reconciler.guest.assets import assets_digest
from reconciler.kernel.store import KernelStore
from reconciler.manifest import ROOTFS, Manifest, damage, digest_like
from reconciler.model import (
    DesiredImage,
    Fingerprint,
    ImageSpec,
    KernelTriple,
    Platform,
    Record,
    Stage,
)
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources
from reconciler.parallel import in_threads
from reconciler.plan import Artifact, Held, Observed, Unresolved, Wanted
from reconciler.records import Contents
from reconciler.stages import resolve
from reconciler.store import Store, is_open
from reconciler.text import printable

_AWAY = (Code.KERNEL_NOT_FOUND, Code.TOOL_MISSING, Code.TOOL_FAILED)
"""What it means that a kernel cannot be had here; one that is wrong is another matter."""

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
        port, assets = config.guest.vsock_port, cache(assets_digest)  # read once a pass

        def pin(spec: ImageSpec) -> Wanted:
            return held.get(spec.name) or self._pin(spec, port, assets)

        # threads only help those who wait for a registry
        waiting = [spec for spec in config.images if not self.sources.is_at_hand(spec)]
        asked = iter(in_threads(pin, waiting, _RESOLVERS, "resolve"))
        away = {spec.name for spec in waiting}
        return tuple(next(asked) if spec.name in away else pin(spec) for spec in config.images)

    def _pin(
        self, spec: ImageSpec, vsock_port: int, assets: Callable[[Platform], str]
    ) -> DesiredImage | Unresolved:
        stage = Stage.RESOLVE
        try:
            pinned = resolve.run(spec, self.sources)
            stage = Stage.KERNEL
            kernel, missing = self._identify(spec)
            if spec.injects_modules and not (kernel and kernel.modules):
                raise _nothing_to_inject(spec, kernel)
            _check_lock(spec, kernel)
            stage = Stage.GUEST
            guest = assets(spec.platform) if spec.guest else None
        except BangerError as error:
            return Unresolved(spec, stage, error)
        except OSError as error:
            return Unresolved(spec, stage, host_error(f"{stage.value} failed", error))
        except Exception as error:  # one image's bug must not take the others down
            brief = f"an unexpected {type(error).__name__}: {printable(str(error))}"
            wrapped = HostError(brief, code=Code.INTERNAL, resolution=REPORT, retryable=False)
            return Unresolved(spec, stage, wrapped)
        builder = builder_for(spec.builder)
        return DesiredImage(spec, pinned, kernel, guest, vsock_port, builder, missing)

    def _identify(self, spec: ImageSpec) -> tuple[KernelTriple | None, str]:
        """What goes beside the image, and why nothing does where its kernel is optional."""
        if spec.kernel_ref is None:
            return None, ""
        try:
            return self.kernels.identify(spec.kernel_ref, spec.platform), ""
        except BangerError as error:
            away = isinstance(error, RemoteError) or error.code in _AWAY
            if not (away and self.kernels.is_optional(spec.kernel_ref)):
                raise
            return None, f"goes without its kernel: {error.brief}"

    def observed(
        self, wanted: tuple[Wanted, ...], contents: Contents, remade: Container[str] = ()
    ) -> Observed:
        """Look at the store, as far as the wanted images and the records make it interesting.

        remade: names that are built again even when they are whole.
        """
        records, recovered = dict(contents.records), frozenset[str]()
        if contents.unusable or contents.damaged:
            found = {r.name: r for r in self.recovered_records() if r.name not in records}
            records, recovered = records | found, frozenset(found)
        pinned = [image for image in wanted if isinstance(image, DesiredImage)]
        artifacts, seen = self._artifacts(records, pinned)
        links = self.store.names()
        wrong = (r for r in records.values() if links.get(r.name) != r.id)
        whole = {image_id for image_id, artifact in artifacts.items() if artifact.whole}
        building = [i for i in pinned if i.id not in whole or i.spec.name in remade]
        return Observed(
            records=records,
            artifacts=artifacts,
            staging={i.id: proven for i in building if (proven := self._proven(i))},
            trees=frozenset(i.keys.flatten for i in building if self._tree_is_whole(i)),
            blobs=frozenset(self._cached(building)),
            recovered=recovered,
            mislinked=frozenset(r.name for r in wrong if r.id in artifacts),
            refreshed=tuple(
                replace(r, fingerprints=seen[r.id])
                for r in records.values()
                if seen.get(r.id, r.fingerprints) != r.fingerprints and artifacts[r.id].whole
            ),
        )

    # -- artifacts ------------------------------------------------------------------------------

    def _artifacts(
        self, records: dict[str, Record], pinned: list[DesiredImage]
    ) -> tuple[dict[str, Artifact], dict[str, dict[str, Fingerprint]]]:
        """The artifacts by id, and what those with a record looked like just before."""
        found: dict[str, Artifact] = {}
        looks: dict[str, dict[str, Fingerprint]] = {}
        for record in records.values():
            if record.id in found:
                continue
            seen = self.store.fingerprints(self.store.artifact(record.id))
            if artifact := self._recorded(record, seen):
                found[record.id], looks[record.id] = artifact, seen
        for image_id in {image.id for image in pinned} - found.keys():
            if artifact := self.read_back(image_id):
                found[image_id] = artifact
        return found, looks

    def _recorded(self, record: Record, seen: dict[str, Fingerprint]) -> Artifact | None:
        """An artifact with a record: by its fingerprints, or read back when they have changed."""
        directory = self.store.artifact(record.id)
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
        problems = damage(directory, manifest)
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
        if manifest and manifest.id == image.id and not damage(staging, manifest):
            return frozenset((Stage.GUEST, Stage.KERNEL))
        proof = self.store.read_journal(image.id).get(Stage.GUEST)
        rootfs = staging / ROOTFS
        with suppress(OSError):  # what cannot be read is not proven
            if proof and rootfs.is_file() and digest_like(rootfs, proof) == proof:
                return frozenset((Stage.GUEST,))
        return frozenset()

    def _tree_is_whole(self, image: DesiredImage) -> bool:
        from reconciler.stages import (
            flatten,  # the readers of layers: only where one is to be built
        )

        scratch = self.store.scratch_for(image.keys.flatten)
        return self.store.owns_scratch() and scratch.is_dir() and flatten.is_whole(image, scratch)

    def _cached(self, building: list[DesiredImage]) -> Iterator[str]:
        for layer in {layer for image in building for layer in image.pinned.layers}:
            if self.blobs.has(layer.blob):
                yield layer.blob.digest

    # -- for recovery and for the collector -------------------------------------------------------

    def recovered_records(self) -> list[Record]:
        """Records read from the manifests beside the artifacts, for a database that was lost.

        Whether they were protected nobody knows any more, so they are, until an entry says not.
        """
        links = {n: i for n, i in self.store.names().items() if not n.startswith(".")}
        manifests = {
            i: self.store.manifest(self.store.artifact(i)) for i in self.store.artifact_ids()
        }
        known = {i: m for i, m in manifests.items() if m and m.id == i}
        earlier: dict[str, list[str]] = {}
        for image_id in sorted(known.keys() - set(links.values()), key=self._written, reverse=True):
            earlier.setdefault(known[image_id].ref, []).append(image_id)
        return [
            replace(
                record_of(name, known[image_id], tuple(earlier.get(known[image_id].ref, ()))),
                protect=True,
            )
            for name, image_id in links.items()
            if image_id in known
        ]

    def _written(self, image_id: str) -> int:
        seen = self.store.fingerprints(self.store.artifact(image_id))
        return max((mtime for _, mtime, _ in seen.values()), default=0)

    def holdings(self, stays: References) -> Iterator[Holding]:
        """Everything on disk that the collector decides about; links are never followed.

        What stays anyway is not looked into, so that a pass over a thousand images is cheap.
        """
        store, now = self.store, time.time()
        for name in store.names().keys() - stays.names:  # first, so that none points at nothing
            yield _holding(Kind.LINK, name, store.by_name / name, now)
        for image_id in store.artifact_ids():
            path = store.artifact(image_id)
            if image_id in stays.artifacts:
                yield Holding(Kind.ARTIFACT, image_id, path, 0.0, 0)
            else:
                yield _holding(Kind.ARTIFACT, image_id, path, now, in_use=is_open(path))
        for image_id in store.staging_ids():
            path = store.staging(image_id)
            yield _holding(Kind.STAGING, image_id, path, now, in_use=is_open(path))
        for path in store.strangers():
            yield Holding(Kind.STRANGER, path.name, path, 0.0, 0)
        for path in store.half_made():
            yield _holding(Kind.SCRATCH, path.name, path, now)
        for digest, path, size, mtime in self.blobs.listing(stays.blobs):
            yield Holding(Kind.BLOB, digest, path, _age(now, mtime / 1e9), size)
        for path, size, mtime in self.blobs.leftovers():
            yield Holding(Kind.PARTIAL, path.name, path, _age(now, mtime / 1e9), size)


def _check_lock(spec: ImageSpec, kernel: KernelTriple | None) -> None:
    """What the host has in place of a locked kernel is refused where the lock file is binding."""
    if spec.lock and spec.lock.binding and (words := kernel_difference(spec.lock, kernel)):
        advice = "Run `banger-reconcile lock CONFIG` if the new one is meant."
        raise ImageError(words, code=Code.LOCK_STALE, resolution=advice)


def builder_for(wanted: str) -> str:
    """The builder that an entry gets here: "auto" is direct wherever libext2fs can be used."""
    if wanted == "auto":
        return "direct" if libext2fs.is_available() else "tools"
    return wanted


def _nothing_to_inject(spec: ImageSpec, kernel: KernelTriple | None) -> ImageError:
    missing = f'the kernel "{kernel.name}" has no modules' if kernel else "there is no kernel-ref"
    return ImageError(
        f"inject-modules = true, but {missing}",
        code=Code.CONFIG_INVALID,
        resolution="Give `modules` in its [[kernel]] entry, or take out inject-modules.",
    )


def _holding(kind: Kind, key: str, path: Path, now: float, *, in_use: bool = False) -> Holding:
    try:
        age = _age(now, path.lstat().st_mtime)
    except OSError:
        age = 0.0
    return Holding(kind, key, path, age, allocated(path), in_use)


def _age(now: float, mtime: float) -> float:
    return max(0.0, now - mtime)  # a clock that was set back makes nothing older


def record_of(name: str, manifest: Manifest, previous: tuple[str, ...] = ()) -> Record:
    """The record that a manifest can tell by itself; times and protection are lost.

    previous: ids of artifacts of the same reference that no name stands for.
    """
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
        previous=previous,
        not_carried=manifest.not_carried,
    )
