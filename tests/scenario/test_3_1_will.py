"""Last Will: when it goes out, when it does not, and what it carries."""
import time

import pytest

from harness import wire
from harness.wire import PUBLISH


@pytest.fixture
def watcher(broker, join, name, topic):
    client = join(broker, name("watcher"))
    client.subscribe((topic + "/#", 2 | 8))  # RETAIN as published
    return client


def will_of(topic, **more):
    return dict({"topic": topic + "/will", "payload": b"gone"}, **more)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_3_1_2_8_published_when_the_network_fails(broker, dial, name, topic, version, watcher, qos):
    client = dial(broker, version)
    client.connect(name(), will=will_of(topic, qos=qos))
    client.close()
    message = watcher.take()
    assert (message.topic, message.payload, message.qos, message.retain) == (topic + "/will", b"gone", qos, 0)


def test_3_1_2_8_published_after_a_protocol_error(broker, dial, name, topic, version, watcher):
    client = dial(broker, version)
    client.connect(name(), will=will_of(topic))
    client.send(wire.packet(15, 7, b""))
    client.rest()
    assert watcher.take().payload == b"gone"


def test_3_1_2_8_published_on_takeover(broker, dial, name, topic, version, watcher):
    client_id = name()
    dial(broker, version).connect(client_id, will=will_of(topic))
    dial(broker, version).connect(client_id)
    assert watcher.take().payload == b"gone"


def test_3_14_4_3_disconnect_discards_it(broker, dial, join, name, topic, version, watcher, nothing_but):
    client = dial(broker, version)
    client.connect(name(), will=will_of(topic))
    client.disconnect()
    nothing_but(watcher, join(broker, name()), topic + "/last", 0)


def test_3_14_4_3_disconnect_0x04_does_not(broker, dial, name, topic, watcher):
    client = dial(broker)
    client.connect(name(), will=will_of(topic))
    client.disconnect(0x04)
    assert watcher.take().payload == b"gone"


def test_3_1_2_10_published_once(broker, dial, join, name, topic, watcher, nothing_but):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, will=will_of(topic), properties=[(wire.SESSION_EXPIRY, 100)])
    client.close()
    assert watcher.take().payload == b"gone"
    again = dial(broker)
    again.connect(client_id, clean=False)
    again.close()
    nothing_but(watcher, join(broker, name()), topic + "/last", 0)


def test_3_1_2_15_retained_will(broker, dial, join, name, topic, watcher):
    client = dial(broker)
    client.connect(name(), will=will_of(topic, retain=True, qos=1))
    before = broker.metrics().get("tidegate_retained_updates_total", result="set")
    client.close()
    assert watcher.take().retain == 1
    broker.wait_metric(lambda metrics: metrics.get("tidegate_retained_updates_total", result="set") == before + 1, "it is kept")
    late = join(broker, name())
    late.subscribe((topic + "/will", 1))
    message = late.take()
    assert (message.payload, message.retain) == (b"gone", 1)
    late.publish(topic + "/will", b"", retain=True)


def test_3_1_3_10_properties_go_along_in_order(broker, dial, name, topic, watcher):
    pairs = [("b", "1"), ("a", "2"), ("b", "3"), ("a", "2")]
    client = dial(broker)
    client.connect(name(), will=will_of(topic, properties=[(wire.WILL_DELAY, 0), (wire.CONTENT_TYPE, "text/plain"), (wire.PAYLOAD_FORMAT, 1),
                                                           (wire.RESPONSE_TOPIC, "answers"), (wire.CORRELATION_DATA, b"\0\1")] +
                                                          [(wire.USER_PROPERTY, pair) for pair in pairs]))
    client.close()
    message = watcher.take()
    assert message.all(wire.USER_PROPERTY) == pairs
    assert (message.get(wire.CONTENT_TYPE), message.get(wire.PAYLOAD_FORMAT)) == ("text/plain", 1)
    assert (message.get(wire.RESPONSE_TOPIC), message.get(wire.CORRELATION_DATA)) == ("answers", b"\0\1")
    assert message.all(wire.WILL_DELAY) == []


def test_3_1_3_9_reconnect_within_the_delay(broker, dial, join, name, topic, watcher, nothing_but):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, will=will_of(topic, properties=[(wire.WILL_DELAY, 30)]), properties=[(wire.SESSION_EXPIRY, 100)])
    before = broker.metrics().get("tidegate_discarded_wills_total")
    client.close()
    again = dial(broker)
    again.connect(client_id, clean=False)
    again.disconnect()
    assert broker.metrics().get("tidegate_discarded_wills_total") == before + 1
    nothing_but(watcher, join(broker, name()), topic + "/last", 0)


def test_3_1_2_8_after_its_delay(broker, dial, name, topic, watcher):
    client = dial(broker)
    client.connect(name(), will=will_of(topic, properties=[(wire.WILL_DELAY, 1)]), properties=[(wire.SESSION_EXPIRY, 100)])
    started = time.monotonic()
    client.close()
    assert watcher.take().payload == b"gone"
    assert time.monotonic() - started >= 0.9  # not before; how long after is not a test's business


def test_3_1_2_8_at_the_end_of_the_session(broker, dial, name, topic, watcher):
    """The session ends before the delay: the will goes out then."""
    client = dial(broker)
    client.connect(name(), will=will_of(topic, properties=[(wire.WILL_DELAY, 1000)]), properties=[(wire.SESSION_EXPIRY, 1)])
    client.close()
    assert watcher.take().payload == b"gone"


def test_3_1_2_8_session_ended_by_clean_start(broker, dial, name, topic, watcher):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, will=will_of(topic, properties=[(wire.WILL_DELAY, 1000)]), properties=[(wire.SESSION_EXPIRY, 1000)])
    client.close()
    dial(broker).connect(client_id, clean=True)
    assert watcher.take().payload == b"gone"


def test_3_1_2_8_no_expiry_means_no_delay(broker, dial, name, topic, watcher):
    client = dial(broker)
    client.connect(name(), will=will_of(topic, properties=[(wire.WILL_DELAY, 1000)]))
    client.close()
    assert watcher.take().payload == b"gone"


def test_3_1_2_22_keep_alive_runs_out(broker, dial, name, topic, watcher):
    """Silence of 1.5 times the keep-alive is a network failure: DISCONNECT 0x8D for v5, close, will. All versions share the wait."""
    clients = [dial(broker, version) for version in (3, 4, 5)]
    started = time.monotonic()
    for client in clients:
        client.connect(name(), keep_alive=1, will=will_of(topic))
    for client in clients:
        assert client.expect_closed(0x8D if client.version == 5 else None) == []
        assert watcher.expect(PUBLISH).payload == b"gone"
    assert time.monotonic() - started >= 1.4  # not before; how long after is not a test's business


def test_3_1_2_22_traffic_keeps_it_alive(broker, dial, join, name):
    """One pings until the other is thrown out, which had the same time; a third has no keep-alive."""
    pinging, silent, forever = dial(broker), dial(broker), join(broker, name(), keep_alive=0)
    pinging.connect(name(), keep_alive=1)
    silent.connect(name(), keep_alive=1)
    silent.socket.settimeout(0.3)
    while True:
        try:
            closed = silent.rest()
            break
        except wire.WireError:
            pinging.ping()
    assert [packet.reason for packet in closed] == [0x8D]
    pinging.ping()
    forever.ping()
