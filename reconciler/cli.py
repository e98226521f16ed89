"""The command line: parse, call a verb, exit. Nothing below exits, and only the verbs print.

The flags are in `options`, what a verb does in `verbs/`; those are imported when they are called,
so that `--help` and `--version` cost next to nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from reconciler import __version__
from reconciler.errors import REPORT, BangerError, Code, HostError
from reconciler.options import (
    HELP,
    Options,
    as_json,
    common,
    config_argument,
    dry_run,
    known_names,
    lock_timeout,
    looking,
    offline,
    option,
    optional_config,
    passing,
)
from reconciler.streams import leave_stderr, leave_stdout, mend_streams
from reconciler.text import printable
from reconciler.usage import Verbs, help_of, words_of
from reconciler.values import Duration, Name, NamedPath, Words
from reconciler.verbs.session import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    exit_code,
    print_json,
    show_error,
    show_usage_error,
)
from reconciler.wishes import Wishes

_WATCH = "With --watch"
_EPILOG = """Every option with a value, and --locked, --frozen and --offline, may come from the
environment: BANGER_JOBS for --jobs. A flag goes before it, banger.toml after it.

Exit codes: 0 converged, 1 something failed, 64 wrong usage, 75 another writer is at work, 78 the
configuration is wrong, 130 and 143 interrupted; with --detailed-exitcode 2 changed, 4 failed,
6 both."""


@click.group(cls=Verbs, context_settings=HELP, invoke_without_command=False, epilog=_EPILOG)
@click.version_option(__version__, prog_name="banger-reconcile")
def cli() -> None:
    """Keep this host's Firecracker guest images equal to what banger.toml says.

    With a CONFIG: one pass that builds what is missing, records it, and collects what nothing
    refers to. With --watch: the same after every edit, until told to stop.
    """


@cli.command(context_settings=HELP, hidden=True)
@config_argument
@option("--watch", is_flag=True, help="Stay, and follow every edit of the file.")
@option("-n", "--dry-run", is_flag=True, help="The same as the verb plan.")
@option("--detailed-exitcode", is_flag=True, help="2 changed, 4 failures, 6 both.")
@option(
    "--interval",
    type=Duration(),
    metavar="D",
    env=True,
    group=_WATCH,
    help="Look for drift so often, such as 10m.",
)
@option(
    "--listen",
    metavar="ADDR",
    env=True,
    group=_WATCH,
    help="Show status at 127.0.0.1:PORT or unix:PATH.",
)
@option(
    "--metrics-file",
    metavar="PATH",
    type=NamedPath(path_type=Path),
    env=True,
    group=_WATCH,
    help="Metrics after each pass, a single one too.",
)
@passing
@common
def apply(
    options: Options,
    *,
    config: Path,
    wishes: Wishes,
    watch: bool,
    interval: float | None,
    listen: str | None,
    metrics_file: Path | None,
    detailed_exitcode: bool,
    dry_run: bool,
) -> None:
    """One pass: build what is missing, record it, collect what nothing refers to (the default)."""
    if not watch:
        from reconciler.verbs import one_pass

        how = {"dry_run": dry_run, "detailed": detailed_exitcode}
        sys.exit(one_pass.run(options, config, wishes, metrics_file=metrics_file, **how))
    if dry_run or detailed_exitcode or wishes.replace:
        words = "--dry-run, --detailed-exitcode and --replace go with one pass, not with --watch"
        raise click.UsageError(words)
    from reconciler.verbs import watch as daemon

    seeing = daemon.Seeing(listen, metrics_file)
    sys.exit(daemon.run(options, config, wishes, seeing, interval=interval))


@cli.command(context_settings=HELP, short_help="What a pass would do, and why.")
@config_argument
@option("--detailed-exitcode", is_flag=True, help="0 in sync, 2 changes, 1 error.")
@looking
@common
def plan(options: Options, config: Path, wishes: Wishes, detailed_exitcode: bool) -> None:
    """What a pass would do, and why. Writes nothing; asks registries for manifests only."""
    from reconciler.verbs import one_pass

    sys.exit(one_pass.run(options, config, wishes, dry_run=True, detailed=detailed_exitcode))


@cli.command(
    context_settings=HELP,
    short_help="Images, conditions, artifacts, last errors.",
)
@common
def status(options: Options) -> None:
    """Images, their artifacts and their last errors, from the records; needs no configuration."""
    from reconciler.verbs import look

    sys.exit(look.status(options))


@cli.command(context_settings=HELP, short_help="Collect now what nothing refers to.")
@optional_config
@dry_run
@lock_timeout
@common
def gc(options: Options, config: Path | None, dry_run: bool, lock_timeout: float) -> None:
    """Collect abandoned builds, unreferenced blobs and replaced artifacts now.

    With a CONFIG, its [gc] ages count.
    """
    from reconciler.verbs import look

    sys.exit(look.collect(options, config, lock_timeout, dry_run=dry_run))


@cli.command(
    context_settings=HELP, short_help="Check a configuration; name all its errors at once."
)
@config_argument
@common
def validate(options: Options, config: Path) -> None:
    """Check a configuration and name all its errors at once; `-` reads standard input."""
    from reconciler.verbs import look

    sys.exit(look.validate(options, config))


_name = click.argument("name", type=Name(), shell_complete=known_names)
_optional_name = click.argument("name", type=Name(), required=False, shell_complete=known_names)


@cli.command(
    context_settings=HELP,
    short_help="The command lines that start an image.",
)
@_name
@option("--print", "printing", is_flag=True, required=True, help="Say so: nothing is started.")
@common
def launch(options: Options, name: str, printing: bool) -> None:
    """Print how to start an image with QEMU, Cloud Hypervisor or Firecracker."""
    from reconciler.verbs import look

    sys.exit(look.launch(options, name))


@cli.command(
    context_settings=HELP, short_help="Which input of an image changed, and what follows from it."
)
@_name
@config_argument
@looking
@common
def explain(options: Options, name: str, config: Path, wishes: Wishes) -> None:
    """Which input of an image changed, from what to what, and which stages follow from it."""
    from reconciler.verbs import by_hand

    sys.exit(by_hand.explain(options, name, config, wishes))


@cli.command(
    context_settings=HELP, short_help="Write banger.lock: the digest that every image stands for."
)
@config_argument
@option(
    "--upgrade",
    type=Name(),
    multiple=True,
    metavar="NAME",
    shell_complete=known_names,
    help="Look this tag up again; repeatable.",
)
@offline
@common
def lock(options: Options, config: Path, upgrade: tuple[str, ...], offline: bool) -> None:
    """Write banger.lock: the digest of every image, which no moving tag changes then.

    What is locked already and still fits stays as it is, unless --upgrade names it.
    """
    from reconciler.verbs import lock as locking

    sys.exit(locking.lock(options, config, upgrade, offline=offline))


@cli.command(context_settings=HELP, short_help="Read artifacts back, byte for byte.")
@_optional_name
@common
def verify(options: Options, name: str | None) -> None:
    """Read artifacts back and compare every byte with what was published."""
    from reconciler.verbs import by_hand

    sys.exit(by_hand.verify(options, name))


@cli.command(context_settings=HELP, short_help="Forget an image that left the configuration.")
@_name
@option("--protected", is_flag=True, help="Also when the image is protected.")
@lock_timeout
@common
def rm(options: Options, name: str, protected: bool, lock_timeout: float) -> None:
    """Forget an image that left the configuration, now and without a grace."""
    from reconciler.verbs import by_hand

    done = by_hand.hand(options, lock_timeout).remove(name, protected=protected)
    sys.exit(by_hand.tell(options, "rm", done))


@cli.command(context_settings=HELP, short_help="Make the previous artifact current again.")
@_name
@lock_timeout
@common
def rollback(options: Options, name: str, lock_timeout: float) -> None:
    """Make the previous artifact current again; the image stays suspended until `resume`."""
    from reconciler.verbs import by_hand

    done = by_hand.hand(options, lock_timeout).rollback(name)
    sys.exit(by_hand.tell(options, "rollback", done))


@cli.command(context_settings=HELP, short_help="Leave an image, or all of them, alone.")
@_optional_name
@option("--reason", type=Words(), required=True, help="Why; shown wherever the image is.")
@lock_timeout
@common
def suspend(options: Options, name: str | None, reason: str, lock_timeout: float) -> None:
    """Leave an image, or every image, alone until `resume`; restarts do not change that."""
    from reconciler.verbs import by_hand

    done = by_hand.hand(options, lock_timeout).suspend(name, reason)
    sys.exit(by_hand.tell(options, "suspend", done))


@cli.command(context_settings=HELP, short_help="Work on an image, or on all of them, again.")
@_optional_name
@lock_timeout
@common
def resume(options: Options, name: str | None, lock_timeout: float) -> None:
    """Work on an image again; without a name, on all that are suspended."""
    from reconciler.verbs import by_hand

    done = by_hand.hand(options, lock_timeout).resume(name)
    sys.exit(by_hand.tell(options, "resume", done))


@cli.command(context_settings=HELP, short_help="The JSON Schema of banger.toml.")
@as_json
def schema(json: bool) -> None:
    """The JSON Schema of banger.toml, for editors: `#:schema FILE` in the first line of it.

    It is JSON, with --json and without.
    """
    from reconciler.verbs import look

    sys.exit(look.schema())


@cli.command(context_settings=HELP, short_help="A completion script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """A completion script for a shell: eval "$(banger-reconcile completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    if complete is None:
        raise click.UsageError(f"no completion for {shell}")
    variable = "_BANGER_RECONCILE_COMPLETE"
    click.echo(complete(cli, {}, "banger-reconcile", variable).source())


@cli.command(context_settings=HELP, short_help="The version of this program.")
@as_json
def version(json: bool) -> None:
    """The version of this program."""
    if json:
        print_json({"schema_version": "1", "mode": "version", "version": __version__})
    else:
        click.echo(f"banger-reconcile, version {__version__}")


def main() -> NoReturn:
    """Run the command line and exit with a code of the contract."""
    arguments = sys.argv[1:]
    mend_streams()
    # to look for plug-ins in all that is installed takes longer than to read a configuration
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    wants_json = "--json" in arguments
    try:
        # click answers a shell that asks for completions only in its own, standalone mode
        asked = "_BANGER_RECONCILE_COMPLETE" in os.environ
        cli.main(args=arguments, prog_name="banger-reconcile", standalone_mode=asked)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        show_usage_error(words_of(error), help_of(error), as_json=wants_json)
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(130)
    except BangerError as error:
        show_error(error, as_json=wants_json)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        leave_stdout()  # the reader has gone away
        sys.exit(EXIT_FAILED)
    except OSError as error:
        from reconciler.files import host_error

        leave_stdout()
        show_error(host_error("the run ended early", error), as_json=wants_json)
        sys.exit(EXIT_FAILED)
    except Exception as error:  # a bug: whoever reads JSON still gets a document
        traceback.print_exc()
        brief = f"an unexpected {type(error).__name__}: {printable(str(error))}"
        wrapped = HostError(brief, code=Code.INTERNAL, resolution=REPORT, retryable=False)
        show_error(wrapped, as_json=wants_json)
        sys.exit(EXIT_FAILED)
    finally:
        leave_stderr()
    sys.exit(EXIT_OK)
