"""Wills after the broker's end: once, when their client does not come back."""
import pytest

from harness import wire
from harness.durability import FAST, KEPT, kept, wait_checkpoint


@pytest.fixture
def watcher(join):
    """watcher(broker, topic): a subscriber whose queue keeps wills that are published while it is not there."""

    def make(broker, topic):
        client = join(broker, "watcher", **kept())
        if not client.connack.session_present:
            client.subscribe((topic, 1))
        return client

    return make


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "kept"])
def test_3_1_2_8_will_of_a_client_that_does_not_come_back(new_broker, join, restart, topic, version, watcher, clean):
    """After the grace, once; and with all that belongs to it."""
    broker = new_broker(FAST + "will_restart_grace 300ms\n")
    watcher(broker, topic).disconnect()
    own = [(wire.CONTENT_TYPE, "last words"), (wire.USER_PROPERTY, ("k", "v"))]
    options = dict(kept(version), clean=clean) if version < 5 or not clean else {"clean": True}
    join(broker, "dead", version, will={"topic": topic, "payload": b"dead", "qos": 1, "retain": True, "properties": own}, **options)
    restart(broker)
    seen = watcher(broker, topic).take()
    assert (seen.payload, seen.retain) == (b"dead", 0)
    if version == 5:
        assert seen.properties == own
    reader = join(broker, "reader")
    reader.subscribe(topic)
    assert reader.take().retain == 1
    wait_checkpoint(broker)
    restart(broker)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_queue_messages", queue="wills_due") == 0, "no will waits")
    assert broker.metrics().get("tidegate_published_wills_total") == 0


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "kept"])
def test_3_1_2_8_return_within_the_grace_takes_it_back(new_broker, join, restart, topic, version, watcher, clean):
    """A client that comes back after a restart was never away for those who watch, with a clean session, too."""
    broker = new_broker(FAST + "will_restart_grace 600s\n")
    watcher(broker, topic).disconnect()
    will = {"topic": topic, "payload": b"dead", "qos": 1}
    options = {"clean": True} if clean else kept(version)
    join(broker, "back", version, will=will, **options)
    restart(broker)
    client = join(broker, "back", version, **options)
    if version > 3 and not clean:
        assert client.connack.session_present
    assert broker.metrics().get("tidegate_discarded_wills_total") == 1
    client.close()
    again = join(broker, "publisher")
    again.publish(topic, b"end", qos=1)
    assert watcher(broker, topic).take().payload == b"end"
    assert broker.metrics().get("tidegate_published_wills_total") == 0


def test_3_14_4_3_disconnect_discards_it(new_broker, join, restart, topic, version, watcher):
    broker = new_broker(FAST + "will_restart_grace 0\n")
    watcher(broker, topic).disconnect()
    client = join(broker, "done", version, will={"topic": topic, "payload": b"dead", "qos": 1}, **kept(version))
    client.disconnect()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_discarded_wills_total") == 1, "it has left in order")
    wait_checkpoint(broker)
    restart(broker)
    join(broker, "publisher").publish(topic, b"end", qos=1)
    assert watcher(broker, topic).take().payload == b"end"
    assert broker.metrics().get("tidegate_published_wills_total") == 0


def test_3_1_3_9_will_delay_goes_on_over_a_restart(new_broker, join, restart, topic, watcher):
    """Of one who had gone before the broker did: from its disconnection on. The grace is for those who were connected."""
    broker = new_broker(FAST + "will_restart_grace 600s\n")
    watcher(broker, topic).disconnect()
    client = join(broker, "gone", clean=False, properties=KEPT,
                  will={"topic": topic, "payload": b"dead", "qos": 1, "properties": [(wire.WILL_DELAY, 3)]})
    late = join(broker, "late", clean=False, properties=KEPT,
                will={"topic": topic, "payload": b"late", "qos": 1, "properties": [(wire.WILL_DELAY, 3600)]})
    client.close()
    late.close()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_connected_sessions") == 0, "both are gone")
    wait_checkpoint(broker)
    restart(broker)
    assert watcher(broker, topic).take().payload == b"dead"
    assert join(broker, "late", **kept()).connack.session_present  # back within the delay: cancelled
    broker.wait_metric(lambda metrics: metrics.get("tidegate_discarded_wills_total") == 1, "it is discarded")


def test_3_1_2_8_will_published_before_the_crash_does_not_come_again(new_broker, join, restart, topic, watcher):
    broker = new_broker(FAST + "will_restart_grace 0\n")
    first = watcher(broker, topic)
    join(broker, "dead", will={"topic": topic, "payload": b"dead", "qos": 1}, **kept()).close()
    assert first.take().payload == b"dead"
    first.ping()
    first.disconnect()
    wait_checkpoint(broker)
    restart(broker)
    join(broker, "publisher").publish(topic, b"end", qos=1)
    assert watcher(broker, topic).take().payload == b"end"
