"""Rows 58, 60, 62, 63 and 65: pauses, deadlines, shared blobs, mirrors, proxies, no network."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.program import Program, snapshot
from support.proxy import relay
from support.registries import CANARY, Scripted, answer, failure, nothing, opened, spec
from support.registry import make_certificates
from support.server import Request, Script, scripted

from reconciler.errors import Code
from reconciler.model import RegistryConfig
from reconciler.oci import retry


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Scripted]:
    with scripted() as script:
        yield Scripted(tmp_path / "ours", script)


def dead_host() -> str:
    """A loopback address where nobody listens: reserved (port 1)."""
    return "127.0.0.1:1"


# -- 58: the host is paused, not the pass --------------------------------------------------------


def test_a_429_pauses_the_host_for_all(tmp_path: Path, ours: Scripted) -> None:
    """One thread meets a 429; until the pause is over no request of any thread arrives."""
    well, times = ours.script.routes["/v2/x/manifests/1"], []
    refused = threading.Event()

    def busy_once(request: Request) -> None:
        times.append(time.monotonic())
        if refused.is_set():
            well(request)
        else:
            refused.set()
            request.reply(429, b"", {"Retry-After": "2"})

    for tag in "1234":  # one tag is asked for once
        ours.script.routes[f"/v2/x/manifests/{tag}"] = busy_once
    images = [spec(f"{ours.host}/x:{tag}") for tag in "1234"]
    events: list[str] = []
    with (
        opened(tmp_path / "c", ours.config, events=events) as sources,
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(sources.resolve, images[0])
        while not events:
            time.sleep(0.01)
        others = [pool.submit(sources.resolve, image) for image in images[1:]]
        assert {one.result().digest for one in (first, *others)} == {ours.digest}
    assert len(times) == 5
    assert min(times[1:]) - times[0] >= 2


def test_a_long_pause_costs_one_request_and_no_other_host(tmp_path: Path, ours: Scripted) -> None:
    ours.script.routes["/v2/x/manifests/1"] = answer(b"", {"Retry-After": "3000"}, 429)
    with (
        scripted() as elsewhere,
        opened(
            tmp_path / "c", ours.config, RegistryConfig(elsewhere.host, plain_http=True)
        ) as sources,
    ):
        other = Scripted(tmp_path / "other", elsewhere)
        for _ in range(4):
            error = failure(lambda: sources.resolve(ours.image))
            assert error.retryable
            assert 2900 < (error.retry_after or 0) <= 3000
            assert sources.resolve(other.image).digest == other.digest
    assert len(ours.script.seen) == 1


# -- 60: the whole time ----------------------------------------------------------------------------


def test_a_blob_has_a_total_deadline(
    tmp_path: Path, ours: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on fast enough for every other rule, but not for the timeout of the image."""

    def route(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(ours.blob)))
        request.end_headers()
        for at in range(0, len(ours.blob), 16):
            request.wfile.write(ours.blob[at : at + 16])
            request.wfile.flush()
            time.sleep(0.2)

    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    ours.script.routes[ours.layer_path] = route
    with opened(tmp_path / "c", ours.config, timeout=2.0) as sources:
        error = failure(lambda: sources.fetch(ours.image, ours.descriptor, nothing))
    assert "came in 2 s" in error.brief
    assert "[reconcile]" in error.resolution
    [part] = (tmp_path / "c" / "ingest").iterdir()
    assert 0 < part.stat().st_size < len(ours.blob)


# -- 62: one download for two ----------------------------------------------------------------------


def test_two_images_share_one_download(tmp_path: Path, ours: Scripted) -> None:
    waiting, arrived = threading.Event(), threading.Event()

    def held(request: Request) -> None:
        arrived.set()
        waiting.wait(60)
        request.reply(200, ours.blob)

    ours.script.routes[ours.layer_path] = held

    def note(_: int) -> None:
        polls.append(1)

    polls: list[int] = []
    with (
        opened(tmp_path / "c", ours.config) as one,
        opened(tmp_path / "c", ours.config) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(one.fetch, ours.image, ours.descriptor, nothing)
        assert arrived.wait(60)
        second = pool.submit(two.fetch, ours.image, ours.descriptor, note)
        while not polls:
            time.sleep(0.01)
        waiting.set()
        assert first.result() == second.result()
    assert first.result().read_bytes() == ours.blob
    assert len(ours.script.asked(ours.layer_path)) == 1


def test_one_giving_up_does_not_poison_the_other(tmp_path: Path, ours: Scripted) -> None:
    half, asked = len(ours.blob) // 2, threading.Event()

    class GivenUp(Exception):
        pass

    def half_then_all(request: Request) -> None:
        if asked.is_set():
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            whole = f"bytes {start}-{len(ours.blob) - 1}/{len(ours.blob)}"
            request.reply(206, ours.blob[start:], {"Content-Range": whole})
        else:
            asked.set()
            request.cut(ours.blob[:half], len(ours.blob))

    def give_up(done: int) -> None:
        if done:
            raise GivenUp

    ours.script.routes[ours.layer_path] = half_then_all
    with opened(tmp_path / "c", ours.config) as sources, ThreadPoolExecutor(2) as pool:
        first = pool.submit(sources.fetch, ours.image, ours.descriptor, give_up)
        assert asked.wait(60)
        second = pool.submit(sources.fetch, ours.image, ours.descriptor, nothing)
        with pytest.raises(GivenUp):
            first.result()
        assert second.result().read_bytes() == ours.blob


# -- 63: mirrors -----------------------------------------------------------------------------------

BAD_MIRRORS = {
    "down": None,
    "empty": {},
    "busy": answer(b"", status=503),
    "pausing": answer(b"", {"Retry-After": "3000"}, 429),
    "locked": answer(b"", {"WWW-Authenticate": "Basic realm=x"}, 401),
    "a-page": answer(b"<html>", {"Content-Type": "text/html"}),
    "wrong": answer(b"x" * 4000, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}),
    "a-wrong-realm": answer(b"", {"WWW-Authenticate": 'Bearer realm="http://10.0.0.1/"'}, 401),
    "a-circle": answer(b"", {"Location": "/v2/"}, 302),
}


@pytest.mark.parametrize("kind", BAD_MIRRORS)
def test_a_bad_mirror_is_passed_by(tmp_path: Path, ours: Scripted, kind: str) -> None:
    """A bad mirror, then a good one below a path, then the origin, which is not needed."""
    pinned = spec(f"{ours.host}/x@{ours.digest}")
    with scripted() as bad, scripted() as good:
        serve_below(good, ours, "proxy/hub")
        route = BAD_MIRRORS[kind]
        if callable(route):
            for path in [*ours.script.routes, "/v2/"]:
                bad.routes[path.replace("/v2/x", "/v2/team/x")] = route
        host = bad.host if route is not None else dead_host()
        entries = [
            RegistryConfig(
                ours.host, mirrors=(f"{host}/team", f"{good.host}/proxy/hub"), plain_http=True
            ),
            *(RegistryConfig(mirror, plain_http=True) for mirror in (host, good.host)),
        ]
        with opened(tmp_path / "c", *entries) as sources:
            assert sources.resolve(pinned).digest == ours.digest
            path = sources.fetch(pinned, ours.descriptor, nothing)
            assert path.read_bytes() == ours.blob
        assert ours.script.seen == []
        assert good.seen


def serve_below(script: Script, ours: Scripted, prefix: str) -> None:
    for path, route in ours.script.routes.items():
        script.routes[path.replace("/v2/", f"/v2/{prefix}/")] = route


def test_when_all_mirrors_fail_the_origin_is_asked_and_blamed(
    tmp_path: Path, ours: Scripted
) -> None:
    with scripted() as empty:
        mirrors = (dead_host(), f"{empty.host}/a/b")
        entry = RegistryConfig(ours.host, mirrors=mirrors, plain_http=True)
        others = [RegistryConfig(host, plain_http=True) for host in (dead_host(), empty.host)]
        with opened(tmp_path / "c", entry, *others) as sources:
            assert sources.resolve(ours.image).digest == ours.digest
            ours.script.routes.clear()
            error = failure(lambda: sources.resolve(spec(f"{ours.host}/y:1")))
            assert ours.host in error.brief
            assert error.code is Code.NOT_FOUND


def test_a_mirror_gets_its_own_login_and_http_only_when_it_may(
    tmp_path: Path, ours: Scripted
) -> None:
    """The origin's password files and its plain-http say nothing about its mirror."""
    for name in ("user", "password"):
        (tmp_path / name).write_text(CANARY)
    with scripted() as mirror:
        serve_below(mirror, ours, "m")
        for path in list(mirror.routes):
            mirror.routes[path] = answer(b"", {"WWW-Authenticate": "Basic realm=x"}, 401)
        entry = RegistryConfig(
            ours.host,
            mirrors=(f"{mirror.host}/m",),
            plain_http=True,
            username_file=tmp_path / "user",
            password_file=tmp_path / "password",
        )
        with opened(tmp_path / "c", entry) as sources:
            assert sources.resolve(ours.image).digest == ours.digest
        assert mirror.seen == []  # it was asked by TLS, which it does not speak
        with opened(tmp_path / "c2", entry, RegistryConfig(mirror.host, plain_http=True)) as again:
            assert again.resolve(ours.image).digest == ours.digest
        assert mirror.seen
        assert not any("Authorization" in seen.headers for seen in mirror.seen)


# -- proxies ---------------------------------------------------------------------------------------


def test_http_goes_through_the_proxy_of_the_environment(
    tmp_path: Path, ours: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry has no address at all: only the proxy can have answered."""
    with scripted() as proxy:
        for path, route in ours.script.routes.items():
            proxy.routes[f"http://registry.invalid{path}"] = route
        monkeypatch.setenv("HTTP_PROXY", f"http://u:{CANARY}@{proxy.host}")
        monkeypatch.setenv("NO_PROXY", ours.host.partition(":")[0])
        far = spec("registry.invalid/x:1")
        entry = RegistryConfig("registry.invalid", plain_http=True)
        with opened(tmp_path / "c", entry) as sources:
            assert sources.resolve(far).digest == ours.digest
            assert sources.fetch(far, ours.descriptor, nothing).read_bytes() == ours.blob
        count = len(proxy.seen)
        assert count == 3
        assert all("Proxy-Authorization" in seen.headers for seen in proxy.seen)
        with opened(tmp_path / "c2", ours.config) as sources:
            assert sources.resolve(ours.image).digest == ours.digest
        assert len(proxy.seen) == count
        assert not any("Proxy-Authorization" in seen.headers for seen in ours.script.seen)


def test_https_goes_through_a_tunnel_and_checks_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_file = make_certificates(tmp_path / "tls", "127.0.0.1")
    with scripted(tls=tmp_path / "tls") as script, relay() as proxy:
        secure = Scripted(tmp_path / "secure", script)
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with opened(tmp_path / "c", RegistryConfig(secure.host, ca_file=ca_file)) as sources:
            assert sources.resolve(secure.image).digest == secure.digest
        assert set(proxy.tunnels) == {secure.host}
        with opened(tmp_path / "c2", RegistryConfig(secure.host)) as sources:
            error = failure(lambda: sources.resolve(secure.image))
        assert "certificate verify failed" in error.brief


def test_a_proxy_that_is_none_is_said(
    tmp_path: Path, ours: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"gopher://u:{CANARY}@x")
    with opened(tmp_path / "c", ours.config) as sources:
        assert failure(lambda: sources.resolve(ours.image)).code is Code.CONFIG_INVALID
    monkeypatch.setenv("HTTP_PROXY", f"http://u:{CANARY}@{dead_host()}")
    with opened(tmp_path / "c", ours.config) as sources:
        assert failure(lambda: sources.resolve(ours.image)).code is Code.REGISTRY_UNAVAILABLE
    assert ours.script.seen == []


# -- 65: no network --------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, ours: Scripted) -> Path:
    path = tmp_path / "banger.toml"
    path.write_text(
        f'[[registry]]\nhost = "{ours.host}"\nplain-http = true\n'
        f'[[image]]\nname = "web"\nref = "{ours.host}/x:1"\nsize = "64MiB"\nguest = false\n'
    )
    return path


@pytest.mark.parametrize("how", ["--offline", "never"])
def test_offline_asks_nobody_and_names_what_is_missing(
    tmp_path: Path, ours: Scripted, config: Path, how: str
) -> None:
    words = [how] if how == "--offline" else []
    if how == "never":
        config.write_text(config.read_text() + 'pull = "never"\n')
    program = Program(tmp_path / "host")
    result = program.run(*words, config, "--json")
    assert result.code == 1
    error = result.images["web"]["error"]
    assert error["code"] == "offline"
    assert f"{ours.host}/x:1" in error["message"]
    assert how in error["message"]
    assert ours.script.seen == []


def test_offline_builds_what_is_cached(tmp_path: Path, ours: Scripted, config: Path) -> None:
    program = Program(tmp_path / "host")
    assert program.run(config).code == 0
    count = len(ours.script.seen)
    config.write_text(config.read_text().replace("64MiB", "96MiB"))
    result = program.run("--offline", config, "--json")
    assert result.code == 0, result.err
    assert program.rootfs("web").stat().st_size == 96 << 20
    before = snapshot(program.state, program.cache)
    assert program.run("plan", "--offline", config).code == 0
    assert snapshot(program.state, program.cache) == before
    assert len(ours.script.seen) == count


def test_pull_policies(tmp_path: Path, ours: Scripted, config: Path) -> None:
    """missing: one HEAD when nothing moved; always: one GET; a digest: nothing at all."""
    manifest = "/v2/x/manifests/1"
    kind = {
        "Content-Type": "application/vnd.oci.image.manifest.v1+json",
        "Docker-Content-Digest": ours.digest,
    }
    ours.script.routes[manifest] = answer(ours.manifest, kind)
    program = Program(tmp_path / "host")
    assert program.run(config).code == 0
    for pull, ref, expected in (
        ("missing", f"{ours.host}/x:1", ["HEAD"]),
        ("always", f"{ours.host}/x:1", ["GET"]),
        ("missing", f"{ours.host}/x@{ours.digest}", []),
        ("never", f"{ours.host}/x:1", []),
    ):
        config.write_text(
            f'[[registry]]\nhost = "{ours.host}"\nplain-http = true\n[[image]]\nname = "web"\n'
            f'ref = "{ref}"\nsize = "64MiB"\nguest = false\npull = "{pull}"\n'
        )
        ours.script.seen.clear()
        assert program.run(config).code == 0
        assert [seen.method for seen in ours.script.seen] == expected, (pull, ref)
