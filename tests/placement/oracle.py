"""What the right answer is, as short as it can be said. Brute force: only for small forests.

The rules are those of Placement's GET /allocation_candidates at microversion 1.39, without its known mistakes.
`candidates` says which there are, `refusal` at which condition a root that has none fell.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import attrs

from tests.placement.worlds import Group, Provider, Request, World

Candidate = tuple[frozenset[tuple[str, str, int]], frozenset[tuple[str, frozenset[str]]]]
"""{(provider uuid, class, amount)} and {(suffix, {provider uuids})}: equal if and only if the candidates are."""


def candidates(world: World, request: Request) -> set[Candidate]:
    """Every candidate there is."""
    return {found for root in world.roots for found in candidates_of(world, request, root)}


def candidates_of(world: World, request: Request, root: Provider, *, room: bool = True) -> Iterator[Candidate]:
    """The candidates that are anchored at *root*; without *room*, the groups need not fit together."""
    if not (request.root_required <= root.traits and request.root_forbidden.isdisjoint(root.traits)):
        return
    for choice in itertools.product(*(options(world, root, *item) for item in request.groups.items())):
        used = dict(zip(request.groups, choice, strict=True))  # suffix -> {class: provider}
        if isolated(request, used) and in_subtrees(world, request, used):
            asked = demand(request, used)
            if not room or all(fits_together(world.by_uuid[u], name, amount) for (u, name), amount in asked.items()):
                yield (
                    frozenset((uuid, name, amount) for (uuid, name), amount in asked.items()),
                    frozenset((suffix, frozenset(p.uuid for p in chosen.values())) for suffix, chosen in used.items()),
                )


def refusal(world: World, request: Request, root: Provider) -> str | None:
    """What refuses *root* first: itself, a group by itself, or what all groups must meet, added one after another."""
    if not (request.root_required <= root.traits and request.root_forbidden.isdisjoint(root.traits)):
        return "root"
    plain = attrs.evolve(request, group_policy=None, same_subtree=(), groups=dict(request.groups))
    if "" in plain.groups:
        plain.groups[""] = attrs.evolve(plain.groups[""], required=())
    steps = {
        "group": (plain, False),
        "traits": (attrs.evolve(plain, groups=request.groups), False),
        "capacity": (attrs.evolve(plain, groups=request.groups), True),
        "same_subtree": (attrs.evolve(request, group_policy=None), True),
        "group_policy": (request, True),
    }
    for step, (asked, room) in steps.items():
        if not any(True for _ in candidates_of(world, asked, root, room=room)):
            return step
    return None


def options(world: World, root: Provider, suffix: str, group: Group) -> list[dict[str, Provider]]:
    """How *root* can serve one group: {class: provider}; a group without resources has the class "" alone."""
    if suffix:  # one provider gives everything, and answers for everything itself
        return [
            dict.fromkeys(group.resources or [""], provider)
            for provider in reachable(world, root)
            if all(fits(provider, name, amount) for name, amount in group.resources.items())
            and all(any_of & provider.traits for any_of in group.required)
            and not group.forbidden & provider.traits
            and all(any_of & provider.aggregates for any_of in group.member_of)
            and not group.not_member_of & provider.aggregates
            and (group.in_tree is None or in_tree_of(world, provider, group.in_tree))
        ]
    return [
        dict(zip(group.resources, chosen, strict=True))
        for chosen in itertools.product(*(givers(world, root, group, *item) for item in group.resources.items()))
        if all(any_of & frozenset().union(*(p.traits for p in chosen)) for any_of in group.required)
    ]


def givers(world: World, root: Provider, group: Group, name: str, amount: int) -> list[Provider]:
    """Who can give one class of the unsuffixed group to *root*."""
    return [
        provider
        for provider in reachable(world, root)
        if fits(provider, name, amount)
        and not group.forbidden & provider.traits
        and (
            all(any_of & provider.aggregates for any_of in group.member_of)
            or (
                world.root(provider) is root  # the root's aggregates speak for its own tree, not for a pool elsewhere
                and all(any_of & root.aggregates for any_of in group.member_of)
            )
        )
        and not group.not_member_of & (provider.aggregates | root.aggregates)
        and (group.in_tree is None or (world.root(provider) is root and in_tree_of(world, provider, group.in_tree)))
    ]


def reachable(world: World, root: Provider) -> list[Provider]:
    """The tree's own providers, and those that share with it: an aggregate in common with any of its members."""
    aggregates = frozenset().union(*(member.aggregates for member in world.tree(root)))
    return [p for p in world.providers if world.root(p) is root or (p.shares and p.aggregates & aggregates)]


def in_tree_of(world: World, provider: Provider, uuid: str) -> bool:
    return uuid in world.by_uuid and world.root(world.by_uuid[uuid]) is world.root(provider)


def fits(provider: Provider, name: str, amount: int) -> bool:
    """Rule of one class on one provider."""
    stock = provider.stock.get(name)
    return (
        stock is not None
        and stock.used + amount <= (stock.total - stock.reserved) * stock.allocation_ratio
        and stock.min_unit <= amount <= stock.max_unit
        and amount % stock.step_size == 0
    )


def fits_together(provider: Provider, name: str, amount: int) -> bool:
    """Rule of the sum over groups: min_unit and step_size have been looked at group by group."""
    stock = provider.stock[name]
    capacity = int((stock.total - stock.reserved) * stock.allocation_ratio)
    return stock.used + amount <= capacity and amount <= stock.max_unit


def demand(request: Request, used: dict[str, dict[str, Provider]]) -> Counter[tuple[str, str]]:
    """What is asked of each (provider, class) by all groups together."""
    asked: Counter[tuple[str, str]] = Counter()
    for suffix, chosen in used.items():
        for name, amount in request.groups[suffix].resources.items():
            asked[chosen[name].uuid, name] += amount
    return asked


def isolated(request: Request, used: dict[str, dict[str, Provider]]) -> bool:
    """Under group_policy=isolate no two suffixed groups use the same provider."""
    suffixed = [provider.uuid for suffix, chosen in used.items() if suffix for provider in set_of(chosen)]
    return request.group_policy != "isolate" or len(set(suffixed)) == len(suffixed)


def in_subtrees(world: World, request: Request, used: dict[str, dict[str, Provider]]) -> bool:
    """For each same_subtree, one of the providers of those groups is above all the others, or is the only one."""
    for suffixes in request.same_subtree:
        chosen = [provider for suffix in suffixes for provider in set_of(used[suffix])]
        if not any(all(top in world.lineage(provider) for provider in chosen) for top in chosen):
            return False
    return True


def set_of(chosen: dict[str, Provider]) -> list[Provider]:
    return list({provider.uuid: provider for provider in chosen.values()}.values())


def cost(world: World, request: Request) -> int:
    """How many combinations brute force has to look at, the largest tree's: the peer's time follows it."""
    sizes = []
    for root in world.roots:
        size = 1
        for suffix, group in request.groups.items():
            size *= max(1, len(options(world, root, suffix, group)))
        sizes.append(size)
    return sum(sizes)
