"""Carries a difference out on a tree of providers: any that has the methods of :class:`ProviderTree`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import tenacity

from cloudcore._failpoints import failpoint
from cloudcore.errors import AlreadyExists, GenerationConflict, InUse, ProviderNotFound, ReshapeNeeded
from cloudcore.hypervisor.tree.building import build_tree
from cloudcore.hypervisor.tree.comparison import Action, ProviderEdit, TreeDiff, diff, overtaken
from cloudcore.hypervisor.tree.policy import HostPolicy
from cloudcore.hypervisor.tree.values import CurrentInventory, CurrentProvider, CurrentTree, DesiredTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.hypervisor.facts.host import HostFacts
    from cloudcore.hypervisor.tree.reshape import Reshape

__all__ = ["ProviderTree", "Reshaper", "apply", "carry_out", "read_current", "sync"]

_WRITTEN_MEANWHILE = (GenerationConflict, AlreadyExists, InUse, ProviderNotFound)
"""What an edit raises when somebody edited, added, claimed from or removed its provider since it was decided."""


class ProviderTree(Protocol):
    """What is needed of a tree of providers; :class:`cloudcore.PlacementTree` fulfils it."""

    def add(
        self,
        name: str,
        *,
        uuid: str | None = None,
        parent: Any = None,
        inventory: Any = None,
        traits: Iterable[str] = (),
        aggregates: Iterable[str] = (),
    ) -> Any:
        """Add a provider; *inventory* maps resource class to Placement's JSON of one."""

    def update(
        self,
        provider: Any,
        *,
        inventory: Any = None,
        traits: Iterable[str] | None = None,
        aggregates: Iterable[str] | None = None,
        generation: int | None = None,
    ) -> Any:
        """Replace what is given, if the provider still has this generation."""

    def move(self, provider: Any, parent: Any) -> Any:
        """Hang it under another parent."""

    def remove(self, provider: Any) -> None:
        """Remove it."""

    def subtree(self, provider: Any) -> Iterable[Any]:
        """It and all below; each has uuid, name, parent, generation, inventories, traits, aggregates."""

    def roots(self) -> Iterable[Any]:
        """The roots."""

    def usage(self, provider: Any) -> Mapping[str, int]:
        """Resource class → units in use."""

    def refresh(self) -> Any:
        """Follow what others wrote."""


class Reshaper(Protocol):
    """What is needed of a ledger; :class:`cloudcore.AllocationLedger` fulfils it."""

    def reshape(
        self,
        inventories: Any,
        allocations: Any,
        *,
        generations: Any = None,
        operation_id: str | None = None,
    ) -> Any:
        """Replace inventories and allocations together, in one transaction."""


def read_current(tree: ProviderTree, name: str) -> CurrentTree:
    """What *tree* has of the host whose root is *name* (or has that UUID), and of shared storage."""
    found = [root for root in tree.roots() if "MISC_SHARES_VIA_AGGREGATE" in root.traits]
    with contextlib.suppress(ProviderNotFound):
        found += tree.subtree(name)
    return CurrentTree(tuple(_read(tree, provider) for provider in {one.uuid: one for one in found}.values()))


def _read(tree: ProviderTree, provider: Any) -> CurrentProvider:
    used = tree.usage(provider.uuid)
    return CurrentProvider(
        uuid=provider.uuid,
        name=provider.name,
        parent=provider.parent,
        generation=provider.generation,
        inventories=tuple(
            CurrentInventory(
                resource_class=name,
                total=one.total,
                reserved=one.reserved,
                min_unit=one.min_unit,
                max_unit=one.max_unit,
                step_size=one.step_size,
                allocation_ratio=one.allocation_ratio,
                used=used.get(name, 0),
            )
            for name, one in sorted(provider.inventories.items())
        ),
        traits=frozenset(provider.traits),
        aggregates=frozenset(provider.aggregates),
    )


def apply(tree: ProviderTree, change: TreeDiff) -> None:
    """Carry *change* out, edit by edit. Interrupted, it can be made anew from what is there then: see :func:`sync`.

    Raises:
        ReshapeNeeded: Allocations would have to move; nothing was done. See
            :func:`~cloudcore.hypervisor.plan_reshape`.
        GenerationConflict, AlreadyExists, InUse, ProviderNotFound: Somebody else edited, added, claimed from or removed
            a provider meanwhile; what was done so far stands.
    """
    if change.moves:
        told = ", ".join(f"{move.used} {move.resource_class} of {move.source}" for move in change.moves)
        raise ReshapeNeeded(f"allocations have to move with their inventory: {told}", moves=change.moves)
    for edit in change.edits:
        _edit(tree, edit)
        failpoint("hypervisor.apply.after_edit")


def _edit(tree: ProviderTree, edit: ProviderEdit) -> None:
    if edit.action is Action.REMOVE:
        tree.remove(edit.uuid)
        return
    inventory = {one.resource_class: one.as_placement() for one in edit.inventories}
    if edit.action is Action.ADD:
        tree.add(
            edit.name,
            uuid=edit.uuid,
            parent=edit.parent,
            inventory=inventory,
            traits=edit.traits,
            aggregates=edit.aggregates,
        )
        return
    tree.update(
        edit.uuid,
        inventory=inventory,
        traits=edit.traits,
        aggregates=edit.aggregates,
        generation=edit.generation,
    )
    if edit.moved:
        tree.move(edit.uuid, edit.parent)


def sync(tree: ProviderTree, facts: HostFacts, policy: HostPolicy | None = None) -> tuple[DesiredTree, TreeDiff]:
    """Make *tree* have what the host of *facts* should have; return that, and what was changed for it.

    Reads, decides, writes; begins again when somebody else wrote meanwhile. Repeated, it changes nothing. Changes that
    would take away what is in use are left out, and named in the difference's ``refusals``; so is an inventory that was
    claimed from just before it shrank: it has shrunk, what is in use stays, and nothing more of it is given out.

    Raises:
        ReshapeNeeded: Allocations would have to move; nothing was done.
        InvalidArgument: The policy asks for what the host has not.
        InvalidProvider: A provider that others made has the name of one of ours.
        GenerationConflict, InUse, ProviderNotFound: Others kept writing.
        AlreadyExists: Likewise; or a provider outside this host's tree has the name of one of ours.
    """
    policy = policy or HostPolicy()
    name = policy.uuid or policy.name or facts.host_name
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(8),
        wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.5),
        retry=tenacity.retry_if_exception_type(_WRITTEN_MEANWHILE),
        reraise=True,
    )

    def once() -> tuple[DesiredTree, TreeDiff]:
        tree.refresh()
        current = read_current(tree, name)
        desired = build_tree(facts, policy, current)
        change = diff(current, desired)
        apply(tree, change)
        if not change:
            return desired, change
        tree.refresh()  # a claim leaves the generation as it is, so that an edit does not notice it
        late = overtaken(current, change, read_current(tree, desired.root.uuid))
        return desired, attrs.evolve(change, refusals=(*change.refusals, *late))

    return retrying(once)


def carry_out(
    tree: ProviderTree,
    ledger: Reshaper,
    plan: Reshape,
    *,
    inventory: Callable[[dict[str, object]], Any],
    generations: Mapping[str, int] | None = None,
    operation_id: str | None = None,
) -> None:
    """Do what :func:`~cloudcore.hypervisor.plan_reshape` planned. Traits and removals are left to :func:`sync`.

    New providers are added empty; then inventories and allocations change in the ledger's one transaction: whatever
    happens in between, every allocation is on an inventory. May be repeated.

    Args:
        tree: The tree, which must be bound to the ledger's database.
        ledger: What moves inventories and allocations together, such as :class:`cloudcore.AllocationLedger`.
        plan: The plan.
        inventory: Makes the ledger's inventory of Placement's JSON: ``Inventory.from_placement``.
        generations: Consumer → the generation at which its allocations were read, so that none that changed since is
            overwritten.
        operation_id: Chosen by the caller: a repeat takes effect once.

    Raises:
        InUse: A consumer that the plan does not know holds some of what goes: read again, plan again.
        GenerationConflict: A consumer changed since: likewise.
    """
    for edit in plan.diff.edits:
        if edit.action is Action.ADD:
            with contextlib.suppress(AlreadyExists):  # by an earlier attempt
                tree.add(edit.name, uuid=edit.uuid, parent=edit.parent, traits=edit.traits, aggregates=edit.aggregates)
    failpoint("hypervisor.carry_out.before")
    ledger.reshape(
        {
            provider: {name: inventory(numbers) for name, numbers in classes.items()}
            for provider, classes in plan.inventories.items()
        },
        plan.allocations,
        generations=generations,
        operation_id=operation_id,
    )
    failpoint("hypervisor.carry_out.after")
    tree.refresh()
