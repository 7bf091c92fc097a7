"""``GET /allocation_candidates``."""

from __future__ import annotations

from typing import Any

from placement_api.calls import Answer, Call, now, require, require_json_accepted
from placement_api.cloud import Cloud
from placement_api.queries import candidate_request

from cloudcore.placement import Candidate, ResourceRequest


class Candidates:
    """The search."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def list(self, call: Call) -> Answer:
        require(call, (1, 10))
        require_json_accepted(call)
        request = candidate_request(call, self._cloud)
        found = list(self._cloud.tree.candidates(request))
        if call.version < (1, 29):  # such clients do not know of nested providers
            found = [each for each in found if _flat(each)]
        body = {
            "allocation_requests": [_request(each, call) for each in found],
            "provider_summaries": _summaries(found, request, call),
        }
        return Answer(body=body, modified=now())


def _flat(candidate: Candidate) -> bool:
    used = candidate.allocations
    roots = [provider.root for provider in candidate.providers if provider.uuid in used]
    return len(roots) == len(set(roots))


def _request(candidate: Candidate, call: Call) -> dict[str, Any]:
    if call.version >= (1, 34):
        return candidate.as_placement()
    if call.version >= (1, 12):
        return {"allocations": candidate.as_placement()["allocations"]}
    return {
        "allocations": [
            {"resource_provider": {"uuid": provider}, "resources": amounts}
            for provider, amounts in candidate.allocations.items()
        ]
    }


def _summaries(found: list[Candidate], request: ResourceRequest, call: Call) -> dict[str, Any]:
    """Of every provider of every tree that gives something; until 1.28 of those alone that give."""
    summaries: dict[str, Any] = {}
    for candidate in found:
        summaries.update(candidate.summaries())
    if call.version < (1, 29):
        giving = {provider for candidate in found for provider in candidate.allocations}
        summaries = {provider: summaries[provider] for provider in summaries if provider in giving}
    asked = {name for group in request.groups.values() for name in group.resources}
    for summary in summaries.values():
        if call.version < (1, 27):
            summary["resources"] = {name: each for name, each in summary["resources"].items() if name in asked}
        if call.version < (1, 17):
            del summary["traits"]
        if call.version < (1, 29):
            del summary["parent_provider_uuid"], summary["root_provider_uuid"]
    return summaries
