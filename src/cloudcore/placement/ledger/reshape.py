"""Reshape: inventories move between providers or classes together with the allocations that use them, atomically."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.errors import GenerationConflict, InUse, ProviderNotFound
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.rules.claims import InventoryRow, Take, refusal
from cloudcore.placement.storage.changes import record_edit_raw
from cloudcore.placement.storage.generations import count, read_generations

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cloudcore.placement.forest.values import Inventory
    from cloudcore.placement.ledger.session import Session
    from cloudcore.placement.ledger.writes import Target

__all__ = ["Reshape", "require_units", "reshape"]


@attrs.frozen(kw_only=True)
class Reshape:
    """What a reshape shall make, checked.

    Attributes:
        inventories: Provider uuid → class → inventory: the whole set of each provider named.
        generations: Provider uuid → the generation read last; others may be at any.
        targets: What consumers shall hold afterwards.
    """

    inventories: Mapping[str, Mapping[str, Inventory]]
    generations: Mapping[str, int]
    targets: Mapping[str, Target]


def require_units(asked: Reshape) -> None:
    """Refuse a consumer's amount that the inventory beside it does not give in one piece, also one that it holds.

    Whoever states both states that they fit. (An edit of the inventory alone leaves what is held as it is.)

    Raises:
        UnitViolation: It is below ``min_unit``, above ``max_unit``, or no multiple of ``step_size``.
    """
    for target in asked.targets.values():
        for provider, amounts in target.allocations.items():
            given = asked.inventories.get(provider, {})
            for name, amount in amounts.items():
                if name not in given:
                    continue
                i = given[name]
                row = InventoryRow(
                    min_unit=i.min_unit, max_unit=i.max_unit, step_size=i.step_size, capacity=i.capacity, used=0
                )
                take = Take(key=(0, name), delta=0, smallest=amount, largest=amount, divisor=amount)
                if (error := refusal(provider, take, row)) is not None:
                    raise error


def reshape(session: Session, operation_id: str, asked: Reshape, *, history: bool) -> dict[str, Any]:
    """Do it in the transaction of *session*. Returns the consumers' states and the providers' generations as JSON.

    New inventories come first, then the consumers are written under the new capacities, then the old ones go. So what
    grows must fit the new capacity, and what stays or shrinks may be over it, as with any other edit. Call
    :func:`require_units` before.

    Raises:
        ProviderNotFound, GenerationConflict: A provider is not as the caller read it.
        InUse: A class that shall go is held by somebody who is not named.
        See :func:`cloudcore.placement.ledger.moves.write` for the others.
    """
    providers = _lock_providers(session, asked)
    if session.counting:
        interim = {number: int(bool(asked.inventories[uuid])) for uuid, number in providers.items()}
        count(session.connection, interim, {providers[uuid]: read for uuid, read in asked.generations.items()})
    rows = ledger_moves.lock(session, asked.targets)
    held = session.holdings([row for uuid, row in rows.items() if uuid in asked.targets])
    wanted = session.provider_ids({p for target in asked.targets.values() for p in target.allocations})
    touched = {*providers.values(), *wanted.values(), *(key[0] for keys in held.values() for key in keys)}
    present = _lock_inventories(session, touched)
    for uuid, number in providers.items():
        _put_inventories(session, number, asked.inventories[uuid], present.get(number, set()))
    written = (
        ledger_moves.write(session, operation_id, "reshape", asked.targets, history=history, reshaping=True)
        if asked.targets
        else {}
    )
    for uuid, number in providers.items():
        for name in sorted(present.get(number, set()) - asked.inventories[uuid].keys()):
            _drop_inventory(session, uuid, number, name)
    failpoint("ledger.reshape.generation")
    session.many(
        "UPDATE resource_providers SET generation = generation + 1, updated_at = {now} WHERE id = ?",
        [(n,) for n in providers.values()],
    )
    if session.counting:
        count(session.connection, dict.fromkeys(providers.values(), 1))
    record_edit_raw(session.cursor, session.dialect)
    session.add_changes(providers.values())
    return {"consumers": written, "providers": _generations(session, providers)}


def _lock_providers(session: Session, asked: Reshape) -> dict[str, int]:
    """Uuid → id, in the order of ids."""
    failpoint("ledger.reshape.lock")
    sql = "SELECT uuid, id, generation FROM resource_providers WHERE id IN {marks} ORDER BY id {lock}"
    names = sorted(asked.inventories)
    numbers = sorted(session.provider_ids(names).values())
    rows = session.in_parts(sql, numbers)
    found = {uuid: (number, generation) for uuid, number, generation in rows}
    for uuid in names:
        if uuid not in found:
            raise ProviderNotFound(f"no resource provider {uuid}", identifier=uuid)
        expected, generation = None if session.counting else asked.generations.get(uuid), found[uuid][1]
        if expected not in {None, generation}:
            raise GenerationConflict(
                f"provider {uuid} is at generation {generation}, the caller read {expected}; read it again",
                identifier=uuid,
                expected=expected,
                found=generation,
            )
    return {uuid: number for uuid, (number, _) in found.items()}


def _lock_inventories(session: Session, providers: Collection[int]) -> dict[int, set[str]]:
    present: dict[int, set[str]] = {}
    sql = (
        "SELECT provider_id, resource_class FROM inventories WHERE provider_id IN {marks} "
        "ORDER BY provider_id, resource_class {lock}"
    )
    for number, name in session.in_parts(sql, sorted(providers)):
        present.setdefault(number, set()).add(name)
    return present


def _put_inventories(session: Session, number: int, wanted: Mapping[str, Inventory], present: Collection[str]) -> None:
    for name, given in sorted(wanted.items()):
        values = (
            given.total,
            given.reserved,
            given.min_unit,
            given.max_unit,
            given.step_size,
            given.allocation_ratio,
            given.capacity,
        )
        failpoint("ledger.reshape.inventory")
        if name in present:
            session.run(
                "UPDATE inventories SET total = ?, reserved = ?, min_unit = ?, max_unit = ?, step_size = ?, "
                "allocation_ratio = ?, capacity = ? WHERE provider_id = ? AND resource_class = ?",
                (*values, number, name),
            )
        else:
            session.run(
                "INSERT INTO inventories (total, reserved, min_unit, max_unit, step_size, allocation_ratio, capacity, "
                "provider_id, resource_class, used) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (*values, number, name),
            )


def _drop_inventory(session: Session, uuid: str, number: int, name: str) -> None:
    failpoint("ledger.reshape.drop")
    if session.run("DELETE FROM inventories WHERE provider_id = ? AND resource_class = ? AND used = 0", (number, name)):
        return
    users = session.all(
        "SELECT c.uuid FROM allocations a JOIN consumers c ON c.id = a.consumer_id "
        "WHERE a.provider_id = ? AND a.resource_class = ? ORDER BY c.uuid LIMIT 5",
        (number, name),
    )
    raise InUse(
        f"provider {uuid}: {name} is held by {', '.join(row[0] for row in users)}; name them in the same reshape",
        identifier=f"{uuid}/{name}",
        users=tuple(row[0] for row in users),
        kind="allocations",
    )


def _generations(session: Session, providers: Mapping[str, int]) -> dict[str, int]:
    if session.counting:
        return read_generations(session.connection, providers)
    return dict(
        session.in_parts("SELECT uuid, generation FROM resource_providers WHERE uuid IN {marks}", sorted(providers))
    )
