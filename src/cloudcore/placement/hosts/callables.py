"""Ask what the caller hands in, and name it when it goes wrong: which callable, about which host, and what it gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from cloudcore._values import is_storable
from cloudcore.errors import CloudcoreError, InvalidCallable, InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher

__all__ = [
    "ask_about",
    "ask_filter",
    "ask_metadata",
    "ask_over",
    "ask_weigher",
    "name_of",
    "raise_it",
    "read_filters",
    "read_weighers",
    "require_callable",
]


def read_filters(filters: Any) -> tuple[Filter, ...]:
    """The filters that a caller gave.

    Raises:
        InvalidRequest: They are no sequence of callables.
    """
    expected = "expected a list of callables, such as [ignore_hosts({'cn7'})]"
    if callable(filters) or not isinstance(filters, Iterable):
        raise InvalidRequest(f"filters: {expected}, got {filters!r}", field="filters", value=filters)
    given = tuple(filters)
    for number, refuse in enumerate(given):
        if not callable(refuse):
            raise InvalidRequest(f"filters[{number}]: {expected}, got {refuse!r}", field="filters", value=refuse)
    return given


def read_weighers(weighers: Any) -> tuple[tuple[float, Weigher], ...]:
    """The (multiplier, weigher) pairs that a caller gave.

    Raises:
        InvalidRequest: They are no sequence of pairs of a finite number and a callable.
    """
    expected = "expected a list of pairs of a number and a callable, such as [(1.0, free('VCPU'))]"
    if callable(weighers) or not isinstance(weighers, Iterable):
        raise InvalidRequest(f"weighers: {expected}, got {weighers!r}", field="weighers", value=weighers)
    given = tuple(weighers)
    for number, pair in enumerate(given):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and _is_number(pair[0]) and callable(pair[1])):
            raise InvalidRequest(f"weighers[{number}]: {expected}, got {pair!r}", field="weighers", value=pair)
    return tuple((float(multiplier), weigher) for multiplier, weigher in given)


def require_callable(function: Any, name: str) -> None:
    """Let pass what can be asked about a root provider.

    Raises:
        InvalidRequest: It cannot be called.
    """
    if not callable(function):
        expected = "expected a callable that takes a root provider"
        raise InvalidRequest(f"{name}: {expected}, got {function!r}", field=name, value=function)


def _is_number(value: object) -> bool:
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)


def name_of(function: object) -> str:
    """What a callable is called in messages."""
    return getattr(function, "__qualname__", None) or repr(function)


def _call(what: str, function: Callable[[Any], Any], argument: HostView | Provider) -> Any:
    try:
        return function(argument)
    except CloudcoreError:
        raise
    except Exception as error:
        raise InvalidCallable(
            f"{what} {name_of(function)} raised {type(error).__name__} for host {argument.name}: {error}",
            field=what,
            function=name_of(function),
            host=argument.name,
        ) from error


def _refuse(what: str, function: object, host: HostView | Provider, expected: str, got: object) -> NoReturn:
    raise InvalidCallable(
        f"{what} {name_of(function)} gave {got!r} for host {host.name}; it must give {expected}",
        field=what,
        value=got,
        function=name_of(function),
        host=host.name,
    )


def raise_it(error: InvalidCallable) -> NoReturn:
    """What to do about a callable that went wrong where nothing else is wanted."""
    raise error


def ask_filter(refuse: Filter, host: HostView) -> str | None:
    """Why the host is refused, None if it passes.

    Raises:
        InvalidCallable: It raised, or gave something else, such as True or False.
    """
    answer: object = _call("filter", refuse, host)
    if answer is None or isinstance(answer, str):
        return answer
    _refuse("filter", refuse, host, "None to let a host pass, else the reason why not", answer)


def ask_weigher(weigher: Weigher, host: HostView) -> float:
    """The weight of the host.

    Raises:
        InvalidCallable: It raised, or gave no finite number.
    """
    answer: Any = _call("weigher", weigher, host)
    if type(answer) is not bool and isinstance(answer, Real):
        weight = float(answer)
        if math.isfinite(weight):
            return weight
    _refuse("weigher", weigher, host, "a finite number", answer)


class _Hosts(Protocol):
    """Hosts side by side."""

    @property
    def size(self) -> int: ...

    def root(self, host: int) -> Provider: ...


def ask_over(weigher: Weigher, over: Callable[[Any], NDArray[Any]], hosts: _Hosts) -> NDArray[np.float64]:
    """The weights of many hosts.

    Raises:
        InvalidCallable: It raised, or gave no finite number for each.
    """
    try:
        weights = np.asarray(over(hosts), dtype=np.float64)
    except CloudcoreError:
        raise
    except Exception as error:
        name = name_of(weigher)
        raise InvalidCallable(
            f"weigher {name} raised {type(error).__name__} over {hosts.size} hosts, the first of them "
            f"{hosts.root(0).name}: {error}",
            field="weigher",
            function=name,
            host=hosts.root(0).name,
        ) from error
    if weights.shape != (hosts.size,):
        _refuse("weigher", weigher, hosts.root(0), f"{hosts.size} numbers", weights)
    wrong = np.flatnonzero(~np.isfinite(weights))
    if len(wrong):
        _refuse("weigher", weigher, hosts.root(int(wrong[0])), "a finite number", float(weights[wrong[0]]))
    return weights


def ask_about(what: str, function: Callable[[Provider], str | None], root: Provider) -> str | None:
    """A cell or a domain.

    Raises:
        InvalidCallable: It raised, or gave something else than None or text that a selection can carry.
    """
    answer: object = _call(what, function, root)
    if answer is None or (isinstance(answer, str) and 0 < len(answer) <= 255 and is_storable(answer)):
        return answer
    _refuse(what, function, root, "text of 1 to 255 characters or None", answer)


def ask_metadata(function: Callable[[Provider], Mapping[str, Any]], root: Provider) -> Mapping[str, Any]:
    """What is to be known of a host.

    Raises:
        InvalidCallable: It raised, or gave no mapping.
    """
    answer: object = _call("metadata_of", function, root)
    if isinstance(answer, Mapping):
        return answer
    _refuse("metadata_of", function, root, "a mapping", answer)
