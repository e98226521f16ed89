"""The registries of a configuration: which host is asked for an image, in what order.

Made by `oci.source` when something has to be asked for the first time: a pass that needs nothing
from the network does without the HTTP client.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from reconciler.errors import RemoteError
from reconciler.model import Emit, RegistryConfig
from reconciler.oci.auth import Ask, Keyring
from reconciler.oci.download import download
from reconciler.oci.limits import Limits
from reconciler.oci.reference import Reference
from reconciler.oci.registry import Registry
from reconciler.oci.repository import Repository
from reconciler.oci.web import Web

MIRROR_REST = 60.0
"""Seconds for which a mirror that is not available is not asked again."""

_Result = TypeVar("_Result")


class Remote:
    """Registries, mirrors and plain downloads; safe to share between threads.

    ask, limits, timeout: as of `oci.source.Sources`.
    """

    def __init__(
        self,
        registries: tuple[RegistryConfig, ...],
        emit: Emit,
        ask: Ask | None,
        limits: Limits,
        timeout: float,
    ) -> None:
        self._configured = {entry.host: entry for entry in registries}
        self._emit = emit
        self._limits = limits
        self._timeout = timeout
        self._web = Web(registries)
        self._keyring = Keyring(registries, os.environ, ask)
        self._lock = threading.Lock()
        self._registries: dict[str, Registry] = {}
        self._down: dict[str, float] = {}

    def close(self) -> None:
        """Close all connections."""
        self._web.close()

    def ask(
        self, ref: Reference, action: Callable[[Repository], _Result], *, origin_only: bool = False
    ) -> _Result:
        """The mirrors in order, then the origin, whose error is the one that is told."""
        for mirror in () if origin_only else self._mirrors(ref):
            try:
                return action(mirror)
            except RemoteError as error:
                if error.retryable:
                    self._down[mirror.registry.host] = time.monotonic() + MIRROR_REST
        return action(self._repository(ref.host, ref.repository))

    def download(
        self, url: str, sha256: str, destination: Path, progress: Callable[[int], None]
    ) -> None:
        """Fetch a file by URL, verified, atomically. Raises RemoteError, HostError."""
        note = partial(self._note, "download")
        download(self._web, url, sha256, destination, progress=progress, note=note)

    def _mirrors(self, ref: Reference) -> Iterator[Repository]:
        entry = self._configured.get(ref.host)
        for mirror in entry.mirrors if entry else ():
            host, _, prefix = mirror.strip("/").partition("/")
            if time.monotonic() < self._down.get(host, 0.0):
                continue
            yield self._repository(host, f"{prefix}/{ref.repository}" if prefix else ref.repository)

    def _repository(self, host: str, name: str) -> Repository:
        with self._lock:
            if host not in self._registries:
                configured = tuple(self._configured.values())
                self._registries[host] = Registry(host, self._web, self._keyring, configured)
            note = partial(self._note, host)
            registry = self._registries[host]
            return Repository(registry, name, note, self._limits, self._timeout)

    def _note(self, host: str, error: RemoteError, attempt: int, seconds: float) -> None:
        self._emit(
            "backoff.scheduled",
            host=host,
            attempt=attempt,
            delay_seconds=round(seconds, 1),
            error_code=error.code.value,
            message=error.brief,
        )
