"""Faults between a client and a server: a TCP proxy that can be told to misbehave.

    with Proxy(server.port) as proxy:
        database = Database(server.url(name, port=proxy.port))
        proxy.cut()                          # every connection is reset, now; new ones are accepted
        proxy.cut_when(b"COMMIT")            # the next time a client sends these bytes: NOT delivered, then cut
        proxy.cut_after(b"COMMIT")           # ... they are delivered, and the connection is cut before the answer
        proxy.hang(); proxy.heal()           # a black hole: nothing is passed on in either direction, nothing is closed
        proxy.delay(0.2)                     # each chunk of data waits this long, in each direction
        proxy.refuse()                       # new connections are reset; existing ones live on
        proxy.accept()                       # take that back
        proxy.count                          # connections so far; proxy.cuts: how many were cut by cut_when/cut_after
        proxy.wait_cut()                     # until a cut_when/cut_after has happened

A reset is a TCP reset (SO_LINGER 0), so the client sees what it sees when the server's machine goes away. `cut_after`
waits until the server has answered, so the effect has happened for certain, and drops that answer. A cut that is armed
and whose bytes no client sends fails at the end of the block.
Thread-safe; nothing outlives `close()`.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from typing import Literal, Self

_RESET = struct.pack("ii", 1, 0)


class _Pair:
    """One client's connection and its other half."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.answer_doomed = False

    def reset(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """A TCP proxy on a free loopback port in front of a server's port; of several servers each is given its turn."""

    def __init__(self, *targets: int) -> None:
        self._targets = itertools.cycle(targets)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._delay = 0.0
        self._refusing = False
        self._trigger: tuple[bytes, Literal["before", "after"]] | None = None
        self._never_sent: list[bytes] = []
        self._cut = threading.Event()
        self.count = 0
        self.cuts = 0
        self._spawn(self._accept)

    # ---- faults

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()

    def cut_when(self, needle: bytes) -> None:
        """Once: when a client sends these bytes, reset its connection without passing them on."""
        self._arm(needle, "before")

    def cut_after(self, needle: bytes) -> None:
        """Once: when a client sends these bytes, pass them on, wait for the server's answer, drop that and reset."""
        self._arm(needle, "after")

    def _arm(self, needle: bytes, when: Literal["before", "after"]) -> None:
        with self._lock:
            self._cut.clear()
            self._never_sent += [self._trigger[0]] if self._trigger else []
            self._trigger = (needle, when)

    def wait_cut(self, seconds: float = 30.0) -> None:
        """Wait for the cut that was armed; TimeoutError if it does not come."""
        if not self._cut.wait(seconds):
            raise TimeoutError(f"no client sent the bytes that were waited for in {seconds:g} s")

    def hang(self) -> None:
        """Pass nothing on from now, close nothing; new connections are accepted and hang too."""
        self._open.clear()

    def delay(self, seconds: float) -> None:
        """Let each chunk wait before it is passed on."""
        self._delay = seconds

    def refuse(self) -> None:
        """Reset new connections as soon as they are made."""
        self._refusing = True

    def accept(self) -> None:
        """Take `refuse` back."""
        self._refusing = False

    def heal(self) -> None:
        """Take everything back: hang, delay, refuse and armed cuts. What was held is passed on."""
        with self._lock:
            self._never_sent += [self._trigger[0]] if self._trigger else []
            self._trigger = None
        self._delay, self._refusing = 0.0, False
        self._open.set()

    # ---- passing on

    def _spawn(self, target, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._lock:
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.count += 1
            if self._refusing:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        self._open.wait()
        with self._lock:
            target = next(self._targets)
        try:
            server = socket.create_connection(("127.0.0.1", target), timeout=10)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.add(pair)
            if self._closed:
                pair.reset()
        try:
            with client, server:
                self._pump(pair)
        except OSError:
            pass
        finally:
            with self._lock:
                self._pairs.discard(pair)

    def _pump(self, pair: _Pair) -> None:
        other = {pair.client: pair.server, pair.server: pair.client}
        open_ends = set(other)
        while open_ends:
            readable, _, _ = select.select(open_ends, [], [])
            for end in readable:
                data = end.recv(65536)
                if self._delay:
                    time.sleep(self._delay)
                self._open.wait()
                if not data:
                    open_ends.discard(end)
                    with contextlib.suppress(OSError):
                        other[end].shutdown(socket.SHUT_WR)
                    if end is pair.server:
                        return
                elif not self._pass(pair, end, data, other[end]):
                    return

    def _pass(self, pair: _Pair, source: socket.socket, data: bytes, target: socket.socket) -> bool:
        """Deliver unless a fault wants this chunk; False when the connection has been cut."""
        if pair.answer_doomed and source is pair.server:
            return self._sever(pair)
        if source is pair.client:
            with self._lock:
                trigger = self._trigger
                hit = trigger is not None and trigger[0] in data
                if hit:
                    self._trigger = None
            if hit and trigger is not None:
                if trigger[1] == "before":
                    return self._sever(pair)
                pair.answer_doomed = True
        target.sendall(data)
        return True

    def _sever(self, pair: _Pair) -> bool:
        pair.reset()
        self.cuts += 1
        self._cut.set()
        return False

    # ---- life

    def close(self) -> None:
        """Reset what is open and wait for the threads."""
        with self._lock:
            self._closed = True
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        self.close()
        assert failure or not self._never_sent, f"a cut was armed, and no client sent {self._never_sent}"
