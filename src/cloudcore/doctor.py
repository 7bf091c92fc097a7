"""What is installed and reachable, what is missing, and the line that mends it: ``cloudcore doctor``."""

from __future__ import annotations

import platform
from enum import StrEnum
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

import attrs

from cloudcore._extras import require_extra
from cloudcore.errors import CloudcoreError, VolumeServiceError, VolumeServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Finding", "State", "examine"]


class State(StrEnum):
    """What was found of one part."""

    OK = "ok"
    MISSING = "missing"  # optional, and not installed
    UNREACHABLE = "unreachable"  # installed or asked for, and it does not answer
    BROKEN = "broken"  # needed, and not there


@attrs.frozen(kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        part: What was looked at.
        state: What was found.
        detail: Version, address or error.
        cure: The command that mends it, where there is one.
        asked_for: Whether the caller named it; what nobody named may be away.
    """

    part: str
    state: State
    detail: str
    cure: str | None = None
    asked_for: bool = False


_CORE = ("attrs", "SQLAlchemy", "sortedcontainers", "networkx", "tenacity", "numpy")
_EXTRAS = {
    "libvirt": ("libvirt-python",),
    "cinder": ("python-cinderclient", "keystoneauth1"),
    "postgresql": ("psycopg",),
    "mysql": ("PyMySQL",),
    "mysqlclient": ("mysqlclient",),
    "mariadb": ("mariadb",),
    "migrations": ("alembic",),
    "openstack": ("os-traits", "os-resource-classes"),
    "rich": ("rich",),
    "cli": ("click",),
    "brick": ("os-brick",),
    "castellan": ("castellan",),
}
_CLIENT = " (after: apt-get install libmariadb-dev pkg-config gcc python3-dev)"
_NEEDS = {
    "libvirt": " (after: apt-get install libvirt-dev pkg-config gcc python3-dev)",
    "mysqlclient": _CLIENT,
    "mariadb": _CLIENT,
}


def examine(
    *, databases: tuple[str, ...] = (), hypervisors: tuple[str, ...] = (), cinder: str | None = None
) -> Iterator[Finding]:
    """Look at this machine, part by part.

    Args:
        databases: Database URLs to try.
        hypervisors: libvirt URIs to try, beside ``test:///default`` and ``qemu:///system``.
        cinder: Address of a Cinder API to try, such as ``http://127.0.0.1:8776``.
    """
    yield Finding(part="Python", state=State.OK, detail=platform.python_version())
    yield Finding(part="cloudcore", state=State.OK, detail=metadata.version("cloudcore"))
    for name in _CORE:
        yield _package(name, State.BROKEN, f"pip install {name}")
    for extra, names in _EXTRAS.items():
        for name in names:
            yield _package(name, State.MISSING, f'pip install "cloudcore[{extra}]"{_NEEDS.get(extra, "")}')
    usual = () if _version("libvirt-python") is None else ("test:///default", "qemu:///system")
    for uri in dict.fromkeys((*usual, *hypervisors)):
        yield _reach(uri, partial(_hypervisor, uri), asked_for=uri in hypervisors)
    for url in databases:
        yield from _database(url)
    if cinder is not None:
        yield _reach(cinder, partial(_cinder, cinder), asked_for=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, otherwise: State, cure: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(part=name, state=otherwise, detail="not installed", cure=cure)
    return Finding(part=name, state=State.OK, detail=version)


def _reach(part: str, ask: Callable[[], str], *, asked_for: bool) -> Finding:
    try:
        return Finding(part=part, state=State.OK, detail=ask(), asked_for=asked_for)
    except CloudcoreError as error:
        return Finding(part=part, state=State.UNREACHABLE, detail=str(error), asked_for=asked_for)


def _hypervisor(uri: str) -> str:
    from cloudcore.hypervisor import LibvirtHypervisor

    with LibvirtHypervisor(uri) as hypervisor:
        facts = hypervisor.facts()
        return f"host {hypervisor.host}: {facts.summary()}"


def _database(url: str) -> Iterator[Finding]:
    """What stands there, and what had better be changed: one line for each."""
    from cloudcore.database import Database
    from cloudcore.database.addresses import parse_url, shown
    from cloudcore.database.standing import examine_database
    from cloudcore.schema import require_file

    part = "database"
    try:
        part = shown(parse_url(url))
        require_file(url)
        with Database(url) as database:
            facts = examine_database(database)
    except CloudcoreError as error:
        yield Finding(part=part, state=State.UNREACHABLE, detail=str(error), asked_for=True)
        return
    for fact in facts:
        yield Finding(part=part, state=State.OK, detail=f"{fact.name}: {fact.found}", cure=fact.advice, asked_for=True)


def _cinder(address: str) -> str:
    """Ask an API for its versions, which needs no login."""
    sessions = require_extra("keystoneauth1.session", "cinder")
    failures = require_extra("keystoneauth1.exceptions", "cinder")
    try:
        answer = sessions.Session().get(f"{address.rstrip('/')}/", authenticated=False, connect_retries=0, timeout=10)
        offered = answer.json()["versions"]
        third = [each for each in offered if each["id"].startswith("v3")]
        known = [f"{each['min_version']} to {each['version']}" for each in third]
    except failures.ClientException as error:
        raise VolumeServiceUnavailable(f"{address}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VolumeServiceError(f"{address}: this is no volume API ({type(error).__name__}: {error})") from error
    if not known:
        raise VolumeServiceError(f"{address}: this is no volume API: it does not offer version 3")
    return f"volume API, microversions {', '.join(known)}"
