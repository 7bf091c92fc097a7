"""What the API stands on: one tree and one ledger over one database, told to count and to name as Placement does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import attrs
import os_resource_classes
from placement_api.calls import Problem, now

from cloudcore import AllocationLedger, Database, Inventory, PlacementTree, create_schema
from cloudcore.errors import ProviderNotFound
from cloudcore.placement import Owner, Provider, RequestGroup


@attrs.frozen(kw_only=True)
class Wish:
    """What one consumer shall hold.

    Attributes:
        allocations: Provider uuid → class → amount.
        owner: Whose it is; without a type it keeps the one that it has.
        generation: Read last; 0 for "holds nothing", None for any.
    """

    allocations: Mapping[str, Mapping[str, int]]
    owner: Owner
    generation: int | None


class Cloud:
    """One database. May be shared between threads; every process opens its own.

    Args:
        url: Of the database; its tables are made where they are missing.
        generations: ``cloudcore`` counts edits of providers; ``placement`` counts as Placement does, for clients that
            compare numbers. All processes over one database say the same.
    """

    def __init__(self, url: str, *, generations: str = "cloudcore") -> None:
        self.database = Database(url)
        create_schema(self.database, areas=["placement"])
        self.tree = PlacementTree.open(self.database, generations=generations, strict=True)  # type: ignore[arg-type]
        self.ledger = AllocationLedger(self.database, generations=generations)  # type: ignore[arg-type]

    def close(self) -> None:
        self.tree.close()
        self.ledger.close()
        self.database.close()

    # --- providers ---------------------------------------------------------------------------------------------------

    def provider(self, identifier: str) -> Provider:
        """The provider of this uuid, and no other: a name is not taken for one.

        Raises:
            ProviderNotFound: There is none.
        """
        found = self.tree.provider(identifier)
        if identifier.lower().replace("-", "") != found.uuid.replace("-", ""):
            raise ProviderNotFound(f"no provider has the uuid {identifier}", identifier=identifier)
        return found

    def providers(
        self,
        *,
        name: str | None = None,
        uuid: str | None = None,
        in_tree: str | None = None,
        group: RequestGroup,
    ) -> list[Provider]:
        """The providers that meet all that is given, each by itself."""
        root = None
        if in_tree is not None:
            try:
                root = self.provider(in_tree).root
            except ProviderNotFound:
                return []
        return [
            each
            for each in self.tree
            if name in {None, each.name}
            and uuid in {None, each.uuid}
            and root in {None, each.root}
            and _meets(each, self.tree.usage(each), group)
        ]

    def generation(self, provider: Provider) -> int:
        """The generation as clients see it."""
        return self.tree.generations([provider])[provider.uuid]

    def modified(self, *providers: Provider) -> datetime:
        """When one of these was edited last; now, if there are none, or one has just gone."""
        try:
            return max((each.updated_at for each in self.tree.times(providers).values()), default=now())
        except ProviderNotFound:
            return now()

    # --- names -------------------------------------------------------------------------------------------------------

    def has_class(self, name: str) -> bool:
        return name in self.tree.names.resource_classes()

    def has_trait(self, name: str) -> bool:
        return name in self.tree.names.traits()

    def require_classes(self, names: Iterable[str], start: str = "") -> None:
        """Refuse a class that nobody made, in Placement's words after *start*."""
        known = self.tree.names.resource_classes()
        for name in names:
            if name not in known:
                raise Problem(400, f"{start}No such resource class {name}.")

    def require_traits(self, names: Iterable[str], start: str = "") -> None:
        """Refuse traits that nobody made, in Placement's words after *start*."""
        wanted = set(names)
        unknown = wanted - self.tree.names.traits() if wanted else wanted
        if unknown:
            raise Problem(400, f"{start}No such trait(s): {', '.join(sorted(unknown))}.")

    # --- consumers ---------------------------------------------------------------------------------------------------

    def replace(self, wishes: Mapping[str, Wish]) -> None:
        """Make consumers hold what is wished, all or nothing."""
        self.ledger.replace(
            {consumer: wish.allocations for consumer, wish in wishes.items()},
            generations=_generations(wishes),
            owners={consumer: wish.owner for consumer, wish in wishes.items()},
        )

    def reshape(
        self, inventories: Mapping[str, Mapping[str, Inventory]], wishes: Mapping[str, Wish], read: Mapping[str, int]
    ) -> None:
        """Replace inventories and what consumers hold together; *read* are the providers' generations."""
        self.ledger.reshape(
            inventories,
            {consumer: wish.allocations for consumer, wish in wishes.items()},
            provider_generations=read,
            generations=_generations(wishes),
            owners={consumer: wish.owner for consumer, wish in wishes.items()},
        )


def _meets(provider: Provider, used: Mapping[str, int], group: RequestGroup) -> bool:
    if provider.traits & group.forbidden or provider.aggregates & group.not_member_of:
        return False
    sets = [(provider.traits, group.required), (provider.aggregates, group.member_of)]
    if not all(has & wanted for has, several in sets for wanted in several):
        return False
    for name, amount in group.resources.items():
        given = provider.inventories.get(name)
        if given is None or used.get(name, 0) + amount > given.capacity:
            return False
        if not given.min_unit <= amount <= given.max_unit or amount % given.step_size:
            return False
    return True


def in_order(classes: Iterable[str]) -> list[str]:
    """Resource classes, the standard ones first, as Placement lists them."""
    return sorted(classes, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


_ORDER = {name: place for place, name in enumerate(os_resource_classes.STANDARDS)}


def _generations(wishes: Mapping[str, Wish]) -> dict[str, int]:
    return {consumer: wish.generation for consumer, wish in wishes.items() if wish.generation is not None}
