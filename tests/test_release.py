"""What a release is made of says the same everywhere: versions, and the oldest versions of what is depended on."""

import re
import tomllib

import cloudcore
from tests.services._host import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
NAME = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?>=([0-9.]+)")

BUILT_HERE = {"libvirt-python", "mysqlclient", "mariadb", "os-brick"}
"""They are compiled against, or work with, what the machine has installed: an old one fits no present machine."""


def _number(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def test_the_version_is_one():
    assert PROJECT["version"] == cloudcore.__version__


def test_every_extra_is_on_the_page_of_extras():
    page = (REPOSITORY / "docs" / "reference" / "extras.md").read_text()
    assert [extra for extra in PROJECT["optional-dependencies"] if f"`{extra}`" not in page] == []


def test_the_oldest_versions_that_are_tested_are_those_that_are_admitted():
    lines = (REPOSITORY / "constraints" / "lowest.txt").read_text().splitlines()
    tested = {name.lower(): _number(version) for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [
        NAME.match(each).groups() for each in (*PROJECT["dependencies"], *(one for part in extras for one in part))
    ]
    admitted = {name.lower(): _number(version) for name, version in wanted if name not in BUILT_HERE}
    assert {name: tested.get(name) for name in admitted} == admitted
