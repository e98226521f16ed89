import json
from typing import Any

import pytest

from reconciler.errors import Code, ImageError
from reconciler.model import Descriptor, Platform
from reconciler.oci import documents
from reconciler.oci.documents import (
    Index,
    Manifest,
    choose,
    parse_config,
    parse_document,
    parse_json,
    pin,
)
from reconciler.oci.limits import DEFAULTS

AMD64 = Platform("linux", "amd64")
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def descriptor(media_type: str, letter: str = "a", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(letter), "size": 10, **more}


def manifest(**changes: Any) -> dict[str, Any]:
    body = {
        "schemaVersion": 2,
        "mediaType": documents.OCI_MANIFEST,
        "config": descriptor(CONFIG, "c"),
        "layers": [descriptor(GZIP, "1"), descriptor(GZIP, "2")],
    }
    return {name: value for name, value in {**body, **changes}.items() if value is not None}


def config(**changes: Any) -> dict[str, Any]:
    rootfs = {"type": "layers", "diff_ids": [digest("d"), digest("e")]}
    return {"os": "linux", "architecture": "amd64", "rootfs": rootfs, **changes}


def child(
    os: str, architecture: str, letter: str, variant: str = "", **more: Any
) -> dict[str, Any]:
    platform = {"os": os, "architecture": architecture, "variant": variant}
    return descriptor(documents.OCI_MANIFEST, letter, platform=platform, **more)


def index(*children: dict[str, Any]) -> Index:
    raw = json.dumps({"schemaVersion": 2, "manifests": children}).encode()
    parsed = parse_document(raw, documents.OCI_INDEX, "x")
    assert isinstance(parsed, Index)
    return parsed


def refused(value: Any, media_type: str = "") -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(ImageError) as caught:
        parse_document(raw, media_type, "ghcr.io/x/web:1")
    assert "ghcr.io/x/web:1" in caught.value.brief or "digest" in caught.value.brief
    return caught.value.brief


def test_a_manifest_is_pinned_with_its_config() -> None:
    body = parse_document(json.dumps(manifest()).encode(), "", "x")
    assert isinstance(body, Manifest)
    runtime = {"Env": ["A=1"], "Cmd": ["sh", "\u00e9"]}
    parsed = parse_config(json.dumps(config(config=runtime)).encode(), "x")
    pinned = pin(Descriptor("", digest("a"), 5), body, parsed, AMD64)
    assert [layer.blob.digest for layer in pinned.layers] == [digest("1"), digest("2")]
    assert [layer.diff_id for layer in pinned.layers] == [digest("d"), digest("e")]
    assert pinned.digest == digest("a")
    assert pinned.platform == AMD64
    assert pinned.runtime == '{"Cmd":["sh","\\u00e9"],"Env":["A=1"]}'


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "JSON"),
        (b"<html>", "JSON"),
        (b"\xff", "JSON"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"x": [{"a": 1, "a": 2}]}', "twice"),
        (b"9" * 5000, "digits"),
        (b"NaN", "finite"),
        (b"1e999", "finite"),
        (b"[" * 100_000, "deep"),
        (b"[" * 65 + b"]" * 65, "deep"),
    ],
)
def test_json_that_two_readers_could_take_differently(raw: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        parse_json(raw, "it")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schemaVersion": 1}, "schema version 1"),
        ({"schemaVersion": "2"}, "schemaVersion"),
        ({"manifests": []}, "beside"),
        ({"config": None}, "no config"),
        ({"layers": None}, "no config or no layers"),
        ({"Layers": []}, "case"),
        ({"layers": [descriptor(GZIP, Digest=digest("a"))]}, "case"),
        ({"mediaType": documents.OCI_INDEX}, "is a manifest called"),
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json")}, "no container image"),
        ({"layers": [descriptor("application/x-tar")]}, "unknown type"),
        ({"layers": [descriptor(GZIP, urls=["https://x/y"])]}, "foreign"),
        ({"layers": [descriptor(FOREIGN)]}, "foreign"),
        ({"layers": [{**descriptor(GZIP), "size": -1}]}, "size"),
        ({"layers": [{**descriptor(GZIP), "size": 1.0}]}, "size"),
        ({"layers": [{**descriptor(GZIP), "size": "10"}]}, "size"),
        ({"layers": [{**descriptor(GZIP), "size": True}]}, "size"),
        ({"layers": [{**descriptor(GZIP), "size": 2**63}]}, "size"),
        ({"layers": [{**descriptor(GZIP), "digest": "sha256:../../x"}]}, "digest"),
        ({"layers": [descriptor(GZIP), {**descriptor(GZIP), "size": 11}]}, "two sizes"),
        ({"layers": {}}, "layers"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_refused(changes: dict[str, Any], why: str) -> None:
    assert why in refused(manifest(**changes))


def test_bodies_that_are_no_documents() -> None:
    assert "invalid" in refused([])
    assert "no config" in refused({"schemaVersion": 2})
    assert "disagree" in refused(manifest(), documents.DOCKER_MANIFEST)
    assert "called" in refused(manifest(mediaType=None), documents.OCI_INDEX)
    assert "called" in refused(manifest(mediaType=None), "text/html")


@pytest.mark.parametrize(
    "carrier", ["", "application/json", f"{documents.OCI_MANIFEST}; charset=utf-8"]
)
def test_carriers_that_say_nothing_else(carrier: str) -> None:
    assert isinstance(parse_document(json.dumps(manifest()).encode(), carrier, "x"), Manifest)


def test_too_many_layers_name_the_limit() -> None:
    layers = [descriptor(GZIP)] * (DEFAULTS.layers + 1)
    with pytest.raises(ImageError, match=str(DEFAULTS.layers)) as caught:
        parse_document(json.dumps(manifest(layers=layers)).encode(), "", "x")
    assert caught.value.code is Code.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("wanted", "letter"),
    [
        (AMD64, "2"),
        (Platform("linux", "amd64", "v3"), "1"),
        (Platform("linux", "arm64"), "3"),
        (Platform("linux", "arm64", "v8"), "3"),
        (Platform("linux", "arm"), "5"),
        (Platform("linux", "arm", "v6"), "4"),
    ],
)
def test_the_platform_is_chosen_out_of_an_index(wanted: Platform, letter: str) -> None:
    children = index(
        child("linux", "amd64", "1", "v3"),
        child("linux", "amd64", "2"),
        child("linux", "arm64", "3", "v8"),
        child("linux", "arm", "4", "v6"),
        child("linux", "arm", "5", "v7"),
        child("unknown", "unknown", "6"),
    )
    assert choose(children.entries, wanted, "x").descriptor.digest == digest(letter)


def test_a_missing_platform_lists_those_there_are() -> None:
    notes = {"vnd.docker.reference.type": "attestation-manifest"}
    children = index(
        child("linux", "arm64", "3", "v8"),
        child("linux", "s390x", "4"),
        child("linux", "amd64", "5", annotations=notes),
    )
    with pytest.raises(ImageError, match="there is: linux/arm64/v8, linux/s390x"):
        choose(children.entries, AMD64, "x")


def test_a_lone_child_without_a_platform_is_taken() -> None:
    lone = descriptor(documents.OCI_MANIFEST, "7")
    assert choose(index(lone).entries, AMD64, "x").descriptor.digest == digest("7")
    with pytest.raises(ImageError, match="there is: none"):
        choose(index(lone, lone).entries, AMD64, "x")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "arm64"}, "linux/amd64; there is: linux/arm64"),
        ({"os": "windows"}, "there is: windows/amd64"),
        ({"rootfs": {"type": "layers", "diff_ids": [digest("d")]}}, "2 layers but 1 diff_ids"),
    ],
)
def test_a_config_that_contradicts(changes: dict[str, Any], why: str) -> None:
    body = parse_document(json.dumps(manifest()).encode(), "", "x")
    assert isinstance(body, Manifest)
    with pytest.raises(ImageError, match=why):
        pin(
            Descriptor("", digest("a"), 1),
            body,
            parse_config(json.dumps(config(**changes)).encode(), "x"),
            AMD64,
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": {"type": "squashfs", "diff_ids": []}},
        {"rootfs": {"diff_ids": ["md5:x"]}},
        {"rootfs": {"diff_ids": [1]}},
        {"config": []},
        {"os": None},
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ImageError):
        parse_config(json.dumps(config(**changes)).encode(), "x")


def test_labels_may_differ_in_case_only() -> None:
    labels = {"Labels": {"a": "1", "A": "2"}}
    parsed = parse_config(json.dumps(config(config=labels)).encode(), "x")
    assert json.loads(parsed.runtime) == labels
