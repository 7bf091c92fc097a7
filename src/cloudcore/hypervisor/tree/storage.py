"""The disk of a host: a local storage pool's on the root, a shared one's on a provider beside the hosts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore.errors import InvalidArgument
from cloudcore.hypervisor.tree.policy import allocation_ratio
from cloudcore.hypervisor.tree.values import (
    OWNER_TRAIT,
    CurrentProvider,
    CurrentTree,
    DesiredInventory,
    DesiredProvider,
    ProviderKind,
    derived_uuid,
    storage_aggregate,
)

if TYPE_CHECKING:
    from cloudcore.hypervisor.facts.host import HostFacts, StoragePool
    from cloudcore.hypervisor.tree.policy import HostPolicy

__all__ = ["disk_of_host"]

Disk = tuple[tuple[DesiredInventory, ...], DesiredProvider | None]
"""Inventories of the root, and the provider of shared storage."""


def disk_of_host(
    facts: HostFacts, policy: HostPolicy, current: CurrentTree, root: DesiredProvider, warnings: list[str]
) -> Disk:
    """The root's own disk, or the provider of a shared pool, whose aggregates are then the root's too.

    Raises:
        InvalidArgument: The policy names a pool that is not there, or reserves more than there is.
    """
    if policy.disk_gb is not None:
        return _own(policy, policy.disk_gb, "policy: disk_gb", current, root), None
    pool = _pool(facts, policy, warnings)
    if pool is None:
        return (), None
    if not pool.active:
        warnings.append(f"storage pool {pool.name} is not active; DISK_GB left as it is")
        return _as_recorded(pool, current, root)
    total, because = pool.capacity // 1024**3, f"storage pool {pool.name} ({pool.type}): {pool.capacity} bytes"
    if pool.identity is None:
        return _own(policy, total, because, current, root), None
    return (), _shared(policy, pool, total, because, current) if total > 0 else None


def _pool(facts: HostFacts, policy: HostPolicy, warnings: list[str]) -> StoragePool | None:
    pools = facts.storage_pools
    if policy.disk_pool is not None:
        for pool in pools:
            if pool.name == policy.disk_pool:
                return pool
        raise InvalidArgument(
            f"disk_pool: no storage pool {policy.disk_pool!r}, there are {[pool.name for pool in pools]}",
            field="disk_pool",
            value=policy.disk_pool,
        )
    if len(pools) > 1:
        names = ", ".join(pool.name for pool in pools)
        warnings.append(f"storage pools {names}: name one as disk_pool; DISK_GB left out")
    return pools[0] if len(pools) == 1 else None


def _reserved(policy: HostPolicy) -> int:
    return -(-policy.reserved_disk_mb // 1024)


def _own(
    policy: HostPolicy, total: int, because: str, current: CurrentTree, root: DesiredProvider
) -> tuple[DesiredInventory, ...]:
    if total <= 0:
        return ()
    reserved = _reserved(policy)
    if reserved > total:
        raise InvalidArgument(f"reserved_disk_mb: {reserved} of {total} GB", field="reserved_disk_mb", value=reserved)
    ratio = allocation_ratio(policy, "DISK_GB", (current.with_uuid(root.uuid),))
    return (
        DesiredInventory(
            resource_class="DISK_GB", total=total, reserved=reserved, allocation_ratio=ratio, because=because
        ),
    )


def _as_recorded(pool: StoragePool, current: CurrentTree, root: DesiredProvider) -> Disk:
    """A pool that is off says nothing of its size: what is recorded stays, on the shared provider or on the root."""
    host = current.with_uuid(root.uuid)
    there = current.with_uuid(_uuid(pool)) if pool.identity is not None else None
    if host and there and storage_aggregate(there.uuid) in host.aggregates:
        return (), _provider(pool, _recorded(pool, there))
    return _recorded(pool, host), None


def _recorded(pool: StoragePool, provider: CurrentProvider | None) -> tuple[DesiredInventory, ...]:
    recorded = provider.inventory("DISK_GB") if provider else None
    if recorded is None:
        return ()
    kept = attrs.asdict(recorded)
    del kept["used"]
    return (DesiredInventory(**kept, because=f"recorded earlier; storage pool {pool.name} is not active"),)


def _shared(policy: HostPolicy, pool: StoragePool, total: int, because: str, current: CurrentTree) -> DesiredProvider:
    inventory = DesiredInventory(
        resource_class="DISK_GB",
        total=total,
        reserved=min(_reserved(policy), total),
        allocation_ratio=allocation_ratio(policy, "DISK_GB", (current.with_uuid(_uuid(pool)),)),
        because=f"{because}, shared by every host that sees {pool.identity}",
    )
    return _provider(pool, (inventory,))


def _uuid(pool: StoragePool) -> str:
    return derived_uuid("storage", pool.identity or "")


def _provider(pool: StoragePool, inventories: tuple[DesiredInventory, ...]) -> DesiredProvider:
    uuid = _uuid(pool)
    traits = {"MISC_SHARES_VIA_AGGREGATE": "storage of several hosts", OWNER_TRAIT: "made by cloudcore"}
    return DesiredProvider(
        uuid=uuid,
        name=f"storage_{pool.type}_{uuid[:8]}",
        parent=None,
        kind=ProviderKind.SHARED_DISK,
        inventories=inventories,
        traits=frozenset(traits),
        owned_traits=frozenset(traits),
        aggregates=frozenset({storage_aggregate(uuid)}),
        because=tuple(sorted(traits.items())),
    )
