"""The guest binary as its peers see it: the shipped one, and the same source under sanitizers."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.guest import PACKAGE, SHIPPED

PONG = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
GET = b"GET /ping HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary for aarch64, as a program of this machine."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs qemu-user-static (contrib/install-packages test) and ziglang (.[dev])")
    spec = importlib.util.spec_from_file_location(
        "hatch_build", PACKAGE.parents[1] / "hatch_build.py"
    )
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    folder = tmp_path_factory.mktemp("aarch64")
    hook.compile_guest(PACKAGE, "aarch64", folder / "binary")
    (folder / "program").write_text(f'#!/bin/sh\nexec {emulator} {folder}/binary "$@"\n')
    (folder / "program").chmod(0o755)
    return folder / "program"


def test_aarch64_serves_reports_and_runs(foreign: Path, folder: Path) -> None:
    assert run(foreign, "--version").stdout == "banger-guest 3\n"
    running = Agent(foreign, folder)
    try:
        running.wait()
        assert running.ask().endswith(b"pong")
        assert body(running.ask(b"GET /health HTTP/1.0\r\n\r\n"))["first_boot"] == "done"
        assert running.ask(os.urandom(3000)).startswith(b"HTTP/1.0 400")
    finally:
        running.process.terminate()
        running.process.wait(30)
    user = f"{os.getuid()}:{os.getgid()}"
    config = {"Entrypoint": ["/bin/echo"], "Cmd": ["ü", "two words"], "User": user}
    (folder / "image.json").write_text(json.dumps(config))
    assert run(foreign, "run", folder / "image.json").stdout == "ü two words\n"
    assert run(foreign, "grow", "/proc").returncode == 0
    assert run(foreign, "init").returncode == 64


@pytest.fixture(params=["shipped", "sanitized"])
def program(request: pytest.FixtureRequest) -> Path:
    return SHIPPED if request.param == "shipped" else request.getfixturevalue("sanitized")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bg-") as name:
        yield Path(name)


class Agent:
    """A running agent. Its standard error ends in a file, where sanitizers speak too."""

    def __init__(self, program: Path, folder: Path, *options: str | Path) -> None:
        self.socket = folder / "agent.sock"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            command = [program, "vsock-agent", "--unix", self.socket, *options]
            self.process = subprocess.Popen(command, stderr=log)

    def wait(self) -> None:
        for _ in range(200):
            if self.process.poll() is not None or b"listening on" in self.log.read_bytes():
                return
            time.sleep(0.02)
        pytest.fail("the agent does not listen")

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.socket))  # blocking: with a timeout, a full backlog is an error
        peer.settimeout(10)
        return peer

    def ask(self, request: bytes = GET) -> bytes:
        with self.connect() as peer:
            peer.sendall(request)
            return read_all(peer)


def read_all(peer: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := peer.recv(65536):
            answer += part
    return answer


@pytest.fixture
def agent(program: Path, folder: Path) -> Iterator[Agent]:
    """An agent that has to end well: status 0, and nothing said but where it listened."""
    running = Agent(program, folder)
    try:
        running.wait()
        yield running
        running.process.terminate()
        assert running.process.wait(10) == 0
        assert running.log.read_text().count("\n") == 1, running.log.read_text()
        assert not running.socket.exists()
    finally:
        running.process.kill()
        running.process.wait()


def test_ping(agent: Agent) -> None:
    answer = agent.ask()
    assert answer.startswith(PONG)
    assert answer.endswith(b"\r\n\r\npong")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /ping HTTP/1.0\n\n", b"200"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", b"200"),
        (b"GET /ping?verbose=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /ping/ HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /pin HTTP/1.0\r\n\r\n", b"404"),
        (b"GET //ping HTTP/1.0\r\n\r\n", b"404"),
        (b"\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"hello\n", b"400"),
        (b"GET /ping\r\n\r\n", b"400"),
        (b"GET /ping FTP/1.0\r\n\r\n", b"400"),
        (b"GET ping HTTP/1.0\r\n\r\n", b"400"),
        (b"get /ping HTTP/1.0\r\n\r\n", b"400"),
        (b"POST /ping HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", b"400"),
        (b"GET http://x/ping HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /pi\x00ng HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /ping\x00 HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /\x1b[31m HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /\xff\xfe HTTP/1.0\r\n\r\n", b"400"),
        (b"\x00" * 4096, b"400"),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /ping HTTP/1.0\r\n" + b"A: b\r\n" * 2000 + b"\r\n", b"400"),
        (b"GET /ping HTTP/1.0\r\n\r\n" + b"x" * 200_000, b"200"),
        (b"A" * 1_000_000, b"400"),
    ],
)
def test_one_answer_to_each_request(agent: Agent, request_bytes: bytes, status: bytes) -> None:
    with agent.connect() as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(request_bytes)
        assert peer.recv(64).split(b" ")[1] == status
    assert agent.ask().endswith(b"pong")


def body(answer: bytes) -> Any:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n")
    assert f"Content-Length: {len(rest)}\r\n".encode() in head
    return json.loads(rest)


def test_health(agent: Agent) -> None:
    health = body(agent.ask(b"GET /health HTTP/1.0\r\n\r\n"))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert health["status"] in ("ok", "degraded")
    assert health["boot_id"] == boot_id
    assert abs(health["uptime_seconds"] - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
    assert health["first_boot"] == "done"


def test_ports_have_addresses_and_holders(agent: Agent) -> None:
    mine = {"pid": os.getpid(), "process": Path("/proc/self/comm").read_text().strip()}
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.2", 0))
        ports = body(agent.ask(b"GET /ports HTTP/1.0\r\n\r\n"))
        for kind, address, server in (
            ("tcp", "127.0.0.1", tcp), ("tcp", "::1", tcp6), ("udp", "127.0.0.2", udp)
        ):  # fmt: skip
            number = server.getsockname()[1]
            entry = {"protocol": kind, "address": address, "port": number, **mine}
            assert entry in ports["ports"]
    assert ports["truncated"] is False


def test_more_ports_than_fit_are_said_to_be_more(agent: Agent) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ports = body(agent.ask(b"GET /ports HTTP/1.0\r\n\r\n"))
    assert ports["truncated"] is True
    assert len(ports["ports"]) > 50


def test_a_crowd_that_asks_for_reports_shares_them(agent: Agent) -> None:
    asked = [agent.ask(b"GET /health HTTP/1.0\r\n\r\n") for _ in range(300)]
    assert len(set(asked)) <= 1 + len(asked) // 10


def test_a_request_that_ends_with_the_connection(agent: Agent) -> None:
    with agent.connect() as peer:
        peer.sendall(b"GET /ping HTTP/1.0\n")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer).endswith(b"pong")


def test_a_request_in_single_bytes(agent: Agent) -> None:
    with agent.connect() as peer:
        for number in GET:
            peer.sendall(bytes([number]))
            time.sleep(0.002)
        assert read_all(peer).endswith(b"pong")


def test_slow_peers_are_dropped_and_hinder_nobody(agent: Agent) -> None:
    with agent.connect() as idle, agent.connect() as dripping, agent.connect() as deaf:
        begin = time.monotonic()
        deaf.sendall(GET)
        open_ones = {"idle": idle, "dripping": dripping}
        while open_ones and time.monotonic() - begin < 9:
            assert agent.ask().endswith(b"pong")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                dripping.sendall(b"G" if time.monotonic() - begin < 1 else b"E")
            time.sleep(0.1)
            open_ones = {name: peer for name, peer in open_ones.items() if not ended(peer)}
        assert not open_ones
        assert 4 < time.monotonic() - begin < 8


def ended(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(4096) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_crowd_of_idle_peers_does_not_lock_out_an_honest_one(agent: Agent) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(agent.connect())
        begin = time.monotonic()
        assert agent.ask().endswith(b"pong")
        assert time.monotonic() - begin < 3
        descriptors = len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))
        assert descriptors < 60


def test_a_thousand_requests_leave_nothing_open(agent: Agent) -> None:
    folder = Path(f"/proc/{agent.process.pid}/fd")
    before = len(list(folder.iterdir()))
    assert all(agent.ask().endswith(b"pong") for _ in range(1000))
    time.sleep(0.2)
    assert len(list(folder.iterdir())) == before


def test_random_bytes_and_hang_ups(agent: Agent) -> None:
    chance = random.Random(42070)
    for _ in range(300):
        with agent.connect() as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            start = chance.choice([b"", b"GET ", b"GET /ping HTTP/1.0\r\n", b"GET /"])
            peer.sendall(start + chance.randbytes(chance.randrange(3000)))
            if chance.random() < 0.5:
                peer.shutdown(socket.SHUT_WR)
                read_all(peer)
    assert agent.ask().endswith(b"pong")


def test_tcp_is_on_loopback_only(program: Path, folder: Path) -> None:
    agent = Agent(program, folder, "--tcp", "0")
    try:
        while agent.log.read_text().count("\n") < 2:
            time.sleep(0.02)
        where = agent.log.read_text().split()[-1]
        host, port = where.split(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), 10) as peer:
            peer.sendall(GET + b"x" * 100_000)
            assert read_all(peer).endswith(b"pong")  # unread bytes did not reset it away
    finally:
        agent.process.terminate()
        assert agent.process.wait(10) == 0


def test_vsock(program: Path) -> None:
    if not Path("/dev/vsock").exists():
        pytest.skip("no vsock on this machine")
    command = [program, "vsock-agent", "--port", str(random.randrange(50_000, 60_000))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.terminate()
    assert said == f"banger-agent: listening on: vsock port {command[-1]}\n"
    assert process.returncode == 0


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=10, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 64),
        (["no-such-role"], 64),
        (["vsock-agent", "--port"], 64),
        (["vsock-agent", "--port", ""], 64),
        (["vsock-agent", "--port", "-1"], 64),
        (["vsock-agent", "--port", "0x10"], 64),
        (["vsock-agent", "--port", "99999999999999999999999"], 64),
        (["vsock-agent", "--tcp", "65536"], 64),
        (["vsock-agent", "--tcp", "1", "--bogus", "1"], 64),
        (["vsock-agent", "x" * 100_000, "y"], 64),
        (["network", "x"], 64),
        (["first-boot", "x"], 64),
        (["grow", "/", "x"], 64),
        (["grow", "/no/such/folder"], 1),
        (["run", "a", "b"], 64),
        (["run", "/no/such/file"], 1),
        (["run", "/"], 1),
        (["init"], 64),
        (["init", "0"], 64),
        (["vsock-agent", "--unix", ""], 1),
        (["vsock-agent", "--unix", "/tmp/" + "x" * 200], 1),
        (["vsock-agent", "--unix", "/no/such/folder/socket"], 1),
    ],
)
def test_a_broken_command_line_is_one_line(
    program: Path, arguments: list[str], status: int
) -> None:
    done = run(program, *arguments)
    assert done.returncode == status
    assert done.stderr.startswith("banger-")
    assert done.stderr.count("\n") == 1


def test_version_and_help(program: Path) -> None:
    assert run(program, "--version").stdout == "banger-guest 3\n"
    assert "vsock-agent" in run(program, "--help").stdout


def test_the_name_chooses_the_role(program: Path, folder: Path) -> None:
    link = folder / "vsock-agent"
    link.symlink_to(program)
    assert "--port" in run(link, "--port").stderr


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(program: Path, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "agent.sock"))
    first = Agent(program, folder)
    first.wait()
    try:
        second = run(program, "vsock-agent", "--unix", first.socket)
        assert second.returncode == 1
        assert "in use" in second.stderr
        assert first.ask().endswith(b"pong")
    finally:
        first.process.terminate()
        first.process.wait()


def test_a_file_in_place_of_the_socket_is_left_alone(program: Path, folder: Path) -> None:
    (folder / "file").write_text("precious")
    assert run(program, "vsock-agent", "--unix", folder / "file").returncode == 1
    assert (folder / "file").read_text() == "precious"


def test_the_shipped_binary_is_small_static_and_knows_no_path_of_its_maker() -> None:
    content = SHIPPED.read_bytes()
    assert content.startswith(b"\x7fELF")
    assert len(content) < 96 * 1024
    assert b"ld-musl" not in content
    assert b"ld-linux" not in content
    for place in (PACKAGE, tempfile.gettempdir(), os.environ.get("HOME") or "/root"):
        assert f"{place}/".encode() not in content
