"""OpenTelemetry: spans of operations, and metrics. Needs the extra ``otel``; SDK and exporter are the application's."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from cloudcore import __version__
from cloudcore._extras import require_extra
from cloudcore.errors import CloudcoreError, NoValidHost, Refused
from cloudcore.observability import event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import Histogram, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetry"]


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of the histograms' buckets: the SDK's own are meant for milliseconds."""


class _Watched(Protocol):
    """What has a status."""

    def status(self) -> Any:
        """Its numbers, as a value."""


class OpenTelemetry:
    """An :class:`~cloudcore.observability.Observer` that makes spans and metrics.

    One may serve many objects and threads; make one for each meter provider, since an SDK exports one gauge of a name.
    Spans are named as the events are; their attributes are the events' fields behind ``cloudcore.``, and errors set
    ``error.type``. Transactions carry ``db.system.name`` and ``db.namespace``, statements ``db.system.name`` and
    ``db.query.text`` (without parameters), after OpenTelemetry's semantic conventions. Metrics:

    ============================  =========  ==================================================================
    cloudcore.operation.duration  histogram  seconds of each call, by ``cloudcore.operation`` and ``error.type``
    cloudcore.pages               counter    pages by ``cloudcore.outcome``: complete or partial
    cloudcore.cell.duration       histogram  seconds of a cell's part of a page, by cell and its state
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
        self._trace = require_extra("opentelemetry.trace", "otel")
        metrics = require_extra("opentelemetry.metrics", "otel")
        self._tracer = self._trace.get_tracer("cloudcore", __version__, tracer_provider)
        self._observation: type[Observation] = metrics.Observation
        self._meter = metrics.get_meter("cloudcore", __version__, meter_provider)
        self._durations = self._histogram("cloudcore.operation.duration", "Duration of a call")
        self._cells = self._histogram("cloudcore.cell.duration", "Duration of a cell's part")
        self._pages = self._meter.create_counter("cloudcore.pages", "{page}", "Pages by outcome")
        self._claims = self._meter.create_counter("cloudcore.claims", "{claim}", "Claims by verdict")
        self._events = self._meter.create_counter("cloudcore.events", "{event}", "Events by name")
        self._watched: dict[str, _Watched] = {}
        self._watching = threading.Lock()
        self._meter.create_observable_gauge("cloudcore.status", [self._observe], "1", "Numbers of a status")

    def _histogram(self, name: str, description: str) -> Histogram:
        made: Histogram = self._meter.create_histogram(
            name, "s", description, explicit_bucket_boundaries_advisory=_SECONDS
        )
        return made

    @contextlib.contextmanager
    def span(self, name: str, fields: Mapping[str, Any]) -> Iterator[Callable[..., None]]:
        """See :meth:`~cloudcore.observability.Observer.span`."""
        began = time.perf_counter()
        attributes = {"cloudcore.operation": name}
        added: dict[str, Any] = {}
        with self._tracer.start_as_current_span(
            name, attributes=_attributes(fields), record_exception=False, set_status_on_exception=False
        ) as active:

            def add(**more: Any) -> None:
                added.update(more)
                active.set_attributes(_attributes(more))

            verdict = "granted"
            try:
                yield add
            except BaseException as error:
                attributes["error.type"] = type(error).__name__
                verdict = "refused" if isinstance(error, Refused | NoValidHost) else "failed"
                active.set_attribute("error.type", type(error).__name__)
                active.set_status(self._trace.StatusCode.ERROR, str(error) if isinstance(error, CloudcoreError) else "")
                raise
            finally:
                self._durations.record(time.perf_counter() - began, attributes)
                if name in ("placement.claim", "placement.select"):
                    self._claims.add(1, {"cloudcore.verdict": verdict, "cloudcore.operation": name})
                if name == "listing.page" and "complete" in added:
                    self._pages.add(1, {"cloudcore.outcome": "complete" if added["complete"] else "partial"})

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """See :meth:`~cloudcore.observability.Observer.event`. What took seconds becomes a span that ends now."""
        seconds = fields.get("seconds")
        if name == "listing.cell" and seconds is not None:
            told = {f"cloudcore.{key}": fields[key] for key in ("cell", "state") if key in fields}
            self._cells.record(seconds, told)
        else:
            self._events.add(1, {"cloudcore.event": name})
        active = self._trace.get_current_span()
        if active.get_span_context().is_valid and not active.is_recording():
            return  # its trace is not sampled
        attributes = _attributes(fields)
        if seconds is None:
            active.add_event(name, attributes)
            return
        now = time.time_ns()
        part = self._tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=attributes)
        if "error" in fields:
            part.set_status(self._trace.StatusCode.ERROR)
        part.end(now)

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
