"""A forked child and the connections of its parent: it lets go of them without a word to the server.

Both processes hold the same sockets. A query of the child on one of them mixes its answer into the parent's, and even a
polite farewell ends the parent's session. So in the child every inherited connection is put on a socket that leads
nowhere, and every pool starts empty; a transaction that was open at the fork fails in the child as a lost connection
does and goes on in the parent. SQLite's files are opened anew; a database in memory is copied with the process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from cloudcore._forks import when_forked
from cloudcore.database.addresses import in_memory

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["part_when_forked"]

_opened: weakref.WeakKeyDictionary[Engine, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
_abandoned: list[Any] = []  # a destructor would talk to the server, or close a file under SQLite's locks


def part_when_forked(engine: Engine) -> None:
    """See to it that no forked child uses a connection that *engine* has opened before. May be called twice."""
    if engine in _opened or in_memory(engine.url):
        return
    _opened[engine] = weakref.WeakSet()
    when_forked(engine, _part)
    if engine.dialect.name != "sqlite":
        known = _opened[engine]

        def note(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
            known.add(connection)

        event.listen(engine, "connect", note)


def _part(engine: Engine) -> None:
    connections = list(_opened[engine])
    _abandoned.extend([engine.pool, *connections])
    for connection in connections:
        _lead_nowhere(connection)
    _opened[engine].clear()
    engine.dispose(close=False)


def _lead_nowhere(connection: Any) -> None:
    """Give the child's copy of a connection the end of a socket pair whose other end is closed."""
    with contextlib.suppress(Exception):  # closed already
        descriptor = _descriptor(connection)
        ours, other = socket.socketpair()
        with ours, other:
            os.dup2(ours.fileno(), descriptor, inheritable=False)


def _descriptor(connection: Any) -> int:
    """The number of a connection's socket: each driver has its own way to it."""
    if hasattr(connection, "fileno"):  # psycopg, mysqlclient
        descriptor: int = connection.fileno()
    elif hasattr(connection, "_get_socket"):  # MariaDB's own
        descriptor = connection._get_socket()  # noqa: SLF001 - its public property makes a second owner, which would close it
    else:
        descriptor = connection._sock.fileno()  # noqa: SLF001 - PyMySQL
    return descriptor
