"""What is acknowledged is there after kill -9 and after SIGTERM: sessions, subscriptions, queues, exchanges, retained values, wills. Each test
has a broker of its own, which comes back with another number of shards.

`restart` is how it ends: "kill" at once, so that the next start finds it in the log; "kill_late" when the checkpoint has all of it, so that it
comes back from the database; "term" in order."""
import itertools
import os
import pathlib
import select
import subprocess
import tarfile
import threading
import time

import pytest

from harness import wire
from harness.pair import fill_disk, flip
from harness.programs import Broker, wait_until
from harness.wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL

KEPT = [(wire.SESSION_EXPIRY, 3600)]
FAST = "checkpoint_interval 50ms\n"  # most tests look at what is behind a commit
NO_LOCAL, AS_PUBLISHED, ONLY_NEW = 4, 8, 16


def kept(version=5, more=()):
    """Options of a CONNECT whose session outlives the connection."""
    return {"clean": False, "properties": KEPT + list(more)} if version == 5 else {"clean": False}


def wait_checkpoint(broker):
    """Until the checkpoint has all that clients caused and saw the answer of (that of PINGREQ, if nothing else is answered).

    A PUBACK says that all before it is durable; of the commits that end after it, the third has begun after it."""
    probe = wire.Client(broker.port)
    probe.connect("checkpoint probe")
    for _ in range(3):
        commits = broker.metrics().get("tidegate_checkpoint_commits_total")
        probe.publish("checkpoint/probe", b"x", qos=1, retain=True)
        broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_commits_total") > commits, "the checkpoint goes on")
    probe.disconnect()


@pytest.fixture(params=["kill", "kill_late", "term"])
def restart(request):
    """restart(broker): the same broker after its end, with another number of shards. restart(broker, meanwhile): and that in between."""
    counts = itertools.cycle([3, 1, 2])

    def again(broker, meanwhile=None):
        if request.param == "kill_late":
            wait_checkpoint(broker)
        broker.stop() if request.param == "term" else broker.kill()
        if meanwhile:
            meanwhile()
        broker.shards = next(counts)
        return broker.start()

    again.how = request.param
    return again


@pytest.fixture
def version(restart):
    """Each way to end with a version of its own: that they do not meet crosswise saves time."""
    return {"kill": 5, "kill_late": 4, "term": 3}[restart.how]


@pytest.fixture
def killed():
    """The same, only with kill -9 at once: for what does not depend on how it ends."""

    def again(broker, meanwhile=None):
        broker.kill()
        if meanwhile:
            meanwhile()
        return broker.start()

    return again


def leave(client):
    """End a connection so that nobody asks for its session before the broker has noticed."""
    client.disconnect()


def refusal(broker):
    """What a broker says that does not start."""
    broker.spawn()
    status = broker.wait_end()
    broker.process = None
    broker.check_clean()
    assert status == 1, broker.stderr()
    return broker.stderr()


# ---- sessions ----


def test_4_1_0_session_present(new_broker, dial, restart, name, version):
    broker = new_broker(FAST)
    for client_id in ("one", "two", "three"):
        client = dial(broker, version)
        assert not client.connect(client_id, **kept(version)).session_present
        if client_id == "three":
            leave(client)
    gone = dial(broker, version)
    gone.connect("two", clean=True)  # [MQTT-3.1.2-6]: ends the kept one
    restart(broker)
    for client_id, present in (("one", 1), ("two", 0), ("three", 1), ("four", 0)):
        assert dial(broker, version).connect(client_id, **kept(version)).session_present == (present if version > 3 else 0), client_id
    broker.check_books()


def test_4_1_0_ended_sessions_stay_ended(new_broker, dial, join, restart, topic):
    """Clean start, and an expiry interval of 0 at DISCONNECT: neither the session nor its queue comes back."""
    broker = new_broker(FAST)
    publisher = join(broker, "publisher")
    for client_id in ("clean", "zero"):
        client = join(broker, client_id, **kept())
        client.subscribe((topic, 1))
        leave(client)
    publisher.publish(topic, b"old", qos=1)
    leave(join(broker, "clean", clean=True, properties=KEPT))
    client = dial(broker)
    assert client.connect("zero", **kept()).session_present
    client.disconnect(properties=[(wire.SESSION_EXPIRY, 0)])
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 2, "the session of expiry 0 has ended")
    wait_checkpoint(broker)  # the end of a session is answered by nothing: it counts once it is written
    restart(broker)
    client = dial(broker)
    assert client.connect("clean", **kept()).session_present
    client.subscribe((topic, 1))
    assert not dial(broker).connect("zero", **kept()).session_present
    join(broker, "publisher").publish(topic, b"new", qos=1)
    assert client.take().payload == b"new"


def test_4_1_0_2_session_expires_while_the_broker_is_down(new_broker, dial, join, restart, topic):
    """Time away counts: for an absent client from its disconnection on. And it goes on afterwards."""
    broker = new_broker(FAST)
    short = join(broker, "short", clean=False, properties=[(wire.SESSION_EXPIRY, 1)])
    short.subscribe((topic, 1))
    leave(short)
    leave(join(broker, "long", clean=False, properties=[(wire.SESSION_EXPIRY, 3600)]))
    never = join(broker, "never", clean=False, properties=[(wire.SESSION_EXPIRY, 0xFFFFFFFF)])
    leave(never)
    restart(broker, lambda: time.sleep(2.1))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 2, "the expired session has ended")
    assert not dial(broker).connect("short", **kept()).session_present
    assert dial(broker).connect("long", **kept()).session_present
    assert dial(broker).connect("never", **kept()).session_present
    broker.wait_metric(lambda metrics: metrics.get("tidegate_subscriptions") == 0, "its subscription has gone with it")


def test_4_1_0_2_clock_starts_at_the_start_for_the_connected(new_broker, dial, join, restart):
    """Who was connected counts as disconnected at the start: not before, so that it has its interval; but from then on."""
    broker = new_broker(FAST)
    join(broker, "was here", clean=False, properties=[(wire.SESSION_EXPIRY, 4)])
    restart(broker, lambda: time.sleep(4.5))
    assert dial(broker).connect("was here", clean=False, properties=[(wire.SESSION_EXPIRY, 1)]).session_present
    restart(broker)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 0, "it expires when it does not come back")


def test_3_14_2_expiry_of_disconnect_counts(new_broker, dial, join, killed):
    broker = new_broker(FAST)
    client = join(broker, "changed", clean=False, properties=[(wire.SESSION_EXPIRY, 1)])
    client.disconnect(properties=[(wire.SESSION_EXPIRY, 3600)])
    wait_checkpoint(broker)
    killed(broker, lambda: time.sleep(2.1))
    assert dial(broker).connect("changed", **kept()).session_present


# ---- subscriptions ----


def test_3_8_3_1_subscriptions_with_their_options(new_broker, join, restart, topic):
    broker = new_broker(FAST)
    client = join(broker, "options", **kept())
    client.subscribe((f"{topic}/qos0", 0), (f"{topic}/qos1", 1), (f"{topic}/qos2", 2))
    client.subscribe((f"{topic}/local", 1 | NO_LOCAL))
    client.subscribe((f"{topic}/flag/+", 1 | AS_PUBLISHED), properties=[(wire.SUBSCRIPTION_ID, 268435455)])
    client.subscribe((f"{topic}/id", 1), properties=[(wire.SUBSCRIPTION_ID, 7)])
    client.subscribe((f"{topic}/changed", 2 | NO_LOCAL), properties=[(wire.SUBSCRIPTION_ID, 8)])
    client.subscribe((f"{topic}/changed", 1))  # replaces it, identifier and all [MQTT-3.8.4-3]
    client.subscribe((f"{topic}/only new", 1 | ONLY_NEW << 1))
    restart(broker)
    client = join(broker, "options", **kept())
    assert client.connack.session_present
    publisher = join(broker, "publisher")

    def comes(where, qos, expected_qos, retain=False, by=publisher):
        by.publish(f"{topic}/{where}", where, qos=qos, retain=retain)
        message = client.take()
        assert (message.topic, message.qos) == (f"{topic}/{where}", expected_qos), message
        return message

    for qos in (0, 1, 2):
        comes(f"qos{qos}", 2, qos)
    comes("local", 1, 1)
    client.publish(f"{topic}/local", b"own", qos=1)  # [MQTT-3.8.3-3]
    assert comes("flag/1", 2, 1, retain=True).retain == 1
    message = comes("flag/2", 2, 1)
    assert (message.retain, message.get(wire.SUBSCRIPTION_ID)) == (0, 268435455)
    message = comes("id", 1, 1, retain=True)
    assert (message.retain, message.get(wire.SUBSCRIPTION_ID)) == (0, 7)
    message = comes("changed", 2, 1, by=client)
    assert message.get(wire.SUBSCRIPTION_ID) is None
    broker.check_books()


def test_3_10_4_unsubscribed_stays_so(new_broker, join, restart, topic, version):
    broker = new_broker(FAST)
    client = join(broker, "client", version, **kept(version))
    client.subscribe((f"{topic}/a", 1), (f"{topic}/b", 1))
    client.unsubscribe(f"{topic}/a")
    leave(client)
    restart(broker)
    publisher = join(broker, "publisher")
    publisher.publish(f"{topic}/a", b"a", qos=1)
    publisher.publish(f"{topic}/b", b"b", qos=1)
    assert join(broker, "client", version, **kept(version)).take().payload == b"b"
    broker.wait_metric(lambda metrics: metrics.get("tidegate_subscriptions") == 1, "one subscription is left")


# ---- queues ----


def test_4_1_queue_in_order_with_all_properties(new_broker, join, restart, topic):
    """More than what stays in memory; at two qualities; each with what it came with, and the rest of its time."""
    broker = new_broker(FAST)
    client = join(broker, "absent", **kept())
    client.subscribe((f"{topic}/#", 2), properties=[(wire.SUBSCRIPTION_ID, 5)])
    leave(client)
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
        leave(client)
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
    leave(client)
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


def test_3_3_2_5_expired_while_the_broker_is_down(new_broker, join, restart, topic):
    broker = new_broker(FAST)
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    publisher.publish(topic, b"short", qos=1, properties=[(wire.MESSAGE_EXPIRY, 1)])
    publisher.publish(topic, b"long", qos=1)
    restart(broker, lambda: time.sleep(2.1))
    assert join(broker, "absent", **kept()).take().payload == b"long"
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="expired") == 1
    broker.check_books()


def test_4_1_queue_over_many_restarts(new_broker, join, restart, topic):
    """Filled and emptied a part at a time; each part under another number of shards."""
    broker = new_broker(FAST)
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
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
        leave(client)
        broker.check_books()
        wait_checkpoint(broker)
        restart(broker)
    client = join(broker, "absent", **kept())
    first = client.expect(PUBLISH)
    client.acknowledge(first)
    assert first.payload == b"%d" % taken
    assert client.take_payloads(sent - taken - 1) == [b"%d" % number for number in range(taken + 1, sent)]


@pytest.mark.parametrize("keep", [True, False], ids=["queued", "not queued"])
def test_4_1_qos_0_for_the_absent(new_broker, join, restart, topic, keep):
    broker = new_broker(FAST + f"queue_qos0_messages {str(keep).lower()}\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    publisher.publish(topic, b"zero")
    publisher.publish(topic, b"one", qos=1)
    restart(broker)
    client = join(broker, "absent", **kept())
    assert client.take_payloads(2 if keep else 1) == ([b"zero"] if keep else []) + [b"one"]


def test_1_5_4_longest_ids_and_topics(new_broker, join, restart):
    """65535 bytes, of which the last one alone tells two of them apart."""
    broker = new_broker(FAST)
    ids = ["c" * 65534 + last for last in "xy"]
    topics = ["t/" * 50 + "t" * 65434 + last for last in "xy"]
    for client_id, where in zip(ids, topics):
        client = join(broker, client_id, **kept())
        client.subscribe((where, 1))
        leave(client)
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


def test_4_1_large_messages(new_broker, join, restart, topic):
    """Records over many blocks, in a queue and retained; and a session that has nothing else."""
    broker = new_broker(FAST)
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 2))
    leave(client)
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


# ---- exchanges that a crash interrupts ----


def test_4_4_0_1_qos_1_in_flight(new_broker, join, restart, topic, version):
    """Sent and not acknowledged: comes again, in order, as a duplicate. No record says what was sent, so all that is left may have been."""
    broker = new_broker(FAST + "max_inflight_messages 5\n")
    client = join(broker, "client", version, **kept(version))
    client.subscribe((topic, 1))
    publisher = join(broker, "publisher")
    for number in range(12):
        publisher.publish(topic, b"%d" % number, qos=1)
    assert [client.expect(PUBLISH).payload for _ in range(5)] == [b"%d" % number for number in range(5)]
    restart(broker)
    client = join(broker, "client", version, **kept(version))
    found = [client.take() for _ in range(12)]
    assert [message.payload for message in found] == [b"%d" % number for number in range(12)]
    assert [message.dup for message in found] == [1] * 12
    broker.check_books()


@pytest.mark.parametrize("step", ["PUBLISH", "PUBREC", "PUBREL", "PUBCOMP"])
def test_4_3_3_outgoing_qos_2(new_broker, join, restart, topic, version, step):
    """The broker ends after this packet was on its way: the exchange goes on under the same identifier, never from the beginning once
    PUBREL was sent."""
    broker = new_broker(FAST)
    client = join(broker, "client", version, **kept(version))
    client.subscribe((topic, 2))
    join(broker, "publisher").publish(topic, b"once", qos=2)
    message = client.expect(PUBLISH)
    assert (message.qos, message.dup) == (2, 0)
    if step != "PUBLISH":
        client.send(wire.ack_packet(PUBREC, message.packet_id, version=version))
    if step in ("PUBREL", "PUBCOMP"):
        assert client.expect(PUBREL).packet_id == message.packet_id
    if step == "PUBCOMP":
        client.send(wire.ack_packet(PUBCOMP, message.packet_id, version=version))
        broker.wait_metric(lambda metrics: metrics.get("tidegate_acked_copies_total") == 1, "PUBCOMP has arrived")
        wait_checkpoint(broker)
    restart(broker)
    client = join(broker, "client", version, **kept(version))
    if step == "PUBLISH":
        again = client.expect(PUBLISH)
        assert (again.packet_id, again.payload, again.qos, again.dup) == (message.packet_id, b"once", 2, 1)
        client.acknowledge(again)
    elif step != "PUBCOMP":
        first = client.expect(PUBLISH, PUBREL)  # PUBREC may not have arrived
        assert first.packet_id == message.packet_id
        if first.kind == PUBLISH:
            assert step == "PUBREC" and first.dup == 1
            client.acknowledge(first)
        else:
            client.send(wire.ack_packet(PUBCOMP, first.packet_id, version=version))
    join(broker, "publisher").publish(topic, b"next", qos=2)
    assert client.take().payload == b"next"
    broker.check_books()


@pytest.mark.parametrize("step", ["PUBREC", "PUBREL", "PUBCOMP"])
def test_4_3_3_incoming_qos_2(new_broker, join, restart, topic, version, step):
    """A publisher goes on where it stood; a subscriber that was away has the message once."""
    broker = new_broker(FAST)
    subscriber = join(broker, "subscriber", version, **kept(version))
    subscriber.subscribe((topic, 2))
    leave(subscriber)
    publisher = join(broker, "publisher", version, **kept(version))
    publisher.send(wire.publish_packet(topic, b"first", 2, 11, version=version))
    publisher.expect(PUBREC)
    if step != "PUBREC":
        publisher.send(wire.ack_packet(PUBREL, 11, version=version))
    if step == "PUBCOMP":
        publisher.expect(PUBCOMP)
    restart(broker)
    publisher = join(broker, "publisher", version, **kept(version))
    if step == "PUBREC":  # PUBREC was not received, says the publisher
        publisher.send(wire.publish_packet(topic, b"first", 2, 11, dup=True, version=version))
        assert publisher.expect(PUBREC).packet_id == 11
        publisher.send(wire.ack_packet(PUBREL, 11, version=version))
        assert publisher.expect(PUBCOMP).reason in (0, None)
    elif step == "PUBREL":
        publisher.send(wire.ack_packet(PUBREL, 11, version=version))
        assert publisher.expect(PUBCOMP).packet_id == 11
    publisher.publish(topic, b"second", qos=2, packet_id=11)  # the identifier is free again
    subscriber = join(broker, "subscriber", version, **kept(version))
    assert subscriber.take_payloads(2) == [b"first", b"second"]
    publisher.publish(topic, b"third", qos=2)
    assert subscriber.take().payload == b"third"
    broker.check_books()


def test_4_3_3_identifiers_are_not_given_twice(new_broker, join, restart, topic):
    """Exchanges that are open keep their identifiers; messages that come later get others."""
    broker = new_broker(FAST)
    client = join(broker, "client", **kept())
    client.subscribe((topic, 2))
    publisher = join(broker, "publisher")
    for number in range(10):
        publisher.publish(topic, b"%d" % number, qos=2)
    before = {}
    for number in range(10):
        message = client.expect(PUBLISH)
        before[message.packet_id] = message.payload
    for packet_id in list(before)[3:6]:
        client.send(wire.ack_packet(PUBREC, packet_id))
        assert client.expect(PUBREL).packet_id == packet_id
    restart(broker)
    client = join(broker, "client", **kept())
    join(broker, "publisher").publish(topic, b"10", qos=1)
    seen = {}
    for _ in range(11):
        found = client.expect(PUBLISH, PUBREL)
        assert found.packet_id not in seen, found
        seen[found.packet_id] = found.payload
        if found.packet_id in before and found.kind == PUBLISH:
            assert found.payload == before[found.packet_id] and found.dup
    assert set(before) <= set(seen)
    assert sorted(payload for payload in seen.values() if payload) == sorted(b"%d" % number for number in [0, 1, 2, 6, 7, 8, 9, 10])


# ---- retained messages ----


def test_3_3_1_retained_set_replaced_cleared(new_broker, join, restart, topic):
    broker = new_broker(FAST)
    publisher = join(broker, "publisher")
    own = [(wire.CONTENT_TYPE, "x"), (wire.USER_PROPERTY, ("k", "v"))]
    publisher.publish(f"{topic}/set", b"set", qos=1, retain=True, properties=own + [(wire.MESSAGE_EXPIRY, 1000)])
    publisher.publish(f"{topic}/replaced", b"old", qos=2, retain=True)
    publisher.publish(f"{topic}/replaced", b"new", qos=1, retain=True)
    publisher.publish(f"{topic}/cleared", b"gone", qos=1, retain=True)
    publisher.publish(f"{topic}/cleared", b"", qos=1, retain=True)
    publisher.publish(f"{topic}/short", b"short", qos=1, retain=True, properties=[(wire.MESSAGE_EXPIRY, 1)])
    publisher.publish(f"{topic}/back", b"gone", qos=1, retain=True)
    publisher.publish(f"{topic}/back", b"", qos=1, retain=True)
    publisher.publish(f"{topic}/back", b"back", qos=1, retain=True)
    publisher.publish(f"{topic}/zero", b"zero", retain=True)
    publisher.ping()
    for round_number in range(2):
        restart(broker, lambda: time.sleep(2.1 if round_number == 0 else 0))
        reader = join(broker, "reader")
        reader.subscribe((f"{topic}/#", 2))
        found = {}
        # QoS 0 is not waited for: a kill at once may lose it, but nothing else.
        expected = {"set": b"set", "replaced": b"new", "back": b"back"}
        while not set(expected) <= set(found):
            message = reader.take()
            assert message.retain == 1
            found[message.topic.split("/")[1]] = message
        publisher = join(broker, "publisher")
        publisher.publish(f"{topic}/end", b"end", qos=2)
        while True:
            message = reader.take()
            if message.topic.endswith("/end"):
                break
            found[message.topic.split("/")[1]] = message
        assert {where: message.payload for where, message in found.items() if where != "zero"} == expected
        assert 0 < found["set"].get(wire.MESSAGE_EXPIRY) <= 998
        assert [pair for pair in found["set"].properties if pair[0] != wire.MESSAGE_EXPIRY] == own
        assert found["replaced"].qos == 1
        leave(reader)
        broker.check_books()


def test_3_3_2_5_expired_retained_values_leave_the_database(new_broker, join, topic):
    """They are sent to nobody, and do not stay until they are replaced."""
    broker = new_broker(FAST)
    publisher = join(broker, "publisher")
    for number in range(50):
        publisher.publish(f"{topic}/{number}", b"short", qos=1, retain=True, properties=[(wire.MESSAGE_EXPIRY, 1)])
    publisher.publish(f"{topic}/long", b"long", qos=1, retain=True)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_retained_expired_total") == 50, "what has expired is removed")
    reader = join(broker, "reader", **kept())
    reader.subscribe((f"{topic}/#", 1))
    assert reader.take().payload == b"long"
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_retained_expired_total") == 50, "the database is told")
    wait_checkpoint(broker)
    broker.kill()
    broker.start()
    started = [line for line in broker.stderr().splitlines() if "checkpoint loaded" in line][-1]
    assert "retained_values=2" in started  # the probe's, too
    broker.check_books()


def test_3_3_1_retained_order_of_a_topic(new_broker, join, restart, topic):
    """The last one that was acknowledged stands, whichever shard its publisher was at home on."""
    broker = new_broker(FAST, shards=3)
    publishers = [join(broker, f"publisher-{number}") for number in range(8)]
    for number in range(80):
        publishers[number % 8].publish(f"{topic}/{number % 5}", b"%d" % number, qos=1, retain=True)
    restart(broker)
    reader = join(broker, "reader")
    reader.subscribe(f"{topic}/+")
    assert {reader.take().payload for _ in range(5)} == {b"%d" % number for number in range(75, 80)}
    publisher = join(broker, "publisher-0")  # numbers go on above those of before
    publisher.publish(f"{topic}/0", b"newer", qos=1, retain=True)
    assert reader.take().payload == b"newer"
    restart(broker)
    reader = join(broker, "reader")
    reader.subscribe(f"{topic}/0")
    assert reader.take().payload == b"newer"


class Reader:
    """A subscriber that remembers over its connections: the values of each topic as they came, and of QoS 2 what it has begun, and what it
    has ended (of which the broker may not have heard when it was killed: PUBREL comes again)."""

    def __init__(self):
        self.values, self.begun, self.ended = {}, {}, set()

    def take(self, client, is_done, at_most=None):
        """Receive and acknowledge until is_done(), or so many PUBLISHes."""
        count = 0
        while not is_done() and count != at_most:
            packet = client.expect(PUBLISH, PUBREL)
            if packet.kind == PUBREL:
                assert packet.packet_id in self.begun or packet.packet_id in self.ended, "PUBREL without PUBLISH"
                self.begun.pop(packet.packet_id, None)
                self.ended.add(packet.packet_id)
                client.send(wire.ack_packet(PUBCOMP, packet.packet_id, version=client.version))
                continue
            count += 1
            if packet.qos < 2 or self.begun.get(packet.packet_id) != packet.payload:
                self.values.setdefault(packet.topic, []).append(packet.payload)
            if packet.qos == 2:
                self.begun[packet.packet_id] = packet.payload
                self.ended.discard(packet.packet_id)
            client.send(wire.ack_packet(PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, version=client.version))

    def newest(self):
        return {topic: values[-1] for topic, values in self.values.items()}


@pytest.mark.parametrize("is_away", (False, True))
def test_3_3_1_the_newest_value_comes_last_to_who_is_behind(new_broker, join, topic, is_away):
    """Retained values are on their way to a slow subscriber while other shards publish newer ones: both wait on disk, in the order of the log."""
    broker = new_broker(FAST + "max_queued_messages 0\nmax_inflight_messages 20\n", shards=2)
    count, publishers = 900, [join(broker, f"publisher{number}") for number in range(4)]
    for publisher_round in range(5):
        if publisher_round:
            client = join(broker, "slow", **kept())
            client.send(wire.subscribe_packet([(topic + "/#", 1)], 1))
        for number, publisher in enumerate(publishers):
            publisher.send(*[wire.publish_packet(f"{topic}/{at}", b"%d" % publisher_round, 1, packet_id + 1, retain=True)
                             for packet_id, at in enumerate(range(count - 1 - number, -1, -4))])
        for number, publisher in enumerate(publishers):
            for _ in range(count - 1 - number, -1, -4):
                publisher.expect(PUBACK)
        if not publisher_round:
            continue
        if is_away:
            client.close()
            client = join(broker, "slow", **kept())
        publishers[0].publish(topic + "/end", b"%d" % publisher_round, qos=1)
        newest = {}
        while len(newest) < count + 1 or set(newest.values()) != {b"%d" % publisher_round}:
            got = client.recv()
            if got.kind == PUBLISH:
                assert got.payload >= newest.get(got.topic, b""), got
                newest[got.topic] = got.payload
                client.acknowledge(got)
        join(broker, "slow", clean=True).disconnect()
    broker.check_books()


@pytest.mark.parametrize("taken", [0, 150])
@pytest.mark.parametrize("qos", [1, 2])
def test_3_1_2_5_retained_values_of_a_new_subscription(new_broker, join, restart, topic, version, qos, taken):
    """The broker ends in the middle of a large retained set, or right behind SUBACK: every value arrives, and the newest of a topic last."""
    broker = new_broker(FAST, shards=2)
    publisher = join(broker, "publisher")
    newest = {f"{topic}/{number}": b"%d" % number for number in range(1000)}
    for where, value in newest.items():
        publisher.publish(where, value, qos=qos, retain=True)
    reader = Reader()
    client = join(broker, "reader", version, **kept(version))
    client.send(wire.subscribe_packet([(f"{topic}/+", qos)], version=version))
    client.expect(wire.SUBACK)
    for number in range(0, 1000, 97):
        newest[f"{topic}/{number}"] = b"newer %d" % number
        publisher.publish(f"{topic}/{number}", b"newer %d" % number, qos=qos, retain=True)
    reader.take(client, lambda: False, taken)
    restart(broker)
    publisher = join(broker, "publisher")
    newest[f"{topic}/500"] = b"newest"
    publisher.publish(f"{topic}/500", b"newest", qos=qos, retain=True)
    client = join(broker, "reader", version, **kept(version))
    reader.take(client, lambda: reader.newest() == newest and not reader.begun)
    publisher.publish(f"{topic}/end", b"end", qos=qos)
    newest[f"{topic}/end"] = b"end"
    reader.take(client, lambda: f"{topic}/end" in reader.values and not reader.begun)
    assert reader.newest() == newest
    broker.check_books()
    client.ping()
    wait_checkpoint(broker)  # an acknowledgement is answered by nothing: it counts once it is written
    restart(broker)  # what was given is not owed any more
    client = join(broker, "reader", version, **kept(version))
    publisher = join(broker, "publisher")
    publisher.publish(f"{topic}/end", b"over", qos=qos)
    assert client.take().payload == b"over"


# ---- wills ----


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
    leave(watcher(broker, topic))
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
    leave(watcher(broker, topic))
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
    leave(watcher(broker, topic))
    client = join(broker, "done", version, will={"topic": topic, "payload": b"dead", "qos": 1}, **kept(version))
    leave(client)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_discarded_wills_total") == 1, "it has left in order")
    wait_checkpoint(broker)
    restart(broker)
    join(broker, "publisher").publish(topic, b"end", qos=1)
    assert watcher(broker, topic).take().payload == b"end"
    assert broker.metrics().get("tidegate_published_wills_total") == 0


def test_3_1_3_9_will_delay_goes_on_over_a_restart(new_broker, join, restart, topic, watcher):
    """Of one who had gone before the broker did: from its disconnection on. The grace is for those who were connected."""
    broker = new_broker(FAST + "will_restart_grace 600s\n")
    leave(watcher(broker, topic))
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
    leave(first)
    wait_checkpoint(broker)
    restart(broker)
    join(broker, "publisher").publish(topic, b"end", qos=1)
    assert watcher(broker, topic).take().payload == b"end"


# ---- bounds of queues ----


def fill(publisher, topic, first, count, size=1):
    for number in range(first, first + count):
        publisher.publish(topic, b"%d" % number + b"." * size, qos=1)


def numbers(payloads):
    return [int(payload.rstrip(b".")) for payload in payloads]


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("limit", ["messages", "bytes"])
def test_4_1_queue_bounds_count_over_a_restart(new_broker, join, restart, topic, policy, limit):
    """What an earlier start left counts, on disk or not; and each one dropped has its reason."""
    bound = "max_queued_messages 100\n" if limit == "messages" else "max_queued_bytes 110KiB\n"
    broker = new_broker(FAST + f"queue_policy {policy}\n{bound}")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    fill(join(broker, "publisher"), topic, 0, 60, 1000)
    restart(broker)
    publisher = join(broker, "publisher")
    fill(publisher, topic, 60, 100, 1000)
    reason = {"messages": "queue_full", "bytes": "queue_bytes"}[limit]

    def dropped(metrics):
        return metrics.get("tidegate_dropped_copies_total", reason=reason)

    def settled(metrics):
        waiting = metrics.get("tidegate_queue_messages", queue="session_queue")
        within = waiting <= 100 if limit == "messages" else metrics.get("tidegate_queue_bytes", queue="session_queue") <= 110 << 10
        return within and waiting + dropped(metrics) == 160

    metrics = broker.wait_metric(settled, "the bound holds")
    count = int(metrics.get("tidegate_queue_messages", queue="session_queue"))
    assert (count == 100) if limit == "messages" else (50 < count < 115), count
    wait_checkpoint(broker)
    found = numbers(join(broker, "absent", **kept()).take_payloads(count))
    assert found == (list(range(count)) if policy == "drop_newest" else list(range(160 - count, 160)))
    broker.check_books()


def test_4_1_drop_oldest_under_a_flood(new_broker, join, topic):
    """The newest 100 of 3000 are left: a subscriber that returns has the last ones, and everything else is counted."""
    broker = new_broker(FAST + "queue_policy drop_oldest\nmax_queued_messages 100\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    fill(join(broker, "publisher"), topic, 0, 3000, 100)
    metrics = broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total") == 2900, "2900 are dropped")
    assert metrics.get("tidegate_dropped_copies_total", reason="queue_full") == 2900
    wait_checkpoint(broker)
    broker.kill()
    broker.start()
    found = numbers(join(broker, "absent", **kept()).take_payloads(100))
    assert found == list(range(2900, 3000)), (found[0], found[-1])


def test_4_1_refuse_over_a_restart(new_broker, join, dial, restart, topic):
    """0x97 to MQTT 5, the connection's end to older ones; the queue is still full after a restart, and free again at three quarters."""
    broker = new_broker(FAST + "queue_policy refuse\nmax_queued_messages 40\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)

    def until_refused(publisher, first, most):
        for number in range(first, first + most):
            if publisher.publish(topic, b"%d" % number, qos=1, expect_reason=None).reason >= 0x80:
                return number
        return None

    full = until_refused(join(broker, "publisher"), 0, 200)
    assert full is not None and full >= 40
    restart(broker)
    publisher = join(broker, "publisher")
    ack = publisher.publish(topic, b"refused", qos=1, expect_reason=None)
    if ack.reason < 0x80:  # "may be late by what is in flight": said after the first one
        assert until_refused(publisher, full, 40) is not None
    old = join(broker, "old", 4)
    old.send(wire.publish_packet(topic, b"refused", 1, 1, version=4))
    old.expect_closed()
    metrics = broker.metrics()
    assert metrics.get("tidegate_refused_messages_total", reason="subscriber_full") >= 2
    client = join(broker, "absent", **kept())
    for number in range(40):
        assert client.take().payload == b"%d" % number
    client.ping()
    publisher = join(broker, "publisher")
    wait_until(lambda: publisher.publish(topic, b"again", qos=1, expect_reason=None).reason == 0, "it is taken again")
    wait_until(lambda: client.take().payload == b"again", "and comes")


def test_4_1_bounds_of_all_queues_together(new_broker, join, restart, topic):
    broker = new_broker(FAST + "max_queued_messages_total 50\n", shards=2)
    for client_id in ("one", "two"):
        client = join(broker, client_id, **kept())
        client.subscribe((topic, 1))
        leave(client)
    fill(join(broker, "publisher"), topic, 0, 20)
    restart(broker)
    fill(join(broker, "publisher"), topic, 20, 20)

    def waiting_of(metrics):
        return metrics.get("tidegate_queue_messages", queue="session_queue")

    def dropped_of(metrics):
        return metrics.get("tidegate_dropped_copies_total", reason="total_messages")

    metrics = broker.wait_metric(lambda metrics: waiting_of(metrics) + dropped_of(metrics) == 80, "80 came")
    assert waiting_of(metrics) == 50
    broker.check_books()


@pytest.mark.parametrize("bound", ["max_queued_messages_total 60", "max_queued_bytes_total 8KiB"])
def test_4_1_the_bound_of_all_queues_drops_the_oldest(new_broker, join, restart, topic, bound):
    """Over ends of the broker: the newest comes, in order; one that gets nothing keeps what it has; the bound holds again soon."""
    broker = new_broker(FAST + f"{bound}\nqueue_policy drop_oldest\n", shards=2)
    for client_id, topics in (("quiet", topic + "/quiet"), ("one", topic + "/busy"), ("two", topic + "/busy")):
        client = join(broker, client_id, **kept())
        client.subscribe((topics, 1))
        leave(client)
    fill(join(broker, "publisher"), topic + "/quiet", 0, 5)
    for first in range(0, 600, 200):
        fill(join(broker, "publisher"), topic + "/busy", first, 200)
        restart(broker)
    fill(join(broker, "publisher"), topic + "/busy", 600, 200)
    names = {"messages": "tidegate_queue_messages", "bytes": "tidegate_queue_bytes"}
    name, most = next((names[key], number) for key, number in (("messages", 60), ("bytes", 8192)) if key in bound)
    broker.wait_metric(lambda metrics: metrics.get(name, queue="session_queue") <= most, "the bound holds")
    assert numbers(join(broker, "quiet", **kept()).take_payloads(5)) == list(range(5))
    for client_id in ("one", "two"):
        client = join(broker, client_id, **kept())
        found = numbers(client.take_payloads(1))
        while found[-1] < 799:
            found += numbers(client.take_payloads(1))
        assert found == sorted(set(found)) and len(found) > 5, found
        client.ping()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_queue_messages", queue="session_queue") == 0, "nothing waits")
    broker.check_books()


def test_4_1_drop_oldest_with_a_lower_bound_after_a_restart(new_broker, join, restart, topic):
    """The next message brings the queue to the newest of the new bound, itself included."""
    broker = new_broker(FAST + "queue_policy drop_oldest\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    fill(join(broker, "publisher"), topic, 0, 500)
    broker.stop()
    broker.conf += "max_queued_messages 10\n"
    broker.start()
    fill(join(broker, "publisher"), topic, 500, 1)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_queue_messages", queue="session_queue") == 10, "the oldest went")
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="queue_full") == 491
    restart(broker)
    assert numbers(join(broker, "absent", **kept()).take_payloads(10)) == list(range(491, 501))
    broker.check_books()


def test_4_1_the_bound_of_all_queues_refuses_publishers(new_broker, join, restart, topic):
    """What was acknowledged comes, over a kill; what there was no room for was refused; who needs no queue goes on."""
    broker = new_broker(FAST + "max_queued_messages_total 10\nqueue_policy refuse\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    reasons = [publisher.publish(topic, b"%d" % number, qos=1, expect_reason=None).reason for number in range(30)]
    taken = [number for number, reason in enumerate(reasons) if reason == 0]
    assert 10 <= len(taken) <= 12 and set(reasons) == {0, 0x97}
    online = join(broker, "online")
    online.subscribe((topic + "/live", 1))
    publisher.publish(topic + "/live", b"live", qos=1)
    assert online.take().payload == b"live"
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="total_messages") == 0
    restart(broker)
    publisher = join(broker, "publisher")
    assert publisher.publish(topic, b"more", qos=1, expect_reason=None).reason == 0x97
    client = join(broker, "absent", **kept())
    for number in taken:
        assert client.take().payload == b"%d" % number
    client.ping()
    wait_until(lambda: publisher.publish(topic, b"again", qos=1, expect_reason=None).reason == 0, "there is room again")
    assert client.take().payload == b"again"
    broker.check_books()


def test_4_1_age_counts_while_the_broker_is_down(new_broker, join, restart, topic):
    broker = new_broker(FAST + "max_queued_age 2s\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    join(broker, "publisher").publish(topic, b"old", qos=1)
    restart(broker, lambda: time.sleep(3))
    client = join(broker, "absent", **kept())
    join(broker, "publisher").publish(topic, b"new", qos=1)
    assert client.take().payload == b"new"
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="queue_age") == 1
    broker.check_books()


def test_4_1_age_of_what_nobody_comes_for(new_broker, join, restart, topic):
    broker = new_broker(FAST + "max_queued_age 2s\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    fill(join(broker, "publisher"), topic, 0, 60)  # more than stands in memory
    restart(broker)
    fill(join(broker, "publisher"), topic, 60, 60)

    def is_empty(metrics):
        return metrics.get("tidegate_queue_messages", queue="session_queue") == 0

    broker.wait_metric(is_empty, "all of it is too old")
    dropped = broker.metrics().get("tidegate_dropped_copies_total", reason="queue_age")  # the figures above were read one after the other
    assert 60 <= dropped <= 120  # some perhaps before the restart
    broker.check_books()
    restart(broker)
    client = join(broker, "absent", **kept())
    join(broker, "publisher").publish(topic, b"new", qos=1)
    assert client.take().payload == b"new"


# ---- tiers ----

ASK = (wire.USER_PROPERTY, ("tidegate-report-durability", ""))


def told(ack):
    return dict(ack.all(wire.USER_PROPERTY)).get("tidegate-durability")


def test_tiers_and_what_the_publisher_is_told(new_broker, join, topic):
    broker = new_broker(f"telemetry fleet/{{device}}/telemetry\ntier {topic}/fast/# memory\ntier {topic}/# log\n")
    absent = join(broker, "absent", **kept())
    absent.subscribe((f"{topic}/#", 2))
    leave(absent)
    asks = join(broker, "asks", properties=[ASK])
    for qos in (1, 2):
        assert told(asks.publish(f"{topic}/fast/1", b"m", qos=qos)) == "memory"
        assert told(asks.publish(f"{topic}/slow", b"l", qos=qos)) == "log"
        assert told(asks.publish("fleet/car/telemetry", b"{}", qos=qos)) == "log"
        assert told(asks.publish("nobody/listens", b"n", qos=qos)) == "none"
        assert told(asks.publish("retained", b"r", qos=qos, retain=True)) == "log"
    silent = join(broker, "silent", properties=[ASK, (wire.REQUEST_PROBLEM, 0)])  # [MQTT-3.1.2-29]
    assert silent.publish(f"{topic}/slow", b"l", qos=1).properties == []
    other = join(broker, "other")
    assert other.publish(f"{topic}/slow", b"l", qos=1).properties == []
    broker.stop()  # in order: what is on its way to disk arrives
    broker.start()
    found = join(broker, "absent", **kept()).take_payloads(6)
    assert found == [b"m", b"l", b"m", b"l", b"l", b"l"]


def test_persistence_false_writes_nothing(new_broker, join, topic):
    broker = new_broker("persistence false\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 2))
    leave(client)
    publisher = join(broker, "publisher", properties=[ASK])
    for number in range(200):
        assert told(publisher.publish(topic, b"%d" % number, qos=1 + number % 2, retain=True)) == "none"
    client = join(broker, "absent", **kept())
    assert client.connack.session_present
    assert client.take_payloads(200) == [b"%d" % number for number in range(200)]
    client.ping()
    assert sorted(path.name for path in broker.data.iterdir()) == ["broker.lock", "listeners"]
    broker.check_books()
    broker.kill()
    broker.start()
    client = join(broker, "absent", **kept())
    assert not client.connack.session_present
    client.subscribe(topic)
    join(broker, "publisher").publish(topic, b"new")
    assert client.take().payload == b"new"  # no retained value came before


# ---- the data directory ----


def make_state(broker, join, topic, count=50):
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    for number in range(count):
        publisher.publish(topic, b"%d" % number, qos=1)
    publisher.publish(f"{topic}/retained", b"value", qos=1, retain=True)


def check_state(broker, join, topic, count=50):
    client = join(broker, "absent", **kept())
    assert client.connack.session_present
    assert client.take_payloads(count) == [b"%d" % number for number in range(count)]
    reader = join(broker, "reader")
    reader.subscribe(f"{topic}/retained")
    assert reader.take().payload == b"value"


def test_two_brokers_on_one_directory(new_broker, join, tmp_path, topic):
    """The second says who holds it, and harms nothing; after a kill the directory is free."""
    broker = new_broker(FAST)
    make_state(broker, join, topic)
    second = Broker(tmp_path / "second", FAST)
    second.data = broker.data
    second.forget_ports = lambda: None
    said = refusal(second)
    assert str(broker.data) in said and str(broker.process.pid) in said, said
    broker.kill()
    del second.forget_ports
    second.start()
    try:
        check_state(second, join, topic)
    finally:
        second.stop()


def test_read_only_directory_that_has_data(new_broker, join, tmp_path, topic):
    """A disk that the kernel has made read-only: it does not start and says which file; then everything is there."""
    data = tmp_path / "mounted"
    data.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(data)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    broker = Broker(tmp_path / "broker", FAST)
    broker.data = data / "data"
    try:
        broker.start()
        make_state(broker, join, topic)
        broker.stop()
        subprocess.run(["mount", "-o", "remount,ro", str(data)], check=True)
        broker.forget_ports = lambda: None
        said = refusal(broker)
        del broker.forget_ports
        assert str(broker.data) in said and "ead-only" in said, said
        subprocess.run(["mount", "-o", "remount,rw", str(data)], check=True)
        broker.start()
        check_state(broker, join, topic)
        broker.stop()
    finally:
        if broker.is_alive():
            broker.kill()
        subprocess.run(["umount", "-l", str(data)], check=False)


def test_damaged_log_is_named(new_broker, join, topic):
    """Damage before the end of what was durable: refused with file and offset, and the way out."""
    broker = new_broker()
    make_state(broker, join, topic)
    broker.stop()
    segment = sorted((broker.data / "log").glob("0*.seg"))[0]
    data = segment.read_bytes()
    second = data.index(b"TGBK", data.index(b"TGBK") + 4)
    flip(segment, second + 100, 20)
    said = refusal(broker)
    assert segment.name in said and str(second) in said and "tidegate-broker repair" in said, said
    with open(segment, "r+b") as file:
        file.write(data)
    broker.start()
    check_state(broker, join, topic)


@pytest.mark.parametrize("how", ["not a database", "removed"])
def test_damaged_checkpoint_is_named(new_broker, join, topic, how):
    broker = new_broker(FAST)
    make_state(broker, join, topic)
    broker.stop()
    path = broker.data / "checkpoint" / "data.mdb"
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(b"?" * len(data))
    said = refusal(broker)
    assert str(broker.data / "checkpoint") in said and "tidegate-broker repair" in said, said
    path.write_bytes(data)
    broker.start()
    check_state(broker, join, topic)


def test_format_1_is_taken_over(new_broker, new_sink, join, tmp_path, topic):
    """A directory that a broker left which knew no checkpoint: its records stay readable, and it is of the new format from then on."""
    broker = Broker(tmp_path / "broker", FAST + "telemetry fleet/{device}/telemetry\n")
    broker.data.mkdir(parents=True)
    with tarfile.open(pathlib.Path(__file__).with_name("data_format_1.tar.gz")) as archive:
        archive.extractall(broker.data)  # pylint: disable=consider-using-with
    assert not (broker.data / "format").exists()
    try:
        broker.start()
        assert (broker.data / "format").read_text() == "tidegate-broker 2\n"
        make_state(broker, join, topic)
        join(broker, "car").publish("fleet/car0/telemetry", b'{"ts":1700000100,"speed":100}', qos=1)
        broker.kill()
        broker.start()
        check_state(broker, join, topic)
        sink = new_sink(broker)

        def rows():
            status, text = sink.get("/api/v1/query?device=car0&from=1970-01-01T00:00:00Z&format=csv&limit=1000")
            return text.strip().splitlines() if status == 200 else []

        wait_until(lambda: len(rows()) == 1 + 11, "ten rows of before and one of now are stored")
    finally:
        broker.stop()


def test_newer_format_is_refused(new_broker, join, topic):
    broker = new_broker(FAST)
    make_state(broker, join, topic)
    broker.stop()
    (broker.data / "format").write_text("tidegate-broker 3\n")
    said = refusal(broker)
    assert str(broker.data) in said and "format 3" in said and "newer" in said, said
    (broker.data / "format").write_text("tidegate-broker 2\n")
    broker.start()
    check_state(broker, join, topic)


# ---- no room ----


def test_below_the_floor_state_waits(new_broker, join, killed, topic):
    """Less free than log_free_disk_floor: publishers of what has to be saved wait, everything else goes on; QoS 0 is shed and counted."""
    broker = new_broker(FAST)
    make_state(broker, join, topic)
    broker.conf = FAST + "log_free_disk_floor 1000TiB\n"
    killed(broker)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_log_has_room") == 0, "there is no room")
    status, health = broker.health()
    assert status == 503 and "log_full" in [problem["check"] for problem in health["problems"]], health
    waits = join(broker, "waits")
    waits.send(wire.publish_packet(topic, b"50", 1, 1))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_paused_connections") == 1, "it is not read")
    watcher = join(broker, "watcher")  # connecting and subscribing go on
    watcher.subscribe(("other", 1))
    other = join(broker, "other")
    other.publish("other", b"1", qos=1)  # nobody wants it kept: at once
    assert watcher.take().payload == b"1"
    other.publish(f"{topic}/retained", b"shed", qos=0, retain=True)
    other.publish("other", b"2")
    assert watcher.take().payload == b"2"
    assert broker.metrics().get("tidegate_refused_messages_total", reason="log_full_qos0") == 1
    client = join(broker, "absent", **kept())  # and draining
    assert client.take_payloads(50) == [b"%d" % number for number in range(50)]
    client.ping()
    broker.conf = FAST
    killed(broker)
    publisher = join(broker, "waits")
    publisher.publish(topic, b"50", qos=1, dup=True)  # was never acknowledged
    client = join(broker, "absent", **kept())
    while client.take().payload != b"50":
        pass
    reader = join(broker, "reader")
    reader.subscribe(f"{topic}/retained")
    assert reader.take().payload == b"value"


@pytest.mark.parametrize("late", [False, True], ids=["from_the_log", "from_the_checkpoint"])
def test_3_1_2_8_will_that_waits_for_room_is_owed(new_broker, join, killed, topic, late):
    """The log is full when a client goes, so its will waits; the client is back with another will, and the broker dies. Both are said."""
    broker = new_broker(FAST)
    watcher = join(broker, "watcher", **kept())
    watcher.subscribe((topic, 1))
    broker.conf = FAST + "log_free_disk_floor 1000TiB\n"
    killed(broker)
    client = join(broker, "client", **kept(), will={"topic": topic, "payload": b"first", "qos": 1})
    client.close()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_queue_messages", queue="wills_due") == 1, "it waits")
    client = join(broker, "client", **kept(), will={"topic": topic, "payload": b"second", "qos": 1})
    for _ in range(4 if late else 0):
        commits = broker.metrics().get("tidegate_checkpoint_commits_total")
        join(broker, "watcher", **kept())
        broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_commits_total") > commits, "the checkpoint goes on")
    broker.conf = FAST + "will_restart_grace 1s\n"
    killed(broker)
    watcher = join(broker, "watcher", **kept())
    assert watcher.take_payloads(2) == [b"first", b"second"]
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 2, "nobody else is left")
    killed(broker)
    watcher = join(broker, "watcher", **kept())
    watcher.ping()
    assert broker.metrics().get("tidegate_sessions") == 2
    broker.check_books()


def test_full_disk_and_room_again(tmp_path, join, topic):
    """A disk that fills up: publishers wait, the broker stays; with room again all that was acknowledged is there, and what waited goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    broker = Broker(tmp_path / "broker", FAST + "log_max_size 16MiB\nmax_queued_messages 100000\nmax_queued_bytes 1GiB\n")
    broker.data = disk / "data"
    try:
        broker.start()
        client = join(broker, "absent", **kept())
        client.subscribe((topic, 1))
        leave(client)
        fill_disk(disk / "filler")
        publisher = join(broker, "publisher")
        body = b"x" * 60000
        publisher.socket.settimeout(2)
        acknowledged = sent = 0
        try:
            while acknowledged < 2000:
                publisher.send(wire.publish_packet(topic, b"%d " % sent + body, 1, sent % 65535 + 1))
                sent += 1
                publisher.expect(PUBACK)
                acknowledged += 1
        except (wire.WireError, TimeoutError):
            pass
        assert acknowledged < 2000 and broker.is_alive(), acknowledged
        assert sent == acknowledged + 1
        assert broker.health()[0] == 503 or broker.health()[1]["problems"], broker.health()
        join(broker, "still served").ping()
        (disk / "filler").unlink()
        publisher.socket.settimeout(wire.PATIENCE_S)
        publisher.expect(PUBACK)
        acknowledged += 1
        publisher.publish(topic, b"%d " % acknowledged + body, qos=1)
        acknowledged += 1
        broker.kill()
        broker.start()
        client = join(broker, "absent", **kept())
        assert [int(payload.split()[0]) for payload in client.take_payloads(acknowledged)] == list(range(acknowledged))
        client.ping()
        broker.check_books()
        broker.stop()
    finally:
        if broker.is_alive():
            broker.kill()
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.parametrize("is_killed", [False, True], ids=["drained", "killed and drained"])
def test_full_checkpoint(new_broker, join, topic, is_killed):
    """A database at its limit: publishers of state wait and it says so; what subscribers acknowledge makes room, and what waited goes on,
    after a kill as well."""
    broker = new_broker(FAST + "checkpoint_max_size 64MiB\ncheckpoint_lag_size 4MiB\nmax_queued_messages 100000\nmax_queued_bytes 1GiB\n")
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    body = os.urandom(200000)

    def is_answered(patience_s):
        return publisher.data or select.select([publisher.socket], [], [], patience_s)[0]

    def is_full():
        return "checkpoint_full" in [problem["check"] for problem in broker.health()[1]["problems"]]

    for sent in range(400):
        publisher.send(wire.publish_packet(topic, b"%d " % sent + body, 1, sent + 1))
        wait_until(lambda: is_answered(0.05) or is_full(), "an answer, or the end of space")
        if is_full() and not is_answered(1):
            break
        publisher.expect(PUBACK)
    assert 200 < sent < 399
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_has_room") == 0, "there is no room")
    assert broker.health()[1]["status"] == "degraded"
    join(broker, "still served").ping()
    if is_killed:
        broker.kill()
        broker.start()
    client = join(broker, "absent", **kept())
    assert [int(payload.split()[0]) for payload in client.take_payloads(sent)] == list(range(sent))
    client.ping()
    if is_killed:
        join(broker, "publisher").publish(topic, b"%d" % sent, qos=1)
    else:
        publisher.expect(PUBACK)  # of the one that waited
    assert int(client.take().payload.split()[0]) == sent
    client.ping()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_has_room") == 1, "there is room again")
    broker.check_books()


def test_sigterm_with_everything_under_way(new_broker, join, topic, shards):
    """SIGTERM in the middle of a flood: status 0, and what was acknowledged is there."""
    broker = new_broker(FAST, shards=shards)
    client = join(broker, "absent", **kept())
    client.subscribe((topic, 1))
    leave(client)
    publisher = join(broker, "publisher")
    publisher.send(*[wire.publish_packet(topic, b"%d" % number, 1, number + 1) for number in range(900)])
    for _ in range(100):
        publisher.expect(PUBACK)
    broker.stop()
    acknowledged = 100 + sum(packet.kind == PUBACK for packet in publisher.rest())
    broker.start()
    client = join(broker, "absent", **kept())
    assert client.take_payloads(acknowledged) == [b"%d" % number for number in range(acknowledged)]
