"""What must hold after any fault, a restart and one more pass."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from reconciler.manifest import Manifest, damage
from reconciler.records import Records
from reconciler.store import Store


def artifact_problems(store: Store) -> list[str]:
    """A published directory exists only whole; this holds at any moment, also just after a kill."""
    found = []
    for image_id in store.artifact_ids():
        directory = store.artifact(image_id)
        manifest = store.manifest(directory)
        found += _artifact(directory, manifest) if manifest else [f"{directory}: no manifest"]
    return found


def _artifact(directory: Path, manifest: Manifest) -> list[str]:
    listed = {*manifest.files, "manifest.json"} | ({"modules"} if manifest.modules else set())
    there = {path.name for path in directory.iterdir()}
    found = [f"{directory}/{name}: {what}" for name, what in damage(directory, manifest).items()]
    return found + [f"{directory}/{name}: not in the manifest" for name in there ^ listed]


def blob_problems(store: Store) -> list[str]:
    blobs = store.oci / "blobs" / "sha256"
    return [
        f"{path}: other bytes than its name says"
        for path in (blobs.iterdir() if blobs.is_dir() else ())
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    ]


def problems(state: Path, cache: Path, scratch: Path) -> list[str]:
    """Everything that is wrong after a pass with all ages of `[gc]` at zero. Empty: all is well."""
    store = Store(state, cache, scratch)
    contents = Records(store.database).read()
    found = artifact_problems(store) + blob_problems(store) + list(contents.damaged)
    links = store.names()
    for name, record in contents.records.items():
        if links.get(name) != record.id or record.id not in store.artifact_ids():
            found.append(f"{name}: its record and its link or artifact disagree")
    found += [f"{name}: a link without a record" for name in links.keys() - contents.records.keys()]
    strays = [*store.images.glob("*.staging"), *store.oci.glob("ingest/*"), *store.strangers()]
    strays += [*store.by_name.glob(".*"), *store.kernels.glob(".*.staging")]
    strays += [p for p in scratch.iterdir() if p.name != f"banger-{os.getuid()}"]
    strays += store.scratch.iterdir() if store.scratch.is_dir() else ()
    return found + [f"{path}: left behind" for path in strays]
