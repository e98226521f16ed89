import base64
import json
from pathlib import Path

import pytest

from reconciler.errors import Code, HostError
from reconciler.model import RegistryConfig
from reconciler.oci.auth import (
    Credential,
    Keyring,
    auth_files,
    parse_auth_file,
    parse_helper_answer,
)

CANARY = "c4nary-s3cret"


def encoded(user: str, password: str = CANARY) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, **content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("host", "repository", "user"),
    [
        ("ghcr.io", "team/web", "web"),
        ("ghcr.io", "team/web/x", "web"),
        ("ghcr.io", "team/webs", "team"),
        ("ghcr.io", "other", "host"),
        ("docker.io", "library/debian", "hub"),
        ("lab:5000", "x", "port"),
        ("lab", "x", None),
        ("io", "x", None),
    ],
)
def test_the_longest_prefix_wins(host: str, repository: str, user: str | None) -> None:
    auths = {
        "https://index.docker.io/v1/": encoded("hub"),
        "ghcr.io": encoded("host"),
        "ghcr.io/team": encoded("team"),
        "ghcr.io/team/web": encoded("web"),
        "http://LAB:5000/v2/": encoded("port"),
        "empty.io": {},
    }
    file = parse_auth_file(json.dumps({"auths": auths}).encode(), "f")
    found = file.match(host, repository)
    assert (found.username if found else None) == user


def test_passwords_hold_colons_and_tokens_stand_alone() -> None:
    auths = {"a.io": encoded("ann", "x:y:z"), "b.io": {"identitytoken": "tok"}}
    file = parse_auth_file(json.dumps({"auths": auths}).encode(), "f")
    assert file.match("a.io", "x") == Credential("ann", "x:y:z")
    assert file.match("b.io", "x") == Credential("", "", "tok")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b'{"auths": [1]}', b'{"auths": {"h": []}}', b'{"auths": {"h": {"auth": 1}}}',
        b'{"auths": {"h": {"auth": "%s*"}}}' % CANARY.encode(), b'{"credsStore": "../x"}',
        b'{"credHelpers": {"h": "a b"}}', b'{"auths": {"h": {"identitytoken": 1}}}',
        b'{"auths": {"%s' % CANARY.encode(),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_not_quoted(content: bytes) -> None:
    with pytest.raises(HostError, match="auth file /x") as caught:
        parse_auth_file(content, "auth file /x")
    assert not caught.value.retryable
    assert CANARY not in caught.value.brief + caught.value.resolution


def test_a_credential_does_not_show_its_secret() -> None:
    assert CANARY not in repr(Credential("ann", CANARY, CANARY))


@pytest.mark.parametrize(
    ("environ", "files"),
    [
        ({"REGISTRY_AUTH_FILE": "/a", "HOME": "/h", "DOCKER_CONFIG": "/d"}, ["/a"]),
        ({"HOME": "/h"}, ["/h/.config/containers/auth.json", "/h/.docker/config.json"]),
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c"},
            ["/r/containers/auth.json", "/c/containers/auth.json", "/h/.docker/config.json"],
        ),
        (
            {"HOME": "/h", "DOCKER_CONFIG": "/d"},
            ["/d/config.json", "/h/.config/containers/auth.json"],
        ),
        ({}, []),
    ],
)
def test_where_logins_are_looked_for(environ: dict[str, str], files: list[str]) -> None:
    assert [str(path) for path in auth_files(environ)] == files


def test_the_first_file_that_knows_the_host_counts(tmp_path: Path) -> None:
    write(tmp_path / "r/containers/auth.json", auths={"a.io": encoded("podman")})
    write(
        tmp_path / "d/config.json", auths={"a.io/x": encoded("docker"), "b.io": encoded("docker")}
    )
    keyring = Keyring(
        (), {"XDG_RUNTIME_DIR": str(tmp_path / "r"), "DOCKER_CONFIG": str(tmp_path / "d")}
    )
    users = [
        getattr(keyring.find(host, "y"), "username", None) for host in ("a.io", "b.io", "c.io")
    ]
    assert users == ["podman", "docker", None]


def test_a_registry_entry_comes_before_the_login_files(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("ann\n")
    (tmp_path / "pass").write_text(f"{CANARY}\n")
    own = write(tmp_path / "own.json", auths={"b.io": encoded("own")})
    write(tmp_path / "d/config.json", auths={"a.io": encoded("d"), "b.io": encoded("d")})
    entries = (
        RegistryConfig("a.io", username_file=tmp_path / "user", password_file=tmp_path / "pass"),
        RegistryConfig("b.io", auth_file=own),
        RegistryConfig("c.io", auth_file=tmp_path / "missing"),
    )
    keyring = Keyring(entries, {"DOCKER_CONFIG": str(tmp_path / "d")})
    assert keyring.find("a.io", "x") == Credential("ann", CANARY)
    assert getattr(keyring.find("b.io", "x"), "username", None) == "own"
    with pytest.raises(HostError, match="missing cannot be read"):
        keyring.find("c.io", "x")


def test_helpers_are_asked_or_named(tmp_path: Path) -> None:
    helpers = {"a.io": "vault"}
    auths = {"b.io": {}, "c.io": encoded("plain")}
    write(tmp_path / "config.json", auths=auths, credHelpers=helpers, credsStore="desktop")
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    asked = []

    def ask(program: str, server: str) -> str:
        asked.append((program, server))
        return json.dumps({"ServerURL": server, "Username": "h", "Secret": CANARY})

    keyring = Keyring((), environ, ask)
    for host in ("a.io", "b.io", "docker.io"):
        assert keyring.find(host, "x") == Credential("h", CANARY)
    assert getattr(keyring.find("c.io", "x"), "username", None) == "plain"
    assert asked == [
        ("docker-credential-vault", "a.io"),
        ("docker-credential-desktop", "b.io"),
        ("docker-credential-desktop", "https://index.docker.io/v1/"),
    ]
    mute = Keyring((), environ)
    with pytest.raises(HostError, match="docker-credential-desktop") as caught:
        mute.find("b.io", "x")
    assert caught.value.code is Code.UNAUTHORIZED
    assert mute.find("never-logged-in.io", "x") is None


@pytest.mark.parametrize(
    "answer", ["", "credentials not found", "[]", '{"Username": 1, "Secret": 2}']
)
def test_a_helper_that_has_nothing(answer: str) -> None:
    assert parse_helper_answer(answer) is None


def test_a_helper_may_give_a_token() -> None:
    answer = json.dumps({"Username": "<token>", "Secret": CANARY})
    assert parse_helper_answer(answer) == Credential("", "", CANARY)
