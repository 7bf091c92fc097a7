"""A report that travels: the same answers as the report's, and no answer where it does not know."""

from __future__ import annotations

import pickle

import pytest

from cloudcore.errors import ProviderNotFound
from cloudcore.placement import PlacementTree, SearchReport


@pytest.fixture
def tree() -> PlacementTree:
    tree = PlacementTree()
    for number in range(6):
        tree.add(f"cn{number}", inventory={"VCPU": 4 if number == 5 else 1})
    return tree


@pytest.fixture
def report(tree: PlacementTree) -> SearchReport:
    """Each host but the last lacks two things."""
    return tree.candidates("resources=VCPU:2&resources1=VCPU:2&group_policy=none").report()


def test_a_pickled_report_answers_as_the_report_does(tree: PlacementTree, report: SearchReport) -> None:
    copy = pickle.loads(pickle.dumps(report))
    assert list(copy) == list(report)
    assert (copy.hosts, copy.fits, copy.counts, copy.complete) == (6, 1, report.counts, True)
    for root in tree.roots():
        assert copy.of_host(root) == copy.of_host(root.uuid) == copy.of_host(root.name) == report.of_host(root)
    assert copy.of_host("cn5") == ()
    assert copy.record() is copy
    assert pickle.loads(pickle.dumps(copy)) == copy


def test_of_each_host_all_rejections_are_recorded_or_none(report: SearchReport) -> None:
    every = list(report)
    assert len(every) == 10
    for most in range(12):
        record = report.record(rejections=most)
        assert list(record) == every[: min(most, 10) // 2 * 2]
        assert record.complete == (most >= 10)


def test_a_host_that_was_not_recorded_does_not_read_as_one_that_fits(report: SearchReport) -> None:
    record = report.record(rejections=5)
    assert record.of_host("cn1") == report.of_host("cn1")
    for host in ("cn2", "cn5"):
        with pytest.raises(ProviderNotFound, match=f"host {host} is not among the 2 hosts .* of 6") as caught:
            record.of_host(host)
        assert caught.value.identifier == host
