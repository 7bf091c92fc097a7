"""The command line says what is there, what is missing, and how to mend it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudcore import AttachmentManager, EmbeddedVolumes, _extras, create_schema, doctor
from cloudcore.cli import main
from cloudcore.errors import MissingExtra, OutcomeUnknown
from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore
from cloudcore.placement import AllocationLedger, DrainPlan, PlacementTree
from tests import services


def test_doctor_names_every_extra_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--database", "sqlite://"]) == 0
    printed = capsys.readouterr().out
    for name in ("Python", "cloudcore", "SQLAlchemy", "alembic", "sqlite://"):
        assert name in printed


def test_doctor_fails_for_a_database_that_does_not_answer_and_hides_its_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--database", "postgresql://me:secret@127.0.0.1:1/none"]) == 1
    printed = capsys.readouterr().out
    assert "unreachable" in printed
    assert "secret" not in printed


def test_doctor_names_the_line_that_installs_a_missing_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "rich" else "1")
    main(["doctor"])
    assert 'pip install "cloudcore[rich]"' in capsys.readouterr().out


def test_a_missing_extra_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(MissingExtra, match=r'pip install "cloudcore\[rich\]"') as caught:
        _extras.require_extra("rich", "rich")
    assert caught.value.extra == "rich"


def test_schema_commands_upgrade_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    assert main(["schema", "upgrade", "--database", url]) == 0
    assert main(["schema", "check", "--database", url]) == 0
    with sqlite3.connect(tmp_path / "cloud.db") as file:
        file.execute("DROP TABLE allocation_history")
        file.execute("ALTER TABLE consumers ADD COLUMN colour INTEGER")
        file.execute("CREATE INDEX stray ON allocations (amount)")
    file.close()
    assert main(["schema", "check", "--database", url]) == 1
    printed = capsys.readouterr().out
    for line in (
        "differs: lacks table allocation_history",
        "differs: has beyond this release column consumers.colour",
        "differs: has beyond this release index stray of table allocations",
    ):
        assert line in printed.splitlines()
    assert " at 0x" not in printed


def test_schema_check_makes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "check", "--database", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "schema upgrade --database" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_wrong_usage_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "upgrade", "--database", "oracle://somewhere"]) == 2
    assert capsys.readouterr().err.startswith("cloudcore: oracle: cloudcore knows sqlite")
    assert main(["schema", "upgrade"]) == 2
    assert "CLOUDCORE_DATABASE" in capsys.readouterr().err
    assert main(["no-such-command"]) == 2


def test_what_is_away_for_now_has_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["usage", "--database", "postgresql://me:secret@127.0.0.1:1/none"]) == 75
    assert "secret" not in capsys.readouterr().err


def test_doctor_asks_a_cinder_for_its_versions(capsys: pytest.CaptureFixture[str]) -> None:
    services.require("cinder")
    address = services.cinder().endpoint.rsplit("/v3", 1)[0]
    assert main(["doctor", "--cinder", address]) == 0
    assert "volume API, microversions 3.0 to 3." in capsys.readouterr().out


def test_doctor_fails_for_a_cinder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cinder", "http://127.0.0.1:1"]) == 1
    assert "unreachable" in capsys.readouterr().out


def test_doctor_tells_of_the_hypervisor(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("libvirt")
    main(["doctor"])
    assert "test:///default" in capsys.readouterr().out


def test_the_demo_tells_the_whole_story(
    new_database_url: Callable[[], str], tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = f"{tmp_path}/host.svg"
    assert main(["demo", "--database", new_database_url(), "--picture", picture]) == 0
    printed = capsys.readouterr().out
    for line in ("1 alternate left", "hosts fit", "exclusive", "8 of 12 instances; complete: False", "are sound"):
        assert line in printed
    with open(picture) as file:
        assert file.read().startswith("<svg")


def test_the_demo_names_a_missing_extra_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert main(["demo", "--picture", f"{tmp_path}/host.svg"]) == 0
    assert 'pip install "cloudcore[libvirt]"' in capsys.readouterr().out


def test_doctor_tries_the_database_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one with a space in its path, and unless others are named."""
    create_schema(f"sqlite:///{tmp_path}/my cloud.db")
    monkeypatch.setenv("CLOUDCORE_DATABASE", f"sqlite:///{tmp_path}/my cloud.db")
    assert main(["doctor"]) == 0
    assert "my cloud.db" in capsys.readouterr().out
    monkeypatch.setenv("CLOUDCORE_DATABASE", f"sqlite:///{tmp_path}/none.db")
    assert main(["doctor", "--database", "sqlite://"]) == 0
    assert "none.db" not in capsys.readouterr().out
    assert main(["doctor"]) == 1
    assert "there is no such file" in capsys.readouterr().out
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["tree", "show"],
        ["tree", "export"],
        ["candidates", "resources=VCPU:1"],
        ["usage"],
        ["holders", "hv00"],
        ["moves"],
        ["drain", "hv00", "--dry-run"],
        ["audit", "ledger"],
        ["heal", "ledger", "--apply"],
        ["attachments"],
        ["prune", "--older-than", "30d"],
        ["list", "--cell", "cell1=sqlite://"],
    ],
    ids=" ".join,
)
def test_a_mistyped_path_makes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--database", f"sqlite:///{tmp_path}/notthere.db"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/notthere.db: there is no such file" in said
    assert "schema upgrade --database" in said
    assert not list(tmp_path.iterdir())


def test_a_mistyped_path_of_nova_makes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--nova-api", f"sqlite:///{tmp_path}/notthere.db"]) == 2
    assert f"--nova-api: {tmp_path}/notthere.db: there is no such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_doctor_fails_for_a_hypervisor_that_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for one of the two that it tries by itself, and also where libvirt-python is not installed."""
    pytest.importorskip("libvirt")
    absent = "qemu:///system?socket=/nowhere"
    assert main(["doctor", "--libvirt", absent]) == 1
    assert any(line.startswith("unreachable") and absent in line for line in capsys.readouterr().out.splitlines())
    monkeypatch.setitem(sys.modules, "libvirt", None)
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "libvirt-python" else "1")
    assert main(["doctor", "--libvirt", "qemu:///system"]) == 1
    assert 'pip install "cloudcore[libvirt]"' in capsys.readouterr().out
    assert main(["doctor"]) == 0, "what nobody asked for may be missing"


# --- no traceback, whatever is missing or gone -----------------------------------------------------------------------

ARGUMENTS = [["doctor"], ["tree", "show"], []]


def _without(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules[{module!r}] = None; from cloudcore.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_without_click_every_command_says_what_to_install(arguments: list[str]) -> None:
    done = _without("click", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ['cloudcore: click is not installed: pip install "cloudcore[cli]"']


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("rich", ["demo", "--picture", "/dev/null"]),
        ("rich", ["tree", "show"]),
        ("rich", ["usage"]),
        ("alembic", ["schema", "check"]),
        ("libvirt", ["recover", "--libvirt", "test:///default"]),
    ],
)
def test_without_an_extra_no_command_ends_in_a_traceback(tmp_path: Path, module: str, arguments: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    create_schema(url)
    done = _without(module, *arguments, CLOUDCORE_DATABASE=url)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install" in line


@pytest.mark.parametrize("arguments", [["doctor"], ["tree", "export", "--database", "{url}"], ["--help"], ["demo"]])
def test_a_reader_that_has_gone_is_no_fault(tmp_path: Path, arguments: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    create_schema(url)
    command = [sys.executable, "-m", "cloudcore", *(part.format(url=url) for part in arguments)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_unknown_outcome_has_an_exit_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no "no", and to repeat the command at once would not do."""

    def unknown(*_: object, **__: object) -> None:
        raise OutcomeUnknown("the connection was lost at the commit")

    create_schema(f"sqlite:///{tmp_path}/cloud.db")
    monkeypatch.setattr(PlacementTree, "load", unknown)
    (tmp_path / "forest.json").write_text("{}")
    assert main(["tree", "import", f"{tmp_path}/forest.json", "--database", f"sqlite:///{tmp_path}/cloud.db"]) == 74
    assert main(["help-exit-codes"]) == 0
    assert "\n74 " in capsys.readouterr().out


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_what_is_nested_deeply_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], depth: int) -> None:
    url, file = f"sqlite:///{tmp_path}/cloud.db", tmp_path / "file"
    create_schema(url)
    deep = "[" * depth + "]" * depth
    for text in (deep, f'{{"resource_providers": {deep}}}', f'{{"resource_providers": [{{"name": {deep}}}]}}'):
        file.write_text(text)
        assert main(["tree", "import", str(file), "--database", url]) == 2
    file.write_text(f"cells = {deep}")
    assert main(["--config", str(file), "usage", "--database", url]) == 2
    assert main(["list", "--cells", str(file)]) == 2


def test_a_fault_of_our_own_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("cloudcore.cli._run", broken)
    assert main(["doctor"]) == 70
    assert capsys.readouterr().err.startswith("cloudcore: ZeroDivisionError: by zero")
    monkeypatch.setenv("CLOUDCORE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_the_demo_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs no folder that can be written to either: a picture is drawn where one is asked for."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["demo"]) == 0
    assert [each.name for each in tmp_path.rglob("*")] == ["here"]
    assert "are sound" in capsys.readouterr().out


def test_the_demo_tells_at_once_of_a_picture_that_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--picture", f"{tmp_path}/{'x' * 300}.svg"]) == 1
    told = capsys.readouterr()
    assert (told.out, "xxx.svg" in told.err) == ("", True)


def test_the_demo_makes_no_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--picture", f"{tmp_path}/a/b/host.svg"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- the forest, the ledger, the cells, the volumes ------------------------------------------------------------------

INSTANCE = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def cloud(new_database_url: Callable[[], str]) -> str:
    """URL of a database with two hosts, one of them with a guest."""
    url = new_database_url()
    create_schema(url)
    with PlacementTree.open(url) as tree, AllocationLedger(url) as ledger:
        for host in ("cn1", "cn2"):
            root = tree.add(host, inventory={"MEMORY_MB": 4096})
            tree.add(f"{host}-numa0", parent=root, inventory={"VCPU": 8})
        numa = tree.provider("cn1-numa0").uuid
        ledger.claim(INSTANCE, {numa: {"VCPU": 8}}, project_id="p", user_id="u")
    return url


def _json(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> object:
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_tree_is_shown_exported_and_imported(
    cloud: str, new_database_url: Callable[[], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tree", "show", "cn1", "--database", cloud]) == 0
    printed = capsys.readouterr().out
    assert "cn1-numa0" in printed
    assert "8/8" in printed
    assert "cn2" not in printed
    file = tmp_path / "forest.json"
    assert main(["tree", "export", str(file), "--database", cloud]) == 0
    other = new_database_url()
    create_schema(other)
    assert main(["tree", "import", str(file), "--database", other]) == 0
    before = json.loads(file.read_text())
    capsys.readouterr()
    after = _json(capsys, ["tree", "show", "--database", other])
    assert isinstance(after, dict)
    assert [each["name"] for each in after["resource_providers"]] == [p["name"] for p in before["resource_providers"]]
    one = _json(capsys, ["tree", "show", "cn2", "--database", other])
    assert isinstance(one, dict)
    assert {each["name"] for each in one["resource_providers"]} == {"cn2", "cn2-numa0"}
    file.write_text("nonsense")
    assert main(["tree", "import", str(file), "--database", other]) == 2


def test_candidates_say_where_and_why_not(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    query = ["candidates", "resources=VCPU:4,MEMORY_MB:512", "--database", cloud]
    assert main([*query, "--why"]) == 0
    printed = capsys.readouterr().out
    assert "cn2" in printed
    assert "VCPU" in printed
    found = _json(capsys, query)
    assert isinstance(found, dict)
    assert [each["host"] for each in found["candidates"]] == ["cn2"]
    nothing = _json(capsys, ["candidates", "resources=VCPU:9", "--database", cloud], 1)
    assert isinstance(nothing, dict)
    assert nothing["report"]["fits"] == 0
    assert main(["candidates", "resources=vcpu:1", "--database", cloud]) == 2


def test_why_names_the_nearest_hosts_with_their_numbers(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["candidates", "resources=VCPU:12", "--why", "--database", cloud]) == 1
    printed = capsys.readouterr().out.split("Nearest")[1]
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith("cn")}
    assert rows["cn1"] == ["cn1", "capacity", "VCPU", "12", "8", "8", "12", "cn1-numa0"]
    assert rows["cn2"] == ["cn2", "capacity", "VCPU", "12", "0", "8", "4", "cn2-numa0"]
    assert main(["candidates", "resources=MEMORY_MB:1&required=HW_CPU_X86_AVX", "--why", "--database", cloud]) == 1
    printed = capsys.readouterr().out.split("The first of them")[1]
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith("cn")] == [
        ["cn1", "trait", "HW_CPU_X86_AVX"],
        ["cn2", "trait", "HW_CPU_X86_AVX"],
    ]
    assert main(["candidates", "resources=VCPU:12", "--database", cloud]) == 1
    assert "Nearest" not in capsys.readouterr().out


def test_names_that_look_like_markup_are_printed_as_they_are(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    with PlacementTree.open(cloud) as tree:
        tree.add("rack[red]:smile:[/]", inventory={"VCPU": 8})
    for arguments in (
        ["usage", "--provider", "rack[red]:smile:[/]"],
        ["tree", "show"],
        ["candidates", "resources=VCPU:8"],
    ):
        assert main([*arguments, "--database", cloud]) == 0
        assert "rack[red]:smile:[/]" in capsys.readouterr().out


def test_usage_by_type_and_of_a_provider(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _json(capsys, ["usage", "--database", cloud])
    assert whole == {"INSTANCE": {"consumers": 1, "amounts": {"VCPU": 8}}}
    part = _json(capsys, ["usage", "--provider", "cn1-numa0", "--database", cloud])
    assert isinstance(part, dict)
    assert part["classes"] == {"VCPU": {"used": 8, "capacity": 8, "reserved": 0}}
    assert main(["usage", "--provider", "cn9", "--database", cloud]) == 1
    assert main(["usage", "--database", cloud]) == 0
    assert "INSTANCE" in capsys.readouterr().out


def test_holders_of_a_provider_and_of_all_below_it(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, ["holders", "cn1", "--database", cloud]) == []
    (one,) = _json(capsys, ["holders", "cn1", "--tree", "--database", cloud])  # type: ignore[misc]
    assert (one["consumer"], one["name"], one["resources"]) == (INSTANCE, "cn1-numa0", {"VCPU": 8})
    assert main(["holders", "cn1-numa0", "--database", cloud]) == 0
    assert INSTANCE in capsys.readouterr().out
    assert main(["holders", "cn9", "--database", cloud]) == 1


def _table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_drain_is_planned_and_nothing_is_changed(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    drain = ["drain", "cn1", "--dry-run", "--database", cloud]
    before = _json(capsys, ["holders", "cn1", "--tree", "--database", cloud])
    assert main(drain) == 0
    assert _table(capsys) == [["move", "consumer", "from", "to"], ["1", INSTANCE, "cn1", "cn2"]]
    plan = _json(capsys, [*drain, "--kind", "cold"])
    assert isinstance(plan, dict)
    assert plan.keys() == {"uuid", "kind", "moves", "stuck"}
    assert (plan["kind"], plan["stuck"]) == ("cold", [])
    assert _json(capsys, ["holders", "cn1", "--tree", "--database", cloud]) == before
    assert main(["drain", "cn2", "--dry-run", "--database", cloud]) == 0
    assert capsys.readouterr().out == "nothing is there to move\n"


def test_what_cannot_leave_is_said_and_is_exit_code_one(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = "22222222-2222-4222-8222-222222222222"
    with PlacementTree.open(cloud) as tree, AllocationLedger(cloud) as ledger:
        tree.add("cn3", inventory={"VCPU": 8})
        root, numa = tree.provider("cn2").uuid, tree.provider("cn2-numa0").uuid
        ledger.claim(other, {root: {"MEMORY_MB": 64}, numa: {"VCPU": 1}}, project_id="p", user_id="u", expires_in=900)
    assert main(["drain", "cn1", "cn2", "--dry-run", "--database", cloud]) == 1
    moves, stuck = capsys.readouterr().out.split("cannot leave")
    assert [line.split() for line in moves.splitlines()][1:] == [["1", INSTANCE, "cn1", "cn3"]]
    assert other in stuck
    assert "pending" in stuck
    plan = _json(capsys, ["drain", "cn1", "--onto", "cn2", "--dry-run", "--database", cloud], 1)
    assert isinstance(plan, dict)
    (one,) = plan["stuck"]
    assert (one["consumer"], one["source"], plan["moves"]) == (INSTANCE, "cn1", [])
    assert "VCPU" in one["reason"]


def test_a_plan_that_was_printed_can_be_carried_out(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "cn1", "--dry-run", "--json", "--database", cloud]) == 0
    plan = DrainPlan.from_json(capsys.readouterr().out)
    with AllocationLedger(cloud) as ledger:
        assert [done.state for done in plan.apply(ledger, lambda move, record: None)] == ["moved"]
    assert _json(capsys, ["holders", "cn1", "--tree", "--database", cloud]) == []


def test_a_drain_itself_moves_nothing_and_needs_hosts_that_are_there(
    cloud: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", "cn1", "--database", cloud]) == 2
    assert "the program that owns the guests" in capsys.readouterr().err
    assert main(["drain", "--dry-run", "--database", cloud]) == 2
    assert main(["drain", "cn1", "--kind", "resize", "--dry-run", "--database", cloud]) == 2
    assert main(["drain", "cn9", "--dry-run", "--database", cloud]) == 1
    assert main(["drain", "cn1", "--onto", "cn9", "--dry-run", "--database", cloud]) == 1
    assert "cn9" in capsys.readouterr().err


def test_the_moves_under_way_are_listed_by_hosts(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = ["moves", "--database", cloud]
    assert _json(capsys, listed) == []
    assert main(listed) == 0
    assert capsys.readouterr().out == "no move is under way\n"
    migration = "33333333-3333-4333-8333-333333333333"
    with PlacementTree.open(cloud) as tree, AllocationLedger(cloud) as ledger:
        pool = tree.add("pool", inventory={"DISK_GB": 100}, traits=["MISC_SHARES_VIA_AGGREGATE"]).uuid
        there = {tree.provider("cn2-numa0").uuid: {"VCPU": 8}, pool: {"DISK_GB": 10}}
        move = ledger.begin_move(INSTANCE, migration, there, kind="resize", expires_in=900)
    assert move.expires_at is not None
    expires = move.expires_at.isoformat()
    assert _json(capsys, listed) == [
        {
            "migration": migration,
            "instance": INSTANCE,
            "kind": "resize",
            "state": "held",
            "source_hosts": ["cn1"],
            "destination_hosts": ["cn2"],
            "expires_at": expires,
        }
    ]
    assert main(listed) == 0
    head, row = _table(capsys)
    assert head == ["migration", "instance", "kind", "state", "from", "to", "expires"]
    assert row == [migration, INSTANCE, "resize", "held", "cn1", "cn2", expires]
    with AllocationLedger(cloud) as ledger:
        ledger.revert_move(migration)
    assert _json(capsys, listed) == []


def test_a_destination_that_was_removed_is_named_by_its_uuid(cloud: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an evacuation whose instance was released the source is held until it is proved gone, not the destination."""
    with PlacementTree.open(cloud) as tree, AllocationLedger(cloud) as ledger:
        gone = tree.add("cn4", inventory={"VCPU": 8}).uuid
        ledger.begin_move(INSTANCE, "33333333-3333-4333-8333-333333333333", {gone: {"VCPU": 8}}, kind="evacuation")
        ledger.release(INSTANCE)
        tree.remove("cn4")
    (one,) = _json(capsys, ["moves", "--database", cloud])  # type: ignore[misc]
    assert (one["state"], one["source_hosts"], one["destination_hosts"]) == ("awaiting_proof", ["cn1"], [gone])


def test_audit_finds_and_heal_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cloud.db"
    url = f"sqlite:///{path}"
    create_schema(url)
    with PlacementTree.open(url) as tree, AllocationLedger(url) as ledger:
        ledger.claim(INSTANCE, {tree.add("cn1", inventory={"VCPU": 4}).uuid: {"VCPU": 1}}, project_id="p", user_id="u")
    assert main(["audit", "ledger", "--database", url]) == 0
    with sqlite3.connect(path) as file:
        file.execute("UPDATE inventories SET used = 3")
    file.close()
    capsys.readouterr()
    assert main(["audit", "ledger", "--database", url]) == 1
    assert "VCPU counts 3 as used" in capsys.readouterr().out
    assert main(["heal", "ledger", "--database", url]) == 1, "nothing was done"
    assert main(["heal", "ledger", "--apply", "--database", url]) == 0
    assert main(["audit", "ledger", "--database", url]) == 0
    capsys.readouterr()
    assert _json(capsys, ["audit", "ledger", "--directory", "--database", url], 1), "nobody knows the instance"


@pytest.fixture
def cells(tmp_path: Path) -> list[str]:
    """Options that name two cells with three instances each, and their directory."""
    directory = f"sqlite:///{tmp_path}/directory.db"
    create_schema(directory)
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("cell1", "cell2")}
    with InstanceDirectory(directory) as kept, CellRouter([Cell(*item) for item in urls.items()], directory=kept) as it:
        store = InstanceStore(it)
        store.create_tables()
        for number in range(6):
            name = f"web-{number}"
            store.create(f"cell{number % 2 + 1}", project_id="p", user_id="u", display_name=name, vcpus=number)
    file = tmp_path / "cells.toml"
    file.write_text("".join(f'{name} = "{url}"\n' for name, url in urls.items()))
    return ["--cells", str(file), "--database", directory]


def test_instances_of_all_cells_are_listed(cells: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = _json(capsys, ["list", "--sort", "display_name:desc", "--where", "vcpus>=2", "--limit", "3", *cells])
    assert isinstance(page, dict)
    assert [each["display_name"] for each in page["records"]] == ["web-5", "web-4", "web-3"]
    more = ["list", "--sort", "display_name:desc", "--where", "vcpus>=2", "--cursor", page["next_cursor"], *cells]
    assert main([*more, "--columns", "display_name"]) == 0
    assert "web-2" in capsys.readouterr().out
    assert main(["list", "--all", "--json", "--where", "display_name^=web-", *cells]) == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 6
    assert main(["list", "--where", "colour=red", *cells]) == 2
    assert main(["list", "--where", "vcpus=many", *cells]) == 2
    assert main(["audit", "directory", *cells]) == 0


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["vcpus!=0", "vcpus!=3", "vcpus!=5"], {1, 2, 4}),
        (["vcpus!=1", "vcpus!=null", "vcpus>0"], {2, 3, 4, 5}),
        (["vcpus>=1", "vcpus<4", "vcpus!=2"], {1, 3}),
        (["host=null", "vcpus=2"], {2}),
        (["display_name!=web-0", "vcpus!=1", "vcpus!=1"], {2, 3, 4, 5}),
    ],
)
def test_every_condition_that_is_given_holds(
    cells: list[str], capsys: pytest.CaptureFixture[str], conditions: list[str], found: set[int]
) -> None:
    asked = [part for condition in conditions for part in ("--where", condition)]
    page = _json(capsys, ["list", "--columns", "vcpus", *asked, *cells])
    assert {each["vcpus"] for each in page["records"]} == found  # type: ignore[index]


@pytest.mark.parametrize(
    "conditions",
    [
        ["vcpus>=1", "vcpus>=2"],
        ["vcpus=1", "vcpus=2"],
        ["display_name*=we", "display_name*=b"],
        ["host=null", "host!=null"],
    ],
)
def test_conditions_of_which_one_would_be_lost_are_wrong_usage(
    cells: list[str], capsys: pytest.CaptureFixture[str], conditions: list[str]
) -> None:
    assert main(["list", *(part for condition in conditions for part in ("--where", condition)), *cells]) == 2
    said = capsys.readouterr()
    assert conditions[1] in said.err
    assert said.out == ""


def test_a_cell_that_is_named_twice_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
    assert main(["list", "--cell", f"cell1={urls[0]}", "--cell", f"cell1={urls[1]}"]) == 2
    assert "'cell1' is named twice" in capsys.readouterr().err


HOSTILE = "web\t1\n\x1b[2J\x9b31m\u202e\u2028end"
ESCAPED = "web\\t1\\n\\x1b[2J\\x9b31m\\u202e\\u2028end"


def test_names_cannot_draw_on_the_terminal_nor_look_like_rows(
    tmp_path: Path, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/cell1.db"
    with CellRouter([Cell("cell1", url)], directory=InstanceDirectory(f"sqlite:///{tmp_path}/directory.db")) as router:
        InstanceStore(router).create("cell1", project_id="p", user_id="u", display_name=HOSTILE, vcpus=99)
    asked = ["list", "--where", "vcpus=99", "--columns", "vcpus,display_name", *cells]
    assert main([*asked, "--all"]) == 0
    assert capsys.readouterr().out == f"99\t{ESCAPED}\tcell1\n"
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["99", ESCAPED, "cell1"]
    (record,) = _json(capsys, asked)["records"]  # type: ignore[index,call-overload]
    assert record["display_name"] == HOSTILE


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["tree", "show"], "[2J"),
        (["usage", "--provider", HOSTILE], ESCAPED[:20]),
        (["candidates", "resources=DISK_GB:1"], ESCAPED),
        (["holders", f"no {HOSTILE}"], "no web"),
    ],
    ids=["picture", "title", "row", "error"],
)
def test_names_of_providers_cannot_draw_on_the_terminal_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], shown: str
) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    create_schema(url)
    with PlacementTree.open(url) as tree:
        tree.add(HOSTILE, inventory={"DISK_GB": 5})
    main([*command, "--database", url])
    said = capsys.readouterr()
    assert shown in said.out + said.err
    assert not set("\t\x1b\x9b") & set(said.out + said.err)


def test_a_cell_that_is_away_is_named_by_the_url_that_was_given(
    tmp_path: Path, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"sqlite:///{tmp_path}/gone.db"
    assert main(["list", "--cell", f"cell3={gone}", *cells]) == 1
    said = capsys.readouterr().err
    assert said.startswith("cloudcore: cell3: down")
    assert gone in said
    assert "mode=rw" not in said
    assert not (tmp_path / "gone.db").exists()


def test_attachments_are_listed_and_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    create_schema(url)
    with AttachmentManager(url) as manager:
        assert isinstance(manager.volumes, EmbeddedVolumes)
        volume = manager.volumes.create_volume()
        manager.attach(volume.id, INSTANCE)
    (one,) = _json(capsys, ["attachments", "--volume", volume.id, "--database", url])  # type: ignore[misc]
    assert (one["instance_id"], one["state"]) == (INSTANCE, "attached")
    assert main(["attachments", "--database", url]) == 0
    assert main(["recover", "--database", url]) == 0


def test_settings_come_from_a_file_and_the_environment(
    cloud: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cloudcore.toml"
    file.write_text(f'database = "{cloud}"\njson = true\n')
    assert main(["--config", str(file), "usage"]) == 0
    assert "INSTANCE" in json.loads(capsys.readouterr().out)
    monkeypatch.setenv("CLOUDCORE_DATABASE", cloud)
    assert main(["usage"]) == 0
    for text in ("databse = 'x'", "database = 3", "cells = {a = 1}", "nonsense"):
        file.write_text(text)
        assert main(["--config", str(file), "usage"]) == 2


def test_every_command_has_help_and_completion_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    from cloudcore.cli.commands import program

    for name, command in program.commands.items():
        assert command.help, name
        assert main([name, "--help"]) == 0
    assert main(["help-exit-codes"]) == 0
    assert main(["completion", "bash"]) == 0
    environment = {
        **os.environ,
        "_CLOUDCORE_COMPLETE": "bash_complete",
        "COMP_WORDS": "cloudcore cand",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-m", "cloudcore"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert "candidates" in done.stdout
