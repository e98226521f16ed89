"""A daemon that runs for months, in short: random edits, failing registries, TERM, KILL, restart.

What must not grow is measured after every pass of one process and compared with its early passes:
descriptors, threads, memory, what lies on disk. 30 passes by default; BANGER_SOAK_PASSES=500 is the
long run, BANGER_SOAK_SEED another one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
from support.daemon import Daemon, watching
from support.images import directory, file, make_layout, tar
from support.invariants import problems
from support.program import Program
from support.registries import Scripted, answer
from support.server import Route, scripted

PASSES = int(os.environ.get("BANGER_SOAK_PASSES", "30"))
SEED = int(os.environ.get("BANGER_SOAK_SEED", "4"))
HEAD = """version = 1
[reconcile]
interval = "1h"
settle = "20ms"
retry = { base = "50ms", factor = 2, max = "200ms" }
[gc]
staging-min-age = "0s"
blob-min-age = "0s"
[prune]
images = true
grace = "0s"
max = "100%"
"""


@dataclass(frozen=True)
class Measure:
    """What a process and its directories hold at one moment."""

    descriptors: int
    threads: int
    resident_mib: float
    disk_mib: float


@dataclass
class Soak:
    """The host under test, and the hand that shakes it."""

    root: Path
    program: Program
    registry: Scripted
    dice: random.Random
    well: dict[str, Route]
    """The routes of a registry that feels well."""
    taken: list[Measure] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.root / "etc/banger.toml"

    def write(self, *, good: bool = True) -> None:
        """Another configuration, in one of the ways in which files are changed."""
        dice = self.dice
        rows = [HEAD, f"# {dice.random()}"]
        rows.append(f'[[registry]]\nhost = "{self.registry.host}"\nplain-http = true')
        for name in dice.sample(["a", "b", "c", "d"], dice.randint(1, 4)):
            rows.append(f'[[image]]\nname = "{name}"\nref = "{self._ref()}"')
            rows.append(f'size = "{dice.choice((16, 20))}MiB"\nretain = {dice.randint(0, 1)}')
            rows.append('pull = "always"')
        text = "\n".join(rows) + "\n" if good else self._torn()
        if dice.random() < 0.5:
            self.config.write_text(text)
            return
        new = self.config.with_name(".new")
        new.write_text(text)
        new.rename(self.config)

    def _torn(self) -> str:
        """No configuration, and never twice the same: one is rejected once for its bytes."""
        number = self.dice.randint(1, 10**6)
        return self.dice.choice((f"version = # {number}", f"{HEAD[:-4]}# {number}", f"[{number}"))

    def _ref(self) -> str:
        layouts = [f"oci:{self.root}/l{number}" for number in range(3)]
        return self.dice.choice([*layouts, f"{self.registry.host}/x:1", "oci:/no/such/layout"])

    def weather(self) -> None:
        """How the registry feels from here on."""
        script, routes = self.registry.script, self.well
        script.routes.clear()
        script.routes.update(routes)
        bad: list[Route | None] = [None, answer(b"", status=503), answer(b"", status=401)]
        bad.append(lambda request: request.cut(b"half", 4000))
        bad.append(answer(b"", {"Retry-After": "1"}, status=429))
        if route := self.dice.choice(bad):
            for path in self.dice.sample(sorted(routes), self.dice.randint(1, len(routes))):
                script.routes[path] = route

    def measure(self, daemon: Daemon) -> None:
        process = Path(f"/proc/{daemon.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        disk = sum(path.lstat().st_blocks * 512 for path in self.program.root.rglob("*"))
        self.taken.append(
            Measure(
                descriptors=len(list((process / "fd").iterdir())),
                threads=int(status["Threads"]),
                resident_mib=int(status["VmRSS"].split()[0]) / 1024,
                disk_mib=disk / 2**20,
            )
        )


@contextmanager
def set_up(root: Path) -> Iterator[Soak]:
    (root / "etc").mkdir()
    for number in range(3):
        content = random.Random(number).randbytes(200_000)
        make_layout(root / f"l{number}", [tar(directory("etc"), file("etc/x", content))])
    with scripted() as script:
        registry = Scripted(root / "remote", script)
        soak = Soak(
            root, Program(root / "host"), registry, random.Random(SEED), dict(script.routes)
        )
        soak.write()
        yield soak


def one_pass(soak: Soak, daemon: Daemon) -> None:
    """Shake it, and wait until a pass that began after that has ended."""
    kind = soak.dice.random()
    if kind < 0.25:
        soak.weather()
    if kind < 0.15:
        soak.write(good=False)
        daemon.wait("config.rejected")
    elif kind < 0.75:
        soak.write()
        daemon.wait("config.loaded")
    elif kind < 0.85 and (links := sorted(soak.program.state.glob("images/by-name/*"))):
        (soak.dice.choice(links) / "rootfs.ext4").resolve().unlink(missing_ok=True)
    daemon.signal(signal.SIGHUP)
    daemon.wait("reconcile.finished")


@contextmanager
def running(soak: Soak) -> Iterator[Daemon]:
    words = ("--listen", f"unix:{soak.root}/s", "--metrics-file", soak.root / "m.prom")
    with watching(soak.program, soak.config, *words) as daemon:
        daemon.wait("reconcile.finished")
        yield daemon


def flat(soak: Soak, what: Callable[[Measure], float], ratio: float, slack: float) -> None:
    """The late measures are like the early ones: medians, so that one pass at work is none."""
    share = max(5, len(soak.taken) // 4)
    early = median(what(one) for one in soak.taken[5 : 5 + share])
    late = median(what(one) for one in soak.taken[-share:])
    print(f"  medians {early:.1f} early, {late:.1f} late")
    assert late <= early * ratio + slack, [what(one) for one in soak.taken]


def test_nothing_grows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with set_up(tmp_path) as soak:
        begin = time.monotonic()
        with running(soak) as daemon:
            for _ in range(PASSES):
                one_pass(soak, daemon)
                soak.measure(daemon)
            passes = daemon.names().count("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0
            assert daemon.noise == []
        seconds = time.monotonic() - begin
    first, last = soak.taken[0], soak.taken[-1]
    with capsys.disabled():
        print(f"\nsoak: {passes} passes in {seconds:.0f} s\n  first {first}\n  last  {last}")
        flat(soak, lambda one: one.descriptors, 1.0, 3)
        flat(soak, lambda one: one.threads, 1.0, 3)
        flat(soak, lambda one: one.resident_mib, 1.15, 8)
        flat(soak, lambda one: one.disk_mib, 1.5, 10)


def test_whatever_ends_it_the_next_one_heals(tmp_path: Path) -> None:
    """TERM and KILL at random moments; after the last restart all is as the file says."""
    with set_up(tmp_path) as soak, ExitStack() as stack:
        for number in range(max(4, PASSES // 5)):
            daemon = stack.enter_context(watching(soak.program, soak.config))
            soak.weather()
            daemon.wait("watch.armed")
            time.sleep(soak.dice.random() * 0.5)
            soak.write()
            time.sleep(soak.dice.random() * 0.5)
            daemon.signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
            assert daemon.ended() == (-signal.SIGKILL if number % 2 else 0)
        soak.registry.script.routes.update(soak.well)
        rows = [HEAD]
        rows += [f'[[image]]\nname = "{n}"\nref = "oci:{tmp_path}/l{n}"' for n in range(3)]
        soak.config.write_text("\n".join(rows) + "\n")
        for _ in range(3):
            assert soak.program.run(soak.config).code == 0
        program = soak.program
        assert problems(program.state, program.cache, program.root / "tmp") == []
        assert sorted(soak.program.run("status", "--json").images) == ["0", "1", "2"]
