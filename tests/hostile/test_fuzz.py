"""Fuzzing of the parsers that read what a stranger wrote: a value or a typed error, nothing else.

Tar headers have a fuzz of their own, beside their tests. Inputs are random bytes, random JSON, and
well-formed documents with one place changed.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.errors import BangerError
from reconciler.oci.challenge import parse_challenges, parse_token
from reconciler.oci.documents import parse_config, parse_document
from reconciler.oci.reference import check_digest, default_name, parse_reference

DIGEST = "sha256:" + "ab" * 32
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": DIGEST,
        "size": 2,
    },
    "layers": [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 1024}
    ],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": DIGEST,
            "size": 7,
            "platform": {"os": "linux", "architecture": "amd64"},
        }
    ],
}
CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "amd64",
    "config": {"Env": ["A=b"], "Entrypoint": ["/x"]},
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=30)
    | st.just(DIGEST)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
MANY = settings(max_examples=300, deadline=None)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, as the keys that lead there."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        found += [(*path, key), *places(child, (*path, key))]
    return found


@st.composite
def one_changed(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """The document with a random value at a random place of it."""
    changed = copy.deepcopy(document)
    *way, last = draw(st.sampled_from(places(document)))
    target = changed
    for key in way:
        target = target[key]
    target[last] = draw(JSON)
    return json.dumps(changed).encode()


def only_typed_errors(parse: Any, *arguments: Any) -> None:
    try:
        parse(*arguments)
    except BangerError as error:
        assert error.brief.isprintable()
        assert len(error.brief) < 2000


@MANY
@given(st.binary(max_size=400) | JSON.map(lambda v: json.dumps(v).encode()))
def test_documents_of_any_kind(raw: bytes) -> None:
    only_typed_errors(parse_document, raw, "", "a manifest")
    only_typed_errors(parse_config, raw, "a config")
    only_typed_errors(parse_token, raw, "a token")


@MANY
@given(one_changed(MANIFEST) | one_changed(INDEX))
def test_manifests_and_indexes_with_one_place_changed(raw: bytes) -> None:
    only_typed_errors(parse_document, raw, "", "a manifest")


@MANY
@given(one_changed(CONFIG))
def test_configs_with_one_place_changed(raw: bytes) -> None:
    only_typed_errors(parse_config, raw, "a config")


CHALLENGE = st.lists(
    st.sampled_from(
        [
            "Bearer",
            "Basic",
            " ",
            ",",
            "=",
            '"',
            "\\",
            "realm",
            "service",
            "scope",
            "\t",
            "a",
            "\x7f",
        ]
    )
    | st.text(max_size=5),
    max_size=30,
).map("".join)


@MANY
@given(st.lists(CHALLENGE, max_size=4))
def test_challenges(headers: list[str]) -> None:
    only_typed_errors(parse_challenges, headers)


REFERENCE = st.lists(
    st.sampled_from(
        [
            "docker.io",
            "/",
            ":",
            "@",
            "sha256:",
            "ab" * 32,
            "oci:",
            "oci-archive:",
            "..",
            "a",
            "A",
            "[",
        ]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)


@MANY
@given(REFERENCE)
def test_references(text: str) -> None:
    only_typed_errors(lambda: default_name(parse_reference(text)))
    only_typed_errors(check_digest, text)
