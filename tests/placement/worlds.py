"""Forests and requests for the tests of the search: values, a generator, their forms for the peer and for cloudcore.

One generator serves both hypothesis and seeded runs: it asks a *chooser* for every decision.

    world, request = generated(seed)                     # the same for the same seed, in every process
    @given(cases())                                      # shrinks

A `World` is a tuple of providers, parents first. A `Request` renders itself with `query()` as the query string of
GET /allocation_candidates. Sizes are chosen so that most requests find something and no answer holds more than some
hundred candidates: the peer's time grows with the product of the options of all groups.
"""

from __future__ import annotations

import random
import re
import urllib.parse
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import attrs
from hypothesis import strategies as st

NO_LIMIT = 2**31 - 1
SHARING = "MISC_SHARES_VIA_AGGREGATE"
CLASSES = ("VCPU", "MEMORY_MB", "DISK_GB", "SRIOV_NET_VF", "CUSTOM_GOLD")
TRAITS = ("HW_NUMA_ROOT", "CUSTOM_A", "CUSTOM_B", "CUSTOM_PHYSNET_1", "CUSTOM_PHYSNET_2")
AGGREGATES = tuple(f"aaaaaaaa-0000-4000-8000-{n:012x}" for n in range(1, 5))
UNKNOWN_UUID = "ffffffff-0000-4000-8000-000000000000"


@attrs.frozen(kw_only=True)
class Stock:
    """The inventory of one class on one provider, with what is used of it."""

    total: int
    reserved: int = 0
    min_unit: int = 1
    max_unit: int = NO_LIMIT
    step_size: int = 1
    allocation_ratio: float = 1.0
    used: int = 0

    @property
    def limits(self) -> dict[str, int | float]:
        """Placement's form of the inventory."""
        return {name: value for name, value in attrs.asdict(self).items() if name != "used"}


@attrs.frozen(kw_only=True, eq=False)
class Provider:
    """One resource provider of a world."""

    name: str
    uuid: str
    parent: str | None = None
    stock: dict[str, Stock] = attrs.field(factory=dict)
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()

    @property
    def shares(self) -> bool:
        """It gives to other trees, if it has an aggregate in common with them."""
        return SHARING in self.traits


@attrs.frozen(eq=False, slots=False)
class World:
    """A forest, parents before their children."""

    providers: tuple[Provider, ...]

    @cached_property
    def by_uuid(self) -> dict[str, Provider]:
        return {provider.uuid: provider for provider in self.providers}

    @cached_property
    def by_name(self) -> dict[str, Provider]:
        return {provider.name: provider for provider in self.providers}

    @cached_property
    def _lines(self) -> dict[str, list[Provider]]:
        lines: dict[str, list[Provider]] = {}
        for provider in self.providers:
            lines[provider.uuid] = [provider, *(lines[provider.parent] if provider.parent else [])]
        return lines

    def lineage(self, provider: Provider) -> list[Provider]:
        """The provider, its parent, and so on to its root."""
        return self._lines[provider.uuid]

    def root(self, provider: Provider) -> Provider:
        return self._lines[provider.uuid][-1]

    @cached_property
    def roots(self) -> list[Provider]:
        return [provider for provider in self.providers if provider.parent is None]

    def tree(self, root: Provider) -> list[Provider]:
        return [provider for provider in self.providers if self.root(provider) is root]

    def unused(self) -> World:
        """The same forest with nothing in use."""

        def freed(each: Provider) -> Provider:
            return attrs.evolve(each, stock={name: attrs.evolve(stock, used=0) for name, stock in each.stock.items()})

        return World(tuple(freed(each) for each in self.providers))

    def for_peer(self) -> list[dict]:
        """The form that `peer_server` stores."""
        return [
            {
                "name": provider.name,
                "uuid": provider.uuid,
                "parent": provider.parent,
                "inventories": {name: stock.limits for name, stock in sorted(provider.stock.items())},
                "traits": sorted(provider.traits),
                "aggregates": sorted(provider.aggregates),
                "used": {name: stock.used for name, stock in sorted(provider.stock.items()) if stock.used},
            }
            for provider in self.providers
        ]

    @classmethod
    def from_peer(cls, providers: list[dict]) -> World:
        return cls(
            tuple(
                Provider(
                    name=provider["name"],
                    uuid=provider["uuid"],
                    parent=provider["parent"],
                    stock={
                        name: Stock(**limits, used=provider["used"].get(name, 0))
                        for name, limits in provider["inventories"].items()
                    },
                    traits=frozenset(provider["traits"]),
                    aggregates=frozenset(provider["aggregates"]),
                )
                for provider in providers
            )
        )


@attrs.frozen(kw_only=True)
class Group:
    """One group of a request. *required* and *member_of* are AND-ed sets of alternatives."""

    resources: dict[str, int] = attrs.field(factory=dict)
    required: tuple[frozenset[str], ...] = ()
    forbidden: frozenset[str] = frozenset()
    member_of: tuple[frozenset[str], ...] = ()
    not_member_of: frozenset[str] = frozenset()
    in_tree: str | None = None

    def parameters(self, suffix: str) -> list[tuple[str, str]]:
        """Query parameters in Placement's language."""
        pairs = []
        if self.resources:
            pairs.append(("resources", ",".join(f"{name}:{amount}" for name, amount in self.resources.items())))
        plain = [next(iter(any_of)) for any_of in self.required if len(any_of) == 1]
        plain += [f"!{name}" for name in sorted(self.forbidden)]
        if plain:
            pairs.append(("required", ",".join(plain)))
        pairs += [("required", "in:" + ",".join(sorted(any_of))) for any_of in self.required if len(any_of) > 1]
        for any_of in self.member_of:
            text = ",".join(sorted(any_of))
            pairs.append(("member_of", text if len(any_of) == 1 else f"in:{text}"))
        if len(self.not_member_of) == 1:
            pairs.append(("member_of", f"!{next(iter(self.not_member_of))}"))
        elif self.not_member_of:
            pairs.append(("member_of", "!in:" + ",".join(sorted(self.not_member_of))))
        if self.in_tree:
            pairs.append(("in_tree", self.in_tree))
        return [(f"{name}{suffix}", value) for name, value in pairs]


@attrs.frozen(kw_only=True)
class Request:
    """A whole request; the group of the empty suffix is the unsuffixed one."""

    groups: dict[str, Group]
    group_policy: str | None = None
    same_subtree: tuple[frozenset[str], ...] = ()
    root_required: frozenset[str] = frozenset()
    root_forbidden: frozenset[str] = frozenset()

    def query(self) -> str:
        """The query string."""
        pairs = [pair for suffix, group in self.groups.items() for pair in group.parameters(suffix)]
        if self.group_policy:
            pairs.append(("group_policy", self.group_policy))
        pairs += [("same_subtree", ",".join(sorted(suffixes))) for suffixes in self.same_subtree]
        root = [*sorted(self.root_required), *(f"!{name}" for name in sorted(self.root_forbidden))]
        if root:
            pairs.append(("root_required", ",".join(root)))
        return urllib.parse.urlencode(pairs, safe=":,!")

    @classmethod
    def from_query(cls, query: str) -> Request:
        """Read a valid query string; only for those that other people's tests hold."""
        groups: dict[str, dict] = {}
        wide: dict[str, list[str]] = {}
        for key, value in urllib.parse.parse_qsl(query):
            value = value.strip()
            match = re.fullmatch(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})?", key)
            if match is None:
                wide.setdefault(key, []).append(value)
                continue
            group = groups.setdefault(match[2] or "", {"required": [], "member_of": []})
            if match[1] == "resources":
                group["resources"] = {name: int(n) for name, n in (part.split(":") for part in value.split(","))}
            elif match[1] == "in_tree":
                group["in_tree"] = value
            else:
                group[match[1]].append(value)
        return cls(
            groups={suffix: _group_of(**group) for suffix, group in groups.items()},
            group_policy=wide.get("group_policy", [None])[0],
            same_subtree=tuple(frozenset(value.split(",")) for value in wide.get("same_subtree", [])),
            root_required=frozenset(_plain(wide.get("root_required", []))),
            root_forbidden=frozenset(_forbidden(wide.get("root_required", []))),
        )

    @property
    def suffixed(self) -> dict[str, Group]:
        return {suffix: group for suffix, group in self.groups.items() if suffix}


def _plain(values: list[str]) -> list[str]:
    return [
        name for value in values if not value.startswith(("in:", "!in:")) for name in value.split(",") if name[0] != "!"
    ]


def _forbidden(values: list[str]) -> list[str]:
    parts = [value.removeprefix("!in:") for value in values if not value.startswith("in:")]
    banned = [value.startswith("!in:") for value in values if not value.startswith("in:")]
    return [
        name.lstrip("!")
        for part, all_of_it in zip(parts, banned, strict=True)
        for name in part.split(",")
        if all_of_it or name[0] == "!"
    ]


def _sets(values: list[str]) -> tuple[frozenset[str], ...]:
    """AND-ed sets of alternatives."""
    alternatives = [frozenset(value[3:].split(",")) for value in values if value.startswith("in:")]
    return (*alternatives, *(frozenset([name]) for name in _plain(values)))


def _group_of(required: list[str], member_of: list[str], **others: Any) -> Group:
    return Group(
        required=_sets(required),
        forbidden=frozenset(_forbidden(required)),
        member_of=_sets(member_of),
        not_member_of=frozenset(_forbidden(member_of)),
        **others,
    )


# ------------------------------------------------------------------------------------------------------------- choosers


class Chooser:
    """Makes every decision of the generator. The first alternative is the simplest."""

    def __init__(self, integer: Callable[[int, int], int]) -> None:
        self.integer = integer

    def one(self, alternatives: Sequence):
        return alternatives[self.integer(0, len(alternatives) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent

    def some(self, alternatives: Sequence, minimum: int = 0, maximum: int | None = None) -> list:
        """Distinct ones, in the order given."""
        most = min(len(alternatives), maximum or len(alternatives))
        count = self.integer(min(minimum, most), most)
        left = list(range(len(alternatives)))
        picked = [left.pop(self.integer(0, len(left) - 1)) for _ in range(count)]
        return [alternatives[index] for index in sorted(picked)]


def seeded(seed: int) -> Chooser:
    """Decisions that depend on *seed* alone."""
    return Chooser(random.Random(seed).randint)


# --------------------------------------------------------------------------------------------------------------- worlds


def choose_stock(choose: Chooser, total: int) -> Stock:
    """Mostly plain, sometimes with every limit that an inventory can have; sometimes used, even too much."""
    if not choose.chance(25):
        return Stock(total=total, used=choose.integer(0, total) if choose.chance(20) else 0)
    reserved = choose.integer(0, total)
    ratio = choose.one((1.0, 1.0, 1.5, 2.0, 0.5, 0.29, 16.0, 0.0))
    return Stock(
        total=total,
        reserved=reserved if choose.chance(40) else 0,
        min_unit=choose.one((1, 1, 2, 3)),
        max_unit=choose.one((NO_LIMIT, NO_LIMIT, 1, 2, 4)),
        step_size=choose.one((1, 1, 2, 3)),
        allocation_ratio=ratio,
        used=choose.integer(0, total + 2) if choose.chance(40) else 0,
    )


class _Builder:
    def __init__(self, choose: Chooser) -> None:
        self.choose = choose
        self.providers: list[Provider] = []

    def add(self, kind: str, parent: Provider | None, classes: Sequence[str], traits: Sequence[str] = ()) -> Provider:
        choose = self.choose
        number = len(self.providers)
        often = 35 if parent is None else 15
        # The order of uuids, of names and of creation all differ, so that no answer depends on one of them by chance.
        uuid = f"{choose.integer(0, 15):x}{number:07x}-0000-4000-8000-{number:012x}"
        extra = choose.some(TRAITS, 1, 2) if choose.chance(30) else []
        provider = Provider(
            name=f"{kind}{number}",
            uuid=uuid,
            parent=parent.uuid if parent else None,
            stock={name: choose_stock(choose, choose.one((4, 8, 1, 2, 3, 6))) for name in classes},
            traits=frozenset([*traits, *extra]),
            aggregates=frozenset(choose.some(AGGREGATES[:3], 1, 2) if choose.chance(often) else []),
        )
        self.providers.append(provider)
        return provider

    def host(self) -> None:
        """A compute node without children."""
        self.add("host", None, self.choose.some(CLASSES[:3], 2))

    def numa(self) -> None:
        """Compute node, NUMA nodes, physical functions."""
        choose = self.choose
        root = self.add("cn", None, ["DISK_GB"] if choose.chance(70) else [])
        for _ in range(choose.one((2, 2, 1))):
            node = self.add("numa", root, ["VCPU", "MEMORY_MB"], ["HW_NUMA_ROOT"] if choose.chance(80) else [])
            for _ in range(choose.integer(0, 2)):
                self.add("pf", node, ["SRIOV_NET_VF"], [choose.one(TRAITS[3:])] if choose.chance(60) else [])

    def agents(self) -> None:
        """Compute node with resources, agents without any, devices under them."""
        choose = self.choose
        root = self.add("cn", None, ["VCPU", "DISK_GB"] if choose.chance(70) else ["VCPU"])
        agent = self.add("agent", root, [], [choose.one(TRAITS[1:3])] if choose.chance(60) else [])
        for _ in range(choose.integer(1, 3)):
            self.add("dev", agent, ["SRIOV_NET_VF"], [choose.one(TRAITS[3:])])

    def pool(self) -> None:
        """A sharing provider, mostly a root of its own; sometimes with aggregates that nobody else has, or none."""
        choose = self.choose
        classes = ["DISK_GB"] if choose.chance(70) else choose.some(CLASSES, 1, 2)
        parent = choose.one(self.providers) if self.providers and choose.chance(15) else None
        provider = self.add("pool", parent, classes, [SHARING])
        groups = choose.some(AGGREGATES[:3], 1, 2) if choose.chance(90) else []
        self.providers[-1] = attrs.evolve(provider, aggregates=frozenset(groups))

    def anything(self) -> None:
        """A tree of any shape."""
        choose = self.choose
        own = [self.add("any", None, choose.some(CLASSES, 0, 2))]
        for _ in range(choose.integer(0, 4)):
            own.append(self.add("any", choose.one(own), choose.some(CLASSES, 0, 2)))


def choose_world(choose: Chooser, most: int = 10) -> World:
    """A forest of one to four trees of up to 14 providers, partly used; or as many trees as make *most* providers."""
    builder = _Builder(choose)
    kinds = (builder.host, builder.numa, builder.agents, builder.anything, builder.pool)
    favourite = choose.one(kinds[:4])
    for _ in range(choose.integer(1, 3) if most == 10 else most):
        (favourite if choose.chance(60) else choose.one(kinds))()
        if len(builder.providers) > most:
            break
    if choose.chance(45):
        builder.pool()
    return World(tuple(builder.providers))


# ------------------------------------------------------------------------------------------------------------- requests


def _alternatives(choose: Chooser, names: Sequence[str], wanted: Sequence[str]) -> frozenset[str]:
    """One of *wanted*, alone or with others of *names*; any of *names* when nothing is wanted or by chance."""
    start = [choose.one(wanted)] if wanted and choose.chance(85) else [choose.one(names)]
    return frozenset([*start, *choose.some(names, 1, 2)] if choose.chance(30) else start)


def _filters(choose: Chooser, world: World, witness: Sequence[Provider], often: int) -> Group:
    """Traits, aggregates and tree; mostly such that the *witness* passes."""
    held = sorted({name for provider in witness for name in provider.traits})
    member = sorted({uuid for provider in witness for uuid in provider.aggregates})
    names = (*TRAITS, SHARING) if choose.chance(10) else TRAITS
    sets = choose.integer(1, 2) if choose.chance(often) else 0
    required = [_alternatives(choose, names, held) for _ in range(sets)]
    sets = choose.integer(1, 2) if choose.chance(often // 3) else 0
    member_of = [_alternatives(choose, AGGREGATES, member) for _ in range(sets)]
    lacking = [name for name in names if name not in held] if choose.chance(80) else names
    forbidden = frozenset(choose.some(lacking, 1, 2)) if lacking and choose.chance(often // 2) else frozenset()
    strange = [uuid for uuid in AGGREGATES if uuid not in member] if choose.chance(80) else AGGREGATES
    in_tree = None
    if choose.chance(often // 4):
        in_tree = choose.one(world.tree(world.root(choose.one(witness)))).uuid
    elif choose.chance(2):
        in_tree = choose.one((choose.one(world.providers).uuid, UNKNOWN_UUID))
    return Group(
        required=tuple(required),
        forbidden=frozenset() if any(any_of <= forbidden for any_of in required) else forbidden,
        member_of=tuple(member_of),
        not_member_of=frozenset(choose.some(strange, 1, 2)) if choose.chance(often // 3) else frozenset(),
        in_tree=in_tree,
    )


def _amount(choose: Chooser, stock: Stock | None) -> int:
    """Mostly what is left or less, in its steps."""
    anything = choose.one((1, 1, 1, 2, 2, 3, 4, 6))
    if stock is None or choose.chance(10):
        return anything
    free = int((stock.total - stock.reserved) * stock.allocation_ratio) - stock.used
    amount = choose.one((1, 1, 1, 2, max(free, 1), max(free // 2, 1)))
    amount = min(max(amount, stock.min_unit), stock.max_unit)
    return -(-amount // stock.step_size) * stock.step_size


def _suffixed(choose: Chooser, world: World, near: Sequence[Provider]) -> Group:
    givers = [provider for provider in near if provider.stock] if choose.chance(95) else list(world.providers)
    witness = choose.one(givers or world.providers)
    names = choose.some(sorted(witness.stock) or CLASSES, 1, 2)
    resources = {name: _amount(choose, witness.stock.get(name)) for name in names}
    return attrs.evolve(_filters(choose, world, [witness], 20), resources=resources)


def _unsuffixed(choose: Chooser, world: World, near: Sequence[Provider]) -> Group:
    names = sorted({name for provider in near for name in provider.stock})
    resources, witnesses = {}, []
    for name in choose.some(names or CLASSES, 1, 3):
        givers = [provider for provider in near if name in provider.stock]
        witness = choose.one(givers or near)
        witnesses.append(witness)
        resources[name] = _amount(choose, witness.stock.get(name))
    return attrs.evolve(_filters(choose, world, witnesses, 25), resources=resources)


def _near(choose: Chooser, world: World) -> list[Provider]:
    """The providers of one tree, and those that may share with it."""
    root = choose.one(world.roots)
    tree = world.tree(root)
    common = frozenset().union(*(provider.aggregates for provider in tree))
    return [*tree, *(p for p in world.providers if p not in tree and p.shares and p.aggregates & common)]


def choose_request(choose: Chooser, world: World) -> Request:
    """A valid request over the whole language, made around one tree so that many find something."""
    near = _near(choose, world)
    groups: dict[str, Group] = {}
    kind = choose.integer(0, 9)
    if kind <= 6:
        groups[""] = _unsuffixed(choose, world, near)
    for number in range(choose.one((1, 2, 2, 3)) if kind >= 4 else 0):
        suffix = choose.one((f"{number + 1}", f"_n-{number}", f"Group{number}"))
        groups[suffix] = _suffixed(choose, world, near)
    suffixes = [suffix for suffix in groups if suffix]
    marked = []
    if suffixes and choose.chance(25):
        bare = _filters(choose, world, [choose.one(near)], 80)
        if bare != Group():
            marked = ["_MARK"]
            groups["_MARK"] = bare
    subtrees = []
    if suffixes and (marked or choose.chance(25)):
        subtrees.append(frozenset([*choose.some(suffixes, 1, 2), *marked]))
        if choose.chance(15):
            subtrees.append(frozenset(choose.some(suffixes, 1)))
    policy = choose.one(("none", "isolate"))
    if len(suffixes) + len(marked) < 2 and choose.chance(50):
        policy = None
    held = sorted(near[0].traits) or TRAITS
    root_required = frozenset([choose.one(held)]) if choose.chance(6) else frozenset()
    root_forbidden = frozenset(choose.some((*TRAITS, SHARING), 1, 2)) if choose.chance(6) else frozenset()
    return Request(
        groups=groups,
        group_policy=policy,
        same_subtree=tuple(subtrees),
        root_required=root_required,
        root_forbidden=root_forbidden - root_required,
    )


def generated(seed: int, requests: int = 1) -> tuple[World, list[Request]]:
    """The world and the requests of *seed*."""
    choose = seeded(seed)
    world = choose_world(choose)
    return world, [choose_request(choose, world) for _ in range(requests)]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Strategy of forests."""
    return choose_world(Chooser(lambda low, high: draw(st.integers(low, high))))


@st.composite
def cases(draw: st.DrawFn) -> tuple[World, Request]:
    """Strategy of forests, each with a request."""
    choose = Chooser(lambda low, high: draw(st.integers(low, high)))
    world = choose_world(choose)
    return world, choose_request(choose, world)
