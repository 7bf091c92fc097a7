"""The verbs that edit a PlacementTree: arguments in, one edit of the forest out."""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING, Any

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.errors import InvalidArgument, InvalidProvider
from cloudcore.observability import observed
from cloudcore.placement.forest.editing import plan
from cloudcore.placement.forest.forest import read_aggregates, read_inventories, read_name, read_traits
from cloudcore.placement.forest.names import require_resource_class
from cloudcore.placement.forest.values import Inventory, Provider
from cloudcore.placement.storage.name_register import NameRegister
from cloudcore.placement.tree_state import TreeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.observability import Observer
    from cloudcore.placement.bound import DatabaseBinding

__all__ = ["Keep", "TreeEdits", "key_of"]


class Keep(enum.Enum):
    """What an edit leaves as it is, where None has a meaning of its own."""

    PARENT = "parent"


class TreeEdits:
    """The part of :class:`~cloudcore.placement.tree.PlacementTree` that changes the forest.

    Every edit is checked before it has any effect, and takes effect as a whole. May be shared between threads.

    Attributes:
        names: The register of resource classes and traits.
    """

    names: NameRegister

    def __init__(self, uuid_factory: Callable[[], str], observer: Observer | None, *, strict: bool) -> None:
        self.observer = observer
        self._state = TreeState()
        self._binding: DatabaseBinding | None = None
        self._uuid_factory = uuid_factory
        self._strict = strict
        self.names = NameRegister(None, self._state.held)

    @observed("placement.add", "name", "parent", "operation_id", level=logging.INFO)
    def add(
        self,
        name: str,
        *,
        uuid: str | None = None,
        parent: str | Provider | None = None,
        inventory: Mapping[str, int | Inventory | Mapping[str, Any]] | None = None,
        traits: Iterable[str] = (),
        aggregates: Iterable[str] = (),
        operation_id: str | None = None,
    ) -> Provider:
        """Add a provider and return it.

        Args:
            name: Unique in the forest, 1 to 200 characters.
            uuid: Of the new provider; made by the tree when left out.
            parent: The provider below which it hangs; None makes a root.
            inventory: Resource class → total, or an :class:`Inventory`, or Placement's JSON of one.
            traits: What it carries.
            aggregates: The uuids of the aggregates that it is in.
            operation_id: In a bound tree: a repeat with the same id adds nothing and returns the provider.

        Raises:
            InvalidProvider, InvalidInventory: It cannot be as described; the error names the field.
            ProviderNotFound: There is no such parent.
            AlreadyExists: The name or the uuid is taken.
        """
        arguments = {
            "name": name,
            "uuid": None if uuid is None else normalise_uuid(uuid, "uuid", InvalidProvider),
            "parent": key_of(parent, "parent"),
            "inventory": read_inventories({} if inventory is None else inventory),
            "traits": read_traits(traits),
            "aggregates": read_aggregates(aggregates),
        }
        return self._edit("placement.add", arguments, operation_id)

    @observed("placement.update", "provider", "operation_id", level=logging.INFO)
    def update(
        self,
        provider: str | Provider,
        *,
        inventory: Mapping[str, int | Inventory | Mapping[str, Any]] | None = None,
        traits: Iterable[str] | None = None,
        aggregates: Iterable[str] | None = None,
        name: str | None = None,
        parent: str | Provider | Keep | None = Keep.PARENT,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Replace what is given, leave what is not, in one edit; return the provider as it is then.

        The generation grows by one when anything changes. Shrinking an inventory below what is in use is allowed:
        what is in use stays, and nothing more is granted.

        Args:
            provider: Which one.
            inventory: All its inventories from now on.
            traits: All its traits from now on.
            aggregates: All its aggregates from now on.
            name: Its new name.
            parent: Its new parent, None to make it a root: see :meth:`move`.
            generation: The generation that the caller has seen; None for whatever it is.
            operation_id: In a bound tree: a repeat with the same id changes nothing.

        Raises:
            InvalidProvider, InvalidInventory, ProviderNotFound, AlreadyExists: Nothing was changed.
            GenerationConflict: It is at another generation than *generation*.
            InUse: A class of which units are in use would lose its inventory.
        """
        changes: dict[str, Any] = {}
        if inventory is not None:
            changes["inventories"] = read_inventories(inventory)
        if traits is not None:
            changes["traits"] = read_traits(traits)
        if aggregates is not None:
            changes["aggregates"] = read_aggregates(aggregates)
        if name is not None:
            changes["name"] = read_name(name)
        key = _key(provider, generation)
        place = {} if parent is Keep.PARENT else {"parent": key_of(parent, "parent")}
        return self._edit("placement.update", key | {"changes": changes} | place, operation_id)

    def put_inventory(
        self,
        provider: str | Provider,
        resource_class: str,
        inventory: int | Inventory | Mapping[str, Any],
        *,
        new: bool | None = None,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Set the inventory of one class and leave the others as they are; return the provider as it is then.

        Args:
            provider: Which one.
            resource_class: Of which class.
            inventory: A total, an :class:`Inventory`, or Placement's JSON of one.
            new: True: it must have none of this class yet. False: it must have one. None: either.
            generation: See :meth:`update`.
            operation_id: See :meth:`update`.

        Raises:
            AlreadyExists, InventoryNotFound: It has one, or none, against *new*.
            CloudcoreError: As :meth:`update` does for everything else.
        """
        given = read_inventories({require_resource_class(resource_class, "resource_class"): inventory})
        if new is not None and not isinstance(new, bool):
            raise InvalidArgument(f"new: expected True, False or None, got {new!r}", field="new", value=new)
        key = _key(provider, generation)
        return self._edit("placement.put_inventory", key | {"inventory": given, "new": new}, operation_id)

    def remove_inventory(
        self,
        provider: str | Provider,
        resource_class: str,
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Take away the inventory of one class; return the provider as it is then.

        Raises:
            InventoryNotFound: It has none of this class.
            InUse: Units of it are in use.
            CloudcoreError: As :meth:`update` does for everything else.
        """
        name = require_resource_class(resource_class, "resource_class")
        key = _key(provider, generation)
        return self._edit("placement.remove_inventory", key | {"resource_class": name}, operation_id)

    @observed("placement.set_inventory", "provider", "operation_id", level=logging.INFO)
    def set_inventory(
        self,
        provider: str | Provider,
        inventory: Mapping[str, int | Inventory | Mapping[str, Any]],
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Replace the inventories: see :meth:`update`."""
        return self.update(provider, inventory=inventory, generation=generation, operation_id=operation_id)

    @observed("placement.set_traits", "provider", "operation_id", level=logging.INFO)
    def set_traits(
        self,
        provider: str | Provider,
        traits: Iterable[str],
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Replace the traits: see :meth:`update`."""
        return self.update(provider, traits=traits, generation=generation, operation_id=operation_id)

    @observed("placement.set_aggregates", "provider", "operation_id", level=logging.INFO)
    def set_aggregates(
        self,
        provider: str | Provider,
        aggregates: Iterable[str],
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Replace the aggregates: see :meth:`update`."""
        return self.update(provider, aggregates=aggregates, generation=generation, operation_id=operation_id)

    @observed("placement.rename", "provider", "name", "operation_id", level=logging.INFO)
    def rename(
        self,
        provider: str | Provider,
        name: str,
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Give it another name: see :meth:`update`."""
        return self.update(provider, name=name, generation=generation, operation_id=operation_id)

    @observed("placement.move", "provider", "parent", "operation_id", level=logging.INFO)
    def move(
        self,
        provider: str | Provider,
        parent: str | Provider | None,
        *,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Provider:
        """Hang a provider, with all below it, under another parent, or make it a root; return it as it is then.

        Its allocations, aggregates and traits stay. The generation of every provider of the subtree grows by one.

        Raises:
            ProviderNotFound: There is no such provider or parent.
            InvalidProvider: The new parent is the provider itself or lies below it.
            GenerationConflict: It is at another generation than *generation*.
        """
        key = _key(provider, generation)
        return self._edit("placement.move", key | {"parent": key_of(parent, "parent")}, operation_id)

    @observed("placement.remove", "provider", "operation_id", level=logging.INFO)
    def remove(
        self,
        provider: str | Provider,
        *,
        recursive: bool = False,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> None:
        """Remove a provider, with *recursive* also all below it.

        Raises:
            ProviderNotFound: It is not there.
            GenerationConflict: It is at another generation than *generation*.
            InUse: It has children, or something of it is in use.
        """
        key = _key(provider, generation)
        self._edit("placement.remove", key | {"recursive": bool(recursive)}, operation_id)

    @observed("placement.load", "operation_id", level=logging.INFO)
    def load(self, data: Mapping[str, Any], *, operation_id: str | None = None) -> int:
        """Add all providers of *data* (what :meth:`as_placement` gives) in one edit; return how many.

        What is in use is taken over by a tree in memory; in a bound tree the ledger's books count.

        Raises:
            InvalidProvider, InvalidInventory: The data is malformed, a parent is missing, there is a loop, or what is
                in use is of a class that the provider has not. Nothing was added.
            AlreadyExists: A name or a uuid is taken. Nothing was added.
        """
        from cloudcore.placement.forest.placement_json import load

        edit, usage = load(data)
        self._edit("placement.load", {"edit": edit, "usage": usage}, operation_id)
        return len(edit.put)

    def _edit(self, name: str, arguments: dict[str, Any], operation_id: str | None) -> Provider:
        """Plan an edit and give it its effect; return the (first) provider that it is about, as it is then."""
        if operation_id is not None and not isinstance(operation_id, str):
            raise InvalidArgument(f"operation_id: expected text, got {operation_id!r}", field="operation_id")
        if self._binding is not None:
            check = self.names.require_added if self._strict else None
            return self._binding.edit(name, arguments, operation_id, self._uuid_factory, check)
        with self._state.lock:
            edit, about = plan(self._state.forest, name, arguments, self._uuid_factory)
            if self._strict:
                self.names.require_added(None, self._state.forest, edit)
            self._state.forest.apply(edit)
            for uuid, used in arguments.get("usage", {}).items():
                self._state.forest.set_usage(uuid, used)
            return edit.put[0] if edit.put else about


def key_of(provider: Any, field: str = "provider") -> Any:
    """What names a provider: its uuid, or the text that was given in its place; None stays None.

    Raises:
        InvalidArgument: It is neither a provider nor text.
    """
    if provider is None or isinstance(provider, str):
        return provider
    if isinstance(provider, Provider):
        return provider.uuid
    message = f"{field}: expected the uuid or name of a provider, got {provider!r}"
    raise InvalidArgument(message, field=field, value=provider)


def _key(provider: str | Provider, generation: int | None) -> dict[str, Any]:
    """The provider that an edit is about, and the generation that the caller has seen."""
    if generation is not None:
        require_integer(generation, "generation", minimum=0, maximum=2**63 - 1)
    return {"provider": key_of(provider), "generation": generation}
