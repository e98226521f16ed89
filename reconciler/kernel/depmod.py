"""What `depmod` makes of a directory of modules: the lists by which modprobe and udev find them.

`injected` asks when modules go into a rootfs, because packages of kernels carry no such lists. Made
here, not by the host's depmod: one version of it would give other bytes than another, and those are
part of an artifact's id. Sources: modules.dep(5), depmod(8), and for the packed form the comment in
kmod's libkmod-index.h: a trie whose nodes stand behind their children, numbers big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.kernel.modinfo import (
    built_in,
    built_in_aliases,
    built_in_names,
    dependencies,
    information,
    listed,
    module_files,
    unpacked,
    unusable,
)

_MAGIC, _VERSION = 0xB007F457, 0x00020001
_HEADER = struct.Struct(">III")
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000

_LONGEST_ALIAS = 400
"""Characters; it bounds how deep a trie is. The longest of Debian's kernels have 120."""

_DEEPEST = 64
"""Modules in a chain of dependencies; Debian's longest has 9."""

Entry = tuple[str, int, str]
"""A line of an index: key, priority (lower wins), value."""


@dataclass(frozen=True, slots=True)
class _Module:
    path: str
    """Relative to the directory of the release."""
    needed: tuple[str, ...]
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]
    rank: int


@dataclass(slots=True)
class _Modules:
    by_name: dict[str, _Module]
    present: set[str]
    """Names that need no file: they are built in."""
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def order(self, name: str, depth: int = 0) -> tuple[str, ...]:
        """All that a module needs, the deepest first, itself left out."""
        if name not in self.orders:
            module = self.by_name[name]
            if depth > _DEEPEST:
                raise unusable(Path(module.path), "depends on too long a chain of modules")
            found: dict[str, None] = {}
            for other in module.needed:
                if other in self.by_name:
                    found.update(dict.fromkeys((*self.order(other, depth + 1), other)))
                elif other not in self.present:
                    raise unusable(Path(module.path), f'needs "{other}", which is not there')
            self.orders[name] = tuple(found)
        return self.orders[name]

    def line(self, name: str) -> str:
        """The line of modules.dep: what is loaded last stands first."""
        needed = reversed(self.order(name))
        return " ".join((f"{self.by_name[name].path}:", *(self.by_name[n].path for n in needed)))


def make_lists(release: Path) -> dict[str, bytes]:
    """File name -> content, of the lists for `/lib/modules/<release>`; equal inputs, equal bytes.

    Raises ImageError (kernel-invalid) for modules that cannot be read or do not fit together;
    OSError passes through.
    """
    modules = _read(release)
    ranked = sorted(modules.by_name.items(), key=lambda item: item[1].rank)
    lines = {name: modules.line(name) for name, _ in ranked}
    aliases = [(alias, name) for name, module in ranked for alias in module.aliases]
    softdeps = [f"softdep {name} {text}" for name, module in ranked for text in module.softdeps]
    spelt = filter(_is_sane, built_in_names(release))
    return {
        "modules.dep": _text(lines.values()),
        "modules.dep.bin": _index((n, m.rank, lines[n]) for n, m in ranked),
        "modules.alias": _text(f"alias {alias} {name}" for alias, name in aliases),
        "modules.alias.bin": _index((_key(a), modules.by_name[n].rank, n) for a, n in aliases),
        "modules.softdep": _text(softdeps),
        "modules.devname": _text(_devices(ranked)),
        # dependencies are known by name: nothing asks by symbol
        "modules.symbols": _text(()),
        "modules.symbols.bin": _index(()),
        "modules.builtin.bin": _index((name, 0, "") for name in spelt),
        "modules.builtin.alias.bin": _index(
            (_key(alias), 0, name) for name, alias in built_in_aliases(release) if _is_sane(alias)
        ),
    }


def _read(release: Path) -> _Modules:
    files = module_files(release)
    ranks = _ranks(release)
    found = {}
    for name, path in files.items():
        inside = str(path.relative_to(release))
        plain = inside[: inside.rindex(".ko") + 3]
        content = unpacked(path)
        said = list(information(content, path))
        found[name] = _Module(
            path=inside,
            needed=tuple(dependencies(content, path)[0]),
            aliases=tuple(v for key, v in said if key == "alias" and _is_sane(v)),
            softdeps=tuple(v for key, v in said if key == "softdep" and v.isprintable()),
            rank=ranks.get(plain, len(ranks)),
        )
    return _Modules(found, built_in(release))


def _ranks(release: Path) -> dict[str, int]:
    """Path -> place in modules.order: of two modules for a device, the first is taken."""
    return {line: place for place, line in enumerate(listed(release, "modules.order"))}


def _is_sane(alias: str) -> bool:
    return 0 < len(alias) <= _LONGEST_ALIAS and alias.isascii() and alias.isprintable()


def _key(alias: str) -> str:
    """As modprobe spells what it looks for: hyphens are underscores, but not within brackets."""
    spelt, inside = [], False
    for letter in alias:
        inside = (inside or letter == "[") and letter != "]"
        spelt.append("_" if letter == "-" and not inside else letter)
    return "".join(spelt)


def _devices(ranked: list[tuple[str, _Module]]) -> Iterator[str]:
    """Device nodes that load their module when they are opened."""
    for name, module in ranked:
        said = dict(a.partition(":")[::2] for a in module.aliases if a.startswith("devname:"))
        for alias in module.aliases:
            kind, _, numbers = alias.partition("-major-")
            major, _, minor = numbers.partition("-")
            if said and kind in ("char", "block") and major.isdigit() and minor.isdigit():
                yield f"{name} {said['devname']} {kind[0]}{major}:{minor}"


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii", "replace")


def _index(entries: Iterable[Entry]) -> bytes:
    found = sorted(set(entries), key=lambda entry: (entry[0], entry[1]))
    out = bytearray(_HEADER.size)
    root = _node(found, 0, out) if found else 0
    _HEADER.pack_into(out, 0, _MAGIC, _VERSION, root)
    return bytes(out)


def _node(entries: list[Entry], start: int, out: bytearray) -> int:
    """Write the node of keys that agree up to `start`, behind its children; gives its offset."""
    # depmod's root has no prefix, whatever its keys agree in
    prefix = _common(entries[0][0][start:], entries[-1][0][start:]) if start else ""
    end = start + len(prefix)
    here = [entry for entry in entries if len(entry[0]) == end]
    below: dict[str, list[Entry]] = {}
    for entry in entries[len(here) :]:
        below.setdefault(entry[0][end], []).append(entry)
    children = {letter: _node(some, end + 1, out) for letter, some in below.items()}
    place = len(out)
    if prefix:
        out += prefix.encode() + b"\0"
        place |= _PREFIX
    if children:
        out += _table(children)
        place |= _CHILDREN
    if here:
        out += struct.pack(">I", len(here))
        out += b"".join(struct.pack(">I", rank) + v.encode() + b"\0" for _, rank, v in here)
        place |= _VALUES
    return place


def _common(one: str, other: str) -> str:
    """What both begin with; of sorted keys, the first and the last tell for all."""
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _table(children: dict[str, int]) -> bytes:
    first, last = min(map(ord, children)), max(map(ord, children))
    offsets = (children.get(chr(letter), 0) for letter in range(first, last + 1))
    return bytes((first, last)) + b"".join(struct.pack(">I", offset) for offset in offsets)
