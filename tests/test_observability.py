"""Events and spans: stable names and fields, no secrets, the same answers, and nothing to pay when nobody looks."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid

import pytest

from cloudcore import (
    AllocationLedger,
    AttachmentManager,
    Cell,
    CellRouter,
    HostSelector,
    InstanceDirectory,
    InstanceStore,
    PlacementTree,
    create_schema,
)
from cloudcore.database import Database, RetryPolicy
from cloudcore.errors import CloudcoreError, DatabaseUnavailable, NoValidHost, VolumeNotFound
from cloudcore.listing import BreakerPolicy
from cloudcore.listing.cells.backends import SharedBreakers
from cloudcore.listing.cells.breakers import Breakers
from cloudcore.observability import event, observed, span, tell_parts
from cloudcore.placement import LedgerStatus, TreeStatus
from tests import leaks


class Recorder:
    """An observer that keeps what it is told, as a tree of (name, fields, error, children)."""

    def __init__(self) -> None:
        self.roots: list[list] = []
        self.events: list[tuple[str, dict]] = []
        self._stack = threading.local()

    @contextlib.contextmanager
    def span(self, name, fields):
        stack = self._stack.__dict__.setdefault("spans", [])
        node = [name, dict(fields), None, []]
        (stack[-1][3] if stack else self.roots).append(node)
        stack.append(node)
        try:
            yield lambda **more: node[1].update(more)
        except BaseException as error:
            node[2] = type(error).__name__
            raise
        finally:
            stack.pop()

    def event(self, name, fields):
        self.events.append((name, dict(fields)))


@pytest.fixture
def manager(sqlite_database):
    create_schema(sqlite_database)
    with AttachmentManager(sqlite_database, observer=Recorder()) as made:
        yield made


def _names(node) -> list[str]:
    return [node[0], *(name for child in node[3] for name in _names(child))]


def test_an_attach_is_one_span_with_its_statements_below(manager):
    volume = manager.volumes.create_volume(2**30)
    instance = str(uuid.uuid4())
    attachment = manager.attach(volume.id, instance)
    (root,) = manager.observer.roots
    name, fields, error, children = root
    assert (name, error) == ("attach.attach", None)
    assert fields["volume_id"] == volume.id
    assert fields["instance_id"] == instance
    assert fields["attachment"] == attachment.id
    assert fields["state"] == "attached"
    assert children
    assert set(_names(root)[1:]) <= {"database.read", "database.write"}


def test_each_statement_of_a_page_is_told(tmp_path, caplog):
    """SQLAlchemy's own events and echo do not see them; parameters may be secret and are not told."""
    from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore, Query

    cells = [Cell(f"c{n}", f"sqlite:///{tmp_path / f'{n}.db'}") for n in range(2)]
    observer = Recorder()
    with CellRouter(cells, directory=InstanceDirectory("sqlite://"), observer=observer) as router:
        store = InstanceStore(router)
        store.create_tables()
        store.create("c0", project_id="secret-project", display_name="n")
        observer.events.clear()
        with caplog.at_level(logging.DEBUG, "cloudcore.listing"):
            page = router.page(Query(where={"project_id": "secret-project"}))
    told = [fields for name, fields in observer.events if name == "listing.statement"]
    assert len(told) == sum(report.statements for report in page.cells.values()) > 0
    assert {fields["cell"] for fields in told} <= {"c0", "c1"}
    assert all(fields["db.query.text"].startswith("SELECT") for fields in told)
    assert {fields["db.system.name"] for fields in told} == {"sqlite"}
    assert sum(fields["rows"] for fields in told) == 1
    assert "secret-project" not in str(told)
    assert any("listing.statement" in record.getMessage() for record in caplog.records)


def test_what_a_page_asks_of_the_directory_is_told(tmp_path, caplog):
    from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore, Query

    observer = Recorder()
    directory = InstanceDirectory(f"sqlite:///{tmp_path / 'directory.db'}")
    cells = [Cell(f"c{n}", f"sqlite:///{tmp_path / f'{n}.db'}") for n in range(2)]
    with CellRouter(cells, directory=directory, observer=observer) as router:
        store = InstanceStore(router)
        store.create_tables()
        store.create("c0", project_id="secret-project", display_name="n")
        with caplog.at_level(logging.DEBUG, "cloudcore.listing"):
            page = router.page(Query(tenant="secret-project"))
    assert {cell for cell, report in page.cells.items() if report.statements} == {"c0"}
    told = [fields for name, fields in observer.events if name == "listing.directory_statement"]
    assert any("directory_routes" in fields["db.query.text"] and fields["rows"] == 1 for fields in told)
    assert {fields["db.system.name"] for fields in told} == {"sqlite"}
    assert "secret-project" not in str(told)
    assert any("listing.directory_statement" in record.getMessage() for record in caplog.records)


def test_a_failure_is_told_with_its_class(manager):
    with pytest.raises(VolumeNotFound):
        manager.attach(str(uuid.uuid4()), str(uuid.uuid4()))
    (root,) = manager.observer.roots
    assert root[2] == "VolumeNotFound"


def test_what_changes_the_world_is_one_line_at_info(manager, caplog):
    caplog.set_level(logging.INFO, logger="cloudcore")
    volume = manager.volumes.create_volume(2**30)
    attachment = manager.attach(volume.id, str(uuid.uuid4()))
    manager.attachments()
    manager.detach(attachment.id)
    told = [record for record in caplog.records if record.name == "cloudcore.attach"]
    assert [record.event for record in told] == ["attach.attach", "attach.detach"]
    assert told[1].fields["attachment_id"] == attachment.id
    assert told[1].fields["seconds"] >= 0
    assert told[1].getMessage().startswith("attach.detach attachment_id=")


def test_a_retry_is_a_warning_and_an_event(caplog):
    class Flaky:
        observer = Recorder()
        left = 2

        @observed("placement.example", "number")
        def call(self, number):
            return RetryPolicy(initial=0.0001).call(self._attempt)

        def _attempt(self):
            self.left -= 1
            if self.left >= 0:
                raise DatabaseUnavailable("the server has gone")
            return "done"

    flaky = Flaky()
    assert flaky.call(number=3) == "done"
    retries = [record for record in caplog.records if record.name == "cloudcore.database"]
    assert [record.fields["attempt"] for record in retries] == [1, 2]
    assert all(record.levelno == logging.WARNING for record in retries)
    assert [name for name, _ in flaky.observer.events] == ["database.retry"] * 2
    assert flaky.observer.roots == [["placement.example", {"number": 3}, None, []]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("two\nplacement.claim consumer=forged", "two\\nplacement.claim consumer=forged"),
        ("half a pair \ud800", "half a pair \\ud800"),
        ("nul\0, \x1b[2J, \u202e", "nul\\x00, \\x1b[2J, \\u202e"),
        ("Zoë, 名", "Zoë, 名"),
        ("x" * 256, "x" * 256),
        ("x" * 10_000_000, "x" * 256 + "... (10000000 characters)"),
    ],
    ids=["lines", "surrogate", "controls", "letters", "long", "too long"],
)
def test_what_a_caller_sent_is_told_in_one_line_that_can_be_written(given, told):
    class Example:
        observer = Recorder()

        @observed("placement.example", "project")
        def call(self, project):
            assert project == given

    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    example, logger = Example(), logging.getLogger("cloudcore.placement")
    logger.addHandler(handler)
    try:
        example.call(given)
    finally:
        logger.removeHandler(handler)
    assert example.observer.roots == [["placement.example", {"project": told}, None, []]]
    assert lines[0].startswith(f"placement.example project={told} seconds=")
    assert lines[0].encode().decode() == lines[0]


def test_what_answers_events_and_parts_tell_stays_in_their_lines(caplog):
    """Such as the name of a host that an answer tells, or a server's word for why it failed."""
    forged = "cn1\nplacement.claim consumer=forged\x1b[2J\u2028"

    class Example:
        @observed("placement.example", answer=lambda host: {"host": host})
        def call(self):
            event("placement.part", logging.INFO, reason=forged)
            tell_parts("placement.each", lambda: [forged], lambda one: {"one": one})
            return forged

    with caplog.at_level(logging.DEBUG, "cloudcore.placement"):
        assert Example().call() == forged
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert "=cn1\\nplacement.claim" in record.getMessage()
        assert forged in record.fields.values(), "machines get it as it is"


def test_transient_failures_are_warnings_and_refusals_are_not(caplog):
    class Example:
        @observed("placement.example", "consumer", level=logging.INFO)
        def call(self, error, consumer="c1"):
            raise error

    caplog.set_level(logging.INFO, logger="cloudcore")
    for error in (DatabaseUnavailable("gone"), CloudcoreError("refused")):
        with pytest.raises(type(error)):
            Example().call(error, "c7")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.fields["consumer"] == "c7"
    assert record.fields["error"] == "DatabaseUnavailable"


def test_wrong_arguments_fail_as_without_an_observer():
    class Example:
        observer = Recorder()

        @observed("placement.example", "consumer")
        def call(self, consumer):
            return consumer

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'consumer'"):
        Example().call()


def test_values_that_are_not_words_or_numbers_are_not_told():
    class Secretive:
        def __repr__(self):
            return "password"

    class Example:
        observer = Recorder()

        @observed("placement.example", "wanted")
        def call(self, wanted):
            return None

    Example().call(Secretive())
    assert Example.observer.roots == [["placement.example", {"wanted": "Secretive"}, None, []]]


def test_without_an_observer_parts_go_nowhere_and_events_to_the_log(caplog):
    with caplog.at_level(logging.DEBUG, "cloudcore"):
        with span("database.write") as add:
            add(rows=1)
        event("database.retry", logging.DEBUG, attempt=1)
    assert [record.getMessage() for record in caplog.records] == ["database.retry attempt=1"]


def test_opentelemetry(sqlite_database):
    metrics_sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from cloudcore.telemetry import OpenTelemetry

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), metrics_sdk.MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = OpenTelemetry(tracers, meters)
    create_schema(sqlite_database)
    with AttachmentManager(sqlite_database, observer=telemetry) as manager:
        telemetry.watch("attachments", manager)
        volume = manager.volumes.create_volume(2**30)
        manager.attach(volume.id, str(uuid.uuid4()))
        with pytest.raises(VolumeNotFound):
            manager.attach(str(uuid.uuid4()), str(uuid.uuid4()))
        collected = reader.get_metrics_data()
    spans = exporter.get_finished_spans()
    operations = [one for one in spans if one.name == "attach.attach"]
    assert [one.status.status_code.name for one in operations] == ["UNSET", "ERROR"]
    assert operations[0].attributes["cloudcore.volume_id"] == volume.id
    assert operations[1].attributes["error.type"] == "VolumeNotFound"
    children = [one for one in spans if one.parent and one.parent.span_id == operations[0].context.span_id]
    assert {one.attributes["db.system.name"] for one in children} == {"sqlite"}
    found = {metric.name: metric for metric in collected.resource_metrics[0].scope_metrics[0].metrics}
    counts = {
        (point.attributes["cloudcore.operation"], point.attributes.get("error.type")): point.count
        for point in found["cloudcore.operation.duration"].data.data_points
    }
    assert counts[("attach.attach", None)] == 1
    assert counts[("attach.attach", "VolumeNotFound")] == 1
    status = {
        (point.attributes["cloudcore.field"], point.attributes.get("cloudcore.key")): point.value
        for point in found["cloudcore.status"].data.data_points
    }
    assert status == {("by_state", "attached"): 1, ("pending_detaches", None): 0, ("interrupted", None): 0}


def test_the_status_of_attachments(manager):
    assert manager.status().by_state == {}
    volume = manager.volumes.create_volume(2**30)
    manager.attach(volume.id, str(uuid.uuid4()))
    status = manager.status()
    assert status.by_state == {"attached": 1}
    assert (status.pending_detaches, status.interrupted) == (0, 0)


def test_a_status_that_cannot_be_read_says_so():
    with AttachmentManager(Database("sqlite://")) as manager, pytest.raises(CloudcoreError):
        manager.status()


def test_a_claim_and_a_move_are_told(sqlite_database, caplog):
    create_schema(sqlite_database)
    caplog.set_level(logging.DEBUG, logger="cloudcore")
    recorder = Recorder()
    with PlacementTree.open(sqlite_database, observer=recorder) as tree:
        for name in ("cn1", "cn2"):
            tree.add(name, inventory={"VCPU": 4})
        ledger = AllocationLedger(sqlite_database, observer=recorder)
        selector = HostSelector(tree, ledger, cell_of=lambda _: "cell1", observer=recorder)
        (selection,) = selector.select("resources=VCPU:3", project_id="p", user_id="u")
        migration = str(uuid.uuid4())
        selector.select_destination(selection.instance, migration, "resources=VCPU:3")
        ledger.confirm_move(migration)
        assert ledger.status() == LedgerStatus(overdue_claims=0, overdue_moves=0)
        with pytest.raises(NoValidHost):
            selector.select("resources=VCPU:5", project_id="p", user_id="u")
    assert [root[0] for root in recorder.roots] == [
        "placement.add", "placement.add", "placement.select", "placement.select_destination", "placement.confirm_move",
        "placement.select",
    ]  # fmt: skip
    assert recorder.roots[2][1]["host"] == selection.primary.name
    assert recorder.roots[-1][2] == "NoValidHost"
    told = {record.event: record.levelno for record in caplog.records if record.name == "cloudcore.placement"}
    assert told["placement.select"] in (logging.INFO, logging.DEBUG)
    assert told["placement.confirm_move"] == logging.INFO


def test_a_lost_claim_is_a_warning(sqlite_database, caplog):
    create_schema(sqlite_database)
    tree = PlacementTree.open(sqlite_database)
    for name in ("cn1", "cn2"):
        tree.add(name, inventory={"VCPU": 4})
    ledger = AllocationLedger(sqlite_database)

    class Slow(AllocationLedger):
        """Somebody else is always faster the first time."""

        beaten = False

        def claim_new(self, claim):
            if not self.beaten:
                type(self).beaten = True
                first = next(iter(tree.roots()))
                ledger.claim(str(uuid.uuid4()), {first.uuid: {"VCPU": 4}}, project_id="p", user_id="u")
            return super().claim_new(claim)

    recorder = Recorder()
    selector = HostSelector(tree, Slow(sqlite_database), cell_of=lambda _: "cell1", observer=recorder)
    (selection,) = selector.select("resources=VCPU:3", project_id="p", user_id="u")
    assert selection.primary.name == "cn2"
    (lost,) = [record for record in caplog.records if record.event == "placement.claim.lost"]
    assert lost.levelno == logging.WARNING
    assert lost.fields["error"] == "CapacityExceeded"
    told = [name for name, _ in recorder.events if name != "placement.statement"]
    assert told == ["placement.claim.lost"]


def test_the_status_of_a_tree_tells_its_lag(database):
    create_schema(database)
    with PlacementTree.open(database) as tree, PlacementTree.open(database) as other:
        root = tree.add("cn1", inventory={"VCPU": 4})
        tree.add("cn1-numa0", parent=root, inventory={"MEMORY_MB": 4})
        assert (other.status().providers, other.status().lag) == (0, 2)
        other.refresh()
        assert other.status() == TreeStatus(providers=2, hosts=1, lag=0)
    assert PlacementTree().status() == TreeStatus(providers=0, hosts=0, lag=0)


def _router(folder, **options) -> CellRouter:
    """Two cells with three instances each, and one that is not there."""
    gone = folder / "gone"
    gone.mkdir()
    cells = [Cell(name, f"sqlite:///{folder / name}.db") for name in ("cell1", "cell2")]
    directory = InstanceDirectory(f"sqlite:///{folder / 'directory.db'}")
    router = CellRouter([*cells, Cell("cell3", f"sqlite:///{gone}/cell3.db")], directory=directory, **options)
    store = InstanceStore(router)
    store.create_tables()
    for number in range(6):
        store.create(f"cell{number % 2 + 1}", display_name=f"web-{number}", project_id="blue")
    return router


def _lose(router, folder) -> None:
    router.remove_cell("cell3")
    router.add_cell(Cell("cell3", f"sqlite:///{folder}/nowhere/cell3.db"))


def test_a_page_with_a_dead_cell(tmp_path, caplog):
    recorder = Recorder()
    with _router(tmp_path, observer=recorder, deadline=30.0) as router:
        _lose(router, tmp_path)
        recorder.roots.clear()
        recorder.events.clear()
        page = router.page()
        assert not page.complete
        ((name, fields, error, _),) = recorder.roots
        assert (name, error) == ("listing.page", None)
        assert (fields["records"], fields["complete"]) == (6, False)
        parts = {fields["cell"]: fields for name, fields in recorder.events if name == "listing.cell"}
        assert {cell: part["state"] for cell, part in parts.items()} == {
            "cell1": "answered", "cell2": "answered", "cell3": "down",
        }  # fmt: skip
        (failed,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert failed.event == "listing.cell.failed"
        assert (failed.fields["cell"], failed.fields["failures"]) == ("cell3", 1)


def test_an_open_breaker_does_not_fill_the_log(tmp_path, caplog):
    with _router(tmp_path, deadline=30.0, breaker=BreakerPolicy(threshold=2)) as router:
        _lose(router, tmp_path)
        for _ in range(10):
            router.page()
        failures = [record for record in caplog.records if record.event == "listing.cell.failed"]
        assert [record.fields["breaker"] for record in failures] == ["closed", "open"]
        status = router.status()
        assert not status.ready
        assert status.cells["cell3"].breaker == "open"
        assert status.cells["cell3"].probe_in > 0
        assert status.cells["cell1"].answered_ago >= 0
        assert status.cells["cell3"].answered_ago is None


def test_a_cell_that_fails_and_comes_back_is_told_twice(caplog):
    caplog.set_level(logging.INFO, logger="cloudcore.listing")
    breakers = SharedBreakers(Breakers())
    for _ in range(2):
        breakers.succeed("cell1")
    breakers.fail("cell1", "gone")
    for _ in range(2):
        breakers.succeed("cell1")
    assert [record.event for record in caplog.records] == ["listing.cell.failed", "listing.cell.recovered"]


@pytest.mark.parametrize(
    "line",
    [
        "no answer from postgresql://cloud:hunter2@db/cell1",
        "connection {'auth_password': 'x'}",
        "key AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==",
    ],
)
def test_the_scan_of_all_log_lines_finds_a_secret(line):
    before = leaks.SCAN.read
    logging.getLogger("cloudcore.attach").debug(line)
    found, leaks.SCAN.found = leaks.SCAN.found, []
    assert leaks.SCAN.read == before + 1
    assert len(found) == 1


def test_the_scan_lets_a_hidden_password_pass():
    logging.getLogger("cloudcore.listing").debug("no answer from postgresql://cloud:***@db/cell1")
    assert not leaks.SCAN.found


def test_the_statements_of_a_claim_are_told_without_their_parameters(database, caplog):
    create_schema(database)
    with PlacementTree.open(database) as tree:
        host = tree.add("cn1", inventory={"VCPU": 4}).uuid
    recorder, consumer = Recorder(), str(uuid.uuid4())
    ledger = AllocationLedger(database, observer=recorder)
    with caplog.at_level(logging.INFO, logger="cloudcore"):
        ledger.claim(consumer, {host: {"VCPU": 1}}, project_id="secret-project", user_id="u")
    told = [fields for name, fields in recorder.events if name == "placement.statement"]
    assert any("inventories" in fields["db.query.text"] for fields in told)
    assert {fields["db.system.name"] for fields in told} <= {"sqlite", "postgresql", "mariadb", "mysql"}
    assert not [fields for fields in told if consumer in str(fields) or "secret-project" in str(fields)]
    recorder.events.clear()
    quiet = AllocationLedger(database)
    with caplog.at_level(logging.INFO, logger="cloudcore"):
        quiet.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, project_id="p", user_id="u")
    assert not [record for record in caplog.records if record.event == "placement.statement"]
