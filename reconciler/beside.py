"""What the daemon does beside its loop: one pass, or one look at the file, in a thread of its own.

The loop must stay awake for signals, the watchdog and edits; whatever may wait for a disk, a
network or another process runs here and reports into the loop's inbox.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from reconciler.agenda import Ending
from reconciler.allocator import give_back
from reconciler.config.load import Config
from reconciler.errors import REPORT, BangerError, Code, HostError
from reconciler.reconcile import Host, Pass, reconcile
from reconciler.room import Interrupted
from reconciler.text import printable


def beside(name: str, work: Callable[[], None]) -> None:
    """Run something in a thread that does not keep the process alive. Raises RuntimeError."""
    threading.Thread(target=work, name=name, daemon=True).start()


def one_pass(config: Config, host: Host) -> Pass | BangerError:
    """A pass, or why there was none; raises nothing."""
    try:
        return reconcile(config, host)
    except BangerError as error:
        return error
    except Exception as error:  # a bug in one pass must not end the service
        host.emit("reconcile.crashed", exc_info=True)
        brief = f"an unexpected {type(error).__name__}: {printable(str(error))}"
        return HostError(brief, code=Code.INTERNAL, resolution=REPORT)
    finally:
        give_back()


def ending(error: BangerError) -> Ending:
    """What an error means for the next try."""
    if isinstance(error, Interrupted):
        return Ending.INTERRUPTED
    return Ending.RETRY if error.retryable else Ending.STALLED
