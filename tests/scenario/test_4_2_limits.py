"""Large packets, slow and silent clients, tiny writes: bounded memory, and nobody else is hurt."""
import os
import select
import socket

import pytest

from harness import wire
from harness.programs import wait_until
from harness.wire import PUBACK, PUBLISH


def test_3_2_2_15_at_the_limit_and_above(new_broker, join, name, topic, shards):
    limit = 1 << 20
    broker = new_broker(f"max_packet_size {limit}\n", shards=shards)
    subscriber, publisher = join(broker, name()), join(broker, name())
    assert publisher.connack.get(wire.MAXIMUM_PACKET_SIZE) == limit
    subscriber.subscribe((topic, 1))
    overhead = len(wire.publish_packet(topic, b"", 1, 1)) + 2  # the remaining length takes two bytes more
    exact = os.urandom(limit - overhead)
    packet = wire.publish_packet(topic, exact, 1, 1)
    assert len(packet) == limit
    publisher.send(packet)
    assert publisher.expect(PUBACK).reason == 0
    assert subscriber.take().payload == exact
    publisher.send_tolerant(wire.publish_packet(topic, exact + b"x", 1, 2))
    publisher.expect_closed(0x95)
    older = join(broker, name(), 4)
    older.send_tolerant(wire.publish_packet(topic, exact + b"xxxx", 1, 2, version=4))
    assert older.expect_closed() == []


def test_3_1_2_24_the_clients_maximum_packet_size(broker, join, name, topic):
    """The whole packet counts. One that is too large is dropped, counted, and does not block what is behind it [MQTT-3.1.2-25]."""
    fits = wire.publish_packet(topic, b"x" * 50, 1, 1)
    subscriber = join(broker, name(), properties=[(wire.MAXIMUM_PACKET_SIZE, len(fits)), (wire.RECEIVE_MAXIMUM, 1)])
    publisher = join(broker, name())
    subscriber.subscribe((topic, 1))
    before = broker.metrics().get("tidegate_dropped_copies_total", reason="too_large_for_client")
    for size in (51, 50, 1000, 49):
        publisher.publish(topic, b"x" * size, qos=1)
    publisher.publish(topic, b"x" * 60)
    messages = [subscriber.take(), subscriber.take()]
    assert [len(message.payload) for message in messages] == [50, 49]
    assert messages[0].size == len(fits)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total", reason="too_large_for_client") == before + 3, "three are counted")


def test_4_2_0_1_large_telemetry_is_durable(broker, join, name):
    """A record larger than a block of the log, mixed with small ones of others."""
    device = name("car")
    large, small, watcher = join(broker, name()), join(broker, name()), join(broker, name())
    watcher.subscribe((f"fleet/{device}/telemetry", 1))
    payload = b'{"text":"' + b"y" * (3 << 20) + b'"}'
    large.send(wire.publish_packet(f"fleet/{device}/telemetry", payload, 1, 9))
    for number in range(20):
        small.publish(f"fleet/{name('other')}/telemetry", b'{"a":%d}' % number, qos=1)
    assert large.expect(PUBACK).packet_id == 9
    assert watcher.take().payload == payload


def test_4_2_0_1_one_byte_writes(broker, join, name, topic, version):
    subscriber, publisher = join(broker, name(), version), join(broker, name(), version)
    subscriber.subscribe((topic, 2))
    for qos in (0, 1, 2):
        publisher.send_bytewise(wire.publish_packet(topic, b"slow" * 50, qos, 1 if qos else None, version=version))
        if qos == 1:
            assert publisher.expect(PUBACK).packet_id == 1
        elif qos == 2:
            assert publisher.expect(wire.PUBREC).packet_id == 1
            publisher.send_bytewise(wire.ack_packet(wire.PUBREL, 1, version=version))
            publisher.expect(wire.PUBCOMP)
        assert subscriber.take().payload == b"slow" * 50


def test_4_2_0_1_many_packets_in_one_write_and_split_anywhere(broker, join, name, topic):
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic, 0))
    stream = b"".join(wire.publish_packet(topic, b"%d" % number * (number % 7)) for number in range(1, 200))
    for step in (1 << 20, 1000, 37, 7):
        for at in range(0, len(stream), step):
            publisher.send(stream[at:at + step])
        assert [subscriber.take().payload for _ in range(1, 200)] == [b"%d" % number * (number % 7) for number in range(1, 200)]


def flood(client, packets, total):
    """Write without ever reading, until the server stops reading or all is written. Returns the packets written in full; the rest of a packet
    is left in client.left."""
    client.socket.setblocking(False)
    written = 0
    data = memoryview(packets)
    while written < total:
        _, writable, _ = select.select([], [client.socket], [], 2)
        if not writable:
            break
        try:
            written += client.socket.send(data[written:written + (1 << 20)])
        except BlockingIOError:
            continue
    client.socket.settimeout(wire.PATIENCE_S)
    return written


@pytest.mark.parametrize("where", ["t", "fleet/car42/telemetry"], ids=["ordinary", "telemetry"])
def test_r33_publisher_that_never_reads(new_broker, join, dial, name, shards, where):
    """130,000 QoS 1 publishes by a client that never reads its acknowledgements: its reading is paused, memory stays bounded, others do not
    notice; and when it starts to read, everything is acknowledged in order."""
    broker = new_broker("telemetry fleet/{device}/telemetry\nreceive_maximum 65535\nlog_max_size 256MiB\nlog_segment_size 16MiB\n", shards=shards)
    others = [join(broker, name()) for _ in range(4)]
    for number, other in enumerate(others):
        other.subscribe((f"other/{number}", 1))
        other.publish(f"other/{number}", b"before", qos=1)
        assert other.take().payload == b"before"
    count = 130000
    client = dial(broker, 4, receive_buffer=4096)
    client.connect(name())
    stream = b"".join(wire.publish_packet(where, b'{"speed":61.5,"soc":87,"n":%d}' % number, 1, number % 65535 + 1, version=4)
                      for number in range(count))
    before = broker.memory_bytes()
    written = flood(client, stream, len(stream))
    for number, other in enumerate(others):
        other.publish(f"other/{number}", b"during", qos=1)
        assert other.take().payload == b"during"
    metrics = broker.metrics()
    assert metrics.get("tidegate_queue_bytes", queue="outbox") <= 2 << 20
    # jemalloc keeps some of what it has freed; 130,000 acknowledgements with their bookkeeping would be far more than this.
    assert broker.memory_bytes() - before < 64 << 20
    left = memoryview(stream)[written:]
    expected = 0
    client.socket.setblocking(False)
    while expected < count:
        readable, writable, _ = select.select([client.socket], [client.socket] if left else [], [], wire.PATIENCE_S)
        assert readable or writable, f"deadlock after {expected} acknowledgements"
        if writable:
            try:
                left = left[client.socket.send(left[:1 << 20]):]
            except BlockingIOError:
                pass
        if readable:
            more = client.socket.recv(1 << 20)
            assert more, "closed"
            client.data += more
            whole = len(client.data) // 4 * 4
            for at in range(0, whole, 4):
                assert client.data[at:at + 4] == bytes([0x40, 2]) + (expected % 65535 + 1).to_bytes(2, "big")
                expected += 1
            del client.data[:whole]
    client.socket.settimeout(wire.PATIENCE_S)
    client.ping()


def test_r25_slow_subscriber_loses_qos_0_only(new_broker, join, dial, name, topic, shards):
    """A subscriber that does not read: QoS 0 beyond the bound of its socket is dropped and counted, QoS 1 waits for it, others get all."""
    broker = new_broker("outbox_limit 256KiB\nmax_queued_messages 5000\n", shards=shards)
    slow, fast, publisher = dial(broker, receive_buffer=4096), join(broker, name()), join(broker, name())
    slow.connect(name())
    slow.subscribe((topic + "/#", 1))
    fast.subscribe((topic + "/#", 1))
    payload = os.urandom(16384)
    count = 0
    while broker.metrics().get("tidegate_dropped_copies_total", reason="slow_consumer") == 0:
        for _ in range(50):
            publisher.publish(topic + "/0", payload)
            assert fast.take().payload == payload
            count += 1
        assert count < 20000, "nothing is dropped"
    for number in range(100):
        publisher.publish(topic + "/1", b"%d" % number, qos=1)
        assert fast.take().payload == b"%d" % number
    metrics = broker.metrics()
    assert metrics.get("tidegate_queue_bytes", queue="outbox") <= 1 << 20
    dropped = metrics.get("tidegate_dropped_copies_total", reason="slow_consumer")
    got, kept = 0, []
    while len(kept) < 100:
        message = slow.take()
        if message.qos == 0:
            got += 1
        else:
            kept.append(message.payload)
    assert kept == [b"%d" % number for number in range(100)]
    assert got + dropped == count
    broker.check_books()


def test_r33_subscriber_that_never_acknowledges(new_broker, join, name, topic):
    """Its window is full, its queue is full, then its copies are dropped and counted; its session and the others go on."""
    broker = new_broker("max_inflight_messages 10\nmax_queued_messages 100\n", shards=3)
    silent, publisher = join(broker, name()), join(broker, name())
    silent.subscribe((topic, 1))
    for number in range(300):
        publisher.publish(topic, b"%d" % number, qos=1)
    metrics = broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total", reason="queue_full") == 190, "the rest is dropped")
    assert metrics.get("tidegate_inflight_messages") == 10
    assert silent.take_payloads(110) == [b"%d" % number for number in range(110)]
    broker.check_books()


def test_incomplete_packets_do_not_hold_memory_for_what_is_announced(new_broker, dial, name):
    """A hundred clients announce 16 MiB each and send a few bytes."""
    broker = new_broker("partial_packet_limit 4MiB\nmax_packet_size 16MiB\n")
    before = broker.memory_bytes()
    clients = []
    for _ in range(100):
        client = dial(broker)
        client.connect(name())
        client.send(b"\x30\x80\x80\x80\x07" + wire.string("t") + b"\0" + b"some bytes")
        clients.append(client)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_partial_packet_bytes") >= 100 * 10, "all of it has arrived")
    assert broker.memory_bytes() - before < 16 << 20


def test_connections_that_vanish(broker, join, name, topic):
    """Reset instead of closed, in the midst of traffic."""
    publisher = join(broker, name())
    connections = broker.metrics().get("tidegate_connections")
    for _ in range(20):
        client = join(broker, name())
        client.subscribe((topic, 1))
        publisher.send(wire.publish_packet(topic, b"x" * 1000, 1, 1))
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        publisher.expect(PUBACK)
    wait_until(lambda: broker.metrics().get("tidegate_connections") == connections, "the reset connections are gone")


def test_waiting_publish_is_not_lost_when_the_subscriber_returns(broker, dial, join, name, topic):
    """A subscriber that is cut off in the middle of a large message gets it again."""
    publisher, client_id = join(broker, name()), name()
    client = dial(broker, receive_buffer=4096)
    client.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    client.subscribe((topic, 1))
    payload = os.urandom(1 << 20)
    publisher.publish(topic, payload, qos=1)
    client.socket.recv(1000)
    client.close()
    again = dial(broker)
    again.connect(client_id, clean=False, properties=[(wire.SESSION_EXPIRY, 100)])
    message = again.expect(PUBLISH)
    assert (message.payload, message.dup) == (payload, 1)
    again.acknowledge(message)
