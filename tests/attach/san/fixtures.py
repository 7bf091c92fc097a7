"""A host with storage as a fixture: see :mod:`tests.attach.san.host`."""

import os

import pytest

from cloudcore.attach.hosts import brick_calls
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.attach.volumes.values import ConnectionInfo
from tests.attach.san import tools
from tests.attach.san.host import COMMANDS, San, require_namespaces


def _execute_here(execute):
    """For os-brick's *execute*: the same commands, without a process each."""
    from oslo_concurrency import processutils

    def run(*words, process_input=None, check_exit_code=True, **options):
        name = os.path.basename(words[0])
        if name not in COMMANDS:
            return execute(*words, process_input=process_input, check_exit_code=check_exit_code, **options)
        code, output, trouble = tools.call(name, list(words[1:]), process_input or "")
        if isinstance(check_exit_code, bool):
            allowed = [0] if check_exit_code else [code]
        else:
            allowed = [check_exit_code] if isinstance(check_exit_code, int) else check_exit_code
        if code not in allowed:
            raise processutils.ProcessExecutionError(
                exit_code=code, stdout=output, stderr=trouble, cmd=" ".join(words), description=None
            )
        return output, trouble

    return run


@pytest.fixture
def san(tmp_path, monkeypatch):
    """An array, and os-brick set up in this process for the host that it serves; its waits are cut short."""
    require_namespaces()
    import os_brick.utils
    from os_brick import privileged
    from os_brick.initiator.connectors import nvmeof
    from os_brick.privileged import rootwrap
    from oslo_config import cfg

    made = San(tmp_path)
    monkeypatch.setattr(rootwrap.putils, "execute", _execute_here(rootwrap.putils.execute))
    monkeypatch.setenv("SAN", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(brick_calls, "_set_up", None)
    for context in (privileged.default, privileged.brick_privsep_hide_output):
        monkeypatch.setattr(context, "client_mode", context.client_mode)
    sleep = os_brick.utils._time_sleep
    monkeypatch.setattr(os_brick.utils, "_time_sleep", lambda seconds: sleep(min(seconds, 0.005)))
    monkeypatch.setattr(nvmeof.NVMeOFConnector, "native_multipath_supported", None)
    yield made
    cfg.CONF.clear_default("lock_path", "os_brick")


@pytest.fixture
def brick(san):
    """A connector of that host."""
    return BrickConnector("compute-1", lock_path=str(san.locks), root_helper=None, scan_attempts=1)


def iscsi(iqn, lun, volume_id="11111111-1111-4111-8111-111111111111", **more):
    """Connection information as Cinder's LVM driver gives it."""
    data = {"target_discovered": False, "target_portal": "10.0.0.1:3260", "target_iqn": iqn, "target_lun": lun}
    return ConnectionInfo("iscsi", {**data, **more}, volume_id=volume_id)


class SanVolumes(EmbeddedVolumes):
    """A volume service whose volumes are on the array: *connections* says how each is reached."""

    def __init__(self, database, **backend):
        super().__init__(database, **backend)
        self.connections = {}

    def on_the_array(self, san, iqn, lun, **options):
        """A new volume, which is a LUN of *iqn*."""
        san.lun(iqn, lun)
        volume = self.create_volume(**options).id
        self.connections[volume] = iscsi(iqn, lun, volume)
        return volume

    def _connection(self, record, *_):
        known = self.connections[record.volume_id]
        return ConnectionInfo(known.kind, {**known.data, "attachment_id": record.id})
