"""What stands at a database URL: which server, in which role, how it is set, and what had better be changed there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from cloudcore.database.sessions import is_galera

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from cloudcore.database.transactions import Database

__all__ = ["Fact", "examine_database"]

_MAXIMUM_OFFSET = 5.0  # seconds: clocks of client and server decide nothing, but people compare their times


@attrs.frozen
class Fact:
    """One thing found at a database: what was looked at, what is there, and what to change, if anything."""

    name: str
    found: str
    advice: str | None = None


def examine_database(database: Database) -> tuple[Fact, ...]:
    """Look at the server behind *database*; reads only.

    Raises:
        DatabaseUnavailable, DatabaseBusy, DatabaseError: It does not answer.
    """
    with database.read() as connection:
        kind = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}[database.dialect]
        facts = tuple(kind(connection))
    if not database.keeps_sessions:
        facts = (*facts, Fact("pooler", "transaction mode, as the URL says"))
    return facts


def _one(connection: Connection, statement: str) -> str:
    return str(connection.exec_driver_sql(statement).scalar())


def _offset(connection: Connection, statement: str) -> Fact:
    """How far the server's clock is from ours, to about the time that the question took."""
    asked = datetime.now(UTC).timestamp()
    there = float(_one(connection, statement))
    offset = there - (asked + datetime.now(UTC).timestamp()) / 2
    advice = "set both clocks by one source" if abs(offset) > _MAXIMUM_OFFSET else None
    return Fact("clock", f"{offset:+.1f} s from this machine's", advice)


def _sqlite(connection: Connection) -> Iterator[Fact]:
    yield Fact("version", f"SQLite {_one(connection, 'SELECT sqlite_version()')}")
    mode = _one(connection, "PRAGMA journal_mode")
    wanted = None if mode in {"wal", "memory"} else "readers and writers wait for each other: PRAGMA journal_mode=WAL"
    yield Fact("journal", mode, wanted)


def _postgresql(connection: Connection) -> Iterator[Fact]:
    yield Fact("version", f"PostgreSQL {_one(connection, 'SHOW server_version')}")
    if _one(connection, "SELECT pg_is_in_recovery()") == "True":
        yield Fact(
            "role", "standby: it takes no writes", "name all hosts in the URL: postgresql://user@first,second/name"
        )
    else:
        standbys = _one(connection, "SHOW synchronous_standby_names")
        names = f"primary, waits for {standbys}" if standbys else "primary, waits for no standby"
        yield Fact(
            "role", names, None if standbys else "a failover may lose what was acknowledged last: see deployment"
        )
    isolation = _one(connection, "SHOW transaction_isolation")
    yield Fact("isolation", isolation, None if isolation == "read committed" else "transactions will be repeated often")
    encoding = _one(connection, "SHOW server_encoding")
    yield Fact(
        "encoding", encoding, None if encoding == "UTF8" else "names beyond it are refused: CREATE DATABASE ... UTF8"
    )
    bound = _one(connection, "SELECT reset_val FROM pg_settings WHERE name = 'lock_timeout'")  # not our SET LOCAL
    yield Fact("lock_timeout", f"{bound} ms", None if bound != "0" else _UNBOUNDED)
    yield Fact("time zone", _one(connection, "SHOW timezone"))
    commit = _one(connection, "SHOW synchronous_commit")
    yield Fact("synchronous_commit", commit, None if commit not in {"off", "local"} else _LOSES)
    yield Fact("connections", f"at most {_one(connection, 'SHOW max_connections')}")
    yield _offset(connection, "SELECT extract(epoch from clock_timestamp())")


_UNBOUNDED = "a waiter may wait for ever: ALTER ROLE ... SET lock_timeout = '30s'"
_LOSES = "a crash may lose what was acknowledged: synchronous_commit = on"


def _mysql(connection: Connection) -> Iterator[Fact]:
    version = _one(connection, "SELECT version()")
    yield Fact("version", version if "MariaDB" in version else f"MySQL {version}")
    if is_galera(connection):
        yield from _galera(connection)
    else:
        yield Fact("role", "a server by itself, as far as it says")
    read_only = _one(connection, "SELECT @@global.read_only") not in {"0", "OFF"}
    yield Fact("writes", "refused: read_only is on" if read_only else "taken", _REPLICA if read_only else None)
    isolation = connection.get_isolation_level()
    yield Fact(
        "isolation", isolation, None if isolation == "READ COMMITTED" else "give a URL, or open with READ COMMITTED"
    )
    yield Fact("collation", _one(connection, "SELECT @@collation_database"))
    yield Fact("time zone", _one(connection, "SELECT @@session.time_zone"))
    flush = _one(connection, "SELECT @@global.innodb_flush_log_at_trx_commit")
    yield Fact("innodb_flush_log_at_trx_commit", flush, None if flush == "1" else _FLUSH)
    yield Fact("connections", f"at most {_one(connection, 'SELECT @@global.max_connections')}")
    yield _offset(connection, "SELECT unix_timestamp(now(6))")


_REPLICA = "name all hosts in the URL: mysql://user@first,second/name"
_FLUSH = "a power failure may lose what was acknowledged last: 1, unless other nodes have it too"


_ONE_NODE = "they change this node alone: wsrep_OSU_method = TOI"


def _galera(connection: Connection) -> Iterator[Fact]:
    shown = connection.exec_driver_sql(
        "SHOW GLOBAL STATUS WHERE variable_name IN ('wsrep_cluster_size', 'wsrep_cluster_status', "
        "'wsrep_local_state_comment', 'wsrep_flow_control_paused')"
    )
    status = {str(name).lower(): str(value) for name, value in shown}
    size = int(status.get("wsrep_cluster_size", "0"))
    state = status.get("wsrep_local_state_comment", "?")
    node = _one(connection, "SELECT @@wsrep_node_name")
    advice = None if size >= 3 else "with fewer than three nodes the cluster stops when one goes away"
    yield Fact("role", f"Galera node {node}, {state}, one of {size}", advice)
    paused = float(status.get("wsrep_flow_control_paused", "0"))
    slow = "a node is too slow for the others: look for it by wsrep_local_recv_queue" if paused > 0.1 else None
    yield Fact("flow control", f"paused {paused:.0%} of the time", slow)
    form = _one(connection, "SELECT @@innodb_autoinc_lock_mode")
    yield Fact("innodb_autoinc_lock_mode", form, None if form == "2" else "2, as Galera needs it")
    method, threads = _one(connection, "SELECT @@wsrep_osu_method"), _one(connection, "SELECT @@wsrep_slave_threads")
    yield Fact("schema changes", f"{method}, {threads} applier threads", None if method == "TOI" else _ONE_NODE)
