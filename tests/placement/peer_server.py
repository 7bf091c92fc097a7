"""The real OpenStack Placement in one process, spoken to in lines of JSON. Runs in Placement's own environment.

Started by `tests.placement.peer`; imports nothing of cloudcore and of the tests. Each line on standard input is one
order, each line on standard output its answer:

    {"do": "world", "providers": [...]}     forget everything, store these; answers {"providers": n}
    {"do": "search", "queries": [...]}      GET /allocation_candidates for each; answers [{"status", ...}, ...]
    {"do": "find", "queries": [...]}        the same without HTTP, JSON and access rules: three times as fast
    {"do": "dump"}                          what is stored, in the form of "world"
    {"do": "call", "method", "path", "body", "version"}    any other request; answers {"status", "body"}
    {"do": "names", "classes", "traits"}    create custom names that no provider has

The database is SQLite in memory. A new world empties the tables of providers and allocations; the names of traits and
classes stay, as nothing deletes them in a running service either. Worlds are written straight into Placement's tables,
because its API takes seconds for what this does in milliseconds; that both ways store the same rows is a test.
"""

from __future__ import annotations

import json
import os
import sys

CONSUMER = "c0c0c0c0-0000-4000-8000-%012x"
VERSION = "placement 1.39"


class Placement:
    """The service with its WSGI application, and the short cut into its tables."""

    def __init__(self, connection: str = "sqlite://") -> None:
        from oslo_config import cfg
        from oslo_policy import opts as policy_options
        from placement import conf, db_api, deploy, policy
        from placement.db.sqlalchemy import models

        self.models = models
        config = cfg.ConfigOpts()
        conf.register_opts(config)
        config.set_override("connection", connection, group="placement_database")
        config.set_override("auth_strategy", "noauth2", group="api")
        policy_options.set_defaults(config, enforce_new_defaults=False)
        config([], default_config_files=[])
        config.set_override("policy_file", os.devnull, group="oslo_policy")
        policy.reset()
        db_api.configure(config)
        self.config = config
        self.engine = db_api.get_placement_engine()
        models.BASE.metadata.create_all(self.engine)
        self.application = deploy.loadapp(config)

    def call(self, method: str, path: str, body: object = None, version: str = VERSION) -> tuple[int, object]:
        """One request through the whole service, as its clients make it."""
        import webob

        headers = {"x-auth-token": "admin", "openstack-api-version": version, "accept": "application/json"}
        request = webob.Request.blank(path, method=method, headers=headers)
        if body is not None:
            request.content_type = "application/json"
            request.body = json.dumps(body).encode()
        response = request.get_response(self.application)
        return response.status_int, json.loads(response.body) if response.body else None

    def search(self, query: str) -> dict[str, object]:
        """Status, and the candidates or the error."""
        try:
            status, body = self.call("GET", f"/allocation_candidates?{query}")
        except Exception as error:  # a crash inside the peer is an answer to report
            return {"status": 500, "detail": repr(error)}
        if status != 200:
            error = body["errors"][0]
            return {"status": status, "code": error.get("code"), "detail": error["detail"]}
        candidates = [
            [{uuid: held["resources"] for uuid, held in request["allocations"].items()}, request["mappings"]]
            for request in body["allocation_requests"]
        ]
        return {"status": 200, "candidates": candidates}

    def names(self, table: object, wanted: set[str]) -> dict[str, int]:
        """Ids of classes or traits; custom ones are created on sight."""
        with self.engine.begin() as connection:
            known = {row.name: row.id for row in connection.execute(table.select())}
            for name in sorted(wanted - known.keys()):
                number = max(10_000, *known.values()) + 1
                connection.execute(table.insert().values(id=number, name=name))
                known[name] = number
        return known

    def world(self, providers: list[dict]) -> int:
        """Replace all that is stored by *providers* (parents before their children)."""
        m = self.models
        with self.engine.begin() as connection:
            for model in (m.Allocation, m.Consumer, m.Inventory, m.ResourceProviderTrait, m.ResourceProviderAggregate):
                connection.execute(model.__table__.delete())
            connection.execute(m.PlacementAggregate.__table__.delete())
            connection.exec_driver_sql("DELETE FROM resource_providers")
        classes = self.names(m.ResourceClass.__table__, {name for p in providers for name in p["inventories"]})
        traits = self.names(m.Trait.__table__, {name for p in providers for name in p["traits"]})
        rows = _Rows(providers, classes, traits)
        with self.engine.begin() as connection:
            for model, values in (
                (m.ResourceProvider, rows.providers),
                (m.Inventory, rows.inventories),
                (m.ResourceProviderTrait, rows.traits),
                (m.PlacementAggregate, rows.aggregates),
                (m.ResourceProviderAggregate, rows.members),
                (m.Project, rows.project),
                (m.User, rows.project),
                (m.Consumer, rows.consumers),
                (m.Allocation, rows.allocations),
            ):
                table = model.__table__
                if model in (m.Project, m.User) and connection.execute(table.select()).first():
                    continue
                if values:
                    connection.execute(table.insert(), values)
        return len(providers)

    def dump(self) -> list[dict]:
        """What is stored, in the form that `world` takes; parents first."""
        return dump(self.engine)

    def try_to_find(self, query: str) -> dict[str, object]:
        """What `search` answers, from the object layer."""
        import webob.exc

        try:
            return {"status": 200, "candidates": self.find(query)}
        except webob.exc.HTTPException as error:
            return {"status": error.status_int, "detail": str(error)}
        except Exception as error:
            return {"status": 500, "detail": repr(error)}

    def find(self, query: str) -> list:
        """Search in the object layer, without HTTP and access rules; the candidates as `search` lists them."""
        import microversion_parse
        import webob
        from placement import context, lib, microversion
        from placement.objects import allocation_candidate

        request = webob.Request.blank(f"/allocation_candidates?{query}")
        version = microversion_parse.Version(1, 39)
        version.min_version, version.max_version = microversion_parse.Version(1, 0), version
        request.environ[microversion.MICROVERSION_ENVIRON] = version
        call = context.RequestContext()
        call.config = self.config
        wide = lib.RequestWideParams.from_request(request)
        groups = lib.RequestGroup.dict_from_request(request, wide)
        answer = allocation_candidate.AllocationCandidates.get_by_requests(call, groups, wide)
        candidates = []
        for found in answer.allocation_requests:
            held: dict[str, dict[str, int]] = {}
            for part in found.resource_requests:
                held.setdefault(part.resource_provider.uuid, {})[part.resource_class] = part.amount
            candidates.append([held, {suffix: sorted(uuids) for suffix, uuids in found.mappings.items()}])
        return candidates


class _Rows:
    """A world as rows of Placement's tables."""

    def __init__(self, providers: list[dict], classes: dict[str, int], traits: dict[str, int]) -> None:
        ids = {provider["uuid"]: number for number, provider in enumerate(providers, 1)}
        roots: dict[str, int] = {}
        self.providers, self.inventories, self.traits, self.members = [], [], [], []
        self.consumers, self.allocations = [], []
        self.project = [{"id": 1, "external_id": "peer"}]
        pools = {uuid: number for number, uuid in enumerate(sorted({a for p in providers for a in p["aggregates"]}), 1)}
        self.aggregates = [{"id": number, "uuid": uuid} for uuid, number in pools.items()]
        for provider in providers:
            uuid, parent, number = provider["uuid"], provider["parent"], ids[provider["uuid"]]
            roots[uuid] = roots[parent] if parent else number
            self.providers.append(
                {
                    "id": number,
                    "uuid": uuid,
                    "name": provider["name"],
                    "generation": 0,
                    "parent_provider_id": ids[parent] if parent else None,
                    "root_provider_id": roots[uuid],
                }
            )
            for name, inventory in provider["inventories"].items():
                self.inventories.append(
                    {"resource_provider_id": number, "resource_class_id": classes[name], **inventory}
                )
            self.traits += [{"resource_provider_id": number, "trait_id": traits[name]} for name in provider["traits"]]
            self.members += [
                {"resource_provider_id": number, "aggregate_id": pools[aggregate]}
                for aggregate in provider["aggregates"]
            ]
            used = {name: amount for name, amount in provider["used"].items() if amount}
            if used:
                consumer = CONSUMER % number
                self.consumers.append({"uuid": consumer, "project_id": 1, "user_id": 1, "generation": 1})
            for name, amount in used.items():
                self.allocations.append(
                    {
                        "resource_provider_id": number,
                        "resource_class_id": classes[name],
                        "consumer_id": consumer,
                        "used": amount,
                    }
                )


def dump(engine: object) -> list[dict]:
    """What is stored, in the form that `world` takes; parents first."""
    from placement.db.sqlalchemy import models as m

    with engine.connect() as connection:

        def rows(model: object) -> list:
            return connection.execute(model.__table__.select()).fetchall()

        classes = {row.id: row.name for row in rows(m.ResourceClass)}
        traits = {row.id: row.name for row in rows(m.Trait)}
        aggregates = {row.id: row.uuid for row in rows(m.PlacementAggregate)}
        stored = rows(m.ResourceProvider)
        uuids = {row.id: row.uuid for row in stored}
        found = {}
        for row in stored:
            found[row.id] = {
                "name": row.name,
                "uuid": row.uuid,
                "parent": uuids.get(row.parent_provider_id),
                "inventories": {},
                "traits": [],
                "aggregates": [],
                "used": {},
            }
        fields = ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio")
        for row in rows(m.Inventory):
            inventories = found[row.resource_provider_id]["inventories"]
            inventories[classes[row.resource_class_id]] = {field: getattr(row, field) for field in fields}
        for row in rows(m.ResourceProviderTrait):
            found[row.resource_provider_id]["traits"].append(traits[row.trait_id])
        for row in rows(m.ResourceProviderAggregate):
            found[row.resource_provider_id]["aggregates"].append(aggregates[row.aggregate_id])
        for row in rows(m.Allocation):
            used, name = found[row.resource_provider_id]["used"], classes[row.resource_class_id]
            used[name] = used.get(name, 0) + row.used
    for provider in found.values():
        provider["traits"].sort()
        provider["aggregates"].sort()
    return _parents_first(list(found.values()))


def _parents_first(providers: list[dict]) -> list[dict]:
    by_parent: dict[str | None, list[dict]] = {}
    for provider in providers:
        by_parent.setdefault(provider["parent"], []).append(provider)
    ordered, pending = [], list(by_parent.get(None, []))
    while pending:
        provider = pending.pop(0)
        ordered.append(provider)
        pending += by_parent.get(provider["uuid"], [])
    return ordered


def serve(placement: Placement) -> None:
    """Answer orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the service prints must not reach the pipe of answers
    for line in sys.stdin:
        order = json.loads(line)
        kind = order.pop("do")
        if kind == "world":
            answer: object = {"providers": placement.world(order["providers"])}
        elif kind == "search":
            answer = [placement.search(query) for query in order["queries"]]
        elif kind == "find":
            answer = [placement.try_to_find(query) for query in order["queries"]]
        elif kind == "dump":
            answer = placement.dump()
        elif kind == "names":
            placement.names(placement.models.ResourceClass.__table__, set(order["classes"]))
            placement.names(placement.models.Trait.__table__, set(order["traits"]))
            answer = {}
        else:
            status, body = placement.call(
                order["method"], order["path"], order.get("body"), order.get("version", VERSION)
            )
            answer = {"status": status, "body": body}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    serve(Placement(*sys.argv[1:]))
