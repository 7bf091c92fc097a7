"""The command line says what is there, what is missing, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from cloudcore import _extras, doctor
from cloudcore.cli import main
from cloudcore.errors import MissingExtra
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


def test_schema_commands_upgrade_and_check(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/cloud.db"
    assert main(["schema", "check", "--database", url]) == 1
    assert "differs" in capsys.readouterr().out
    assert main(["schema", "upgrade", "--database", url]) == 0
    assert main(["schema", "check", "--database", url]) == 0


def test_an_error_is_one_line_and_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "upgrade", "--database", "oracle://somewhere"]) == 1
    assert capsys.readouterr().err.startswith("cloudcore: oracle: cloudcore knows sqlite")


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
