"""Pictures of a forest: the same state gives the same text, everything in it is escaped, and they end."""

from __future__ import annotations

import io
import threading
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cloudcore.placement import Inventory, PlacementTree

A = "aaaaaaaa-0000-0000-0000-000000000001"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def tree() -> PlacementTree:
    tree = PlacementTree()
    tree.add("cn1", inventory={"DISK_GB": Inventory(100, 10)}, traits={"CUSTOM_A"})
    tree.add("numa0", parent="cn1", inventory={"VCPU": 8, "MEMORY_MB": 4096})
    tree.add("pf0", parent="numa0", inventory={"SRIOV_NET_VF": 4})
    tree.add("numa1", parent="cn1", inventory={"VCPU": 8})
    tree.set_usage("numa0", {"VCPU": 8})
    return tree


def texts(svg: str) -> list[str]:
    return [node.text for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_repr_is_one_line(tree: PlacementTree) -> None:
    assert repr(tree) == "<PlacementTree: 4 providers in 1 tree>"
    candidate = tree.candidates("resources=VCPU:1,DISK_GB:1").first()
    assert repr(candidate) == "<Candidate on cn1: numa1: 1 VCPU; cn1: 1 DISK_GB>"
    other = tree.candidates("resources=DISK_GB:1,VCPU:1").first()
    assert repr(other) == "<Candidate on cn1: cn1: 1 DISK_GB; numa1: 1 VCPU>", "as given, whatever was asked before"
    assert "\n" not in repr(tree.candidates("resources=VCPU:9"))
    assert "\n" not in repr(tree.candidates("resources=VCPU:9").report())


def test_svg_shows_names_and_use(tree: PlacementTree) -> None:
    shown = texts(tree.to_svg())
    assert [name for name in shown if name in {"cn1", "numa0", "pf0", "numa1"}] == ["cn1", "numa0", "pf0", "numa1"]
    assert {"8/8", "0/90", "0/4"} <= set(shown)
    assert "DISK_GB: 0/90 (10 reserved)" in tree.to_svg()


def test_svg_of_one_subtree(tree: PlacementTree) -> None:
    shown = texts(tree.to_svg("numa0"))
    assert shown[0] == "numa0: 2 providers"
    assert "numa1" not in shown


def test_same_state_same_svg(tree: PlacementTree) -> None:
    """Byte for byte, also for a tree that came to the state by another way: it may lie in a repository."""
    again = PlacementTree.from_placement(tree.as_placement())
    assert again.to_svg() == tree.to_svg() == tree._repr_svg_()


def test_same_state_same_views_in_whatever_order_classes_came() -> None:
    """Who writes a forest has the classes as they were given, who reads it has them by name."""
    one, other = PlacementTree(), PlacementTree()
    for tree, classes in ((one, ("VCPU", "MEMORY_MB", "DISK_GB")), (other, ("DISK_GB", "VCPU", "MEMORY_MB"))):
        tree.add("cn1", uuid=A, inventory=dict.fromkeys(classes, 8))
    assert one.as_placement() == other.as_placement()
    assert one.to_svg() == other.to_svg()
    assert one._repr_html_() == other._repr_html_()
    assert rich_text(one) == rich_text(other)
    assert one.to_table() == other.to_table()


@pytest.mark.parametrize("code", [*range(1, 32), 127, 0x85, 0x9B, 0xFFFE, 0xFFFF])
def test_control_characters_reach_no_document_and_no_terminal(code: int) -> None:
    tree = PlacementTree()
    tree.add(f"cn{chr(code)}[31m1", inventory={"VCPU": 8})
    assert "cn\ufffd[31m1" in texts(tree.to_svg())
    for text in (tree.to_svg(tree.roots()[0]), tree._repr_html_(), rich_text(tree)):
        assert "cn\ufffd[31m1" in text


@given(
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"), min_size=1, max_size=20
    )
)
def test_names_are_escaped(name: str) -> None:
    tree = PlacementTree()
    tree.add(name, inventory={"VCPU": 8})
    assert name in texts(tree.to_svg())
    if "<" in name:
        assert f">{name}<" not in tree._repr_html_()


def test_html_is_nested(tree: PlacementTree) -> None:
    html = tree._repr_html_()
    assert html.count("<details") == html.count("</details>") == 2
    assert html.count('class="leaf"') == 2
    assert html.index("cn1") < html.index("numa0") < html.index("pf0") < html.index("numa1")


def test_views_of_large_forests_end() -> None:
    tree = PlacementTree()
    for host in range(300):
        tree.add(f"cn{host}", inventory={"VCPU": 8})
    for text in (tree.to_svg(), tree._repr_html_(), rich_text(tree)):
        assert "and 100 more providers" in text
        assert "cn199" in text
        assert "cn200" not in text


def test_views_of_nothing() -> None:
    tree = PlacementTree()
    assert texts(tree.to_svg()) == ["0 providers"]
    assert "0 providers" in tree._repr_html_()
    assert "0 providers" in rich_text(tree)


def rich_text(tree: PlacementTree) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(tree)
    return console.file.getvalue()


def test_terminal_shows_the_tree(tree: PlacementTree) -> None:
    lines = rich_text(tree).splitlines()
    assert [line.strip("│├└─ ").split()[0] for line in lines] == ["4", "cn1", "numa0", "pf0", "numa1"]
    assert "8/8" in lines[2]


def test_html_of_many_hosts_shows_at_each_closed_root_what_lies_below() -> None:
    """A nearly full cloud must not look empty because its hosts are folded."""
    tree = PlacementTree()
    for host in range(6):
        tree.add(f"cn{host}", inventory={"DISK_GB": 10})
        for cell in range(2):
            tree.add(f"cn{host}-numa{cell}", parent=f"cn{host}", inventory={"VCPU": 8})
            tree.set_usage(f"cn{host}-numa{cell}", {"VCPU": 7})
    html = tree._repr_html_()
    summaries = [part.split("</summary>")[0] for part in html.split("<summary>")[1:]]
    assert len(summaries) == 6
    assert all("VCPU 14/16" in each and "DISK_GB 0/10" in each for each in summaries)
    for number in range(2):
        tree.set_usage(f"cn5-numa{number}", {})
    tree.remove("cn5", recursive=True)
    assert "14/16" not in tree._repr_html_(), "open roots show their children themselves"


@pytest.mark.parametrize("below", [29, 39, 199, 300])
def test_a_closed_root_sums_up_what_is_not_drawn_too(below: int) -> None:
    """The last of those drawn is cut off in the middle, or right below itself."""
    tree = PlacementTree()
    for host in range(6):
        tree.add(f"small{host}", inventory={"VCPU": 1})
    for host in range(8):
        tree.add(f"cn{host}")
        for function in range(below):
            tree.add(f"cn{host}-{function}", parent=f"cn{host}", inventory={"SRIOV_NET_VF": 2})
        tree.set_usage(f"cn{host}-{below - 1}", {"SRIOV_NET_VF": 1})
    html = tree._repr_html_()
    drawn = [host for host in range(8) if f">cn{host}<" in html]
    assert html.count(f"SRIOV_NET_VF 1/{2 * below}<") == len(drawn) >= 1


def test_a_graph_is_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody removes a provider between the look at the list and the look at what is in use."""
    tree = PlacementTree()
    for host in range(3):
        tree.add(f"cn{host}", inventory={"VCPU": 8})
    removing = threading.Thread(target=tree.remove, args=("cn2",))
    usage = tree.usage

    def look_slowly(provider):
        if not removing.ident:
            removing.start()
            removing.join(0.3)  # where it need not wait it is done by then
        return usage(provider)

    monkeypatch.setattr(tree, "usage", look_slowly)
    assert sorted(name for _, name in tree.to_networkx().nodes(data="name")) == ["cn0", "cn1", "cn2"]
    removing.join()
    assert len(tree) == 2
