"""What OpenTelemetry's own SDK makes of it: one trace a call, a gauge for all that is watched, buckets for seconds."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import threading
import time

import attrs
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from cloudcore import Cell, CellRouter, InstanceDirectory, InstanceStore
from cloudcore.errors import DatabaseUnavailable
from cloudcore.observability import event, observed, tell_parts, teller
from cloudcore.telemetry import OpenTelemetry


class Sdk:
    """An observer with the SDK in memory behind it."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(sampler=sampler)
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = OpenTelemetry(tracers, MeterProvider([self.reader]))

    def spans(self, name: str) -> list:
        return [one for one in self.exporter.get_finished_spans() if one.name == name]

    def points(self, metric: str) -> list:
        collected = self.reader.get_metrics_data()
        scopes = [scope for one in (collected.resource_metrics if collected else ()) for scope in one.scope_metrics]
        return [p for scope in scopes for one in scope.metrics if one.name == metric for p in one.data.data_points]

    def counted(self, metric: str) -> dict:
        """The values of a counter by those of its attributes."""
        return {tuple(point.attributes.values()): point.value for point in self.points(metric)}

    def status(self) -> dict:
        return {
            tuple(point.attributes.get(f"cloudcore.{key}") for key in ("object", "field", "key")): point.value
            for point in self.points("cloudcore.status")
        }


@pytest.fixture
def sdk() -> Sdk:
    return Sdk()


@attrs.frozen
class Part:
    failures: int
    reason: str | None = None


@attrs.frozen
class Whole:
    parts: dict[str, Part]
    by_state: dict[str, int]
    ready: bool = True


class Watched:
    def __init__(self, status) -> None:
        self._status = status

    def status(self):
        if isinstance(self._status, Exception):
            raise self._status
        return self._status


def test_all_that_is_watched_is_exported(sdk):
    for name, number in (("first", 1), ("second", 2), ("second", 3)):
        sdk.telemetry.watch(name, Watched({"number": number}))
    assert sdk.status() == {("first", "number", None): 1, ("second", "number", None): 3}
    sdk.telemetry.unwatch("first")
    sdk.telemetry.unwatch("never watched")
    assert sdk.status() == {("second", "number", None): 3}


def test_keys_of_mappings_are_attributes_of_their_own(sdk):
    """Else each cell would make fields of its own."""
    sdk.telemetry.watch("router", Watched(Whole({"cell.1": Part(2), "cell2": Part(0, "gone")}, {"attached": 7})))
    assert sdk.status() == {
        ("router", "parts.failures", "cell.1"): 2,
        ("router", "parts.failures", "cell2"): 0,
        ("router", "by_state", "attached"): 7,
        ("router", "ready", None): 1,
    }


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), RuntimeError("closed")])
def test_a_status_that_cannot_be_read_takes_no_other_along(sdk, caplog, error):
    sdk.telemetry.watch("broken", Watched(error))
    sdk.telemetry.watch("whole", Watched({"number": 1}))
    assert sdk.status() == {("whole", "number", None): 1}
    (record,) = [one for one in caplog.records if one.name == "cloudcore.telemetry"]
    assert (record.event, record.fields) == (
        "telemetry.status.failed",
        {"object": "broken", "error": type(error).__name__},
    )


class Work:
    def __init__(self, observer=None) -> None:
        self.observer = observer

    @observed("placement.outer")
    def outer(self, inner):
        return inner()

    @observed("placement.inner")
    def inner(self):
        return None


def test_seconds_fall_into_buckets_of_seconds(sdk):
    Work(sdk.telemetry).outer(lambda: event("listing.cell", logging.DEBUG, cell="c", state="answered", seconds=0.03))
    (duration,), (cell,) = sdk.points("cloudcore.operation.duration"), sdk.points("cloudcore.cell.duration")
    assert duration.explicit_bounds == (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
    assert cell.explicit_bounds == duration.explicit_bounds
    assert cell.bucket_counts.index(1) == 5


class Never(Sampler):
    """Samples nothing, and remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def should_sample(self, parent_context, trace_id, name, *_, **__) -> SamplingResult:
        self.asked.append(name)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "never"


def test_the_parts_of_an_operation_that_is_not_sampled_are_no_spans():
    """Its cells are in the histogram all the same; what happens in no operation has a trace of its own."""
    sampler = Never()
    sdk = Sdk(sampler)
    telemetry = sdk.telemetry

    def part() -> None:
        event("listing.cell", logging.DEBUG, cell="c", state="answered", seconds=0.03)
        event("listing.statement", logging.DEBUG, cell="c", seconds=0.02)
        event("database.retry", logging.WARNING, attempt=1)

    Work(telemetry).outer(part)
    assert sampler.asked == ["placement.outer"]
    (cell,) = sdk.points("cloudcore.cell.duration")
    assert cell.count == 1
    assert sdk.counted("cloudcore.cell.requests") == {("c", "answered"): 1}
    assert sdk.counted("cloudcore.events") == {("database.retry",): 1}  # what took seconds is a part, not an event
    telemetry.event("listing.statement", {"seconds": 0.01})
    assert sampler.asked == ["placement.outer", "listing.statement"]


def test_a_part_of_a_trace_that_others_do_not_sample_is_no_span():
    """Whatever our own sampler would say."""
    sdk = Sdk(ALWAYS_ON)
    context = SpanContext(trace_id=1, span_id=1, is_remote=False, trace_flags=TraceFlags(0))
    with use_span(NonRecordingSpan(context)):
        sdk.telemetry.event("listing.statement", {"seconds": 0.01})
    assert not sdk.spans("listing.statement")
    sdk.telemetry.event("listing.statement", {"seconds": 0.01})
    assert len(sdk.spans("listing.statement")) == 1


def test_what_worker_threads_tell_stands_in_the_operation(sdk):
    """Also at once: a context cannot be entered by two threads."""
    together = threading.Barrier(3)

    def told():
        tell = teller("listing", logging.DEBUG)

        def work(number):
            together.wait(30)
            tell("listing.example", logging.DEBUG, number=number)
            tell("listing.statement", logging.DEBUG, number=number, seconds=0.001)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    Work(sdk.telemetry).outer(told)
    (outer,) = sdk.spans("placement.outer")
    assert sorted(one.attributes["cloudcore.number"] for one in outer.events) == [0, 1, 2]
    statements = sdk.spans("listing.statement")
    assert [one.parent.span_id for one in statements] == [outer.context.span_id] * 3


def test_two_threads_may_be_in_one_teller():
    """Each waits in the observer until the other is there, too."""
    together, failed = threading.Barrier(2), []

    class Meet:
        def span(self, name, fields):
            return contextlib.nullcontext(lambda **_: None)

        def event(self, name, fields):
            together.wait(30)

    def told():
        tell = teller("listing", logging.DEBUG)

        def work():
            try:
                tell("listing.example", logging.DEBUG)
            except RuntimeError as error:
                failed.append(error)
                together.abort()

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    Work(Meet()).outer(told)
    assert not failed


def test_log_records_of_worker_threads_see_the_context_of_the_call(caplog):
    request, seen = contextvars.ContextVar("request", default=None), []
    with caplog.at_level(logging.DEBUG, "cloudcore.listing"):
        request.set("r1")
        tell = teller("listing", logging.DEBUG)
        caplog.handler.addFilter(lambda record: seen.append(request.get()) or True)
        worker = threading.Thread(target=tell, args=("listing.example", logging.DEBUG))
        worker.start()
        worker.join()
    assert seen == ["r1"]


def test_the_statements_of_a_page_stand_below_it(sdk, tmp_path):
    cells = [Cell(f"c{n}", f"sqlite:///{tmp_path / f'{n}.db'}") for n in range(3)]
    with CellRouter(cells, directory=InstanceDirectory("sqlite://"), observer=sdk.telemetry) as router:
        store = InstanceStore(router)
        store.create_tables()
        store.create("c0", display_name="n", project_id="blue")
        sdk.exporter.clear()
        router.page()
    (page,) = sdk.spans("listing.page")
    statements = sdk.spans("listing.statement")
    assert {one.attributes["cloudcore.cell"] for one in statements} == {"c0", "c1", "c2"}
    assert {one.parent.span_id for one in statements} == {page.context.span_id}
    assert {one.attributes["db.system.name"] for one in statements} == {"sqlite"}
    assert all(one.attributes["db.query.text"].startswith("SELECT") for one in statements)


def test_a_call_inside_an_observed_call_is_its_child_without_an_observer_of_its_own(sdk):
    quiet = Work()
    Work(sdk.telemetry).outer(quiet.inner)
    (outer,), (inner,) = sdk.spans("placement.outer"), sdk.spans("placement.inner")
    assert inner.parent.span_id == outer.context.span_id
    other = Sdk()
    Work(sdk.telemetry).outer(Work(other.telemetry).inner)
    assert len(other.spans("placement.inner")) == 1
    assert len(sdk.spans("placement.inner")) == 1
    quiet.inner()
    assert len(sdk.spans("placement.inner")) == 1


def test_a_failing_call_that_nobody_looks_at_is_told_with_its_seconds(caplog):
    def fail():
        time.sleep(0.05)
        raise DatabaseUnavailable("gone")

    caplog.set_level(logging.WARNING, logger="cloudcore")
    with pytest.raises(DatabaseUnavailable):
        Work().outer(fail)
    (record,) = caplog.records
    assert record.fields["seconds"] >= 0.05


class Only(Sampler):
    """Samples what has this name, whatever is above it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def should_sample(self, parent_context, trace_id, name, *_, **__) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE if name == self._name else Decision.DROP)

    def get_description(self) -> str:
        return "only"


def test_below_an_operation_that_is_not_sampled_nobody_is_asked():
    sdk = Sdk(Only("placement.inner"))
    work = Work(sdk.telemetry)
    work.outer(work.inner)
    assert not sdk.spans("placement.inner")
    work.inner()
    assert len(sdk.spans("placement.inner")) == 1
    other = Sdk(Only("placement.inner"))  # another observer's decision is its own
    work.outer(Work(other.telemetry).inner)
    assert len(other.spans("placement.inner")) == 1
    assert {point.attributes["cloudcore.operation"]: point.count for point in sdk.points("cloudcore.operation.duration")
            } == {"placement.outer": 2, "placement.inner": 2}  # fmt: skip


@pytest.fixture
def cells(tmp_path):
    """Eight cells with a record each."""
    made = [Cell(f"c{n}", f"sqlite:///{tmp_path / f'{n}.db'}") for n in range(8)]
    with CellRouter(made, directory=InstanceDirectory("sqlite://")) as router:
        store = InstanceStore(router)
        store.create_tables()
        for cell in made:
            store.create(cell.name, display_name="n", project_id="blue")
    return made


class Counting:
    """Counts what is asked of an instrument of the SDK."""

    def __init__(self, monkeypatch, instrument) -> None:
        self.calls, record = [], instrument.record
        monkeypatch.setattr(instrument, "record", lambda *given: (self.calls.append(given), record(*given)))


def test_a_page_that_is_not_sampled_asks_the_sdk_as_much_as_one_of_a_single_cell(cells, monkeypatch, caplog):
    """One decision and two measurements, however many cells; and every cell is counted."""
    caplog.set_level(logging.INFO, "cloudcore.listing")  # a log at DEBUG wants every statement
    sampler = Never()
    sdk = Sdk(sampler)
    numbers = sdk.telemetry._numbers
    asked = [Counting(monkeypatch, instrument) for instrument in (numbers._durations, numbers._slowest)]
    told = []
    monkeypatch.setattr(sdk.telemetry, "event", lambda *given: told.append(given))
    with CellRouter(cells, observer=sdk.telemetry, deadline=60.0) as router:
        sdk.reader.collect()
        before = [len(each.calls) for each in asked]
        sampler.asked.clear()
        pages = [router.page() for _ in range(3)]
    sdk.reader.collect()
    assert (sampler.asked, told) == (["listing.page"] * 3, [])
    assert [len(each.calls) - number for each, number in zip(asked, before, strict=True)] == [3, 3]
    reports = [report for page in pages for report in page.cells.values()]
    each = {(cell.name, "answered") for cell in cells}
    assert sdk.counted("cloudcore.cell.requests") == dict.fromkeys(each, 3)
    for metric, field in (("cloudcore.cell.statements", "statements"), ("cloudcore.cell.time", "seconds")):
        counted = sdk.counted(metric)
        assert counted == {
            key: pytest.approx(sum(getattr(report, field) for report in reports if report.name == key[0]))
            for key in each
        }
    slowest = [max(report.seconds for report in page.cells.values()) for page in pages]
    points = sdk.points("cloudcore.cell.duration")
    assert (sum(p.count for p in points), sum(p.sum for p in points)) == (3, pytest.approx(sum(slowest)))
    assert sdk.counted("cloudcore.pages") == {("complete",): 3}


def test_a_sampled_page_is_a_span_with_two_for_each_cell(cells, sdk):
    with CellRouter(cells, observer=sdk.telemetry, deadline=60.0) as router:
        router.page()
        sdk.exporter.clear()
        page = router.page()
    names = [span.name for span in sdk.exporter.get_finished_spans()]
    assert {name: names.count(name) for name in names} == {
        "listing.page": 1,
        "listing.cell": len(cells),
        "listing.statement": sum(report.statements for report in page.cells.values()),
    }


class Passing:
    """An observer that hands on what it is told, by the two methods that each has."""

    def __init__(self, observer) -> None:
        self.span, self.event = observer.span, observer.event


def test_an_observer_around_another_counts_as_much(cells, sdk):
    with CellRouter(cells, observer=Passing(sdk.telemetry), deadline=60.0) as router:
        page = router.page()
    assert sdk.counted("cloudcore.cell.requests") == dict.fromkeys(((cell.name, "answered") for cell in cells), 1)
    assert sdk.counted("cloudcore.cell.statements") == {
        (report.name, "answered"): report.statements for report in page.cells.values()
    }


def test_threads_that_count_at_once_lose_nothing(sdk):
    def count():
        for number in range(500):
            sdk.telemetry.event("database.retry", {"attempt": number})

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sdk.counted("cloudcore.events") == {("database.retry",): 4000}


def test_a_forked_child_counts_although_a_thread_counted_at_the_fork(sdk):
    with sdk.telemetry._numbers.events._lock:
        child = os.fork()
        if not child:
            signal.alarm(30)
            sdk.telemetry.event("database.retry", {"attempt": 1})
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_forked_child_tells_what_it_counted_itself(sdk):
    """Not once more what its parent had counted, and its parent goes on from there."""
    telemetry = sdk.telemetry

    def count(times: int) -> None:
        for _ in range(times):
            telemetry.event("database.retry", {"attempt": 1})
            telemetry.event("listing.cell", {"cell": "cell1", "state": "answered", "seconds": 0.5})
            with telemetry.span("placement.claim", {}):
                pass

    def told() -> list:
        counters = ("cloudcore.events", "cloudcore.cell.requests", "cloudcore.cell.time", "cloudcore.claims")
        return [list(sdk.counted(counter).values()) for counter in counters]

    count(10)
    with telemetry._watching:
        child = os.fork()
        if not child:
            signal.alarm(30)
            count(1)
            telemetry.watch("nothing", None)
            telemetry.unwatch("nothing")
            os._exit(7 if told() == [[1], [1], [0.5], [1]] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    count(1)
    assert told() == [[11], [11], [5.5], [11]]


def test_nobody_who_looks_costs_no_fields(caplog):
    def refuse(_):
        raise AssertionError("nobody looks")

    with caplog.at_level(logging.INFO, "cloudcore.listing"):
        tell_parts("listing.cell", lambda: refuse(None), refuse)
        assert teller("listing", logging.DEBUG) is None


def test_parts_are_told_one_by_one_to_who_takes_no_more(caplog):
    told = []

    class Plain:
        def span(self, name, fields):
            return contextlib.nullcontext(lambda **_: None)

        def event(self, name, fields):
            told.append((name, fields))

    caplog.set_level(logging.DEBUG, logger="cloudcore.listing")
    Work(Plain()).outer(lambda: tell_parts("listing.cell", lambda: [1, 2], lambda part: {"rows": part, "error": None}))
    assert told == [("listing.cell", {"rows": 1}), ("listing.cell", {"rows": 2})]
    records = [record for record in caplog.records if record.event == "listing.cell"]
    assert [record.fields for record in records] == [{"rows": 1}, {"rows": 2}]
