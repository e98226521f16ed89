"""banger.toml: what is said about what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.config.load import Config, parse
from reconciler.config.problems import key_lines
from reconciler.errors import ConfigError

BASE = Path("/srv/lab")
SHA = "ab" * 32


def of(text: str) -> Config:
    return parse(text.encode(), BASE, Path("banger.toml"))


def problems(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode() if isinstance(text, str) else text, BASE, Path("banger.toml"))
    return caught.value.problems


IMAGE = '[[image]]\nname = "web"\nref = "ghcr.io/x/web:1"\n'
KERNEL = '[[kernel]]\nname = "k"\n'

WRONG: list[tuple[str, int, str]] = [
    # (file, line, words that the one problem must have)
    ("foo = 1", 1, "foo: unknown key"),
    ("jobs = 3", 1, "jobs: unknown key; it belongs in [reconcile]"),
    ("[reconsile]", 1, 'reconsile: unknown key; did you mean "reconcile"?'),
    (
        "[reconcile]\n\nintervall = 1",
        3,
        '[reconcile]: intervall: unknown key; did you mean "interval"?',
    ),
    ("[reconcile]\nretry.maxx = 1", 2, '[reconcile]: retry.maxx: unknown key; did you mean "max"?'),
    ('[reconcile]\nretry = { base = "9m", max = "8m" }', 2, "retry: base must be"),
    ("[reconcile]\ninterval = 10", 2, 'a duration such as "10m", not the integer 10'),
    ('[reconcile]\ninterval = "0s"', 2, "must be longer than 0s"),
    ('[reconcile]\ntimeout = "10"', 2, '"10" is not a duration'),
    ("[reconcile]\njobs = 0", 2, "jobs: must be at least 1, not the integer 0"),
    ("[reconcile]\njobs = 2.0", 2, "jobs: must be an integer, not the number 2.0"),
    ("[reconcile]\njobs = true", 2, "jobs: must be an integer, not the boolean true"),
    ("[reconcile]\njitter = 1.5", 2, "jitter: must be at most 1"),
    ("[reconcile]\njitter = nan", 2, "jitter: must be a finite number"),
    ("reconcile = 3", 1, "reconcile: must be a table, not the integer 3"),
    ("[defaults]\nkernel_ref = 'x'", 2, 'kernel_ref: unknown key; did you mean "kernel-ref"?'),
    ("[defaults]\nref = 'x'", 2, "ref: unknown key"),
    ("[[defaults]]", 1, "defaults: must be one table: write [defaults]"),
    ("[image]\nref='x'", 1, "image: must be an array of tables: write [[image]]"),
    ("image = [\n 7\n]", 1, "[[image]] number 1: must be a table, not the integer 7"),
    ("[[image]]\nname = 'x'", 1, '[[image]] "x": ref: is missing'),
    ("[[image]]\nref = 5", 2, "[[image]] number 1: ref: must be text in quotes, not the integer 5"),
    ("[[image]]\nref = 'a b'", 2, "reference 'a b' is invalid"),
    ("[[image]]\nref = 'a@sha256:00'", 2, "is invalid"),
    (IMAGE + "kernel_ref = 'k'", 4, '"web": kernel_ref: unknown key; did you mean "kernel-ref"?'),
    (IMAGE + "kernel-ref = '../k'", 4, '"../k" is no name'),
    (IMAGE + "size = '4X'", 4, 'size: the size "4X" has an unknown suffix'),
    (IMAGE + "size = ''", 4, 'the size "" is empty'),
    (IMAGE + "size = 0", 4, 'the size "0" is zero'),
    (IMAGE + "size = -4", 4, 'the size "-4" is negative'),
    (IMAGE + "size = 4.5", 4, "must be a size"),
    (IMAGE + "size = '99999999TiB'", 4, '"99999999TiB" is too large'),
    (IMAGE + "size = '1.1GiB'", 4, "not a multiple of 4KiB, the block size; near it: 1153432KiB"),
    (IMAGE + "pull = 'allways'", 4, 'not "allways"; did you mean "always"?'),
    (IMAGE + "platform = 'linux/x86_64'", 4, 'images call this architecture "amd64"'),
    (IMAGE + "platform = 'windows/amd64'", 4, '"windows/amd64" is no platform'),
    (IMAGE + "platform = 'amd64'", 4, '"amd64" is no platform'),
    (IMAGE + "retain = -1", 4, "retain: must be at least 0"),
    (IMAGE + "guest = 'yes'", 4, 'guest: must be true or false, not "yes"'),
    (IMAGE + "guest = 1979-05-27", 4, "guest: must be true or false, not a date or time"),
    (IMAGE + "builder = 'fast'", 4, 'must be "auto", "direct" or "tools"'),
    ("[[image]]\nref = 'a'\nname = 'Web'", 3, '"Web" is no name'),
    ("[[image]]\nref = 'a'\nname = '../../etc'", 3, '"../../etc" is no name'),
    (f"[[image]]\nref = 'a'\nname = '{'x' * 64}'", 3, "is no name"),
    (IMAGE + IMAGE, 5, 'the name "web" is taken by [[image]] number 1'),
    (
        "[[image]]\nref = 'debian'\n[[image]]\nref = 'docker.io/library/debian:latest'",
        4,
        'the name "debian-latest" is taken by [[image]] number 1; it is derived from the reference:'
        " set `name`",
    ),
    (
        "[[image]]\nref = 'debian:12'\n[[image]]\nname = 'debian-12'\nref = 'x'",
        4,
        'the name "debian-12" is taken by [[image]] number 1; it is derived',
    ),
    (f"[[image]]\nref = 'x/{'y' * 90}'", 2, "set `name`"),
    (KERNEL, 1, '[[kernel]] "k": needs one of `kernel`, `apt`, `host` and `image`'),
    (KERNEL + "kernel = {}", 3, "kernel: needs one of `path`, `url` and `image`"),
    (
        KERNEL + "kernel = { path = 'a', url = 'https://b/c' }",
        3,
        "needs one of `path`, `url` and `image`",
    ),
    (KERNEL + "kernel = { path = '' }", 3, "kernel.path: must not be empty"),
    (KERNEL + "kernel = { url = 'https://b/c' }", 3, "a `url` needs the `sha256`"),
    (KERNEL + f"kernel = {{ url = 'ftp://b/c', sha256 = '{SHA}' }}", 3, "kernel.url:"),
    (KERNEL + "kernel = { path = 'a', sha256 = 'abc' }", 3, '"abc" is no sha256'),
    (
        KERNEL
        + f"kernel = {{ path = 'a' }}\nmodules = {{ url = 'https://b/c', sha256 = '{SHA}' }}",
        4,
        "modules.url: modules are a directory",
    ),
    (KERNEL + 'kernel = { path = "a" }\ncmdline = "a\\nb"', 4, "cmdline: "),
    (
        f"{KERNEL}kernel.path = 'a'\n{KERNEL}kernel.path = 'b'",
        5,
        '"k" stands in [[kernel]] number 1',
    ),
    ("[[registry]]\nhost = 'https://a'", 2, '"https://a" is no HOST[:PORT]'),
    ("[[registry]]\nhost = 'a'\nmirrors = ['b c']", 3, '"b c" is no HOST[:PORT][/PREFIX]'),
    ("[[registry]]\nhost = 'a'\nmirrors = [\n1]", 3, "mirrors[0]: must be text in quotes"),
    ("[[registry]]\nhost = 'a'\nusername-file = 'u'", 1, "need each other"),
    ("[[registry]]\nhost = 'a'\n[[registry]]\nhost = 'A'", 4, "stands in [[registry]] number 1"),
    ("[prune]\nmax = '101%'", 2, 'a percentage such as "25%", or a number'),
    ("[prune]\nmax = -1", 2, 'a percentage such as "25%", or a number'),
    ("[guest]\nvsock-port = 0", 2, "vsock-port: must be at least 1"),
    ("[guest]\nvsock-port = 4294967295", 2, "vsock-port: must be at most 4294967294"),
    ("version = 0", 1, "version: must be at least 1"),
    ("version = '1'", 1, 'version: must be an integer, not "1"'),
]


@pytest.mark.parametrize(("text", "line", "words"), WRONG)
def test_what_is_wrong_is_said_with_its_line_and_key(text: str, line: int, words: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"banger.toml:{line}: ")
    assert words in problem


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        "[reconcile]\njobs = 0\n[gc]\nblob-age = 1\n"
        + IMAGE
        + "size = '4X'\nkernel_ref = 'k'\n"
        + IMAGE
        + "[[image]]\nref = 'UPPER'\n"
    )
    assert [int(problem.split(":")[1]) for problem in found] == [2, 4, 8, 9, 11, 14]


def test_a_newer_version_is_the_only_complaint() -> None:
    (problem,) = problems("version = 2\nthings-to-come = 1")
    assert "version 2 is newer than this program" in problem


@pytest.mark.parametrize(
    ("text", "position", "shown"),
    [
        ('[[image]]\nref = "a"\nsize = 4GiB\n', "3:9", "size = 4GiB"),
        ("a = [", "1:6", "a = ["),
        ("\n\n[image\n", "3:7", "[image"),
        ("a = 1\r\na = 2\r\n", "2:6", "a = 2"),
        ('a = "\x01"', "1:6", 'a = "\\x01"'),
    ],
)
def test_syntax_errors_show_the_place(text: str, position: str, shown: str) -> None:
    (problem,) = problems(text)
    first, line, mark = problem.split("\n")
    assert first.startswith(f"banger.toml:{position}: ")
    assert line.strip() == shown
    assert mark.index("^") == 4 + int(position.split(":")[1]) - 1


def test_text_without_quotes_gets_advice() -> None:
    with pytest.raises(ConfigError) as caught:
        of("[[image]]\nref = debian\n")
    assert "quotes" in caught.value.resolution


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5000, "x = " + "9" * 5000, "a." * 5000 + "b = 1", "x = 1e400\ny ="]
)
def test_what_no_parser_takes_is_one_problem(text: str) -> None:
    assert problems(text)


def test_bytes_that_are_no_text() -> None:
    (problem,) = problems(b'[[image]]\nref = "a\xff"\n')
    assert problem == "banger.toml:2: the byte 0xff is not UTF-8"


def test_a_byte_order_mark_is_skipped() -> None:
    assert len(parse(b"\xef\xbb\xbf" + IMAGE.encode(), BASE).images) == 1


def test_control_characters_do_not_reach_the_terminal() -> None:
    for problem in problems('"\\u001b[31m" = 1\n[[image]]\nname = "\\u001b[2J"\nref = "\\u0007"\n'):
        assert problem.isprintable()


def test_the_scan_for_lines_is_not_misled() -> None:
    lines = key_lines(
        'a = """\n[[image]]\nname = 1\n"""\nb = \'\'\'\nref = 2\'\'\'\nc = "#" # [[image]]\n'
        "[[image]]\n\"ref\" = 1\n[image.sub]\nx.y = 2\n[[image]] # again\n'ref'=3\n[ t . u ]\n"
    )
    assert lines == {
        ("a",): 1,
        ("b",): 5,
        ("c",): 7,
        ("image",): 8,
        ("image", 0): 8,
        ("image", 0, "ref"): 9,
        ("image", 0, "sub"): 10,
        ("image", 0, "sub", "x"): 11,
        ("image", 0, "sub", "x", "y"): 11,
        ("image", 1): 12,
        ("image", 1, "ref"): 13,
        ("t",): 14,
        ("t", "u"): 14,
    }


def test_a_relative_reference_below_a_directory_with_a_colon() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b'[[image]]\nref = "oci:hello:latest"', Path("/srv/a:b"))
    assert "colon" in caught.value.problems[0]
