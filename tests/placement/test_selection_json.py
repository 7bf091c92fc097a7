"""What is sent to a cell is a selection or is refused as none, whoever wrote and sealed it."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import InvalidSelection
from cloudcore.placement import Selection
from cloudcore.placement.hosts.selection import HostChoice
from tests.placement.ledger_worlds import uuid_of


def choice(name: str) -> HostChoice:
    root = uuid_of(name)
    return HostChoice(root=root, name=name, cell="c", allocations={root: {"VCPU": 1}}, mappings={"_1": (root,)})


SELECTION = Selection(
    instance=uuid_of("vm"), primary=choice("a"), alternates=(choice("b"),), project_id="p", user_id="u"
)
GARBAGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\0", uuid_of("b")]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def document() -> dict[str, Any]:
    body = json.loads(SELECTION.to_json())
    del body["seal"]
    return body


def sealed(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "seal": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"})


def paths(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in inner for place in ((*above, key), *paths(value, (*above, key)))]


@given(path=st.sampled_from(paths(document())), garbage=GARBAGE)
def test_anything_anywhere_in_it(path, garbage):
    body = copy.deepcopy(document())
    *above, last = path
    place = body
    for key in above:
        place = place[key]
    place[last] = garbage
    try:
        found = Selection.from_json(sealed(body))
    except InvalidSelection:
        return
    assert Selection.from_json(found.to_json()).to_json() == found.to_json()
    for each in found.choices:
        assert (type(each.root), type(each.name), type(each.cell)) == (str, str, str)
        assert 0 < len(each.name) <= 200
        assert each.name.encode()


@pytest.mark.parametrize(
    "text",
    ["", "x", "5", "[]", "[" * 100_000, '{"a":' * 100_000, b"\xff", None, 5, {}],
    ids=lambda text: repr(text)[:12],
)
def test_what_is_no_document(text):
    with pytest.raises(InvalidSelection):
        Selection.from_json(text)


def test_what_was_sealed_is_read_and_what_was_altered_is_not():
    assert Selection.from_json(sealed(document())) == SELECTION
    with pytest.raises(InvalidSelection, match="seal"):
        Selection.from_json(SELECTION.to_json().replace('"VCPU":1', '"VCPU":2'))
    with pytest.raises(InvalidSelection, match="seal"):
        Selection.from_json(SELECTION.to_json(key=b"secret"))
    assert Selection.from_json(SELECTION.to_json(key=b"secret"), key=b"secret") == SELECTION
