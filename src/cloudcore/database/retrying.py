"""How a transaction is repeated after a deadlock or a lost connection: bounded, with pauses drawn at random."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

import attrs

from cloudcore.errors import DatabaseBusy, DatabaseUnavailable, OutcomeUnknown
from cloudcore.observability import event

if TYPE_CHECKING:
    from collections.abc import Callable

    import tenacity

__all__ = ["RetryPolicy"]

T = TypeVar("T")
_TRANSIENT = (DatabaseBusy, DatabaseUnavailable, OutcomeUnknown)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and how long a transaction is repeated after a deadlock or a lost connection.

    Attributes:
        attempts: In all, the first included.
        deadline: Seconds after which no further attempt starts.
        initial: Upper bound in seconds of the first pause; it doubles, and each pause is drawn at random below it.
        maximum: Upper bound in seconds of any pause.
    """

    attempts: int = 12
    deadline: float = 30.0
    initial: float = 0.004
    maximum: float = 1.0

    def retrying(self, transient: tuple[type[Exception], ...] = _TRANSIENT) -> tenacity.Retrying:
        """A fresh tenacity loop that repeats on *transient*: by default errors that pass, and unknown outcomes."""
        import tenacity  # only now: most processes never see a transaction fail

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(transient),
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_before_delay(self.deadline),
            wait=tenacity.wait_random_exponential(multiplier=self.initial, max=self.maximum),
            before_sleep=_tell,
            reraise=True,
        )

    def call(self, attempt: Callable[[], T], transient: tuple[type[Exception], ...] = _TRANSIENT) -> T:
        """Return *attempt*'s result, repeated as :meth:`retrying` says; the loop is made when an attempt has failed.

        Raises:
            Exception: Whatever *attempt* raised last.
        """
        begun = time.monotonic()
        try:
            return attempt()
        except transient as error:
            failures = [error]

        def replayed() -> T:  # the first attempt is over: tenacity counts it, and pauses after it
            if failures:
                raise failures.pop()
            return attempt()

        left = attrs.evolve(self, deadline=self.deadline - (time.monotonic() - begun))
        result: T = left.retrying(transient)(replayed)
        return result


def _tell(state: tenacity.RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    event(
        "database.retry", logging.WARNING, error=type(error).__name__, reason=str(error), attempt=state.attempt_number
    )
