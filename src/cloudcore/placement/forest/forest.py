"""The forest: its providers, who is whose child, what is used; and edits, planned before they have any effect. Pure.

An edit is planned first (every rule is checked, nothing is changed) and applied then. In a bound tree the database
stands between the two. A forest does no locking: its owner does. One module, since
planning an edit and applying it must agree on every rule of the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from sortedcontainers import SortedDict

from cloudcore._values import normalise_uuid, require_integer, require_text, uuid_in
from cloudcore.errors import (
    AlreadyExists,
    GenerationConflict,
    InUse,
    InvalidArgument,
    InvalidInventory,
    InvalidProvider,
    InventoryNotFound,
    ProviderNotFound,
)
from cloudcore.placement.forest.names import SHARES_VIA_AGGREGATE, require_resource_class, require_trait
from cloudcore.placement.forest.values import FrozenDict, Inventory, Provider

__all__ = ["Edit", "Forest", "read_aggregates", "read_inventories", "read_name", "read_traits", "read_usage"]

Usage = Mapping[str, int]

_NOTHING: FrozenDict[str, int] = FrozenDict()
_LATE = 50
_MOST_IN_USE = 2**62


@attrs.frozen
class Edit:
    """What an edit puts in the place of what: whole providers, before and after.

    Attributes:
        put: Providers as they will be, new ones included; a parent comes before its children.
        gone: Providers that will not be there any more; children come before their parent.
    """

    put: tuple[Provider, ...] = ()
    gone: tuple[Provider, ...] = ()


def read_name(value: str) -> str:
    """Return *value* if it can name a provider: text of 1 to 200 characters.

    Raises:
        InvalidProvider: It cannot.
    """
    return require_text(value, "name", maximum=200, error=InvalidProvider)


def read_inventories(value: Any, *, stored: bool = False) -> FrozenDict[str, Inventory]:
    """Return *value* (resource class → total or :class:`Inventory` or Placement's JSON of one) in its normal form.

    *stored*: it is there already, and is taken as it is where that can be (:meth:`Inventory.stored`).

    Raises:
        InvalidProvider: A resource class has no valid name.
        InvalidInventory: A number is out of range, or an element is none of the three.
    """
    if not isinstance(value, Mapping):
        raise InvalidInventory(f"inventory: expected resource class → amount, got {value!r}", field="inventory")
    inventories = {}
    for resource_class, given in value.items():
        require_resource_class(resource_class, "inventory")
        if isinstance(given, Inventory):
            if not stored:
                given.require_sound()
            inventories[resource_class] = given
        elif isinstance(given, Mapping):
            inventories[resource_class] = Inventory.from_placement(given, stored=stored)
        else:
            require_integer(given, f"inventory {resource_class}", minimum=1, error=InvalidInventory)
            inventories[resource_class] = Inventory(given)
    return FrozenDict(inventories)


def _texts(value: Any, field: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidProvider(f"{field}: expected a collection, got {value!r}", field=field, value=value)
    return list(value)


def read_traits(value: Any) -> frozenset[str]:
    """Return *value* as a set of traits.

    Raises:
        InvalidProvider: It is no collection, or an element is no trait.
    """
    return frozenset(require_trait(name, "traits") for name in _texts(value, "traits"))


def read_aggregates(value: Any) -> frozenset[str]:
    """Return *value* as a set of aggregates (uuids in dashed lower case).

    Raises:
        InvalidProvider: It is no collection, or an element is no uuid.
    """
    return frozenset(normalise_uuid(name, "aggregates", InvalidProvider) for name in _texts(value, "aggregates"))


def read_usage(
    provider: Provider, amounts: Any, field: str = "used", error: type[InvalidArgument] = InvalidArgument
) -> Usage:
    """Check *amounts* (resource class → units in use) against *provider*; return them without the zeros.

    Raises:
        InvalidArgument: An amount is negative or the provider has no such class (or the subclass given as *error*).
    """
    if not isinstance(amounts, Mapping):
        raise error(f"{field}: expected resource class → amount, got {amounts!r}", field=field)
    for name, amount in amounts.items():
        if name not in provider.inventories:
            raise error(f"{field}: {provider.name} has no {name}", field=field, value=name)
        if type(amount) is not int or not 0 <= amount <= _MOST_IN_USE:
            message = f"{field}: {amount!r} {name} of {provider.name} is no amount from 0 to {_MOST_IN_USE}"
            raise error(message, field=field, value=amount)
    return {name: amount for name, amount in amounts.items() if amount}


class Forest:
    """Providers by uuid, their children, their usage. Values in it are immutable; the containers are its own.

    Attributes:
        providers: uuid → provider.
        by_name: Name → uuid.
        by_number: Number → uuid.
        roots: Number → uuid, ordered.
        touched: Numbers of the roots whose trees were edited since the columns were built.
        reused: uuids of providers whose usage changed since.
        sharing: The providers that share through an aggregate.
        sharing_changed: Whether any of them, or where it stands, changed since.
    """

    sharing_changed: bool
    next_number: int

    def __init__(self) -> None:
        self.providers: dict[str, Provider] = {}
        self.by_name: dict[str, str] = {}
        self.by_number: dict[int, str] = {}
        self.roots: SortedDict[int, str] = SortedDict()
        self._usage: dict[str, Usage] = {}
        self._late: list[Sequence[tuple[Any, ...]]] = []
        self.touched: set[int] = set()
        self.reused: set[str] = set()
        self.sharing: dict[str, Provider] = {}
        self.sharing_changed = False
        self.next_number = 1
        self._children: dict[str, tuple[str, ...]] = {}

    def copy(self) -> Forest:
        """A forest of its own with the same providers; O(number of providers), a fraction of a microsecond each."""
        other = Forest()
        other.providers = self.providers.copy()
        other.by_name = self.by_name.copy()
        other.by_number = self.by_number.copy()
        other.roots = SortedDict(self.roots)
        other._usage = self.usage.copy()
        other.touched = self.touched.copy()
        other.reused = self.reused.copy()
        other.sharing = self.sharing.copy()
        other.sharing_changed = self.sharing_changed
        other.next_number = self.next_number
        other._children = self._children.copy()
        return other

    @property
    def usage(self) -> dict[str, Usage]:
        """By uuid: resource class → units in use; providers of which nothing is in use are left out."""
        if self._late:
            self._catch_up()
        return self._usage

    # --- looking -----------------------------------------------------------------------------------------------------

    def find(self, key: str, field: str = "provider") -> Provider:
        """Return the provider of this uuid (in any form) or name.

        Raises:
            InvalidArgument: *key* is not text.
            ProviderNotFound: There is none.
        """
        if isinstance(key, Provider):
            key = key.uuid
        if not isinstance(key, str):
            raise InvalidArgument(f"{field}: expected the uuid or name of a provider, got {key!r}", field=field)
        found = self.providers.get(key) or self.providers.get(self.by_name.get(key, ""))
        if found is None:
            found = self.providers.get(uuid_in(key) or "")
        if found is None:
            raise ProviderNotFound(f"{field}: no provider has the uuid or name {key!r}", identifier=key)
        return found

    def children(self, uuid: str) -> tuple[str, ...]:
        """The uuids of the children, in their order."""
        return self._children.get(uuid, ())

    def subtree(self, uuid: str) -> Iterator[Provider]:
        """The provider and all below it, parents first, in the order of the forest."""
        waiting = [uuid]
        while waiting:
            current = waiting.pop()
            yield self.providers[current]
            waiting.extend(reversed(self._children.get(current, ())))

    def ancestors(self, uuid: str) -> Iterator[Provider]:
        """The parent, its parent, and so on up to the root."""
        parent = self.providers[uuid].parent
        while parent is not None:
            provider = self.providers[parent]
            yield provider
            parent = provider.parent

    def used(self, uuid: str) -> Usage:
        """Units in use by resource class; classes of which nothing is in use may be left out."""
        return self.usage.get(uuid, _NOTHING)

    # --- planning ----------------------------------------------------------------------------------------------------

    def plan_add(
        self,
        name: str,
        *,
        uuid: str,
        parent: str | None,
        inventory: Any,
        traits: Any,
        aggregates: Any,
    ) -> Edit:
        """Plan a new provider.

        Raises:
            InvalidProvider, InvalidInventory: It cannot be as described.
            ProviderNotFound: There is no such parent.
            AlreadyExists: The name or the uuid is taken.
        """
        name = read_name(name)
        uuid = normalise_uuid(uuid, "uuid", InvalidProvider)
        above = None if parent is None else self.find(parent, "parent")
        provider = Provider(
            number=self.next_number,
            uuid=uuid,
            name=name,
            parent=None if above is None else above.uuid,
            root=uuid if above is None else above.root,
            inventories=read_inventories(inventory),
            traits=read_traits(traits),
            aggregates=read_aggregates(aggregates),
        )
        self._check_free(name, uuid)
        return Edit(put=(provider,))

    def _check_free(self, name: str | None, uuid: str | None) -> None:
        if uuid is not None and uuid in self.providers:
            raise AlreadyExists(f"uuid: a provider {uuid} is there already", identifier=uuid)
        if name is not None and name in self.by_name:
            raise AlreadyExists(
                f"name: {name!r} is the name of provider {self.by_name[name]}; update() edits that one", identifier=name
            )

    def check_generation(self, provider: Provider, expected: int | None) -> None:
        """Refuse to go on when *expected* is given and is not the provider's generation.

        Raises:
            GenerationConflict: Somebody else edited it.
        """
        if expected is not None and expected != provider.generation:
            raise GenerationConflict(
                f"{provider.name}: at generation {provider.generation}, not {expected}; read it again, then decide",
                identifier=provider.uuid,
                expected=expected,
                found=provider.generation,
            )

    def plan_change(self, provider: Provider, **changes: Any) -> Edit:
        """Plan new inventories, traits, aggregates or a new name; nothing changed means an empty edit.

        Raises:
            InvalidProvider, InvalidInventory: It cannot be as described.
            AlreadyExists: The new name is taken.
            InUse: A class of which units are in use would lose its inventory.
        """
        readers: dict[str, Callable[[Any], Any]] = {
            "name": read_name,
            "inventories": read_inventories,
            "traits": read_traits,
            "aggregates": read_aggregates,
        }
        changes = {field: readers[field](value) for field, value in changes.items()}
        changes = {field: value for field, value in changes.items() if value != getattr(provider, field)}
        if "name" in changes:
            self._check_free(changes["name"], None)
        if "inventories" in changes:
            self._check_unused(provider, provider.inventories.keys() - changes["inventories"].keys())
        if not changes:
            return Edit()
        return Edit(put=(attrs.evolve(provider, generation=provider.generation + 1, **changes),))

    def _check_unused(self, provider: Provider, classes: Iterable[str]) -> None:
        used = self.used(provider.uuid)
        busy = {name: used[name] for name in sorted(classes) if used.get(name)}
        if busy:
            raise InUse(
                f"{provider.name}: {_amounts(busy)} in use; release the allocations first",
                identifier=provider.uuid,
                users=busy,
                kind="allocations",
            )

    def plan_move(self, provider: Provider, parent: str | None) -> Edit:
        """Plan another parent (None makes a root); the whole subtree comes along.

        Raises:
            ProviderNotFound: There is no such parent.
            InvalidProvider: The new parent lies in the provider's own subtree.
        """
        above = None if parent is None else self.find(parent, "parent")
        if (None if above is None else above.uuid) == provider.parent:
            return Edit()
        subtree = list(self.subtree(provider.uuid))
        if above is not None and any(above.uuid == below.uuid for below in subtree):
            raise InvalidProvider(
                f"parent: {above.name} is {provider.name} itself or below it; that would be a loop",
                field="parent",
                value=parent,
            )
        root = provider.uuid if above is None else above.root
        moved = [attrs.evolve(below, root=root, generation=below.generation + 1) for below in subtree]
        moved[0] = attrs.evolve(moved[0], parent=None if above is None else above.uuid)
        return Edit(put=tuple(moved))

    def plan_place(self, provider: Provider, edit: Edit, parent: str | None) -> Edit:
        """Plan another parent together with *edit*, which changes the provider itself or nothing.

        Raises:
            See :meth:`plan_move`.
        """
        moved = self.plan_move(provider, parent)
        if not edit.put or not moved.put:
            return moved if moved.put else edit
        there = moved.put[0]
        return Edit(put=(attrs.evolve(edit.put[0], parent=there.parent, root=there.root), *moved.put[1:]))

    def plan_inventory(self, provider: Provider, given: Mapping[str, Inventory], *, new: bool | None) -> Edit:
        """Plan the inventories *given* beside those of other classes; *new*: there must be none, or one, before.

        Raises:
            AlreadyExists, InventoryNotFound: Against *new*.
        """
        for name in given:
            if new and name in provider.inventories:
                identifier = f"{provider.uuid}/{name}"
                raise AlreadyExists(f"{provider.name}: it has an inventory of {name} already", identifier=identifier)
            if new is False:
                self._require_inventory(provider, name)
        return self.plan_change(provider, inventories={**provider.inventories, **given})

    def plan_less_inventory(self, provider: Provider, name: str) -> Edit:
        """Plan the end of the inventory of one class.

        Raises:
            InventoryNotFound: There is none.
            InUse: Units of it are in use.
        """
        self._require_inventory(provider, name)
        return self.plan_change(provider, inventories={n: i for n, i in provider.inventories.items() if n != name})

    def _require_inventory(self, provider: Provider, name: str) -> None:
        if name not in provider.inventories:
            raise InventoryNotFound(
                f"{provider.name}: it has no inventory of {name}",
                identifier=f"{provider.uuid}/{name}",
                provider=provider.uuid,
                resource_class=name,
            )

    def plan_remove(self, provider: Provider, *, recursive: bool) -> Edit:
        """Plan the end of a provider, or with *recursive* of its whole subtree.

        Raises:
            InUse: It has children (and *recursive* is false), or units of it are in use.
        """
        children = self.children(provider.uuid)
        if children and not recursive:
            raise InUse(
                f"{provider.name}: has {len(children)} children; remove them first, or say recursive=True",
                identifier=provider.uuid,
                users=children,
                kind="children",
            )
        subtree = list(self.subtree(provider.uuid))
        for below in subtree:
            self._check_unused(below, self.used(below.uuid))
        return Edit(gone=tuple(reversed(subtree)))

    # --- effects -----------------------------------------------------------------------------------------------------

    def apply(self, edit: Edit) -> None:
        """Give *edit* its effect. It was planned on this very state; nothing is checked any more."""
        self._catch_up()
        for provider in edit.gone:
            self._detach(provider)
            del self.providers[provider.uuid]
            self.by_name.pop(provider.name, None)
            self.by_number.pop(provider.number, None)
            self.usage.pop(provider.uuid, None)
            self.reused.discard(provider.uuid)
            self._note_sharing(provider, shares=False)
        for provider in edit.put:
            before = self.providers.get(provider.uuid)
            if before is not None:
                self._replace(before, provider)
            else:
                self._attach(provider)
            self.providers[provider.uuid] = provider
            self.by_name[provider.name] = provider.uuid
            self.by_number[provider.number] = provider.uuid
            self._note_sharing(provider, shares=SHARES_VIA_AGGREGATE in provider.traits and bool(provider.aggregates))
            if provider.number >= self.next_number:
                self.next_number = provider.number + 1
        for provider in edit.put:
            self.touched.add(self.providers[provider.root].number)

    def _note_sharing(self, provider: Provider, *, shares: bool) -> None:
        if shares:
            self.sharing[provider.uuid] = provider
            self.sharing_changed = True
        elif self.sharing.pop(provider.uuid, None) is not None:
            self.sharing_changed = True

    def _replace(self, before: Provider, after: Provider) -> None:
        if before.name != after.name and self.by_name.get(before.name) == before.uuid:
            del self.by_name[before.name]
        if before.parent != after.parent:
            self._detach(before)
            self._attach(after)
            self.sharing_changed |= bool(self.sharing)  # what is above them all may be another now
        elif before.root != after.root:
            self._touch_root(before)

    def _attach(self, provider: Provider) -> None:
        if provider.parent is None:
            self.roots[provider.number] = provider.uuid
            return
        siblings = self._children.get(provider.parent, ())
        number = provider.number
        place = len(siblings)
        while place and self.providers[siblings[place - 1]].number > number:
            place -= 1
        self._children[provider.parent] = (*siblings[:place], provider.uuid, *siblings[place:])

    def _detach(self, provider: Provider) -> None:
        self._touch_root(provider)
        if provider.parent is None:
            self.roots.pop(provider.number, None)
            return
        left = tuple(uuid for uuid in self._children.get(provider.parent, ()) if uuid != provider.uuid)
        if left:
            self._children[provider.parent] = left
        else:
            self._children.pop(provider.parent, None)

    def _touch_root(self, provider: Provider) -> None:
        root = self.providers.get(provider.root)
        if root is not None:
            self.touched.add(root.number)

    def set_usage(self, uuid: str, used: Usage) -> None:
        """Note what is in use of one provider; *used* is kept as it is and must not change later."""
        if used:
            self.usage[uuid] = used
        else:
            self.usage.pop(uuid, None)
        self.reused.add(uuid)
        if uuid in self.sharing:
            self.sharing_changed = True

    def note_usage(self, rows: Sequence[tuple[Any, ...]], numbers: Iterable[int]) -> None:
        """Note what is in use of providers, where the columns show it already.

        *rows* begin with number, class, units, and tell all classes of a provider; *numbers* are theirs.
        """
        self._late.append(rows)
        if self.sharing and not {provider.number for provider in self.sharing.values()}.isdisjoint(numbers):
            self.sharing_changed = True
        if len(self._late) > _LATE:
            self._catch_up()

    def _catch_up(self) -> None:
        """File what was noted late: a follower notes thousands at a time, and hardly ever looks at one of them."""
        late, self._late = self._late, []
        for rows in late:
            used_by: dict[int, dict[str, int]] = {}
            for row in rows:
                amounts = used_by.setdefault(row[0], {})
                if row[2]:
                    amounts[row[1]] = int(row[2])
            for number, amounts in used_by.items():
                if amounts:
                    self._usage[self.by_number[number]] = amounts
                else:
                    self._usage.pop(self.by_number[number], None)

    # --- what must hold ----------------------------------------------------------------------------------------------

    def breaches(self) -> Iterator[str]:
        """Say what is wrong with the forest; nothing when all is well."""
        for uuid, provider in self.providers.items():
            filed = (self.by_name.get(provider.name), self.by_number.get(provider.number))
            if uuid != provider.uuid or filed != (uuid, uuid):
                yield f"{provider.name}: filed under another uuid, name or number"
            if provider.parent is None:
                well = provider.root == uuid and self.roots.get(provider.number) == uuid
            else:
                above = self.providers.get(provider.parent)
                well = above is not None and above.root == provider.root and uuid in self.children(above.uuid)
            if not well:
                yield f"{provider.name}: its parent, root or place among its siblings is wrong"
            yield from (f"{provider.name}: {name} in use without inventory" for name in self._stray(provider))
        if not len(self.by_name) == len(self.by_number) == len(self.providers):
            yield f"{len(self.by_name)} names and {len(self.by_number)} numbers for {len(self.providers)} providers"
        reached = sum(1 for root in self.roots.values() for _ in self.subtree(root))
        if reached != len(self.providers):
            yield f"{reached} of {len(self.providers)} providers are reached from the roots"

    def _stray(self, provider: Provider) -> list[str]:
        return [name for name in self.used(provider.uuid) if name not in provider.inventories]


def _amounts(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{amount} {name}" for name, amount in amounts.items())
