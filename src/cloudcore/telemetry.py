"""OpenTelemetry: spans of operations, and metrics. Needs the extra ``otel``; SDK and exporter are the application's."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

from cloudcore import __version__
from cloudcore._extras import require_extra
from cloudcore.errors import CloudcoreError, NoValidHost, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["OpenTelemetry"]


class _Watched(Protocol):
    def status(self) -> Any: ...


class OpenTelemetry:
    """An :class:`~cloudcore.observability.Observer` that makes spans and metrics.

    One may serve many objects and threads. Spans are named as the events are; their attributes are the events' fields
    behind ``cloudcore.``, errors set ``error.type``, and statements carry ``db.system.name``. Metrics:

    ============================  =========  ==================================================================
    cloudcore.operation.duration  histogram  seconds of each call, by ``cloudcore.operation`` and ``error.type``
    cloudcore.pages               counter    pages by ``cloudcore.outcome``: complete or partial
    cloudcore.cell.duration       histogram  seconds of a cell's part of a page, by cell and its state
    cloudcore.claims              counter    claims by ``cloudcore.verdict``: granted, refused or failed
    cloudcore.events              counter    retries, lost claims and other events, by ``cloudcore.event``
    cloudcore.status              gauge      every number of the ``status()`` of what is watched, by its name
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
        self._durations = self._meter.create_histogram("cloudcore.operation.duration", "s", "Duration of a call")
        self._cells = self._meter.create_histogram("cloudcore.cell.duration", "s", "Duration of a cell's part")
        self._pages = self._meter.create_counter("cloudcore.pages", "{page}", "Pages by outcome")
        self._claims = self._meter.create_counter("cloudcore.claims", "{claim}", "Claims by verdict")
        self._events = self._meter.create_counter("cloudcore.events", "{event}", "Events by name")

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
        attributes = _attributes(fields)
        self._events.add(1, {"cloudcore.event": name})
        seconds = fields.get("seconds")
        if seconds is None:
            self._trace.get_current_span().add_event(name, attributes)
            return
        if name == "listing.cell":
            told = {key: attributes[key] for key in ("cloudcore.cell", "cloudcore.state") if key in attributes}
            self._cells.record(seconds, told)
        now = time.time_ns()
        part = self._tracer.start_span(name, start_time=now - int(seconds * 1e9), attributes=attributes)
        if "error" in fields:
            part.set_status(self._trace.StatusCode.ERROR)
        part.end(now)

    def watch(self, name: str, watched: _Watched) -> None:
        """Report the numbers of ``watched.status()`` under *name* whenever metrics are collected.

        A status that cannot be read is left out of that collection.
        """

        def observe(_: Any) -> Iterable[Observation]:
            try:
                numbers = dict(_numbers(watched.status()))
            except CloudcoreError:
                return []
            return [
                self._observation(value, {"cloudcore.object": name, "cloudcore.field": field})
                for field, value in numbers.items()
            ]

        self._meter.create_observable_gauge("cloudcore.status", [observe], "1", "Numbers of a status")


def _attributes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key if "." in key else f"cloudcore.{key}": value for key, value in fields.items() if value is not None}


def _numbers(status: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a status value and in the values and mappings inside it."""
    items: Iterable[tuple[Any, Any]]
    if hasattr(status, "__attrs_attrs__"):
        items = ((field.name, getattr(status, field.name)) for field in status.__attrs_attrs__)
    elif hasattr(status, "items"):
        items = status.items()
    else:
        return
    for key, value in items:
        if isinstance(value, bool | int | float):
            yield f"{prefix}{key}", float(value)
        else:
            yield from _numbers(value, f"{prefix}{key}.")
