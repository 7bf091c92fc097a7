"""What notebooks are shown: whole, bounded, escaped; data frames of the same values; bars that move."""

import io
import sys
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from html.parser import HTMLParser

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from cloudcore import Cell, CellRouter, InstanceDirectory, InstanceStore, Inventory, PlacementTree, Query
from cloudcore.errors import InvalidArgument, MissingExtra, NoValidHost
from cloudcore.notebook import ROWS, Table, html_of, progress, table, words
from cloudcore.placement import headroom, plan_drain
from cloudcore.testing.worlds import small_world

HOSTILE = "<script>alert('x')</script>&\"<b>"
MIGRATION = "0b7e9b4c-3b0e-4c57-8d2b-9c7d8a1f2e03"
HELD = "c1a5b0de-6f0e-4b8f-9e49-0f5d2b1f7a10"


class Reader(HTMLParser):
    """Reads HTML strictly enough: every tag closed in order; collects tags and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.texts = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def world():
    with small_world(2, cells=2, racks=1, hosts=3, instances=8, history=6, volumes=3) as made:
        yield made


def test_every_answer_shows_itself(world):
    tree, guest = world.tree, next(iter(world.guests))
    with pytest.raises(NoValidHost) as refused:
        world.selector.select("resources=VCPU:4000", project_id="blue", user_id="ada")
    answers = [
        world.router.page(Query(limit=3)),
        world.router.count(by="vm_state"),
        tree.candidates(world.flavors["small"]),
        tree.candidates(world.flavors["small"]).first(),
        tree.candidates("resources=VCPU:4000"),
        tree.candidates("resources=VCPU:4000").report(),
        tree.candidates("resources=VCPU:4000").report().record(),
        refused.value.report,
        headroom(tree, world.flavors, cell_of=world.cell_of),
        plan_drain(tree, [world.guests[guest].host], request_of=world.request_of),
        world.volumes.create_volume(2**30, name="data"),
        world.attachments.attachments()[0],
        world.attachments.audit(),
        world.attachments.heal(),
        world.attachments.recover(),
        world.attachments.plan_attach(world.volumes.create_volume().id, guest),
        world.attachments.begin_move(guest, None, kind="shelve"),
        world.selector.select_destination(guest, MIGRATION, world.request_of(guest)),
        world.ledger.move(MIGRATION),
        world.ledger.confirm_move(MIGRATION),
        world.ledger.claim(
            HELD, {tree[world.guests[guest].host].uuid: {"DISK_GB": 1}}, project_id="blue", user_id="ada"
        ),
        world.ledger.holders(next(iter(world.ledger.allocations(guest)))),
        world.ledger.moves(),
        world.selector.preview(world.flavors["small"])[0][0],
        table(world.ledger.usages_by_type()),
        table(world.attachments.attachments()),
        tree.to_table(),
    ]
    world.attachments.revert_move(guest)
    for answer in answers:
        reader = read(answer._repr_html_())
        assert "".join(reader.texts).strip(), type(answer)


def test_a_page_says_whose_rows_are_missing(tmp_path):
    """With a cell away nobody knows whether more follow; the sentence names the cells, a few of very many."""
    alive = Cell("alive", f"sqlite:///{tmp_path}/alive.db")
    dead = [Cell(f"dead{number}", f"sqlite:///{tmp_path}/none/{number}.db") for number in range(7)]
    with CellRouter([alive, *dead], directory=InstanceDirectory(f"sqlite:///{tmp_path}/directory.db")) as router:
        store = InstanceStore(router)
        store.create_tables("alive")
        store.create("alive", project_id="blue")
        page, counted = router.page()._repr_html_(), router.count()._repr_html_()
        for cell in dead[1:]:
            router.remove_cell(cell.name)
        one = router.page()._repr_html_()
        router.remove_cell("dead0")
        assert "1 record, no more follow; every cell answered" in router.page()._repr_html_()
    for told in (page, counted):
        assert "dead0 (down)" in told
        assert "and 2 more did not answer in full" in told
    assert "no more follow" not in page
    assert "the other cells have no more" in page
    assert "Missing: dead0 (down) did not answer" in one


def test_names_from_outside_are_escaped(tmp_path):
    """Of providers, records, cells, errors: none of them becomes a tag."""
    tree = PlacementTree()
    tree.add(HOSTILE, inventory={"VCPU": Inventory(4)})
    missing = CellRouter([Cell(f"<i>{HOSTILE[:8]}", f"sqlite:///{tmp_path}/<u>/x.db")])
    shown = [
        tree.candidates("resources=VCPU:1"),
        tree.candidates("resources=VCPU:1").first(),
        tree.candidates("resources=VCPU:9").report(),
        tree.to_table(),
        missing.page(),
        table([{"name": HOSTILE, HOSTILE: 1}], title=HOSTILE),
    ]
    for answer in shown:
        reader = read(answer._repr_html_())
        assert reader.tags <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}, answer
    assert HOSTILE in "".join(read(shown[0]._repr_html_()).texts)
    missing.close()


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.none() | st.text() | st.integers(), min_size=1), max_size=5)
)
def test_a_table_has_what_was_given(rows):
    made = table(rows)
    assert len(made.rows) == len(rows)
    for row, record in zip(rows, made.to_records(), strict=True):
        assert {name: value for name, value in row.items() if words(value) != "–"}.items() <= record.items()
    assert read(made._repr_html_()).tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert str(made) is not None


def test_what_is_shown_is_bounded_and_says_so():
    made = table(({"number": number} for number in range(10_000)), most=200)
    assert len(made) == 200
    assert made._repr_html_().count("<tr>") == ROWS + 1
    assert "and perhaps more" in made._repr_html_()
    assert f"and {200 - ROWS} more" in table([{"n": n} for n in range(200)])._repr_html_()
    assert len(read(table([{"text": "x" * 10_000}])._repr_html_()).texts[1]) <= 300


def test_columns_can_be_chosen_and_must_exist(world):
    made = table(world.history, ["what", "destination"])
    assert made.headings == ("what", "destination")
    with pytest.raises(InvalidArgument, match="no 'whither'"):
        table(world.history, ["whither"])
    assert table([], ["what"]).rows == ()


@pytest.mark.parametrize("nothing", [None, (), [], set(), frozenset(), {}])
def test_columns_that_are_empty_everywhere_are_left_out(nothing):
    assert table([{"a": 1, "b": nothing}, {"a": 2, "b": None}]).headings == ("a",)
    assert table([{"a": 1, "b": nothing}], ["b"]).headings == ("b",)
    assert table([{"a": 1, "b": nothing}, {"a": 2, "b": ["x"]}]).headings == ("a", "b")


def test_an_instant_that_utc_cannot_hold_is_shown_as_it_stands():
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
    assert words(first).endswith("-01-01 00:00:00")


class Colour(StrEnum):
    RED = "red"


def test_frames_hold_the_same_values():
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [{"n": 1, "at": at, "colour": Colour.RED, "amounts": {"VCPU": 4}}, {"n": None, "at": at}]
    made = table(rows)
    frame, arrow = made.to_pandas(), made.to_arrow()
    assert list(frame.columns) == arrow.schema.names == ["n", "at", "colour", "amounts"]
    assert arrow.to_pylist()[0] == {"n": 1, "at": at, "colour": "red", "amounts": "VCPU: 4"}
    assert arrow.schema.field("n").type == pa.int64()
    assert isinstance(frame, pd.DataFrame)
    assert made.to_records()[1]["n"] is None
    for odd in ([1, "one"], [2**70], ["half \ud800"]):
        with pytest.raises(InvalidArgument, match="column odd"):
            table([{"odd": value} for value in odd]).to_arrow()


def test_pages_as_frames(world):
    page = world.router.page()
    assert page.to_arrow().to_pylist() == page.to_records()
    assert page.to_pandas()["uuid"].tolist() == [record.uuid for record in page.records]
    empty = world.router.page(Query(where={"display_name": "nobody"}))
    assert empty.to_arrow().num_rows == len(empty.to_pandas()) == 0


@pytest.mark.parametrize(
    ("module", "extra", "call"), [("pandas", "pandas", "to_pandas"), ("pyarrow", "arrow", "to_arrow")]
)
def test_a_missing_extra_is_named(monkeypatch, module, extra, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf'pip install "cloudcore\[{extra}\]"'):
        getattr(table([{"a": 1}]), call)()


def test_bars_move_to_what_was_told(world):
    with tqdm(file=io.StringIO()) as bar:
        assert len(list(world.router.stream(on_progress=progress(bar)))) == bar.n == len(world.guests)
    told = []
    world.store.audit(on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] >= len(world.guests)
    with tqdm(file=io.StringIO()) as bar:
        tell = progress(bar)
        tell(object(), 1, 4)
        tell(object(), 3, 4)
        assert (bar.n, bar.total) == (3, 4)


def test_healing_tells_how_far_it_is(world):
    guest = next(iter(world.guests))
    volume = world.volumes.create_volume()
    attachment = world.attachments.attach(volume.id, guest)
    world.volumes.delete(attachment.service_id)
    found = world.attachments.audit()
    assert found.findings
    told = []
    world.attachments.heal(found, apply=True, on_progress=lambda *numbers: told.append(numbers))
    assert told == [(number, len(found.findings)) for number in range(1, len(found.findings) + 1)]


def test_sentences_and_empty_tables():
    assert read(html_of("a < b", Table(headings=("x",), rows=()))).texts == ["a < b"]


def test_allocations_show_names_where_a_tree_is_given(world):
    """And a move's story is a column only where it is asked for."""
    guest = next(iter(world.guests))
    world.selector.select_destination(guest, "9d1c9f0e-1c57-4b54-8d0c-3f1b6a7f2c55", world.request_of(guest))
    moves = world.ledger.moves()
    assert isinstance(moves, list)
    made = table(moves, names=world.tree)
    assert "story" not in made.headings
    (row,) = made.to_records()
    assert set(row["source"]) == {world.tree[uuid].name for uuid in moves[0].source}
    assert table(moves, ["instance", "story"]).headings == ("instance", "story")
    assert table(moves).to_records()[0]["source"] == moves[0].source
    world.ledger.revert_move("9d1c9f0e-1c57-4b54-8d0c-3f1b6a7f2c55")
    assert "none" in world.ledger.moves()._repr_html_()


def test_one_is_not_plural():
    tree = PlacementTree()
    tree.add("cn1")
    assert "1 provider in 1 tree>" in repr(tree)


def test_a_move_says_that_both_halves_count_on_its_own_host(world):
    """While they do; a destination elsewhere has nothing to say."""
    guest, migration = list(world.guests)[-1], "6f1f3c52-3d0a-4a4f-8b0e-5a7a1f0e7d11"
    here = next(uuid for uuid, amounts in world.ledger.allocations(guest).items() if "DISK_GB" in amounts)
    begun = world.ledger.begin_move(guest, migration, {here: {"DISK_GB": 1}})
    assert f"both on {here}, where their sum is in use" in begun._repr_html_()
    assert "both on" not in world.ledger.revert_move(migration)._repr_html_()
    migration = "6f1f3c52-3d0a-4a4f-8b0e-5a7a1f0e7d12"
    world.selector.select_destination(guest, migration, world.request_of(guest))
    assert "both on" not in world.ledger.move(migration)._repr_html_()
    world.ledger.revert_move(migration)
