"""Who holds what: ``/allocations``, ``/usages`` and ``/reshaper``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from placement_api import schemas
from placement_api.calls import (
    CONCURRENT_UPDATE,
    INVENTORY_IN_USE,
    PROVIDER_NOT_FOUND,
    Answer,
    Call,
    Problem,
    now,
    require,
    require_json_accepted,
)
from placement_api.cloud import Cloud, Wish

from cloudcore.errors import (
    AlreadyExists,
    CapacityExceeded,
    CloudcoreError,
    Conflict,
    ConsumerNotFound,
    GenerationConflict,
    InUse,
    InvalidInventory,
    InventoryNotFound,
    ProviderNotFound,
    UnitViolation,
)
from cloudcore.placement import Inventory, Owner

NOBODY = "00000000-0000-0000-0000-000000000000"
"""Project and user of consumers that were made before 1.8."""


class Allocations:
    """The calls about consumers."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._ledger = cloud.ledger

    # --- reading -----------------------------------------------------------------------------------------------------

    def show(self, call: Call) -> Answer:
        require_json_accepted(call)
        try:
            state = self._ledger.consumer(str(uuid.UUID(call.path["consumer_uuid"])))
        except ValueError:
            state = None
        body: dict[str, Any] = {"allocations": {}}
        if state is not None:
            generations = self._cloud.tree.generations(state.allocations)
            body["allocations"] = {
                provider: {"generation": generations[provider], "resources": dict(amounts)}
                for provider, amounts in state.allocations.items()
            }
            if call.version >= (1, 12):
                body |= {"project_id": state.project_id, "user_id": state.user_id}
            if call.version >= (1, 28):
                body["consumer_generation"] = state.generation
            if call.version >= (1, 38):
                body["consumer_type"] = state.consumer_type or "unknown"
        return Answer(body=body, modified=now())

    def usages(self, call: Call) -> Answer:
        require(call, (1, 9))
        require_json_accepted(call)
        given = call.parameters(schemas.usage_query(call.version))
        project, user, kind = given["project_id"], given.get("user_id"), given.get("consumer_type")
        if call.version < (1, 38):
            return Answer(body={"usages": self._ledger.usages(project_id=project, user_id=user)}, modified=now())
        found = self._ledger.usages_by_type(project_id=project, user_id=user)
        shown = {name: {**each.amounts, "consumer_count": each.consumers} for name, each in found.items()}
        if kind == "all":
            total = self._ledger.usages(project_id=project, user_id=user)
            count = sum(each.consumers for each in found.values())
            shown = {"all": {**total, "consumer_count": count}} if count else {}
        elif kind is not None:
            shown = {name: each for name, each in shown.items() if name == kind}
        return Answer(body={"usages": shown}, modified=now())

    # --- writing -----------------------------------------------------------------------------------------------------

    def set_one(self, call: Call) -> Answer:
        consumer = call.path["consumer_uuid"]
        try:
            consumer = str(uuid.UUID(consumer))
        except ValueError as error:
            raise Problem(400, f"Malformed consumer_uuid: {consumer}") from error
        data = call.document(schemas.allocations(call.version))
        self._replace(
            {consumer: self._wish(data, call, f"for consumer {consumer}")},
            f"Unable to allocate inventory for consumer {consumer}: ",
        )
        return Answer(status=204)

    def set_many(self, call: Call) -> Answer:
        require(call, (1, 13))
        data = call.document(schemas.allocations_of_many(call.version))
        self._replace(
            {consumer: self._wish(each, call) for consumer, each in data.items()}, "Unable to allocate inventory "
        )
        return Answer(status=204)

    def delete(self, call: Call) -> Answer:
        consumer = call.path["consumer_uuid"]
        try:
            self._ledger.release(str(uuid.UUID(consumer)))
        except (ConsumerNotFound, ValueError) as error:
            raise Problem(404, f"No allocations for consumer '{consumer}'") from error
        return Answer(status=204)

    def reshape(self, call: Call) -> Answer:
        require(call, (1, 30))
        data = call.document(schemas.reshaper(call.version))
        inventories: dict[str, dict[str, Inventory]] = {}
        read: dict[str, int] = {}
        for identifier, given in data["inventories"].items():
            inventories[identifier] = self._inventories(identifier, given["inventories"])
            read[identifier] = given["resource_provider_generation"]
            self._check_generation(identifier, read[identifier])
        wishes = {consumer: self._wish(each, call) for consumer, each in data["allocations"].items()}
        try:
            self._cloud.reshape(inventories, wishes, read)
        except InUse as error:
            raise Problem(409, f"update conflict: {error} in use", INVENTORY_IN_USE) from error
        except CloudcoreError as error:
            raise _refused(error, self._cloud, wishes, "malformed reshaper data: ") from error
        return Answer(status=204)

    def _inventories(self, identifier: str, given: Mapping[str, Any]) -> dict[str, Inventory]:
        try:
            self._cloud.provider(identifier)
        except ProviderNotFound as error:
            why = f"No resource provider with uuid {identifier} found"
            detail = f"Resource provider {identifier} in inventories not found: {why}"
            raise Problem(400, detail, PROVIDER_NOT_FOUND) from error
        for name in given:
            if not self._cloud.has_class(name):
                raise Problem(400, f"malformed reshaper data: No such resource class {name}.")
        try:
            return {name: Inventory.from_placement(each) for name, each in given.items()}
        except InvalidInventory as error:
            raise Problem(400, f"malformed reshaper data: {error}") from error

    def _check_generation(self, identifier: str, given: int) -> None:
        actual = self._cloud.generation(self._cloud.provider(identifier))
        if given != actual:
            detail = (
                f"resource provider generation conflict for provider {identifier}: actual: {actual}, given: {given}"
            )
            raise Problem(409, detail, CONCURRENT_UPDATE)

    def _wish(self, data: Mapping[str, Any], call: Call, of: str = "") -> Wish:
        given = data["allocations"]
        if isinstance(given, list):  # until 1.11
            given = {each["resource_provider"]["uuid"]: {"resources": each["resources"]} for each in given}
        for provider, each in given.items():
            self._require_provider(provider)
            for name in each["resources"]:
                if not self._cloud.has_class(name):
                    raise Problem(400, f"Unable to allocate inventory {of}: No such resource class {name}.")
        generation = data.get("consumer_generation")
        return Wish(
            allocations={provider: dict(each["resources"]) for provider, each in given.items()},
            owner=Owner.of(data.get("project_id", NOBODY), data.get("user_id", NOBODY), data.get("consumer_type")),
            generation=(0 if generation is None else generation) if call.version >= (1, 28) else None,
        )

    def _require_provider(self, identifier: str) -> None:
        try:
            self._cloud.provider(identifier)
        except ProviderNotFound as error:
            raise Problem(400, f"Allocation for resource provider '{identifier}' that does not exist.") from error

    def _replace(self, wishes: Mapping[str, Wish], unable: str) -> None:
        try:
            self._cloud.replace(wishes)
        except CloudcoreError as error:
            raise _refused(error, self._cloud, wishes, unable) from error


def _refused(error: CloudcoreError, cloud: Cloud, wishes: Mapping[str, Wish], unable: str) -> Problem:
    """What the ledger refused, in Placement's words: clients look for some of them."""
    consumer = error.identifier if isinstance(error, GenerationConflict | AlreadyExists) else None
    if consumer is not None and consumer in wishes:
        state = cloud.ledger.consumer(consumer)
        expected = "null" if state is None else state.generation
        detail = f"consumer generation conflict - expected {expected} but got {wishes[consumer].generation or None}"
        return Problem(409, detail, CONCURRENT_UPDATE)
    if isinstance(error, CapacityExceeded | UnitViolation):
        rule = "exceed the capacity" if isinstance(error, CapacityExceeded) else "violate inventory constraints"
        what = f"allocation for '{error.resource_class}' on resource provider '{error.provider}'"
        why = f"Unable to create {what}. The requested amount would {rule}. ({error})"
        return Problem(409, f"Unable to allocate inventory: {why}")
    if isinstance(error, InventoryNotFound):
        why = f"Inventory for '{error.resource_class}' on resource provider '{error.provider}' invalid."
        return Problem(409, f"Unable to allocate inventory: {why}")
    if isinstance(error, Conflict):
        detail = f"Inventory and/or allocations changed while attempting to allocate: {error}"
        return Problem(409, detail, CONCURRENT_UPDATE)
    return Problem(400, f"{unable}{error}")
