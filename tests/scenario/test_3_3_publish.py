"""PUBLISH, both ways: QoS, properties, aliases, subscription identifiers."""
import pytest

from harness import wire
from harness.wire import PUBLISH


@pytest.mark.parametrize("qos_out", [0, 1, 2])
@pytest.mark.parametrize("qos_in", [0, 1, 2])
def test_3_8_4_8_delivered_at_the_lesser_qos(broker, join, name, topic, version, qos_in, qos_out):
    subscriber, publisher = join(broker, name(), version), join(broker, name(), version)
    subscriber.subscribe((topic, qos_out))
    publisher.publish(topic, b"payload", qos=qos_in)
    message = subscriber.take()
    assert (message.topic, message.payload, message.qos, message.dup, message.retain) == (topic, b"payload", min(qos_in, qos_out), 0, 0)
    assert (message.packet_id is None) == (message.qos == 0)  # [MQTT-2.2.1-2]


@pytest.mark.parametrize("versions", [(3, 5), (5, 3), (4, 5), (5, 4), (3, 4)], ids=lambda pair: f"{pair[0]}to{pair[1]}")
def test_3_3_between_versions(broker, join, name, topic, versions):
    publisher, subscriber = join(broker, name(), versions[0]), join(broker, name(), versions[1])
    subscriber.subscribe((topic, 2))
    more = {"properties": [(wire.USER_PROPERTY, ("k", "v"))]} if versions[0] == 5 else {}
    for qos in (0, 1, 2):
        publisher.publish(topic, bytes([qos]), qos=qos, **more)
        assert subscriber.take().payload == bytes([qos])


def test_3_3_telemetry_and_ordinary_topics(broker, join, name, version):
    """A message that a telemetry rule claims goes to subscribers like any other, at every QoS."""
    device = name("car")
    subscriber, publisher = join(broker, name(), version), join(broker, name(), version)
    subscriber.subscribe((f"fleet/{device}/#", 2))
    before = broker.metrics().get("tidegate_telemetry_logged_total")
    for qos in (0, 1, 2):
        publisher.publish(f"fleet/{device}/telemetry", b'{"speed":%d}' % qos, qos=qos)
    assert sorted(subscriber.take_payloads(3)) == [b'{"speed":%d}' % qos for qos in (0, 1, 2)]
    broker.wait_metric(lambda metrics: metrics.get("tidegate_telemetry_logged_total") == before + 3, "all three are logged")


def test_3_3_reaches_subscribers_on_every_shard(broker, join, name, topic, spread):
    subscribers = spread(broker)
    for subscriber in subscribers:
        subscriber.subscribe((topic, 2))
    publishers = spread(broker)
    for number, publisher in enumerate(publishers):
        for qos in (0, 1, 2):
            publisher.publish(topic, b"%d" % number, qos=qos)
    for subscriber in subscribers:
        assert sorted(subscriber.take_payloads(3 * len(publishers))) == sorted(b"%d" % number for number in range(len(publishers)) for _ in range(3))


def test_4_6_0_5_order_per_publisher(broker, join, name, topic, spread):
    subscribers, publisher = spread(broker), join(broker, name())
    for subscriber in subscribers:
        subscriber.subscribe((topic, 1))
    for number in range(500):
        publisher.send(wire.publish_packet(topic, b"%d" % number, 1, number + 1))
    for number in range(500):
        assert publisher.recv().packet_id == number + 1  # [MQTT-4.6.0-2 of 3.1.1]
    for subscriber in subscribers:
        assert subscriber.take_payloads(500) == [b"%d" % number for number in range(500)]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 65536, 1 << 20])
def test_3_3_3_payloads_of_all_lengths(broker, join, name, topic, version, size):
    subscriber, publisher = join(broker, name(), version), join(broker, name(), version)
    subscriber.subscribe((topic, 1))
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    publisher.publish(topic, payload, qos=1)
    assert subscriber.take().payload == payload


@pytest.mark.parametrize("size", [1, 2, 127, 128, 1000, 65535])
def test_4_7_3_3_topics_of_all_lengths(broker, join, name, topic, size):
    subscriber, publisher = join(broker, name()), join(broker, name())
    long_topic = (topic + "/" + "l" * size)[-size:] if size >= len(topic) + 2 else chr(0x4e00 + size) if size >= 3 else "~" * size
    subscriber.subscribe((long_topic, 1))
    publisher.publish(long_topic, b"x", qos=1)
    assert subscriber.take().topic == long_topic
    subscriber.unsubscribe(long_topic)


def test_3_3_2_15_to_20_properties_unaltered(broker, join, name, topic):
    pairs = [("z", "1"), ("a", "2"), ("z", "1"), ("", ""), ("ünï", "çödé")]
    sent = [(wire.PAYLOAD_FORMAT, 1), (wire.CONTENT_TYPE, "application/json"), (wire.RESPONSE_TOPIC, "re/ply"),
            (wire.CORRELATION_DATA, b"\0\xff\1")] + [(wire.USER_PROPERTY, pair) for pair in pairs]
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic, 2))
    for qos in (0, 1, 2):
        publisher.publish(topic, b"{}", qos=qos, properties=sent)
        message = subscriber.take()
        assert message.all(wire.USER_PROPERTY) == pairs  # [MQTT-3.3.2-17, -18]
        assert sorted(item for item in message.properties if item[0] != wire.USER_PROPERTY) == sorted(sent[:4])


def test_3_3_1_3_outgoing_dup_is_not_the_incoming_one(broker, join, name, topic):
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic, 2))
    for qos in (1, 2):
        publisher.publish(topic, b"x", qos=qos, dup=True)
        assert subscriber.take().dup == 0


def test_3_4_no_matching_subscribers(broker, join, name, topic):
    publisher = join(broker, name())
    for qos in (1, 2):
        assert publisher.publish(topic, b"x", qos=qos).reason == 0x10
    publisher.subscribe((topic, 0))
    for qos in (1, 2):
        assert publisher.publish(topic, b"x", qos=qos).reason == 0x00
    assert publisher.publish(f"fleet/{name()}/telemetry", b"{}", qos=1).reason == 0x00  # the log wants it


# ---- topic aliases ----


def test_3_3_2_12_every_alias_up_to_the_maximum(broker, join, name, topic):
    subscriber, publisher = join(broker, name()), join(broker, name())
    maximum = publisher.connack.get(wire.ALIAS_MAXIMUM)
    assert maximum > 0
    subscriber.subscribe((topic + "/#", 1))
    for alias in range(1, maximum + 1):
        publisher.publish(f"{topic}/{alias}", b"named", qos=1, properties=[(wire.ALIAS, alias)])
    for alias in range(maximum, 0, -1):
        publisher.publish("", b"alias", qos=1, properties=[(wire.ALIAS, alias)])
    publisher.publish(f"{topic}/moved", b"named", qos=1, properties=[(wire.ALIAS, 1)])
    publisher.publish("", b"alias", qos=1, properties=[(wire.ALIAS, 1)])
    messages = [subscriber.take() for _ in range(2 * maximum + 2)]
    expected = list(range(1, maximum + 1)) + list(range(maximum, 0, -1)) + ["moved", "moved"]
    assert [message.topic for message in messages] == [f"{topic}/{end}" for end in expected]
    assert all(message.all(wire.ALIAS) == [] for message in messages)  # [MQTT-3.1.2-27]


@pytest.mark.parametrize("alias, named, reason", [(0, True, 0x94), (11, True, 0x94), (65535, True, 0x94), (3, False, 0x82)],
                         ids=["3_3_2_8-zero", "3_2_2_17-above", "3_3_2_9-far_above", "unknown"])
def test_3_3_2_alias_errors(broker, join, name, topic, alias, named, reason):
    client = join(broker, name())
    client.send(wire.publish_packet(topic if named else "", b"x", properties=[(wire.ALIAS, alias)]))
    client.expect_closed(reason)


def test_3_3_2_7_aliases_end_with_the_connection(broker, dial, name, topic):
    client_id = name()
    first = dial(broker)
    first.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    first.publish(topic, b"x", properties=[(wire.ALIAS, 1)])
    first.disconnect()
    second = dial(broker)
    second.connect(client_id, clean=False)
    second.send(wire.publish_packet("", b"x", properties=[(wire.ALIAS, 1)]))
    second.expect_closed(0x82)


def test_3_2_2_18_no_maximum_no_alias(new_broker, join, name, topic):
    broker = new_broker(listener="listener 0 127.0.0.1\nallow_anonymous true\nmax_topic_alias 0\n")
    client = join(broker, name())
    assert client.connack.get(wire.ALIAS_MAXIMUM, 0) == 0
    client.send(wire.publish_packet(topic, b"x", properties=[(wire.ALIAS, 1)]))
    client.expect_closed(0x94)


# ---- subscription identifiers, overlapping subscriptions ----


def test_3_3_4_3_subscription_identifier_goes_along(broker, join, name, topic):
    subscriber, publisher = join(broker, name()), join(broker, name())
    publisher.publish(topic + "/kept", b"old", qos=1, retain=True)
    subscriber.subscribe((topic + "/#", 1), properties=[(wire.SUBSCRIPTION_ID, 268435455)])
    retained = subscriber.take()
    assert (retained.payload, retained.retain, retained.all(wire.SUBSCRIPTION_ID)) == (b"old", 1, [268435455])
    publisher.publish(topic + "/live", b"new", qos=1)
    assert subscriber.take().all(wire.SUBSCRIPTION_ID) == [268435455]
    publisher.publish(topic + "/kept", b"", retain=True)


def test_3_3_4_4_overlap_one_copy_with_all_identifiers(broker, join, name, topic):
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic + "/#", 0), properties=[(wire.SUBSCRIPTION_ID, 1)])
    subscriber.subscribe((topic + "/+", 2), properties=[(wire.SUBSCRIPTION_ID, 2)])
    subscriber.subscribe((topic + "/a", 1), properties=[(wire.SUBSCRIPTION_ID, 300)])
    subscriber.subscribe(("+/a", 1))
    publisher.publish(topic + "/a", b"x", qos=2)
    message = subscriber.take()
    assert (sorted(message.all(wire.SUBSCRIPTION_ID)), message.qos) == ([1, 2, 300], 2)  # [MQTT-3.3.4-2]
    publisher.publish(topic + "/b/c", b"end", qos=2)
    message = subscriber.take()
    assert (message.payload, message.all(wire.SUBSCRIPTION_ID), message.qos) == (b"end", [1], 0)


def test_3_3_5_1_overlap_v311_highest_qos(broker, join, name, topic):
    subscriber, publisher = join(broker, name(), 4), join(broker, name(), 4)
    subscriber.subscribe((topic + "/#", 0), (topic + "/+", 2), (topic + "/a", 1))
    publisher.publish(topic + "/a", b"x", qos=2)
    assert subscriber.take().qos == 2
    publisher.publish(topic + "/end/1", b"end", qos=2)
    assert subscriber.take().payload == b"end"


def test_3_3_4_5_overlap_a_copy_each_when_asked(new_broker, join, name, topic, shards):
    broker = new_broker("allow_duplicate_messages true\n", shards=shards)
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic + "/#", 0), properties=[(wire.SUBSCRIPTION_ID, 1)])
    subscriber.subscribe((topic + "/+", 2), properties=[(wire.SUBSCRIPTION_ID, 2)])
    publisher.publish(topic + "/a", b"x", qos=2)
    copies = [subscriber.take(), subscriber.take()]
    assert sorted((copy.all(wire.SUBSCRIPTION_ID)[0], copy.qos) for copy in copies) == [(1, 0), (2, 2)]
    publisher.publish(topic + "/b/c", b"end", qos=0)
    assert subscriber.take().payload == b"end"


def test_3_3_4_6_subscription_identifier_from_a_client(broker, join, name, topic):
    client = join(broker, name())
    client.send(wire.publish_packet(topic, b"x", properties=[(wire.SUBSCRIPTION_ID, 1)]))
    client.expect_closed(0x82)


def test_3_8_3_3_no_local(broker, join, name, topic):
    here, there = join(broker, name()), join(broker, name())
    here.subscribe((topic, 1 | 4))
    there.subscribe((topic, 1 | 4))
    here.publish(topic, b"mine", qos=1)
    there.publish(topic, b"theirs", qos=1)
    assert here.take().payload == b"theirs"
    assert there.take().payload == b"mine"
    here.ping()
    assert not [packet for packet in here.waiting if packet.kind == PUBLISH]


# ---- message expiry ----


def test_3_3_2_6_expiry_goes_along_and_shrinks(broker, join, dial, name, topic):
    publisher, subscriber = join(broker, name()), dial(broker)
    client_id = name()
    subscriber.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    subscriber.subscribe((topic, 1))
    publisher.publish(topic, b"now", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1000)])
    assert 998 <= subscriber.take().get(wire.MESSAGE_EXPIRY) <= 1000
    subscriber.disconnect()
    publisher.publish(topic, b"later", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1000)])
    again = dial(broker)
    again.connect(client_id, clean=False)
    assert 970 <= again.take().get(wire.MESSAGE_EXPIRY) <= 1000


def test_3_3_2_5_expired_before_delivery_is_dropped(broker, join, dial, name, topic):
    """Time has to pass here: the will with a delay of one second longer than the expiry is the clock."""
    publisher, watcher = join(broker, name()), join(broker, name())
    watcher.subscribe(topic + "/clock")
    client_id = name()
    subscriber = dial(broker)
    subscriber.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    subscriber.subscribe((topic, 1))
    subscriber.disconnect()
    publisher.publish(topic, b"short", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1)])
    publisher.publish(topic, b"long", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1000)])
    publisher.publish(topic + "/kept", b"short", qos=1, retain=True, properties=[(wire.MESSAGE_EXPIRY, 1)])
    clock = dial(broker)
    clock.connect(name(), will={"topic": topic + "/clock", "properties": [(wire.WILL_DELAY, 2)]}, properties=[(wire.SESSION_EXPIRY, 100)])
    clock.close()
    watcher.take()
    again = dial(broker)
    again.connect(client_id, clean=False)
    assert again.take().payload == b"long"
    again.subscribe((topic + "/kept", 1))
    publisher.publish(topic + "/kept", b"live", qos=1)
    assert again.take().payload == b"live"
