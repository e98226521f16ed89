"""Kernels by name: the catalog of the configuration, and the local store where their bytes lie.

`observe` asks what a `kernel-ref` stands for (`identify`, which only reads), `stages.kernel` makes
it local (`fetch`) and copies it. The store:

    <state>/kernels/<name>/
      kernel, initrd.img, modules/     the triple; modules/ holds <release>/, as /lib/modules does
      kernel.json                      digests, and what the sources looked like when copied
    <state>/kernels/.<name>.lock       held while <name> is fetched
    <state>/kernels/.<name>.staging    the next <name>, until it is swapped in whole

A directory that someone put there by hand is as good as a catalog entry: its files are never
changed, only `kernel.json` is added. Losing any of it costs a copy or a download, nothing else.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from reconciler.errors import BangerError, Code, ImageError
from reconciler.files import (
    host_errors,
    remove_tree,
    rename_exchange,
    rename_new,
    sync_directory,
    write_durably,
)
from reconciler.kernel.image import KernelImage
from reconciler.kernel.parts import (
    INITRD,
    KERNEL,
    MODULES,
    PARTS,
    Note,
    Part,
    check_platform,
    copy,
    digest,
    fingerprint,
    invalid,
    label,
    recognise,
    source_errors,
    sources,
)
from reconciler.model import FileSource, KernelEntry, KernelTriple, Platform
from reconciler.text import printable

if TYPE_CHECKING:
    from reconciler.kernel.origins import Origins

Progress = Callable[[int], None]
Download = Callable[[str, str, Path, Progress], None]
"""`download(url, sha256, destination, progress)`: a verified file, or a BangerError.

sha256: 64 hex digits; progress: called with the bytes that are there so far.
"""

Load = Callable[[str, str, Path], None]
"""A `Download` whose progress somebody else looks after."""

_NOTE = "kernel.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class KernelStore:
    """The catalog and the store. Make one per pass: a name stands for the same bytes all along.

    root: `<state>/kernels`, which need not exist. entries: the catalog. Thread-safe.
    """

    def __init__(
        self, root: Path, entries: tuple[KernelEntry, ...], origins: Origins | None = None
    ) -> None:
        self.root = root
        self._catalog = {entry.name: entry for entry in entries}
        if entries and not origins:
            from reconciler.kernel.origins import Origins  # readers of packages and images with it

            origins = Origins(root)
        self._origins = origins
        self._identified: dict[str, tuple[KernelTriple, KernelImage | None]] = {}
        self._identifying = threading.Lock()

    def identify(self, ref: str, platform: Platform | None = None) -> KernelTriple:
        """What `ref` stands for now; reads, and writes nothing. Hashes only what is not known yet.

        A URL stands for its pin; a source that is gone, for the copy that the store made of it.
        With `platform`, the kernel must be of that architecture, as far as that is known already.

        Raises ImageError (kernel-not-found, kernel-invalid), HostError.
        """
        with self._identifying:
            if ref not in self._identified:
                self._identified[ref] = self._identify(ref)
            triple, image = self._identified[ref]
        if platform is not None and image is not None:
            check_platform(image, platform, ref)
        return triple

    def is_optional(self, ref: str) -> bool:
        """Whether images are built without this kernel where it cannot be had."""
        return ref in self._catalog and self._catalog[ref].optional

    def fetch(self, ref: str, download: Download, progress: Progress) -> Path:
        """Make `ref` local, whole or not at all; gives the directory of its files.

        progress: called while a file is downloaded; what it raises ends the fetch.
        Raises ImageError (kernel-not-found, kernel-invalid), HostError (retryable when a source
        changed while it was copied), and what `download` raises.
        """
        entry = self._entry(ref)
        with self._locked(ref):
            note = self._note(ref)
            if note is None or not self._is_current(entry, note):
                if ref in self._catalog:
                    self._renew(entry, note, lambda u, s, to: download(u, s, to, progress))
                else:
                    self._adopt(entry)
        return self.root / ref

    def forget(self, ref: str) -> None:
        """Trust nothing that is noted about the local files: the next fetch makes them anew."""
        with host_errors(f"the note on kernel {ref} cannot be removed"):
            (self.root / ref / _NOTE).unlink(missing_ok=True)

    # -- what there is ----------------------------------------------------------------------------

    def _entry(self, ref: str) -> KernelEntry:
        """The catalog's entry, or one made of the directory in the store."""
        if self._origins and ref in self._catalog:
            return self._origins.plain(self._catalog[ref])
        if ref not in self._local_names():
            raise self._not_found(ref)
        paths = {part: self.root / ref / part for part in PARTS}
        there = {part: FileSource(p, None, None) for part, p in paths.items() if p.exists()}
        note = self._note(ref)
        cmdline = note.cmdline if note else ""
        return KernelEntry(ref, there[KERNEL], there.get(INITRD), there.get(MODULES), cmdline)

    def _local_names(self) -> list[str]:
        with host_errors("the kernel store cannot be read"):
            found = self.root.iterdir() if self.root.is_dir() else ()
            return sorted(
                path.name
                for path in found
                if _NAME.fullmatch(path.name) and (path / KERNEL).is_file()
            )

    def _not_found(self, ref: str) -> ImageError:
        local = self._local_names()
        sets = (("the configuration has", list(self._catalog)), (f"{self.root} has", local))
        there = "; ".join(f"{where} {', '.join(names)}" for where, names in sets if names)
        near = difflib.get_close_matches(ref, [*self._catalog, *local], n=1)
        advice = f"Add a [[kernel]] entry, or put the kernel at {self.root / ref / KERNEL}."
        return ImageError(
            f'there is no kernel "{printable(ref, 80)}": {there or "no kernel is known here"}',
            code=Code.KERNEL_NOT_FOUND,
            resolution=f'Did you mean kernel-ref = "{near[0]}"?' if near else advice,
        )

    def _note(self, ref: str) -> Note | None:
        try:
            return Note.model_validate_json((self.root / ref / _NOTE).read_bytes())
        except (OSError, ValidationError):
            return None

    # -- identity ---------------------------------------------------------------------------------

    def _identify(self, ref: str) -> tuple[KernelTriple, KernelImage | None]:
        entry, note = self._entry(ref), self._note(ref)
        known = {part: self._digest(ref, part, s, note) for part, s in sources(entry).items()}
        triple = KernelTriple(
            ref,
            known[KERNEL],
            known.get(INITRD),
            known.get(MODULES),
            entry.cmdline,
            entry.origin,
        )
        if note and {part: noted.digest for part, noted in note.parts.items()} == known:
            return triple, note.image
        paths = {part: s.path for part, s in sources(entry).items() if s.path and s.path.exists()}
        return triple, recognise(ref, paths) if KERNEL in paths else None

    def _digest(self, ref: str, part: str, source: FileSource, note: Note | None) -> str:
        path = source.path
        if path is None:
            return f"sha256:{source.sha256}"
        noted = note.parts.get(part) if note else None
        with source_errors(ref, path):
            seen = fingerprint(part, path) if noted and path.exists() else ""
            if noted and seen in (noted.source_fingerprint, noted.fingerprint):
                found = noted.digest
            elif kept := self._kept(ref, part, source, note):
                return kept.digest
            else:
                found = digest(part, path)
        _check_pin(ref, source, found)
        return found

    def _kept(self, ref: str, part: str, source: FileSource, note: Note | None) -> Part | None:
        """The local copy, where it stands in for its source: pinned, or the source is gone."""
        noted = self._intact(ref, part, note)
        if noted is None or noted.digest == f"sha256:{source.sha256}":
            return noted
        is_gone = source.path is not None and not source.path.exists()
        return noted if is_gone and noted.source == str(source.path) else None

    def _intact(self, ref: str, part: str, note: Note | None) -> Part | None:
        """The note on a part whose local copy is there, untouched since it was made."""
        noted = note.parts.get(part) if note else None
        try:
            whole = noted and fingerprint(part, self.root / ref / part) == noted.fingerprint
        except (OSError, BangerError):
            return None
        return noted if whole else None

    # -- making it local --------------------------------------------------------------------------

    def _is_current(self, entry: KernelEntry, note: Note) -> bool:
        wanted = sources(entry)
        if note.cmdline != entry.cmdline or set(note.parts) != set(wanted):
            return False
        for part, source in wanted.items():
            noted = self._intact(entry.name, part, note)
            if noted is None or noted.digest != self._digest(entry.name, part, source, note):
                return False
        return True

    def _renew(self, entry: KernelEntry, note: Note | None, load: Load) -> None:
        """Build the directory beside its place, then swap it in: readers see one or the other."""
        staging, final = self.root / f".{entry.name}.staging", self.root / entry.name
        with host_errors(f"kernel {entry.name} cannot be stored"):
            remove_tree(staging)
            staging.mkdir()
        try:
            parts = {}
            for part, source in sources(entry).items():
                kept, target = self._kept(entry.name, part, source, note), staging / part
                reused = _reuse(entry.name, part, kept, final / part, target) if kept else None
                parts[part] = reused or _bring(entry.name, part, source, target, load)
            _write_note(staging, entry, parts)
            with host_errors(f"kernel {entry.name} cannot be stored"):
                _swap_in(staging, final)
        finally:
            with host_errors(f"{staging} cannot be removed"):
                remove_tree(staging)

    def _adopt(self, entry: KernelEntry) -> None:
        """Note what lies in a directory that is nobody's copy; without the note, it is hashed."""
        parts = {}
        for part, source in sources(entry).items():
            path = self.root / entry.name / part
            with source_errors(entry.name, path):
                seen = fingerprint(part, path)
                found = self._digest(entry.name, part, source, None)
            parts[part] = Part(
                digest=found, source=str(path), source_fingerprint=seen, fingerprint=seen
            )
        if os.access(self.root / entry.name, os.W_OK):
            _write_note(self.root / entry.name, entry, parts)

    @contextmanager
    def _locked(self, ref: str) -> Iterator[None]:
        """One fetch of a name at a time, among threads and processes; the kernel lets go of it."""
        with host_errors(f"kernel {ref} cannot be locked"):
            self.root.mkdir(parents=True, exist_ok=True)
            path = self.root / f".{ref}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _check_pin(ref: str, source: FileSource, found: str) -> None:
    if source.sha256 and source.path and found != f"sha256:{source.sha256}":
        raise invalid(
            f"{label(ref, source.path)} has {found}, but its entry pins {source.sha256}",
            "Restore the file, or correct `sha256` in the [[kernel]] entry.",
        )


def _bring(ref: str, part: str, source: FileSource, target: Path, load: Load) -> Part:
    """Copy or download one part to `target`, from its own source."""
    if source.path is None:
        load(str(source.url), str(source.sha256), target)
        return _part(part, target, f"sha256:{source.sha256}", str(source.url), "")
    with source_errors(ref, source.path):
        found, seen = copy(part, source.path, target)
    _check_pin(ref, source, found)
    return _part(part, target, found, str(source.path), seen)


def _reuse(ref: str, part: str, kept: Part, old: Path, target: Path) -> Part | None:
    """Copy one part from the directory that is to be replaced; None when its bytes went bad."""
    with source_errors(ref, old):
        found, _ = copy(part, old, target)
        if found != kept.digest:
            remove_tree(target)
            return None
    return _part(part, target, found, kept.source, kept.source_fingerprint)


def _part(part: str, target: Path, found: str, source: str, seen: str) -> Part:
    with host_errors("the kernel store cannot be read"):
        here = fingerprint(part, target)
    return Part(digest=found, source=source, source_fingerprint=seen, fingerprint=here)


def _write_note(directory: Path, entry: KernelEntry, parts: dict[str, Part]) -> None:
    """Check the local files by their bytes, and note them."""
    image = recognise(entry.name, {part: directory / part for part in parts})
    note = Note(
        cmdline=entry.cmdline,
        kind=image.kind,
        architecture=image.architecture,
        release=image.release,
        parts=parts,
    )
    text = json.dumps(note.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    with host_errors(f"kernel {entry.name} cannot be stored"):
        write_durably(directory / _NOTE, text.encode())


def _swap_in(staging: Path, final: Path) -> None:
    sync_directory(staging)
    try:
        rename_new(staging, final)
    except FileExistsError:
        rename_exchange(staging, final)
    sync_directory(final.parent)
