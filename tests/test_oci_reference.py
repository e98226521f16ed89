import pytest

from reconciler.errors import Code, ImageError
from reconciler.oci.reference import check_digest, default_name, is_host, parse_reference
from reconciler.text import printable

SHA256 = "sha256:" + "a" * 64
SHA512 = "sha512:" + "b" * 128


@pytest.mark.parametrize(
    ("text", "canonical", "name"),
    [
        ("debian", "docker.io/library/debian:latest", "debian-latest"),
        ("debian:bookworm", "docker.io/library/debian:bookworm", "debian-bookworm"),
        (
            "docker.io/library/debian:bookworm",
            "docker.io/library/debian:bookworm",
            "debian-bookworm",
        ),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian-latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1", "app-1"),
        ("docker://ghcr.io/x/web:1.2", "ghcr.io/x/web:1.2", "web-1.2"),
        ("GHCR.io/x/web:V1", "ghcr.io/x/web:V1", "web-v1"),
        ("localhost/x", "localhost/x:latest", "x-latest"),
        ("team/app", "docker.io/team/app:latest", "app-latest"),
        ("lab:5000/a/b__c:1_2", "lab:5000/a/b__c:1_2", "b__c-1_2"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1", "x-1"),
        (f"debian@{SHA256}", f"docker.io/library/debian@{SHA256}", "debian"),
        (f"debian:12@{SHA512}", f"docker.io/library/debian:12@{SHA512}", "debian-12"),
        ("oci:/srv/hello", "oci:/srv/hello", "hello"),
        ("oci:/srv/hello/:1.0", "oci:/srv/hello/:1.0", "hello-1.0"),
        ("oci:/srv/a@b/c:docker.io/x:y", "oci:/srv/a@b/c:docker.io/x:y", "c-docker.io-x-y"),
        (f"oci:/srv/hello@{SHA256}", f"oci:/srv/hello@{SHA256}", "hello"),
        ("oci-archive:/srv/web.tar.gz", "oci-archive:/srv/web.tar.gz", "web"),
        ("docker-archive:web.tar:x", "docker-archive:web.tar:x", "web-x"),
    ],
)
def test_references_and_the_names_they_give(text: str, canonical: str, name: str) -> None:
    ref = parse_reference(text)
    assert (str(ref), default_name(ref), ref.text) == (canonical, name, text)


def test_a_digest_stands_beside_its_tag() -> None:
    ref = parse_reference(f"ghcr.io/x/web:1@{SHA256}")
    assert (ref.scheme, ref.host, ref.repository) == ("registry", "ghcr.io", "x/web")
    assert (ref.tag, ref.digest, ref.path) == ("1", SHA256, "")


@pytest.mark.parametrize(
    "text",
    [
        "", " debian", "debian\n", "de bian", "Debian", "a/../b", "../x", "x//y", "/x", ":x", "x:",
        "https://ghcr.io/x", "h:99999/x", "h:0/x", "-h.io/x", "h.io/x:-1", "x" * 256,
        "x:" + "t" * 129, "debian@sha256:zz", "debian@sha256:" + "A" * 64, f"debian@{SHA256}0",
        "debian@md5:" + "a" * 32, "oci:", "oci::tag", "oci:/x:", "a" * 5000, "é/x", "h.io/x?y",
        "h.io/x#y", "u@h.io/x", "[::g]/x",
    ],
)  # fmt: skip
def test_a_bad_reference_is_quoted_in_one_safe_line(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert caught.value.code is Code.REFERENCE_INVALID
    assert not caught.value.retryable
    assert caught.value.brief.isprintable()
    assert caught.value.brief.startswith(f"reference {printable(text)!r} is invalid")


@pytest.mark.parametrize("text", [f"x/{'n' * 70}:1", "oci:/", "oci:/srv/..."])
def test_a_name_that_cannot_be_derived_must_be_set(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        default_name(parse_reference(text))
    assert "`name`" in caught.value.resolution


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_digests(text: str) -> None:
    assert check_digest(text) == text


@pytest.mark.parametrize(
    "text", ["", "sha256:", SHA256[:-1], SHA256 + "\n", "sha256:../../x", "SHA256:" + "a" * 64]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(ImageError):
        check_digest(text)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("ghcr.io", True), ("127.0.0.1:5000", True), ("[::1]", True), ("[::1]:80", True),
        ("lab", True),
        ("lab:65536", False), ("lab:", False), ("a..b", False), ("a/b", False), ("", False),
    ],
)  # fmt: skip
def test_hosts(text: str, fine: bool) -> None:
    assert is_host(text) is fine
