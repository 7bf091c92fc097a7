"""The registers of resource classes and traits: ``/resource_classes`` and ``/traits``."""

from __future__ import annotations

from typing import Any

from placement_api import schemas
from placement_api.calls import Answer, Call, Problem, check, now, require, require_json_accepted
from placement_api.cloud import Cloud, in_order

from cloudcore.errors import InUse, InvalidArgument

NO_TRAIT = (
    "The trait is invalid. A valid trait must be no longer than 255 characters, start with the prefix "
    '"CUSTOM_" and use following characters: "A"-"Z", "0"-"9" and "_"'
)


class Classes:
    """The calls below ``/resource_classes``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._names = cloud.tree.names

    def list(self, call: Call) -> Answer:
        require(call, (1, 2))
        require_json_accepted(call)
        found = [self._shown(name, call) for name in in_order(self._names.resource_classes())]
        return Answer(body={"resource_classes": found}, modified=now())

    def create(self, call: Call) -> Answer:
        require(call, (1, 2))
        name = call.document(schemas.CLASS)["name"]
        if not self._names.add_resource_class(name):
            raise Problem(409, f"Conflicting resource class already exists: {name}")
        return Answer(status=201, location=self._url(name, call))

    def show(self, call: Call) -> Answer:
        require(call, (1, 2))
        require_json_accepted(call)
        return Answer(body=self._shown(self._found(call), call), modified=now())

    def update(self, call: Call) -> Answer:
        """Until 1.6 a new name in the body; since 1.7 the class is made, if it is not there."""
        require(call, (1, 2))
        if call.version < (1, 7):
            return self._rename(call)
        name = call.path["name"]
        check({"name": name}, schemas.CLASS)
        made = self._names.add_resource_class(name)
        return Answer(status=201 if made else 204, location=self._url(name, call))

    def _rename(self, call: Call) -> Answer:
        wanted = call.document(schemas.CLASS)["name"]
        name = self._found(call)
        if not name.startswith("CUSTOM_"):
            raise Problem(400, f"Cannot update standard resource class {name}")
        if wanted != name:
            if self._cloud.has_class(wanted):
                raise Problem(409, f"Resource class already exists: {wanted}")
            self._names.add_resource_class(wanted)
            self._names.remove_resource_class(name)
        return Answer(body=self._shown(wanted, call))

    def delete(self, call: Call) -> Answer:
        require(call, (1, 2))
        name = self._found(call)
        try:
            self._names.remove_resource_class(name)
        except InvalidArgument as error:
            raise Problem(
                400, f"Error in delete resource class: Cannot delete standard resource class {name}."
            ) from error
        except InUse as error:
            why = f"Cannot delete resource class {name}. Class is in use in inventory."
            raise Problem(409, f"Error in delete resource class: {why}") from error
        return Answer(status=204)

    def _found(self, call: Call) -> str:
        name = call.path["name"]
        if not self._cloud.has_class(name):
            raise Problem(404, f"No such resource class {name}.")
        return name

    @staticmethod
    def _url(name: str, call: Call) -> str:
        return f"{call.prefix}/resource_classes/{name}"

    def _shown(self, name: str, call: Call) -> dict[str, Any]:
        return {"name": name, "links": [{"rel": "self", "href": self._url(name, call)}]}


class Traits:
    """The calls below ``/traits``."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._names = cloud.tree.names

    def list(self, call: Call) -> Answer:
        require(call, (1, 6))
        require_json_accepted(call)
        given = call.parameters(schemas.TRAIT_QUERY)
        found = sorted(self._names.traits())
        if "name" in given:
            operator, colon, value = given["name"].partition(":")
            if not colon:
                form = "?name=[in|startswith]:[name1,name2|prefix]"
                expected = f"Expected name query string parameter in form: {form}."
                raise Problem(400, f'Badly formatted name parameter. {expected} Got: "{operator}"')
            if operator == "in":
                wanted = set(value.split(","))
                found = [name for name in found if name in wanted]
            elif operator == "startswith":
                found = [name for name in found if name.startswith(value)]
        if "associated" in given:
            answer = given["associated"].lower()
            if answer not in {"true", "false"}:
                raise Problem(400, 'The query parameter "associated" only accepts "true" or "false"')
            carried = set().union(*(provider.traits for provider in self._cloud.tree))
            found = [name for name in found if (name in carried) == (answer == "true")]
        return Answer(body={"traits": found}, modified=now())

    def update(self, call: Call) -> Answer:
        require(call, (1, 6))
        name = call.path["name"]
        try:
            check(name, schemas.TRAIT)
        except Problem as error:
            raise Problem(400, NO_TRAIT) from error
        made = self._names.add_trait(name)
        return Answer(status=201 if made else 204, location=f"{call.prefix}/traits/{name}", modified=now())

    def show(self, call: Call) -> Answer:
        require(call, (1, 6))
        self._found(call)
        return Answer(status=204, modified=now())

    def delete(self, call: Call) -> Answer:
        require(call, (1, 6))
        name = self._found(call)
        try:
            self._names.remove_trait(name)
        except InvalidArgument as error:
            raise Problem(400, f"Cannot delete standard trait {name}.") from error
        except InUse as error:
            raise Problem(409, f"The trait {name} is in use by a resource provider.") from error
        return Answer(status=204)

    def _found(self, call: Call) -> str:
        name = call.path["name"]
        if not self._cloud.has_trait(name):
            raise Problem(404, f"No such trait(s): {name}.")
        return name
