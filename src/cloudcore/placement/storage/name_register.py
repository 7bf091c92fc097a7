"""The register of resource classes and traits: the standard ones, and the custom ones that somebody has added.

A name is added once and stays until it is removed, which is refused while a provider uses it. In a database the row of
a name is what keeps both sides in order: an edit that brings a name into use holds the row by a write, and a removal
takes it away, so that of the two the second sees what the first did, on other nodes of a cluster too.
"""

from __future__ import annotations

import enum
import threading
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._forks import when_forked
from cloudcore.database import hold, insert_ignoring_duplicates
from cloudcore.errors import InUse, InvalidProvider, InvalidRequest, NameNotFound
from cloudcore.placement.forest.names import (
    require_resource_class,
    require_trait,
    standard_resource_classes,
    standard_traits,
)
from cloudcore.placement.tables import (
    custom_resource_classes,
    custom_traits,
    inventories,
    provider_traits,
    resource_providers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.errors import InvalidArgument
    from cloudcore.placement.forest.forest import Edit, Forest
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.requests.groups import RequestGroup

__all__ = ["NameRegister"]

_PREFIX = "CUSTOM_"


class _Kind(enum.Enum):
    CLASS = "resource class"
    TRAIT = "trait"


@attrs.frozen
class _Stored:
    """Where names of a kind stand, and where they are used."""

    table: sa.Table
    used: sa.Column[str]


_STORED = {
    _Kind.CLASS: _Stored(custom_resource_classes, inventories.c.resource_class),
    _Kind.TRAIT: _Stored(custom_traits, provider_traits.c.trait),
}


_ALL_NAMES = sa.union_all(
    *(sa.select(sa.literal(kind.value).label("kind"), stored.table.c.name) for kind, stored in _STORED.items())
)


class NameRegister:
    """The names that a tree knows; ``tree.names`` is one. May be shared between threads.

    Standard names (of ``os-resource-classes`` and ``os-traits``, where they are installed) are known always. In a
    bound tree the register is kept in its database and shared with all other trees; what they add is seen at the next
    :meth:`~cloudcore.PlacementTree.refresh`, and in any case before a name is called unknown.

    Args:
        database: Gives that in which the names are kept, or raises Closed; None in memory.
        held: Gives the providers of the tree, which nobody edits until the end of the block.
    """

    def __init__(
        self, database: Callable[[], Database] | None, held: Callable[[], AbstractContextManager[Iterable[Provider]]]
    ) -> None:
        self._bound_to = database
        self._held = held
        self._custom: dict[_Kind, set[str]] = {kind: set() for kind in _Kind}
        self._unlock()
        when_forked(self, NameRegister._unlock)

    @property
    def _database(self) -> Database | None:
        return None if self._bound_to is None else self._bound_to()

    def _unlock(self) -> None:
        self._lock = threading.Lock()  # each change under it is a single step, so what a child finds is whole

    def forked(
        self, held: Callable[[], AbstractContextManager[Iterable[Provider]]], connection: Connection | None = None
    ) -> NameRegister:
        """A register of its own in memory that begins with the names known here, or those that *connection* sees."""
        other = NameRegister(None, held)
        with self._lock:
            known = {kind: set(names) for kind, names in self._custom.items()}
        other._custom = known if connection is None else _stored_names(connection)
        return other

    # --- looking -----------------------------------------------------------------------------------------------------

    def resource_classes(self) -> frozenset[str]:
        """All classes that are known now."""
        return standard_resource_classes() | self._read(_Kind.CLASS)

    def traits(self) -> frozenset[str]:
        """All traits that are known now."""
        return standard_traits() | self._read(_Kind.TRAIT)

    def refresh(self) -> None:
        """Read what others added and removed."""
        if self._database is None:
            return
        with self._database.read() as connection:
            found = _stored_names(connection)
        with self._lock:
            self._custom = found

    def _read(self, kind: _Kind) -> frozenset[str]:
        if self._database is None:
            with self._lock:
                return frozenset(self._custom[kind])
        with self._database.read() as connection:
            found = set(connection.scalars(sa.select(_STORED[kind].table.c.name)))
        with self._lock:
            self._custom[kind] = found
        return frozenset(found)

    # --- changing ----------------------------------------------------------------------------------------------------

    def add_resource_class(self, name: str) -> bool:
        """Add a class; return whether it is new.

        Raises:
            InvalidProvider: It is neither standard nor ``CUSTOM_`` with ``[A-Z0-9_]``, 255 characters at most.
        """
        return self._add(_Kind.CLASS, require_resource_class(name, "resource_class"))

    def add_trait(self, name: str) -> bool:
        """Add a trait; return whether it is new.

        Raises:
            InvalidProvider: It is neither standard nor ``CUSTOM_`` with ``[A-Z0-9_]``, 255 characters at most.
        """
        return self._add(_Kind.TRAIT, require_trait(name, "trait"))

    def remove_resource_class(self, name: str) -> None:
        """Remove a custom class.

        Raises:
            NameNotFound: It was not added.
            InUse: A provider has an inventory of it.
            InvalidProvider: It is a standard class.
        """
        self._remove(_Kind.CLASS, require_resource_class(name, "resource_class"))

    def remove_trait(self, name: str) -> None:
        """Remove a custom trait.

        Raises:
            NameNotFound: It was not added.
            InUse: A provider carries it.
            InvalidProvider: It is a standard trait.
        """
        self._remove(_Kind.TRAIT, require_trait(name, "trait"))

    def _add(self, kind: _Kind, name: str) -> bool:
        if not name.startswith(_PREFIX):
            return False
        if self._database is not None:
            statement = insert_ignoring_duplicates(_STORED[kind].table, self._database.dialect).values(name=name)
            new = bool(self._database.run(lambda connection: connection.execute(statement).rowcount))
        with self._lock:
            known = self._custom[kind]
            new = new if self._database is not None else name not in known
            known.add(name)
            return new

    def _remove(self, kind: _Kind, name: str) -> None:
        if not name.startswith(_PREFIX):
            raise InvalidProvider(f"{name} is a standard {kind.value}; it stays", field=kind.name.lower(), value=name)
        if self._database is not None:
            self._database.run(lambda connection: _delete(connection, kind, name))
            with self._lock:
                self._custom[kind].discard(name)
            return
        with self._held() as providers:  # no edit brings the name into use between the look and the end of it
            users = [provider.uuid for provider in providers if name in _names_of(provider, kind)]
            with self._lock:
                if name not in self._custom[kind]:
                    raise _unknown(kind, name)
                if users:
                    raise _in_use(kind, name, users[:5])
                self._custom[kind].discard(name)

    # --- strictness --------------------------------------------------------------------------------------------------

    def require_known(
        self,
        groups: Mapping[str, RequestGroup],
        of_root: Iterable[str] = (),
        *,
        preferred: Iterable[str] = (),
        weighed: Iterable[str] = (),
    ) -> None:
        """Check that every custom name was added: of *groups*, of the root, and of what orders the answers.

        Raises:
            InvalidRequest: One was not; the error names the parameter.
        """
        classes, traits = _names_asked(groups, of_root, preferred, weighed)
        for kind, asked in ((_Kind.CLASS, classes), (_Kind.TRAIT, traits)):
            with self._lock:
                missing = asked.keys() - self._custom[kind]
            missing = missing - self._read(kind) if missing else missing
            if missing:
                name = min(missing)
                raise _not_added(kind, name, asked[name], InvalidRequest)

    def require_added(self, connection: Connection | None, forest: Forest, edit: Edit) -> None:
        """Check that every custom name that *edit* brings into use was added, and hold it still until the commit.

        Raises:
            InvalidProvider: One was not.
        """
        for kind in _Kind:
            pairs = [(forest.providers.get(provider.uuid), provider) for provider in edit.put]
            fresh = {name for before, after in pairs for name in _fresh(before, after, kind)}
            if not fresh:
                continue
            missing = fresh - (self._read(kind) if connection is None else _hold(connection, kind, fresh))
            if missing:
                field = "inventory" if kind is _Kind.CLASS else "traits"
                raise _not_added(kind, min(missing), field, InvalidProvider)


def _stored_names(connection: Connection) -> dict[_Kind, set[str]]:
    found: dict[_Kind, set[str]] = {kind: set() for kind in _Kind}
    for kind, name in connection.execute(_ALL_NAMES):
        found[_Kind(kind)].add(name)
    return found


def _names_of(provider: Provider, kind: _Kind) -> Iterable[str]:
    return provider.inventories if kind is _Kind.CLASS else provider.traits


def _fresh(before: Provider | None, after: Provider, kind: _Kind) -> set[str]:
    had: Iterable[str] = () if before is None else _names_of(before, kind)
    return {name for name in set(_names_of(after, kind)).difference(had) if name.startswith(_PREFIX)}


def _names_asked(
    groups: Mapping[str, RequestGroup], of_root: Iterable[str], preferred: Iterable[str], weighed: Iterable[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Custom classes and traits of a search, each with the parameter that names it."""
    classes = dict.fromkeys(weighed, "order_by")
    traits = dict.fromkeys(preferred, "preferred") | dict.fromkeys(of_root, "root_required")
    for suffix, group in groups.items():
        classes.update(dict.fromkeys(group.resources, f"resources{suffix}"))
        traits.update(dict.fromkeys(group.forbidden.union(*group.required), f"required{suffix}"))
    return _customs(classes), _customs(traits)


def _customs(names: Mapping[str, str]) -> dict[str, str]:
    return {name: field for name, field in names.items() if name.startswith(_PREFIX)}


def _hold(connection: Connection, kind: _Kind, names: Iterable[str]) -> set[str]:
    table = _STORED[kind].table
    return {name for name in sorted(names) if hold(connection, table, table.c.name == name) is not None}


def _delete(connection: Connection, kind: _Kind, name: str) -> None:
    stored = _STORED[kind]
    if not connection.execute(sa.delete(stored.table).where(stored.table.c.name == name)).rowcount:
        raise _unknown(kind, name)
    users = sa.select(resource_providers.c.uuid).join(stored.used.table).where(stored.used == name).limit(5)
    if found := list(connection.scalars(users)):
        raise _in_use(kind, name, found)


def _unknown(kind: _Kind, name: str) -> NameNotFound:
    return NameNotFound(f"no {kind.value} {name} was added", identifier=name)


def _in_use(kind: _Kind, name: str, users: list[Any]) -> InUse:
    message = f"{kind.value} {name}: providers use it, {', '.join(map(str, users))} among them"
    return InUse(message, identifier=name, users=tuple(users), kind="providers")


def _not_added(kind: _Kind, name: str, field: str, error: type[InvalidArgument]) -> InvalidArgument:
    verb = "add_resource_class" if kind is _Kind.CLASS else "add_trait"
    message = f"{field}: no {kind.value} {name} is known; is it spelt right? (tree.names.{verb} adds it)"
    return error(message, field=field, value=name)
