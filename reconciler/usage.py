"""How the command line is taken apart and how its help looks; what the words mean is in `cli`.

The first word that is no option is a verb or, without one, a configuration. Options may stand
anywhere, in groups in the help, and those with a value may come from the environment.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

DEFAULT_VERB = "apply"
PREFIX = "BANGER_"
"""What the name of an option begins with in the environment."""


class Option(click.Option):
    """An option with a heading of the help above it. env: it may come from the environment."""

    def __init__(self, names: Sequence[str], *, group: str = "", env: bool = False, **more: Any):
        self.group = group
        if env:
            more["envvar"] = PREFIX + names[-1].lstrip("-").replace("-", "_").upper()
        super().__init__(names, **more)

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What click adds to the help: not the range, which the words say."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class Verb(click.Command):
    """A verb whose help shows its options under headings."""

    def format_options(
        self,
        ctx: click.Context,
        formatter: click.HelpFormatter,
        also: Sequence[click.Parameter] = (),
    ) -> None:
        """Its own options first, those that all verbs have last. also: further ones of its own."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in (*self.get_params(ctx), *also):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None:
                group = getattr(param, "group", "") or "Options"
                groups.setdefault(group, []).append(row)
        width = max(len(row[0]) for rows in groups.values() for row in rows)
        for heading, rows in groups.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows], width)


class Verbs(click.Group):
    """A group whose first argument may be a configuration: then the verb is `apply`."""

    command_class = Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb first; without one, `apply` is meant."""
        if ctx.resilient_parsing and self._may_name_a_verb(args):
            return super().parse_args(ctx, [])
        if not args:
            raise click.UsageError("Give a CONFIG or a verb.", ctx)
        if args[0] not in ("-h", "--help", "--version"):
            args = self._verb_first(ctx, args)
        return super().parse_args(ctx, args)

    def _may_name_a_verb(self, args: list[str]) -> bool:
        """Whether the word that a shell wants completed after these may be a verb."""
        return not any(True for _ in self._words(args)) and (
            not args or args[-1] not in self._valued()
        )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs, the options of a pass, and files: the first word may be any of them."""
        default = self.commands[DEFAULT_VERB]
        if incomplete.startswith("-"):
            return default.shell_complete(click.Context(default, parent=ctx), incomplete)
        files = CompletionItem(incomplete, type="file")
        return [files, *super().shell_complete(ctx, incomplete)]

    def _verb_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        position = next(self._words(args), None)
        if position is None:
            return [DEFAULT_VERB, *args]
        word = args[position]
        if word in self.commands:
            return [word, *args[:position], *args[position + 1 :]]
        near = difflib.get_close_matches(word, self._shown(), n=1)
        if near and not Path(word).exists():
            words = f"There is no file and no verb {word!r}. Did you mean {near[0]!r}?"
            raise click.UsageError(words, ctx)
        return [DEFAULT_VERB, *args]

    def _words(self, args: list[str]) -> Iterator[int]:
        """Positions of what is neither an option nor the value of one, whichever verb's it is."""
        valued, skip = self._valued(), False
        for position, word in enumerate(args):
            if skip:
                skip = False
            elif word == "--":
                return
            elif word.startswith("-") and word != "-":
                skip = word in valued
            else:
                yield position

    def _valued(self) -> set[str]:
        """The options of any verb that take a value."""
        params = [p for command in self.commands.values() for p in command.params]
        options = (p for p in params if isinstance(p, click.Option) and not p.is_flag)
        return {name for option in options for name in option.opts}

    def _shown(self) -> list[str]:
        return sorted(name for name, command in self.commands.items() if not command.hidden)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The ways to call it."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] CONFIG")
        formatter.write_usage(ctx.command_path, "--watch [OPTIONS] CONFIG", prefix="       ")
        formatter.write_usage(ctx.command_path, "VERB [OPTIONS] ...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs, then the options of a pass."""
        rows = [(name, self.commands[name].get_short_help_str(200)) for name in self._shown()]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)
        default = self.commands[DEFAULT_VERB]
        also = [param for param in self.params if "--version" in param.opts]
        if isinstance(default, Verb):
            default.format_options(click.Context(default, parent=ctx), formatter, also)


def words_of(error: click.ClickException) -> str:
    """What is wrong with a command line; a value from the environment names its variable."""
    words = error.format_message()
    if isinstance(error, click.BadParameter) and error.ctx and isinstance(error.param, Option):
        source = error.ctx.get_parameter_source(error.param.name or "")
        if source is click.core.ParameterSource.ENVIRONMENT:
            words += f" It comes from {error.param.envvar} in the environment."
    return words


def help_of(error: click.ClickException) -> str:
    """The command whose help tells more; of a pass, that is the first page."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "banger-reconcile"
    return f"{path.removesuffix(f' {DEFAULT_VERB}')} --help"
