"""What cloudcore tells of its work: a log record for each event, and an observer that turns operations into spans.

Every area logs through ``cloudcore.<area>`` (``cloudcore.placement``, ``.listing``, ``.attach``, ``.hypervisor``,
``.database``). The message begins with the event's name, which stays the same from release to release; the fields stand
in the message and, under ``fields``, in the record: ``logging.LogRecord.fields``. Reads are told at DEBUG, what changes
the world at INFO, and retries, lost claims, slow and down cells and unknown outcomes at WARNING. Nothing is configured
here: without a handler of the application nothing is written but warnings.

An :class:`Observer` is given to the objects that are to be observed (``observer=``); what they call inside finds it in
the context, unless it has one of its own. :class:`cloudcore.telemetry.OpenTelemetry` is one.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from cloudcore.errors import OutcomeUnknown, Transient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Observer", "event", "observed", "span", "teller"]

P = ParamSpec("P")
R = TypeVar("R")

logging.getLogger("cloudcore").addHandler(logging.NullHandler())


class Observer(Protocol):
    """Is told of operations and events. Its methods must not raise, and are called by many threads."""

    def span(self, name: str, fields: Mapping[str, Any]) -> AbstractContextManager[Callable[..., None]]:
        """Around an operation or a part of one; what the block is given takes further fields, by keyword."""
        ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something happened in the operation under way."""
        ...


_OBSERVER: ContextVar[Observer | None] = ContextVar("cloudcore_observer", default=None)


def event(name: str, level: int, /, **fields: Any) -> None:
    """Log an event of the area that *name* begins with, and tell the observer of the operation under way.

    Fields that are None are left out.
    """
    logger = logging.getLogger(f"cloudcore.{name.partition('.')[0]}")
    observer = _OBSERVER.get()
    if observer is None and not logger.isEnabledFor(level):
        return
    told = {key: value for key, value in fields.items() if value is not None}
    if observer is not None:
        observer.event(name, told)
    if logger.isEnabledFor(level):
        _log(logger, level, name, told)


def teller(area: str, level: int) -> Callable[..., None] | None:
    """:func:`event` for threads that work for the operation under way; None when nobody listens.

    Observer and log handlers are called in the context of this call, so that spans that the observer makes stand below
    the operation's, and what a log record takes from the context is the operation's. May be called by many threads.

    Args:
        area: Whose events: the name before the first point.
        level: Of the least of them.
    """
    observer, logger = _OBSERVER.get(), logging.getLogger(f"cloudcore.{area}")
    if observer is None and not logger.isEnabledFor(level):
        return None
    context = copy_context()

    def tell(name: str, level: int, /, **fields: Any) -> None:
        # a copy each time: two threads cannot be in one context at once
        context.copy().run(functools.partial(event, name, level, **fields))

    return tell


def span(name: str, /, **fields: Any) -> AbstractContextManager[Callable[..., None]]:
    """A part of the operation under way, for its observer; nothing without one."""
    observer = _OBSERVER.get()
    return _UNSEEN if observer is None else observer.span(name, fields)


def observed(
    name: str,
    *arguments: str,
    level: int = logging.DEBUG,
    answer: Callable[[Any], Mapping[str, Any]] | None = None,
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Make an event, and for an observer a span, of each call of a public method.

    The object's observer is its attribute ``observer``; without one, that of the operation under way.

    Args:
        name: The event, such as ``placement.claim``.
        arguments: Names of the arguments that are told as fields.
        level: Of the event when the call returns: INFO if it changes the world. Transient errors and unknown outcomes
            are told at WARNING, other errors at DEBUG, since the caller is told too.
        answer: Further fields, from what the call returned.
    """

    def decorate(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        operation = _Operation(name, arguments, level, answer, inspect.signature(method))

        @functools.wraps(method)
        def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            own: Observer | None = getattr(self, "observer", None)
            observer = _OBSERVER.get() if own is None else own
            began = time.monotonic()
            if observer is None and not operation.logger.isEnabledFor(level):
                try:
                    return method(self, *args, **kwargs)
                except (Transient, OutcomeUnknown) as error:
                    operation.tell(operation.fields_of(self, args, kwargs), began, error)
                    raise
            fields = operation.fields_of(self, args, kwargs)
            with _observing(observer, name, fields) as add:
                try:
                    result = method(self, *args, **kwargs)
                except Exception as error:
                    operation.tell(fields, began, error)
                    raise
                more = operation.answered(result)
                add(**more)
            operation.tell(fields | more, began, None)
            return result

        return call

    return decorate


class _Operation:
    """How the calls of one method are told; see :func:`observed`."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        level: int,
        answer: Callable[[Any], Mapping[str, Any]] | None,
        signature: inspect.Signature,
    ) -> None:
        self.logger = logging.getLogger(f"cloudcore.{name.partition('.')[0]}")
        self._name, self._arguments, self._level = name, arguments, level
        self._answer, self._signature = answer, signature

    def fields_of(self, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are told."""
        try:
            given = self._signature.bind(owner, *args, **kwargs).arguments
        except TypeError:  # the call itself will say so
            return {}
        return {key: _plain(given[key]) for key in self._arguments if given.get(key) is not None}

    def answered(self, result: Any) -> dict[str, Any]:
        """What is told of an answer."""
        return {} if self._answer is None else dict(self._answer(result))

    def tell(self, fields: dict[str, Any], began: float, error: BaseException | None) -> None:
        """Log the end of a call that began at that monotonic instant."""
        worth = self._level
        if error is not None:
            worth = logging.WARNING if isinstance(error, Transient | OutcomeUnknown) else logging.DEBUG
            fields |= {"error": type(error).__name__}
        if self.logger.isEnabledFor(worth):
            _log(self.logger, worth, self._name, fields | {"seconds": round(time.monotonic() - began, 6)})


@contextmanager
def _observing(observer: Observer | None, name: str, fields: Mapping[str, Any]) -> Iterator[Callable[..., None]]:
    if observer is None:
        yield _ignore
        return
    token = _OBSERVER.set(observer)
    try:
        with observer.span(name, fields) as add:
            yield add
    finally:
        _OBSERVER.reset(token)


def _log(logger: logging.Logger, level: int, name: str, fields: Mapping[str, Any]) -> None:
    text = " ".join(f"{key}={value}" for key, value in fields.items())
    logger.log(level, "%s %s", name, text, extra={"event": name, "fields": dict(fields)})


def _plain(value: Any) -> Any:
    """A field: a word or a number. Of anything else only its identifier, since a value may hold a secret."""
    if isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "uuid", None) or getattr(value, "id", None) or type(value).__name__


def _ignore(**_: Any) -> None:
    pass


_UNSEEN: AbstractContextManager[Callable[..., None]] = nullcontext(_ignore)
