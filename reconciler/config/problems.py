"""What is wrong with a `banger.toml`, in words of TOML: line, table, key, and what was meant.

`config` hands over what pydantic found, or a problem of its own, and gets lines for people. A model
has positions (`image.2.kernel_ref: Extra inputs are not permitted`), an operator has a file with an
`[[image]] "web"` on line 31.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reconciler.text import printable

Key = tuple[str | int, ...]
"""A position in the document: `("image", 2, "kernel-ref")`."""

_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*",
    re.DOTALL,
)
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_LINE = re.compile(
    rf"^[ \t]*(?:\[\[[ \t]*(?P<array>{_DOTTED})[ \t]*\]\]|\[[ \t]*(?P<table>{_DOTTED})[ \t]*\]"
    rf"|(?P<key>{_DOTTED})[ \t]*=)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one position of the document."""

    where: Key
    what: str


def schema_problems(error: ValidationError, schema: type[BaseModel]) -> Iterator[Problem]:
    """Every error that pydantic found, in the words of TOML. `schema` is the model of the file."""
    for details in error.errors(include_url=False):
        yield Problem(details["loc"], _words(details, schema))


def report(
    problems: Iterable[Problem], label: str, text: str, document: Mapping[str, Any]
) -> tuple[str, ...]:
    """The problems as lines `FILE:LINE: [[image]] "web": KEY: WHAT`, in the order of the file."""
    lines = key_lines(text)
    found: list[tuple[int, str]] = []
    for problem in problems:
        line = _line_of(problem.where, lines)
        start = f"{label}:{line}" if line else label
        words = (start, _place(problem.where, document), problem.what)
        found.append((line, ": ".join(filter(None, words))))
    return tuple(words for _, words in sorted(found, key=lambda item: item[0]))


def key_lines(text: str) -> dict[Key, int]:
    """The line (from 1) of every table and key that begins a line of a valid TOML document.

    A scan, not a parser: what stands inside arrays and inline tables has the line of its key.
    """
    plain = _TEXT.sub(_without_text, text)
    lines: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    line, counted_to = 1, 0
    for found in _LINE.finditer(plain):
        line += plain.count("\n", counted_to, found.start())
        counted_to = found.start()
        dotted = found["key"] or found["table"] or found["array"]
        parts = [_unquoted(part) for part in re.findall(_PART, dotted)]
        if found["key"]:
            positions: list[Key] = [(*table, *parts[:n]) for n in range(1, len(parts) + 1)]
        else:
            positions = _table_positions(parts, found["array"] is not None, counts)
            table = positions[-1]
        for position in positions:
            lines.setdefault(position, line)
    return lines


def _table_positions(parts: list[str], is_array: bool, counts: dict[Key, int]) -> list[Key]:
    """The positions that a header opens; `counts` holds the elements of each array so far."""
    positions: list[Key] = []
    position: Key = ()
    for depth, part in enumerate(parts, start=1):
        position = (*position, part)
        positions.append(position)
        if is_array and depth == len(parts):
            counts[position] = counts.get(position, 0) + 1
        if position in counts:
            position = (*position, counts[position] - 1)
            positions.append(position)
    return positions


def _without_text(found: re.Match[str]) -> str:
    """Comments and long strings may hold what looks like keys: only their line breaks stay."""
    if found[0].startswith(("#", '"""', "'''")):
        return "\n" * found[0].count("\n")
    return found[0]


def _unquoted(part: str) -> str:
    return part[1:-1] if part[0] in "\"'" else part


def _line_of(where: Key, lines: Mapping[Key, int]) -> int:
    """The line of a position or of the nearest table around it; 0 when there is none."""
    for depth in range(len(where), 0, -1):
        if where[:depth] in lines:
            return lines[where[:depth]]
    return 0


def _place(where: Key, document: Mapping[str, Any]) -> str:
    """`[[image]] "web": kernel-ref` for `("image", 2, "kernel-ref")`."""
    if len(where) > 1 and isinstance(where[1], int):
        title = f"[[{where[0]}]] {_element_name(where[0], where[1], document)}"
        rest = where[2:]
    elif len(where) > 1:
        title, rest = f"[{where[0]}]", where[1:]
    else:
        title, rest = "", where
    path = ""
    for part in rest:
        path += f"[{part}]" if isinstance(part, int) else f".{printable(part, 60)}"
    return ": ".join(filter(None, (title, path.removeprefix("."))))


def _element_name(table: str | int, index: int, document: Mapping[str, Any]) -> str:
    element = document[str(table)][index]
    for key in ("name", "host", "ref"):
        if isinstance(element, dict) and isinstance(element.get(key), str):
            return f'"{printable(element[key], 80)}"'
    return f"number {index + 1}"


def toml_value(value: object) -> str:
    """A value of the document as a message names it: `the integer 5`, `"text"`, `a table`."""
    if isinstance(value, str):
        return f'"{printable(value, 60)}"'
    for kind, words in _KINDS:
        if isinstance(value, kind):
            return f"{words} {str(value).lower()[:40]}" if kind in _SHOWN else words
    return "a date or time"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean "kernel-ref"?`, or nothing when nothing is near."""
    folded = wrong.lower().replace("_", "-")
    near = difflib.get_close_matches(folded, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def _words(details: ErrorDetails, schema: type[BaseModel]) -> str:
    """One error of pydantic, by its type (pydantic's documentation, "Validation Errors")."""
    given, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return f"unknown key{_meant_key(details['loc'], schema)}"
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            expected = str(context["expected"]).replace("'", '"')
            choices = re.findall(r'"([^"]*)"', expected)
            near = did_you_mean(given, choices) if isinstance(given, str) else ""
            return f"must be {expected}, not {toml_value(given)}{near}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {toml_value(given)}"
        case "less_than_equal":
            return f"must be at most {context['le']}, not {toml_value(given)}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must be at most {context['max_length']} characters long"
        case kind:
            return _wrong_type(kind, details, given)


def _wrong_type(kind: str, details: ErrorDetails, given: object) -> str:
    key = details["loc"][-1]
    if kind == "list_type" and isinstance(given, dict):
        return f"must be an array of tables: write [[{key}]], with two brackets"
    if kind.startswith("model") and isinstance(given, list):
        return f"must be one table: write [{key}], with one bracket"
    wanted = _WANTED.get(kind)
    if wanted is None:
        return f"{details['msg']}, not {toml_value(given)}"
    return f"must be {wanted}, not {toml_value(given)}"


def _meant_key(where: Key, schema: type[BaseModel]) -> str:
    """What an unknown key may have meant: a key of this table, or one of another table."""
    wrong = str(where[-1])
    near = did_you_mean(wrong, _keys(_table_at(where[:-1], schema)))
    homes = (name for name in _keys(schema) if wrong in _keys(_table_at((name,), schema)))
    if len(where) == 1 and (home := next(homes, None)):
        return f"; it belongs in [{home}]"
    return near


def _keys(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _table_at(where: Key, schema: type[BaseModel]) -> type[BaseModel]:
    for part in where:
        fields = {field.alias or name: field for name, field in schema.model_fields.items()}
        if isinstance(part, str) and part in fields:
            schema = _model_in(fields[part].annotation) or schema
    return schema


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `list[Model]` or `Model | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_SHOWN = (bool, int, float)
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "the boolean"),
    (int, "the integer"),
    (float, "the number"),
    (list, "an array"),
    (dict, "a table"),
)
_WANTED = {
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "an array",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
