"""A TCP relay on loopback that a test can cut, and that may be an HTTP proxy for CONNECT.

with relay("127.0.0.1:5000") as line:
    line.cut_after = 1000    # bytes of the server from now on, then the connection breaks
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 14


class Relay:
    """Passes connections on. `relayed`: bytes of the server; `tunnels`: targets of CONNECT."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.plan: list[int] = []
        self.cuts = 0
        self.relayed = 0
        self.tunnels: list[str] = []
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Accept until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _attend(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            target = self._target or self._tunnel(client)
            name, _, port = target.rpartition(":")
            with socket.create_connection((name, int(port))) as server:
                upwards = threading.Thread(target=_copy, args=(client, server), daemon=True)
                upwards.start()
                self._downwards(server, client)
                for end in (client, server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                upwards.join()

    def _tunnel(self, client: socket.socket) -> str:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(_CHUNK)
        target = head.split()[1].decode()
        self.tunnels.append(target)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return target

    def _downwards(self, server: socket.socket, client: socket.socket) -> None:
        while chunk := server.recv(_CHUNK):
            with self._lock:
                self.relayed += len(chunk)
                if self.plan and len(chunk) > self.plan[0]:
                    client.sendall(chunk[: self.plan.pop(0)])
                    self.cuts += 1
                    return
                if self.plan:
                    self.plan[0] -= len(chunk)
            client.sendall(chunk)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            target.sendall(chunk)


@contextmanager
def relay(target: str = "") -> Iterator[Relay]:
    """Relay to `host:port`; without one, to whatever a CONNECT request names."""
    running = Relay(target)
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.close()
        thread.join()
