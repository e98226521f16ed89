"""What the daemon shows: health, metrics, status, the page, and who may ask."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.daemon import PATIENCE, watching
from support.images import directory, file, make_layout, tar
from support.program import Program
from test_daemon import config_of

from reconciler.errors import HostError
from reconciler.serve import parse_address

SMALL = tar(directory("etc"), file("etc/hostname", b"guest\n"))
Numbers = dict[tuple[str, str], float]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "host")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_layout(tmp_path / "small", [SMALL])
    (tmp_path / "etc").mkdir()
    return config_of(tmp_path / "etc/banger.toml", f"oci:{tmp_path}/small", "oci:/no/such")


def get(address: str, path: str, **headers: str) -> tuple[int, str, str]:
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    return answer.status, answer.headers["Content-Type"], body


def numbers(text: str) -> Numbers:
    found: Numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, " ".join(sample.labels.values())] = sample.value
    return found


def told(path: Path, metric: str) -> float | None:
    """What a textfile says, if it is there already."""
    return numbers(path.read_text())[metric, ""] if path.exists() else None


class TestListening:
    def test_everything_that_is_shown(self, program: Program, config: Path) -> None:
        with watching(program, config, "--listen", "127.0.0.1:0") as daemon:
            where = daemon.wait("listening")["address"]
            daemon.wait("reconcile.finished")
            assert get(where, "/healthz")[0] == 200
            assert get(where, "/readyz")[0] == 200
            code, kind, body = get(where, "/status")
            assert (code, kind) == (200, "application/json")
            images = {image["name"]: image for image in json.loads(body)["images"]}
            assert images["a"]["conditions"][0]["status"] == "True"
            assert images["b"]["error"]
            assert images["b"]["next_retry_at"]
            assert {c["type"]: c["reason"] for c in images["b"]["conditions"]} == {
                "Ready": "NotFound",
                "Stalled": "NotFound",
            }
            code, kind, body = get(where, "/metrics")
            assert kind.startswith("text/plain")
            found = numbers(body)
            assert found["banger_image_ready", "a"] == 1
            assert found["banger_image_ready", "b"] == 0
            assert found["banger_passes_total", "failed"] == 1
            assert found["banger_stage_duration_seconds_count", "ext4"] == 1
            code, kind, body = get(where, "/")
            assert code == 200
            assert "b is unwell" in body
            assert "Next try in" in body
            assert get(where, "/nothing")[0] == 404

    def test_a_rejected_configuration_is_healthy_but_not_ready(
        self, program: Program, config: Path
    ) -> None:
        with watching(program, config, "--listen", "127.0.0.1:0") as daemon:
            where = daemon.wait("listening")["address"]
            daemon.wait("reconcile.finished")
            config.write_text("version = ")
            daemon.wait("config.rejected")
            assert get(where, "/healthz")[0] == 200
            code, _, body = get(where, "/readyz")
            assert code == 503
            assert "rejected" in json.loads(body)["message"]
            assert numbers(get(where, "/metrics")[2])["banger_config_rejected", ""] == 1

    def test_a_page_elsewhere_cannot_read_it_by_its_own_name(
        self, program: Program, config: Path
    ) -> None:
        with watching(program, config, "--listen", "127.0.0.1:0") as daemon:
            where = daemon.wait("listening")["address"]
            for name in ("evil.example", "127.evil.example", "127.0.0.1.evil.example:80", ""):
                assert get(where, "/status", Host=name)[0] == 421
            assert get(where, "/healthz", Host="127.0.0.1")[0] == 200
            assert get(where, "/healthz", Host="localhost:80")[0] == 200

    def test_records_that_cannot_be_read_are_said(self, program: Program, config: Path) -> None:
        with watching(program, config, "--listen", "127.0.0.1:0") as daemon:
            where = daemon.wait("listening")["address"]
            daemon.wait("reconcile.finished")
            with sqlite3.connect(program.state / "records.db", timeout=60) as database:
                database.execute("PRAGMA user_version = 99")
            database.close()
            code, _, body = get(where, "/")
            assert code == 503
            assert "newer" in json.loads(body)["error"]
            assert get(where, "/healthz")[0] == 200
        assert daemon.noise == []

    def test_a_unix_socket_comes_and_goes(
        self, program: Program, config: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "s"
        for _ in range(2):
            with watching(program, config, "--listen", f"unix:{path}") as daemon:
                daemon.wait("listening")
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(60)
                    client.connect(str(path))
                    client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                    assert client.makefile("rb").readline().split()[1] == b"200"
                daemon.process.kill()  # the next one finds the socket of the dead
                daemon.ended()
        with watching(program, config, "--listen", f"unix:{path}") as daemon:
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0
        assert not path.exists()

    def test_the_socket_of_a_living_one_is_left_to_it(
        self, program: Program, config: Path, tmp_path: Path
    ) -> None:
        with watching(program, config, "--listen", f"unix:{tmp_path}/s") as daemon:
            daemon.wait("listening")
            other = Program(tmp_path / "other")
            refused = other.run("--watch", "--listen", f"unix:{tmp_path}/s", config)
            assert refused.code == 1
            assert "another process listens" in refused.err
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{tmp_path}/s")

    @pytest.mark.parametrize("address", ["0.0.0.0:80", "192.0.2.1:80", "[::]:80", "host:80", "x"])
    def test_a_network_is_refused(self, address: str) -> None:
        with pytest.raises(HostError, match="--listen"):
            parse_address(address)


class TestMetricsFile:
    def test_after_each_pass_whole_and_readable(
        self, program: Program, config: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "banger.prom"
        with watching(program, config, "--metrics-file", path) as daemon:
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGHUP)
            daemon.wait("reconcile.finished")
            daemon.signal(signal.SIGTERM)
            assert daemon.ended() == 0
        found = numbers(path.read_text())
        assert found["banger_passes_total", "failed"] == 2
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert [p.name for p in tmp_path.iterdir() if "prom" in p.name] == ["banger.prom"]

    def test_a_rejected_file_is_told_without_a_pass(
        self, program: Program, config: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "banger.prom"
        with watching(program, config, "--metrics-file", path) as daemon:
            daemon.wait("reconcile.finished")
            for text, rejected in (("version = ", 1.0), (config.read_text(), 0.0)):
                config.write_text(text)
                until = time.monotonic() + PATIENCE
                while told(path, "banger_config_rejected") != rejected:
                    assert time.monotonic() < until
                    time.sleep(0.02)

    def test_of_one_pass(self, program: Program, config: Path, tmp_path: Path) -> None:
        program.run(config, "--metrics-file", tmp_path / "one.prom")
        assert numbers((tmp_path / "one.prom").read_text())["banger_image_ready", "a"] == 1
