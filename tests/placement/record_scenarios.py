"""Record the scenarios of Placement's own functional tests: run by hand, when its version changes.

    pip install openstack-placement==16.0.0 gabbi wsgi-intercept oslotest testtools fixtures stestr osprofiler
    python tests/placement/record_scenarios.py > tests/placement/scenarios.json

Runs the functional tests that the openstack-placement wheel ships (gabbi files and the object-level tests of allocation
candidates). Each time one of them searches, the same search is made once more at microversion 1.39 without a limit, and
what is stored, the query and the answer are written down. Identifiers are random in each run: providers get one made of
their name, aggregates are numbered. Two tests that ask the same of the same world are one scenario.
"""

from __future__ import annotations

import io
import json
import re
import sys
import unittest
import urllib.parse
import uuid
from pathlib import Path

import peer_server

NOTICE = (
    "Worlds and queries are adapted from the functional tests of OpenStack Placement 16.0.0 (fixtures, gabbi files and "
    "object-level tests), Copyright its contributors, licensed under the Apache License, Version 2.0. Changes: "
    "identifiers replaced, queries made at microversion 1.39 without limit, answers recorded from that release."
)
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SCENARIOS: list[dict] = []
STATE = {"name": "?", "busy": False}


def record(query: str, status: int, candidates: list | None) -> None:
    """Keep one search with the world as it is."""
    from placement import db_api

    providers = peer_server.dump(db_api.get_placement_engine())
    SCENARIOS.append(
        {"test": STATE["name"], "query": query, "status": status, "candidates": candidates, "providers": providers}
    )


# ---------------------------------------------------------------------------------------------------------------- hooks


def hook_requests() -> None:
    """Repeat every search that comes in by HTTP."""
    from placement import handler
    from placement.objects import allocation_candidate

    original = handler.PlacementHandler.__call__

    def call(self: object, environ: dict, start_response: object) -> object:
        again = environ.get("REQUEST_METHOD") == "GET" and environ.get("PATH_INFO") == "/allocation_candidates"
        if again and not STATE["busy"]:
            STATE["busy"] = True
            try:
                repeat(deploy_config())
            finally:
                STATE["busy"] = False
        return original(self, environ, start_response)

    def deploy_config() -> object:
        from placement.tests.functional.fixtures import gabbits

        return gabbits.CONF

    def repeat(config: object) -> None:
        from placement import deploy

        pairs = urllib.parse.parse_qsl(STATE["query"], keep_blank_values=True)
        query = urllib.parse.urlencode([pair for pair in pairs if pair[0] != "limit"], safe=":,!")
        peer = peer_server.Placement.__new__(peer_server.Placement)
        peer.application = deploy.deploy(config)
        answer = peer.search(query)
        record(query, answer["status"], answer.get("candidates"))

    def remember(self: object, environ: dict, start_response: object) -> object:
        STATE["query"] = environ.get("QUERY_STRING", "")
        return call(self, environ, start_response)

    handler.PlacementHandler.__call__ = remember
    search = allocation_candidate.AllocationCandidates.get_by_requests.__func__

    def direct(cls: type, context: object, groups: dict, wide: object, nested_aware: bool = True) -> object:
        if not STATE["busy"] and "test_allocation_candidates" in STATE["name"]:
            limit, wide.limit = wide.limit, None
            answer = search(cls, context, groups, wide, nested_aware=True)
            record(as_query(groups, wide), 200, as_candidates(answer))
            wide.limit = limit
        return search(cls, context, groups, wide, nested_aware=nested_aware)

    allocation_candidate.AllocationCandidates.get_by_requests = classmethod(direct)


def as_candidates(answer: object) -> list:
    """Objects in the form of JSON."""
    found = []
    for request in answer.allocation_requests:
        held: dict[str, dict[str, int]] = {}
        for part in request.resource_requests:
            held.setdefault(part.resource_provider.uuid, {})[part.resource_class] = part.amount
        found.append([held, {suffix: sorted(uuids) for suffix, uuids in request.mappings.items()}])
    return found


def as_query(groups: dict, wide: object) -> str:
    """Objects in the form of a query string."""
    pairs = []
    for suffix, group in groups.items():
        pairs.append((f"resources{suffix}", ",".join(f"{name}:{n}" for name, n in group.resources.items())))
        pairs += [(f"required{suffix}", "in:" + ",".join(sorted(any_of))) for any_of in group.required_traits]
        pairs += [(f"required{suffix}", f"!{name}") for name in sorted(group.forbidden_traits)]
        pairs += [(f"member_of{suffix}", "in:" + ",".join(any_of)) for any_of in group.member_of]
        pairs += [(f"member_of{suffix}", f"!{name}") for name in sorted(group.forbidden_aggs)]
        pairs += [(f"in_tree{suffix}", group.in_tree)] if group.in_tree else []
    if wide.group_policy or len([suffix for suffix in groups if suffix]) > 1:
        pairs.append(("group_policy", wide.group_policy or "none"))
    pairs += [("same_subtree", ",".join(sorted(suffixes))) for suffixes in wide.same_subtrees]
    root = [*sorted(wide.anchor_required_traits or ()), *(f"!{t}" for t in sorted(wide.anchor_forbidden_traits or ()))]
    pairs += [("root_required", ",".join(root))] if root else []
    return urllib.parse.urlencode([pair for pair in pairs if pair[1]], safe=":,!")


def run() -> unittest.TestResult:
    """Run Placement's tests with the hooks in place."""
    import placement.tests
    from gabbi import driver
    from gabbi.case import HTTPTestCase
    from oslotest import output
    from placement.tests.functional import test_api
    from placement.tests.functional.db import test_allocation_candidates
    from placement.tests.functional.fixtures import capture, gabbits

    original = HTTPTestCase.setUp

    def named(self: HTTPTestCase) -> None:
        STATE["name"] = f"{type(self).__name__.removeprefix('placement.tests.functional.test_api.')}"
        original(self)

    HTTPTestCase.setUp = named
    base = test_allocation_candidates.tb.PlacementDbBaseTestCase
    original_base = base.setUp

    def named_base(self: unittest.TestCase) -> None:
        STATE["name"] = self.id().removeprefix("placement.tests.functional.db.")
        original_base(self)

    base.setUp = named_base
    folder = Path(placement.tests.__file__).parent / "functional" / "gabbits"
    loader = unittest.TestLoader()
    inner = [output.CaptureOutput, capture.Logging]
    web = driver.build_tests(
        str(folder),
        loader,
        host=None,
        test_loader_name=test_api.__name__,
        intercept=gabbits.setup_app,
        inner_fixtures=inner,
        fixture_module=gabbits,
    )
    wanted = unittest.TestSuite(suite for suite in web if re.search("cand|granular|subtree|shared", repr(suite)))
    tests = unittest.TestSuite([wanted, loader.loadTestsFromModule(test_allocation_candidates)])
    return unittest.TextTestRunner(stream=io.StringIO()).run(tests)


# ------------------------------------------------------------------------------------------------------------- clean-up


def normalised(scenario: dict) -> dict:
    """Identifiers and order that are the same in each run."""
    providers = scenario["providers"]
    for number, provider in enumerate(providers):
        if UUID.fullmatch(provider["name"]):
            provider["name"] = f"provider-{number}"
    new = {p["uuid"]: str(uuid.uuid5(uuid.NAMESPACE_OID, f"provider {p['name']}")) for p in providers}
    members: dict[str, list[str]] = {}
    for provider in providers:
        for aggregate in provider["aggregates"]:
            members.setdefault(aggregate, []).append(provider["name"])
    for number, aggregate in enumerate(sorted(members, key=lambda a: sorted(members[a])), 1):
        new.setdefault(aggregate, f"aaaaaaaa-0000-4000-8000-{number:012x}")

    def swap(match: re.Match) -> str:
        return new.setdefault(match[0], f"ffffffff-0000-4000-8000-{len(new):012x}")

    clean = json.loads(UUID.sub(swap, json.dumps(scenario)))
    for provider in clean["providers"]:
        provider["aggregates"].sort()
    clean["candidates"] = sorted(
        ([held, {suffix: sorted(uuids) for suffix, uuids in by.items()}] for held, by in clean["candidates"] or []),
        key=lambda pair: json.dumps(pair, sort_keys=True),
    )
    return clean


def main() -> None:
    """Run, clean up, print."""
    hook_requests()
    result = run()
    worlds: dict[str, int] = {}
    seen: dict[tuple[int, str], dict] = {}
    for scenario in map(normalised, SCENARIOS):
        world = worlds.setdefault(json.dumps(scenario.pop("providers"), sort_keys=True), len(worlds))
        seen.setdefault((world, scenario["query"]), {**scenario, "world": world})
    print('{"notice": ' + json.dumps(NOTICE) + ',\n "worlds": [')
    print(",\n".join(worlds))
    print('],\n "scenarios": [')
    print(",\n".join(json.dumps(scenario, sort_keys=True) for scenario in seen.values()))
    print("]}")
    failed = len(result.failures) + len(result.errors)
    print(
        f"{result.testsRun} tests, {failed} failed, {len(worlds)} worlds, {len(seen)} scenarios "
        f"of {len(SCENARIOS)} searches",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
