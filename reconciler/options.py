"""The flags: what each means, where its default comes from, and which verbs take it.

`cli` decorates its verbs with `common` and `passing`; a verb gets an Options and, where it runs
passes, the Wishes of `wishes`. Precedence: flag, environment, banger.toml, default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from reconciler.errors import HostError
from reconciler.usage import Option
from reconciler.values import Duration, Name, NamedPath, Replacement
from reconciler.wishes import Wishes

Verb = Callable[..., Any]
Decorator = Callable[[Verb], Verb]
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(frozen=True, slots=True)
class Options:
    """What every verb takes; the names are those of the flags."""

    json: bool
    state_dir: Path
    cache_dir: Path
    progress: str
    color: str
    log_level: str | None
    log_format: str
    quiet: bool
    verbose: bool

    def colour_on(self, stream: Any) -> bool:
        """Whether this stream gets colours: never off a terminal, unless they were asked for."""
        if self.color != "auto":
            return self.color == "always"
        plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        return bool(stream.isatty()) and not plain


def _directory(variable: str, systemd: str, xdg: str, home: str) -> Path:
    """The default of a directory option, in the order of the contract."""
    if own := os.environ.get(variable):
        return Path(own)
    if given := os.environ.get(systemd):
        return Path(given.split(":", 1)[0])
    if shared := os.environ.get(xdg):
        return Path(shared) / "banger"
    try:
        return Path.home() / home / "banger"
    except RuntimeError:  # neither HOME nor an entry in the user database
        brief = f"no directory is known: neither ${variable} nor $HOME is set"
        raise HostError(brief, resolution="Set HOME, or give both directories.") from None


def state_directory() -> Path:
    """Where records and artifacts live unless a flag says otherwise."""
    return _directory("BANGER_STATE_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state")


def cache_directory() -> Path:
    """Where downloaded blobs live unless a flag says otherwise."""
    return _directory("BANGER_CACHE_DIR", "CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache")


_PATH = NamedPath(path_type=Path)
_DIRECTORY = NamedPath(file_okay=False, path_type=Path)
_CHOICE = click.Choice
_BUILT, _PACE, _LEAVING = "What is built", "How long and how many", "Images that left the file"
_OUTPUT, _WHERE = "Output", "Where"


def option(*names: str, group: str = "", env: bool = False, **more: Any) -> Decorator:
    """One option under a heading of the help; env: BANGER_NAME in the environment says it, too."""
    return click.option(*names, cls=Option, group=group, env=env, **more)


def known_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """For a shell that completes a NAME: those that stand for an artifact."""
    links = (ctx.params.get("state_dir") or state_directory()) / "images" / "by-name"
    with suppress(OSError):
        return sorted(link.name for link in links.iterdir() if link.name.startswith(incomplete))
    return []


config_argument = click.argument("config", type=_PATH, metavar="CONFIG")
optional_config = click.argument("config", type=_PATH, required=False, metavar="[CONFIG]")
dry_run = option("-n", "--dry-run", is_flag=True, help="Say what would be, change nothing.")
offline = option(
    "--offline", is_flag=True, env=True, group=_BUILT, help="Ask no registry: the cache has to do."
)
lock_timeout = option(
    "--lock-timeout",
    type=Duration(is_wait=True),
    metavar="D",
    default="0s",
    env=True,
    group=_PACE,
    help="Wait so long for another writer.",
)

as_json = option("--json", is_flag=True, group=_OUTPUT, help="One JSON document on stdout.")

_COMMON = (
    as_json,
    option("-q", "--quiet", is_flag=True, group=_OUTPUT, help="Only errors."),
    option("-v", "--verbose", is_flag=True, group=_OUTPUT, help="Every stage, and why."),
    option(
        "--progress",
        type=_CHOICE(["auto", "plain", "json", "none"]),
        metavar="HOW",
        default="auto",
        env=True,
        group=_OUTPUT,
        help="On stderr: auto, plain, json or none.",
    ),
    option(
        "--color",
        type=_CHOICE(["auto", "always", "never"]),
        metavar="WHEN",
        default="auto",
        env=True,
        group=_OUTPUT,
        help="auto, always or never; auto minds NO_COLOR.",
    ),
    option(
        "--log-level",
        type=_CHOICE(["debug", "info", "warning", "error"]),
        metavar="LEVEL",
        env=True,
        group=_OUTPUT,
        help="On stderr: debug, info, warning or error.",
    ),
    option(
        "--log-format",
        type=_CHOICE(["auto", "console", "json", "journal"]),
        metavar="FORM",
        default="auto",
        env=True,
        group=_OUTPUT,
        help="auto, console, json or journal.",
    ),
    option(
        "--state-dir",
        type=_DIRECTORY,
        metavar="DIR",
        group=_WHERE,
        help="Records and artifacts, else BANGER_STATE_DIR.",
    ),
    option(
        "--cache-dir",
        type=_DIRECTORY,
        metavar="DIR",
        group=_WHERE,
        help="Downloaded layers, else BANGER_CACHE_DIR.",
    ),
)


_CHOOSING = (
    option(
        "--image",
        type=Name(),
        multiple=True,
        metavar="NAME",
        group=_BUILT,
        shell_complete=known_names,
        help="Only this; repeatable.",
    ),
    option(
        "--replace",
        type=Replacement(),
        multiple=True,
        metavar="NAME[:STAGE]",
        shell_complete=known_names,
        group=_BUILT,
        help="Make it again from there on; repeatable.",
    ),
    option(
        "--locked",
        is_flag=True,
        env=True,
        group=_BUILT,
        help="Fail unless banger.lock fits the file.",
    ),
    option(
        "--frozen",
        is_flag=True,
        env=True,
        group=_BUILT,
        help="--locked, and ask for no manifest.",
    ),
    offline,
)
_LEAVING_OPTIONS = (
    option(
        "--prune/--no-prune",
        default=None,
        group=_LEAVING,
        help="Remove them, or keep them as orphans.",
    ),
    option(
        "--allow-empty",
        is_flag=True,
        group=_LEAVING,
        help="Remove them even when it lists no image.",
    ),
)


def _pacing(*, hidden: bool) -> tuple[Decorator, ...]:
    """How fast and how long; hidden from the help of a verb that only looks, where it is idle."""
    return (
        option(
            "--jobs",
            type=click.IntRange(1, 64),
            metavar="N",
            env=True,
            group=_PACE,
            hidden=hidden,
            help="Images at a time, 1 to 64.",
        ),
        option(
            "--timeout",
            type=Duration(),
            metavar="D",
            env=True,
            group=_PACE,
            hidden=hidden,
            help="For one image, such as 30m.",
        ),
        option(
            "--lock-timeout",
            type=Duration(is_wait=True),
            metavar="D",
            default="0s",
            env=True,
            group=_PACE,
            hidden=hidden,
            help="Wait so long for another writer.",
        ),
        option(
            "--fail-fast",
            is_flag=True,
            group=_PACE,
            hidden=hidden,
            help="Stop at the first image that fails.",
        ),
    )


def common(verb: Verb) -> Verb:
    """The options that every verb takes, gathered into an Options, the verb's first argument."""

    def gathered(state_dir: Path | None, cache_dir: Path | None, **given: Any) -> None:
        said = {option: given.pop(option) for option in _NAMES}
        state, cache = state_dir or state_directory(), cache_dir or cache_directory()
        verb(Options(state_dir=state, cache_dir=cache, **said), **given)

    return _with(gathered, verb, _COMMON)


_NAMES = ("json", "progress", "color", "log_level", "log_format", "quiet", "verbose")


def passing(verb: Verb) -> Verb:
    """The options of a pass, gathered into the Wishes that the verb gets as `wishes`."""
    return _wishing(verb, looking=False)


def looking(verb: Verb) -> Verb:
    """The same of a pass that only looks."""
    return _wishing(verb, looking=True)


def _wishing(verb: Verb, *, looking: bool) -> Verb:

    def gathered(*arguments: Any, image: tuple[str, ...], locked: bool, **given: Any) -> None:
        said: Mapping[str, Any] = {name: given.pop(name) for name in _WISHES}
        asked = dict(given.pop("replace"))
        if beside := asked.keys() - set(image) if image else ():
            raise click.UsageError(f"--image leaves out what --replace names: {min(beside)}")
        locked = locked or said["frozen"]
        wishes = Wishes(only=frozenset(image), replace=asked, locked=locked, **said)
        verb(*arguments, wishes=wishes, **given)

    options = (*_CHOOSING, *_pacing(hidden=looking), *_LEAVING_OPTIONS)
    return _with(gathered, verb, options)


_WISHES = (
    *("jobs", "timeout", "lock_timeout", "fail_fast", "offline", "frozen"),
    *("prune", "allow_empty"),
)


def _with(gathered: Verb, verb: Verb, options: tuple[Any, ...]) -> Verb:
    """`gathered` in place of `verb`, with these options beside those it has already."""
    gathered.__name__, gathered.__doc__ = verb.__name__, verb.__doc__
    gathered.__click_params__ = getattr(verb, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        option(gathered)
    return gathered
