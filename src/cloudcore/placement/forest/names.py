"""Names of resource classes and traits: the standard ones and ``CUSTOM_`` ones. Pure.

Where the packages ``os-resource-classes`` and ``os-traits`` are installed (extra ``openstack``), a name that is neither
custom nor standard is refused. Without them every well-formed name passes.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from cloudcore._values import require_name
from cloudcore.errors import InvalidArgument, InvalidProvider

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SHARES_VIA_AGGREGATE",
    "guess",
    "is_known_trait",
    "is_standard_class",
    "is_standard_trait",
    "require_resource_class",
    "require_trait",
    "standard_resource_classes",
    "standard_traits",
]

SHARES_VIA_AGGREGATE = "MISC_SHARES_VIA_AGGREGATE"
"""The trait of a provider that gives its inventory to every tree with a member in one of its aggregates."""

_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]+\Z")
_NAME = re.compile(r"[A-Z0-9_]{1,255}\Z")


@cache
def _standard_classes() -> frozenset[str] | None:
    try:
        import os_resource_classes
    except ImportError:
        return None
    return frozenset(os_resource_classes.STANDARDS)


@cache
def _standard_traits() -> frozenset[str] | None:
    try:
        import os_traits
    except ImportError:
        return None
    return frozenset(os_traits.get_traits())


@lru_cache(maxsize=4096)
def _known_class(name: str) -> bool:
    standard = _standard_classes()
    return standard is None or name in standard or bool(_CUSTOM.match(name))


@lru_cache(maxsize=4096)
def _known_trait(name: str) -> bool:
    standard = _standard_traits()
    return standard is None or name in standard or bool(_CUSTOM.match(name))


def standard_resource_classes() -> frozenset[str]:
    """The standard classes; none without ``os-resource-classes``."""
    return _standard_classes() or frozenset()


def standard_traits() -> frozenset[str]:
    """The standard traits; none without ``os-traits``."""
    return _standard_traits() or frozenset()


def guess(name: str, known: Iterable[str]) -> str:
    """``: did you mean X?``, the known name nearest to a misspelt one; nothing where none is near."""
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else ""


def is_standard_class(name: str) -> bool:
    """Whether *name* is a standard class; without ``os-resource-classes``, whether it could be one."""
    return not name.startswith("CUSTOM_") and bool(_NAME.match(name)) and _known_class(name)


def is_standard_trait(name: str) -> bool:
    """Whether *name* is a standard trait; without ``os-traits``, whether it could be one."""
    return not name.startswith("CUSTOM_") and bool(_NAME.match(name)) and _known_trait(name)


def is_known_trait(name: str) -> bool:
    """Whether *name* is a standard trait or well formed for a custom one."""
    return bool(_NAME.match(name)) and _known_trait(name)


def require_resource_class(value: str, field: str, error: type[InvalidArgument] = InvalidProvider) -> str:
    """Return *value* if it names a resource class: a standard one, or ``CUSTOM_`` with ``[A-Z0-9_]``, 255 at most.

    Raises:
        InvalidProvider: It does not (or the subclass given as *error*).
    """
    require_name(value, field, error)
    if not _known_class(value):
        raise error(
            f"{field}: {value} is no standard resource class (os-resource-classes) and does not begin with CUSTOM_"
            f"{guess(value, standard_resource_classes())}",
            field=field,
            value=value,
        )
    return value


def require_trait(value: str, field: str, error: type[InvalidArgument] = InvalidProvider) -> str:
    """Return *value* if it names a trait: a standard one, or ``CUSTOM_`` with ``[A-Z0-9_]``, 255 at most.

    Raises:
        InvalidProvider: It does not (or the subclass given as *error*).
    """
    require_name(value, field, error)
    if not _known_trait(value):
        raise error(
            f"{field}: {value} is no standard trait (os-traits) and does not begin with CUSTOM_"
            f"{guess(value, standard_traits())}",
            field=field,
            value=value,
        )
    return value
