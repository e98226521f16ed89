"""Rows 54, 59, 64 and 66 against Debian's docker-registry: TLS, htpasswd, a CA of its own."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.images import digest_of, file, make_layout, push, tar
from support.program import Program
from support.proxy import relay
from support.registries import encoded, failure, log_in, nothing, opened, spec
from support.registry import RunningRegistry, make_certificates, running_registry
from support.server import scripted

from reconciler.errors import Code
from reconciler.model import RegistryConfig
from reconciler.oci import retry

CANARY = "c4nary-t0ken-of-66"
CUTS = 20
LAYERS = [
    tar(file("etc/hostname", b"guest\n")),
    tar(file("noise", random.Random(1).randbytes(600_000))),  # does not shrink when packed
]


@dataclass(frozen=True)
class Real:
    """A registry with one image, `team/web:1`."""

    registry: RunningRegistry
    digest: str

    @property
    def host(self) -> str:
        return self.registry.host


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    root = tmp_path_factory.mktemp("real")
    with running_registry(root, username="ann", password=CANARY, tls=True) as registry:
        digest = make_layout(root / "l", LAYERS, config={"Cmd": ["sh"]})
        push(root / "l", registry, "team/web", "1")
        yield Real(registry, digest)


def entry(host: str, real: Real, auth: Path | None) -> RegistryConfig:
    return RegistryConfig(host, ca_file=real.registry.ca_file, auth_file=auth)


def test_the_whole_program_pulls_with_a_login(tmp_path: Path, real: Real) -> None:
    """`docker login` wrote config.json; nothing else is needed but the CA."""
    program = Program(tmp_path / "host")
    log_in(tmp_path / "host" / ".docker", real.host, auth=encoded("ann", CANARY))
    config = write_config(tmp_path, real)
    result = program.run(config, "--json")
    assert result.code == 0, result.err
    assert result.images["web"]["resolved_digest"] == real.digest


def write_config(root: Path, real: Real, *lines: str) -> Path:
    path = root / "banger.toml"
    path.write_text(
        f'[[registry]]\nhost = "{real.host}"\nca-file = "{real.registry.ca_file}"\n'
        f'[[image]]\nname = "web"\nref = "{real.host}/team/web:1"\nsize = "64MiB"\nguest = false\n'
        + "\n".join(lines)
    )
    return path


def test_twenty_cuts_at_random_bytes(
    tmp_path: Path, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever byte a connection breaks at, the rest is asked for, and the digest is right."""
    seed = random.randrange(1 << 30)
    monkeypatch.setattr(retry, "_backoff", lambda _: 0.05)
    auth = log_in(tmp_path / "d", real.host, auth=encoded("ann", CANARY))
    with relay(real.host) as line:
        body = json.loads(auth.read_text())
        body["auths"][line.host] = body["auths"][real.host]
        auth.write_text(json.dumps(body))
        image = spec(f"{line.host}/team/web:1")
        with opened(tmp_path / "c", entry(line.host, real, auth)) as sources:
            pinned = sources.resolve(image)
            blob = pinned.layers[1].blob
            points = random.Random(seed).sample(range(1, blob.size), CUTS)
            for number, point in enumerate(points, 1):
                line.relayed, line.plan = 0, [point]
                path = sources.fetch(image, blob, nothing)
                assert digest_of(path.read_bytes()) == blob.digest, f"seed {seed}, byte {point}"
                assert line.cuts == number, f"seed {seed}"
                # resumed, not begun again: TLS adds its records and one more handshake
                assert line.relayed < blob.size * 1.1 + 32_000, f"seed {seed}, byte {point}"
                path.unlink()


def test_one_download_survives_many_cuts(
    tmp_path: Path, real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same connection trouble again and again, in one transfer."""
    monkeypatch.setattr(retry, "_backoff", lambda _: 0.05)
    seed = random.randrange(1 << 30)
    points = [random.Random(seed).randrange(20_000, 60_000) for _ in range(CUTS)]
    with relay(real.host) as line:
        auth = log_in(tmp_path / "d", line.host, auth=encoded("ann", CANARY))
        image = spec(f"{line.host}/team/web:1")
        with opened(tmp_path / "c", entry(line.host, real, auth)) as sources:
            blob = sources.resolve(image).layers[1].blob
            line.plan = points
            path = sources.fetch(image, blob, nothing)
            assert digest_of(path.read_bytes()) == blob.digest, f"seed {seed}"
            assert line.cuts >= 5, f"seed {seed}"


def test_a_wrong_password_is_permanent_and_asked_once(tmp_path: Path, real: Real) -> None:
    auth = log_in(tmp_path / "d", real.host, auth=encoded("ann", "wrong"))
    with opened(tmp_path / "c", entry(real.host, real, auth)) as sources:
        error = failure(lambda: sources.resolve(spec(f"{real.host}/team/web:1")))
    assert (error.code, error.retryable) == (Code.UNAUTHORIZED, False)
    assert f"docker login {real.host}" in error.resolution


def test_a_mirror_that_is_down_is_passed_by(tmp_path: Path, real: Real) -> None:
    auth = log_in(tmp_path / "d", real.host, auth=encoded("ann", CANARY))
    with running_registry(tmp_path / "gone") as gone:
        pass
    origin = RegistryConfig(
        real.host, mirrors=(f"{gone.host}/m",), ca_file=real.registry.ca_file, auth_file=auth
    )
    down = RegistryConfig(gone.host, plain_http=True)
    with opened(tmp_path / "c", origin, down) as sources:
        image = spec(f"{real.host}/team/web:1")
        pinned = sources.resolve(image)
        assert pinned.digest == real.digest
        assert sources.fetch(image, pinned.layers[0].blob, nothing).is_file()


# -- 64: certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["expired", "wrong-host", "unknown-ca", "self-signed"])
def test_bad_certificates_are_refused(tmp_path: Path, problem: str) -> None:
    """Refused, and never http instead: the registry hears no request at all."""
    name = "127.0.0.2" if problem == "wrong-host" else "127.0.0.1"
    with running_registry(
        tmp_path / "r", tls=True, names=name, expired=problem == "expired"
    ) as registry:
        ca_file = registry.ca_file
        if problem == "unknown-ca":
            ca_file = make_certificates(tmp_path / "other", "127.0.0.1")
        entries = (
            () if problem == "self-signed" else (RegistryConfig(registry.host, ca_file=ca_file),)
        )
        with opened(tmp_path / "c", *entries) as sources:
            error = failure(lambda: sources.resolve(spec(f"{registry.host}/x:1")))
        words = {"expired": "has expired", "wrong-host": "IP address mismatch"}
        assert "certificate verify failed" in error.brief
        assert words.get(problem, "certificate") in error.brief
        assert error.code is Code.REGISTRY_UNAVAILABLE
        log = (tmp_path / "r" / "log").read_text()
        assert "/v2/x/" not in log


def test_a_ca_and_plain_http_hold_for_their_host_alone(tmp_path: Path, real: Real) -> None:
    """Another port is another host: neither the CA nor http nor the login is taken along."""
    auth = log_in(tmp_path / "d", real.host, auth=encoded("ann", CANARY))
    with relay(real.host) as line, scripted() as plain:
        lab = RegistryConfig(plain.host, plain_http=True)
        with opened(tmp_path / "c", entry(real.host, real, auth), lab) as sources:
            assert sources.resolve(spec(f"{real.host}/team/web:1")).digest == real.digest
            error = failure(lambda: sources.resolve(spec(f"{line.host}/team/web:1")))
            assert "certificate verify failed" in error.brief
            assert failure(lambda: sources.resolve(spec(f"{plain.host}/x:1")))
        assert plain.seen
        count = len(plain.seen)
        with opened(tmp_path / "c", entry(real.host, real, auth)) as sources:
            assert failure(lambda: sources.resolve(spec(f"{plain.host}/x:1")))
        assert len(plain.seen) == count


def test_https_never_becomes_http(tmp_path: Path) -> None:
    ca_file = make_certificates(tmp_path / "tls", "127.0.0.1")
    with scripted() as plain, scripted(tls=tmp_path / "tls") as secure:
        target = f"http://{plain.host}/v2/x/manifests/1"
        secure.routes["/v2/x/manifests/1"] = lambda r: r.reply(307, b"", {"Location": target})
        lab = RegistryConfig(plain.host, plain_http=True)
        with opened(tmp_path / "c", RegistryConfig(secure.host, ca_file=ca_file), lab) as sources:
            error = failure(lambda: sources.resolve(spec(f"{secure.host}/x:1")))
        assert "redirects to where" in error.brief
        assert plain.seen == []


# -- 66: secrets -----------------------------------------------------------------------------------

FORMS = (
    CANARY,
    base64.b64encode(f"ann:{CANARY}".encode()).decode(),
    base64.b64encode(CANARY.encode()).decode().rstrip("="),
)


class Watcher(threading.Thread):
    """Reads argv and environment of a process and of all below it, again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.over = threading.Event()
        self.names: set[str] = set()
        self.seen: set[bytes] = set()

    def run(self) -> None:
        while not self.over.wait(0.005):
            for pid in family(self._pid):
                try:
                    argv = Path(f"/proc/{pid}/cmdline").read_bytes()
                    self.seen |= {argv, Path(f"/proc/{pid}/environ").read_bytes()}
                    self.names.add(Path(os.fsdecode(argv.split(b"\0")[0])).name)
                except OSError:
                    continue  # it has ended


def family(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                todo.extend(map(int, task.read_text().split()))
            except OSError:
                continue
    return found


def test_a_secret_is_nowhere_but_on_the_wire(tmp_path: Path, real: Real) -> None:
    """A login kept by a helper, a pull with everything logged, a failing image beside it."""
    program = Program(tmp_path / "host")
    helper = tmp_path / "bin" / "docker-credential-lab"
    helper.parent.mkdir()
    secret = tmp_path / "keyring"
    secret.write_text(json.dumps({"Username": "ann", "Secret": CANARY}))
    helper.write_text(f"#!/bin/sh\nread -r server\nsleep 0.3\ncat {secret}\n")
    helper.chmod(0o755)
    login = tmp_path / "host" / ".docker" / "config.json"
    login.parent.mkdir(parents=True)
    login.write_text(json.dumps({"auths": {real.host: {}}, "credsStore": "lab"}))
    missing = f'[[image]]\nname = "gone"\nref = "{real.host}/team/web:gone"\n'
    config = write_config(tmp_path, real, missing)
    words = ["--json", "--log-level", "debug", "--log-format", "json", "--progress", "json", "-v"]
    environment = program.environment | {"PATH": f"{helper.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        program.argv(config, *words),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watcher = Watcher(process.pid)
        watcher.start()
        out, err = process.communicate()
        watcher.over.set()
        watcher.join()
    images = {image["name"]: image for image in json.loads(out)["images"]}
    assert images["web"]["resolved_digest"] == real.digest
    assert images["gone"]["error"]["code"] == "not-found"
    assert {"mkfs.ext4", "debugfs", "e2fsck"} & watcher.names, "no child was seen"
    told = [out, err, *(raw.decode(errors="replace") for raw in watcher.seen)]
    for root in (program.state, program.cache, program.root / "tmp"):
        for path in root.rglob("*"):
            told.append(str(path))
            if path.is_file():
                told.append(path.read_bytes().decode("latin-1"))
    for form in FORMS:
        assert not any(form in text for text in told)
    status = program.run("status", "--json")
    assert not any(form in status.out for form in FORMS)


def test_the_watcher_would_notice(tmp_path: Path) -> None:
    """The test above proves something only if its own eyes work."""
    child = subprocess.Popen(["sh", "-c", f"sleep 30; : {CANARY}"], env={"X": CANARY})
    try:
        watcher = Watcher(child.pid)
        watcher.start()
        end = time.monotonic() + 60
        while sum(CANARY.encode() in raw for raw in watcher.seen) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        watcher.over.set()
        watcher.join()
        assert sum(CANARY.encode() in raw for raw in watcher.seen) >= 2
    finally:
        child.kill()
        child.wait()
