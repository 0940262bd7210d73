"""Retained values after the broker's end: the last one of each topic, also to whom they were on their way."""
import time

import pytest

from harness import wire
from harness.durability import FAST, kept, wait_checkpoint
from harness.wire import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL


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
        reader.disconnect()
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
