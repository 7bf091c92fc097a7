"""Nova's instances by their addresses, out of the JSON that Nova caches of their ports."""

from __future__ import annotations

import ipaddress
import json
import uuid

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given

from cloudcore.database import open_engine
from cloudcore.errors import InvalidCursor, InvalidQuery
from cloudcore.listing import NOVA_INSTANCES, Cell, Query
from cloudcore.listing.records.nova import _address_pattern
from cloudcore.listing.records.nova_tables import instance_info_caches, instances

LABEL = 'x", "address": "10.9.9.9", "type": "fixed'
"""A network's name that would be an address if quotes in it were not escaped."""


def address(text: str, type_: str, **more) -> dict:
    """As Nova's network model has it, in that order."""
    return {"address": text, "type": type_, "version": ipaddress.ip_address(text).version, "meta": {}, **more}


def cache(*fixed: str, floating: tuple[str, ...] = ()) -> str:
    """One port with these addresses, in a network with a gateway, a name server and a hostile name."""
    outside = [address(text, "floating") for text in floating]
    subnet = {
        "cidr": "10.0.0.0/24",
        "dns": [address("8.8.8.8", "dns")],
        "gateway": address("10.0.0.254", "gateway"),
        "ips": [address(text, "fixed", floating_ips=outside) for text in fixed],
        "routes": [],
        "version": 4,
        "meta": {"dhcp_server": "10.0.0.2"},
    }
    network = {"id": "n", "bridge": "br", "label": LABEL, "subnets": [subnet], "meta": {}}
    return json.dumps([{"id": "p", "address": "fa:16:3e:00:00:01", "network": network, "type": "ovs", "meta": {}}])


CACHES = {
    "one": (cache("10.0.0.1"), 0),
    "ten": (cache("10.0.0.10", floating=("172.24.4.3",)), 0),
    "hundred": (cache("110.0.0.1"), 0),
    "lookalike": (cache("10.0.101.1"), 0),
    "both": (cache("10.1.0.7", "2001:db8::5"), 0),
    "six": (cache("2001:db8::50"), 0),
    "other six": (cache("2001:db80::5"), 0),
    "gone": (cache("10.0.0.1", "2001:db8::5"), 7),
    "none": ("[]", 0),
    "null": (None, 0),
    "missing": None,
}
"""Instances by name: what is cached, and the cache's own mark of deletion; None for no cache."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def url(request, databases):
    made = databases.url(request.param)
    engine = open_engine(made, durable=False)
    with engine.begin() as connection:
        instances.create(connection)
        instance_info_caches.create(connection)
        for number, (name, cached) in enumerate(CACHES.items()):
            key = str(uuid.UUID(int=number + 1))
            row = {"uuid": key, "display_name": name, "deleted": 0, "project_id": "p" if number % 2 else "q"}
            connection.execute(sa.insert(instances), row)
            if cached is not None:
                info, deleted = cached
                row = {"instance_uuid": key, "network_info": info, "deleted": deleted}
                connection.execute(sa.insert(instance_info_caches), row)
    engine.dispose()
    return made


@pytest.fixture
def found(url, routers):
    router = routers([Cell("cell", url)], source=NOVA_INSTANCES)

    def names(where, **options) -> set[str]:
        query = Query(where=where, **options)
        shown = {record.display_name for record in router.page(query).records}
        assert router.count(query).total == len(shown)
        return shown

    return names


def test_addresses_of_instances(found):
    """Whole addresses and beginnings, of both families; neighbours, gateways, deleted caches and names do not match."""
    has = NOVA_INSTANCES.has_address
    expected = {
        "10.0.0.1": {"one"},
        "10.0.0.10": {"ten"},
        "10.0.0.": {"one", "ten"},
        "10.0.": {"one", "ten", "lookalike"},
        "10.0.10.": set(),
        "10.": {"one", "ten", "lookalike", "both"},
        "2001:db8::5": {"both"},
        "2001:DB8:0:0::0005": {"both"},
        "2001:db8:": {"both", "six"},
        "2001:DB8::": {"both", "six"},
        "fa:": set(),
        "10.0.0.254": set(),
        "10.0.0.2": set(),
        "8.8.8.8": set(),
        "10.9.9.9": set(),
        "172.24.4.3": set(),
    }
    assert {text: found(has(text)) for text in expected} == expected
    assert found(has("172.24.", floating=True)) == {"ten"}
    assert found(has("10.0.0.254", floating=True)) == set()


def test_it_joins_with_other_tests(found):
    """As any expression, with the shorthands beside it."""
    has = NOVA_INSTANCES.has_address
    assert found(has("10.0.0.1") | has("2001:db8::50")) == {"one", "six"}
    assert found(has("10.") & (instances.c.display_name != "one")) == {"ten", "lookalike", "both"}
    assert found(has("10."), tenant="p") == {"ten", "lookalike"}
    assert found(~has("10.") & ~has("2001:")) == {"hundred", "gone", "none", "null", "missing"}


def test_a_cursor_is_of_one_address(url, routers):
    """A walk goes on with its own address only."""
    router = routers([Cell("cell", url)], source=NOVA_INSTANCES)
    query = Query(where=NOVA_INSTANCES.has_address("10."), sort=["display_name"], limit=3)
    first = router.page(query)
    second = router.page(query, cursor=first.next_cursor)
    assert [record.display_name for record in (*first.records, *second.records)] == ["both", "lookalike", "one", "ten"]
    with pytest.raises(InvalidCursor):
        router.page(
            Query(where=NOVA_INSTANCES.has_address("10.0."), sort=["display_name"], limit=3), cursor=first.next_cursor
        )


@pytest.mark.parametrize(
    "text",
    [
        "", ".", ":", "1", "10", "10.0", "10.0.0", "10.0.0.256", "256.", "10.0.0.1.", "10..", "010.", "10.0.0.1/24",
        "10.0.0.%", "10.0.0._", "%", "10.0.0.1'", '10.0.0.1" OR "1', "10.0.0.1\\", ".*", "10.0.0.[0-9]", "10.0.0.1\n",
        "fe80::1%eth0", 'fe80::1%"|.*', "2001:0db8:", "fe80:0:0:", "2001:db8", "1:2:3:4:5:6:7:8:", "a::b::", ":::",
        "g:", "::ffff:10.", "١٠.", "10.0.0.1\0", "1" * 100_000, None, 167772161, b"10.0.0.1", ["10.0.0.1"],
    ],
    ids=lambda text: repr(text)[:24],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    """Quotes, wildcards, patterns, zones, networks and parts without their separator, before any cell is asked."""
    with pytest.raises(InvalidQuery, match="no IP address") as caught:
        NOVA_INSTANCES.has_address(text)
    assert len(str(caught.value)) < 400


@given(st.text() | st.text("0123456789abcdefABCDEF.:%\"'\\[]*_|", max_size=20))
def test_no_text_gets_into_the_pattern(text):
    """Whatever is accepted is digits, letters and separators."""
    try:
        pattern = _address_pattern(text, "fixed")
    except InvalidQuery:
        return
    inside = pattern.removeprefix('"address": "').removesuffix('", "type": "fixed"').removesuffix("[0-9a-f.:]*")
    assert set(inside.replace("[.]", "")) <= set("0123456789abcdef:")


@given(st.ip_addresses(), st.data())
def test_every_beginning_of_an_address_is_one(each, data):
    """Cut behind any separator of the shortest form."""
    text = str(each)
    cuts = [n + 1 for n, letter in enumerate(text) if letter in ".:" and text[: n + 1] != ":"]
    part = text[: data.draw(st.sampled_from(cuts))]
    assert _address_pattern(part, "fixed").endswith('[0-9a-f.:]*", "type": "fixed"')
    assert _address_pattern(text.upper(), "fixed")
