"""Retained messages."""
import pytest

from harness import wire
from harness.wire import PUBLISH


@pytest.fixture
def publisher(broker, join, name):
    return join(broker, name("publisher"))


@pytest.fixture
def subscriber(broker, join, name):
    return join(broker, name("subscriber"))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_3_3_1_9_sent_to_a_new_subscription(broker, join, name, topic, version, qos):
    publisher = join(broker, name(), version)
    before = broker.metrics().get("tidegate_retained_updates_total", result="set")
    publisher.publish(topic, b"kept", qos=qos, retain=True)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_retained_updates_total", result="set") == before + 1, "it is kept")
    subscriber = join(broker, name(), version)
    subscriber.subscribe((topic, 2))
    message = subscriber.take()
    assert (message.payload, message.retain, message.qos, message.dup) == (b"kept", 1, qos, 0)
    publisher.publish(topic, b"", retain=True)


def test_3_3_1_5_the_last_one_counts(publisher, subscriber, topic):
    for number in range(5):
        publisher.publish(topic, str(number), qos=1, retain=True)
    subscriber.subscribe((topic, 1))
    assert subscriber.take().payload == b"4"


def test_3_3_1_6_empty_payload_clears(publisher, subscriber, topic, nothing_but):
    subscriber.subscribe((topic + "/live", 1 | 8))
    publisher.publish(topic + "/live", b"kept", qos=1, retain=True)
    publisher.publish(topic + "/live", b"", qos=1, retain=True)
    assert [(message.payload, message.retain) for message in (subscriber.take(), subscriber.take())] == [(b"kept", 1), (b"", 1)]
    subscriber.unsubscribe(topic + "/live")
    subscriber.subscribe((topic + "/live", 1))  # [MQTT-3.3.1-7]
    nothing_but(subscriber, publisher, topic + "/live", 1)


def test_3_3_1_8_retain_0_changes_nothing(publisher, subscriber, topic):
    publisher.publish(topic, b"kept", qos=1, retain=True)
    publisher.publish(topic, b"passing", qos=1)
    publisher.publish(topic, b"", qos=1)
    subscriber.subscribe((topic, 1))
    assert subscriber.take().payload == b"kept"


@pytest.mark.parametrize("handling, first, again", [(0, True, True), (1, True, False), (2, False, False)], ids=["0", "1", "2"])
def test_3_3_1_9_to_11_retain_handling(publisher, subscriber, topic, nothing_but, handling, first, again):
    publisher.publish(topic, b"kept", qos=1, retain=True)
    for expected in (first, again):
        subscriber.subscribe((topic, 1 | handling << 4))
        if expected:
            message = subscriber.take()
            assert (message.payload, message.retain) == (b"kept", 1)
        nothing_but(subscriber, publisher, topic, 1)


def test_3_8_4_3_v311_the_same_filter_again_resends(broker, join, name, publisher, topic):
    publisher.publish(topic, b"kept", qos=1, retain=True)
    subscriber = join(broker, name(), 4)
    for _ in range(2):
        subscriber.subscribe((topic, 1))
        assert subscriber.take().payload == b"kept"


def test_3_3_1_12_13_retain_as_published(broker, join, dial, name, publisher, topic):
    plain, published = join(broker, name()), join(broker, name())
    client_id = name()
    offline = dial(broker)
    offline.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    plain.subscribe((topic, 1))
    published.subscribe((topic, 1 | 8))
    offline.subscribe((topic, 1 | 8))
    offline.disconnect()
    publisher.publish(topic, b"flag", qos=1, retain=True)
    assert (plain.take().retain, published.take().retain) == (0, 1)
    again = dial(broker)
    again.connect(client_id, clean=False)
    assert again.take().retain == 1  # also from the offline queue
    publisher.publish(topic, b"", retain=True)


def test_3_3_1_wildcards_find_all(broker, join, name, publisher, topic):
    """One thousand retained values, all of them, once each."""
    expected = {f"{topic}/{number % 10}/{number}": b"%d" % number for number in range(1000)}
    for number, (where, payload) in enumerate(expected.items()):
        publisher.send(wire.publish_packet(where, payload, 1, number + 1, retain=True))
    for _ in expected:
        publisher.expect(wire.PUBACK)
    subscriber = join(broker, name())
    subscriber.subscribe((topic + "/#", 1))
    found = {}
    for _ in expected:
        message = subscriber.take()
        assert message.topic not in found and message.retain == 1
        found[message.topic] = message.payload
    assert found == expected
    one_level = join(broker, name())
    one_level.subscribe((topic + "/+/500", 0))
    assert one_level.take().payload == b"500"
    for number, where in enumerate(expected):
        publisher.send(wire.publish_packet(where, b"", retain=True))
    publisher.ping()


def test_4_7_2_1_wildcard_does_not_find_dollar_topics(broker, join, name, publisher, topic):
    publisher.publish("$hidden/" + topic, b"kept", qos=1, retain=True)
    publisher.publish(topic + "/" + topic, b"seen", qos=1, retain=True)
    subscriber = join(broker, name())
    subscriber.subscribe(("+/" + topic, 1))
    assert subscriber.take().payload == b"seen"
    subscriber.subscribe(("$hidden/" + topic, 1))
    assert subscriber.take().payload == b"kept"
    publisher.publish("$hidden/" + topic, b"", retain=True)


def test_3_3_1_retained_quota(new_broker, join, name, topic):
    broker = new_broker("max_retained_messages 3\n")
    publisher, subscriber = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic + "/#", 2))
    for number in range(3):
        assert publisher.publish(f"{topic}/{number}", b"x", qos=1, retain=True).reason == 0
        assert subscriber.take().payload == b"x"
    for qos in (1, 2, 2):  # refused before anybody gets it, as often as it comes
        assert publisher.publish(f"{topic}/3", b"no", qos=qos, retain=True, expect_reason=None).reason == 0x97
    assert publisher.publish(f"{topic}/0", b"y", qos=1, retain=True).reason == 0  # replacing needs no room
    assert subscriber.take().payload == b"y"
    metrics = broker.metrics()
    assert metrics.get("tidegate_retained_messages") == 3
    assert metrics.get("tidegate_retained_updates_total", result="refused") == 3
    assert metrics.get("tidegate_refused_messages_total", reason="retained_full") == 3
    for version, qos in ((3, 1), (4, 2)):  # cannot be told: delivered once, and not kept
        older = join(broker, name(), version)
        older.publish(f"{topic}/4", b"old", qos=qos, retain=True)
        assert subscriber.take().payload == b"old"
    metrics = broker.metrics()
    assert metrics.get("tidegate_retained_messages") == 3
    assert metrics.get("tidegate_retained_updates_total", result="refused") == 5
    publisher.publish(f"{topic}/1", b"", qos=1, retain=True)
    assert subscriber.take().payload == b""
    assert publisher.publish(f"{topic}/3", b"yes", qos=2, retain=True).reason == 0
    assert subscriber.take().payload == b"yes"


def test_3_3_1_newest_on_every_shard(broker, join, name, topic, spread):
    """Publishers on different shards set one topic; whoever subscribes afterwards gets what the last one set."""
    publishers = spread(broker)
    for number in range(30):
        publishers[number % len(publishers)].publish(topic, str(number), qos=1, retain=True)
    for subscriber in spread(broker):
        subscriber.subscribe((topic, 1))
        assert subscriber.take().payload == b"29"
    publishers[0].publish(topic, b"", retain=True)
