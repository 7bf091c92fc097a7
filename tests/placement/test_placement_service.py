"""Reading a running Placement: what is no answer of Placement's is never taken for an empty cloud."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest
from keystoneauth1 import noauth
from keystoneauth1.session import Session as Keystone

from cloudcore.errors import Unavailable
from cloudcore.placement import Inventory, PlacementTree

A = "aaaaaaaa-0000-0000-0000-00000000000a"
B = "bbbbbbbb-0000-0000-0000-00000000000b"
Answers = Mapping[str, tuple[int, Any]]

LIST = {
    "/resource_providers": (
        200,
        {"resource_providers": [{"uuid": A, "name": "cn1"}, {"uuid": B, "name": "cn2", "parent_provider_uuid": A}]},
    )
}


def parts_of(uuid: str) -> dict[str, tuple[int, Any]]:
    path = f"/resource_providers/{uuid}"
    return {
        path: (200, {"uuid": uuid}),
        f"{path}/inventories": (200, {"inventories": {"VCPU": {"total": 8}}}),
        f"{path}/traits": (200, {"traits": ["CUSTOM_A"]}),
        f"{path}/aggregates": (200, {"aggregates": []}),
        f"{path}/usages": (200, {"usages": {"VCPU": 3}}),
    }


class Service:
    """A session that gives these answers, 404 for every other path; an exception is raised."""

    def __init__(self, *answers: Answers) -> None:
        self.answers = {path: answer for each in answers for path, answer in each.items()}

    def get(self, url: str, **_: Any) -> Any:
        status, body = self.answers.get(url, (404, {"error": "no such page"}))
        if isinstance(body, Exception) and not status:
            raise body

        class Answer:
            status_code = status

            @staticmethod
            def json() -> Any:
                if isinstance(body, Exception):
                    raise body
                return body

        return Answer


def test_what_is_there_is_read() -> None:
    tree = PlacementTree.from_service(Service(LIST, parts_of(A), parts_of(B)))
    assert [(each.name, each.inventories, each.traits) for each in tree] == [
        (name, {"VCPU": Inventory(8)}, {"CUSTOM_A"}) for name in ("cn1", "cn2")
    ]
    assert tree.usage("cn2") == {"VCPU": 3}


def test_an_empty_cloud_is_one_that_says_so() -> None:
    assert not list(PlacementTree.from_service(Service({"/resource_providers": (200, {"resource_providers": []})})))


def test_a_provider_that_went_meanwhile_is_left_out_with_all_below_it() -> None:
    assert [each.name for each in PlacementTree.from_service(Service(LIST, parts_of(A)))] == ["cn1"]
    assert not list(PlacementTree.from_service(Service(LIST, parts_of(B))))


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"/resource_providers": (200, {"versions": []})},
        {"/resource_providers": (200, ["cn1"])},
        {"/resource_providers": (200, ValueError("<html>"))},
        {"/resource_providers": (0, ConnectionResetError("gone"))},
        {**parts_of(A), f"/resource_providers/{A}/traits": (404, {})},
        {**parts_of(A), f"/resource_providers/{A}/usages": (200, {"error": "upstream"})},
        {**parts_of(A), f"/resource_providers/{A}/usages": (503, {})},
        {**parts_of(A), f"/resource_providers/{A}/usages": (0, TimeoutError("too long"))},
    ],
)
def test_what_is_no_answer_is_unavailable(answers: Answers) -> None:
    """Nobody there, somebody else there, or one that knows a provider but not its parts (of another version)."""
    service = Service(LIST, parts_of(B), answers) if any("aggregates" in path for path in answers) else Service(answers)
    with pytest.raises(Unavailable, match="GET /resource_providers"):
        PlacementTree.from_service(service)


def test_a_session_that_reaches_nobody_is_unavailable() -> None:
    """keystoneauth's own errors are none of the usual ones."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen: nobody else can, either
        session = Keystone(auth=noauth.NoAuth(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(Unavailable, match="GET /resource_providers"):
            PlacementTree.from_service(session)
