"""Exchanges of QoS 1 and 2 that the broker's end interrupts go on where they stood."""
import pytest

from harness import wire
from harness.durability import FAST, kept, wait_checkpoint
from harness.wire import PUBCOMP, PUBLISH, PUBREC, PUBREL


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
    subscriber.disconnect()
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
