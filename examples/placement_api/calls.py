"""A call of the API apart from its transport: what was asked, what is answered, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any

import attrs
import jsonschema
from jsonschema.exceptions import best_match

Version = tuple[int, int]

FIRST: Version = (1, 0)
LAST: Version = (1, 39)

NOT_ALLOWED = "The method specified is not allowed for this resource."

UNDEFINED = "placement.undefined_code"
CONCURRENT_UPDATE = "placement.concurrent_update"
DUPLICATE_NAME = "placement.duplicate_name"
INVENTORY_IN_USE = "placement.inventory.inuse"
PROVIDER_IN_USE = "placement.resource_provider.inuse"
CANNOT_DELETE_PARENT = "placement.resource_provider.cannot_delete_parent"
PROVIDER_NOT_FOUND = "placement.resource_provider.not_found"
DUPLICATE_KEY = "placement.query.duplicate_key"
BAD_VALUE = "placement.query.bad_value"
MISSING_VALUE = "placement.query.missing_value"


class Problem(Exception):
    """An error as Placement's clients know it."""

    def __init__(self, status: int, detail: str, code: str = UNDEFINED, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.code, self.headers = status, detail, code, headers

    def document(self, version: Version | None, request_id: str) -> dict[str, Any]:
        """The body, by the guideline of OpenStack's API working group; codes came with 1.23."""
        error: dict[str, Any] = {
            "status": self.status,
            "title": HTTPStatus(self.status).phrase,
            "detail": self.detail,
            "request_id": request_id,
        }
        if version is not None and version >= (1, 23):
            error["code"] = self.code
        if version is None and self.status == HTTPStatus.NOT_ACCEPTABLE:
            error |= {"max_version": dotted(LAST), "min_version": dotted(FIRST)}
        return {"errors": [error]}


def dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


@attrs.frozen(kw_only=True)
class Call:
    """One request.

    Attributes:
        version: The microversion that the client speaks.
        method: Of HTTP.
        path: What the path names, such as ``uuid``.
        query: Parameters in order, repeated ones as often as given.
        body: As it came.
        headers: By name in lower case.
        prefix: Where the application is mounted; begins every link.
        host: Scheme and host that the client spoke to.
    """

    version: Version
    method: str
    path: Mapping[str, str]
    query: tuple[tuple[str, str], ...]
    body: bytes
    headers: Mapping[str, str]
    prefix: str
    host: str

    def require_json(self) -> None:
        """Refuse a body that does not say that it is JSON."""
        kind = self.headers.get("content-type", "None").partition(";")[0].strip()
        if kind != "application/json":
            raise Problem(415, f"The media type {kind} is not supported, use application/json")

    def parameters(self, validator: jsonschema.Draft7Validator) -> dict[str, str]:
        """The query, the last value of each name, checked."""
        given = dict(self.query)
        error = next(validator.iter_errors(given), None)
        if error is not None:
            raise Problem(400, f"Invalid query string parameters: {error}")
        return given

    def all_of(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return [value for key, value in self.query if key == name]

    def document(self, validator: jsonschema.Draft7Validator) -> Any:
        """The body as JSON, checked."""
        self.require_json()
        try:
            data = json.loads(self.body)
        except ValueError as error:
            raise Problem(400, f"Malformed JSON: {error}") from error
        check(data, validator)
        return data


def check(data: Any, validator: jsonschema.Draft7Validator) -> None:
    """Refuse what does not fit a schema, in its words."""
    error = best_match(validator.iter_errors(data))
    if error is not None:
        raise Problem(400, f"JSON does not validate: {error}")


@attrs.frozen(kw_only=True)
class Answer:
    """One response.

    Attributes:
        status: Of HTTP.
        body: To be written as JSON; None for no body.
        location: Of what was made.
        modified: When what is shown was changed last.
    """

    status: int = 200
    body: Any = None
    location: str | None = None
    modified: datetime | None = None

    def headers(self, version: Version) -> dict[str, str]:
        """What goes along: ``last-modified`` and ``cache-control`` since 1.15."""
        found: dict[str, str] = {}
        if self.modified is not None and version >= (1, 15):
            found["last-modified"] = format_datetime(self.modified, usegmt=True)
            found["cache-control"] = "no-cache"
        return found


Handler = Callable[[Call], Answer]


def now() -> datetime:
    """For what has no time of its own: what is in use, or a list of nothing."""
    return datetime.now(UTC)


def require(call: Call, version: Version, status: int = 404) -> None:
    """Refuse what did not exist at the client's microversion."""
    if call.version < version:
        raise Problem(status, "The resource could not be found." if status == 404 else NOT_ALLOWED)


def require_json_accepted(call: Call) -> None:
    """Refuse clients that want something else than JSON."""
    accepted = call.headers.get("accept", "*/*")
    kinds = {part.partition(";")[0].strip() for part in accepted.split(",")}
    if not kinds & {"*/*", "application/*", "application/json"}:
        raise Problem(406, "Only application/json is provided")
