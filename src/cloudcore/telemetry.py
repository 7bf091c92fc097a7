"""OpenTelemetry: spans of operations, and metrics. Needs the extra ``otel``; SDK and exporter are the application's."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextvars import ContextVar
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cloudcore import __version__
from cloudcore._extras import require_extra
from cloudcore._forks import when_forked
from cloudcore.errors import CloudcoreError, NoValidHost, Refused
from cloudcore.observability import event

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.metrics import Histogram, Meter, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["OpenTelemetry"]

T = TypeVar("T")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of the histograms' buckets: the SDK's own are meant for milliseconds."""


_KEPT = 64
"""Measurements that are kept back at most."""
_CELL = ("cloudcore.cell", "cloudcore.state")
_Cell = tuple[str, str, float, int]
"""Name, state, seconds and statements of a cell in a page."""
_CELL_REPORT = attrgetter("name", "state", "seconds", "statements")
_UNSAMPLED: ContextVar[_Traces | None] = ContextVar("cloudcore_unsampled", default=None)
"""Whose operation is under way and not sampled."""


class _Watched(Protocol):
    """What has a status."""

    def status(self) -> Any:
        """Its numbers, as a value."""


class OpenTelemetry:
    """An :class:`~cloudcore.observability.Observer` that makes spans and metrics.

    One may serve many objects and threads; make one for each meter provider, since an SDK exports one gauge of a name.
    Spans are named as the events are; their attributes are the events' fields behind ``cloudcore.``, and errors set
    ``error.type``. Transactions carry ``db.system.name`` and ``db.namespace``, statements ``db.system.name`` and
    ``db.query.text`` (without parameters), after OpenTelemetry's semantic conventions. The sampler is asked once an
    operation: below one that is not sampled no span is made. Metrics, which count all:

    ============================  =========  ==================================================================
    cloudcore.operation.duration  histogram  seconds of each call, by ``cloudcore.operation`` and ``error.type``
    cloudcore.pages               counter    pages by ``cloudcore.outcome``: complete or partial
    cloudcore.cell.duration       histogram  seconds of the slowest cell of each page, by cell and its state
    cloudcore.cell.requests       counter    parts of pages, by cell and its state
    cloudcore.cell.time           counter    seconds that they took
    cloudcore.cell.statements     counter    statements that they sent
    cloudcore.claims              counter    claims by ``cloudcore.verdict``: granted, refused or failed
    cloudcore.events              counter    retries, lost claims and other events, by ``cloudcore.event``
    cloudcore.status              gauge      every number of the ``status()`` of what is watched: see :meth:`watch`
    ============================  =========  ==================================================================

    Args:
        tracer_provider: The global one by default.
        meter_provider: The global one by default.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._traces = _Traces(tracer_provider)
        metrics = require_extra("opentelemetry.metrics", "otel")
        self._observation: type[Observation] = metrics.Observation
        meter = metrics.get_meter("cloudcore", __version__, meter_provider)
        self._numbers = _Numbers(meter, self._observation)
        self._watched: dict[str, _Watched] = {}
        self._unlock()
        when_forked(self, OpenTelemetry._unlock)
        meter.create_observable_gauge("cloudcore.status", [self._observe], "1", "Numbers of a status")

    def _unlock(self) -> None:
        self._watching = threading.Lock()

    def span(self, name: str, fields: Mapping[str, Any]) -> AbstractContextManager[Callable[..., None]]:
        """See :meth:`~cloudcore.observability.Observer.span`."""
        return _Operation(self._traces, self._numbers, name, fields)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """See :meth:`~cloudcore.observability.Observer.event`. What took seconds becomes a span that ends now."""
        if "seconds" not in fields:
            self._numbers.events.add((name,), 1)
        elif name == "listing.cell":
            cell = fields["cell"], fields["state"], fields["seconds"], fields.get("statements", 0)
            self._numbers.count_cells([cell], at_once=self._traces.wanted)
        if self._traces.wanted:
            self._traces.tell(name, fields)

    def listens(self) -> bool:
        """See :meth:`~cloudcore.observability.SparingObserver.listens`: not below what is not sampled."""
        return self._traces.wanted

    def parts(self, name: str, parts: Collection[T], fields: Callable[[T], Mapping[str, Any]]) -> None:
        """See :meth:`~cloudcore.observability.SparingObserver.parts`."""
        if name == "listing.cell":
            self._numbers.count_cells(map(_CELL_REPORT, parts), at_once=self._traces.wanted)
        if self._traces.wanted:
            for part in parts:
                self._traces.tell(name, fields(part))

    def watch(self, name: str, watched: _Watched) -> None:
        """Report the numbers of ``watched.status()`` under *name* whenever metrics are collected.

        The attributes of a number are ``cloudcore.object`` (the *name*), ``cloudcore.field``, and where it stands in a
        mapping ``cloudcore.key``: the field ``cells.failures`` of the cell ``cell1``. A status that cannot be read is
        left out of that collection, and told as ``telemetry.status.failed``.

        Args:
            name: Replaces what was watched under it.
            watched: Is kept until :meth:`unwatch`.
        """
        with self._watching:
            self._watched[name] = watched

    def unwatch(self, name: str) -> None:
        """Report nothing more under *name*. A collection under way may still do so."""
        with self._watching:
            self._watched.pop(name, None)

    def _observe(self, _: Any) -> Iterable[Observation]:
        with self._watching:
            watched = list(self._watched.items())
        return [self._observation(value, told) for name, one in watched for told, value in _status_of(name, one)]


class _Operation:
    """An operation or a part of one, from its beginning to its end."""

    __slots__ = (
        "_began", "_entered", "_fields", "_name", "_numbers", "_recorded", "_span", "_told", "_traces",
    )  # fmt: skip

    def __init__(self, traces: _Traces, numbers: _Numbers, name: str, fields: Mapping[str, Any]) -> None:
        self._traces, self._numbers = traces, numbers
        self._name, self._fields = name, fields
        self._told: dict[str, Any] = {}

    def __enter__(self) -> Callable[..., None]:
        self._began = time.perf_counter()
        self._span = span = self._traces.begin(self._name, self._fields)
        self._recorded = span is not None and span.is_recording()
        if span is not None:
            self._entered = self._traces.enter(span)
        return self._add

    def _add(self, **more: Any) -> None:
        self._told.update(more)
        if self._span is not None and self._recorded:
            self._span.set_attributes(_attributes(more))

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        span = self._span
        try:
            if error is not None and span is not None:
                self._traces.failed(span, error)
            seconds = time.perf_counter() - self._began
            self._numbers.count(self._name, seconds, error, self._told, at_once=self._recorded)
        finally:
            if span is not None:
                self._traces.leave(span, *self._entered)


class _Traces:
    """Spans. The sampler decides of an operation; what is below one that is not sampled costs nothing more."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._trace = require_extra("opentelemetry.trace", "otel")
        self._context = require_extra("opentelemetry.context", "otel")
        self._tracer = self._trace.get_tracer("cloudcore", __version__, provider)

    @property
    def wanted(self) -> bool:
        """Whether a part that is told may become a span."""
        return _UNSAMPLED.get() is not self

    def begin(self, name: str, fields: Mapping[str, Any]) -> Span | None:
        """Begin a span; None below an operation that is not sampled."""
        if _UNSAMPLED.get() is self:
            return None
        span: Span = self._tracer.start_span(name, attributes=_attributes(fields) if fields else None)
        return span

    def enter(self, span: Span) -> tuple[Any, Token[_Traces | None] | None]:
        """Make a span the current one; what :meth:`leave` wants."""
        entered = self._context.attach(self._trace.set_span_in_context(span))
        return entered, None if span.is_recording() else _UNSAMPLED.set(self)

    def leave(self, span: Span, entered: Any, unsampled: Token[_Traces | None] | None) -> None:
        """End a span that was entered."""
        if unsampled is not None:
            _UNSAMPLED.reset(unsampled)
        self._context.detach(entered)
        span.end()

    def failed(self, made: Span, error: BaseException) -> None:
        """Say in a span how its operation failed."""
        made.set_attribute("error.type", type(error).__name__)
        made.set_status(self._trace.StatusCode.ERROR, str(error) if isinstance(error, CloudcoreError) else "")

    def tell(self, name: str, fields: Mapping[str, Any]) -> None:
        """Put an event into the span under way, or a span below it if it took seconds."""
        active = self._trace.get_current_span()
        if active.get_span_context().is_valid and not active.is_recording():
            return  # a trace that others began is not sampled
        attributes = _attributes(fields)
        seconds = fields.get("seconds")
        if seconds is None:
            active.add_event(name, attributes)
            return
        now = time.time_ns()
        part = self._tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=attributes)
        if "error" in fields:
            part.set_status(self._trace.StatusCode.ERROR)
        part.end(now)


class _Numbers:
    """Metrics of operations, of pages' cells and of events."""

    def __init__(self, meter: Meter, observation: type[Observation]) -> None:
        self._meter, self._observation = meter, observation
        self._kept: deque[tuple[Histogram, float, dict[str, Any]]] = deque()
        """Measurements of operations that are not sampled, until there are some or the SDK collects."""
        self._durations = self._histogram("cloudcore.operation.duration", "Duration of a call")
        self._slowest = self._histogram("cloudcore.cell.duration", "Duration of the slowest cell's part of a page")
        self._cells = self._totals(
            _CELL,
            ("cloudcore.cell.requests", "{request}", "Parts of pages"),
            ("cloudcore.cell.time", "s", "Seconds of cells' parts of pages"),
            ("cloudcore.cell.statements", "{statement}", "Statements of pages"),
        )
        self._pages = self._totals(("cloudcore.outcome",), ("cloudcore.pages", "{page}", "Pages by outcome"))
        self._claims = self._totals(
            ("cloudcore.verdict", "cloudcore.operation"), ("cloudcore.claims", "{claim}", "Claims by verdict")
        )
        self.events = self._totals(("cloudcore.event",), ("cloudcore.events", "{event}", "Events by name"))
        when_forked(self, _Numbers._forget)

    def _forget(self) -> None:
        """In a forked child: what was kept is its parent's to tell."""
        self._kept = deque()

    def _histogram(self, name: str, description: str) -> Histogram:
        return self._meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS)

    def _totals(self, attributes: tuple[str, ...], *counters: tuple[str, str, str]) -> _Totals:
        made = _Totals(attributes, self._observation)
        for place, (name, unit, description) in enumerate(counters):
            self._meter.create_observable_counter(name, [self._hand_over, made.reader(place)], unit, description)
        return made

    def count(
        self, name: str, seconds: float, error: BaseException | None, told: Mapping[str, Any], *, at_once: bool
    ) -> None:
        """Count an operation that is over, and what was told of it; *at_once* if its span may be an exemplar."""
        attributes = {"cloudcore.operation": name}
        if error is not None:
            attributes["error.type"] = type(error).__name__
        self._measure(self._durations, seconds, attributes, at_once=at_once)
        if name in ("placement.claim", "placement.select"):
            refused = isinstance(error, Refused | NoValidHost)
            self._claims.add(("granted" if error is None else "refused" if refused else "failed", name), 1)
        if name == "listing.page" and "complete" in told:
            self._pages.add(("complete" if told["complete"] else "partial",), 1)

    def _measure(self, histogram: Histogram, seconds: float, attributes: dict[str, Any], *, at_once: bool) -> None:
        if at_once:
            histogram.record(seconds, attributes)
            return
        self._kept.append((histogram, seconds, attributes))
        if len(self._kept) >= _KEPT:
            self._hand_over()

    def _hand_over(self, _: Any = None) -> Iterable[Observation]:
        """Tell the SDK what was kept, also before it collects. Many in a row cost half of what one by one would."""
        while self._kept:
            try:
                histogram, seconds, attributes = self._kept.popleft()
            except IndexError:  # another thread was faster
                break
            histogram.record(seconds, attributes)
        return ()

    def count_cells(self, cells: Iterable[_Cell], *, at_once: bool) -> None:
        """Count the cells of a page; *at_once* as for :meth:`count`.

        The SDK is told of the slowest alone: telling it of each of many would cost more than asking them did.
        """
        slowest = self._cells.add_cells(cells)
        if slowest is not None:
            name, state, seconds, _ = slowest
            attributes = {"cloudcore.cell": name, "cloudcore.state": str(state)}
            self._measure(self._slowest, seconds, attributes, at_once=at_once)


class _Totals:
    """Counters of the same attributes. What is counted is added up here, and told to the SDK when that collects.

    So a page costs a few additions for each of its cells. May be shared between threads. A forked child begins at
    nothing: what was counted before is its parent's to tell.
    """

    def __init__(self, attributes: tuple[str, ...], observation: type[Observation]) -> None:
        self._attributes, self._observation = attributes, observation
        self._start_empty()
        when_forked(self, _Totals._start_empty)

    def _start_empty(self) -> None:
        self._totals: dict[tuple[str, ...], list[float]] = {}
        self._lock = threading.Lock()

    def add(self, values: tuple[str, ...], *numbers: float) -> None:
        """Add to the totals of these values of the attributes."""
        with self._lock:
            totals = self._totals.setdefault(values, [0] * len(numbers))
            totals[:] = map(add, totals, numbers)

    def add_cells(self, cells: Iterable[_Cell]) -> _Cell | None:
        """Add one, the seconds and the statements of each cell; the slowest."""
        slowest, most, totals_of = None, -1.0, self._totals
        with self._lock:
            for cell in cells:
                name, state, seconds, sent = cell
                try:
                    totals = totals_of[name, state]
                except KeyError:
                    totals = totals_of[name, state] = [0, 0.0, 0]
                totals[0] += 1
                totals[1] += seconds
                totals[2] += sent
                if seconds > most:
                    slowest, most = cell, seconds
        return slowest

    def reader(self, place: int) -> Callable[[Any], Iterable[Observation]]:
        """What the SDK calls for the counter at that place."""

        def read(_: Any) -> Iterable[Observation]:
            with self._lock:
                totals = [(values, numbers[place]) for values, numbers in self._totals.items()]
            names = self._attributes
            return [
                self._observation(number, dict(zip(names, map(str, values), strict=True))) for values, number in totals
            ]

        return read


def _status_of(name: str, watched: _Watched) -> list[tuple[dict[str, str], float]]:
    """The numbers and their attributes; none if they cannot be read, so that the others are exported all the same."""
    try:
        numbers = list(_numbers(watched.status()))
    except Exception as error:
        event("telemetry.status.failed", logging.WARNING, object=name, error=type(error).__name__)
        return []
    return [
        (
            {"cloudcore.object": name, "cloudcore.field": ".".join(fields)}
            | ({"cloudcore.key": ".".join(keys)} if keys else {}),
            value,
        )
        for fields, keys, value in numbers
    ]


def _attributes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key if "." in key else f"cloudcore.{key}": value for key, value in fields.items() if value is not None}


Names = tuple[str, ...]


def _numbers(status: Any, fields: Names = (), keys: Names = ()) -> Iterator[tuple[Names, Names, float]]:
    """The numbers in a status and in what is inside it: path of fields, keys of mappings on the way, number.

    Keys are kept apart, since there may be as many as cells. Those of a status that is a mapping itself are its fields.
    """
    inside: Iterable[tuple[Names, Names, Any]]
    if isinstance(status, bool | int | float):
        yield fields, keys, float(status)
        return
    if hasattr(status, "__attrs_attrs__"):
        inside = (((*fields, one.name), keys, getattr(status, one.name)) for one in status.__attrs_attrs__)
    elif hasattr(status, "items") and fields:
        inside = ((fields, (*keys, str(key)), value) for key, value in status.items())
    elif hasattr(status, "items"):
        inside = (((str(key),), keys, value) for key, value in status.items())
    else:
        return
    for path, names, value in inside:
        yield from _numbers(value, path, names)
