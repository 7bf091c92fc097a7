"""The state table: what is legal, what must never be, and that the documentation shows it as it is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore import errors
from cloudcore.attach.lifecycle import states
from cloudcore.attach.lifecycle.states import (
    AT_REST,
    TABLE,
    WAITING,
    Event,
    State,
    Transition,
    breaches,
    diagram,
    resume,
    transition,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "attachment-states.md"


def test_the_table_keeps_its_rules():
    assert breaches() == []


@pytest.mark.parametrize(
    ("state", "event", "target", "rule"),
    [
        (State.ATTACHED, Event.DETACH, Transition(State.UNMAPPING), "rule 1"),
        (State.CONNECTING, Event.UNDO, Transition(State.UNMAPPING), "rule 1"),
        (State.UNPLUGGING, Event.DONE, Transition(State.ABSENT), "rule 1"),
        (State.PLUGGING, Event.REFUSED, Transition(State.DISCONNECTING), "rule 2"),
        (State.COMPLETE_UNCERTAIN, Event.UNDO, Transition(State.DISCONNECTING), "rule 2"),
    ],
)
def test_a_bad_edit_is_noticed(state, event, target, rule):
    """The check is no ornament: each planted mistake is found."""
    found = breaches([*TABLE.items(), ((state, event), target)])
    assert any(text.startswith(rule) for text in found)


def test_a_dead_end_is_noticed():
    rows = [(pair, target) for pair, target in TABLE.items() if pair[0] is not State.UNMAP_UNCERTAIN]
    rows.append(((State.UNMAP_UNCERTAIN, Event.FOUND), Transition(State.UNMAP_UNCERTAIN)))
    assert any(text.startswith("rule 3") for text in breaches(rows))


@given(st.sampled_from(State), st.sampled_from(Event), st.lists(st.text(max_size=5), max_size=3))
def test_only_legal_pairs_pass(state, event, story):
    """Everything else is refused, with what is legal and with the story so far."""
    if (state, event) in TABLE:
        assert transition(state, event) == TABLE[state, event]
        return
    with pytest.raises(errors.InvalidTransition) as caught:
        transition(state, event, story, identifier="a1")
    assert (caught.value.state, caught.value.event, caught.value.story) == (state, event, tuple(story))
    for legal_state, legal_event in TABLE:
        if legal_state is state:
            assert legal_event in str(caught.value)


def test_every_interrupted_state_has_something_to_resume():
    """And those at rest have nothing."""
    for state in State:
        assert (resume(state) is None) == (state in AT_REST or state is State.PENDING), state


def test_every_interrupted_state_can_lose_its_driver():
    """A crash is an event like any other."""
    for state in set(State) - AT_REST - WAITING:
        assert state.uncertain or (state, Event.LOST) in TABLE, state


def test_nothing_leaves_absence():
    assert not [pair for pair in TABLE if pair[0] is State.ABSENT]


@given(st.data())
def test_any_walk_can_end(data):
    """From wherever a walk of random legal events has led, undoing or finishing gets to rest by legal events alone."""
    state = State.RESERVING
    for _ in range(data.draw(st.integers(0, 25))):
        events = sorted(event for source, event in TABLE if source is state)
        if not events:
            break
        state = TABLE[state, Event(data.draw(st.sampled_from(events)))].state
    seen = {state}
    while not seen & AT_REST:
        grown = seen | {target.state for (source, _), target in TABLE.items() if source in seen}
        assert grown != seen
        seen = grown


def test_the_documentation_shows_the_table():
    """Each diagram in the page is the one that the table gives."""
    text = DOCS.read_text()
    shown = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert shown == [diagram(group) for group in states.GROUPS.values()]
    for name in states.GROUPS:
        assert name in text
