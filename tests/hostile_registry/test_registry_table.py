"""Rows 55 to 61 of the registry table: one case a misbehaviour, each with what must come of it.

Every case runs a whole pull (manifest, config, layer) with a login against a scripted registry on
loopback, with a second server beside it that must never see the login.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.registries import (
    CANARY,
    Scripted,
    answer,
    encoded,
    failure,
    log_in,
    nothing,
    opened,
)
from support.server import Request, Route, Script, scripted

from reconciler.errors import Code
from reconciler.model import RegistryConfig
from reconciler.oci import retry, web

MANIFEST, TOKEN = "/v2/x/manifests/1", "/token"
BASIC = f"Basic {encoded('ann', CANARY)}"
SHORT = 1.5
"""Seconds that stand in for a minute; what answers at all answers sooner."""


@dataclass
class Lab:
    """The registry of a case, and the bystander."""

    ours: Scripted
    other: Script

    @property
    def routes(self) -> dict[str, Route]:
        return self.ours.script.routes

    def count(self, path: str) -> int:
        return len(self.ours.script.asked(path))

    def token(self, route: Route, challenge: str = "") -> None:
        """The registry wants a bearer token, and this is its token server."""
        realm = f'Bearer realm="http://{self.ours.host}{TOKEN}",service="s"'
        self.ours.demand(challenge or realm, "Bearer t0k")
        self.routes[TOKEN] = route

    def challenge(self, text: str) -> None:
        """Every answer is a 401 with this challenge."""
        text = text.format(ours=self.ours.host, other=self.other.host)
        for path in list(self.routes):
            self.routes[path] = answer(b"", {"WWW-Authenticate": text}, 401)
        self.other.routes[TOKEN] = answer(b'{"token": "t0k"}')


Arrange = Callable[[Lab], None]


@dataclass(frozen=True)
class Case:
    """code None: the image comes, all the same. most: requests for the manifest, at most."""

    row: int
    arrange: Arrange
    code: Code | None
    words: str = ""
    most: int = 4


def on(path: str, route: Route) -> Arrange:
    return lambda lab: lab.routes.update({path: route})


def layer(route: Route) -> Arrange:
    return lambda lab: lab.routes.update({lab.ours.layer_path: route})


def token(route: Route) -> Arrange:
    return lambda lab: lab.token(route)


def challenge(text: str) -> Arrange:
    return lambda lab: lab.challenge(text)


def redirect(target: str) -> Arrange:
    def arrange(lab: Lab) -> None:
        location = target.format(ours=lab.ours.host, other=lab.other.host, path=MANIFEST)
        lab.routes[MANIFEST] = answer(b"", {"Location": location}, 307)
        lab.other.routes["/m"] = answer(
            lab.ours.manifest, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        )

    return arrange


def endless(status: int, kind: str = "application/json", piece: bytes = b"x" * 65536) -> Route:
    """A body without an end, as fast as it goes."""

    def route(request: Request) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
        request.wfile.write(head.encode())
        while True:
            request.wfile.write(piece)

    return route


def trickle(head: bytes, piece: bytes = b"x") -> Route:
    """A few bytes now and then, without an end: always soon enough for a timeout of one read."""

    def route(request: Request) -> None:
        request.wfile.write(head)
        while True:
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(SHORT / 15)

    return route


def chunked(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def announced(status: int, length: int = 1000) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n".encode()


def cut_always(lab: Lab) -> None:
    """Announces everything, sends nothing, hangs up."""
    lab.routes[lab.ours.layer_path] = lambda r: r.cut(b"", len(lab.ours.blob))


def unasked_part(lab: Lab) -> None:
    size = len(lab.ours.blob)
    part = {"Content-Range": f"bytes 10-{size - 1}/{size}"}
    lab.routes[lab.ours.layer_path] = answer(lab.ours.blob[10:], part, 206)


def too_long(lab: Lab) -> None:
    lab.routes[lab.ours.layer_path] = answer(lab.ours.blob + b"x")


def one_byte_a_time(lab: Lab) -> None:
    """The last bytes come in connections of one byte each: slow, but it goes on."""
    blob = lab.ours.blob
    state = {"sent": len(blob) - 3}

    def route(request: Request) -> None:
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        head = {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"} if asked else {}
        end = state["sent"] if not asked else start + 1
        request.cut(blob[start:end], len(blob) - start, 206 if asked else 200, **head)

    lab.routes[lab.ours.layer_path] = route


def loop_of_401(lab: Lab) -> None:
    """A token is given, and refused."""
    lab.challenge('Bearer realm="http://{ours}/token"')
    lab.routes[TOKEN] = answer(tokens("t0k"))


def gone_then_there(status: int, times: int, **headers: str) -> Arrange:
    def arrange(lab: Lab) -> None:
        well, left = lab.routes[MANIFEST], iter(range(times))

        def route(request: Request) -> None:
            if next(left, None) is None:
                well(request)
            else:
                request.reply(status, b"", {k.replace("_", "-"): v for k, v in headers.items()})

        lab.routes[MANIFEST] = route

    return arrange


def tokens(text: str, **more: object) -> bytes:
    return json.dumps({"token": text, **more}).encode()


INVALID, UNAVAILABLE = Code.REGISTRY_INVALID, Code.REGISTRY_UNAVAILABLE
UNAUTHORIZED, LIMIT = Code.UNAUTHORIZED, Code.LIMIT_EXCEEDED
SLOW = "sends nothing, or next to nothing"
HTML = {"Content-Type": "text/html"}

CASES = {
    # 55: redirects
    "redirect-to-another-host": Case(55, redirect("http://{other}/m"), None),
    "redirect-in-a-circle": Case(55, redirect("{path}"), INVALID, "more than 10 times", 11),
    "redirect-to-a-file": Case(55, redirect("file:///etc/passwd"), INVALID, "redirects to where"),
    "redirect-to-ftp": Case(55, redirect("ftp://{ours}/m"), INVALID, "redirects to where"),
    "redirect-with-a-login": Case(55, redirect("http://a:b@{other}/m"), INVALID, "redirects to"),
    "redirect-to-no-url": Case(55, redirect("http://[::1/m"), UNAVAILABLE, "Invalid URL"),
    "redirect-to-no-port": Case(55, redirect("http://{ours}:9/"), UNAVAILABLE, "Invalid URL"),
    # 56: where a login may go
    "realm-on-another-host": Case(
        56, challenge('Bearer realm="http://localhost.{other}/token"'), UNAUTHORIZED, "over http"
    ),
    "realm-on-another-port": Case(56, challenge('Bearer realm="http://x.{other}/"'), UNAUTHORIZED),
    "realm-in-a-private-range": Case(
        56, challenge('Bearer realm="https://10.0.0.1/token"'), UNAUTHORIZED, "private network"
    ),
    "realm-at-the-metadata-service": Case(
        56, challenge('Bearer realm="https://169.254.169.254/"'), UNAUTHORIZED, "private network"
    ),
    "realm-as-a-number": Case(
        56, challenge('Bearer realm="https://0x7f000002/"'), UNAUTHORIZED, "private network"
    ),
    "realm-with-a-login": Case(
        56, challenge('Bearer realm="http://a@{ours}/token"'), UNAUTHORIZED, "no plain http"
    ),
    "realm-that-is-a-file": Case(56, challenge('Bearer realm="file:///x"'), UNAUTHORIZED),
    # 57: challenges and tokens
    "no-realm": Case(57, challenge("Bearer service=x"), UNAUTHORIZED),
    "no-challenge": Case(57, challenge(""), UNAUTHORIZED, "wants a login"),
    "an-unknown-scheme": Case(57, challenge("Negotiate"), UNAUTHORIZED, "wants a login"),
    "a-malformed-challenge": Case(57, challenge('Bearer realm="x'), UNAUTHORIZED),
    "a-long-challenge": Case(57, challenge("Bearer " + "a=b," * 12000), UNAUTHORIZED),
    "a-loop-of-401": Case(57, loop_of_401, UNAUTHORIZED, "refuses", 2),
    "basic-refused": Case(57, challenge("Basic realm=x"), UNAUTHORIZED, "refuses", 2),
    "a-token-of-100-megabytes": Case(57, token(answer(tokens("t" * (100 << 20)))), LIMIT),
    "a-token-of-65-kilobytes": Case(57, token(answer(tokens("t" * 66_000))), INVALID, "65536"),
    "an-endless-token": Case(57, token(endless(200)), LIMIT),
    "a-token-with-newlines": Case(57, token(answer(tokens("a\r\nX: y"))), INVALID, "usable token"),
    "no-token": Case(57, token(answer(b"{}")), INVALID, "usable token"),
    "a-token-that-is-a-page": Case(57, token(answer(b"<html>", HTML)), INVALID, "JSON"),
    "a-token-refused": Case(57, token(answer(b"", status=401)), UNAUTHORIZED, "refuses", 1),
    "a-token-that-trickles": Case(57, token(trickle(announced(200))), UNAVAILABLE, SLOW),
    "a-lifetime-of-nonsense": Case(57, token(answer(tokens("t0k", expires_in=-1))), None),
    # 58: busy
    "busy-for-a-while": Case(58, gone_then_there(503, 2), None),
    "busy-with-429": Case(58, gone_then_there(429, 1), None),
    "busy-with-429-and-a-wait": Case(58, gone_then_there(429, 1, Retry_After="1"), None),
    "busy-for-ever": Case(58, on(MANIFEST, answer(b"", status=500)), UNAVAILABLE, "not available"),
    "a-wait-of-nonsense": Case(58, gone_then_there(503, 1, Retry_After="-5 soon"), None),
    "a-wait-beyond-numbers": Case(
        58, gone_then_there(503, 1, Retry_After="9" * 400), UNAVAILABLE, "not available", 1
    ),
    # 59: parts
    "nothing-but-cuts": Case(59, cut_always, UNAVAILABLE),
    "a-part-not-asked-for": Case(59, unasked_part, UNAVAILABLE),
    "a-blob-too-long": Case(59, too_long, Code.DIGEST_MISMATCH),
    "one-byte-a-connection": Case(59, one_byte_a_time, None),
    # 60: slow
    "headers-that-trickle": Case(
        60, on(MANIFEST, trickle(b"HTTP/1.1 200 OK\r\nX-Long: ")), UNAVAILABLE, SLOW
    ),
    "a-status-that-trickles": Case(60, on(MANIFEST, trickle(b"HTTP/1.1 2")), UNAVAILABLE),
    "a-document-that-trickles": Case(60, on(MANIFEST, trickle(announced(200))), UNAVAILABLE, SLOW),
    "a-blob-that-trickles": Case(60, layer(trickle(announced(200))), UNAVAILABLE, SLOW),
    "a-blob-without-length-that-trickles": Case(
        60, layer(trickle(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")), UNAVAILABLE, SLOW
    ),
    "a-chunk-header-that-trickles": Case(
        60, layer(trickle(chunked(200) + b"5;", b"a")), UNAVAILABLE, SLOW
    ),
    "chunks-that-trickle": Case(60, layer(trickle(chunked(200), b"1\r\na\r\n")), UNAVAILABLE, SLOW),
    "an-error-that-trickles": Case(60, on(MANIFEST, trickle(announced(404))), Code.NOT_FOUND),
    # 61: pages and floods
    "a-page-for-a-manifest": Case(61, on(MANIFEST, answer(b"<html>", HTML)), INVALID, "web page"),
    "a-page-for-a-layer": Case(61, layer(answer(b"<html>", HTML)), UNAVAILABLE, "6 of"),
    "an-endless-manifest": Case(61, on(MANIFEST, endless(200)), LIMIT, "limits.document-bytes"),
    "an-endless-error": Case(61, on(MANIFEST, endless(404)), Code.NOT_FOUND),
    "an-endless-500": Case(61, on(MANIFEST, endless(500)), UNAVAILABLE),
    "an-endless-layer": Case(61, layer(endless(200)), Code.DIGEST_MISMATCH),
    "an-error-with-escapes": Case(
        61,
        on(MANIFEST, answer(b'{"errors":[{"code":"\\u001b[2J","message":"a\\nb"}]}', status=404)),
        Code.NOT_FOUND,
        "\\x1b[2J: a\\nb",
    ),
    "headers-without-end": Case(
        61, on(MANIFEST, trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 9999)), UNAVAILABLE
    ),
    "no-http-at-all": Case(61, on(MANIFEST, trickle(b"SSH-2.0-x\r\n")), UNAVAILABLE),
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with scripted() as script, scripted() as other:
        yield Lab(Scripted(tmp_path / "image", script), other)


@pytest.mark.parametrize("name", CASES)
def test_registry_case(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    for seconds in ("HEAD_SECONDS", "DOCUMENT_SECONDS", "MIN_BYTES_SECONDS", "_ERROR_SECONDS"):
        monkeypatch.setattr(web, seconds, SHORT)
    monkeypatch.setattr(retry, "ATTEMPTS", 3)
    auth = log_in(tmp_path / "login", lab.ours.host, auth=encoded("ann", CANARY))
    config = RegistryConfig(lab.ours.host, plain_http=True, auth_file=auth)
    case.arrange(lab)

    def pull() -> None:
        with opened(tmp_path / "cache", config) as sources:
            pinned = sources.resolve(lab.ours.image)
            for one in pinned.layers:
                path = sources.fetch(lab.ours.image, one.blob, nothing)
                assert path.read_bytes() == lab.ours.blob

    if case.code:
        error = failure(pull)
        assert error.code is case.code, error.brief
        assert case.words in error.brief
    else:
        pull()
    assert 0 < lab.count(MANIFEST) <= case.most
    told = " ".join(f"{seen.path}{seen.headers}{seen.body!r}" for seen in lab.other.seen)
    assert CANARY not in told
    assert encoded("ann", CANARY) not in told
    asked_with_login = [s for s in lab.ours.script.seen if s.headers.get("Authorization") == BASIC]
    assert bool(asked_with_login) <= (case.row in (56, 57))
    blobs = tmp_path / "cache" / "blobs" / "sha256"
    whole = {path.name for path in blobs.iterdir()} if blobs.exists() else set()
    assert whole <= {digest.partition(":")[2] for digest in lab.ours.digests}
