"""What cloudcore tells of its work: a log record for each event, and an observer that turns operations into spans.

Every area logs through ``cloudcore.<area>`` (``cloudcore.placement``, ``.listing``, ``.attach``, ``.hypervisor``,
``.database``). The message is one line; it begins with the event's name, which stays the same from release to release.
The fields stand in the message and, under ``fields``, in the record: ``logging.LogRecord.fields``. Reads are told at
DEBUG, what changes the world at INFO, and retries, lost claims, slow and down cells and unknown outcomes at WARNING.
Nothing is configured here: without a handler of the application nothing is written but warnings.

An :class:`Observer` is given to the objects that are to be observed (``observer=``); what they call inside finds it in
the context, unless it has one of its own. :class:`cloudcore.telemetry.OpenTelemetry` is one.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from cloudcore._values import one_line
from cloudcore.errors import OutcomeUnknown, Transient

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Observer", "SparingObserver", "event", "observed", "span", "tell_parts", "teller"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

logging.getLogger("cloudcore").addHandler(logging.NullHandler())


class Observer(Protocol):
    """Is told of operations and events. Its methods must not raise, and are called by many threads."""

    def span(self, name: str, fields: Mapping[str, Any]) -> AbstractContextManager[Callable[..., None]]:
        """Around an operation or a part of one; what the block is given takes further fields, by keyword."""
        ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Something happened in the operation under way."""
        ...


class SparingObserver(Observer, Protocol):
    """An observer that spares the work of telling it what it would throw away. Either method may be left out."""

    def listens(self) -> bool:
        """Whether the parts of the operation under way are to be told one by one, as events; True without this."""
        ...

    def parts(self, name: str, parts: Collection[T], fields: Callable[[T], Mapping[str, Any]]) -> None:
        """All parts of one kind of an operation that has just done them, instead of an :meth:`event` for each.

        Args:
            name: Of the event that each would be.
            parts: Such as :class:`cloudcore.listing.CellReport` for ``listing.cell``.
            fields: Makes an event's fields of a part.
        """
        ...


_LONGEST = 256
"""Characters of a text that was given by a caller, in logs and traces."""
_OBSERVER: ContextVar[Observer | None] = ContextVar("cloudcore_observer", default=None)


@functools.cache
def _logger_of(name: str) -> logging.Logger:
    """Of the area of an event."""
    return logging.getLogger(f"cloudcore.{name.partition('.')[0]}")


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def event(name: str, level: int, /, **fields: Any) -> None:
    """Log an event of the area that *name* begins with, and tell the observer of the operation under way.

    Fields that are None are left out.
    """
    logger = _logger_of(name)
    observer = _OBSERVER.get()
    if observer is None and not logger.isEnabledFor(level):
        return
    told = _given(fields)
    if observer is not None:
        observer.event(name, told)
    if logger.isEnabledFor(level):
        _log(logger, level, name, told)


def tell_parts(name: str, parts: Callable[[], Collection[T]], fields: Callable[[T], Mapping[str, Any]]) -> None:
    """Tell of all parts of one kind of the operation under way: as an :func:`event` at DEBUG each, if anybody listens.

    Args:
        name: Of the events.
        parts: Gives what is told of, and is called only if somebody listens.
        fields: Makes the fields of a part; those that are None are left out.
    """
    logger = _logger_of(name)
    observer = _OBSERVER.get()
    logged = logger.isEnabledFor(logging.DEBUG)
    if observer is None and not logged:
        return
    given = parts()
    taken: Callable[..., None] | None = getattr(observer, "parts", None)
    if taken is not None:
        taken(name, given, lambda part: _given(fields(part)))
    elif observer is not None:
        for part in given:
            observer.event(name, _given(fields(part)))
    if logged:
        for part in given:
            _log(logger, logging.DEBUG, name, _given(fields(part)))


def teller(area: str, level: int) -> Callable[..., None] | None:
    """:func:`event` for threads that work for the operation under way; None when nobody listens.

    Observer and log handlers are called in the context of this call, so that spans that the observer makes stand below
    the operation's, and what a log record takes from the context is the operation's. May be called by many threads.

    Args:
        area: Whose events: the name before the first point.
        level: Of the least of them.
    """
    if not _listens(_OBSERVER.get()) and not _logger_of(area).isEnabledFor(level):
        return None
    context = copy_context()

    def tell(name: str, level: int, /, **fields: Any) -> None:
        # a copy each time: two threads cannot be in one context at once
        context.copy().run(functools.partial(event, name, level, **fields))

    return tell


def _listens(observer: Observer | None) -> bool:
    asked: Callable[[], bool] | None = getattr(observer, "listens", None)
    return observer is not None if asked is None else asked()


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
                    operation.tell(operation.fields_of(args, kwargs), began, error)
                    raise
            fields = operation.fields_of(args, kwargs)
            token = _OBSERVER.set(observer)
            try:
                with _UNSEEN if observer is None else observer.span(name, fields) as add:
                    try:
                        result = method(self, *args, **kwargs)
                    except Exception as error:
                        operation.tell(fields, began, error)
                        raise
                    more = operation.answered(result)
                    add(**more)
            finally:
                _OBSERVER.reset(token)
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
        self.logger = _logger_of(name)
        self._name, self._level, self._answer = name, level, answer
        places = {key: place for place, key in enumerate(list(signature.parameters)[1:])}
        self._arguments = tuple((key, places[key]) for key in arguments)

    def fields_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are told, of a call that may yet turn out to be none."""
        if not self._arguments:
            return {}
        given = ((key, args[place] if place < len(args) else kwargs.get(key)) for key, place in self._arguments)
        return {key: _plain(value) for key, value in given if value is not None}

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


def _log(logger: logging.Logger, level: int, name: str, fields: Mapping[str, Any]) -> None:
    text = one_line(" ".join(f"{key}={value}" for key, value in fields.items()))
    logger.log(level, "%s %s", name, text, extra={"event": name, "fields": dict(fields)})


def _plain(value: Any) -> Any:
    """A field: a word or a number. Of anything else only its identifier, since a value may hold a secret."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST and value.isprintable() else _readable(value)
    if isinstance(value, int | float | bool):
        return value
    return getattr(value, "uuid", None) or getattr(value, "id", None) or type(value).__name__


def _readable(text: str) -> str:
    """Of whatever a caller sent, one line that every log and exporter can write."""
    shown = one_line(text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}... ({len(text)} characters)"


def _ignore(**_: Any) -> None:
    pass


_UNSEEN: AbstractContextManager[Callable[..., None]] = nullcontext(_ignore)
