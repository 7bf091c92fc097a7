"""Selection over columns chooses what a slow, obvious one chooses, whatever changed since the last request.

The slow one knows no columns and remembers nothing: it looks at every host in Python, on a tree that was opened anew.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudcore import AllocationLedger, Database, HostSelector, PlacementTree, create_schema
from cloudcore.errors import InvalidCallable, InvalidRequest, NoValidHost
from cloudcore.placement import HostGroup, HostView
from cloudcore.placement.hosts import (
    below,
    force_hosts,
    free,
    ignore_hosts,
    in_aggregates,
    metadata_equals,
    packed,
    spread,
    uncached,
    valued,
)
from tests.placement.ledger_worlds import uuid_of

AGGREGATES = [uuid_of(f"aggregate {n}") for n in range(3)]
REQUESTS = [
    "resources=VCPU:2,MEMORY_MB:512",
    "resources=VCPU:1&resources1=CUSTOM_NIC:1&required1=CUSTOM_FAST",
    "resources=DISK_GB:10,VCPU:3",
    f"resources=VCPU:1&member_of={AGGREGATES[0]}",
]


def no_odd_use(host: HostView) -> str | None:
    return "an odd number of cores is used" if host.used.get("VCPU", 0) % 2 else None


def most_traits(host: HostView) -> float:
    return len(host.traits) + host.used.get("MEMORY_MB", 0) / 1000


FILTERS = [
    (),
    (ignore_hosts({"cn1", "cn4"}),),
    (in_aggregates(AGGREGATES[1:]),),
    (no_odd_use,),
    (force_hosts({f"cn{n}" for n in range(0, 30, 2)}), metadata_equals("zone", "a")),
]
WEIGHERS = [
    (),
    ((1.0, spread(["VCPU"])),),
    ((1.0, packed()), (0.5, free("DISK_GB"))),
    ((2.0, most_traits), (-1.0, free("VCPU"))),
]


def cell_of(root: Any) -> str | None:
    return None if root.name.endswith("9") else f"cell{int(root.name[2:]) % 2}"


def zone_of(root: Any) -> dict[str, str]:
    return {"zone": "a" if "CUSTOM_A" in root.traits else "b"}


class Cloud:
    """Some hosts in a database, a selector that has been there for long, and somebody else who changes things."""

    def __init__(self, database: Database, choose: random.Random) -> None:
        self.database, self.choose = database, choose
        self.tree, self.other = PlacementTree.open(database), PlacementTree.open(database)
        self.ledger = AllocationLedger(database)
        self.consumers: list[str] = []
        for number in range(choose.randrange(3, 25)):
            self.add(number)

    def add(self, number: int) -> None:
        choose = self.choose
        root = self.other.add(
            f"cn{number}",
            inventory={"VCPU": choose.randrange(2, 9), "MEMORY_MB": choose.choice([2048, 4096]), "DISK_GB": 100},
            traits=choose.sample(["CUSTOM_A", "CUSTOM_B"], choose.randrange(3)),
            aggregates=choose.sample(AGGREGATES, choose.randrange(3)),
        )
        if choose.random() < 0.7:
            for port in range(choose.randrange(1, 3)):
                traits = ["CUSTOM_FAST"] if choose.random() < 0.5 else []
                name = f"cn{number}-nic{port}"
                self.other.add(name, parent=root, inventory={"CUSTOM_NIC": choose.randrange(1, 4)}, traits=traits)

    def disturb(self) -> None:
        """Somebody else adds, edits, removes, claims or releases something."""
        choose, tree = self.choose, self.other
        tree.refresh()
        host = choose.choice(tree.roots())
        what = choose.randrange(6)
        if what == 0:
            self.add(100 + choose.randrange(10_000))
        elif what == 1:
            tree.update(host, traits=choose.sample(["CUSTOM_A", "CUSTOM_B", "CUSTOM_C"], choose.randrange(4)))
        elif what == 2:
            tree.update(host, aggregates=choose.sample(AGGREGATES, choose.randrange(4)))
        elif what == 3 and len(tree.roots()) > 3 and not any(any(tree.usage(p).values()) for p in tree.subtree(host)):
            tree.remove(host, recursive=True)
        elif what == 4 and self.consumers:
            self.ledger.release(self.consumers.pop(choose.randrange(len(self.consumers))))
        else:
            found = list(tree.candidates(choose.choice(REQUESTS) + "&limit=20"))
            if found:
                consumer = uuid_of(f"consumer {choose.random()}")
                self.ledger.claim(consumer, choose.choice(found), project_id="p", user_id="u")
                self.consumers.append(consumer)


def slow(cloud: Cloud, selector: HostSelector, asked: Any, start: int = 0) -> list[tuple[str, float]]:
    """(host, weight) of each pick: all hosts in Python, each instance noted in a fork of a fresh tree."""
    planner = selector._planner
    fork = PlacementTree.open(cloud.database).what_if()
    group = asked.group
    members = dict(group.members) if group else {}

    def views() -> dict[str, tuple[HostView, Any]]:
        found = {}
        for root in fork.roots():
            if cell_of(root) is None:
                continue
            candidate = next(iter(fork.candidates(asked.request, within=[root])), None)
            host = _whole(fork, root)
            found[root.uuid] = (
                HostView(
                    root=root.uuid,
                    name=root.name,
                    cell=cell_of(root),
                    traits=frozenset().union(*(p.traits for p in fork.subtree(root))),
                    aggregates=root.aggregates,
                    capacity=host[0],
                    used=host[1],
                    metadata=zone_of(root),
                    members=members.get(root.uuid, 0),
                ),
                candidate,
            )
        return found

    first = {root: view for root, (view, candidate) in views().items() if candidate is not None}
    filters = (*planner.filters, *asked.filters)
    quick, lazy = [f for f in filters if hasattr(f, "over")], [f for f in filters if not hasattr(f, "over")]
    hard = group if group and group.hard else None
    known = [root for root, view in first.items() if not any(refuse(view) for refuse in quick)]
    known = [root for root in known if not (hard and hard.refuses(root, members))]
    scales = []
    for multiplier, weigher in (*planner.options.weighers, *asked.weighers):
        values = [weigher(first[root]) for root in known] or [0.0]
        scales.append((multiplier, weigher, min(values), max(values) - min(values) or abs(max(values)) or 1.0))
    good = [root for root in known if not any(f(first[root]) for f in lazy)]
    picks = []
    for instance in asked.instances:
        now = views()
        weights = {
            root: sum(m * (w(now[root][0]) - low) / span for m, w, low, span in scales)
            + (group.preference(root, members) if group else 0.0)
            for root in good
        }
        order = sorted(good, key=lambda root: (-weights[root], known.index(root)))
        root = next((r for r in order if now[r][1] is not None and not (group and group.refuses(r, members))), None)
        if root is None:
            break
        picks.append((now[root][0].name, weights[root]))
        fork.allocate(instance, now[root][1])
        members[root] = members.get(root, 0) + 1
    return picks


def _whole(tree: PlacementTree, root: Any) -> tuple[dict[str, int], dict[str, int]]:
    capacity: dict[str, int] = {}
    used: dict[str, int] = {}
    for provider in tree.subtree(root):
        for name, inventory in provider.inventories.items():
            capacity[name] = capacity.get(name, 0) + inventory.capacity
            used[name] = used.get(name, 0) + tree.usage(provider).get(name, 0)
    return capacity, used


def mood(host: HostView) -> float:
    """A weigher of a request: what it answers is another matter at the next one, though it is the same function."""
    return float(int(host.name[2:]) * mood.of_today % 7 - host.used.get("VCPU", 0))  # type: ignore[attr-defined]


def ask(choose: random.Random, cloud: Cloud, selector: HostSelector) -> Any:
    count = choose.choice([1, 1, 2, 5])
    group = None
    if choose.random() < 0.4:
        policy = choose.choice(["anti-affinity", "soft-anti-affinity", "soft-affinity"])
        some = choose.sample([root.uuid for root in cloud.other.roots()], 2)
        group = HostGroup(policy=policy, members=dict.fromkeys(some, 1))
    own = choose.choice([(), (ignore_hosts({"cn2"}),), (lambda host: "small" if host.capacity["VCPU"] < 3 else None,)])
    from cloudcore.placement.rules.claims import Owner

    mood.of_today = choose.randrange(1, 6)
    weighers = choose.choice([(), ((1.5, mood),), ((-1.0, mood), (0.5, packed()))])
    owner = Owner.of("p", "u", "INSTANCE")
    return selector._asked(choose.choice(REQUESTS), count, None, 0, owner, group, own, weighers)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", range(12))
def test_columns_choose_as_a_slow_selection_does_whatever_changed(ledger_database: Database, seed: int) -> None:
    choose = random.Random(seed)
    cloud = Cloud(ledger_database, choose)
    selector = HostSelector(
        cloud.tree,
        cloud.ledger,
        cell_of=cell_of,
        filters=FILTERS[seed % len(FILTERS)],
        weighers=WEIGHERS[seed % len(WEIGHERS)],
        metadata_of=zone_of,
    )
    compared = 0
    for _ in range(14):
        for _ in range(choose.randrange(3)):
            cloud.disturb()
        asked = ask(choose, cloud, selector)
        right = slow(cloud, selector, asked)
        if len(right) < len(asked.instances):
            with pytest.raises(NoValidHost) as caught:
                selector._planner.plan(asked, [])
            assert caught.value.report.placed == len(right)
        else:
            made = selector._planner.plan(asked, [])
            assert [(pick.host.view.name, pick.weight) for pick in made.assignment.picks] == [
                (name, pytest.approx(weight, abs=1e-12)) for name, weight in right
            ]
            compared += 1
        if choose.random() < 0.5:
            try:
                chosen = selector.select(choose.choice(REQUESTS), project_id="p", user_id="u")
                cloud.consumers += [one.instance for one in chosen]
            except NoValidHost:
                pass
    assert compared >= 2


CLAIM = """
import sys
from cloudcore import AllocationLedger, PlacementTree
tree, ledger = PlacementTree.open(sys.argv[1]), AllocationLedger(sys.argv[1])
candidate = tree.candidates("resources=VCPU:4", within=[sys.argv[2]]).first()
ledger.claim(sys.argv[3], candidate, project_id="p", user_id="u")
"""


def test_what_another_process_claims_counts_in_the_next_selection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    with Database(url) as database:
        create_schema(database, areas=["placement"])
        tree = PlacementTree.open(database)
        for number in range(3):
            tree.add(f"cn{number}", inventory={"VCPU": 8 + number})
        asked: list[str] = []

        def least_used(host: HostView) -> float:
            asked.append(host.name)
            return -float(host.used["VCPU"])

        selector = HostSelector(tree, AllocationLedger(database), cell_of=lambda _: "c", weighers=[(1.0, least_used)])
        for number in range(3):
            asked.clear()
            (chosen,) = selector.select("resources=VCPU:1", alternates=0, project_id="p", user_id="u")
            assert chosen.primary.name == f"cn{number}"
            again = asked.copy()
            code = [sys.executable, "-c", CLAIM, url, f"cn{number}", uuid_of(f"by another {number}")]
            subprocess.run(code, check=True)
            if number:
                assert f"cn{number - 1}" in again, "it changed"
                assert set(again) == {f"cn{number - 1}", f"cn{number}"}, "the others did not"


# --- callables -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(sqlite_database: Database) -> Any:
    create_schema(sqlite_database, areas=["placement"])
    tree = PlacementTree.open(sqlite_database)
    for number in range(4):
        tree.add(f"cn{number}", inventory={"VCPU": 8, "CUSTOM_NIC": number + 1})
    ledger = AllocationLedger(sqlite_database)

    def select(request: str = "resources=VCPU:1", count: int = 1, **options: Any) -> Any:
        options.setdefault("cell_of", lambda _: "c")
        own = {key: options.pop(key) for key in ("group", "alternates") if key in options}
        for key in ("filters", "weighers"):
            if f"{key}_of_request" in options:
                own[key] = options.pop(f"{key}_of_request")
        selector = HostSelector(tree, ledger, **options)
        return selector.select(request, count, project_id="p", user_id="u", **own)

    select.tree, select.ledger = tree, ledger
    return select


def broken(host: HostView) -> float:
    raise ZeroDivisionError(host.name)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -float("inf"), None, "9", True, 1j])
def test_a_weigher_that_gives_no_number_is_named_with_its_host(cloud: Any, answer: object) -> None:
    def odd(host: HostView) -> Any:
        return answer if host.name == "cn2" else 1.0

    with pytest.raises(InvalidCallable, match=r"weigher .*odd gave .* for host cn2; it must give a finite") as caught:
        cloud(weighers=[(1.0, odd)])
    assert (caught.value.host, caught.value.field) == ("cn2", "weigher")
    assert cloud.ledger.usages(project_id="p") == {}


def test_a_weigher_that_fails_may_be_left_out(cloud: Any, caplog: pytest.LogCaptureFixture) -> None:
    weighers = [(1.0, broken), (1.0, free("CUSTOM_NIC"))]
    with pytest.raises(InvalidCallable, match="weigher broken raised ZeroDivisionError for host cn0"):
        cloud(weighers=weighers)
    (chosen,) = cloud(weighers=weighers, on_bad_weigher="leave_out")
    assert chosen.primary.name == "cn3"
    assert any("left_out" in record.getMessage() and "cn0" in record.getMessage() for record in caplog.records)


def test_weighers_of_a_request_count_for_it_alone_and_nothing_of_them_is_kept(cloud: Any) -> None:
    selector = HostSelector(cloud.tree, cloud.ledger, cell_of=lambda _: "c", weighers=[(1.0, free("CUSTOM_NIC"))])

    def primary(*weighers: Any) -> str:
        (chosen,) = selector.select("resources=VCPU:1", project_id="p", user_id="u", weighers=weighers)
        return chosen.primary.name

    for liked in ("cn0", "cn2", "cn1"):
        assert primary((9.0, lambda host, liked=liked: (host.name == liked and 1.0) or 0.0)) == liked
    assert primary() == "cn3", "the selector's own alone"
    assert primary((-9.0, free("CUSTOM_NIC"))) == "cn0", "vectorised, and the other way round than the selector's"
    remembered = {function for hosts in selector._planner.options.table._known[1] for function in hosts._answers}
    assert remembered == set()


def test_a_weigher_of_a_request_that_fails_is_dealt_with_as_the_selectors_own(cloud: Any) -> None:
    (chosen,) = cloud(
        weighers_of_request=[(1.0, broken)], weighers=[(1.0, free("CUSTOM_NIC"))], on_bad_weigher="leave_out"
    )
    assert chosen.primary.name == "cn3"
    with pytest.raises(InvalidCallable, match="weigher broken raised ZeroDivisionError"):
        cloud(weighers_of_request=[(1.0, broken)])


WRONG_FILTERS = ["cn1", 3, [None], ignore_hosts({"cn1"})]
WRONG_WEIGHERS = [[free("VCPU")], free("VCPU"), [(free("VCPU"), 1.0)], [("1", free("VCPU"))], [(True, free("VCPU"))], 7]


@pytest.mark.parametrize("wrong", WRONG_FILTERS, ids=repr)
@pytest.mark.parametrize("where", ["filters", "filters_of_request"])
def test_filters_of_the_wrong_form_are_refused_with_the_right_one(cloud: Any, where: str, wrong: object) -> None:
    with pytest.raises(InvalidRequest, match=r"filters(\[0\])?: expected a list of callables") as caught:
        cloud(**{where: wrong})
    assert caught.value.field == "filters"


@pytest.mark.parametrize("wrong", WRONG_WEIGHERS, ids=repr)
@pytest.mark.parametrize("where", ["weighers", "weighers_of_request"])
def test_weighers_of_the_wrong_form_are_refused_with_the_right_one(cloud: Any, where: str, wrong: object) -> None:
    with pytest.raises(InvalidRequest, match=r"weighers(\[0\])?: expected a list of pairs of a number") as caught:
        cloud(**{where: wrong})
    assert caught.value.field == "weighers"
    assert cloud.ledger.usages(project_id="p") == {}


@pytest.mark.parametrize("name", ["cell_of", "domain_of", "metadata_of", "group"])
def test_other_arguments_of_the_wrong_kind_are_named(cloud: Any, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: expected a (callable|HostGroup).*, got 'cell1'") as caught:
        cloud(**{name: "cell1"})
    assert caught.value.field == name
    assert cloud.ledger.usages(project_id="p") == {}


@pytest.mark.parametrize("request_", [{"VCPU": 1}, None, 3, b"resources=VCPU:1"], ids=repr)
def test_what_is_no_request_is_refused_with_the_forms_of_one(cloud: Any, request_: Any) -> None:
    with pytest.raises(InvalidRequest, match="request: expected a query such as 'resources=VCPU:1'") as caught:
        cloud(request_)
    assert caught.value.field == "request"


@pytest.mark.parametrize("answer", [True, False, 0, []])
def test_a_filter_that_answers_as_novas_do_is_refused_by_name(cloud: Any, answer: object) -> None:
    def nova_like(_: HostView) -> Any:
        return answer

    for options in ({"filters": [nova_like]}, {"filters_of_request": [nova_like]}):
        with pytest.raises(InvalidCallable, match=r"filter .*nova_like gave .* it must give None to let a host pass"):
            cloud(**options)


def test_numbers_of_numpy_are_numbers(cloud: Any) -> None:
    import numpy as np

    (chosen,) = cloud(weighers=[(1.0, lambda host: np.float32(host.capacity["CUSTOM_NIC"]))])
    assert chosen.primary.name == "cn3"


def test_a_callable_that_looks_elsewhere_is_asked_each_time(cloud: Any) -> None:
    best = ["cn1"]

    def remembered(host: HostView) -> float:
        return float(host.name == best[0])

    def chosen_by(weigher: Any) -> list[str]:
        selector = HostSelector(cloud.tree, cloud.ledger, cell_of=lambda _: "c", weighers=[(1.0, weigher)])
        names = []
        for best[0] in ("cn1", "cn2", "cn3"):
            names.append(selector.select("resources=VCPU:1", project_id="p", user_id="u")[0].primary.name)
        return names

    assert chosen_by(uncached(lambda host: float(host.name == best[0]))) == ["cn1", "cn2", "cn3"]
    assert chosen_by(remembered) == ["cn1", "cn0", "cn0"], "of cn1 alone, which changed, it was asked again"


def test_metadata_that_change_by_themselves_are_seen_by_filters_and_weighers(cloud: Any) -> None:
    """Marking ``metadata_of`` is enough: what was answered about older metadata does not count."""
    numbers = {f"cn{number}": number for number in range(4)}

    def preview(metadata_of: Any) -> list[str]:
        selector = HostSelector(
            cloud.tree,
            cloud.ledger,
            cell_of=lambda _: "c",
            metadata_of=metadata_of,
            weighers=[(-1.0, valued("n"))],
            filters=[below("n", 50)],
        )
        chosen = []
        for full in ({}, {"cn0": 99}, {"cn1": 98}, {"cn0": 0}):
            numbers.update(full)
            ((best, *_),) = selector.preview("resources=VCPU:1", alternates=0)
            chosen.append(best.name)
        return chosen

    assert preview(uncached(lambda root: {"n": numbers[root.name]})) == ["cn0", "cn1", "cn2", "cn0"]
    numbers.update(cn0=0, cn1=1)
    assert preview(lambda root: {"n": numbers[root.name]}) == ["cn0"] * 4, "remembered until the host changes"


def test_a_claim_and_its_release_are_no_change(cloud: Any) -> None:
    """The view is the same as before, so the answer about it is."""
    asked: list[str] = []

    def weigher(host: HostView) -> float:
        asked.append(f"{host.name} {host.used.get('VCPU', 0)}")
        return float(host.name == "cn1")

    selector = HostSelector(cloud.tree, cloud.ledger, cell_of=lambda _: "c", weighers=[(1.0, weigher)])
    (chosen,) = selector.select("resources=VCPU:1", project_id="p", user_id="u")
    cloud.ledger.release(chosen.instance)
    asked.clear()
    selector.preview("resources=VCPU:1")
    assert "cn1 0" not in asked
    (chosen,) = selector.select("resources=VCPU:1", project_id="p", user_id="u")
    selector.preview("resources=VCPU:1")  # the tree hears of the claim in between
    cloud.ledger.release(chosen.instance)
    asked.clear()
    selector.preview("resources=VCPU:1")
    assert "cn1 0" in asked


def test_max_hosts_bounds_the_asking_not_the_choosing(cloud: Any) -> None:
    for number in range(4, 40):
        cloud.tree.add(f"cn{number}", inventory={"VCPU": 8, "CUSTOM_NIC": number + 1})
    asked: list[str] = []

    def weigher(host: HostView) -> float:
        asked.append(host.name)
        return 0.0

    (chosen,) = cloud(weighers=[(1.0, free("CUSTOM_NIC"))], max_hosts=5)
    assert chosen.primary.name == "cn39"
    (chosen,) = cloud(weighers=[(1.0, free("CUSTOM_NIC")), (1.0, weigher)], max_hosts=5)
    assert chosen.primary.name == "cn39"
    assert len(set(asked)) == 5


def test_hosts_about_which_nobody_was_asked_are_told(cloud: Any) -> None:
    """What was refused before is remembered, so each call gets further; what is left is counted and named."""
    for number in range(4, 12):
        cloud.tree.add(f"cn{number}", inventory={"VCPU": 8})
    asked: list[str] = []

    def refuse(host: HostView) -> str | None:
        asked.append(host.name)
        return "not today"

    selector = HostSelector(cloud.tree, cloud.ledger, cell_of=lambda _: "c", filters=[refuse], max_hosts=5)
    for left in (7, 2, 0):
        asked.clear()
        with pytest.raises(NoValidHost) as caught:
            selector.select("resources=VCPU:1", project_id="p", user_id="u")
        report = caught.value.report
        assert len(asked) <= 5
        assert report.undecided == left
        assert ("not decided within the bound" in report.summary()) == bool(left)
        assert (str(report.as_fields()["undecided"]), "not today" in report.filtered.values()) == (str(left), True)
    assert set(report.filtered.values()) == {"not today"}


def test_hosts_that_were_not_weighed_are_told(cloud: Any) -> None:
    with pytest.raises(NoValidHost, match="3 hosts are not decided within the bound: raise max_hosts") as caught:
        cloud(weighers=[(1.0, lambda host: 1.0)], filters=[lambda _: "no"], max_hosts=1)
    assert caught.value.report.undecided == 3


@pytest.mark.parametrize("given", ["", "c" * 256, "half a pair \ud800", 7])
def test_a_cell_that_no_selection_can_carry_is_refused_before_any_claim(cloud: Any, given: Any) -> None:
    selector = HostSelector(cloud.tree, cloud.ledger, cell_of=lambda _: given)
    with pytest.raises(InvalidCallable, match=r"cell_of .* for host cn\d; it must give text of 1 to 255"):
        selector.select("resources=VCPU:1", project_id="p", user_id="u")
    assert cloud.ledger.consumers() == []


class Odd:
    """A weigher over many hosts that goes wrong."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, host: HostView) -> float:
        return 0.0

    def over(self, hosts: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(hosts)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (KeyError("x"), "raised KeyError over 4 hosts, the first of them cn0"),
        (lambda hosts: np.where(hosts.capacity("CUSTOM_NIC") == 3, np.nan, 1.0), "gave nan for host cn2"),
        (lambda hosts: np.zeros(1), "must give 4 numbers"),
    ],
)
def test_a_vectorised_weigher_that_goes_wrong_is_named_or_left_out(cloud: Any, answer: Any, said: str) -> None:
    weighers = [(1.0, Odd(answer)), (1.0, free("CUSTOM_NIC"))]
    with pytest.raises(InvalidCallable, match=said):
        cloud(weighers=weighers)
    (chosen,) = cloud(weighers=weighers, on_bad_weigher="leave_out")
    assert chosen.primary.name == "cn3"


def test_a_weigher_that_fails_after_a_pick_may_be_let_pass(cloud: Any) -> None:
    def new_hosts_only(host: HostView) -> float:
        return 1.0 / (8 - host.used["VCPU"] - 4 * bool(host.used["VCPU"]))

    weighers = [(1.0, new_hosts_only)]
    with pytest.raises(InvalidCallable, match="ZeroDivisionError for host cn0"):
        cloud("resources=VCPU:4", 2, weighers=weighers, alternates=0)
    chosen = cloud("resources=VCPU:4", 2, weighers=weighers, on_bad_weigher="leave_out", alternates=0)
    assert [one.primary.name for one in chosen] == ["cn0", "cn0"]


def test_schedulers_with_other_seeds_begin_elsewhere(cloud: Any) -> None:
    chosen = {cloud(seed=seed)[0].primary.name for seed in range(20)}
    assert len(chosen) > 1
    assert cloud()[0].primary.name == "cn0"


def test_equal_devices_are_one_choice_for_the_second_instance(cloud: Any) -> None:
    """The second pick on a host is searched for; no combination is walked through or kept."""
    root = cloud.tree.add("big", inventory={"VCPU": 64})
    for number in range(24):
        cloud.tree.add(f"nvme{number}", parent=root, inventory={"CUSTOM_NVME": 1})
    request = "resources=VCPU:1&group_policy=isolate&" + "&".join(f"resources_{n}=CUSTOM_NVME:1" for n in range(8))
    chosen = cloud(request, 3, alternates=0)
    taken = [provider for one in chosen for provider in one.primary.allocations if provider != root.uuid]
    assert len(taken) == len(set(taken)) == 24
    with pytest.raises(NoValidHost):
        cloud(request, alternates=0)


# --- in words --------------------------------------------------------------------------------------------------------


def test_hosts_without_a_cell_are_not_called_no_hosts(cloud: Any) -> None:
    with pytest.raises(NoValidHost, match="cell_of gave None for all of the 4 hosts"):
        cloud(cell_of=lambda _: None)
    with pytest.raises(NoValidHost, match="3 more hosts have no cell"):
        cloud("resources=VCPU:9", cell_of={"cn0": "c"})


def test_a_host_found_by_its_name_keeps_its_cell_when_it_is_renamed(cloud: Any) -> None:
    selector = HostSelector(cloud.tree, cloud.ledger, cell_of={"cn0": "c"})
    selector.select("resources=VCPU:1", project_id="p", user_id="u")
    cloud.tree.update("cn0", name="renamed")
    (chosen,) = selector.select("resources=VCPU:1", project_id="p", user_id="u")
    assert (chosen.primary.name, chosen.cell) == ("renamed", "c")


def test_refusals_say_names(cloud: Any) -> None:
    with pytest.raises(NoValidHost, match=r"cn0: VCPU on cn0: 5 asked, 5 of 8 used"):
        cloud("resources=VCPU:5", 5)
