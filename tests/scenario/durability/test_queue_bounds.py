"""Bounds of queues hold over the broker's end, and every message dropped or refused is counted with its reason."""
import time

import pytest

from harness import wire
from harness.durability import FAST, kept, wait_checkpoint
from harness.programs import wait_until


def fill(publisher, topic, first, count, size=1):
    for number in range(first, first + count):
        publisher.publish(topic, b"%d" % number + b"." * size, qos=1)


def numbers(payloads):
    return [int(payload.rstrip(b".")) for payload in payloads]


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("limit", ["messages", "bytes"])
def test_4_1_queue_bounds_count_over_a_restart(new_broker, join, restart, topic, policy, limit, away):
    """What an earlier start left counts, on disk or not; and each one dropped has its reason."""
    bound = "max_queued_messages 100\n" if limit == "messages" else "max_queued_bytes 110KiB\n"
    broker = new_broker(FAST + f"queue_policy {policy}\n{bound}")
    away(broker, topic)
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


def test_4_1_drop_oldest_under_a_flood(new_broker, join, topic, away):
    """The newest 100 of 3000 are left: a subscriber that returns has the last ones, and everything else is counted."""
    broker = new_broker(FAST + "queue_policy drop_oldest\nmax_queued_messages 100\n")
    away(broker, topic)
    fill(join(broker, "publisher"), topic, 0, 3000, 100)
    metrics = broker.wait_metric(lambda metrics: metrics.get("tidegate_dropped_copies_total") == 2900, "2900 are dropped")
    assert metrics.get("tidegate_dropped_copies_total", reason="queue_full") == 2900
    wait_checkpoint(broker)
    broker.kill()
    broker.start()
    found = numbers(join(broker, "absent", **kept()).take_payloads(100))
    assert found == list(range(2900, 3000)), (found[0], found[-1])


def test_4_1_refuse_over_a_restart(new_broker, join, restart, topic, away):
    """0x97 to MQTT 5, the connection's end to older ones; the queue is still full after a restart, and free again at three quarters."""
    broker = new_broker(FAST + "queue_policy refuse\nmax_queued_messages 40\n")
    away(broker, topic)

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


def test_4_1_bounds_of_all_queues_together(new_broker, join, restart, topic, away):
    broker = new_broker(FAST + "max_queued_messages_total 50\n", shards=2)
    for client_id in ("one", "two"):
        away(broker, topic, client_id=client_id)
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
def test_4_1_the_bound_of_all_queues_drops_the_oldest(new_broker, join, restart, topic, bound, away):
    """Over ends of the broker: the newest comes, in order; one that gets nothing keeps what it has; the bound holds again soon."""
    broker = new_broker(FAST + f"{bound}\nqueue_policy drop_oldest\n", shards=2)
    for client_id, topics in (("quiet", topic + "/quiet"), ("one", topic + "/busy"), ("two", topic + "/busy")):
        away(broker, topics, client_id=client_id)
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


@pytest.mark.parametrize("bound", ["max_queued_messages_total 10", "max_queued_bytes_total 4KiB"])
def test_4_1_what_all_queues_owe_is_paid_after_a_kill(new_broker, join, topic, bound, away):
    """Over the bound of all queues at a kill: the start brings them down to it, though nobody gets a message; the newest are left."""
    broker = new_broker(FAST + "queue_policy drop_oldest\n", shards=2)
    for client_id, topics in (("quiet", topic + "/quiet"), ("one", topic + "/busy"), ("two", topic + "/busy")):
        away(broker, topics, client_id=client_id)
    publisher = join(broker, "publisher")
    fill(publisher, topic + "/quiet", 0, 2)
    fill(publisher, topic + "/busy", 0, 20)
    wait_checkpoint(broker)
    fill(publisher, topic + "/busy", 20, 100)
    broker.kill()
    broker.conf += bound + "\n"
    broker.start()
    names = {"messages": "tidegate_queue_messages", "bytes": "tidegate_queue_bytes"}
    name, most = next((names[key], number) for key, number in (("messages", 10), ("bytes", 4096)) if key in bound)
    broker.wait_metric(lambda metrics: metrics.get(name, queue="session_queue") <= most, "what is owed is paid")
    metrics = broker.metrics()
    waiting = metrics.get("tidegate_queue_messages", queue="session_queue")
    reason = "total_messages" if "messages" in bound else "total_bytes"
    assert waiting + metrics.get("tidegate_dropped_copies_total", reason=reason) == 242
    assert waiting == 10 if "messages" in bound else waiting > 6, waiting
    broker.check_books()
    wait_checkpoint(broker)
    broker.kill()
    broker.start()
    assert broker.metrics().get("tidegate_queue_messages", queue="session_queue") == waiting
    assert numbers(join(broker, "quiet", **kept()).take_payloads(2)) == [0, 1]
    counts = []
    for client_id in ("one", "two"):
        client = join(broker, client_id, **kept())
        found = numbers(client.take_payloads(1))
        while found[-1] < 119:
            found += numbers(client.take_payloads(1))
        assert found == list(range(120 - len(found), 120))
        client.ping()
        counts.append(len(found))
    assert sum(counts) == waiting - 2
    broker.check_books()


def test_4_1_drop_oldest_with_a_lower_bound_after_a_restart(new_broker, join, restart, topic, away):
    """The next message brings the queue to the newest of the new bound, itself included."""
    broker = new_broker(FAST + "queue_policy drop_oldest\n")
    away(broker, topic)
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


def test_4_1_the_bound_of_all_queues_refuses_publishers(new_broker, join, restart, topic, away):
    """What was acknowledged comes, over a kill; what there was no room for was refused; who needs no queue goes on."""
    broker = new_broker(FAST + "max_queued_messages_total 10\nqueue_policy refuse\n")
    away(broker, topic)
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


def test_4_1_age_counts_while_the_broker_is_down(new_broker, join, restart, topic, away):
    broker = new_broker(FAST + "max_queued_age 2s\n")
    away(broker, topic)
    join(broker, "publisher").publish(topic, b"old", qos=1)
    restart(broker, lambda: time.sleep(3))
    client = join(broker, "absent", **kept())
    join(broker, "publisher").publish(topic, b"new", qos=1)
    assert client.take().payload == b"new"
    assert broker.metrics().get("tidegate_dropped_copies_total", reason="queue_age") == 1
    broker.check_books()


def test_4_1_age_of_what_nobody_comes_for(new_broker, join, restart, topic, away):
    broker = new_broker(FAST + "max_queued_age 2s\n")
    away(broker, topic)
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
