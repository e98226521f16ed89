"""A registry of our own making, and `Sources` pointed at it, for tests of what misbehaves.

with scripted() as script:
    ours = Scripted(tmp_path / "ours", script)
    script.routes[ours.layer_path] = answer(b"", status=503)
    with opened(tmp_path / "cache", ours.config) as sources: ...
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import BangerError
from reconciler.model import Descriptor, ImageSpec, Platform, RegistryConfig
from reconciler.oci.blobs import BlobCache
from reconciler.oci.source import Sources
from support.images import file, make_layout, tar
from support.server import Request, Route, Script

LAYER = tar(file("etc/hostname", b"guest\n"), file("big", bytes(range(256)) * 4000))
CANARY = "c4nary-s3cret"
AMD64 = Platform("linux", "amd64")


@contextmanager
def opened(
    cache: Path, *configs: RegistryConfig, events: list[str] | None = None, **more: Any
) -> Iterator[Sources]:
    """Sources with a cache of their own; `more` are further arguments of theirs."""

    def emit(event: str, **fields: object) -> None:
        if events is not None:
            events.append(f"{event} {fields}")

    with Sources(configs, BlobCache(cache), emit, **more) as sources:
        yield sources


def spec(ref: str, *, pull: str = "missing", platform: Platform = AMD64) -> ImageSpec:
    return ImageSpec("x", ref, None, pull=pull, platform=platform)


def nothing(_: int) -> None:
    pass


def failure(work: Callable[[], object]) -> BangerError:
    with pytest.raises(BangerError) as caught:
        work()
    assert CANARY not in f"{caught.value.brief}{caught.value.resolution}"
    assert caught.value.brief.isprintable()
    return caught.value


def log_in(directory: Path, host: str, **auth: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps({"auths": {host: auth}}))
    return path


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


class Scripted:
    """A registry with one image, `x:1`, behind whatever a test puts in front of it."""

    def __init__(self, layout: Path, script: Script) -> None:
        make_layout(layout, [LAYER])
        top = json.loads((layout / "index.json").read_text())["manifests"][0]
        self.digest, self.manifest = top["digest"], self.read(layout, top["digest"])
        body = json.loads(self.manifest)
        self.layer = body["layers"][0]["digest"]
        self.blob = self.read(layout, self.layer)
        self.descriptor = Descriptor(body["layers"][0]["mediaType"], self.layer, len(self.blob))
        config = body["config"]["digest"]
        self.script, self.host = script, script.host
        self.image = spec(f"{script.host}/x:1")
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        for name in ("1", self.digest):
            script.routes[f"/v2/x/manifests/{name}"] = answer(self.manifest, kind)
        script.routes[f"/v2/x/blobs/{config}"] = answer(self.read(layout, config))
        self.digests = (self.digest, config, self.layer)
        self.layer_path = f"/v2/x/blobs/{self.layer}"
        script.routes[self.layer_path] = answer(self.blob)

    @staticmethod
    def read(layout: Path, digest: str) -> bytes:
        return (layout / "blobs/sha256" / digest.partition(":")[2]).read_bytes()

    @property
    def config(self) -> RegistryConfig:
        return RegistryConfig(self.host, plain_http=True)

    def demand(self, challenge: str, authorization: str) -> None:
        """Let only requests with this Authorization through."""
        for path, route in list(self.script.routes.items()):
            self.script.routes[path] = guarded_by(route, challenge, authorization)


def answer(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Route:
    return lambda request: request.reply(status, body, headers)


def guarded_by(route: Route, challenge: str, authorization: str) -> Route:
    def check(request: Request) -> None:
        if request.headers.get("Authorization") == authorization:
            route(request)
        else:
            request.reply(401, b"", {"WWW-Authenticate": challenge})

    return check
