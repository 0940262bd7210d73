"""A data directory that the broker cannot use: it says why and what to do, and leaves everything as it is."""
import pytest

from harness.durability import FAST
from harness.faults import SmallDisk
from harness.pair import flip
from harness.programs import Broker


def test_two_brokers_on_one_directory(new_broker, tmp_path, topic, make_state, check_state):
    """The second says who holds it, and harms nothing; after a kill the directory is free."""
    broker = new_broker(FAST)
    make_state(broker, topic)
    second = Broker(tmp_path / "second", FAST)
    second.data = broker.data
    second.forget_ports = lambda: None
    said = second.refusal()
    assert str(broker.data) in said and str(broker.process.pid) in said, said
    broker.kill()
    del second.forget_ports
    second.start()
    try:
        check_state(second, topic)
    finally:
        second.stop()


def test_read_only_directory_that_has_data(tmp_path, topic, make_state, check_state):
    """A disk that the kernel has made read-only: it does not start and says which file; then everything is there."""
    disk = SmallDisk(tmp_path / "mounted", 64)
    broker = Broker(tmp_path / "broker", FAST)
    broker.data = disk.path / "data"
    try:
        broker.start()
        make_state(broker, topic)
        broker.stop()
        disk.remount("ro")
        broker.forget_ports = lambda: None
        said = broker.refusal()
        del broker.forget_ports
        assert str(broker.data) in said and "ead-only" in said, said
        disk.remount("rw")
        broker.start()
        check_state(broker, topic)
        broker.stop()
    finally:
        if broker.is_alive():
            broker.kill()
        disk.close()


def test_damaged_log_is_named(new_broker, topic, make_state, check_state):
    """Damage before the end of what was durable: refused with file and offset, and the way out."""
    broker = new_broker()
    make_state(broker, topic)
    broker.stop()
    segment = sorted((broker.data / "log").glob("0*.seg"))[0]
    data = segment.read_bytes()
    second = data.index(b"TGBK", data.index(b"TGBK") + 4)
    flip(segment, second + 100, 20)
    said = broker.refusal()
    assert segment.name in said and str(second) in said and "tidegate-broker repair" in said, said
    with open(segment, "r+b") as file:
        file.write(data)
    broker.start()
    check_state(broker, topic)


@pytest.mark.parametrize("how", ["not a database", "removed"])
def test_damaged_checkpoint_is_named(new_broker, topic, how, make_state, check_state):
    broker = new_broker(FAST)
    make_state(broker, topic)
    broker.stop()
    path = broker.data / "checkpoint" / "data.mdb"
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(b"?" * len(data))
    said = broker.refusal()
    assert str(broker.data / "checkpoint") in said and "tidegate-broker repair" in said, said
    path.write_bytes(data)
    broker.start()
    check_state(broker, topic)
