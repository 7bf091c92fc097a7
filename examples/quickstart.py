"""A tour of cloudcore: hosts, claims with alternates, moves, volumes, and a listing over three cells.

Run it with ``make demo``, ``cloudcore demo``, or::

    python examples/quickstart.py [--database URL] [--folder FOLDER] [--picture FILE]

Everything it makes lies in one scratch folder; ``--database`` puts the tables of placement and attachments elsewhere,
into any empty SQLite, PostgreSQL or MariaDB database, and ``--picture`` draws one host. Each function below is one step
and can be read by itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cloudcore import (
    AllocationLedger,
    AttachmentManager,
    Cell,
    CellRouter,
    CloudcoreError,
    EmbeddedVolumes,
    HostSelector,
    InstanceDirectory,
    InstanceStore,
    Inventory,
    PlacementTree,
    Query,
    Selection,
    Sort,
    create_schema,
    reschedule,
)
from cloudcore.errors import InUse, MissingExtra, NoValidHost
from cloudcore.hypervisor import LibvirtHypervisor, sync
from cloudcore.placement.hosts import spread

CELLS = ("cell1", "cell2", "cell3")
FLAVOUR = (
    "resources=DISK_GB:20"
    "&resources_cpu=VCPU:4,MEMORY_MB:8192"  # from one NUMA node ...
    "&resources_net=SRIOV_NET_VF:1&required_net=CUSTOM_PHYSNET_A"  # ... and a VF on the right network ...
    "&same_subtree=_cpu,_net&group_policy=none"  # ... of the same node
)
console = Console(width=110, highlight=False, markup=False, emoji=False)  # names and errors are printed as they are


class Cloud:
    """The parts of the tour, opened over one folder."""

    def __init__(self, folder: Path, database: str) -> None:
        for cell in CELLS:
            (folder / cell).mkdir()
        self.folder = folder
        self.router = CellRouter(
            [Cell(cell, f"sqlite:///{folder / cell / 'instances.db'}") for cell in CELLS],
            directory=InstanceDirectory(f"sqlite:///{folder / 'directory.db'}"),
        )
        self.store = InstanceStore(self.router)
        self.store.create_tables()
        create_schema(database, areas=["placement", "attach"])
        self.tree = PlacementTree.open(database)
        self.ledger = AllocationLedger(database)
        self.cell_of: dict[str, str] = {}
        self.selector = HostSelector(self.tree, self.ledger, cell_of=self.cell_of, weighers=[(1.0, spread())])
        self.volumes = EmbeddedVolumes(database)
        self.attachments = AttachmentManager(database, self.volumes)

    def close(self) -> None:
        for part in (self.attachments, self.volumes, self.ledger, self.tree, self.router):
            part.close()

    def names(self, allocations: dict[str, dict[str, int]]) -> str:
        """Allocations in words: the providers by name."""
        return ", ".join(
            f"{self.tree.provider(provider).name}: {' '.join(f'{n} {name}' for name, n in amounts.items())}"
            for provider, amounts in sorted(allocations.items(), key=lambda each: self.tree.provider(each[0]).name)
        )


@contextmanager
def step(title: str) -> Iterator[None]:
    console.print(f"\n{title}", style="bold")
    yield


def read_real_hosts(cloud: Cloud) -> None:
    """Ask libvirt what the hosts have: its test driver always, this machine's QEMU if there is one."""
    for uri in ("test:///default", "qemu:///system"):
        try:
            with LibvirtHypervisor(uri) as hypervisor:
                facts = hypervisor.facts()
        except MissingExtra as missing:
            console.print(f"  left out: {missing}")
            return
        except CloudcoreError as error:
            console.print(f"  left out {uri}: {error}")
            continue
        desired, _ = sync(cloud.tree, facts)
        cloud.cell_of[desired.root.name] = "cell1"
        console.print(f"  {uri}: host {desired.root.name}, {facts.summary()}")


def build_racks(cloud: Cloud) -> None:
    """Four hosts a cell: each a root with disks, two NUMA nodes, and below each node a network card with 8 VFs."""
    for cell in CELLS:
        rack = str(uuid.uuid4())
        for number in range(4):
            name = f"{cell}-host{number}"
            cloud.cell_of[name] = cell
            disks = {"DISK_GB": Inventory(2000, 50)}
            host = cloud.tree.add(name, inventory=disks, aggregates={rack}, traits={"COMPUTE_NODE"})
            for node in range(2):
                cores = {"VCPU": Inventory(16, allocation_ratio=2.0), "MEMORY_MB": Inventory(65536, 2048)}
                numa = cloud.tree.add(f"{name}-numa{node}", parent=host, inventory=cores, traits={"HW_NUMA_ROOT"})
                network = "CUSTOM_PHYSNET_A" if node == 0 else "CUSTOM_PHYSNET_B"
                cloud.tree.add(f"{name}-pf{node}", parent=numa, inventory={"SRIOV_NET_VF": 8}, traits={network})
    console.print(f"  {len(cloud.tree)} providers in {len(cloud.tree.roots())} trees")


def place_instances(cloud: Cloud) -> list[Selection]:
    """Claim a primary for each of twelve instances, with two alternates in the primary's cell."""
    selections = list(cloud.selector.select(FLAVOUR, 12, alternates=2, project_id="blue", user_id="ada"))
    table = Table("instance", "cell", "primary (claimed)", "alternates (not claimed)")
    for number, chosen in enumerate(selections):
        cloud.store.create(
            chosen.cell,
            uuid=chosen.instance,
            display_name=f"web-{number:02}",
            project_id="blue",
            user_id="ada",
            host=chosen.primary.name,
        )
        alternates = ", ".join(choice.name for choice in chosen.alternates)
        table.add_row(f"web-{number:02}", chosen.cell, chosen.primary.name, alternates)
    console.print(table)
    return selections


def lose_a_host(cloud: Cloud, selection: Selection) -> None:
    """The primary fails: the cell itself takes the next alternate, without asking the scheduler."""
    travelled = Selection.from_json(selection.to_json())  # all that the cell was given
    moved = reschedule(cloud.ledger, travelled, selection.instance, failed="the guest did not start")
    cloud.store.update(selection.instance, host=moved.choice.name)
    console.print(f"  {selection.primary.name} failed → {moved.choice.name}, {len(moved.remaining)} alternate left")


def ask_for_too_much(cloud: Cloud) -> None:
    """A request that no host can hold is answered with the reasons."""
    report = cloud.tree.candidates("resources1=VCPU:2,MEMORY_MB:90000&required1=HW_NUMA_ROOT").report()
    console.print(f"  {report.summary()}", soft_wrap=True)
    try:
        cloud.selector.select("resources=VCPU:48", project_id="blue", user_id="ada")
    except NoValidHost as error:
        console.print(f"  NoValidHost: {error}", soft_wrap=True)


def migrate(cloud: Cloud, selection: Selection, *, confirm: bool) -> None:
    """While an instance moves, the migration holds the source and the instance holds the destination."""
    migration = str(uuid.uuid4())
    table = Table("", "the instance holds", "the migration holds")

    def show(when: str) -> None:
        held = [cloud.names(cloud.ledger.allocations(consumer)) or "–" for consumer in (selection.instance, migration)]
        table.add_row(when, *held)

    show("before")
    destination = cloud.selector.select_destination(selection.instance, migration, FLAVOUR)
    show(f"on the way to {destination.primary.name}")
    if confirm:
        cloud.ledger.confirm_move(migration)
        cloud.store.update(selection.instance, host=destination.primary.name)
    else:
        cloud.ledger.revert_move(migration)
    show("confirmed" if confirm else "reverted")
    console.print(table)


def attach_volumes(cloud: Cloud, selections: Sequence[Selection]) -> None:
    """A multi-attach volume on two instances; an exclusive one is not given out twice."""
    volumes = cloud.volumes
    first, second = (chosen.instance for chosen in selections[:2])
    shared = volumes.create_volume(10 * 2**30, name="shared", multiattach=True)
    exclusive = volumes.create_volume(10 * 2**30, name="exclusive")
    one = cloud.attachments.attach(shared.id, first)
    two = cloud.attachments.attach(shared.id, second, mode="ro")
    console.print(f"  shared: {one.state} to web-00 ({one.mode}), {two.state} to web-01 ({two.mode})")
    mine = cloud.attachments.attach(exclusive.id, first)
    try:
        cloud.attachments.attach(exclusive.id, second)
    except InUse as error:
        console.print(f"  exclusive, a second time: {error}", soft_wrap=True)
    for attachment in (two, one, mine):
        cloud.attachments.detach(attachment.id)
    found = cloud.attachments.audit().findings
    console.print(f"  after detach: shared is {volumes.volume(shared.id).status}, the audit found {len(found)} faults")


def list_instances(cloud: Cloud) -> None:
    """Page through the instances of all cells as if they were in one."""
    query = Query(sort=[Sort("display_name")], limit=5)
    cursor = None
    for number in range(1, 10):
        page = cloud.router.page(query, cursor=cursor)
        for record in page.records:
            console.print(f"  page {number}  {record.display_name}  {record.cell}  {record.host}")
        cursor = page.next_cursor
        if cursor is None:
            break


def list_with_a_cell_down(cloud: Cloud) -> None:
    """Take a cell's database away: the page is partial, and says which cell and why."""
    cloud.router.remove_cell("cell2")
    (cloud.folder / "cell2").rename(cloud.folder / "cell2.away")
    cloud.router.add_cell(Cell("cell2", f"sqlite:///{cloud.folder / 'cell2' / 'instances.db'}"))
    page = cloud.router.page(Query(sort=[Sort("display_name")], limit=20))
    console.print(f"  {len(page.records)} of 12 instances; complete: {page.complete}")
    for name, cell in sorted(page.cells.items()):
        console.print(
            f"  {name}: {cell.state}, {cell.rows} rows{f', {cell.error}' if cell.error else ''}", soft_wrap=True
        )
    (cloud.folder / "cell2.away").rename(cloud.folder / "cell2")


def check(cloud: Cloud, picture: Path | None) -> None:
    """Every stateful object can be asked whether its invariants hold."""
    cloud.tree.refresh()
    for part in (cloud.tree, cloud.ledger, cloud.attachments):
        part.check()
    console.print("  tree, ledger and attachments are sound")
    if picture is not None:
        picture.write_text(cloud.tree.to_svg("cell1-host0"))
        console.print(f"  a picture of one host: {picture}")


def tour(cloud: Cloud, picture: Path | None) -> None:
    with step("1. Hosts: real ones through libvirt, and three racks beside them"):
        read_real_hosts(cloud)
        build_racks(cloud)
    with step("2. Twelve instances, each with two alternates"):
        selections = place_instances(cloud)
    with step("3. A primary fails, and a request that cannot fit"):
        lose_a_host(cloud, selections[0])
        ask_for_too_much(cloud)
    with step("4. One migration confirmed, one reverted: who holds what"):
        migrate(cloud, selections[1], confirm=True)
        migrate(cloud, selections[2], confirm=False)
    with step("5. Volumes: multi-attach, and exclusive"):
        attach_volumes(cloud, selections)
    with step("6. All instances, page by page over the cells; then with one cell down"):
        list_instances(cloud)
        list_with_a_cell_down(cloud)
    with step("7. Checked"):
        check(cloud, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A tour of cloudcore.")
    parser.add_argument("--database", metavar="URL", help="for placement and attachments; SQLite in the folder")
    parser.add_argument("--folder", type=Path, help="keep everything here; must be empty")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw one host there")
    options = parser.parse_args(arguments)
    if options.picture is not None:
        options.picture.open("ab").close()  # where nothing can be written is told now, not at the end
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudcore-")))
        folder.mkdir(parents=True, exist_ok=True)
        cloud = Cloud(folder, options.database or f"sqlite:///{folder / 'placement.db'}")
        stack.callback(cloud.close)
        tour(cloud, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
