"""backup, restore and repair with real processes: what an operator does with a data directory, and what the clients and the sink see of it.

What is about sessions, queues and retained values is in the tests with `durable`; the others are about the log."""
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
import time

import pytest

from harness import programs, wire
from harness.checksum import crc32c
from harness.pair import Pair, flip
from harness.programs import Broker, Sink, run, wait_until

SLOT_STRIDE = 4096
SEGMENT_HEADER = 4096


def rows(first, count):
    return [(1700000000000 + (first + i) * 1000, {"speed": float(first + i)}) for i in range(count)]


def segments(data):
    return sorted((data / "log").glob("*.seg"))


def started_segments(data):
    """Segments with a header, not those prepared for later."""
    return [path for path in segments(data) if path.name[0] != "s" and path.read_bytes()[:4] == b"TGLS"
            and int(path.stem, 16) == struct.unpack_from("<Q", path.read_bytes(), 24)[0]]


def blocks(path):
    """(offset, sequence, record count) of every block of a segment."""
    data, generation = path.read_bytes(), int(path.stem, 16)
    found, at = [], SEGMENT_HEADER
    while at + 128 <= len(data) and data[at:at + 4] == b"TGBK":
        if struct.unpack_from("<QQ", data, at + 24) != (generation, at):
            break
        found.append((at, struct.unpack_from("<Q", data, at + 48)[0], struct.unpack_from("<I", data, at + 68)[0]))
        at += struct.unpack_from("<I", data, at + 84)[0]
    return found


def identity(data):
    """(broker id, epoch) of the newer slot."""
    raw = (data / "log" / "identity").read_bytes()
    slots = [raw[at:at + 512] for at in (0, SLOT_STRIDE) if len(raw) >= at + 512 and any(raw[at:at + 512])]
    newest = max(slots, key=lambda slot: struct.unpack_from("<Q", slot, 16)[0])
    broker_id, _, epoch = struct.unpack_from("<QQI", newest, 24)
    return broker_id, epoch


def spoil_slots(path):
    flip(path, 30)
    if path.stat().st_size > SLOT_STRIDE + 40:
        flip(path, SLOT_STRIDE + 30)


def maintain(broker, command, *arguments):
    """One of the broker's commands with its configuration: (status, stdout, stderr)."""
    if not broker.conf_path.exists():
        broker.conf_path.write_text(broker.config_text())
    return run("tidegate-broker", command, "-c", broker.conf_path, *arguments)


def tree(directory):
    """Every file with its contents; not LMDB's table of readers, in which whoever reads leaves a trace."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock.mdb"}


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    for program in (made.sink, made.broker):
        if program.is_alive():
            program.stop()


@pytest.fixture
def elsewhere(tmp_path):
    """A broker that is configured and has nothing yet."""
    made = Broker(tmp_path / "elsewhere", "telemetry fleet/{device}/telemetry\n")
    made.conf_path.write_text(made.config_text())
    yield made
    if made.is_alive():
        made.stop()


# ---- the command line ----

def test_usage(tmp_path, elsewhere):
    for arguments in (("backup",), ("restore",), ("repair", "somewhere"), ("backup", "a", "b")):
        status, out, err = run("tidegate-broker", *arguments)
        assert status == 2 and "usage" in out + err, (arguments, out, err)
    _, out, _ = run("tidegate-broker", "--help")
    for word in ("backup", "restore", "repair", "--yes"):
        assert word in out
    for command, arguments in (("backup", (tmp_path / "backup",)), ("repair", ())):
        status, out, err = maintain(elsewhere, command, *arguments)
        assert status == 1 and str(elsewhere.data) in err, (command, out, err)
        assert not elsewhere.data.exists() and not (tmp_path / "backup").exists()


def test_check_opens_certificates(tmp_path):
    (tmp_path / "bad.crt").write_text("no certificate\n")
    (tmp_path / "bad.key").write_text("no key\n")
    conf = tmp_path / "tls.conf"
    conf.write_text(f"persistence_location {tmp_path}/data\nlistener 8883\ncertfile {tmp_path}/bad.crt\nkeyfile {tmp_path}/bad.key\n")
    status, out, err = run("tidegate-broker", "check", "-c", conf)
    assert status == 1 and str(tmp_path / "bad.crt") in err, out + err


# ---- backup and restore ----

def test_backup_under_load_restores_elsewhere(pair, elsewhere, tmp_path):
    """What was acknowledged before the backup began is in it, whatever comes meanwhile; the broker does not notice."""
    pair.start(sink=False)
    publisher = pair.publisher()
    pair.publish_rows(publisher, "before", rows(0, 500))
    stop, published = threading.Event(), [0]

    def load():
        client = pair.publisher("load")
        while not stop.is_set():
            client.send(*[wire.publish_packet("fleet/load/telemetry", '{"ts":%d,"x":1}' % (1700000000000 + published[0] + i), 1, i + 1,
                                              version=client.version) for i in range(50)])
            for _ in range(50):
                client.expect(wire.PUBACK)
            published[0] += 50
        client.disconnect()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: published[0] > 500, "the load runs")
        status, out, err = maintain(pair.broker, "backup", tmp_path / "backup")
        at_end = published[0]
        wait_until(lambda: published[0] > at_end + 500, "the load goes on")
    finally:
        stop.set()
        thread.join()
    assert status == 0, out + err
    assert not list((pair.broker.data / "log").glob("cursor.backup-*"))
    assert (tmp_path / "backup" / "BACKUP").read_text().startswith("tidegate-broker backup 1\n")
    old_id, old_epoch = identity(pair.broker.data)

    status, out, err = maintain(elsewhere, "restore", tmp_path / "backup")
    assert status == 0, out + err
    new_id, new_epoch = identity(elsewhere.data)
    assert new_id != old_id and f"{new_id:016x}" in out and new_epoch == old_epoch
    elsewhere.start()
    sink = Sink(tmp_path / "other-sink", elsewhere.data).start()
    other = Pair.__new__(Pair)
    other.broker, other.sink = elsewhere, sink
    other.expected = {"before": pair.expected["before"]}
    client = wire.Client(elsewhere.port, 4)
    client.connect("after")
    other.publish_rows(client, "after", rows(0, 100))
    try:
        other.wait_complete()
        wait_until(lambda: len(other.rows("load")) >= 500, "what was acknowledged before the backup began is stored")
    finally:
        sink.stop()


def test_a_sink_reads_on_through_a_restore(pair, tmp_path):
    """The broker's directory is lost and restored from a backup that is older than what the sink has. What both have comes once, what came
    after the backup is in the sink, and what the restored broker takes is stored under sequences that the lost one had used."""
    pair.start()
    publisher = pair.publisher()
    pair.publish_rows(publisher, "car1", rows(0, 300))
    status, out, err = maintain(pair.broker, "backup", tmp_path / "backup")
    assert status == 0, out + err
    pair.publish_rows(publisher, "car1", rows(300, 700))
    pair.publish_rows(publisher, "car2", rows(0, 300))
    pair.wait_complete()
    for restarts in (0, 1, 2):
        if restarts == 0:
            pair.broker.kill()
            pair.sink.stop()
            shutil.move(pair.broker.data, tmp_path / "lost")
            status, out, err = maintain(pair.broker, "restore", tmp_path / "backup")
            assert status == 0, out + err
        else: # without a record in between: positions must still be told apart
            pair.broker.restart()
            pair.sink.restart()
            continue
        pair.broker.start()
        pair.sink.start()
    publisher = pair.publisher("publisher2")
    pair.publish_rows(publisher, "car1", rows(1000, 400))
    pair.publish_rows(publisher, "car3", rows(0, 400))
    pair.wait_complete()
    pair.sink.restart()
    pair.publish_rows(publisher, "car2", rows(300, 100))
    pair.wait_complete()
    pair.verify()


def test_backup_of_a_stopped_broker(pair, elsewhere, tmp_path):
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 200))
    pair.broker.kill()
    before = tree(pair.broker.data)
    status, out, err = maintain(pair.broker, "backup", tmp_path / "backup")
    assert status == 0, out + err
    after = tree(pair.broker.data)
    after["broker.lock"] = before["broker.lock"] # the pid in it is ours
    assert after == before
    assert maintain(elsewhere, "restore", tmp_path / "backup")[0] == 0
    elsewhere.start()


def test_where_backup_and_restore_refuse(pair, elsewhere, tmp_path):
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 50))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    status, _, err = maintain(pair.broker, "backup", tmp_path / "full")
    assert status == 1 and str(tmp_path / "full") in err
    assert maintain(pair.broker, "backup", tmp_path / "backup")[0] == 0
    status, _, err = maintain(pair.broker, "backup", tmp_path / "backup")
    assert status == 1 and str(tmp_path / "backup") in err

    status, _, err = maintain(pair.broker, "backup", pair.broker.data / "log" / ".." / "backup")
    assert status == 1 and "inside the data directory" in err and not (pair.broker.data / "backup").exists()

    status, _, err = maintain(pair.broker, "restore", tmp_path / "backup") # not over a broker's data
    assert status == 1 and str(pair.broker.data) in err
    status, _, err = maintain(elsewhere, "restore", tmp_path / "full") # no backup
    assert status == 1 and "BACKUP" in err and not elsewhere.data.exists()
    for name in sorted(str(path.relative_to(tmp_path / "backup")) for path in (tmp_path / "backup").rglob("*") if path.is_file()):
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "backup", damaged)
        flip(damaged / name, (damaged / name).stat().st_size // 2, 1)
        status, _, err = maintain(elsewhere, "restore", damaged)
        assert status == 1 and name in err, (name, err)
        (damaged / name).unlink()
        status, _, err = maintain(elsewhere, "restore", damaged)
        assert status == 1 and name in err, (name, err)
        assert not elsewhere.data.exists()
        shutil.rmtree(damaged)


@pytest.mark.parametrize("part", ["log.restoring", "checkpoint.restoring"])
def test_half_restored_is_nobodys(elsewhere, tmp_path, part):
    """No broker begins anew beside what an interrupted restore has made, and no command takes it for a data directory."""
    (elsewhere.data / part).mkdir(parents=True)
    for text in (elsewhere.refusal(), *(maintain(elsewhere, *words)[2] for words in (("backup", tmp_path / "backup"), ("repair",), ("repair", "--yes")))):
        assert str(elsewhere.data) in text, text
    assert part in elsewhere.refusal()
    assert sorted(path.name for path in elsewhere.data.iterdir()) == ["broker.lock", part]


def test_a_list_cannot_lead_elsewhere(elsewhere, tmp_path):
    """A BACKUP from somebody who means harm: paths that leave the directory are refused, though the checksums hold."""
    backup = tmp_path / "backup"
    backup.mkdir()
    head = "tidegate-broker backup 1\nmade 1\nformat 1\nbroker 0000000000000001 epoch 1\ncheckpoint none\nend 1:1 place 0000000000000001.seg:4096\n"
    for name in ("../../etc/passwd", "log/../../x", "/etc/passwd", "log/cursor.../x", "log/", "BACKUP"):
        text = head + f"file 00000000 0 {name}\n"
        (backup / "BACKUP").write_text(text + f"checksum {crc32c(text.encode()):08x}\n")
        status, _, err = maintain(elsewhere, "restore", backup)
        assert status == 1 and "line 7" in err, (name, err)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_backup_that_is_ended_lets_the_log_go(pair, tmp_path, how):
    """SIGTERM: cursor and copy are removed at once. SIGKILL: the next backup does it, and says so."""
    pair.start(sink=False)
    client = pair.publisher()
    payload = b'{"x":1,"y":"' + os.urandom(30000).hex().encode() + b'"}'
    for _ in range(300):
        client.publish("fleet/big/telemetry", payload, qos=1)
    log = pair.broker.data / "log"
    process = subprocess.Popen([str(programs.BUILD / "tidegate-broker"), "backup", "-c", str(pair.broker.conf_path), str(tmp_path / "backup")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=programs.environment())
    wait_until(lambda: list(log.glob("cursor.backup-*")) or process.poll() is not None, "the backup holds the log")
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the backup was done before it could be ended")
    if how == signal.SIGTERM:
        assert process.returncode == 1 and "signal" in err, out + err
        assert not list(log.glob("cursor.backup-*")) and not (tmp_path / "backup").exists()
        return
    assert len(list(log.glob("cursor.backup-*"))) == 1
    assert not (tmp_path / "backup" / "BACKUP").exists()
    status, out, err = maintain(pair.broker, "backup", tmp_path / "second")
    assert status == 0 and "removed" in out and str(process.pid) in out, out + err
    assert not list(log.glob("cursor.backup-*"))


# ---- repair ----

def test_repair_wants_the_directory_for_itself(pair):
    pair.start(sink=False)
    status, out, err = maintain(pair.broker, "repair")
    assert status == 1 and str(pair.broker.process.pid) in err, out + err
    pair.broker.stop()
    status, out, err = maintain(pair.broker, "repair")
    assert status == 0 and "nothing to repair" in out, out + err


def repair(broker, *words):
    """Dry run, which names `words` and changes nothing; then --yes, after which there is nothing left."""
    before = tree(broker.data)
    status, told, err = maintain(broker, "repair")
    assert status == 1 and not err, told + err
    for word in words:
        assert word in told, told
    after = tree(broker.data)
    after.pop("broker.lock"), before.pop("broker.lock")
    assert after == before
    status, out, err = maintain(broker, "repair", "--yes")
    assert status == 0 and not err, out + err
    for word in words:
        assert word in out, out
    status, again, err = maintain(broker, "repair")
    assert status == 0 and "nothing to repair" in again, again + err
    return out


def damage_middle(broker):
    """Flip the body of a block in the middle of the log: (segment, offset, first sequence that is gone)."""
    path = max(started_segments(broker.data), key=lambda segment: len(blocks(segment)))
    at, sequence, _ = blocks(path)[len(blocks(path)) // 2]
    flip(path, at + 130, 4)
    return path, at, sequence


@pytest.mark.parametrize("when", ["before it read", "after it read"])
def test_a_hole_in_the_log(pair, when):
    """The broker refuses to start and names the place. After the repair it starts, its numbers go on above all that there were, and the
    sink states the gap and goes on when told."""
    pair.start(sink=when == "after it read")
    publisher = pair.publisher()
    for part in range(40):
        pair.publish_rows(publisher, "car1", rows(part * 25, 25))
    if when == "after it read":
        pair.wait_complete()
        pair.sink.stop()
    pair.broker.kill()
    path, at, first_gone = damage_middle(pair.broker)
    last = max(sequence + count for segment in started_segments(pair.broker.data) for _, sequence, count in blocks(segment))
    text = pair.broker.refusal()
    assert f"{path.name}: does not continue at offset {at}" in text and "tidegate-broker repair" in text, text

    out = repair(pair.broker, path.name, f"offset {at}", f"records {first_gone} to ", "--accept-gap")
    kept = list(pair.broker.data.glob("damaged-*/log/" + path.name))
    assert len(kept) == 1, out
    pair.broker.start()
    publisher = pair.publisher("publisher2")
    pair.publish_rows(publisher, "car2", rows(0, 100))
    newest = max(started_segments(pair.broker.data))
    assert min(sequence for _, sequence, _ in blocks(newest)) >= last
    pair.sink.start()
    if when == "before it read":
        wait_until(lambda: pair.sink.health()[1]["source"]["state"] == "gap", "the sink states the gap")
        assert f"from_sequence={first_gone}" in pair.sink.stderr(), pair.sink.stderr()
        pair.sink.stop()
        pair.sink.conf += "accept_gap true\n"
        pair.sink.start()
        have = pair.expected.pop("car1")
        pair.wait_complete()
        found = pair.rows("car1")
        assert 0 < len(found) < len(have) and all(have[ms] == values for ms, values in found.items())
    else:
        # Records between what it had committed and the new beginning are gone for it as well, if only the number of none.
        pair.sink.stop()
        pair.sink.conf += "accept_gap true\n"
        pair.sink.start()
        pair.wait_complete()
    pair.broker.restart()
    pair.publish_rows(pair.publisher("publisher3"), "car3", rows(0, 50))
    pair.expected.pop("car1", None)
    pair.wait_complete()


def test_repair_again_within_the_second(pair):
    """What an interrupted repair has put aside is not in the way of the next."""
    pair.start(sink=False)
    publisher = pair.publisher()
    for part in range(10):
        pair.publish_rows(publisher, "car1", rows(part * 25, 25))
    pair.broker.kill()
    path, _, _ = damage_middle(pair.broker)
    for ahead_s in range(60):
        name = time.strftime("damaged-%Y-%m-%d-%H%M%S", time.gmtime(time.time() + ahead_s))
        earlier = pair.broker.data / name / "log" / path.name
        earlier.parent.mkdir(parents=True)
        earlier.write_bytes(b"kept")
    before = path.read_bytes()
    repair(pair.broker, path.name)
    kept = list(pair.broker.data.glob("damaged-*-2/log/" + path.name))
    assert len(kept) == 1 and kept[0].read_bytes() == before
    pair.broker.start()


def test_a_segment_is_missing(pair):
    pair.start(sink=False)
    client = pair.publisher()
    payload = b'{"x":1,"y":"' + os.urandom(30000).hex().encode() + b'"}'
    for _ in range(60):
        client.publish("fleet/big/telemetry", payload, qos=1)
    pair.broker.stop()
    found = started_segments(pair.broker.data)
    assert len(found) >= 3
    found[1].unlink()
    text = pair.broker.refusal()
    assert "tidegate-broker repair" in text and found[0].name in text, text
    repair(pair.broker, found[0].name)
    assert list(pair.broker.data.glob("damaged-*/log/" + found[2].name))
    pair.broker.start()
    pair.publish_rows(pair.publisher("publisher2"), "car1", rows(0, 50))


def fill_and_stop(pair):
    pair.start()
    pair.publish_rows(pair.publisher(), "car1", rows(0, 200))
    pair.wait_complete()
    pair.stop()


def go_on(pair):
    """The sink has all of before, and what comes now."""
    pair.publish_rows(pair.publisher("publisher2"), "car1", rows(200, 200))
    pair.wait_complete()


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_the_identity(pair, how):
    fill_and_stop(pair)
    broker_id, epoch = identity(pair.broker.data)
    path = pair.broker.data / "log" / "identity"
    if how == "lost":
        path.unlink()
    else:
        spoil_slots(path)
    text = pair.broker.refusal()
    assert str(path) in text and "tidegate-broker repair" in text, text
    repair(pair.broker, str(path), f"{broker_id:016x}")
    assert identity(pair.broker.data) == (broker_id, epoch)
    pair.broker.start()
    assert identity(pair.broker.data) == (broker_id, epoch + 1)
    pair.sink.start()
    go_on(pair)


def test_the_sinks_cursor(pair):
    """Damaged: the broker serves and says so; repaired, the sink reads again from the oldest record and stores nothing twice."""
    fill_and_stop(pair)
    path = pair.broker.data / "log" / "cursor.sink"
    spoil_slots(path)
    repair(pair.broker, str(path), "oldest record")
    assert list(pair.broker.data.glob("damaged-*/log/cursor.sink"))
    pair.start()
    go_on(pair)


def test_the_state(pair):
    fill_and_stop(pair)
    path = pair.broker.data / "log" / "state"
    spoil_slots(path)
    repair(pair.broker, str(path))
    pair.start()
    go_on(pair)


def test_the_format(pair):
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 20))
    pair.broker.stop()
    path = pair.broker.data / "format"
    path.write_text("something else\n")
    repair(pair.broker, str(path))
    pair.broker.start()


def test_everything_at_once(pair):
    """Hole, identity, state and cursor together: one run tells all, one run puts all right."""
    pair.start()
    publisher = pair.publisher()
    for part in range(20):
        pair.publish_rows(publisher, "car1", rows(part * 25, 25))
    pair.wait_complete()
    pair.stop()
    path, at, _ = damage_middle(pair.broker)
    (pair.broker.data / "log" / "identity").unlink()
    spoil_slots(pair.broker.data / "log" / "cursor.sink")
    repair(pair.broker, "identity", "cursor.sink", path.name, f"offset {at}")
    pair.broker.start()
    pair.publish_rows(pair.publisher("publisher2"), "car2", rows(0, 50))


def test_cursors_of_dead_backups_are_found(pair):
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 20))
    pair.broker.stop()
    log = pair.broker.data / "log"
    shutil.copy(log / "cursor.sink", log / "cursor.backup-1")
    repair(pair.broker, "cursor.backup-1")
    assert not (log / "cursor.backup-1").exists()


def test_a_start_removes_cursors_of_dead_backups(pair):
    """Of a backup that was killed; that of one that runs is locked and stays."""
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 20))
    pair.broker.stop()
    log = pair.broker.data / "log"
    for name in ("cursor.backup-1", "cursor.backup-2"):
        shutil.copy(log / "cursor.sink", log / name)
    with open(log / "cursor.backup-2", "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pair.broker.start()
        assert sorted(path.name for path in log.glob("cursor.*")) == ["cursor.backup-2", "cursor.sink"]
        pair.broker.stop()
    pair.broker.start()
    assert [path.name for path in log.glob("cursor.*")] == ["cursor.sink"]


def test_a_cursor_holds_the_log_whatever_the_configuration_says(pair):
    """Telemetry that was acknowledged stays for the sink though its rule is gone; the operator is told, and decides."""
    warning = "the configuration does not ask for holds the log"
    pair.start(sink=False)
    pair.publish_rows(pair.publisher(), "car1", rows(0, 50))
    pair.broker.stop()
    assert warning not in pair.broker.stderr()
    conf = pair.broker.conf
    pair.broker.conf = "".join(line for line in conf.splitlines(True) if not line.startswith("telemetry "))
    assert pair.broker.conf != conf
    pair.broker.start()
    assert (pair.broker.data / "log" / "cursor.sink").exists()
    pair.broker.stop()
    told = [line for line in pair.broker.stderr().splitlines() if warning in line]
    assert len(told) == 1 and "cursor=sink" in told[0] and "records_behind=50" in told[0], told
    pair.broker.start()
    pair.sink.start()
    pair.wait_complete()


# ---- durable: with the checkpoint ----

def make_state(port, queued=100, retained=20):
    """A session with subscriptions and a queue, an open QoS 2 exchange, a will, retained values."""
    subscriber = wire.Client(port, 5)
    subscriber.connect("sub", clean=True, properties=[(wire.SESSION_EXPIRY, 3600)])
    subscriber.subscribe(("q/#", 1))
    subscriber.disconnect()
    publisher = wire.Client(port, 5)
    publisher.connect("pub")
    for i in range(queued):
        publisher.publish(f"q/{i % 7}", b"%d" % i, qos=1)
    for i in range(retained):
        publisher.publish(f"r/{i}", b"retained %d" % i, qos=1, retain=True)
    publisher.disconnect()


def check_state(port, queued=100, retained=20):
    subscriber = wire.Client(port, 5)
    ack = subscriber.connect("sub", clean=False, properties=[(wire.SESSION_EXPIRY, 3600)])
    assert ack.session_present
    found = []
    for _ in range(queued):
        message = subscriber.expect(wire.PUBLISH)
        subscriber.acknowledge(message)
        found.append(int(message.payload))
    assert found == sorted(found) and len(set(found)) == queued
    subscriber.disconnect()
    reader = wire.Client(port, 5)
    reader.connect("reader")
    reader.subscribe("r/#")
    topics = {reader.expect(wire.PUBLISH).topic for _ in range(retained)}
    assert len(topics) == retained
    reader.disconnect()


def test_durable_backup_has_sessions_queues_and_retained(tmp_path, elsewhere):
    broker = Broker(tmp_path / "broker").start()
    try:
        make_state(broker.port)
        status, out, err = maintain(broker, "backup", tmp_path / "backup")
        assert status == 0 and "checkpoint:" in out, out + err
    finally:
        broker.stop()
    assert maintain(elsewhere, "restore", tmp_path / "backup")[0] == 0
    elsewhere.start()
    check_state(elsewhere.port)
    for _ in range(3):
        elsewhere.restart() # under its own id from here on
    elsewhere.stop()
    status, out, err = maintain(elsewhere, "repair")
    assert status == 0, out + err


@pytest.mark.parametrize("how", ["missing", "meta", "cut"])
def test_durable_checkpoint_lost(tmp_path, how):
    """Refused; after the repair it starts with what the log still holds, here everything."""
    broker = Broker(tmp_path / "broker").start()
    make_state(broker.port)
    broker.stop()
    path = broker.data / "checkpoint" / "data.mdb"
    if how == "missing":
        shutil.rmtree(path.parent)
    elif how == "meta":
        flip(path, 16, 16)
        flip(path, 4096 + 16, 16)
    else:
        os.truncate(path, 8192)
    text = broker.refusal()
    assert str(path.parent) in text and "tidegate-broker repair" in text, text
    repair(broker, str(path), "record")
    broker.start()
    check_state(broker.port)
    broker.stop()


def newest_list_of_trees(raw):
    """Page of the root of LMDB's list of trees, in the newest commit."""
    metas = [struct.unpack_from("<Q", raw, page * 4096 + 16 + field)[0] for page in (0, 1) for field in (128, 112)]
    return max((metas[0], metas[1]), (metas[2], metas[3]))[1]


def damage_way_in(path, how):
    raw = bytearray(path.read_bytes())
    if how == "bit of a meta page":
        raw[16] ^= 1
    elif how == "meta page 0":
        raw[:4096] = bytes(4096)
    elif how == "meta page 1":
        raw[4096:8192] = bytes(4096)
    elif how == "list of trees":
        page = newest_list_of_trees(raw)
        raw[page * 4096:(page + 1) * 4096] = bytes(4096)
    elif how == "inner pages":
        for page in range(2, len(raw) // 4096):
            if struct.unpack_from("<Q2xH", raw, page * 4096) == (page, 1):
                raw[page * 4096:(page + 1) * 4096] = bytes(4096)
    else:
        del raw[-4096:]
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory):
    """A data directory whose log no longer has the records that sessions, queues and retained values came from."""
    broker = Broker(tmp_path_factory.mktemp("long-lived"), "log_segment_size 1MiB\nlog_max_size 16MiB\n").start()
    make_state(broker.port, 900, 100)
    other = wire.Client(broker.port, 5)
    other.connect("other", clean=True, properties=[(wire.SESSION_EXPIRY, 3600)])
    other.subscribe(("other", 1))
    for _ in range(400):
        other.publish("other", os.urandom(50000), qos=1)
        other.take()
    broker.stop()
    assert blocks(started_segments(broker.data)[0])[0][1] > 1000
    return broker


@pytest.mark.parametrize("how", ["bit of a meta page", "meta page 0", "meta page 1", "list of trees", "inner pages", "cut"])
def test_durable_pages_that_lead_to_others(tmp_path, long_lived, how):
    """The pages through which everything else is found are damaged, the rest is whole: refused by name, and after the repair all of it is
    served, though the log has nothing of it."""
    broker = Broker(tmp_path / "broker", "log_segment_size 1MiB\nlog_max_size 16MiB\n")
    shutil.copytree(long_lived.data, broker.data, dirs_exist_ok=True)
    (broker.data / "listeners").unlink(missing_ok=True)
    path = broker.data / "checkpoint" / "data.mdb"
    damage_way_in(path, how)
    if how not in ("inner pages", "cut"):  # those need not keep it from starting: what lacks may be free
        text = broker.refusal()
        assert str(path) in text and "offset" in text and "tidegate-broker repair" in text, text
    status, told, err = maintain(broker, "repair")
    if status == 0:
        assert how == "cut"
    else:
        out = repair(broker, str(path), "into a new database")
        assert "lost: nothing" in out or how in ("cut", "list of trees"), out
    broker.start()
    if how != "cut":
        check_state(broker.port, 900, 100)
    else:
        subscriber = wire.Client(broker.port, 5)
        subscriber.connect("sub", clean=False, properties=[(wire.SESSION_EXPIRY, 3600)])
        for _ in range(900 - 200):  # of one page: the longest row of bodies, or of places in queues
            subscriber.acknowledge(subscriber.expect(wire.PUBLISH))
        subscriber.disconnect()
    broker.stop()


def test_durable_damaged_values(tmp_path):
    """The row of a retained message's body is damaged: served with a report; repaired, all others are there."""
    broker = Broker(tmp_path / "broker").start()
    make_state(broker.port)
    publisher = wire.Client(broker.port, 5)
    publisher.connect("pub")
    publisher.publish("r/large", b"damaged" * 1000, qos=1, retain=True)  # large enough for a row of its own
    publisher.disconnect()
    broker.stop()
    path = broker.data / "checkpoint" / "data.mdb"
    data = path.read_bytes()
    places = [found.start() for found in re.finditer(b"damaged" * 1000, data)]
    assert places
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"D")
    broker.start()
    subscriber = wire.Client(broker.port, 5)
    subscriber.connect("reader")
    subscriber.subscribe(("r/#", 1))
    wait_until(lambda: [problem["check"] for problem in broker.health()[1]["problems"]] == ["checkpoint_damage"], "the damage is told")
    assert broker.metrics().get("tidegate_store_read_messages_total", found="damaged") == 1
    subscriber.disconnect()
    broker.stop()
    repair(broker, "tree bodies", "topic and payload of message")
    assert list(broker.data.glob("damaged-*/checkpoint/data.mdb"))
    broker.start()
    check_state(broker.port)
    broker.stop()
