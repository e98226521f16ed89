"""What a pass costs that finds nothing to do: the thing config management calls all day.

    make bench-noop                                    200 and 1,000 images
    python tests/bench/noop.py --images 50 --runs 3

Each row is a process of its own, interleaved with the others; medians. `libraries` imports what the
program stands on (pydantic, click, rich, tomli, sqlite3, structlog, httpx, watchfiles), `pydantic`
is an empty Python with that alone. The images are all different, of one OCI layout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "pydantic.main, click, rich.console, rich.table, tomli, sqlite3"
LIBRARIES += ", structlog, httpx, watchfiles"


def make_host(images: int, base: Path) -> list[str]:
    """A host on which so many images are built; returns the command of another pass."""
    layout = base / "layout"
    tags = _images(ROOT / "examples/hello", layout, images)
    entries = [f'[[image]]\nname = "{tag}"\nref = "oci:{layout}:{tag}"\n' for tag in tags]
    config = base / "banger.toml"
    config.write_text('version = 1\n[defaults]\nsize = "16MiB"\n' + "".join(entries))
    where = ["--state-dir", str(base / "state"), "--cache-dir", str(base / "cache")]
    command = [sys.executable, "-m", "reconciler", *where, str(config)]
    print(f"building {images} images ...", file=sys.stderr)
    subprocess.run([*command, "-q"], check=True, cwd=ROOT)
    return command


def _images(source: Path, layout: Path, count: int) -> list[str]:
    """`count` images that differ in their config only."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    for blob in (source / "blobs/sha256").iterdir():
        (blobs / blob.name).write_bytes(blob.read_bytes())
    (layout / "oci-layout").write_bytes((source / "oci-layout").read_bytes())

    def read(digest: str) -> dict[str, object]:
        document: dict[str, object] = json.loads((blobs / digest.partition(":")[2]).read_bytes())
        return document

    def put(document: object) -> dict[str, object]:
        raw = json.dumps(document).encode()
        name = hashlib.sha256(raw).hexdigest()
        (blobs / name).write_bytes(raw)
        return {"digest": f"sha256:{name}", "size": len(raw)}

    index = json.loads((source / "index.json").read_bytes())
    manifest = read(index["manifests"][0]["digest"])
    config = read(manifest["config"]["digest"])  # type: ignore[index]
    entries = []
    for number in range(count):
        config["created"] = f"2024-01-01T00:00:00.{number:06}Z"
        mine = {**manifest, "config": {**manifest["config"], **put(config)}}  # type: ignore[dict-item]
        note = {"org.opencontainers.image.ref.name": f"i{number}"}
        entries.append({**index["manifests"][0], **put(mine), "annotations": note})
    (layout / "index.json").write_text(json.dumps({**index, "manifests": entries}))
    return [f"i{number}" for number in range(count)]


def cost(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    begin = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="200,1000", help="how many, comma-separated")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    program = [sys.executable, "-m", "reconciler"]
    rows = {
        "empty": [sys.executable, "-c", ""],
        "pydantic": [sys.executable, "-c", "import pydantic.main"],
        "libraries": [sys.executable, "-c", f"import {LIBRARIES}"],
        "--version": [*program, "--version"],
        "--help": [*program, "--help"],
    }
    with tempfile.TemporaryDirectory(prefix="banger-noop-") as base:
        os.environ.setdefault("PYTHONPYCACHEPREFIX", f"{base}/bytecode")
        for count in map(int, options.images.split(",")):
            place = Path(base, str(count))
            place.mkdir()
            rows[f"{count} images"] = make_host(count, place)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for measured in [False] + [True] * options.runs:
            for name, command in rows.items():
                seen = cost(command)
                if measured:
                    found[name].append(seen)
    show(found)


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    """The table, as Markdown: medians, and ratios of the processor time."""
    medians = {
        n: [statistics.median(column) for column in zip(*s, strict=True)] for n, s in found.items()
    }
    pydantic, libraries = medians["pydantic"][1], medians["libraries"][1]
    print("| no-op | wall s | cpu s | of pydantic | of the libraries |\n|---|--:|--:|--:|--:|")
    for name, (wall, cpu) in medians.items():
        ratios = f"{cpu / pydantic:.2f} | {cpu / libraries:.2f}"
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
