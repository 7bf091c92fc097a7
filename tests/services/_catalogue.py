"""Which services there are, what each needs to be installed, and how the supervisor makes one.

A name is `KIND` or `KIND:VARIANT`; every name is a server of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import _ceph, _cinder, _clusters, _databases, _guest, _libvirt
from tests.services._host import CACHE, Ports, ServiceError, as_root

if TYPE_CHECKING:
    from tests.services._supervisor import Service

Depend = Callable[[str], dict[str, object]]
"""Starts another service and returns its `info()`."""


def _program(name: str) -> bool:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _rbd_in_cinder() -> bool:
    return any((CACHE / "cinder" / "venv").glob("lib/python3*/site-packages/rbd.*.so"))


_APT = "apt-get install "
_LIBVIRT_PYTHON = f"{_APT}libvirt-dev gcc pkg-config python3-dev; pip install libvirt-python"
_CLIENT = f"{_APT}libmariadb-dev gcc pkg-config python3-dev; pip install "
_NEEDS: dict[str, list[tuple[Callable[[], object], str]]] = {
    "postgresql": [
        (_databases.postgresql_binaries, f"{_APT}postgresql"),
        (lambda: _module("psycopg"), 'pip install "psycopg[binary]"'),
    ],
    "mariadb": [
        (lambda: _databases.mariadb_server() and _program("mariadb-install-db"), f"{_APT}mariadb-server"),
        (lambda: _module("pymysql"), "pip install PyMySQL"),
    ],
    "galera": [
        (lambda: _databases.mariadb_server() and _program("mariadb-install-db"), f"{_APT}mariadb-server"),
        (_clusters.galera_provider, f"{_APT}galera-4"),
        (lambda: all(map(_program, ("rsync", "lsof"))), f"{_APT}rsync lsof"),  # how a node gets its first copy
        (lambda: _module("pymysql"), "pip install PyMySQL"),
    ],
    "pgbouncer": [
        (lambda: _program("pgbouncer"), f"{_APT}pgbouncer"),
        (_databases.postgresql_binaries, f"{_APT}postgresql"),
        (lambda: _module("psycopg"), 'pip install "psycopg[binary]"'),
    ],
    "small-disk": [(_databases.mounts, "nothing: it takes the right to mount a file system")],
    "mysqldb": [(lambda: _module("MySQLdb"), f"{_CLIENT}mysqlclient")],
    "mariadbconnector": [(lambda: _module("mariadb"), f"{_CLIENT}mariadb")],
    "keystonemiddleware": [
        (lambda: _module("keystonemiddleware") and _module("a2wsgi"), "pip install keystonemiddleware a2wsgi")
    ],
    "libvirt": [(lambda: _module("libvirt"), _LIBVIRT_PYTHON)],
    "qemu": [
        (lambda: _module("libvirt"), _LIBVIRT_PYTHON),
        (lambda: Path("/usr/sbin/libvirtd").exists(), f"{_APT}libvirt-daemon libvirt-daemon-driver-qemu"),
        (lambda: _program("qemu-system-x86_64"), f"{_APT}qemu-system-x86 qemu-utils qemu-block-extra"),
    ],
    "ceph": [
        (lambda: all(map(_program, ("ceph-mon", "ceph-osd", "ceph-mgr"))), f"{_APT}ceph-mon ceph-osd ceph-mgr"),
        (lambda: all(map(_program, ("ceph", "rbd"))), f"{_APT}ceph-common"),
    ],
    "cinder": [
        (_cinder.installed, "bash scripts/setup cinder"),
        (lambda: _module("cinderclient"), "pip install python-cinderclient"),
    ],
    "rbd": [(_rbd_in_cinder, f"{_APT}python3-rados python3-rbd; bash scripts/setup cinder")],
    "guest": [(_guest.built, f"{_APT}busybox-static cpio; bash scripts/setup guest")],
}


def missing(kind: str) -> str | None:
    """What this machine lacks to run such a service, with the lines that install it; None when it is all there.

    `libvirt` is the Python binding (enough for `test:///default`), `qemu` the private hosts, `rbd` Ceph's binding for
    Cinder.
    """
    if kind not in _NEEDS:
        raise ValueError(f"no such service: {kind}; there are {', '.join(_NEEDS)}")
    lines = [line for there, line in _NEEDS[kind] if not there()]
    given_away = {"postgresql", "mariadb", "galera", "pgbouncer", "qemu", "ceph"}
    if kind in given_away and as_root() and not _program("setpriv"):
        lines.append(f"{_APT}util-linux")
    return f"{kind} cannot run on this machine; what installs it: {'; '.join(lines)}" if lines else None


def create(name: str, folder: Path, ports: Ports, depend: Depend) -> Service:
    """The service of this name, not started."""
    kind, _, variant = name.partition(":")
    makers: dict[str, Callable[[], Service]] = {
        "postgresql": lambda: _databases.PostgreSQL(
            folder, ports, durable=variant.endswith("durable"), small_disk=variant == "small-disk"
        ),
        "mariadb": lambda: _databases.MariaDB(folder, ports, durable=variant.endswith("durable")),
        "galera": lambda: _clusters.Galera(folder, ports, impatient=bool(variant)),
        "postgresql-pair": lambda: _clusters.Pair(folder, ports, synchronous=not variant.endswith("asynchronous")),
        "pgbouncer": lambda: _clusters.Pooler(folder, ports, lambda: depend("postgresql")),
        "ceph": lambda: _ceph.Ceph(folder, ports),
        "cinder-file": lambda: _cinder.Cinder(folder, ports, "file", lambda: depend("ceph")),
        "cinder-rbd": lambda: _cinder.Cinder(folder, ports, "rbd", lambda: depend("ceph")),
        "host": lambda: _libvirt.LibvirtHost(folder, ports),
        "guest": lambda: _guest.GuestFiles(folder),
    }
    if kind not in makers:
        raise ServiceError(f"no such service: {name}")
    return makers[kind]()
