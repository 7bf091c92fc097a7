"""Resource providers with what they have: inventories, traits, aggregates, and what is in use of them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from placement_api import schemas
from placement_api.calls import (
    CANNOT_DELETE_PARENT,
    CONCURRENT_UPDATE,
    DUPLICATE_NAME,
    INVENTORY_IN_USE,
    PROVIDER_IN_USE,
    Answer,
    Call,
    Problem,
    Version,
    now,
    require,
    require_json_accepted,
)
from placement_api.cloud import Cloud, in_order
from placement_api.queries import provider_filters

from cloudcore.errors import (
    AlreadyExists,
    GenerationConflict,
    InUse,
    InvalidArgument,
    InvalidInventory,
    InventoryNotFound,
    ProviderNotFound,
)
from cloudcore.placement import Inventory, Provider

LOOP = "creating loop in the provider tree is not allowed."
CHANGED = "Resource provider's generation already changed. Please update the generation and try again."


class Providers:
    """The calls below ``/resource_providers``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._tree = cloud.tree

    # --- the providers themselves ------------------------------------------------------------------------------------

    def list(self, call: Call) -> Answer:
        require_json_accepted(call)
        call.parameters(schemas.provider_query(call.version))
        filters = provider_filters(call, self._cloud)
        found = self._cloud.providers(**filters)
        counted = self._tree.generations(found)
        shown = [self._shown(each, call, counted[each.uuid]) for each in found]
        return Answer(body={"resource_providers": shown}, modified=self._cloud.modified(*found))

    def create(self, call: Call) -> Answer:
        data = call.document(schemas.provider(new=True, nested=call.version >= (1, 14)))
        identifier = str(uuid.UUID(data["uuid"])) if data.get("uuid") else str(uuid.uuid4())
        parent = data.get("parent_provider_uuid")
        try:
            made = self._tree.add(data["name"], uuid=identifier, parent=self._parent(parent, data["name"], identifier))
        except AlreadyExists as error:
            field = "uuid" if error.identifier == identifier else "name"
            taken = f"{field}: {identifier if field == 'uuid' else data['name']}"
            raise Problem(409, f"Conflicting resource provider {taken} already exists.", DUPLICATE_NAME) from error
        except InvalidArgument as error:
            raise Problem(400, f"Unable to create resource provider: {error}") from error
        location = f"{call.prefix}/resource_providers/{made.uuid}"
        if call.version < (1, 20):
            return Answer(status=201, location=location)
        return Answer(body=self._shown(made, call), location=location, modified=self._cloud.modified(made))

    def show(self, call: Call) -> Answer:
        require_json_accepted(call)
        found = self._find(call)
        return Answer(body=self._shown(found, call), modified=self._cloud.modified(found))

    def update(self, call: Call) -> Answer:
        found = self._find(call, body=True)
        data = call.document(schemas.provider(new=False, nested=call.version >= (1, 14)))
        changes: dict[str, Any] = {"name": data["name"]}
        if "parent_provider_uuid" in data:
            parent = data["parent_provider_uuid"]
            if call.version < (1, 37) and found.parent is not None and parent != found.parent:
                verb = "un-parenting" if parent is None else "re-parenting"
                raise self._unable(found, f"{verb} a provider is not currently allowed.")
            if parent is not None and str(uuid.UUID(parent)) == found.uuid:
                raise self._unable(found, LOOP)
            changes["parent"] = self._parent(parent, found.name, found.uuid, verb="save", action="update")
        try:
            saved = self._tree.update(found, **changes)
        except AlreadyExists as error:
            detail = f"Conflicting resource provider {data['name']} already exists."
            raise Problem(409, detail, DUPLICATE_NAME) from error
        except InvalidArgument as error:
            why = LOOP if error.field == "parent" else str(error)
            raise self._unable(found, why) from error
        return Answer(body=self._shown(saved, call), modified=self._cloud.modified(saved))

    def delete(self, call: Call) -> Answer:
        identifier = call.path["uuid"]
        try:
            self._tree.remove(self._cloud.provider(identifier))
        except ProviderNotFound as error:
            raise Problem(404, f"No resource provider with uuid {identifier} found for delete") from error
        except InUse as error:
            if error.kind == "children":
                detail = f"Unable to delete parent resource provider {identifier}: It has child resource providers."
                raise Problem(409, detail, CANNOT_DELETE_PARENT) from error
            detail = f"Unable to delete resource provider {identifier}: Resource provider has allocations."
            raise Problem(409, detail, PROVIDER_IN_USE) from error
        return Answer(status=204)

    def _parent(
        self, parent: str | None, name: str, identifier: str, verb: str = "create", action: str = "create"
    ) -> str | None:
        if parent is None:
            return None
        start = f'Unable to {verb} resource provider "{name}", {identifier}: Object action {action} failed because: '
        if str(uuid.UUID(parent)) == identifier:
            raise Problem(400, f"{start}parent provider UUID cannot be same as UUID. ")
        try:
            return self._cloud.provider(parent).uuid
        except ProviderNotFound as error:
            raise Problem(400, f"{start}parent provider UUID does not exist.") from error

    @staticmethod
    def _unable(provider: Provider, why: str) -> Problem:
        return Problem(
            400, f"Unable to save resource provider {provider.uuid}: Object action update failed because: {why}"
        )

    def _find(self, call: Call, *, body: bool = False) -> Provider:
        if body:
            call.require_json()
        return self._cloud.provider(call.path["uuid"])

    def _shown(self, provider: Provider, call: Call, generation: int | None = None) -> dict[str, Any]:
        version = call.version
        url = f"{call.prefix}/resource_providers/{provider.uuid}"
        since: dict[str, Version] = {
            "inventories": (1, 0),
            "usages": (1, 0),
            "aggregates": (1, 1),
            "traits": (1, 6),
            "allocations": (1, 11),
        }
        links = [{"rel": name, "href": f"{url}/{name}"} for name, first in since.items() if version >= first]
        shown = {
            "uuid": provider.uuid,
            "name": provider.name,
            "generation": self._cloud.generation(provider) if generation is None else generation,
            "links": [{"rel": "self", "href": url}, *links],
        }
        if version >= (1, 14):
            shown |= {"parent_provider_uuid": provider.parent, "root_provider_uuid": provider.root}
        return shown

    # --- inventories -------------------------------------------------------------------------------------------------

    def inventories(self, call: Call) -> Answer:
        require_json_accepted(call)
        return self._inventories(self._find(call))

    def set_inventories(self, call: Call) -> Answer:
        found = self._find(call, body=True)
        data = call.document(schemas.INVENTORIES)
        generation = self._generation(
            found, data["resource_provider_generation"], "resource provider generation conflict"
        )
        wanted = {name: self._inventory(found, name, given, call) for name, given in data["inventories"].items()}
        self._known_classes(found, wanted, "Unknown resource class in inventory for")
        return self._inventories(self._store(found, wanted, generation, "update"))

    def delete_inventories(self, call: Call) -> Answer:
        require(call, (1, 5), 405)
        found = self._find(call)
        self._store(found, {}, None, "delete")
        return Answer(status=204)

    def add_inventory(self, call: Call) -> Answer:
        found = self._find(call, body=True)
        data = call.document(schemas.NEW_INVENTORY)
        name = data.pop("resource_class")
        wanted = self._inventory(found, name, data, call)
        self._known_classes(found, [name], "Unable to create inventory for")
        try:
            saved = self._tree.put_inventory(found, name, wanted, new=True)
        except (AlreadyExists, GenerationConflict) as error:
            raise Problem(409, f"Update conflict: {error}", CONCURRENT_UPDATE) from error
        location = f"{call.prefix}/resource_providers/{found.uuid}/inventories/{name}"
        return self._one(saved, name, status=201, location=location)

    def inventory(self, call: Call) -> Answer:
        require_json_accepted(call)
        found, name = self._find(call), call.path["resource_class"]
        if name not in found.inventories:
            raise Problem(404, f"No inventory of class {name} for {found.uuid}")
        return self._one(found, name)

    def set_inventory(self, call: Call) -> Answer:
        found, name = self._find(call, body=True), call.path["resource_class"]
        data = call.document(schemas.ONE_INVENTORY)
        generation = self._generation(
            found, data["resource_provider_generation"], "resource provider generation conflict"
        )
        wanted = self._inventory(found, name, data, call)
        try:
            saved = self._tree.put_inventory(found, name, wanted, new=False, generation=generation)
        except InventoryNotFound as error:
            detail = f"No inventory record with resource class for resource provider {found.uuid}"
            raise Problem(400, f"{detail}: No inventory of class {name} found.") from error
        except GenerationConflict as error:
            raise Problem(409, f"update conflict: {error}", CONCURRENT_UPDATE) from error
        return self._one(saved, name)

    def delete_inventory(self, call: Call) -> Answer:
        found, name = self._find(call), call.path["resource_class"]
        try:
            self._tree.remove_inventory(found, name)
        except InventoryNotFound as error:
            raise Problem(404, f"No inventory of class {name} found for delete") from error
        except InUse as error:
            why = f"Inventory for '{name}' on resource provider '{found.uuid}' in use."
            raise Problem(409, f"Unable to delete inventory of class {name}: {why}", CONCURRENT_UPDATE) from error
        return Answer(status=204)

    def _inventory(self, provider: Provider, name: str, given: Mapping[str, Any], call: Call) -> Inventory:
        values = {field: value for field, value in given.items() if field != "resource_provider_generation"}
        try:
            inventory = Inventory.from_placement(values)
        except InvalidInventory as error:
            raise self._bad_capacity(provider, name, call) from error
        if inventory.capacity <= 0 and call.version < (1, 26):
            raise self._bad_capacity(provider, name, call)
        return inventory

    @staticmethod
    def _bad_capacity(provider: Provider, name: str, call: Call) -> Problem:
        relation = "greater than" if call.version >= (1, 26) else "greater than or equal to"
        verb = "create" if call.method == "POST" else "update"
        start = f"Unable to {verb} inventory for resource provider {provider.uuid}: "
        what = f"Invalid inventory for '{name}' on resource provider '{provider.uuid}'."
        return Problem(400, f"{start}{what} The reserved value is {relation} total.")

    def _known_classes(self, provider: Provider, names: Any, what: str) -> None:
        for name in names:
            if not self._cloud.has_class(name):
                raise Problem(400, f"{what} resource provider {provider.uuid}: No such resource class {name}.")

    def _generation(self, provider: Provider, given: int, message: str) -> int:
        if given != self._cloud.generation(provider):
            raise Problem(409, message, CONCURRENT_UPDATE)
        return given

    def _store(
        self, provider: Provider, wanted: Mapping[str, Inventory], generation: int | None, verb: str
    ) -> Provider:
        try:
            return self._tree.set_inventory(provider, wanted, generation=generation)
        except GenerationConflict as error:
            raise Problem(409, f"update conflict: {error}", CONCURRENT_UPDATE) from error
        except InUse as error:
            gone = in_order(provider.inventories.keys() - wanted.keys())
            why = f"Inventory for '{', '.join(gone)}' on resource provider '{provider.uuid}' in use."
            raise Problem(409, f"Unable to {verb} inventory, update conflict: {why}", INVENTORY_IN_USE) from error

    def _inventories(self, provider: Provider) -> Answer:
        shown = {name: given.as_placement() for name, given in provider.inventories.items()}
        return Answer(
            body={"resource_provider_generation": self._cloud.generation(provider), "inventories": shown},
            modified=self._cloud.modified(provider),
        )

    def _one(self, provider: Provider, name: str, status: int = 200, location: str | None = None) -> Answer:
        shown = provider.inventories[name].as_placement()
        generation = self._cloud.generation(provider)
        if generation:
            shown["resource_provider_generation"] = generation
        return Answer(status=status, body=shown, location=location, modified=self._cloud.modified(provider))

    # --- traits ------------------------------------------------------------------------------------------------------

    def traits(self, call: Call) -> Answer:
        require(call, (1, 6))
        require_json_accepted(call)
        return self._traits(self._find(call))

    def set_traits(self, call: Call) -> Answer:
        require(call, (1, 6))
        data = call.document(schemas.TRAITS)
        found = self._find(call)
        generation = self._generation(found, data["resource_provider_generation"], CHANGED)
        unknown = [name for name in data["traits"] if not self._cloud.has_trait(name)]
        if unknown:
            raise Problem(400, f"No such trait {', '.join(unknown)}")
        return self._traits(self._write(found, traits=data["traits"], generation=generation))

    def delete_traits(self, call: Call) -> Answer:
        require(call, (1, 6))
        self._write(self._find(call), traits=())
        return Answer(status=204)

    def _write(self, provider: Provider, **changes: Any) -> Provider:
        try:
            return self._tree.update(provider, **changes)
        except GenerationConflict as error:
            raise Problem(409, CHANGED, CONCURRENT_UPDATE) from error

    def _traits(self, provider: Provider) -> Answer:
        body = {"traits": sorted(provider.traits), "resource_provider_generation": self._cloud.generation(provider)}
        return Answer(body=body, modified=self._cloud.modified(provider))

    # --- aggregates --------------------------------------------------------------------------------------------------

    def aggregates(self, call: Call) -> Answer:
        require(call, (1, 1))
        require_json_accepted(call)
        return self._aggregates(self._find(call), call)

    def set_aggregates(self, call: Call) -> Answer:
        require(call, (1, 1))
        counted = call.version >= (1, 19)
        found = self._find(call, body=True)
        data = call.document(schemas.AGGREGATES if counted else schemas.AGGREGATES_1_1)
        generation = self._generation(found, data["resource_provider_generation"], CHANGED) if counted else None
        wanted = data["aggregates"] if counted else data
        saved = self._write(found, aggregates=wanted, generation=generation)
        return self._aggregates(saved, call, wanted)

    def _aggregates(self, provider: Provider, call: Call, given: Sequence[str] | None = None) -> Answer:
        body: dict[str, Any] = {"aggregates": sorted(provider.aggregates) if given is None else given}
        if call.version >= (1, 19):
            body["resource_provider_generation"] = self._cloud.generation(provider)
        return Answer(body=body, modified=self._cloud.modified(provider))

    # --- what is in use ----------------------------------------------------------------------------------------------

    def usages(self, call: Call) -> Answer:
        require_json_accepted(call)
        found = self._find(call)
        body = {"resource_provider_generation": self._cloud.generation(found), "usages": self._tree.usage(found)}
        return Answer(body=body, modified=now())

    def allocations(self, call: Call) -> Answer:
        require_json_accepted(call)
        found = self._find(call)
        shown: dict[str, Any] = {}
        for holder in self._cloud.ledger.holders(found.uuid):
            shown[holder.consumer] = {"resources": dict(holder.resources)}
            if call.version >= (1, 28):
                shown[holder.consumer]["consumer_generation"] = holder.generation
        return Answer(
            body={"allocations": shown, "resource_provider_generation": self._cloud.generation(found)}, modified=now()
        )
