"""Sessions: what outlives a connection, redelivery, QoS 2 over reconnects, flow control."""
import pytest

from harness import wire
from harness.durability import KEPT, kept
from harness.wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL


@pytest.fixture
def publisher(broker, join, name):
    return join(broker, name("publisher"))


def test_3_1_2_4_clean_start_drops_it(broker, dial, name, topic, version, publisher, nothing_but):
    client_id = name()
    client = dial(broker, version)
    client.connect(client_id, **kept(version))
    client.subscribe((topic, 1))
    client.disconnect()
    publisher.publish(topic, b"lost", qos=1)
    again = dial(broker, version)
    connack = again.connect(client_id, clean=True)
    assert connack.session_present == 0
    again.subscribe((topic + "/last", 1))
    publisher.publish(topic, b"for nobody", qos=1, expect_reason=0x10)
    nothing_but(again, publisher, topic + "/last", 1)


def test_3_1_2_5_resumes(broker, dial, name, topic, version, publisher):
    """Subscriptions and queued messages are there; session present tells the truth [MQTT-3.2.2-3]."""
    client_id = name()
    client = dial(broker, version)
    assert client.connect(client_id, **kept(version)).session_present == 0  # [MQTT-3.1.2-6]
    client.subscribe((topic + "/#", 2))
    client.close()
    for number in range(30):
        publisher.publish(f"{topic}/{number}", b"%d" % number, qos=1 + number % 2)
    again = dial(broker, version)
    connack = again.connect(client_id, **kept(version))
    assert connack.session_present == (0 if version == 3 else 1)  # 3.1 has no such bit
    messages = [again.take() for _ in range(30)]
    # Whether the first ones had gone to the connection that was being closed, and come with DUP now, is the network's doing.
    assert [(message.payload, message.qos) for message in messages] == [(b"%d" % number, 1 + number % 2) for number in range(30)]
    publisher.publish(topic + "/live", b"live", qos=1)
    assert again.take().payload == b"live"


def test_3_1_2_23_no_expiry_interval_no_session(broker, dial, name, topic):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, clean=False)
    client.subscribe((topic, 1))
    client.disconnect()
    assert dial(broker).connect(client_id, clean=False).session_present == 0


def test_4_1_0_2_session_expires(broker, dial, name, topic, publisher):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, properties=[(wire.SESSION_EXPIRY, 1)])
    client.subscribe((topic, 1))
    assert publisher.publish(topic, b"x", qos=1).reason == 0
    client.close()
    before = broker.metrics().get("tidegate_sessions_ended_total")
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions_ended_total") > before, "the session ends")
    assert dial(broker).connect(client_id, clean=False).session_present == 0


def test_4_1_0_1_not_while_connected(broker, dial, name, topic, publisher):
    """A session whose expiry has passed while its client was there goes on."""
    client_id = name()
    client = dial(broker)
    client.connect(client_id, properties=[(wire.SESSION_EXPIRY, 1)])
    client.subscribe((topic, 1))
    other = dial(broker)
    other.connect(name(), keep_alive=1)
    other.expect_closed(0x8D)  # 1.5 s have passed
    publisher.publish(topic, b"x", qos=1)
    assert client.take().payload == b"x"


def test_3_14_2_expiry_changed_at_disconnect(broker, dial, name):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, properties=[(wire.SESSION_EXPIRY, 1000)])
    client.disconnect(0, [(wire.SESSION_EXPIRY, 0)])
    again = dial(broker)
    assert again.connect(client_id, clean=False).session_present == 0
    again.send(wire.disconnect_packet(0, [(wire.SESSION_EXPIRY, 10)]))  # from 0 it cannot be raised
    again.expect_closed(0x82)


def test_4_1_persistent_client_expiration_caps_it(new_broker, dial, name):
    broker = new_broker("persistent_client_expiration 1h\n")
    client = dial(broker)
    connack = client.connect(name(), properties=[(wire.SESSION_EXPIRY, 0xFFFFFFFF)])
    assert connack.get(wire.SESSION_EXPIRY) == 3600


# ---- redelivery ----


def test_4_4_0_1_resent_with_dup_and_the_same_id(broker, dial, name, topic, version, publisher):
    client_id = name()
    client = dial(broker, version)
    client.connect(client_id, **kept(version))
    client.subscribe((topic, 2))
    for number in range(6):
        publisher.publish(topic, b"%d" % number, qos=1 + number % 2)
    first = [client.expect(PUBLISH) for _ in range(6)]
    assert [message.dup for message in first] == [0] * 6
    ids = [message.packet_id for message in first]
    assert 0 not in ids and len(set(ids)) == 6  # [MQTT-2.2.1-4]
    client.send(wire.ack_packet(PUBACK, ids[0], version=version))  # 0 is done
    client.send(wire.ack_packet(PUBREC, ids[1], version=version))  # 1 is between PUBREL and PUBCOMP
    assert client.expect(PUBREL).packet_id == ids[1]
    client.close()
    again = dial(broker, version)
    again.connect(client_id, **kept(version))
    resent = [again.expect(PUBLISH, PUBREL) for _ in range(5)]
    release = [packet for packet in resent if packet.kind == PUBREL]
    messages = [packet for packet in resent if packet.kind == PUBLISH]
    assert [packet.packet_id for packet in release] == [ids[1]]  # never PUBLISH again [MQTT-4.3.3-6]
    assert [(message.packet_id, message.payload, message.dup) for message in messages] == [(ids[n], b"%d" % n, 1) for n in range(2, 6)]
    again.send(wire.ack_packet(PUBCOMP, ids[1], version=version))
    for message in messages:
        again.acknowledge(message)
    publisher.publish(topic, b"end", qos=1)
    message = again.take()
    assert (message.payload, message.dup) == (b"end", 0)
    again.ping()  # a takeover need not look at what it has not read
    again.close()
    third = dial(broker, version)
    third.connect(client_id, **kept(version))
    publisher.publish(topic, b"really the end", qos=1)
    assert third.take().payload == b"really the end"  # nothing was left to resend


def test_4_4_0_1_never_resent_within_a_connection(broker, join, name, topic, publisher):
    client = join(broker, name())
    client.subscribe((topic, 1))
    publisher.publish(topic, b"unanswered", qos=1)
    assert client.expect(PUBLISH).payload == b"unanswered"
    other = join(broker, name(), keep_alive=1)
    other.expect_closed(0x8D)  # a while
    client.ping()
    assert not client.waiting


def test_4_4_0_2_refused_is_not_resent(broker, dial, join, name, topic, publisher, nothing_but):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, properties=KEPT)
    client.subscribe((topic, 2))
    publisher.publish(topic, b"one", qos=1)
    publisher.publish(topic, b"two", qos=2)
    one, two = client.expect(PUBLISH), client.expect(PUBLISH)
    client.send(wire.ack_packet(PUBACK, one.packet_id, 0x80), wire.ack_packet(PUBREC, two.packet_id, 0x80))
    client.ping()
    client.close()
    again = join(broker, client_id, **kept())
    nothing_but(again, publisher, topic, 1)


# ---- inbound QoS 2 ----


def test_4_3_3_10_repeated_publish_is_delivered_once(broker, dial, join, name, topic, version):
    """Within a connection and over a reconnect."""
    subscriber = join(broker, name())
    subscriber.subscribe((topic, 2))
    client_id = name()
    client = dial(broker, version)
    client.connect(client_id, **kept(version))
    for dup in (False, True, True):
        client.send(wire.publish_packet(topic, b"once", 2, 77, dup=dup, version=version))
        assert client.expect(PUBREC).packet_id == 77
    client.close()
    again = dial(broker, version)
    again.connect(client_id, **kept(version))
    again.send(wire.publish_packet(topic, b"once", 2, 77, dup=True, version=version))
    assert again.expect(PUBREC).packet_id == 77
    again.send(wire.ack_packet(PUBREL, 77, version=version))
    complete = again.expect(PUBCOMP)
    assert (complete.packet_id, complete.reason) == (77, 0)
    again.publish(topic, b"twice", qos=2, packet_id=77)  # [MQTT-4.3.3-12]
    assert subscriber.take_payloads(2) == [b"once", b"twice"]


def test_4_3_3_11_pubrel_of_an_unknown_id(broker, join, name, version):
    client = join(broker, name(), version)
    client.send(wire.ack_packet(PUBREL, 4711, version=version))
    complete = client.expect(PUBCOMP)
    assert complete.packet_id == 4711
    assert complete.reason == (0x92 if version == 5 else 0)


def test_4_3_2_5_after_puback_the_id_is_new(broker, join, name, topic):
    subscriber, client = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic, 1))
    for number in range(3):
        client.publish(topic, b"%d" % number, qos=1, packet_id=5)
    assert subscriber.take_payloads(3) == [b"0", b"1", b"2"]


def test_4_3_3_interleaved_ids(broker, join, name, topic):
    """Many QoS 2 messages open at the same time, finished in another order."""
    subscriber, client = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic, 2))
    for number in range(1, 101):
        client.send(wire.publish_packet(topic, b"%d" % number, 2, number))
    assert [client.expect(PUBREC).packet_id for _ in range(100)] == list(range(1, 101))
    for number in range(100, 0, -1):
        client.send(wire.ack_packet(PUBREL, number))
    assert [client.expect(PUBCOMP).packet_id for _ in range(100)] == list(range(100, 0, -1))
    assert subscriber.take_payloads(100) == [b"%d" % number for number in range(1, 101)]


def test_2_2_1_4_identifiers_wrap(broker, join, name, topic):
    """More messages than identifiers, one of them never finished: its id is not used again."""
    client, publisher = join(broker, name()), join(broker, name())
    client.subscribe((topic, 1))
    publisher.publish(topic, b"stays open", qos=1)
    stuck = client.expect(PUBLISH).packet_id
    seen = set()
    total, step = 65600, 200
    for start in range(0, total, step):
        publisher.send(*[wire.publish_packet(topic, b"x", 1, number + 1) for number in range(step)])
        acks = []
        for _ in range(step):
            message = client.expect(PUBLISH)
            assert message.packet_id not in (0, stuck)
            seen.add(message.packet_id)
            acks.append(wire.ack_packet(PUBACK, message.packet_id))
            if len(acks) == 10:
                client.send(*acks)
                acks = []
        client.send(*acks)
        for _ in range(step):
            publisher.expect(PUBACK)
    assert len(seen) <= 65534
    client.send(wire.ack_packet(PUBACK, stuck))


# ---- flow control ----


def test_4_9_0_2_no_more_than_the_clients_receive_maximum(broker, join, name, topic, publisher):
    client = join(broker, name(), properties=[(wire.RECEIVE_MAXIMUM, 3)])
    client.subscribe((topic, 2))
    for number in range(10):
        publisher.publish(topic, b"%d" % number, qos=1 + number % 2)
    publisher.publish(topic, b"qos 0", qos=0)
    publisher.ping()
    messages = [client.expect(PUBLISH) for _ in range(4)]
    assert [message.payload for message in messages] == [b"0", b"1", b"2", b"qos 0"]  # [MQTT-3.3.4-10] [MQTT-4.9.0-3]
    client.ping()
    assert not client.waiting
    for number in range(10):
        message = messages[number] if number < 3 else client.expect(PUBLISH)
        assert message.payload == b"%d" % number
        client.acknowledge(message)


def test_4_9_0_2_max_inflight_messages(new_broker, join, name, topic):
    broker = new_broker("max_inflight_messages 2\n")
    client, publisher = join(broker, name(), 4), join(broker, name())
    client.subscribe((topic, 1))
    for number in range(5):
        publisher.publish(topic, b"%d" % number, qos=1)
    first = [client.expect(PUBLISH), client.expect(PUBLISH)]
    client.ping()
    assert not client.waiting
    for message in first:
        client.acknowledge(message)
    assert client.take_payloads(3) == [b"2", b"3", b"4"]


def test_4_9_0_1_quota_starts_anew(broker, dial, name, topic, publisher):
    client_id = name()
    client = dial(broker)
    client.connect(client_id, properties=KEPT + [(wire.RECEIVE_MAXIMUM, 2)])
    client.subscribe((topic, 1))
    for number in range(8):
        publisher.publish(topic, b"%d" % number, qos=1)
    client.expect(PUBLISH)
    client.expect(PUBLISH)
    client.close()
    again = dial(broker)
    again.connect(client_id, clean=False, properties=KEPT + [(wire.RECEIVE_MAXIMUM, 5)])
    messages = [again.expect(PUBLISH) for _ in range(5)]
    assert [(message.payload, message.dup) for message in messages] == [(b"0", 1), (b"1", 1), (b"2", 0), (b"3", 0), (b"4", 0)]
    again.ping()
    assert not again.waiting
    for message in messages:
        again.acknowledge(message)
    assert again.take_payloads(3) == [b"5", b"6", b"7"]


def test_3_3_4_7_receive_maximum_of_the_server(new_broker, join, name, topic, shards):
    """One more unfinished QoS 2 than announced: 0x93. (With QoS 1 it depends on how fast the answers are.)"""
    broker = new_broker("receive_maximum 10\n", shards=shards)
    client = join(broker, name())
    assert client.connack.get(wire.RECEIVE_MAXIMUM) == 10
    for number in range(1, 11):
        client.send(wire.publish_packet(topic, b"x", 2, number))
        assert client.expect(PUBREC).packet_id == number
    client.ping()
    client.send(wire.publish_packet(topic, b"x", 2, 11))
    client.expect_closed(0x93)
    assert broker.metrics().get("tidegate_closed_connections_total", reason="protocol_error") == 1


def test_3_3_4_7_receive_maximum_held_back_when_asked(new_broker, join, name, topic):
    """receive_maximum_strict false: PUBREC makes room again, nobody is thrown out or left hanging."""
    broker = new_broker("receive_maximum 10\nreceive_maximum_strict false\n")
    client = join(broker, name())
    for number in range(1, 31):
        client.send(wire.publish_packet(topic, b"x", 2, number))
    # PUBREL of the open ones would wait behind the PUBLISHes that are not read: were it what makes room, this client would hang for ever.
    assert [client.expect(PUBREC).packet_id for _ in range(30)] == list(range(1, 31))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_paused_connections") == 0, "the client is read")
    other = join(broker, name())
    other.publish(topic, b"x", qos=1)


# ---- queues ----


def test_4_1_queue_is_bounded_and_counted(new_broker, join, name, topic, shards, away):
    broker = new_broker("max_queued_messages 10\n", shards=shards)
    client_id = name()
    away(broker, topic, client_id=client_id)
    publisher = join(broker, name())
    for number in range(25):
        publisher.publish(topic, b"%d" % number, qos=1)
    metrics = broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total", reason="queue_full") == 15, "15 are dropped")
    assert metrics.get("tidegate_queue_messages", queue="session_queue") == 10
    broker.check_books()
    again = join(broker, client_id, **kept())
    assert again.take_payloads(10) == [b"%d" % number for number in range(10)]
    publisher.publish(topic, b"live", qos=1)
    assert again.take().payload == b"live"
    broker.check_books()


def test_4_1_queue_bytes_are_bounded(new_broker, join, name, topic, away):
    broker = new_broker("max_queued_bytes 100000\n")
    client_id = name()
    away(broker, topic, client_id=client_id)
    publisher = join(broker, name())
    for _ in range(30):
        publisher.publish(topic, bytes(10000), qos=1)
    metrics = broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total", reason="queue_bytes") >= 20, "the rest is dropped")
    assert metrics.get("tidegate_queue_bytes", queue="session_queue") <= 100000
    broker.check_books()


@pytest.mark.parametrize("keep", [False, True], ids=["default", "queue_qos0_messages"])
def test_4_1_qos_0_for_the_absent(new_broker, join, name, topic, keep, away):
    broker = new_broker(f"queue_qos0_messages {str(keep).lower()}\n")
    client_id = name()
    away(broker, topic, client_id=client_id)
    publisher = join(broker, name())
    publisher.publish(topic, b"zero", qos=0)
    publisher.publish(topic, b"one", qos=1)
    again = join(broker, client_id, **kept())
    assert again.take_payloads(2 if keep else 1) == ([b"zero", b"one"] if keep else [b"one"])
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="offline_qos0") == (0 if keep else 1)
    broker.check_books()


def test_4_1_large_queue_comes_back_in_order(broker, join, name, topic, publisher, away):
    """Longer than what is held at hand: the rest comes from the store, page by page."""
    client_id = name()
    away(broker, topic, qos=2, client_id=client_id)
    count = 900
    for number in range(count):
        publisher.send(wire.publish_packet(topic, b"%d" % number, 1, number + 1))
    for _ in range(count):
        publisher.expect(PUBACK)
    again = join(broker, client_id, **kept())
    assert again.take_payloads(count) == [b"%d" % number for number in range(count)]
