"""The other side of `peer_server`: real Placement as an object, and what is known to be wrong with it.

    with Peer() as peer:
        peer.load(world)
        answers = peer.search([request.query(), ...])     # Answer(status, candidates, ...)

`excused(world, request)` names the known mistake of Placement 16.0.0 that makes its answer worthless for a request, or
is None: the two must agree then.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Self

import attrs
import pytest

from bench.harness import peer_env
from tests.placement import oracle
from tests.placement.worlds import CLASSES, TRAITS, Provider, Request, World

SERVER = Path(__file__).with_name("peer_server.py")


def peer_python() -> Path:
    """The Python of the environment that has openstack-placement: the benchmarks' own; built when it is missing."""
    try:
        return peer_env("placement", "openstack-placement==16.0.0")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no environment with openstack-placement can be made: {error.stderr}")


@attrs.frozen
class Answer:
    """What the peer says to one query."""

    status: int
    candidates: frozenset[oracle.Candidate] | None = None
    count: int = 0
    code: str | None = None
    detail: str | None = None


class Peer:
    """One process with the real Placement. Not for two threads at once."""

    def __init__(self, python: Path, hash_seed: int = 0) -> None:
        self._process = subprocess.Popen(
            [python, SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PYTHONHASHSEED": str(hash_seed), "PATH": "/usr/bin:/bin"},
        )
        try:
            self.ask("names", classes=CLASSES, traits=TRAITS)
        except BaseException:
            self.close()
            raise

    def ask(self, kind: str, **order: object):
        """Send an order of `peer_server` and wait for its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": kind, **order}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer died with {self._process.wait(10)} over {kind}")
        return json.loads(line)

    def load(self, world: World) -> None:
        """Make *world* all that the peer knows."""
        self.ask("world", providers=world.for_peer())

    def search(self, queries: list[str]) -> list[Answer]:
        """Ask each of *queries* as a client does."""
        return [_answer(raw) for raw in self.ask("search", queries=queries)]

    def find(self, queries: list[str]) -> list[Answer]:
        """Ask each of *queries* below HTTP, which is faster; names that do not exist end in status 500."""
        return [_answer(raw) for raw in self.ask("find", queries=queries)]

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _answer(raw: dict) -> Answer:
    if raw["status"] != 200:
        return Answer(raw["status"], code=raw.get("code"), detail=raw["detail"])
    found = [identity(*pair) for pair in raw["candidates"]]
    return Answer(200, frozenset(found), len(found))


def identity(allocations: dict[str, dict[str, int]], mappings: dict[str, list[str]]) -> oracle.Candidate:
    """A candidate in the form in which the tests compare them."""
    return (
        frozenset((uuid, name, amount) for uuid, held in allocations.items() for name, amount in held.items()),
        frozenset((suffix, frozenset(uuids)) for suffix, uuids in mappings.items()),
    )


def excused(world: World, request: Request) -> str | None:
    """The mistake of the peer that this request runs into, by rule and not by its answer."""
    if _resourceless_without_positive_filter(request):
        return "a group without resources that only forbids, or has only in_tree, matches nothing"
    if _shares_a_class(request) and request.group_policy != "none":
        return "amounts are added up in objects that several candidates hold"
    if _pool_alone_serves_unsuffixed(world, request):
        return "candidates of several roots are taken for one when pools alone serve the unsuffixed group"
    if "" in request.groups and any(p.shares and p.parent is not None for p in world.providers):
        return "error 500 when a sharing provider is the child of a tree that does not qualify"
    return None


def _resourceless_without_positive_filter(request: Request) -> bool:
    return any(
        not group.resources and (not (group.required or group.member_of) or group.in_tree)
        for group in request.groups.values()
    )


def _shares_a_class(request: Request) -> bool:
    unsuffixed = request.groups.get("")
    return unsuffixed is not None and any(
        unsuffixed.resources.keys() & group.resources.keys() for group in request.suffixed.values()
    )


def _pool_alone_serves_unsuffixed(world: World, request: Request) -> bool:
    """Some choice of sharing providers serves the unsuffixed group under two roots, and there are other groups."""
    if "" not in request.groups or not request.suffixed:
        return False
    seen: set[frozenset[tuple[str, str]]] = set()
    for root in world.roots:
        for option in oracle.options(world, root, "", request.groups[""]):
            if all(_shares(provider) for provider in option.values()):
                key = frozenset((name, provider.uuid) for name, provider in option.items())
                if key in seen:
                    return True
                seen.add(key)
    return False


def _shares(provider: Provider) -> bool:
    return provider.shares and bool(provider.aggregates)
