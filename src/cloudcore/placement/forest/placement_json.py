"""A whole forest in Placement's JSON: dump and load. Pure."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloudcore._values import normalise_uuid
from cloudcore.errors import InvalidInventory, InvalidProvider
from cloudcore.placement.forest.forest import (
    Edit,
    Usage,
    read_aggregates,
    read_inventories,
    read_name,
    read_traits,
    read_usage,
)
from cloudcore.placement.forest.values import FrozenDict, Inventory, Provider

__all__ = ["dump", "load"]

_NONE: dict[str, Any] = {}
_MAX_GENERATION = 2**62  # from there an edit can count on


def dump(providers: Iterable[Provider], usage: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return *providers* and what is in use of them, each part as Placement's API answers for it."""
    providers = list(providers)
    return {
        "resource_providers": [provider.as_placement() for provider in providers],
        "inventories": {
            provider.uuid: {
                "resource_provider_generation": provider.generation,
                "inventories": {name: inventory.as_placement() for name, inventory in provider.inventories.items()},
            }
            for provider in providers
        },
        "traits": {
            provider.uuid: {
                "resource_provider_generation": provider.generation,
                "traits": sorted(provider.traits),
            }
            for provider in providers
        },
        "aggregates": {
            provider.uuid: {
                "resource_provider_generation": provider.generation,
                "aggregates": sorted(provider.aggregates),
            }
            for provider in providers
        },
        "usages": {
            provider.uuid: {
                "resource_provider_generation": provider.generation,
                "usages": {name: usage.get(provider.uuid, {}).get(name, 0) for name in provider.inventories},
            }
            for provider in providers
        },
    }


def _by_uuid(data: Mapping[str, Any], part: str, listed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What *data* says in *part*, by uuid in the writing of those *listed*; what is said of others is left alone."""
    given = data.get(part, {})
    if not isinstance(given, Mapping):
        raise InvalidProvider(f"{part}: expected an object by provider uuid, got {given!r}", field=part)
    if given.keys() <= listed.keys():  # as a dump writes it
        return given
    found: dict[str, Any] = {}
    for key, value in given.items():
        uuid = normalise_uuid(key, part, InvalidProvider)
        if uuid in found:
            raise InvalidProvider(f"{part}: {uuid} is listed twice", field=part, value=key)
        found[uuid] = value
    return found


def _unwrapped(found: Any, part: str) -> Any:
    """What stands there of one provider: with or without the wrapping of Placement's answers."""
    wrapped = (type(found) is dict or isinstance(found, Mapping)) and part in found  # the quick look first
    return found[part] if wrapped else found


def load(data: Mapping[str, Any]) -> tuple[Edit, dict[str, Usage]]:
    """Read what :func:`dump` gives: all providers, numbered as listed from 1, and what is in use of them.

    Inventories that Placement has stored but would refuse are taken as they are: see :meth:`Inventory.stored`.

    Raises:
        InvalidProvider, InvalidInventory: The data is malformed, a parent is missing, there is a loop, or what is in
            use is of a class that the provider has not.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("resource_providers"), list | tuple):
        raise InvalidProvider("resource_providers: missing, or no list", field="resource_providers")
    entries = data["resource_providers"]
    names: set[str] = set()
    parents: dict[str, str | None] = {}
    for entry in entries:
        uuid, name, parent = _read_place(entry)
        if uuid in parents or name in names:
            raise InvalidProvider(f"{name}: the uuid or the name is listed twice", field="resource_providers")
        parents[uuid] = parent
        names.add(name)
    roots = _roots(parents)
    alike = _Alike()
    inventories, traits, aggregates, usages = (
        _by_uuid(data, part, parents) for part in ("inventories", "traits", "aggregates", "usages")
    )
    providers: dict[str, Provider] = {}
    usage: dict[str, Usage] = {}
    for number, ((uuid, parent), entry) in enumerate(zip(parents.items(), entries, strict=True), 1):
        providers[uuid] = Provider(
            number=number,
            uuid=uuid,
            name=entry["name"],
            parent=parent,
            root=roots[uuid],
            generation=_read_generation(entry, uuid),
            inventories=alike.inventories(_unwrapped(inventories.get(uuid, _NONE), "inventories")),
            traits=alike.traits(_unwrapped(traits.get(uuid, ()), "traits")),
            aggregates=alike.aggregates(_unwrapped(aggregates.get(uuid, ()), "aggregates")),
        )
        used = _unwrapped(usages.get(uuid, _NONE), "usages")
        if used is not _NONE and (used := _read_used(providers[uuid], used)):
            usage[uuid] = used
    return Edit(put=tuple(_parents_first(providers))), usage


class _Alike:
    """Reads equal parts once: thousands of hosts have the same inventories and the same traits."""

    def __init__(self) -> None:
        self._inventories: dict[bytes, FrozenDict[str, Inventory]] = {}
        self._sets: dict[Any, frozenset[str]] = {}

    def inventories(self, given: Any) -> FrozenDict[str, Inventory]:
        try:
            key = marshal.dumps(given, 2)  # tells 1 from 1.0 and True, and takes nothing that could change its mind
        except ValueError:  # not as Placement writes it: let the careful reader say what is wrong
            return read_inventories(given, stored=True)
        found = self._inventories.get(key)
        if found is None:
            found = self._inventories[key] = read_inventories(given, stored=True)
        return found

    def traits(self, given: Any) -> frozenset[str]:
        return self._names(given, read_traits)

    def aggregates(self, given: Any) -> frozenset[str]:
        return self._names(given, read_aggregates)

    def _names(self, given: Any, read: Callable[[Any], frozenset[str]]) -> frozenset[str]:
        try:
            key = (read, *given) if isinstance(given, list | tuple) else None
            found = self._sets.get(key)
        except TypeError:
            return read(given)
        if key is None or found is None:
            found = read(given)
            if key is not None:
                self._sets[key] = found
        return found


def _read_place(entry: Any) -> tuple[str, str, str | None]:
    """The uuid, the name and the parent of a provider."""
    if not isinstance(entry, Mapping) or "uuid" not in entry or "name" not in entry:
        raise InvalidProvider(f"resource_providers: {entry!r} has no uuid or no name", field="resource_providers")
    uuid = normalise_uuid(entry["uuid"], "uuid", InvalidProvider)
    parent = entry.get("parent_provider_uuid")
    if parent is not None:
        parent = normalise_uuid(parent, "parent_provider_uuid", InvalidProvider)
    return uuid, read_name(entry["name"]), parent


def _read_generation(entry: Mapping[str, Any], uuid: str) -> int:
    generation = entry.get("generation", 0)
    if type(generation) is not int or not 0 <= generation <= _MAX_GENERATION:
        raise InvalidProvider(
            f"generation: {generation!r} of {uuid} is no whole number from 0 to {_MAX_GENERATION}",
            field="generation",
            value=generation,
        )
    return generation


def _read_used(provider: Provider, used: Any) -> Usage:
    if not isinstance(used, Mapping):
        raise InvalidInventory(f"usages: expected resource class → amount, got {used!r}", field="usages")
    in_use = {name: amount for name, amount in used.items() if amount}
    return read_usage(provider, in_use, "usages", InvalidInventory)


def _roots(parents: Mapping[str, str | None]) -> dict[str, str]:
    roots: dict[str, str] = {}
    for uuid in parents:
        path: list[str] = []
        seen: set[str] = set()
        current = uuid
        while current not in roots:
            if current in seen:
                raise InvalidProvider(f"parent_provider_uuid: {current} is above itself", field="parent_provider_uuid")
            seen.add(current)
            path.append(current)
            parent = parents[current]
            if parent is None:
                roots[current] = current
            elif parent not in parents:
                raise InvalidProvider(
                    f"parent_provider_uuid: {parent}, the parent of {current}, is not listed",
                    field="parent_provider_uuid",
                    value=parent,
                )
            else:
                current = parent
        for below in path:
            roots[below] = roots[current]
    return roots


def _parents_first(providers: Mapping[str, Provider]) -> Iterable[Provider]:
    done: set[str] = set()
    for uuid in providers:
        waiting = [uuid]
        while waiting:
            current = providers[waiting[-1]]
            if current.parent is not None and current.parent not in done:
                waiting.append(current.parent)
                continue
            waiting.pop()
            if current.uuid not in done:
                done.add(current.uuid)
                yield current
