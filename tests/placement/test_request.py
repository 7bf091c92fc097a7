"""Requests: what Placement's query language means, and what is refused, each time naming the field."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudcore.errors import InvalidRequest
from cloudcore.placement import PlacementTree, RequestGroup, ResourceRequest
from tests.placement.worlds import cases

A = "aaaaaaaa-0000-0000-0000-000000000001"
B = "aaaaaaaa-0000-0000-0000-000000000002"


def attempt(make: Callable[[], object]) -> object:
    """What it makes, or the error, which must be typed and name a field."""
    try:
        return make()
    except InvalidRequest as error:
        if error.field is None:
            raise AssertionError(f"{error!r} names no field") from error
        return error


def group(query: str, suffix: str = "") -> RequestGroup:
    return ResourceRequest.from_query(query).groups[suffix]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("resources=VCPU:2,MEMORY_MB:2048", RequestGroup({"VCPU": 2, "MEMORY_MB": 2048})),
        ("resources=VCPU:2,VCPU:3", RequestGroup({"VCPU": 3})),
        ("resources=VCPU:2&resources=DISK_GB:1", RequestGroup({"DISK_GB": 1})),
        ("resources=VCPU:1&required=CUSTOM_A, CUSTOM_B", RequestGroup({"VCPU": 1}, ["CUSTOM_A", "CUSTOM_B"])),
        ("resources=VCPU:1&required=in:CUSTOM_A,CUSTOM_B", RequestGroup({"VCPU": 1}, [{"CUSTOM_A", "CUSTOM_B"}])),
        ("resources=VCPU:1&required=!!!CUSTOM_A", RequestGroup({"VCPU": 1}, forbidden={"CUSTOM_A"})),
        (
            "resources=VCPU:1&required=CUSTOM_A&required=in:CUSTOM_B,CUSTOM_C&required=!CUSTOM_D",
            RequestGroup({"VCPU": 1}, ["CUSTOM_A", {"CUSTOM_B", "CUSTOM_C"}], forbidden={"CUSTOM_D"}),
        ),
        (f"resources=VCPU:1&member_of={A}", RequestGroup({"VCPU": 1}, member_of=[A])),
        (f"resources=VCPU:1&member_of=in:{A},{B}", RequestGroup({"VCPU": 1}, member_of=[{A, B}])),
        (f"resources=VCPU:1&member_of=in:{A}&member_of={B}", RequestGroup({"VCPU": 1}, member_of=[A, B])),
        (f"resources=VCPU:1&member_of=!{A}&member_of=!in:{B}", RequestGroup({"VCPU": 1}, not_member_of=[A, B])),
        ("&&resources=VCPU:1&&required=CUSTOM_A&", RequestGroup({"VCPU": 1}, ["CUSTOM_A"])),
        (f"resources=VCPU:1&in_tree={A.upper()}", RequestGroup({"VCPU": 1}, in_tree=A)),
    ],
)
def test_group_is_read(query: str, expected: RequestGroup) -> None:
    """Each form of a parameter, and what repeating it means."""
    assert group(query) == expected


def test_request_wide_parameters_are_read() -> None:
    """`limit` and `group_policy` count once, the first; `same_subtree` adds up."""
    request = ResourceRequest.from_query(
        "resources1=VCPU:1&resources_X-2=DISK_GB:1&group_policy=isolate&group_policy=none&limit=5&limit=7"
        "&same_subtree=1,_X-2&same_subtree=1&root_required=CUSTOM_A,!CUSTOM_B"
    )
    assert list(request.groups) == ["1", "_X-2"]
    assert (request.limit, request.group_policy) == (5, "isolate")
    assert request.same_subtree == (frozenset({"1", "_X-2"}), frozenset({"1"}))
    assert (request.root_required, request.root_forbidden) == ({"CUSTOM_A"}, {"CUSTOM_B"})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "resources"),
        ("resources=", "resources"),
        ("resources=VCPU", "resources"),
        ("resources=VCPU:0", "resources VCPU"),
        ("resources=VCPU:-1", "resources"),
        ("resources=VCPU:1.5", "resources"),
        ("resources=VCPU:x", "resources"),
        ("resources=VCPU:2147483648", "resources VCPU"),
        ("resources=VCPU:99999999999999999999999999", "resources"),
        ("resources= VCPU:1", "resources"),
        ("resources=NO_SUCH_CLASS:1", "resources"),
        ("resources1=VCPU:0", "resources1 VCPU"),
        ("resources=VCPU:1&required=", "required"),
        ("resources=VCPU:1&required=CUSTOM_A,", "required"),
        ("resources=VCPU:1&required=!", "required"),
        ("resources=VCPU:1&required=in:CUSTOM_A,!CUSTOM_B", "required"),
        ("resources=VCPU:1&required=NO_SUCH_TRAIT", "required"),
        ("resources=VCPU:1&required=CUSTOM_A,!CUSTOM_A", "required"),
        ("resources=VCPU:1&required=in:CUSTOM_A,CUSTOM_B&required=!CUSTOM_A,!CUSTOM_B", "required"),
        ("resources1=VCPU:1&required1=nonsense", "required1"),
        ("resources=VCPU:1&required=!NO_SUCH_TRAIT", "required"),
        ("resources1=VCPU:1&required1=!nonsense", "required1"),
        ("resources=VCPU:1&member_of=nonsense", "member_of"),
        ("resources=VCPU:1&member_of=!nonsense", "member_of"),
        ("resources_A=VCPU:1&member_of_A=!in:nonsense", "member_of_A"),
        (f"resources=VCPU:1&member_of={A},{B}", "member_of"),
        ("resources=VCPU:1&member_of=in:", "member_of"),
        ("resources=VCPU:1&in_tree=nonsense", "in_tree"),
        ("resources1=VCPU:1&resources2=VCPU:1", "group_policy"),
        ("resources=VCPU:1&group_policy=some", "group_policy"),
        ("resources=VCPU:1&limit=0", "limit"),
        ("resources=VCPU:1&limit=-3", "limit"),
        ("resources=VCPU:1&limit=ten", "limit"),
        ("resources=VCPU:1&limit=9223372036854775808", "limit"),
        ("resources1=VCPU:1&same_subtree=", "same_subtree"),
        ("resources1=VCPU:1&same_subtree=1,2", "same_subtree"),
        ("resources=VCPU:1&same_subtree=1", "same_subtree"),
        ("resources=VCPU:1&required1=CUSTOM_A", "resources1"),
        ("required1=CUSTOM_A&same_subtree=1", "resources"),
        ("resources1=VCPU:1&required=CUSTOM_A", "resources"),
        ("resources=VCPU:1&root_required=CUSTOM_A&root_required=CUSTOM_B", "root_required"),
        ("resources=VCPU:1&root_required=in:CUSTOM_A,CUSTOM_B", "root_required"),
        ("resources=VCPU:1&root_required=CUSTOM_A,!CUSTOM_A", "root_required"),
        ("resources=VCPU:1&root_required=NO_SUCH_TRAIT", "root_required"),
        ("resources=VCPU:1&colour=blue", "colour"),
        ("resources=VCPU:1&resources!=VCPU:1", "resources!"),
        ("resources=VCPU:1&resources" + "x" * 65 + "=VCPU:1", "resources" + "x" * 65),
        ("nonsense", "query"),
    ],
)
def test_query_is_refused(query: str, field: str) -> None:
    """What Placement answers with 400 raises InvalidRequest, and the error names the parameter."""
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_query(query)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"groups": None}, "groups"),
        ({"groups": {1: {"VCPU": 1}}}, "groups"),
        ({"groups": {"a b": {"VCPU": 1}}}, "groups"),
        ({"groups": {"": ["VCPU"]}}, "groups"),
        ({"groups": {"": {"VCPU": "1"}}}, "resources VCPU"),
        ({"groups": {"": {"VCPU": True}}}, "resources VCPU"),
        ({"groups": {"": {"vcpu": 1}}}, "resources"),
        ({"groups": {"": {None: 1}}}, "resources"),
        ({"groups": {"": {"VCPU": 1}}, "limit": 0}, "limit"),
        ({"groups": {"": {"VCPU": 1}}, "limit": "5"}, "limit"),
        ({"groups": {"": {"VCPU": 1}}, "group_policy": 3}, "group_policy"),
        ({"groups": {"": {"VCPU": 1}}, "same_subtree": "1"}, "same_subtree"),
        ({"groups": {"1": {"VCPU": 1}}, "same_subtree": [[]]}, "same_subtree"),
        (
            {"groups": {"1": {"VCPU": 1}, "_N": {}}, "same_subtree": [{"1", "_N"}], "group_policy": "none"},
            "resources_N",
        ),
        ({"groups": {"": {"VCPU": 1}}, "root_required": "CUSTOM_A"}, "root_required"),
        ({"groups": {"": {"VCPU": 1}}, "root_required": [1]}, "root_required"),
    ],
)
def test_values_are_refused(arguments: dict, field: str) -> None:
    """Values given from Python are checked like those of a query."""
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"required": "CUSTOM_A"}, "required"),
        ({"required": [[]]}, "required"),
        ({"required": [3]}, "required"),
        ({"forbidden": [["CUSTOM_A"]]}, "forbidden"),
        ({"member_of": [[]]}, "member_of"),
        ({"member_of": [5]}, "member_of"),
        ({"not_member_of": A}, "not_member_of"),
        ({"in_tree": 5}, "in_tree"),
        ({"resources": "VCPU:1"}, "resources"),
    ],
)
def test_groups_are_refused(arguments: dict, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        RequestGroup(**({"resources": {"VCPU": 1}} | arguments))
    assert caught.value.field == field


def test_the_largest_limit_is_read_back() -> None:
    request = ResourceRequest({"": {"VCPU": 1}}, limit=2**63 - 1)
    assert ResourceRequest.from_query(request.to_query()) == request


@given(cases())
def test_what_is_written_is_read_back(case: tuple) -> None:
    """A request survives its own query text, and pickle."""
    _, asked = case
    request = ResourceRequest.from_query(asked.query())
    assert ResourceRequest.from_query(request.to_query()) == request
    assert pickle.loads(pickle.dumps(request)) == request


_WORDS = st.sampled_from(
    ["resources", "required", "member_of", "in_tree", "limit", "group_policy", "same_subtree", "root_required"]
)
_VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["VCPU:1", "CUSTOM_A", "in:CUSTOM_A,CUSTOM_B", "!CUSTOM_A", A, f"in:{A}", "none", "isolate", "1"]),
)


@given(st.lists(st.tuples(st.builds(str.__add__, _WORDS, st.sampled_from(["", "1", "_a", " "])), _VALUES), max_size=6))
def test_no_query_breaks_the_parser(pairs: list[tuple[str, str]]) -> None:
    """Any pairs of text give a request, or InvalidRequest that names a field; never another error."""
    made = attempt(lambda: ResourceRequest.from_query(pairs))
    if isinstance(made, ResourceRequest):
        assert list(PlacementTree().candidates(made)) == []


_ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=8), inner, max_size=3),
        st.sets(st.integers(), max_size=2),
    ),
    max_leaves=6,
)


@given(
    groups=_ANYTHING,
    rest=st.dictionaries(
        st.sampled_from(["limit", "group_policy", "same_subtree", "root_required", "root_forbidden"]), _ANYTHING
    ),
)
@example(groups={}, rest={"group_policy": []})
def test_no_value_breaks_a_request(groups: object, rest: dict) -> None:
    """Whatever is given: a request, or a typed error that names the field."""
    attempt(lambda: ResourceRequest(groups, **rest))
    attempt(lambda: ResourceRequest.from_query(groups))


@given(
    st.dictionaries(
        st.sampled_from(["resources", "required", "forbidden", "member_of", "not_member_of", "in_tree"]), _ANYTHING
    )
)
def test_no_value_breaks_a_group(arguments: dict) -> None:
    attempt(lambda: RequestGroup(**arguments))


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("resources1=VCPU:4&required=HW_NUMA_ROOT", "required stands alone: did you mean required1 beside resources1?"),
        ("resources=VCPU:4&required1=HW_NUMA_ROOT", "required1 stands alone: did you mean required beside resources?"),
        ("resources_a=VCPU:4&member_of=3a55ea0e-4d0b-4a0f-9a66-4c4a5e6a3c11", "did you mean member_of_a beside"),
        ("resources1=VCPU:4&required=!CUSTOM_X", "did you mean required1 beside resources1?"),
    ],
)
def test_a_forgotten_suffix_is_guessed(query, hint):
    """A condition whose group asks for nothing: the likeliest slip is its number."""
    with pytest.raises(InvalidRequest) as refused:
        ResourceRequest.from_query(query)
    assert hint in str(refused.value)
    assert refused.value.field.startswith("resources")
