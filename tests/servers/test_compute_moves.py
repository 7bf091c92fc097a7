"""Moves of the compute API's servers: late repeats, and death before and after every step of every call."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloudcore.errors import DatabaseUnavailable, InstanceNotFound, InvalidTransition, OperationMismatch
from tests.services._host import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "examples"))
from compute_api.cloud import FLAVORS, Caller, ComputeCloud, open_cloud

ADA = Caller(project_id="blue", user_id="ada")
STEPS = {
    "store": ("update", "delete"),
    "ledger": ("confirm_move", "revert_move", "release"),
    "manager": ("begin_move", "confirm_move", "revert_move", "terminate"),
    "selector": ("select_destination",),
    "database": ("run",),  # the application's own table
}


class Died(BaseException):
    """Stands for ``kill -9``: nobody handles it."""


class Steps:
    """Counts the steps that a call takes of its own, and dies before one of them."""

    def __init__(self, cloud: ComputeCloud, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.within = False
        for part, names in STEPS.items():
            for name in names:
                step = getattr(getattr(cloud, part), name)
                patch.setattr(getattr(cloud, part), name, partial(self._take, step))

    def _take(self, step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.within:  # what the library does within a step is its own affair
            return step(*arguments, **named)
        if self.left == 0:
            raise Died
        if self.left is not None:
            self.left -= 1
        self.within = True
        try:
            return step(*arguments, **named)
        finally:
            self.within = False

    def dies(self, before: int, call: Callable[[], None]) -> bool:
        """Make *call*, to die before that step; whether it did."""
        self.left = before
        try:
            call()
        except Died:
            return True
        finally:
            self.left = None
        return False


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[ComputeCloud]:
    opened = open_cloud(tmp_path)
    yield opened
    opened.close()


def boot(cloud: ComputeCloud, name: str, flavor: str = "1") -> str:
    wanted = {"name": name, "flavor": flavor}
    return str(cloud.boot(ADA, f"{name}-boot", wanted)["uuid"])


def shown(cloud: ComputeCloud, server: str) -> tuple[str, str, str]:
    found = cloud.server(ADA, server)
    return found["vm_state"], found["host"], found["flavor"]


def agree(cloud: ComputeCloud, server: str) -> None:
    """Record, ledger and volumes say the same of a server that is in no move, or of one that is gone."""
    assert not [move for move in cloud.ledger.moves() if move.instance == server]
    held = {cloud.tree[provider].name: amounts for provider, amounts in cloud.ledger.allocations(server).items()}
    attached = {each.host for each in cloud.manager.attachments(instance_id=server)}
    assert cloud.manager.move(server) is None
    try:
        state, host, flavor = shown(cloud, server)
    except InstanceNotFound:
        assert (held, attached) == ({}, set())
        return
    assert state == "active"
    assert {name: amounts["VCPU"] for name, amounts in held.items()} == {host: FLAVORS[flavor]["vcpus"]}
    assert attached <= {host}


def test_a_late_repeat_of_a_move_changes_nothing(cloud: ComputeCloud) -> None:
    """Its own move has ended; the server is elsewhere, of another flavor, or on its way by another move."""
    server = boot(cloud, "late")
    cloud.move(ADA, server, "m1", "cold")
    cloud.confirm(ADA, server)
    cloud.move(ADA, server, "r1", "resize", "2")
    cloud.revert(ADA, server)
    cloud.move(ADA, server, "r2", "resize", "3")
    during = shown(cloud, server)
    for repeat in (("m1", "cold"), ("r1", "resize", "2")):
        cloud.move(ADA, server, *repeat)
        assert shown(cloud, server) == during
    cloud.confirm(ADA, server)
    after = shown(cloud, server)
    assert after == ("active", during[1], "3")
    for repeat in (("m1", "cold"), ("r1", "resize", "2"), ("r2", "resize", "3")):
        cloud.move(ADA, server, *repeat)
        assert shown(cloud, server) == after
        with pytest.raises(InvalidTransition):
            cloud.confirm(ADA, server)
    agree(cloud, server)
    for other in (("m1", "resize", "3"), ("r2", "resize", "2"), ("r1", "cold")):
        with pytest.raises(OperationMismatch):
            cloud.move(ADA, server, *other)
    with pytest.raises(OperationMismatch):
        cloud.move(ADA, boot(cloud, "other"), "m1", "cold")


def test_a_confirmation_that_the_volumes_refuse_leaves_both_ends_open(
    cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, end in enumerate((cloud.confirm, cloud.revert)):
        server = prepared(cloud, f"open-{number}", "confirm")
        with monkeypatch.context() as patch:
            patch.setattr(cloud.manager, "confirm_move", lambda _: (_ for _ in ()).throw(DatabaseUnavailable("away")))
            with pytest.raises(DatabaseUnavailable):
                cloud.confirm(ADA, server)
        end(ADA, server)
        agree(cloud, server)


def prepared(cloud: ComputeCloud, name: str, call: str) -> str:
    """A server with a volume, in a move if *call* is to end one."""
    server = boot(cloud, name)
    volume = cloud.volume(ADA, f"{name}-volume", 1, multiattach=False)
    cloud.attach(ADA, server, f"{name}-attach", volume.id, None)
    if call != "move":
        cloud.move(ADA, server, f"{name}-move", "resize", "2")
    return server


def make(cloud: ComputeCloud, call: str, server: str, name: str) -> None:
    if call == "move":
        cloud.move(ADA, server, f"{name}-move", "resize", "2")
    else:
        {"confirm": cloud.confirm, "revert": cloud.revert, "delete": cloud.delete}[call](ADA, server)


@pytest.mark.parametrize(("call", "count"), [("move", 4), ("confirm", 3), ("revert", 3), ("delete", 3)])
def test_whatever_step_a_call_dies_at_every_way_leads_out(
    cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch, call: str, count: int
) -> None:
    """The call repeated; the one end of the move, or if that is refused the other; the server deleted.

    From a deletion that had begun only its repeat does.
    """
    steps = Steps(cloud, monkeypatch)
    ways = ["delete"] if call == "delete" else sorted({call, "confirm", "revert", "delete"})
    for number in range(count + 1):
        for way in ways:
            name = f"{call}-{number}-{way}"
            server = prepared(cloud, name, call)
            assert steps.dies(number, partial(make, cloud, call, server, name)) == (number < count)
            leave(cloud, server, name, way)
            agree(cloud, server)
            with contextlib.suppress(InstanceNotFound):
                cloud.delete(ADA, server)
            agree(cloud, server)


def leave(cloud: ComputeCloud, server: str, name: str, way: str) -> None:
    """Go that way; a move that is under way then is ended, the other way if need be."""
    refused = []
    for each in (way, "confirm", "revert"):
        try:
            make(cloud, each, server, name)
        except InstanceNotFound:
            return
        except InvalidTransition:
            refused.append(each)
    assert "move" not in refused
    assert "delete" not in refused
