"""No room in the log, on the disk, in the database: publishers wait, everybody else is served, and it goes on with room again."""
import os
import select
import time

import pytest

from harness import wire
from harness.durability import FAST, kept
from harness.faults import SmallDisk
from harness.pair import fill_disk
from harness.programs import Broker, wait_until
from harness.wire import PUBACK


def test_below_the_floor_state_waits(new_broker, join, killed, topic, make_state):
    """Less free than log_free_disk_floor: publishers of what has to be saved wait, everything else goes on; QoS 0 is shed and counted."""
    broker = new_broker(FAST)
    make_state(broker, topic)
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


def test_full_disk_and_room_again(tmp_path, join, topic, away):
    """A disk that fills up: publishers wait, the broker stays; with room again all that was acknowledged is there, and what waited goes on."""
    disk = SmallDisk(tmp_path / "disk", 48)
    broker = Broker(tmp_path / "broker", FAST + "log_max_size 16MiB\nmax_queued_messages 100000\nmax_queued_bytes 1GiB\n")
    broker.data = disk.path / "data"
    try:
        broker.start()
        away(broker, topic)
        fill_disk(disk.path / "filler")
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
        (disk.path / "filler").unlink()
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
        disk.close()


@pytest.mark.parametrize("is_killed", [False, True], ids=["drained", "killed and drained"])
def test_full_checkpoint(new_broker, join, topic, is_killed, away):
    """A database at its limit: publishers of state wait and it says so; what subscribers acknowledge makes room, and what waited goes on,
    after a kill as well."""
    broker = new_broker(FAST + "checkpoint_max_size 64MiB\ncheckpoint_lag_size 4MiB\nmax_queued_messages 100000\nmax_queued_bytes 1GiB\n")
    away(broker, topic)
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


def test_full_checkpoint_is_said(new_broker, join, topic, away):
    """That publishers wait for checkpoint_max_size and not for the disk is in the log, though the database had lagged before. What the
    database holds beyond the limit, four times checkpoint_lag_size, is more than comes within an interval here."""
    broker = new_broker("checkpoint_interval 300ms\ncheckpoint_max_size 64MiB\ncheckpoint_lag_size 2MiB\nmax_queued_messages 0\nmax_queued_bytes 0\n")
    away(broker, topic)
    publisher = join(broker, "publisher")
    body = os.urandom(200000)
    sent = answered = 0
    deadline = time.monotonic() + 60
    while "checkpoint has reached checkpoint_max_size" not in broker.stderr():
        assert time.monotonic() < deadline, broker.stderr()
        while sent < answered + 10 and sent < 800:
            sent += 1
            publisher.send(wire.publish_packet(topic, body, 1, sent))
        while publisher.data or select.select([publisher.socket], [], [], 0.1)[0]:
            publisher.expect(PUBACK)
            answered += 1
    assert "checkpoint_full" in [problem["check"] for problem in broker.health()[1]["problems"]]
