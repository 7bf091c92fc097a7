"""Read the forest of a running Placement service: over its API, or straight from its database.

Both give what ``PlacementTree.from_placement`` and ``load`` take. Nothing is written.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa

from cloudcore.database import Database
from cloudcore.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import URL, Connection, Engine

__all__ = ["Session", "read_placement_database", "read_placement_service"]

_VERSION = "placement 1.39"


class Session(Protocol):
    """What is needed of a keystoneauth session (or adapter)."""

    def get(self, url: str, **kwargs: Any) -> Any:
        """Send a GET request; the answer has ``status_code`` and ``json()``."""


def read_placement_service(
    session: Session,
    *,
    endpoint_filter: Mapping[str, Any] | None = None,
    threads: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Read every provider, with inventories, traits, aggregates and usages, over Placement's API.

    The API lists these one provider at a time, so this sends four requests for each. Other writers are not held up:
    what they change meanwhile may be seen or not; a provider that goes away meanwhile is left out with all below it.

    Args:
        session: A keystoneauth1 session or adapter, used from several threads.
        endpoint_filter: How to find the endpoint; ``{"service_type": "placement"}`` when left out.
        threads: Requests under way at once.
        on_progress: Called with (providers read, providers in all).

    Raises:
        Unavailable: The service does not answer, or not as Placement does.
    """
    service = _Service(session, dict(endpoint_filter or {"service_type": "placement"}))
    providers = service.get("/resource_providers", "resource_providers")["resource_providers"]
    data: dict[str, Any] = {"inventories": {}, "traits": {}, "aggregates": {}, "usages": {}}
    gone: set[str] = set()

    def read(uuid: str) -> tuple[str, dict[str, Any]]:
        return uuid, {part: service.get_part(uuid, part) for part in data}

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="placement-read") as pool:
        for done, (uuid, parts) in enumerate(pool.map(read, [provider["uuid"] for provider in providers]), 1):
            if None in parts.values():
                gone.add(uuid)
            for part, value in parts.items():
                data[part][uuid] = value
            if on_progress is not None:
                on_progress(done, len(providers))
    return {"resource_providers": _without(providers, gone), **data}


def _session_failures() -> tuple[type[Exception], ...]:
    """What a session raises when nobody answers, or nobody can be asked."""
    try:
        from keystoneauth1.exceptions import ClientException
    except ImportError:
        return (OSError,)
    return (OSError, ClientException)


class _Service:
    """A Placement service behind a session. May be shared between threads, as the session may."""

    def __init__(self, session: Session, where: Mapping[str, Any]) -> None:
        self._session = session
        self._where = where
        self._failures = _session_failures()

    def get(self, path: str, key: str) -> Any:
        """The answer to one request, which has *key*.

        Raises:
            Unavailable: There is no such answer.
        """
        found = self._ask(path, key)
        if found is None:
            raise Unavailable(f"GET {path} of Placement: status 404; does the endpoint lead to Placement?")
        return found

    def get_part(self, uuid: str, part: str) -> Any:
        """What a provider has of *part*; None when the provider is gone.

        Raises:
            Unavailable: The service does not answer, or knows the provider but not the part.
        """
        path = f"/resource_providers/{uuid}"
        found = self._ask(f"{path}/{part}", part)
        if found is None and self._ask(path, "uuid") is not None:
            raise Unavailable(f"GET {path}/{part} of Placement: status 404, and yet there is {path}")
        return found

    def _ask(self, path: str, key: str) -> Any:
        about = f"GET {path} of Placement"
        headers = {"OpenStack-API-Version": _VERSION}
        try:
            answer = self._session.get(path, endpoint_filter=self._where, headers=headers, raise_exc=False)
        except self._failures as error:
            raise Unavailable(f"{about}: {type(error).__name__}: {error}") from error
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise Unavailable(f"{about}: status {answer.status_code}")
        try:
            found = answer.json()
        except ValueError as error:
            raise Unavailable(f"{about}: the answer is no JSON") from error
        if not isinstance(found, dict) or key not in found:
            raise Unavailable(f"{about}: the answer has no {key}; does the endpoint lead to Placement?")
        return found


def _without(providers: list[dict[str, Any]], gone: set[str]) -> list[dict[str, Any]]:
    """The providers that are not gone, nor below one that is."""
    parents = {provider["uuid"]: provider.get("parent_provider_uuid") for provider in providers}

    def lost(uuid: str | None) -> bool:
        while uuid is not None:
            if uuid in gone or uuid not in parents:
                return True
            uuid = parents[uuid]
        return False

    return [provider for provider in providers if not lost(provider["uuid"])]


_PROVIDERS = """
SELECT p.id, p.uuid, p.name, p.generation, parent.uuid FROM resource_providers p
LEFT JOIN resource_providers parent ON parent.id = p.parent_provider_id ORDER BY p.id
"""
_INVENTORIES = """
SELECT i.resource_provider_id, c.name, i.total, i.reserved, i.min_unit, i.max_unit, i.step_size, i.allocation_ratio
FROM inventories i JOIN resource_classes c ON c.id = i.resource_class_id ORDER BY i.resource_provider_id, c.id
"""
_USAGES = """
SELECT a.resource_provider_id, c.name, SUM(a.used) FROM allocations a
JOIN resource_classes c ON c.id = a.resource_class_id GROUP BY a.resource_provider_id, c.name
"""
_TRAITS = """
SELECT l.resource_provider_id, t.name FROM resource_provider_traits l JOIN traits t ON t.id = l.trait_id
"""
_AGGREGATES = """
SELECT l.resource_provider_id, a.uuid FROM resource_provider_aggregates l
JOIN placement_aggregates a ON a.id = l.aggregate_id
"""
_NUMBERS = ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio")


def read_placement_database(database: Database | str | URL | Engine) -> dict[str, Any]:
    """Read every provider, with inventories, traits, aggregates and usages, from the database of a Placement service.

    Five statements on one snapshot. The schema is that of Placement 16 (and of every release since Stein).

    Raises:
        SchemaMismatch: It is no database of Placement.
        DatabaseUnavailable, DatabaseError: It does not answer.
    """
    opened = Database.of(database)
    try:
        with opened.read() as connection:
            if opened.dialect != "sqlite":
                connection.execution_options(isolation_level="REPEATABLE READ")
            return _read_rows(connection)
    finally:
        if opened is not database:
            opened.close()


def _read_rows(connection: Connection) -> dict[str, Any]:
    uuids: dict[int, str] = {}
    providers = []
    for number, uuid, name, generation, parent in connection.execute(sa.text(_PROVIDERS)):
        uuids[number] = uuid
        entry = {"uuid": uuid, "name": name, "generation": generation or 0, "parent_provider_uuid": parent}
        providers.append(entry)
    inventories: dict[str, dict[str, Any]] = {}
    usages: dict[str, dict[str, int]] = {}
    traits: dict[str, list[str]] = {}
    aggregates: dict[str, list[str]] = {}
    for number, name, *numbers in connection.execute(sa.text(_INVENTORIES)):
        inventories.setdefault(uuids[number], {})[name] = dict(zip(_NUMBERS, numbers, strict=True))
    for number, name, used in connection.execute(sa.text(_USAGES)):
        usages.setdefault(uuids[number], {})[name] = int(used)
    for number, name in connection.execute(sa.text(_TRAITS)):
        traits.setdefault(uuids[number], []).append(name)
    for number, name in connection.execute(sa.text(_AGGREGATES)):
        aggregates.setdefault(uuids[number], []).append(name)
    return {
        "resource_providers": providers,
        "inventories": inventories,
        "traits": traits,
        "aggregates": aggregates,
        "usages": usages,
    }
