"""Tar headers mean what their formats say, and nothing wrong passes for an end of the archive."""

from __future__ import annotations

import base64
import io
import itertools
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.tarball import (
    GNU,
    entry,
    gnu_long,
    header,
    number,
    padded,
    pax_header,
    record,
    tar,
)

from reconciler.errors import Code, ImageError
from reconciler.oci import pax
from reconciler.oci.entries import Header, Kind
from reconciler.oci.limits import Limits
from reconciler.oci.tar import read_tar

LIMITS = Limits()


def chunked(raw: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(raw), size):
        yield raw[start : start + size]


def read(raw: bytes, chunk: int = 1 << 20, limits: Limits = LIMITS) -> list[tuple[Header, bytes]]:
    """All entries with their content; holes filled."""
    found = []
    for head, payload in read_tar(chunked(raw, chunk), limits, itertools.count(1)):
        pieces = [bytes(p) if isinstance(p, int) else bytes(memoryview(p)) for p in payload]
        found.append((head, b"".join(pieces)))
    return found


def only(raw: bytes) -> Header:
    [(head, _)] = read(raw)
    return head


# -- what a header says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("file", Kind.REGULAR),
        ("\0", Kind.REGULAR),
        ("7", Kind.REGULAR),
        ("hardlink", Kind.HARDLINK),
        ("symlink", Kind.SYMLINK),
        ("char", Kind.CHARACTER),
        ("block", Kind.BLOCK),
        ("dir", Kind.DIRECTORY),
        ("fifo", Kind.FIFO),
    ],
)
def test_type_flags(flag: str, kind: Kind) -> None:
    assert only(tar(entry("x", flag, target="t"))).kind is kind


@pytest.mark.parametrize("flag", ["8", "A", "D", "M", "N", "V", "X", "z", "\xff"])
def test_an_unknown_type_flag_is_rejected(flag: str) -> None:
    with pytest.raises(ImageError, match=r"etc/x: unknown tar entry type"):
        read(tar(entry("etc/x", flag)))


def test_an_old_style_directory_ends_in_a_slash() -> None:
    assert only(tar(header("old/", b"\0", magic=bytes(8)))).kind is Kind.DIRECTORY
    assert only(tar(header("old/", b"0"))).kind is Kind.REGULAR


def test_fields_of_an_ustar_header() -> None:
    raw = entry("dev/x", "block", mode=0o107755, uid=1000, gid=65536, mtime=1 << 31, rdev=(8, 17))
    head = only(tar(raw))
    assert head == Header(
        b"dev/x", Kind.BLOCK, 0o7755, 1000, 65536, (1 << 31) * 10**9, 0, b"", (8, 17)
    )


@pytest.mark.parametrize("first", range(1, 256))
def test_a_prefix_may_start_with_any_byte(first: int) -> None:
    prefix = bytes([first]) + b"re"
    if first == ord("/"):
        prefix = b"a/"
    assert only(tar(header("name", prefix=prefix))).path == prefix + b"/name"


@pytest.mark.parametrize("flag", b"0123456")
def test_the_size_of_any_entry_is_a_number(flag: int) -> None:
    """Also of those whose size says nothing."""
    wrong = header("x", bytes([flag]), target="y", fields={124: b"garbage!"})
    with pytest.raises(ImageError, match="x: not a number in a tar header"):
        only(tar(wrong))


def test_the_prefix_of_ustar_and_the_shorter_one_of_star() -> None:
    assert only(tar(header("name", prefix=b"usr/share"))).path == b"usr/share/name"
    star = header("name", prefix=b"usr/share".ljust(131, b"\0") + b"7" * 12, fields={508: b"tar\0"})
    assert only(tar(star)).path == b"usr/share/name"
    gnu = header("name", magic=GNU, prefix=b"14400000000\0")
    assert only(tar(gnu)).path == b"name", "GNU keeps a time there"


@pytest.mark.parametrize("value", [0, 65535, 65536, 2_097_152, 4_294_967_294])
@pytest.mark.parametrize("way", ["field", "pax"])
def test_owners_are_exact(way: str, value: int) -> None:
    raw = (
        entry("x", uid=value, gid=value)
        if way == "field"
        else entry("x", pax={"uid": str(value), "gid": str(value)})
    )
    head = only(tar(raw))
    assert (head.uid, head.gid) == (value, value)


@pytest.mark.parametrize(
    "raw",
    [
        entry("x", uid=-1),
        entry("x", gid=4_294_967_295),
        entry("x", uid=1 << 32),
        entry("x", fields={108: b"root\0\0\0\0"}),
        entry("x", fields={108: b"0000789\0"}),
        entry("x", fields={108: b"1_00\0\0\0\0"}),
        entry("x", fields={108: b"+100\0\0\0\0"}),
        entry("x", fields={116: b"-000001\0"}),
        *(
            entry("x", pax={key: value})
            for key in ("uid", "gid")
            for value in ("-1", "4294967295", "4294967296", "root", "1e3", " 1", "1_0", "9" * 5000)
        ),
    ],
)
def test_owners_that_linux_does_not_have_are_rejected(raw: bytes) -> None:
    with pytest.raises(ImageError, match="x: "):
        read(tar(raw))


def test_names_of_owners_are_not_looked_up() -> None:
    head = only(tar(entry("x", uid=7, fields={265: b"root\0", 297: b"root\0"})))
    assert (head.uid, head.gid) == (7, 0)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.123456789987", 1_700_000_000_123_456_789),
        ("-1.25", -1_250_000_000),
        ("-0.000000001", -1),
        ("5.", 5_000_000_000),
        ("99999999999", 99_999_999_999_000_000_000),
    ],
)
def test_times_in_pax(text: str, nanoseconds: int) -> None:
    assert only(tar(entry("x", pax={"mtime": text}))).mtime_ns == nanoseconds


def test_times_in_base_256_may_be_negative() -> None:
    assert only(tar(entry("x", mtime=-86400))).mtime_ns == -86400 * 10**9
    assert only(tar(entry("x", mtime=1 << 40))).mtime_ns == (1 << 40) * 10**9


@pytest.mark.parametrize("text", ["NaN", "inf", "1e9", "--1", "1.2.3", ".5", "0x10", "9" * 31])
def test_times_that_are_none_are_rejected(text: str) -> None:
    with pytest.raises(ImageError, match="mtime is not a time"):
        read(tar(entry("x", pax={"mtime": text})))


def test_an_empty_record_takes_back_a_value() -> None:
    assert only(tar(entry("x", uid=5, mtime=9, pax={"uid": "", "mtime": ""}))).uid == 5


# -- long names, extended headers -----------------------------------------------------------------


def test_gnu_long_names_and_links() -> None:
    name, target = "d/" * 200 + "x", "t" * 300
    raw = gnu_long(name) + gnu_long(target, b"K") + header("short", b"2", target="s", magic=GNU)
    head = only(tar(raw))
    assert (head.path, head.target) == (name.encode(), target.encode())


def test_pax_names_hold_any_bytes_but_nul() -> None:
    name, target = b"caf\xe9\n/" + b"\xff" * 200, b"\x80\r\t"
    head = only(tar(entry("x", "symlink", pax={"path": name, "linkpath": target})))
    assert (head.path, head.target) == (name, target)
    for key in ("path", "linkpath"):
        with pytest.raises(ImageError, match="NUL"):
            read(tar(entry("x", "symlink", pax={key: b"a\0b"})))


def test_an_extended_header_is_for_the_next_entry_only() -> None:
    raw = tar(entry("a", pax={"uid": "7"}), entry("b"), gnu_long("long"), entry("c"), entry("d"))
    assert [(h.path, h.uid) for h, _ in read(raw)] == [
        (b"a", 7),
        (b"b", 0),
        (b"long", 0),
        (b"d", 0),
    ]


def test_a_global_header_is_for_all_that_follow_and_yields() -> None:
    globals_ = pax_header({"uid": "7", "comment": "c"}, b"g")
    raw = tar(entry("a"), globals_, entry("b"), entry("c", pax={"uid": "8"}), entry("d"))
    assert [h.uid for h, _ in read(raw)] == [0, 7, 8, 7]


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=b\n",
        b"99 a=b\n",
        b"6 a=b\n\0\0",
        b"x a=b\n",
        b"-6 a=b\n",
        b"6 a=bc",
        b"7 abcd\n",
        b"5 =b\n",
        b"0 a=b\n",
        b"\n",
        b"6_0 a=" + b"b" * 60,
        record("a", "b")[:-1],
        record(b"a\0", "b"),
    ],
)
def test_malformed_extended_headers_are_rejected(records: bytes) -> None:
    with pytest.raises(ImageError, match="extended header"):
        read(tar(pax_header(records), entry("x")))


def test_extended_attributes_in_both_spellings() -> None:
    value = b"\1\0\0\2\0 \0\0=\n" + bytes(10)
    bare = base64.b64encode(value).rstrip(b"=")
    head = only(
        tar(
            entry(
                "x",
                pax={
                    "SCHILY.xattr.security.capability": value,
                    "LIBARCHIVE.xattr.security.capability": b"AAAA",
                    "LIBARCHIVE.xattr.user.caf%C3%A9%3D": bare,
                    "SCHILY.xattr.user.empty": b"",
                    "RHT.security.selinux": b"system_u:object_r:bin_t:s0\0",
                    "SCHILY.acl.access": b"user::rwx",
                    "atime": "5",
                },
            )
        )
    )
    assert dict(head.xattrs) == {
        b"security.capability": value,
        "user.café=".encode(): value,
        b"user.empty": b"",
        b"security.selinux": b"system_u:object_r:bin_t:s0\0",
        b"SCHILY.acl.access": b"user::rwx",
    }


def test_an_attribute_that_is_not_base64_is_rejected() -> None:
    with pytest.raises(ImageError, match="not base64"):
        read(tar(entry("x", pax={"LIBARCHIVE.xattr.user.x": "!!"})))


def test_a_huge_extended_header_stops_at_the_limit_unread() -> None:
    huge = header("PaxHeaders/x", b"x", 600 << 20)
    with pytest.raises(ImageError, match=r'limits\.pax-bytes = "1MiB"') as caught:
        read(huge)
    assert caught.value.code is Code.LIMIT_EXCEEDED


def test_records_of_no_use_are_not_kept() -> None:
    """A million of them in a global header would cost hours at 900,000 entries."""
    assert pax.parse_records(b"".join(record(f"SCHILY.junk{i}", "x") for i in range(9))) == {}


def test_a_sparse_map_is_of_one_entry_only() -> None:
    """One in a global header would be parsed at each entry."""
    sparse = {"GNU.sparse.size": "9", "GNU.sparse.map": "0,0," * 50 + "0,0", "uid": "7"}
    head = only(tar(pax_header(sparse, b"g"), entry("x", data=b"abc")))
    assert (head.uid, head.size) == (7, 3)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_many_extended_headers_stop_at_the_limit(flag: bytes) -> None:
    data = record("a", "b" * 1000)
    one = header("h", flag, len(data)) + padded(data)
    with pytest.raises(ImageError, match=r"limits\.pax-bytes"):
        read(one * 100 + tar(entry("x")), limits=Limits(pax_bytes=50_000))


@pytest.mark.parametrize("flag", [b"x", b"L"])
def test_an_extended_header_needs_its_entry(flag: bytes) -> None:
    for end in (b"", bytes(1024)):
        with pytest.raises(ImageError, match="ends after an extended header"):
            read(header("h", flag, 6) + padded(b"6 a=b\n") + end)


# -- content --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 100, 512, 513, 1 << 20])
def test_contents_whatever_the_chunks_are(chunk: int) -> None:
    contents = [b"", b"x", b"y" * 511, b"z" * 512, random.Random(1).randbytes(5000)]
    raw = tar(*(entry(f"f{i}", data=data) for i, data in enumerate(contents)))
    found = read(raw, chunk)
    assert [data for _, data in found] == contents
    assert [head.content for head, _ in found] == [0, 1, 2, 3, 4]
    assert [head.size for head, _ in found] == [len(data) for data in contents]


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_what_is_not_read_is_skipped(chunk: int) -> None:
    raw = tar(entry("a", data=b"a" * 3000), entry("b", data=b"b" * 700), entry("c", data=b"c"))
    paths = []
    for head, payload in read_tar(chunked(raw, chunk), LIMITS, itertools.count(1)):
        paths.append(head.path)
        if head.path == b"b":
            next(iter(payload))
    assert paths == [b"a", b"b", b"c"]


def test_a_size_on_what_has_no_content_is_ignored() -> None:
    raw = tar(entry("l", "hardlink", target="t", size=5000), entry("d", "dir", size=9), entry("x"))
    assert [head.size for head, _ in read(raw)] == [0, 0, 0]


def test_sizes_beyond_octal() -> None:
    raw = header("big", size=8 << 30)
    iterator = read_tar(chunked(raw + bytes(512), 1 << 20), LIMITS, itertools.count(1))
    assert next(iterator)[0].size == 8 << 30
    pax = tar(pax_header({"size": "3"}) + header("x", size=0) + padded(b"abc"))
    assert read(pax)[0][1] == b"abc"


@pytest.mark.parametrize(
    "raw",
    [
        entry("x", fields={124: number(-5, 12)}),
        entry("x", fields={124: b"\x80" + b"\xff" * 11}),
        entry("x", pax={"size": "-5"}),
        entry("x", pax={"size": "9223372036854775808"}),
        entry("x", fields={124: b"12x"}),
    ],
)
def test_impossible_sizes_are_rejected(raw: bytes) -> None:
    with pytest.raises(ImageError, match="x: "):
        read(tar(raw))


# -- sparse files ---------------------------------------------------------------------------------

SEGMENTS = ((512, b"one" * 100), (4096, b"two" * 200))
SPARSE_SIZE = 10_000


def sparse_content() -> bytes:
    content = bytearray(SPARSE_SIZE)
    for offset, data in SEGMENTS:
        content[offset : offset + len(data)] = data
    return bytes(content)


STORED = b"".join(data for _, data in SEGMENTS)
NUMBERS = [value for offset, data in SEGMENTS for value in (offset, len(data))]


def old_gnu(numbers: list[int], stored: bytes = STORED, size: int = SPARSE_SIZE) -> bytes:
    fields = {483: number(size, 12)}
    encoded = [number(value, 12) for value in numbers]
    fields[386] = b"".join(encoded[:8])
    rest = encoded[8:]
    fields[482] = b"\1" if rest else b"\0"
    blocks = header("x", b"S", len(stored), magic=GNU, fields=fields)
    while rest:
        part, rest = rest[:42], rest[42:]
        blocks += b"".join(part).ljust(504, b"\0") + (b"\1" if rest else b"\0") + bytes(7)
    return blocks + padded(stored)


def pax_0_0() -> bytes:
    records = record("GNU.sparse.size", str(SPARSE_SIZE)) + record("GNU.sparse.numblocks", "2")
    for offset, data in SEGMENTS:
        records += record("GNU.sparse.offset", str(offset))
        records += record("GNU.sparse.numbytes", str(len(data)))
    return pax_header(records) + entry("x", data=STORED)


def pax_0_1(**changes: str) -> bytes:
    records = {
        "GNU.sparse.size": str(SPARSE_SIZE),
        "GNU.sparse.numblocks": "2",
        "GNU.sparse.name": "x",
        "GNU.sparse.map": ",".join(map(str, NUMBERS)),
    }
    return entry("GNUSparseFile.1/x", data=STORED, pax={**records, **changes})


def pax_1_0(lines: str | None = None) -> bytes:
    records = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x",
        "GNU.sparse.realsize": str(SPARSE_SIZE),
    }
    text = lines if lines is not None else "\n".join(map(str, [len(SEGMENTS), *NUMBERS])) + "\n"
    return entry("GNUSparseFile.1/x", data=padded(text.encode()) + STORED, pax=records)


@pytest.mark.parametrize("chunk", [100, 1 << 20])
@pytest.mark.parametrize("make", [lambda: old_gnu(NUMBERS), pax_0_0, pax_0_1, pax_1_0])
def test_sparse_files_come_out_at_full_size(make: object, chunk: int) -> None:
    assert callable(make)
    found = read(tar(make(), entry("after", data=b"ok")), chunk)
    assert [head.path for head, _ in found] == [b"x", b"after"]
    assert found[0][0].size == SPARSE_SIZE
    assert found[0][1] == sparse_content()
    assert found[1][1] == b"ok"


def test_old_gnu_extension_blocks() -> None:
    numbers = [value for i in range(60) for value in (i * 1000, 10)]
    stored = bytes(range(10)) * 60
    [(head, data)] = read(tar(old_gnu(numbers, stored, 59_010)))
    assert head.size == len(data) == 59_010
    assert data[42_000:42_010] == bytes(range(10))
    assert not any(data[42_010:43_000])


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=1.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=0.0"],
    ],
)
def test_sparse_files_as_gnu_tar_writes_them(options: list[str], tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        for index in range(200):
            file.seek(index * 100_000)
            file.write(b"data %d" % index)
        file.truncate(30_000_000)
    command = ["tar", "-cSf", "-", "-C", tmp_path, *options, "x"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(raw) < 10_000_000
    [(head, data)] = read(raw)
    assert data == (tmp_path / "x").read_bytes()
    assert head.path == b"x"


@pytest.mark.parametrize(
    "raw",
    [
        old_gnu([512, 300, 100, 600]),
        old_gnu([512, 300, 4096, 500]),
        old_gnu([512, 300, 9990, 600]),
        old_gnu([-5, 300, 4096, 600]),
        pax_0_1(**{"GNU.sparse.map": "512,300,4096"}),
        pax_0_1(**{"GNU.sparse.map": "512,x"}),
        pax_0_1(**{"GNU.sparse.size": "-1"}),
        pax_1_0("2\n512\n300\n4096\nx\n"),
        pax_1_0("99999999999\n"),
        pax_1_0("junk\n"),
        pax_1_0("5" * 600),
        entry("x", pax={"GNU.sparse.major": "2", "GNU.sparse.minor": "0"}),
    ],
)
def test_maps_that_make_no_sense_are_rejected(raw: bytes) -> None:
    with pytest.raises(ImageError, match="x: "):
        read(tar(raw))


def test_sparse_files_count_at_full_size() -> None:
    raw = tar(*(old_gnu([0, 1], b"x", 40 << 30) for _ in range(3)))
    iterator = read_tar(chunked(raw, 1 << 20), Limits(layer_bytes=100 << 30), itertools.count(1))
    with pytest.raises(ImageError, match=r"limits\.layer-bytes"):
        for _ in iterator:
            pass


# -- the end --------------------------------------------------------------------------------------

WHOLE = entry("a", data=b"a" * 600) + entry("b", "dir")


@pytest.mark.parametrize(
    "end", [b"", bytes(1024), bytes(10240), bytes(1024 + 100)], ids=["none", "two", "many", "odd"]
)
def test_clean_ends_are_accepted(end: bytes) -> None:
    assert len(read(WHOLE + end, 700)) == 2


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (WHOLE[:-100], "cut short"),
        (WHOLE[:1000], "cut short inside a file"),
        (WHOLE[:100], "cut short"),
        (WHOLE + bytes(512), "lone zero block"),
        (WHOLE + bytes(700), "cut short|lone zero block"),
        (WHOLE + bytes(512) + WHOLE, "lone zero block"),
        (WHOLE + bytes(1024) + WHOLE, "data after the end"),
        (WHOLE + bytes(5000) + b"x", "data after the end"),
        (WHOLE[:-512] + b"\1" * 512, "corrupt tar header at byte 1536"),
        (entry("a", checksum=b"000000\0 "), "corrupt tar header at byte 0"),
        (entry("a", checksum=b"junk!!\0 "), "corrupt tar header at byte 0"),
        (b"\0" + entry("a")[1:], "corrupt tar header at byte 0"),
        (b"not a tar at all".ljust(512), "corrupt tar header at byte 0"),
    ],
)
def test_other_ends_are_rejected(raw: bytes, words: str) -> None:
    for chunk in (100, 1 << 20):
        with pytest.raises(ImageError, match=words):
            read(raw, chunk)


def test_every_byte_of_the_stream_is_taken() -> None:
    for tail in (bytes(50_000), bytes(2000) + b"garbage" * 1000):
        chunks = chunked(WHOLE + tail, 700)
        try:
            for _ in read_tar(chunks, LIMITS, itertools.count(1)):
                pass
        except ImageError:
            pass
        assert next(chunks, None) is None


def test_a_checksum_over_signed_bytes_is_accepted() -> None:
    name = b"caf\xe9\xe9"
    blanked = bytearray(header(name))
    blanked[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
    assert only(tar(header(name, checksum=b"%06o\0 " % signed))).path == name


@pytest.mark.parametrize("position", [0, 50, 101, 125, 137, 150, 156, 157, 257, 330, 400, 511])
def test_a_flipped_bit_in_a_header_is_noticed(position: int) -> None:
    raw = bytearray(tar(entry("some/name", "symlink", target="somewhere", uid=5)))
    raw[position] ^= 1
    with pytest.raises(ImageError):
        read(bytes(raw))


# -- against others -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_agrees_with_the_standard_library_on_what_it_writes(form: int) -> None:
    chance = random.Random(form)
    stream = io.BytesIO()
    infos = []
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for index in range(300):
            info = tarfile.TarInfo("/".join(["päth"] * chance.randint(1, 12)) + f"/{index}")
            info.type = chance.choice(
                [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE]
            )
            info.linkname = "t" * chance.randint(1, 99) if info.issym() else ""
            info.mode, info.uid, info.gid = chance.choice([0o644, 0o4755]), index, 2_000_000
            info.mtime = chance.randint(0, 1 << 33)
            data = chance.randbytes(chance.randint(0, 2000)) if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            infos.append((info, data))
    found = read(stream.getvalue(), 1000)
    assert len(found) == len(infos)
    for (head, content), (info, data) in zip(found, infos, strict=True):
        assert head.path.rstrip(b"/") == info.name.encode()
        assert (head.mode, head.uid, head.gid) == (info.mode, info.uid, info.gid)
        assert head.mtime_ns == info.mtime * 10**9
        assert head.target == info.linkname.encode()
        assert content == data


@settings(max_examples=300, deadline=None)
@given(st.data(), st.binary(max_size=3000))
@example(None, b"")
def test_only_typed_errors_come_of_damage(data: st.DataObject | None, junk: bytes) -> None:
    raw = bytearray(
        tar(
            entry("a" * 200, data=b"a" * 100, pax={"SCHILY.xattr.user.x": "y", "mtime": "1.5"}),
            pax_1_0(),
            old_gnu(NUMBERS),
            gnu_long("long"),
            entry("l", "symlink", target="t"),
        )
    )
    if data is not None:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + len(junk)] = junk
        start = at // 512 * 512
        if start + 512 <= len(raw) and data.draw(st.booleans()):  # get past the checksum
            raw[start + 148 : start + 156] = b" " * 8
            raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
    limits = Limits(layer_bytes=1 << 22, pax_bytes=1 << 16)
    try:
        for _, payload in read_tar(chunked(bytes(raw), 900), limits, itertools.count(1)):
            for _ in payload:
                pass
    except ImageError:
        pass
