"""A whole cloud in one call: hosts, cells, instances with their records and volumes, and what happened to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

import attrs

from cloudcore._values import require_integer
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.database import Database, open_engine
from cloudcore.errors import InvalidArgument, NoValidHost
from cloudcore.listing.cells.cell import Cell
from cloudcore.listing.records.directory import InstanceDirectory
from cloudcore.listing.router import CellRouter
from cloudcore.listing.store import InstanceStore
from cloudcore.placement.allocation_ledger import AllocationLedger
from cloudcore.placement.hosts.weighers import spread
from cloudcore.placement.requests.requests import ResourceRequest
from cloudcore.placement.scheduling.selector import HostSelector
from cloudcore.placement.tree import PlacementTree
from cloudcore.schema import create_schema
from cloudcore.testing.worlds.agreement import require_agreement
from cloudcore.testing.worlds.forests import FLAVORS, Shape, cell_name, forest, new_uuid
from cloudcore.testing.worlds.values import Clock, Event, Guest, What

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.selection import Selection
    from cloudcore.placement.ledger.queries import ConsumerState

__all__ = ["World", "small_world"]

_GIB = 2**30
_USERS = (("blue", "ada"), ("blue", "bob"), ("red", "cleo"), ("green", "dan"))
_AWAY = "sqlite:////nowhere/{}/instances.db"


@attrs.define(kw_only=True, eq=False)
class World:
    """What :func:`small_world` makes: the parts of a cloud over one database, with instances in them.

    A context manager. Its parts may be shared between threads, the methods of the world may not.

    Attributes:
        tree: Bound to the database.
        ledger: In the same database.
        selector: Spreads over the hosts, and chooses the same ones for the same seed.
        router: Over the cells, with a directory.
        store: Writes to them.
        attachments: In the same database, without a hypervisor.
        volumes: What it attaches: cloudcore's own volumes, in the same database.
        flavors: Name → what it asks for, in Placement's query language.
        guests: Uuid → the instances that are there now, in the order in which they were made.
        history: What happened, oldest first.
    """

    tree: PlacementTree
    ledger: AllocationLedger
    selector: HostSelector
    router: CellRouter
    store: InstanceStore
    attachments: AttachmentManager
    volumes: EmbeddedVolumes
    flavors: Mapping[str, str]
    guests: dict[str, Guest] = attrs.field(factory=dict)
    history: list[Event] = attrs.field(factory=list)
    _rng: random.Random = attrs.field(alias="rng", repr=False)
    _clock: Clock = attrs.field(alias="clock", repr=False)
    _places: Mapping[str, Engine | str | URL] = attrs.field(alias="places", repr=False)
    _closing: list[Callable[[], object]] = attrs.field(alias="closing", repr=False)

    # --- asking -------------------------------------------------------------------------------------------------------

    def cell_of(self, root: Provider) -> str | None:
        """The cell of a host, as :class:`~cloudcore.HostSelector` and ``headroom`` want it."""
        return cell_of(root)

    def request_of(self, instance: str | ConsumerState) -> ResourceRequest | None:
        """What an instance needs, as ``plan_drain`` wants it; None for one that is not in this world."""
        guest = self.guests.get(instance if isinstance(instance, str) else instance.consumer)
        return None if guest is None else ResourceRequest.from_query(self.flavors[guest.flavor])

    def on_host(self, host: str) -> list[Guest]:
        """The instances that are on the host of this name."""
        return [guest for guest in self.guests.values() if guest.host == host]

    # --- doing --------------------------------------------------------------------------------------------------------

    def boot(self, flavor: str, count: int = 1, *, alternates: int = 2) -> tuple[Selection, ...]:
        """Place instances of a flavor, as many as fit, and write them into their cells.

        Raises:
            InvalidArgument: There is no such flavor.
            NoValidHost: None of them fits; the report says why.
        """
        if flavor not in self.flavors:
            raise InvalidArgument(f"flavor: no {flavor!r}; there are {', '.join(self.flavors)}", field="flavor")
        project, user = self._rng.choice(_USERS)
        chosen = self.selector.select(
            self.flavors[flavor],
            count,
            instances=[new_uuid(self._rng) for _ in range(count)],
            alternates=alternates,
            project_id=project,
            user_id=user,
            partial=True,
        )
        for selection in chosen:
            self._arrive(selection, flavor, project, user)
        return chosen

    def _arrive(self, selection: Selection, flavor: str, project: str, user: str) -> None:
        number = sum(event.what == "boot" for event in self.history)
        guest = Guest(
            uuid=selection.instance,
            name=f"vm-{number:03}",
            flavor=flavor,
            project_id=project,
            user_id=user,
            host=selection.primary.name,
            cell=selection.cell,
        )
        self.guests[guest.uuid] = guest
        self._happened("boot", guest.uuid, None, guest.host)
        amounts: dict[str, int] = {}
        for resources in selection.primary.allocations.values():
            for name, amount in resources.items():
                amounts[name] = amounts.get(name, 0) + amount
        self.store.create(
            guest.cell,
            uuid=guest.uuid,
            display_name=guest.name,
            project_id=project,
            user_id=user,
            host=guest.host,
            node=guest.host,
            flavor=flavor,
            vcpus=amounts.get("VCPU"),
            memory_mb=amounts.get("MEMORY_MB"),
            disk_gb=amounts.get("DISK_GB"),
        )

    def move(self, instance: str, *, revert: bool = False) -> Guest:
        """Move an instance to another host of its cell, and confirm the move, or revert it; how it is afterwards.

        Raises:
            KeyError: It is not there.
            NoValidHost: No other host of the cell can take it; nothing has changed.
        """
        guest = self.guests[instance]
        migration = new_uuid(self._rng)
        chosen = self.selector.select_destination(instance, migration, self.flavors[guest.flavor]).primary.name
        if revert:
            self.ledger.revert_move(migration)
            self._happened("revert", instance, guest.host, guest.host)
            return guest
        self.ledger.confirm_move(migration)
        self._happened("move", instance, guest.host, chosen)
        self.store.update(instance, host=chosen, node=chosen)
        self.guests[instance] = attrs.evolve(guest, host=chosen)
        return self.guests[instance]

    def delete(self, instance: str) -> None:
        """Give back what an instance holds, its volumes too, and mark its record as deleted.

        Raises:
            KeyError: It is not there.
        """
        guest = self.guests.pop(instance)
        for attachment in self.attachments.attachments(instance_id=instance):
            self.attachments.detach(attachment.id)
        self.ledger.release(instance)
        self._happened("delete", instance, guest.host, None)
        self.store.delete(instance)

    def lose_cell(self, name: str) -> None:
        """Let the database of a cell be away, as the router sees it, until :meth:`find_cell`."""
        self.router.remove_cell(name)
        self.router.add_cell(Cell(name, _AWAY.format(name)))

    def find_cell(self, name: str) -> None:
        """Let the database of a cell be there again."""
        self.router.remove_cell(name)
        self.router.add_cell(Cell(name, self._places[name]))

    def check(self) -> None:
        """Verify what must always hold: of every part, and that directory, records and books agree.

        The record of an instance stands on a host of which it holds something, or has left it in a move that is under
        way; consumers that are no instances need no record. Of a lost cell nothing is known.

        Raises:
            InvariantViolated: Something does not hold.
        """
        self.tree.refresh()
        for part in (self.tree, self.ledger, self.router, self.attachments):
            part.check()
        require_agreement(self.tree, self.ledger, self.router, self.store, self.cell_of)

    def close(self) -> None:
        """Close every part. May be called twice."""
        while self._closing:
            self._closing.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<World: {len(self.tree.roots())} trees in {len(self.router.cells)} cells, {len(self.guests)} instances, "
            f"{len(self.volumes.volumes())} volumes>"
        )

    def _happened(
        self,
        what: What,
        instance: str,
        source: str | None,
        destination: str | None,
    ) -> None:
        self._clock.tick()
        at = self._clock.now
        self.history.append(Event(at=at, what=what, instance=instance, source=source, destination=destination))


def cell_of(root: Provider) -> str | None:
    """The cell of a host by its name, ``cell1-rack1-host1``; of a pool of disks, its rack's."""
    return root.name.partition("-")[0]


def small_world(
    seed: int = 0,
    *,
    cells: int | Mapping[str, Engine | str | URL] = 2,
    racks: int = 2,
    hosts: int = 4,
    shape: Shape = "numa",
    instances: int = 24,
    history: int = 0,
    volumes: int = 0,
    database: Database | Engine | str | URL = "sqlite://",
) -> World:
    """Make a world. The same arguments give the same hosts, instances, records and history, uuids included.

    An instance takes some milliseconds; for more than a few hundred take :func:`forest` and :func:`instance_rows`,
    which need no database.

    Args:
        seed: Another number, another world of the same size.
        cells: How many, each in memory; or name → its empty database, ``cell1``, ``cell2`` and so on.
        racks: Of each cell.
        hosts: Of each rack.
        shape: What each host is; see :data:`Shape`.
        instances: To begin with, of flavors by chance; fewer where the hosts are full.
        history: How many things happen afterwards: moves, reverted moves, deletions and boots, by chance.
        volumes: How many there are, of 10 GiB: in turn multi-attach, attached to two instances; attached to one; and
            available.
        database: Empty: for the tree, the ledger, the volumes and the directory.

    Raises:
        InvalidArgument: A number is below 1, or a cell has another name.
    """
    for name, number in {"instances": instances, "history": history, "volumes": volumes}.items():
        require_integer(number, name, minimum=0)
    number = len(cells) if isinstance(cells, Mapping) else require_integer(cells, "cells", minimum=1)
    names = [cell_name(each) for each in range(1, number + 1)]
    if isinstance(cells, Mapping) and sorted(cells) != sorted(names):
        raise InvalidArgument(f"cells: expected the names {', '.join(names)}", field="cells", value=sorted(cells))
    data = forest(seed, cells=number, racks=racks, hosts=hosts, shape=shape)
    world = _opened(seed, database, cells if isinstance(cells, Mapping) else names, shape)
    try:
        world.tree.load(data)
        _fill(world, random.Random(f"instances {seed}"), instances)
        _age(world, random.Random(f"history {seed}"), history)
        _attach(world, random.Random(f"volumes {seed}"), volumes)
    except BaseException:
        world.close()
        raise
    return world


def _opened(
    seed: int,
    source: Database | Engine | str | URL,
    cells: list[str] | Mapping[str, Engine | str | URL],
    shape: Shape,
) -> World:
    """The parts, empty."""
    database = Database.of(source)
    create_schema(database)
    clock = Clock()

    def ids(part: str) -> Callable[[], str]:
        rng = random.Random(f"{part} {seed}")
        return lambda: new_uuid(rng)

    made = {} if isinstance(cells, Mapping) else {name: open_engine("sqlite://") for name in cells}
    places: Mapping[str, Engine | str | URL] = cells if isinstance(cells, Mapping) else made
    tree, ledger = PlacementTree.open(database), AllocationLedger(database)
    directory = InstanceDirectory(database)
    router = CellRouter([Cell(name, place) for name, place in places.items()], directory=directory)
    store = InstanceStore(router, clock=clock, id_factory=ids("store"))
    store.create_tables()
    volumes = EmbeddedVolumes(database, clock=clock, id_factory=ids("volume ids"))
    attachments = AttachmentManager(database, volumes, clock=clock, id_factory=ids("attachment ids"))
    closing: list[Callable[[], object]] = [] if isinstance(source, Database) else [database.close]
    closing += [engine.dispose for engine in made.values()]
    closing += [part.close for part in (tree, ledger, directory, router, attachments)]
    return World(
        tree=tree,
        ledger=ledger,
        selector=HostSelector(tree, ledger, cell_of=cell_of, weighers=[(1.0, spread())], id_factory=ids("selector")),
        router=router,
        store=store,
        attachments=attachments,
        volumes=volumes,
        flavors=FLAVORS[shape],
        rng=random.Random(f"world {seed}"),
        clock=clock,
        places=places,
        closing=closing,
    )


def _fill(world: World, rng: random.Random, instances: int) -> None:
    """Boot instances in batches of a flavor, the small ones more often."""
    names = list(world.flavors)
    weights = [2 * len(names) - place for place in range(len(names))]
    left = instances
    while left and names:
        (flavor,) = rng.choices(names, weights)
        count = min(left, rng.randint(1, 3))
        try:
            left -= len(world.boot(flavor, count))
        except NoValidHost:
            place = names.index(flavor)
            del names[place], weights[place]


def _age(world: World, rng: random.Random, history: int) -> None:
    """Let as many things happen; what has no room is passed over."""
    for _ in range(history):
        what = rng.choices(("move", "revert", "delete", "boot"), (5, 2, 1, 2))[0]
        instance = rng.choice(list(world.guests) or [""])
        flavor = rng.choice(list(world.flavors))
        try:
            if what == "boot" or not instance:
                world.boot(flavor)
            elif what == "delete":
                world.delete(instance)
            else:
                world.move(instance, revert=what == "revert")
        except NoValidHost:
            continue


def _attach(world: World, rng: random.Random, volumes: int) -> None:
    """Volumes, and the instances that have them."""
    for number in range(volumes):
        shared = number % 3 == 0
        volume = world.volumes.create_volume(
            10 * _GIB, name=f"volume-{number:03}", multiattach=shared, project_id="blue"
        )
        users = rng.sample(list(world.guests), min(len(world.guests), 2 if shared else 1))
        for instance in users if number % 3 < 2 else ():
            world.attachments.attach(volume.id, instance)
