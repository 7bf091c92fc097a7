"""How one call of Cinder is made: negotiated once, repeated where that is safe, and over when its time is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from cloudcore._forks import when_forked
from cloudcore.attach.volumes.cinder_rules import Call, Effect, features_of, negotiate
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    NotFound,
    OutcomeUnknown,
    UnsupportedFeature,
    VolumeServiceUnavailable,
)
from cloudcore.observability import event

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cloudcore.attach.volumes.cinder_http import Http
    from cloudcore.attach.volumes.values import Volume, VolumeAttachment, VolumeFeatures, VolumeSnapshot

__all__ = ["LOST", "Calls", "listed"]

log: logging.Logger = logging.getLogger("cloudcore.attach.cinder")

Answer = TypeVar("Answer")
Row = TypeVar("Row", "Volume", "VolumeAttachment", "VolumeSnapshot")

LOST = 5
"""How many answers to one order may be lost, and how often a listing may lose its place, before it gives up."""


class Calls:
    """Makes calls and repeats them. May be shared between threads.

    Args:
        http: Sends.
        wanted: Upper bound of the microversion, None for the newest that both sides know.
        deadline: Seconds for one call with all its repetitions.
        attempts: How often, at most, a request that may be repeated is made.
        clock: Monotonic seconds.
        sleep: Waits between repetitions.
    """

    def __init__(
        self,
        http: Http,
        *,
        wanted: str | None,
        deadline: float,
        attempts: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._http = http
        self._wanted = wanted
        self.deadline = deadline
        self._attempts = attempts
        self._clock = clock
        self._sleep = sleep
        self._forget()
        when_forked(self, Calls._forget)

    def _forget(self) -> None:
        """Also in a forked child: a thread of its parent may have a lock of the client."""
        self._spoken: tuple[Any, VolumeFeatures] | None = None

    def speak(self) -> tuple[Any, VolumeFeatures]:
        """The client of the negotiated version. Two threads may both negotiate; they come to the same result."""
        spoken = self._spoken
        if spoken is None:
            asking = self._http.client("3.0")
            ranges = self._repeat(Call("negotiation", Effect.NONE), asking.services.server_api_version, _version_ranges)
            if not ranges:
                raise UnsupportedFeature("the volume service speaks no version 3", needed="3.27", available=None)
            version = negotiate(*ranges[0], self._wanted)
            spoken = self._spoken = (self._http.client(version), features_of(version))
            log.info("volume service speaks %s", version, extra={"microversion": version})
        return spoken

    def make(
        self,
        call: Call,
        request: Callable[[Any], Any],
        read: Callable[[Any], Answer],
        *,
        probe: Callable[[float], Answer | None] | None = None,
        until: float | None = None,
    ) -> Answer:
        """Make a request of the negotiated client, again after failures that allow it."""
        client, _ = self.speak()
        return self._repeat(call, lambda: request(client), read, probe=probe, until=until)

    def _repeat(
        self,
        call: Call,
        request: Callable[[], Any],
        read: Callable[[Any], Answer],
        *,
        probe: Callable[[float], Answer | None] | None = None,
        until: float | None = None,
    ) -> Answer:
        """Send it, again after failures that allow it, until attempts or time are over.

        Once an answer has been lost, no later failure can prove that nothing happened: the end is OutcomeUnknown then.

        Args:
            call: What it is.
            request: Makes the request.
            read: Reads the answer.
            probe: Asked, after a lost answer, whether the call has had its effect; what it returns is the answer. It is
                given the instant at which the time is over.
            until: That instant; None for a whole deadline from now.
        """
        until = self._clock() + self.deadline if until is None else until
        lost: OutcomeUnknown | None = None
        for attempt in self._attempts_of(call, until):
            with attempt:
                try:
                    if lost and probe and (found := probe(until)) is not None:
                        return found
                    return self._http.send(call, request, read, until=until, service=call.name == "delete")
                except OutcomeUnknown as error:
                    lost = error
                    raise
                except VolumeServiceUnavailable:
                    if lost is None:
                        raise
                    raise lost from None
                except Conflict:
                    if lost and probe and (found := probe(until)) is not None:
                        return found  # refused because the lost request had been carried out
                    raise
        raise AssertionError("tenacity ends with the last error")

    def _attempts_of(self, call: Call, until: float) -> Iterator[tenacity.AttemptManager]:
        again: tuple[type[CloudcoreError], ...] = (VolumeServiceUnavailable,)
        if call.effect is not Effect.ONCE:
            again = (VolumeServiceUnavailable, OutcomeUnknown)
        yield from tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(again),
            stop=lambda state: state.attempt_number >= self._attempts or self._clock() + state.upcoming_sleep >= until,
            wait=_pause,
            sleep=self._sleep,
            before_sleep=lambda state: _log_repetition(call, state),
            reraise=True,
        )

    def watch(self, step: Callable[[], Answer | None]) -> Answer | None:
        """Repeat *step* until it returns something, None if it does not in time."""
        until = self._clock() + self.deadline
        outcome: Answer | None = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda result: result is None),
            stop=lambda _: self._clock() >= until,
            wait=tenacity.wait_exponential(0.05, max=2.0) + tenacity.wait_random(0.0, 0.05),
            sleep=self._sleep,
            retry_error_callback=lambda _: None,
        )(step)
        return outcome


def _version_ranges(versions: Any) -> list[tuple[str, str]]:
    """The (oldest, newest) of each major version 3 that the service offers; there is one."""
    return [(entry.min_version, entry.version) for entry in versions if entry.version.startswith("3.")]


_backoff = tenacity.wait_exponential(0.1, max=5.0) + tenacity.wait_random(0.0, 0.1)


def _pause(state: tenacity.RetryCallState) -> float:
    """Growing pauses; longer where the service says how long."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), getattr(error, "retry_after", None) or 0.0)


def _log_repetition(call: Call, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    event("attach.cinder.retry", logging.WARNING, call=call.name, attempt=state.attempt_number, error=str(error))


def listed(what: str, page: Callable[[str | None], Sequence[Row]]) -> Collection[Row]:
    """Each of *what* once, page by page to the first empty one: Cinder may give less than a page that is not the last.

    A row that is there throughout is listed, whatever is made or deleted meanwhile: when the one that marks the place
    is gone, it is begun again.

    Raises:
        VolumeServiceUnavailable: That happened too often.
    """
    for _ in range(LOST):
        found: dict[str, Row] = {}
        marker: str | None = None
        try:
            while rows := page(marker):
                found.update((row.id, row) for row in rows)
                marker = rows[-1].id
        except NotFound:
            if marker is None:
                raise
            continue
        return found.values()
    raise VolumeServiceUnavailable(f"{what} change faster than they can be listed ({LOST} tries)")
