"""`cloudcore doctor --database URL` says what stands there, on each set-up, and what to change."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from cloudcore.database import Database
from cloudcore.database.standing import examine_database
from cloudcore.doctor import State, examine


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


GLANCE = {"versions": [{"id": "v2.9", "status": "CURRENT", "links": []}]}
NOVA = {"versions": [{"id": "v2.1", "version": "2.79", "min_version": "2.1", "status": "CURRENT"}]}
KEYSTONE = {"versions": {"values": [{"id": "v3.14", "status": "stable", "links": []}]}}
OLD = {"versions": [{"id": "v2.0", "version": "", "min_version": ""}]}
HALF = {"versions": [{"id": "v3.0", "version": "3.59"}]}
CINDER = {"versions": [*OLD["versions"], {"id": "v3.0", "version": "3.59", "min_version": "3.0"}]}


@pytest.fixture
def answering(request):
    """A server that gives one answer to whoever asks; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(request.param).encode()
            self.send_response(300)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("answering", [GLANCE, NOVA, KEYSTONE, OLD, HALF, [], 7, {"versions": None}], indirect=True)
def test_another_service_is_no_volume_service(answering):
    *_, found = examine(cinder=answering)
    assert (found.part, found.state) == (answering, State.UNREACHABLE)
    assert "this is no volume API" in found.detail


@pytest.mark.parametrize("answering", [CINDER], indirect=True)
def test_volume_service_tells_its_versions(answering):
    *_, found = examine(cinder=answering)
    assert (found.state, found.detail) == (State.OK, "volume API, microversions 3.0 to 3.59")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("postgresql://u:secret@127.0.0.1:1,127.0.0.1:2/x", "postgresql://u:***@/x?host=127.0.0.1:1&host=127.0.0.1:2"),
        ("postgresql+nonsense://u:secret@h/x", "postgresql+nonsense://u:***@h/x"),
        ("mysql://127.0.0.1:1/x?password=secret", "mysql://127.0.0.1:1/x?password=***"),
        ("mysql://u:1@secret@h/x", "database"),
        ("secret", "database"),
    ],
)
def test_database_that_cannot_be_opened_is_a_finding(url, part):
    *_, found = examine(databases=(url,))
    assert (found.part, found.state) == (part, State.UNREACHABLE)
    assert "secret" not in found.detail
