"""Queues after the broker's end: everything acknowledged, in order, with all it came with; nothing that was taken."""
import threading
import time

import pytest

from harness import wire
from harness.durability import FAST, KEPT, kept, wait_checkpoint
from harness.wire import PUBACK, PUBLISH


def test_4_1_queue_in_order_with_all_properties(new_broker, join, restart, topic):
    """More than what stays in memory; at two qualities; each with what it came with, and the rest of its time."""
    broker = new_broker(FAST)
    client = join(broker, "absent", **kept())
    client.subscribe((f"{topic}/#", 2), properties=[(wire.SUBSCRIPTION_ID, 5)])
    client.disconnect()
    publisher = join(broker, "publisher")
    own = [(wire.PAYLOAD_FORMAT, 1), (wire.CONTENT_TYPE, "text/plain"), (wire.RESPONSE_TOPIC, "answers/1"), (wire.CORRELATION_DATA, b"\0\1\2"),
           (wire.USER_PROPERTY, ("b", "2")), (wire.USER_PROPERTY, ("a", "1")), (wire.USER_PROPERTY, ("b", "2"))]
    for number in range(200):
        publisher.publish(f"{topic}/{number % 3}", b"%d" % number, qos=1 + number % 2, properties=own + [(wire.MESSAGE_EXPIRY, 1000)])
    restart(broker, lambda: time.sleep(2))
    client = join(broker, "absent", **kept())
    assert client.connack.session_present
    for number in range(200):
        message = client.take()
        assert (message.payload, message.topic, message.qos) == (b"%d" % number, f"{topic}/{number % 3}", 1 + number % 2)
        assert 0 < message.get(wire.MESSAGE_EXPIRY) <= 998, message  # [MQTT-3.3.2-6]
        assert message.get(wire.SUBSCRIPTION_ID) == 5
        rest = [pair for pair in message.properties if pair[0] not in (wire.MESSAGE_EXPIRY, wire.SUBSCRIPTION_ID)]
        assert sorted(rest[:4]) == sorted(own[:4]) and [pair for pair in rest if pair[0] == wire.USER_PROPERTY] == own[4:]
    client.ping()
    broker.check_books()


@pytest.mark.parametrize("is_away", [True, False])
def test_4_1_who_was_behind_catches_up(new_broker, join, topic, is_away):
    """In a flow of messages, with the checkpoint at its own interval, a second: away for longer than that, or there and not reading."""
    broker = new_broker()
    client = join(broker, "client", **kept())
    client.subscribe((f"{topic}/#", 1))
    if is_away:
        client.disconnect()
    publisher = join(broker, "publisher")
    is_over = threading.Event()

    def flow():
        while not is_over.wait(0.01):
            publisher.publish(f"{topic}/x", repr(time.monotonic()).encode(), qos=1)

    thread = threading.Thread(target=flow)
    thread.start()
    try:
        time.sleep(2.5)
        if is_away:
            client = join(broker, "client", **kept())
        latencies, end = [], time.monotonic() + 5
        while time.monotonic() < end:
            message = client.take()
            latencies.append(time.monotonic() - float(message.payload))
    finally:
        is_over.set()
        thread.join()
    assert len(latencies) > 100
    late = sorted(latencies[len(latencies) * 2 // 3:])
    assert late[len(late) // 2] < 0.5, late


def test_4_1_delivered_messages_do_not_come_again(new_broker, join, restart, topic, version):
    broker = new_broker(FAST)
    client = join(broker, "client", version, **kept(version))
    client.subscribe((topic, 2))
    publisher = join(broker, "publisher")
    for number in range(100):
        publisher.publish(topic, b"%d" % number, qos=1 + number % 2)
    assert client.take_payloads(60) == [b"%d" % number for number in range(60)]
    client.disconnect()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_acked_copies_total") == 60, "all 60 are acknowledged")
    wait_checkpoint(broker)  # an acknowledgement is answered by nothing: it counts once it is written
    restart(broker)
    client = join(broker, "client", version, **kept(version))
    found = [client.take() for _ in range(40)]
    assert [int(message.payload) for message in found] == list(range(60, 100))  # over both QoS [MQTT-4.6.0-1]
    publisher = join(broker, "publisher")
    publisher.publish(topic, b"last", qos=2)
    assert client.take().payload == b"last"
    broker.check_books()


def test_3_3_2_5_expired_while_the_broker_is_down(new_broker, join, restart, topic, away):
    broker = new_broker(FAST)
    away(broker, topic)
    publisher = join(broker, "publisher")
    publisher.publish(topic, b"short", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1)])
    publisher.publish(topic, b"long", qos=1)
    restart(broker, lambda: time.sleep(2.1))
    assert join(broker, "absent", **kept()).take().payload == b"long"
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="expired") == 1
    broker.check_books()


def test_4_1_queue_over_many_restarts(new_broker, join, restart, topic, away):
    """Filled and emptied a part at a time; each part under another number of shards."""
    broker = new_broker(FAST)
    away(broker, topic)
    sent = taken = 0
    for _ in range(4):
        publisher = join(broker, "publisher")
        for _ in range(70):
            publisher.publish(topic, b"%d" % sent, qos=1)
            sent += 1
        client = join(broker, "absent", clean=False, properties=KEPT + [(wire.RECEIVE_MAXIMUM, 1)])
        for _ in range(30):
            assert client.take().payload == b"%d" % taken
            taken += 1
        client.ping()
        client.disconnect()
        broker.check_books()
        wait_checkpoint(broker)
        restart(broker)
    client = join(broker, "absent", **kept())
    first = client.expect(PUBLISH)
    client.acknowledge(first)
    assert first.payload == b"%d" % taken
    assert client.take_payloads(sent - taken - 1) == [b"%d" % number for number in range(taken + 1, sent)]


@pytest.mark.parametrize("keep", [True, False], ids=["queued", "not queued"])
def test_4_1_qos_0_for_the_absent(new_broker, join, restart, topic, keep, away):
    broker = new_broker(FAST + f"queue_qos0_messages {str(keep).lower()}\n")
    away(broker, topic)
    publisher = join(broker, "publisher")
    publisher.publish(topic, b"zero")
    publisher.publish(topic, b"one", qos=1)
    restart(broker)
    client = join(broker, "absent", **kept())
    assert client.take_payloads(2 if keep else 1) == ([b"zero"] if keep else []) + [b"one"]


def test_1_5_4_longest_ids_and_topics(new_broker, join, restart, away):
    """65535 bytes, of which the last one alone tells two of them apart."""
    broker = new_broker(FAST)
    ids = ["c" * 65534 + last for last in "xy"]
    topics = ["t/" * 50 + "t" * 65434 + last for last in "xy"]
    for client_id, where in zip(ids, topics):
        away(broker, where, client_id=client_id)
    publisher = join(broker, "publisher", **kept())
    for where in topics:
        publisher.publish(where, where[-1], qos=1, retain=True)
    restart(broker)
    for client_id, where in zip(ids, topics):
        client = join(broker, client_id, **kept())
        assert client.connack.session_present
        message = client.take()
        assert (message.topic, message.payload) == (where, where[-1].encode())
    reader = join(broker, "reader")
    for where in topics:
        reader.subscribe(where)
        message = reader.take()
        assert (message.topic, message.retain, message.payload) == (where, 1, where[-1].encode())


def test_4_1_large_messages(new_broker, join, restart, topic, away):
    """Records over many blocks, in a queue and retained; and a session that has nothing else."""
    broker = new_broker(FAST)
    away(broker, topic, qos=2)
    publisher = join(broker, "publisher")
    bodies = [bytes([65 + number]) * size for number, size in enumerate((70000, 1 << 20, 5 << 20, 1))]
    for number, body in enumerate(bodies):
        publisher.publish(topic, body, qos=1 + number % 2, retain=number == 2)
    restart(broker)
    client = join(broker, "absent", **kept())
    assert [body == expected for body, expected in zip(client.take_payloads(4), bodies)] == [True] * 4
    reader = join(broker, "reader")
    reader.subscribe(topic)
    assert reader.take().payload == bodies[2]
    broker.check_books()


def test_sigterm_with_everything_under_way(new_broker, join, topic, shards, away):
    """SIGTERM in the middle of a flood: status 0, and what was acknowledged is there."""
    broker = new_broker(FAST, shards=shards)
    away(broker, topic)
    publisher = join(broker, "publisher")
    publisher.send(*[wire.publish_packet(topic, b"%d" % number, 1, number + 1) for number in range(900)])
    for _ in range(100):
        publisher.expect(PUBACK)
    broker.stop()
    acknowledged = 100 + sum(packet.kind == PUBACK for packet in publisher.rest())
    broker.start()
    client = join(broker, "absent", **kept())
    assert client.take_payloads(acknowledged) == [b"%d" % number for number in range(acknowledged)]
