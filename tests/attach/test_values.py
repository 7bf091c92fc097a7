"""Values that travel: copied, pickled, shown, refused; none tells what may be secret."""

import copy
import pickle
import traceback

import pytest

from cloudcore import errors
from cloudcore.attach import Attachment, Connector, HostDevice, State
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.database import Database
from cloudcore.disks import BlockSource

from .conftest import instance

SECRET = "SECRETword"
INFO = ConnectionInfo("iscsi", {"auth_password": SECRET, "target_iqn": "iqn.one", "nested": {"key": SECRET}})
CONNECTOR = Connector(host="compute-1", ip="10.0.0.1", properties={"nqn": "nqn.one", "auth_key": SECRET})
DEVICE = HostDevice(source=BlockSource("/dev/x"), connected=True, details={"path": "/dev/x", "multipath_id": "36"})


def attachment():
    import datetime as dt

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return Attachment(
        id=instance(),
        volume_id=instance(),
        instance_id=instance(),
        host="compute-1",
        state=State.ATTACHED,
        device=DEVICE,
        created_at=now,
        updated_at=now,
    )


@pytest.mark.parametrize("value", [INFO, CONNECTOR, DEVICE, attachment()], ids=lambda value: type(value).__name__)
def test_values_can_be_copied_and_pickled(value):
    """Between processes, and by whoever keeps them."""
    for again in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize("value", [INFO, CONNECTOR], ids=lambda value: type(value).__name__)
def test_values_show_no_secrets(value):
    assert SECRET not in repr(value)
    assert SECRET not in str(value)
    assert SECRET in str(value.as_cinder())


@pytest.mark.parametrize(
    "given",
    [
        {"host": "compute-1", "ip": SECRET},
        {"host": f"{SECRET}\0"},
        {"host": [SECRET]},
        {"host": SECRET * 100},
    ],
)
def test_a_refused_connector_repeats_no_value(given):
    with pytest.raises(errors.InvalidConnector, match=r"connector\.(ip|host)") as caught:
        Connector(**given)
    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(repr(given), "")
    assert caught.value.value is None
    with pytest.raises(errors.InvalidConnector) as caught:
        Connector.from_mapping(SECRET)
    assert caught.value.value is None


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://cloud:p@ss:{SECRET}@127.0.0.1:5432/x",
        f"mysql+pymysql://cloud:a:b@c:{SECRET}/d@h/x",
        f"postgresql://cloud:{SECRET}",
        f"{SECRET}",
        f"postgresql://u:{SECRET}@[::1/x",
    ],
)
def test_a_malformed_database_url_repeats_nothing(url):
    """An unescaped @ or : in a password makes half of it look like a port."""
    with pytest.raises(errors.InvalidArgument, match="%40") as caught:
        Database(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert SECRET not in repr(caught.value.__context__)
