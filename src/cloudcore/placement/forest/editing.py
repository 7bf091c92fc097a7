"""Edits by name: from the arguments of a verb to the plan of its effect. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore.errors import AlreadyExists
from cloudcore.placement.forest.forest import (
    Edit,
    Forest,
    read_aggregates,
    read_inventories,
    read_name,
    read_traits,
)
from cloudcore.placement.forest.values import Provider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["describe", "plan"]


def plan(
    forest: Forest, name: str, arguments: Mapping[str, Any], uuid_factory: Callable[[], str]
) -> tuple[Edit, Provider]:
    """Plan the edit *name* on *forest*; return it with the provider that it is about, as it is before.

    Raises:
        InvalidProvider, InvalidInventory, ProviderNotFound, AlreadyExists, GenerationConflict, InUse: Nothing changed.
    """
    if name == "placement.add":
        uuid = arguments["uuid"]
        edit = forest.plan_add(**{**arguments, "uuid": uuid_factory() if uuid is None else uuid})
        return edit, edit.put[0]
    if name == "placement.load":
        return _plan_load(forest, arguments["edit"])
    provider = forest.find(arguments["provider"])
    forest.check_generation(provider, arguments["generation"])
    if name == "placement.update":
        edit = forest.plan_change(provider, **arguments["changes"])
        return forest.plan_place(provider, edit, arguments["parent"]) if "parent" in arguments else edit, provider
    if name == "placement.put_inventory":
        return forest.plan_inventory(provider, arguments["inventory"], new=arguments["new"]), provider
    if name == "placement.remove_inventory":
        return forest.plan_less_inventory(provider, arguments["resource_class"]), provider
    if name == "placement.move":
        return forest.plan_move(provider, arguments["parent"]), provider
    return forest.plan_remove(provider, recursive=arguments["recursive"]), provider


def _plan_load(forest: Forest, edit: Edit) -> tuple[Edit, Provider]:
    """Plan the providers of *edit*, which are numbered from 1, after all that are there."""
    for provider in edit.put:
        if provider.uuid in forest.providers or provider.name in forest.by_name:
            raise AlreadyExists(f"{provider.name}: the uuid or the name is taken", identifier=provider.uuid)
    there = forest.next_number - 1
    if there:
        edit = Edit(put=tuple(provider.numbered(there + provider.number) for provider in edit.put))
    about = edit.put[0] if edit.put else Provider(number=0, uuid="", name="", root="")
    return edit, about


def describe(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as JSON, the same for the same call: what an operation id stands for.

    Raises:
        InvalidProvider, InvalidInventory: They cannot be meant.
    """
    readers: dict[str, Callable[[Any], Any]] = {
        "inventory": _describe_inventories,
        "inventories": _describe_inventories,
        "traits": lambda value: sorted(read_traits(value)),
        "aggregates": lambda value: sorted(read_aggregates(value)),
        "name": read_name,
        "changes": lambda value: describe(name, value),
        "edit": _describe_load,
    }
    return {
        field: readers[field](value) if field in readers else value
        for field, value in arguments.items()
        if field != "usage"
    }


def _describe_load(edit: Edit) -> list[Any]:
    """What the providers have, each once (thousands of hosts are alike), and who has which."""
    kinds: dict[tuple[Any, ...], int] = {}
    providers = [
        (p.uuid, p.name, p.parent, kinds.setdefault((p.inventories, p.traits, p.aggregates), len(kinds)))
        for p in edit.put
    ]
    described = [
        [{name: given.as_placement() for name, given in inventories.items()}, sorted(traits), sorted(aggregates)]
        for inventories, traits, aggregates in kinds
    ]
    return [described, providers]


def _describe_inventories(value: Any) -> dict[str, Any]:
    return {name: inventory.as_placement() for name, inventory in read_inventories(value).items()}
