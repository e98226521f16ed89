"""Credential helpers: the programs with which docker keeps passwords (`docker-credential-NAME`).

`oci.auth` decides which one is asked for which registry and reads its answer; here it is run. The
protocol is that of docker-credential-helpers: the server on standard input, JSON on standard
output. What a helper prints is a secret or may hold one, so none of it ever enters a message.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from reconciler.errors import Code, HostError
from reconciler.processes import SYSTEM_DIRECTORIES, Checkpoint, Completed, never, run
from reconciler.text import printable

HELPER_SECONDS = 30.0
"""Longest time for an answer: a helper may ask a keyring service, but nobody at a terminal."""
_NOTHING = b"credentials not found"


def ask_helper(program: str, server: str, checkpoint: Checkpoint = never) -> str:
    """The answer of `program get` for a server; empty when it keeps nothing for that one.

    The helper gets this process's environment, in which it finds its keyring, like under docker.
    Raises HostError: TOOL_MISSING, TOOL_FAILED, UNAUTHORIZED when the helper itself gives up.
    """
    answer = _run(_find(program), server, checkpoint)
    if answer.status == 0:
        return answer.stdout.decode("utf-8", "replace")
    if _NOTHING in answer.stdout.lower():
        return ""
    raise HostError(
        f"{program} gives no credentials for {printable(server)}: status {answer.status}",
        code=Code.UNAUTHORIZED,
        retryable=False,
        resolution=_try_it(program, server),
    )


def _find(program: str) -> Path:
    """A helper on PATH, or where a service's PATH often does not look."""
    where = os.pathsep.join(filter(None, (os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES)))
    found = shutil.which(program, path=where)
    if not found:
        raise HostError(
            f"the credential helper {program} was not found",
            code=Code.TOOL_MISSING,
            resolution="Install it, or set `auth-file` in a [[registry]] entry.",
        )
    return Path(found).absolute()


def _run(helper: Path, server: str, checkpoint: Checkpoint) -> Completed:
    try:
        return run(
            [helper, "get"],
            timeout=HELPER_SECONDS,
            checkpoint=checkpoint,
            environment=os.environ,
            stdin=server.encode(),
            may_fork=True,
        )
    except HostError as error:
        raise HostError(
            f"{helper.name} did not answer for {printable(server)}",
            code=error.code,
            resolution=_try_it(helper.name, server),
        ) from None


def _try_it(program: str, server: str) -> str:
    return f"Try `echo {printable(server)} | {program} get` as the user that runs banger-reconcile."
