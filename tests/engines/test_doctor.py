"""`cloudcore doctor --database URL` says what stands there, on each set-up, and what to change."""

from __future__ import annotations

import pytest

from cloudcore.database import Database
from cloudcore.database.standing import examine_database


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        ("sqlite", {"version": "SQLite", "journal": "wal"}),
        (
            "postgresql",
            {"version": "PostgreSQL", "role": "primary", "isolation": "read committed", "lock_timeout": "30000 ms"},
        ),
        ("mariadb", {"version": "MariaDB", "role": "by itself", "isolation": "READ COMMITTED", "writes": "taken"}),
        ("galera", {"role": "one of 3", "flow control": "paused", "schema changes": "TOI, 1 applier"}),
        ("pgbouncer", {"version": "PostgreSQL", "pooler": "transaction mode", "lock_timeout": "0 ms"}),
    ],
    indirect=["dialect"],
)
def test_what_stands_there(database_url, told):
    with Database(database_url) as database:
        facts = {fact.name: fact for fact in examine_database(database)}
    for name, text in told.items():
        assert text in facts[name].found, facts[name]
    if "clock" in facts:
        assert facts["clock"].advice is None
    if "pooler" in facts:
        assert "ALTER ROLE" in str(facts["lock_timeout"].advice)
    if "journal" in facts or "isolation" in facts:
        assert facts.get("isolation", facts.get("journal")).advice is None
