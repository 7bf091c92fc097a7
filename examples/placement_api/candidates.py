"""``GET /allocation_candidates``."""

from __future__ import annotations

from typing import Any

from placement_api.calls import Answer, Call, Problem, now, require, require_json_accepted
from placement_api.cloud import Cloud
from placement_api.queries import candidate_request, require_names

from cloudcore.errors import InvalidRequest
from cloudcore.placement import Candidate, ResourceRequest


class Candidates:
    """The search."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def list(self, call: Call) -> Answer:
        require(call, (1, 10))
        require_json_accepted(call)
        request = candidate_request(call, self._cloud)
        try:
            found = list(self._cloud.tree.candidates(request))
        except InvalidRequest as error:  # a name that nobody made: the tree is strict
            for group in request.groups.values():
                require_names(self._cloud, group.resources, group.forbidden.union(*group.required))
            require_names(self._cloud, (), request.root_required | request.root_forbidden)
            raise Problem(400, str(error)) from error
        if call.version < (1, 29):  # such clients do not know of nested providers
            found = [each for each in found if _flat(each)]
        requests = [_request(each, call) for each in found]
        body = {
            "allocation_requests": requests,
            "provider_summaries": _summaries(found, requests, request, call),
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


def _summaries(
    found: list[Candidate], requests: list[dict[str, Any]], request: ResourceRequest, call: Call
) -> dict[str, Any]:
    """Of every provider of every tree that gives something; until 1.28 of those alone that give."""
    summaries: dict[str, Any] = {}
    for candidate, given in zip(found, requests, strict=True):
        held = given["allocations"]
        if not isinstance(held, dict) or any(provider not in summaries for provider in held):
            summaries.update(candidate.summaries())  # those of one host have the same
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
