"""What the values of options and arguments may be, and what is said of those that may not.

`options` and `cli` name these as types; click calls `convert` and turns a failure into wrong usage.
"""

from __future__ import annotations

from typing import Any

import click

from reconciler.durations import parse_duration
from reconciler.errors import ConfigError
from reconciler.model import Stage
from reconciler.oci.reference import is_name
from reconciler.text import printable


class Duration(click.ParamType[float]):
    """A duration such as `90s` or `1h30m`; seconds. is_wait: none at all will do, too."""

    name = "duration"

    def __init__(self, *, is_wait: bool = False) -> None:
        self._is_wait = is_wait

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it, or say what a duration looks like."""
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(str(value))
        except ConfigError as error:
            self.fail(f"{error.brief}. {error.resolution}", param, ctx)
        if seconds == 0 and not self._is_wait:
            self.fail("it must be longer than 0s", param, ctx)
        return seconds


class Replacement(click.ParamType[tuple[str, Stage]]):
    """`NAME[:STAGE]`: a name, and the stage from which on it is made again."""

    name = "replacement"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Stage]:
        """Take it apart, or say which stages there are."""
        name, _, stage = value.partition(":")
        if not name:
            self.fail("it needs a NAME", param, ctx)
        try:
            return name, Stage(stage or Stage.RESOLVE)
        except ValueError:
            self.fail(f"{stage!r} is no stage; stages are: {', '.join(Stage)}", param, ctx)


class Name(click.ParamType[str]):
    """The name of an image."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that an image can be called so."""
        if not is_name(value):
            self.fail(f"{printable(value, 80)!r} is no name of an image", param, ctx)
        return str(value)


class Words(click.ParamType[str]):
    """Something to be read by people: it is shown, so it must show."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """One line of it, escaped where it is none."""
        if not value.strip():
            self.fail("it is empty", param, ctx)
        return printable(value.strip(), 500)


class NamedPath(click.Path):
    """A path; an empty one, as an unset variable gives it, is not the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty one."""
        if value == "":
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)
