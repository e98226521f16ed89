import json

import pytest

from reconciler.errors import RemoteError
from reconciler.oci.challenge import (
    TOKEN_LIMIT,
    is_private,
    may_get_credentials,
    parse_challenges,
    parse_token,
)

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull"'


@pytest.mark.parametrize(
    ("headers", "schemes"),
    [
        ([HUB], ["bearer"]),
        (['Basic realm="x"'], ["basic"]),
        (['Bearer realm="https://a/t, b", Basic realm=x'], ["bearer", "basic"]),
        (["Negotiate", 'Basic realm="a\\"b"'], ["negotiate", "basic"]),
        ([""], []),
        (['="x"'], []),
        (['Bearer realm="unclosed'], ["bearer"]),
        ([", ,, Basic"], ["basic"]),
    ],
)
def test_challenges(headers: list[str], schemes: list[str]) -> None:
    assert [challenge.scheme for challenge in parse_challenges(headers)] == schemes


def test_the_parameters_of_a_challenge() -> None:
    [challenge] = parse_challenges([HUB])
    assert challenge.params == {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "a:b:pull",
    }
    [challenge] = parse_challenges(['basic Realm = "a\\"b"'])
    assert challenge.params == {"realm": 'a"b'}


def test_a_long_header_takes_no_long_time() -> None:
    assert len(parse_challenges(['Basic a="' + "\\" * 10_000_000, "x " * 5_000_000])) < 10_000


@pytest.mark.parametrize(
    ("realm", "registry", "expected"),
    [
        ("https://auth.docker.io/token", "https://registry-1.docker.io", True),
        ("https://ghcr.io/token", "https://ghcr.io", True),
        ("https://gitlab.com/jwt/auth", "https://registry.gitlab.com", True),
        ("https://evil.example/token", "https://ghcr.io", False),
        ("https://evil.io/token", "https://ghcr.io", False),
        ("https://tokens.lab/t", "https://ghcr.io", True),
        ("http://lab:5001/t", "http://lab:5000", True),
        ("http://plain.lab/t", "https://ghcr.io", True),
        ("https://127.0.0.1:99/t", "https://127.0.0.1:5000", True),
    ],
)
def test_where_credentials_may_go(realm: str, registry: str, expected: bool) -> None:
    trusted, plain = frozenset({"tokens.lab", "plain.lab"}), frozenset({"plain.lab"})
    assert may_get_credentials(realm, registry, trusted, plain) is expected


@pytest.mark.parametrize(
    "realm",
    [
        "",
        "http://ghcr.io/token",
        "http://other/token",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/t",
        "https://[::1]/t",
        "https://[fe80::1/t",
        "https://0x7f.1/t",
        "https://2130706433/t",
        "https://localhost/t",
        "https://ghcr.io@evil.io/t",
        "ftp://ghcr.io/t",
        "file:///etc/passwd",
        "https://ghcr.io:99999/t",
    ],
)
def test_realms_that_are_not_asked_at_all(realm: str) -> None:
    with pytest.raises(RemoteError) as caught:
        may_get_credentials(realm, "https://ghcr.io", frozenset(), frozenset())
    assert not caught.value.retryable


def test_private_addresses() -> None:
    private = ["127.0.0.1", "10.1.2.3", "::1", "fe80::1", "1", "127.1", "0x7f000001", "x.localhost"]
    assert [host for host in private if not is_private(host)] == []
    assert [host for host in ("ghcr.io", "8.8.8.8", "a1.b2", "lab") if is_private(host)] == []


@pytest.mark.parametrize(
    ("answer", "text", "lifetime"),
    [
        ({"token": "abc"}, "abc", 60),
        ({"access_token": "abc", "expires_in": 300}, "abc", 300),
        ({"token": "abc", "expires_in": 1}, "abc", 60),
        ({"token": "abc", "expires_in": "soon"}, "abc", 60),
        ({"token": "abc", "expires_in": 10**15}, "abc", 24 * 3600),
    ],
)
def test_tokens(answer: dict[str, object], text: str, lifetime: int) -> None:
    token = parse_token(json.dumps(answer).encode(), "token")
    assert (token.text, token.lifetime) == (text, lifetime)
    assert "abc" not in repr(token)


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": ""}', b'{"token": "a\\r\\nX: y"}',
     b'{"token": "%s"}' % (b"x" * (TOKEN_LIMIT + 1)), b'{"token": "\xc3\xa9"}'],
)  # fmt: skip
def test_answers_without_a_usable_token(answer: bytes) -> None:
    with pytest.raises(RemoteError, match="token"):
        parse_token(answer, "token")
