"""Debian's docker-registry on loopback: plain, with a password, with TLS.

    with running_registry(tmp_path, username="ann", password="s3cret", tls=True) as registry: ...

Modules use it as a fixture by importing `registry` (session-scoped, plain, anonymous).
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.model import RegistryConfig

_START_SECONDS = 20
_TRIES = 5


@dataclass(frozen=True)
class RunningRegistry:
    """A registry that answers. `root` holds its storage, and its CA when it speaks TLS."""

    host: str
    root: Path
    username: str = ""
    password: str = ""
    ca_file: Path | None = None

    @property
    def config(self) -> RegistryConfig:
        """How to reach it, without credentials."""
        return RegistryConfig(self.host, ca_file=self.ca_file, plain_http=self.ca_file is None)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A plain registry for all, one for each test process; use a repository name of your own."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@contextmanager
def running_registry(
    root: Path,
    *,
    username: str = "",
    password: str = "",
    tls: bool = False,
    names: str = "127.0.0.1",
    expired: bool = False,
) -> Iterator[RunningRegistry]:
    """Start one, wait until it answers, stop it.

    names, expired: the address its certificate is for, and whether its time is over.
    """
    root.mkdir(parents=True, exist_ok=True)
    ca_file = make_certificates(root, names, expired=expired) if tls else None
    for _ in range(_TRIES):
        host = f"127.0.0.1:{_free_port()}"
        settings = root / "config.yml"
        settings.write_text(_settings(root, host, username, password, tls=tls))
        with (root / "log").open("ab") as log:
            server = subprocess.Popen(
                ["docker-registry", "serve", str(settings)], stdout=log, stderr=log
            )
        try:
            if _answers(server, host, tls=tls):
                yield RunningRegistry(host, root, username, password, ca_file)
                return
        finally:
            server.kill()
            server.wait()
    raise RuntimeError(f"docker-registry does not start: {(root / 'log').read_text()[-2000:]}")


def make_certificates(root: Path, name: str, *, expired: bool = False) -> Path:
    """A CA (`ca.pem`, returned) and a server's `cert.pem` and `key.pem` for one IP address."""
    root.mkdir(parents=True, exist_ok=True)
    ca_key, ca = root / "ca-key.pem", root / "ca.pem"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        "req",
        "-x509",
        *new_key,
        "-keyout",
        ca_key,
        "-out",
        ca,
        "-subj",
        "/CN=test CA",
        "-days",
        "2",
    )
    request = root / "request.pem"
    _openssl("req", *new_key, "-keyout", root / "key.pem", "-out", request, "-subj", "/CN=registry")
    (root / "names").write_text(f"subjectAltName=IP:{name}\n")
    _sign(root, request, ca, ca_key, "20200102000000Z" if expired else "20491231000000Z")
    return ca


def _sign(root: Path, request: Path, ca: Path, ca_key: Path, end: str) -> None:
    """Only `openssl ca` makes certificates of the past."""
    (root / "index.txt").write_text("")
    settings = root / "ca.cnf"
    settings.write_text(
        f"[ca]\ndefault_ca = own\n[own]\ndatabase = {root}/index.txt\nnew_certs_dir = {root}\n"
        "rand_serial = yes\ndefault_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n"
    )
    signed = ["-cert", ca, "-keyfile", ca_key, "-extfile", root / "names", "-in", request]
    dates = ["-startdate", "20200101000000Z", "-enddate", end]
    where = ["-batch", "-notext", "-config", settings, "-out", root / "cert.pem"]
    _openssl("ca", *where, *dates, *signed)


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def _settings(root: Path, host: str, username: str, password: str, *, tls: bool) -> str:
    lines = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {root / 'storage'}}}}}",
        "http:",
        f"  addr: {host}",
    ]
    if tls:
        lines.append(f"  tls: {{certificate: {root / 'cert.pem'}, key: {root / 'key.pem'}}}")
    if username:
        made = subprocess.run(
            ["htpasswd", "-Bbn", username, password], check=True, capture_output=True
        )
        (root / "htpasswd").write_bytes(made.stdout)
        lines += ["auth:", f"  htpasswd: {{realm: test, path: {root / 'htpasswd'}}}"]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    """A port that was free a moment ago: the registry cannot be told to choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(server: subprocess.Popen[bytes], host: str, *, tls: bool) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            opener.open(f"{'https' if tls else 'http'}://{host}/v2/", timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False
