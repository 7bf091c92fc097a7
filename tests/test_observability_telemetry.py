"""What OpenTelemetry's own SDK makes of it: one trace a call, a gauge for all that is watched, buckets for seconds."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time

import attrs
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from cloudcore import Cell, CellRouter, InstanceDirectory, InstanceStore
from cloudcore.errors import DatabaseUnavailable
from cloudcore.observability import event, observed, teller
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

    Work(telemetry).outer(part)
    assert sampler.asked == ["placement.outer"]
    (cell,) = sdk.points("cloudcore.cell.duration")
    assert cell.count == 1
    assert [point.attributes["cloudcore.event"] for point in sdk.points("cloudcore.events")] == ["listing.statement"]
    telemetry.event("listing.statement", {"seconds": 0.01})
    assert sampler.asked == ["placement.outer", "listing.statement"]


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
