"""Against Debian's docker-registry, and a scripted server where a registry must misbehave."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.images import (
    add_image,
    digest_of,
    file,
    make_layout,
    push,
    tagged,
    tar,
    write_index,
)
from support.registries import (
    CANARY,
    LAYER,
    Scripted,
    answer,
    encoded,
    failure,
    log_in,
    nothing,
    opened,
    spec,
)
from support.registry import RunningRegistry, make_certificates, running_registry
from support.server import Request, Route, scripted

from reconciler.errors import Code, HostError, RemoteError
from reconciler.model import Platform, RegistryConfig
from reconciler.oci.blobs import BlobCache

# -- a real registry ----------------------------------------------------------------------------


def test_an_image_by_tag_and_by_digest(tmp_path: Path, registry: RunningRegistry) -> None:
    upper = tar(file("etc/motd", b"hi\n"))
    digest = make_layout(tmp_path / "l", [LAYER, upper, LAYER], config={"Cmd": ["sh"]})
    push(tmp_path / "l", registry, "team/web", "1.2")
    with opened(tmp_path / "c", registry.config) as sources:
        image = spec(f"{registry.host}/team/web:1.2")
        pinned = sources.resolve(image)
        assert pinned.digest == digest
        diff_ids = [layer.diff_id for layer in pinned.layers]
        assert diff_ids == [digest_of(layer) for layer in (LAYER, upper, LAYER)]
        done: list[int] = []
        path = sources.fetch(image, pinned.layers[0].blob, done.append)
        assert digest_of(path.read_bytes()) == pinned.layers[0].blob.digest
        assert done == sorted(done)
        assert done[-1] == pinned.layers[0].blob.size
        assert sources.resolve(spec(f"{registry.host}/team/web@{digest}")) == pinned


def test_what_is_cached_makes_no_request(tmp_path: Path, registry: RunningRegistry) -> None:
    digest = make_layout(tmp_path / "l", [LAYER])
    push(tmp_path / "l", registry, "team/offline", "1")
    tag, pinned_ref = f"{registry.host}/team/offline:1", f"{registry.host}/team/offline@{digest}"
    with opened(tmp_path / "c", registry.config) as sources:
        pinned = sources.resolve(spec(tag))
        assert sources.documents([spec(tag)]) == {digest}
    with opened(tmp_path / "c", registry.config, offline=True) as sources:
        assert sources.resolve(spec(tag)) == pinned
        assert sources.resolve(spec(pinned_ref)) == pinned
        error = failure(lambda: sources.fetch(spec(tag), pinned.layers[0].blob, nothing))
        assert error.code is Code.OFFLINE
        assert pinned.layers[0].blob.digest in error.brief
        assert failure(lambda: sources.resolve(spec(f"{tag}2"))).code is Code.OFFLINE
    with opened(tmp_path / "c") as sources:
        assert sources.resolve(spec(pinned_ref)) == pinned
        assert sources.resolve(spec(tag, pull="never")) == pinned
        assert "never" in failure(lambda: sources.resolve(spec(f"{tag}2", pull="never"))).brief


def test_damaged_documents_are_fetched_again(tmp_path: Path, registry: RunningRegistry) -> None:
    digest = make_layout(tmp_path / "l", [LAYER])
    push(tmp_path / "l", registry, "team/damaged", "1")
    image = spec(f"{registry.host}/team/damaged@{digest}")
    with opened(tmp_path / "c", registry.config) as sources:
        pinned = sources.resolve(image)
        for broken in (pinned.digest, pinned.config.digest):
            path = BlobCache(tmp_path / "c").path(broken)
            path.write_bytes(b"x" * path.stat().st_size)
        assert sources.resolve(image) == pinned


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_a_partial_blob_is_completed(
    tmp_path: Path, registry: RunningRegistry, part: float
) -> None:
    make_layout(tmp_path / "l", [LAYER])
    push(tmp_path / "l", registry, "team/partial", "1")
    image = spec(f"{registry.host}/team/partial:1")
    cache = BlobCache(tmp_path / "c")
    with opened(cache.root, registry.config) as sources:
        blob = sources.resolve(image).layers[0].blob
        raw = Scripted.read(tmp_path / "l", blob.digest)
        with pytest.raises(KeyError), cache.claim(blob) as claim:
            assert claim is not None
            claim.write(raw[: int(part * len(raw))])
            raise KeyError
        done: list[int] = []
        assert sources.fetch(image, blob, done.append).read_bytes() == raw
        assert all(count >= int(part * len(raw)) for count in done)


def test_a_moved_tag_is_noticed(tmp_path: Path, registry: RunningRegistry) -> None:
    image = spec(f"{registry.host}/team/moving:1")
    for content in (b"one", b"two", b"two"):
        digest = make_layout(tmp_path / "l", [tar(file("f", content))])
        push(tmp_path / "l", registry, "team/moving", "1")
        with opened(tmp_path / "c", registry.config) as sources:
            assert sources.resolve(image).digest == digest


def test_the_platform_comes_out_of_an_index(tmp_path: Path, registry: RunningRegistry) -> None:
    layout = tmp_path / "l"
    images = [add_image(layout, [LAYER], platform=("linux", arch)) for arch in ("arm64", "amd64")]
    index_type = "application/vnd.oci.image.index.v1+json"
    raw = json.dumps({"schemaVersion": 2, "mediaType": index_type, "manifests": images}).encode()
    digest = digest_of(raw)
    (layout / "blobs/sha256" / digest[7:]).write_bytes(raw)
    top = {"mediaType": index_type, "digest": digest, "size": len(raw)}
    write_index(layout, [tagged(top, "latest")])
    push(layout, registry, "team/multi", "1")
    with opened(tmp_path / "c", registry.config) as sources:
        ref = f"{registry.host}/team/multi:1"
        assert sources.resolve(spec(ref)).digest == images[1]["digest"]
        arm = spec(ref, platform=Platform("linux", "arm64"))
        assert sources.resolve(arm).digest == images[0]["digest"]
        missing = spec(ref, platform=Platform("linux", "s390x"))
        error = failure(lambda: sources.resolve(missing))
        assert "there is: linux/amd64, linux/arm64" in error.brief


def test_no_such_tag_or_repository(tmp_path: Path, registry: RunningRegistry) -> None:
    make_layout(tmp_path / "l", [LAYER])
    push(tmp_path / "l", registry, "team/there", "1")
    with opened(tmp_path / "c", registry.config) as sources:
        for name, word in (("team/there:2", "MANIFEST_UNKNOWN"), ("team/gone:1", "_UNKNOWN")):
            error = failure(lambda n=name: sources.resolve(spec(f"{registry.host}/{n}")))
            assert (error.code, error.retryable) == (Code.NOT_FOUND, False)
            assert f"{registry.host}/{name}: no such tag" in error.brief
            assert word in error.brief


def test_https_is_not_given_up_for_a_plain_registry(
    tmp_path: Path, registry: RunningRegistry
) -> None:
    with opened(tmp_path / "c") as sources:
        error = failure(lambda: sources.resolve(spec(f"{registry.host}/x:1")))
        assert (error.code, error.retryable) == (Code.REGISTRY_UNAVAILABLE, True)
        assert registry.host in error.brief


def test_nobody_listens(tmp_path: Path) -> None:
    with opened(tmp_path / "c", RegistryConfig("127.0.0.1:1", plain_http=True)) as sources:
        error = failure(lambda: sources.resolve(spec("127.0.0.1:1/x:1")))
        assert (error.code, error.retryable) == (Code.REGISTRY_UNAVAILABLE, True)
        assert "127.0.0.1:1" in error.brief
        assert "refused" in error.brief


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    root = tmp_path_factory.mktemp("guarded")
    with running_registry(root, username="ann", password=CANARY, tls=True) as running:
        make_layout(root / "l", [LAYER])
        push(root / "l", running, "team/web", "1")
        yield running


def test_tls_and_a_password(
    tmp_path: Path, guarded: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = spec(f"{guarded.host}/team/web:1")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "d"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with opened(tmp_path / "c", guarded.config) as sources:
        error = failure(lambda: sources.resolve(image))
        assert (error.code, error.retryable) == (Code.UNAUTHORIZED, False)
        assert f"docker login {guarded.host}" in error.resolution
        log_in(tmp_path / "d", guarded.host, auth=encoded("ann", "wrong"))
        assert failure(lambda: sources.resolve(image)).code is Code.UNAUTHORIZED
    with opened(tmp_path / "c", guarded.config) as sources:
        log_in(tmp_path / "d", guarded.host, auth=encoded("ann", CANARY))
        pinned = sources.resolve(image)
        assert sources.fetch(image, pinned.layers[0].blob, nothing).is_file()


def test_password_files(tmp_path: Path, guarded: RunningRegistry) -> None:
    (tmp_path / "user").write_text("ann\n")
    (tmp_path / "pass").write_text(f"{CANARY}\n")
    entry = RegistryConfig(
        guarded.host,
        ca_file=guarded.ca_file,
        username_file=tmp_path / "user",
        password_file=tmp_path / "pass",
    )
    with opened(tmp_path / "c", entry) as sources:
        assert sources.resolve(spec(f"{guarded.host}/team/web:1")).layers


def test_certificates_are_checked(tmp_path: Path, guarded: RunningRegistry) -> None:
    image = spec(f"{guarded.host}/team/web:1")
    other = make_certificates(tmp_path, "127.0.0.1")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for ca_file in (None, other):
        with opened(tmp_path / "c", RegistryConfig(guarded.host, ca_file=ca_file)) as sources:
            error = failure(lambda s=sources: s.resolve(image))
            assert "certificate verify failed" in error.brief
            assert "ca-file" in error.resolution
    for ca_file in (empty, tmp_path / "missing.pem"):
        with opened(tmp_path / "c", RegistryConfig(guarded.host, ca_file=ca_file)) as sources:
            refused = failure(lambda s=sources: s.resolve(image))
            assert isinstance(refused, HostError)
            assert str(ca_file) in refused.brief


# -- a registry of our own making ----------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Scripted]:
    with scripted() as script:
        yield Scripted(tmp_path / "ours", script)


def test_a_bearer_token_is_fetched_once(tmp_path: Path, ours: Scripted) -> None:
    challenge = f'Bearer realm="http://{ours.host}/token?a=b",service="s",scope="repository:y:push"'
    ours.demand(challenge, "Bearer t0k")
    ours.script.routes["/token"] = answer(b'{"token": "t0k", "expires_in": 300}')
    auth = log_in(tmp_path / "d", ours.host, auth=encoded("ann", CANARY))
    entry = RegistryConfig(ours.host, plain_http=True, auth_file=auth)
    with opened(tmp_path / "c", entry) as sources:
        pinned = sources.resolve(ours.image)
        sources.fetch(ours.image, pinned.layers[0].blob, nothing)
    [asked] = ours.script.asked("/token")
    query = parse_qs(urlsplit(asked.path).query)
    assert query == {"a": ["b"], "service": ["s"], "scope": ["repository:x:pull"]}
    assert asked.headers["Authorization"] == f"Basic {encoded('ann', CANARY)}"


def test_an_identity_token_is_posted(tmp_path: Path, ours: Scripted) -> None:
    ours.demand(f'Bearer realm="http://{ours.host}/token"', "Bearer t0k")
    ours.script.routes["/token"] = answer(b'{"access_token": "t0k"}')
    auth = log_in(tmp_path / "d", ours.host, identitytoken=CANARY)
    entry = RegistryConfig(ours.host, plain_http=True, auth_file=auth)
    with opened(tmp_path / "c", entry) as sources:
        sources.resolve(ours.image)
    [asked] = ours.script.asked("/token")
    assert asked.method == "POST"
    form = parse_qs(asked.body.decode())
    assert (form["grant_type"], form["refresh_token"]) == (["refresh_token"], [CANARY])
    assert CANARY not in asked.path


def test_an_expired_token_is_refreshed_once(tmp_path: Path, ours: Scripted) -> None:
    challenge = f'Bearer realm="http://{ours.host}/token"'
    tokens = iter(["one", "two"])
    valid = {"Bearer one"}

    def token(request: Request) -> None:
        request.reply(200, json.dumps({"token": next(tokens)}).encode())

    def layer(request: Request) -> None:
        known = request.headers.get("Authorization") in valid
        request.reply(200 if known else 401, ours.blob if known else b"", {} if known else wanted)

    wanted = {"WWW-Authenticate": challenge}
    ours.demand(challenge, "Bearer one")
    ours.script.routes.update({"/token": token, ours.layer_path: layer})
    with opened(tmp_path / "c", ours.config) as sources:
        pinned = sources.resolve(ours.image)
        valid.symmetric_difference_update({"Bearer one", "Bearer two"})
        sources.fetch(ours.image, pinned.layers[0].blob, nothing)
    assert len(ours.script.asked("/token")) == 2


def test_a_loop_of_401_ends(tmp_path: Path, ours: Scripted) -> None:
    ours.demand(f'Bearer realm="http://{ours.host}/token"', "never")
    ours.script.routes["/token"] = answer(b'{"token": "t0k"}')
    with opened(tmp_path / "c", ours.config) as sources:
        assert failure(lambda: sources.resolve(ours.image)).code is Code.UNAUTHORIZED
    assert len(ours.script.asked("/v2/x/manifests/1")) == 2
    assert len(ours.script.asked("/token")) == 1


def test_a_foreign_token_server_gets_no_credentials(tmp_path: Path, ours: Scripted) -> None:
    with scripted({"/token": answer(b'{"token": "t0k"}')}) as other:
        name = other.host.replace("127.0.0.1", "localhost")
        ours.demand(f'Bearer realm="http://{name}/token"', "Bearer t0k")
        auth = log_in(tmp_path / "d", ours.host, auth=encoded("ann", CANARY))
        entry = RegistryConfig(ours.host, plain_http=True, auth_file=auth)
        with opened(tmp_path / "c", entry) as sources:
            error = failure(lambda: sources.resolve(ours.image))
            assert error.code is Code.UNAUTHORIZED
            assert "over http" in error.brief
        assert other.seen == []


def test_a_redirect_takes_no_authorization_along(tmp_path: Path, ours: Scripted) -> None:
    with scripted({"/blob": answer(ours.blob)}) as other:
        target = {"Location": f"http://{other.host}/blob?sig={CANARY}", "Set-Cookie": "a=b"}
        ours.script.routes[ours.layer_path] = answer(b"", target, 307)
        ours.demand("Basic realm=x", f"Basic {encoded('ann', CANARY)}")
        auth = log_in(tmp_path / "d", ours.host, auth=encoded("ann", CANARY))
        entry = RegistryConfig(ours.host, plain_http=True, auth_file=auth)
        with opened(tmp_path / "c", entry) as sources:
            path = sources.fetch(ours.image, ours.descriptor, nothing)
            assert path.read_bytes() == ours.blob
            other.routes.clear()
            path.unlink()
            assert failure(lambda: sources.fetch(ours.image, ours.descriptor, nothing))
        assert not {"Authorization", "Cookie"} & set(other.seen[0].headers)


@pytest.mark.parametrize(
    ("location", "hops"),
    [
        ("{path}", 11),
        ("ftp://x/y", 1),
        ("http://u:p@{host}/y", 1),
        ("", 11),
    ],
)
def test_redirects_that_lead_nowhere(
    tmp_path: Path, ours: Scripted, location: str, hops: int
) -> None:
    target = location.format(path=ours.layer_path, host=ours.host)
    ours.script.routes[ours.layer_path] = answer(b"", {"Location": target}, 302)
    with opened(tmp_path / "c", ours.config) as sources:
        error = failure(lambda: sources.fetch(ours.image, ours.descriptor, nothing))
        assert (error.code, error.retryable) == (Code.REGISTRY_INVALID, False)
    assert len(ours.script.asked(ours.layer_path)) == hops


def test_a_busy_registry_is_asked_again(tmp_path: Path, ours: Scripted) -> None:
    path, statuses = "/v2/x/manifests/1", iter([503, 429, 500])
    events: list[str] = []
    words = b'{"errors":[{"code":"X","message":"a\\nb"}]}'
    well = ours.script.routes[path]

    def busy(request: Request) -> None:
        status = next(statuses, 0)
        if status:
            request.reply(status, words, {"Retry-After": "0"})
        else:
            well(request)

    ours.script.routes[path] = busy
    with opened(tmp_path / "c", ours.config, events=events) as sources:
        assert sources.resolve(ours.image).digest == ours.digest
    assert [event.split()[0] for event in events] == ["backoff.scheduled"] * 3
    assert "X: a\\\\nb" in events[0]


def test_a_long_pause_is_left_to_the_daemon(tmp_path: Path, ours: Scripted) -> None:
    ours.script.routes["/v2/x/manifests/1"] = answer(b"", {"Retry-After": "99999999"}, 429)
    with opened(tmp_path / "c", ours.config) as sources:
        error = failure(lambda: sources.resolve(ours.image))
    assert (error.retryable, error.retry_after) == (True, 3600)
    assert len(ours.script.seen) == 1


@pytest.mark.parametrize("manner", ["ranges", "whole", "wrong-range", "416"])
def test_a_cut_connection_is_resumed_or_restarted(
    tmp_path: Path, ours: Scripted, manner: str
) -> None:
    size, half = len(ours.blob), len(ours.blob) // 2

    def layer(request: Request) -> None:
        asked = request.headers.get("Range")
        if len(ours.script.asked(ours.layer_path)) == 1:
            request.cut(ours.blob[:half], size)
        elif asked and manner == "ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            about = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            request.reply(206, ours.blob[start:], about)
        elif asked and manner == "wrong-range":
            request.reply(206, ours.blob, {"Content-Range": f"bytes 0-{size - 1}/{size}"})
        elif asked and manner == "416":
            request.reply(416)
        else:
            request.reply(200, ours.blob)

    ours.script.routes[ours.layer_path] = layer
    with opened(tmp_path / "c", ours.config) as sources:
        assert sources.fetch(ours.image, ours.descriptor, nothing).read_bytes() == ours.blob
    requests = ours.script.asked(ours.layer_path)
    assert len(requests) == (3 if manner == "416" else 2)
    assert requests[1].headers["Range"].startswith("bytes=")


def test_wrong_bytes_get_one_clean_retry(tmp_path: Path, ours: Scripted) -> None:
    wrong = b"x" * len(ours.blob)
    bodies = iter([wrong, ours.blob])
    ours.script.routes[ours.layer_path] = lambda request: request.reply(200, next(bodies, wrong))
    with opened(tmp_path / "c", ours.config) as sources:
        path = sources.fetch(ours.image, ours.descriptor, nothing)
        assert path.read_bytes() == ours.blob
        path.unlink()
        error = failure(lambda: sources.fetch(ours.image, ours.descriptor, nothing))
    assert isinstance(error, RemoteError)
    assert error.code is Code.DIGEST_MISMATCH
    assert len(ours.script.asked(ours.layer_path)) == 4
    assert not path.exists()


def test_a_pinned_digest_answered_with_another_manifest(tmp_path: Path, ours: Scripted) -> None:
    pinned = f"sha256:{'0' * 64}"
    ours.script.routes[f"/v2/x/manifests/{pinned}"] = answer(ours.manifest)
    with opened(tmp_path / "c", ours.config) as sources:
        error = failure(lambda: sources.resolve(spec(f"{ours.host}/x@{pinned}")))
    assert error.code is Code.DIGEST_MISMATCH


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (answer(b"<html>", {"Content-Type": "text/html"}), Code.REGISTRY_INVALID),
        (answer(b" " * (5 << 20)), Code.LIMIT_EXCEEDED),
        (answer(b"{}"), Code.IMAGE_INVALID),
        (answer(b'{"schemaVersion": 1}'), Code.IMAGE_INVALID),
        (answer(b"", status=418), Code.REGISTRY_INVALID),
        (answer(b"x" * (1 << 20), status=403), Code.UNAUTHORIZED),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, ours: Scripted, route: Route, code: Code) -> None:
    ours.script.routes["/v2/x/manifests/1"] = route
    with opened(tmp_path / "c", ours.config) as sources:
        assert failure(lambda: sources.resolve(ours.image)).code is code


def test_mirrors_come_first_and_the_origin_last(tmp_path: Path, ours: Scripted) -> None:
    with scripted() as mirror:
        mirror.routes.update(
            {path.replace("/v2/", "/v2/ghcr/"): route for path, route in ours.script.routes.items()}
        )
        mirror.routes[f"/v2/ghcr/x/blobs/{ours.layer}"] = answer(b"x" * len(ours.blob))
        origin = RegistryConfig(
            ours.host, mirrors=("127.0.0.1:1", f"{mirror.host}/ghcr"), plain_http=True
        )
        others = [RegistryConfig(host, plain_http=True) for host in ("127.0.0.1:1", mirror.host)]
        with opened(tmp_path / "c", origin, *others) as sources:
            assert sources.resolve(ours.image).digest == ours.digest
            assert ours.script.seen == []
            path = sources.fetch(ours.image, ours.descriptor, nothing)
            assert path.read_bytes() == ours.blob
            mirror.routes.clear()
            assert sources.resolve(ours.image).digest == ours.digest


def test_nothing_of_a_url_is_logged(
    tmp_path: Path, ours: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with opened(tmp_path / "c", ours.config) as sources:
        sources.resolve(ours.image)
    assert ours.host not in caplog.text


def test_a_known_tag_costs_one_head(tmp_path: Path, ours: Scripted) -> None:
    def manifest(request: Request) -> None:
        request.reply(200, ours.manifest, {"Docker-Content-Digest": ours.digest})

    ours.script.routes["/v2/x/manifests/1"] = manifest
    for _ in range(2):
        with opened(tmp_path / "c", ours.config) as sources:
            assert sources.resolve(ours.image).digest == ours.digest
    assert [one.method for one in ours.script.asked("/v2/x/manifests/1")] == ["GET", "HEAD"]
    with opened(tmp_path / "c", ours.config) as sources:
        sources.resolve(spec(ours.image.ref, pull="always"))
    assert ours.script.seen[-1].method == "GET"


# -- plain downloads -----------------------------------------------------------------------------


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    good = b"kernel" * 1000
    sha256 = digest_of(good)[7:]
    statuses = iter([503, 200, 200, 404])
    bodies = iter([b"", good, b"other", b""])

    def serve(request: Request) -> None:
        request.reply(next(statuses), next(bodies))

    with scripted({"/vmlinuz": serve}) as server, opened(tmp_path / "c") as sources:
        url, there = f"http://{server.host}/vmlinuz?sig={CANARY}", tmp_path / "k" / "vmlinuz"
        there.parent.mkdir()
        done: list[int] = []
        sources.download(url, sha256, there, done.append)
        assert there.read_bytes() == good
        assert done[-1] == len(good)
        there.unlink()
        for code in (Code.DIGEST_MISMATCH, Code.NOT_FOUND):
            error = failure(lambda: sources.download(url, sha256, there, nothing))
            assert error.code is code
        assert list(there.parent.iterdir()) == []
        assert failure(lambda: sources.download("file:///etc/passwd", sha256, there, nothing))
        missing = tmp_path / "missing" / "x"
        refused = failure(lambda: sources.download(url, sha256, missing, nothing))
        assert isinstance(refused, HostError)
    with opened(tmp_path / "c", offline=True) as sources:
        error = failure(lambda: sources.download(url, sha256, there, nothing))
        assert error.code is Code.OFFLINE
