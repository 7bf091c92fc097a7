"""What the probes read: cloudcore's operations, counted; or all of it to OpenTelemetry."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloudcore.observability import Observer


class Metrics:
    """An observer that counts operations and seconds, in the text form that Prometheus reads. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._events: Counter[str] = Counter()

    def observer(self) -> Observer:
        """This one, or OpenTelemetry's where ``COMPUTE_TELEMETRY`` is set."""
        if os.environ.get("COMPUTE_TELEMETRY"):
            from cloudcore.telemetry import OpenTelemetry

            return OpenTelemetry()
        return self

    @contextmanager
    def span(self, name: str, fields: Mapping[str, Any]) -> Iterator[Callable[..., None]]:
        begun, outcome = time.perf_counter(), "ok"
        try:
            yield lambda **_: None
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            with self._lock:
                self._calls[name, outcome] += 1
                self._seconds[name] += time.perf_counter() - begun  # type: ignore[assignment]  # a sum of floats

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        with self._lock:
            self._events[name] += 1

    def text(self) -> str:
        """One line a number."""
        with self._lock:
            calls, seconds, events = dict(self._calls), dict(self._seconds), dict(self._events)
        lines = ["# TYPE cloudcore_calls_total counter"]
        lines += [f'cloudcore_calls_total{{operation="{n}",outcome="{o}"}} {count}' for (n, o), count in calls.items()]
        lines += ["# TYPE cloudcore_seconds_total counter"]
        lines += [f'cloudcore_seconds_total{{operation="{n}"}} {value:.6f}' for n, value in seconds.items()]
        lines += ["# TYPE cloudcore_events_total counter"]
        lines += [f'cloudcore_events_total{{event="{n}"}} {count}' for n, count in events.items()]
        return "\n".join(lines) + "\n"
