"""A disk that fails under a running broker, and one on which it cannot start: what clients see, what the last line says, how it ends, and
that nothing that was acknowledged is lost. Most tests fail the disk by a preloaded library; those that need a file system of their own are
skipped where nothing may be mounted."""
import errno
import os
import resource
import subprocess

import pytest

from harness import faults, programs, wire
from harness.pair import fill_disk
from harness.programs import run, wait_until

SMALL = "log_segment_size 1MiB\nlog_max_size 32MiB\n"
READ_ONLY = tuple((operation, errno.EROFS, "*") for operation in ("open", "write", "sync", "rename", "grow"))


@pytest.fixture
def broken(tmp_path):
    """broken(conf): a broker that was started on a disk that can be made to fail, and the disk."""
    made = []

    def make(conf="", **options):
        broker = faults.make_broker(tmp_path / f"broker{len(made)}", SMALL + conf, **options)
        made.append(broker)
        disk = faults.FailingDisk(broker)
        broker.start()
        return broker, disk

    yield make
    for broker in made:
        if broker.is_alive():
            broker.kill()


@pytest.fixture
def small(tmp_path):
    """small(mib, kind): a broker on a file system of its own."""
    made = []

    def make(mib, kind, conf=""):
        disk = faults.SmallDisk(tmp_path / f"disk{len(made)}", mib, kind)
        broker = faults.make_broker(tmp_path / f"on-disk{len(made)}", SMALL + conf, data=disk.path / "data")
        broker.forget_ports = lambda: None  # it may be read-only
        made.append((broker, disk))
        (disk.path / "data").mkdir(mode=0o750)
        return broker, disk

    yield make
    for broker, disk in made:
        if broker.is_alive():
            broker.kill()
        disk.close()


def loaded(broker, topic, least=300, **options):
    load = faults.Load(broker, topic, **options)
    wait_until(lambda: load.count() >= least, "messages are acknowledged")
    return load


@pytest.mark.parametrize("rules, words", [
    ([("write", errno.EIO, ".seg")], ["the log has failed for good", "/log/0000", ".seg: write of"]),
    ([("write", errno.EIO, "log/state")], ["the log has failed for good", "/log/state: write"]),
    ([("sync", errno.EIO, "checkpoint")], ["the checkpoint has failed for good", "/checkpoint/data.mdb: commit"]),
    ([("write", errno.EIO, "checkpoint")], ["the checkpoint has failed for good", "/checkpoint/data.mdb: commit"]),
    ([("sync", errno.EIO, "*")], ["failed for good"]),
    ([("read", errno.EIO, ".seg")], ["the checkpoint has failed for good", "/log/0000", ".seg: offset"]),
    (READ_ONLY, ["failed for good", "read-only"]),
    ([("open", errno.EACCES, "*"), ("rename", errno.EACCES, "*"), ("read", errno.EACCES, "log")], ["failed for good", "/log"]),
], ids=["log write", "state write", "checkpoint sync", "checkpoint write", "every sync", "log read", "read-only", "permissions lost"])
def test_failed_write_is_final(broken, topic, rules, words):
    """It stops acknowledging, says which file and what to do, and ends with status 1; while the disk is like that it does not start; then
    everything that was acknowledged is there."""
    broker, disk = broken()
    load = loaded(broker, topic)
    disk.fail(*rules)
    said = broker.last_words()
    assert all(end for end in load.join())
    assert all(word in said for word in words) and " do=" in said, said
    said = broker.refusal()
    assert "cannot start" in said and str(broker.data) in said, said
    disk.mend()
    broker.start()
    load.check()
    broker.check_books()
    broker.stop()


def check_goes_on(broker, disk, load):
    """With the disk mended publishers go on, and nothing that was acknowledged is lost by a kill."""
    count = load.count()
    disk.mend()
    wait_until(lambda: load.count() > count + 100, "publishers go on")
    load.stop()
    broker.kill()
    broker.start()
    load.check()
    broker.check_books()
    broker.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_no_space_while_running(broken, topic, number):
    """Publishers wait, everybody else is served, it says so; with space again it goes on by itself, and nothing is lost."""
    broker, disk = broken()
    load = loaded(broker, topic, patience_s=60)
    disk.fail(("grow", number, "*"))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_log_has_room") == 0, "the log takes no messages")
    status, health = broker.health()
    assert status == 503 and {"log_full", "log_space"} & {problem["check"] for problem in health["problems"]}, health
    probe = wire.Client(broker.port)
    probe.connect("still served")
    probe.subscribe("other")
    probe.publish("other", b"1")
    assert probe.take().payload == b"1"
    check_goes_on(broker, disk, load)


def test_no_space_where_nothing_is_written_in_place(broken, topic):
    """A file system may refuse a write into a segment that is full of zeros: the write waits, and is made again."""
    broker, disk = broken()
    load = loaded(broker, topic, patience_s=60)
    disk.fail(("write", errno.ENOSPC, ".seg"), ("grow", errno.ENOSPC, "*"))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_log_waits_for_space") == 1, "a write waits")
    status, health = broker.health()
    assert status == 503 and "log_space" in [problem["check"] for problem in health["problems"]], health
    assert "no space for the log: trying again" in broker.stderr() and ".seg: write at" in broker.stderr()
    check_goes_on(broker, disk, load)


def test_no_space_and_sigterm(broken, topic):
    """Stopped while a write waits: it ends and says that not everything was written; that was not acknowledged."""
    broker, disk = broken()
    load = loaded(broker, topic)
    disk.fail(("write", errno.ENOSPC, ".seg"))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_log_waits_for_space") == 1, "a write waits")
    broker.process.terminate()
    said = broker.last_words()
    assert "not everything that was logged is known to be durable" in said, said
    load.stop()
    disk.mend()
    broker.start()
    load.check()
    broker.stop()


def test_no_space_at_a_start(broken, topic):
    """Refused, with what is free and what to do, and without taking more each time; then everything is there."""
    broker, disk = broken()
    load = loaded(broker, topic)
    load.stop()
    broker.kill()
    disk.fill()
    before = sum(path.stat().st_blocks for path in broker.data.rglob("*"))
    for _ in range(3):
        said = broker.refusal()
        assert "cannot start" in said and str(broker.data) in said and "No space" in said or "no space" in said, said
    assert sum(path.stat().st_blocks for path in broker.data.rglob("*")) <= before + 64
    disk.mend()
    broker.start()
    load.check()
    broker.stop()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("how", ["kill", "term"])
def test_full_file_system(small, topic, kind, how):
    """A real one: filled up under load, the broker ended, started while it is full, and with room again."""
    broker, disk = small(64, kind)
    broker.start()
    load = loaded(broker, topic, body=b"y" * 3000)
    fill_disk(disk.path / "filler")
    broker.wait_metric(lambda metrics: metrics.get("tidegate_log_has_room") == 0 or metrics.get("tidegate_log_waits_for_space") == 1, "no room")
    load.stop()
    if how == "kill":
        broker.kill()
    else:
        broker.process.terminate()
        assert broker.wait_end() in (0, 1), broker.stderr()  # 1: a write waited
        broker.process = None
        broker.check_clean()
    for _ in range(3):  # it may start, where the log had something to give back
        (broker.data / "listeners").unlink(missing_ok=True)
        broker.spawn()
        wait_until(lambda: broker.process.poll() is not None or "ready version" in broker.stderr(), "a start or its refusal", 120)
        if broker.is_alive():
            broker.kill()
        else:
            said = broker.last_words()
            assert "cannot start" in said and "make room and start again, nothing is lost" in said, said
    (disk.path / "filler").unlink()
    (broker.data / "listeners").unlink(missing_ok=True)
    broker.start()
    load.check()
    broker.check_books()
    broker.stop()


def test_file_system_becomes_read_only(small, topic):
    """What the kernel does after an error of the disk."""
    broker, disk = small(64, "ext4")
    broker.start()
    load = loaded(broker, topic)
    device = [line.split()[0] for line in open("/proc/mounts", encoding="ascii") if line.split()[1] == str(disk.path)][0]
    trigger = f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error"
    if not os.access(trigger, os.W_OK):
        broker.stop()
        pytest.skip(f"{trigger} cannot be written here")
    disk.remount("errors=remount-ro")
    with open(trigger, "w", encoding="ascii") as file:
        file.write("x")
    said = broker.last_words()
    load.join()
    assert "failed for good" in said and "read-only" in said, said
    said = broker.refusal()
    assert "cannot start" in said and "ead-only" in said, said
    disk.close()
    image = f"{disk.path}.image"
    subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False)
    subprocess.run(["mount", "-o", "loop", image, str(disk.path)], check=True)
    (broker.data / "listeners").unlink(missing_ok=True)
    broker.start()
    load.check()
    broker.stop()


def test_database_removed_under_it(broken, topic):
    """It stops within a commit, so that the log still has what the next database needs; repair makes that."""
    broker, _ = broken()
    load = loaded(broker, topic)
    (broker.data / "checkpoint" / "data.mdb").unlink()
    said = broker.last_words()
    load.join()
    assert "removed or replaced" in said and "checkpoint/data.mdb" in said and "tidegate-broker repair" in said, said
    said = broker.refusal()
    assert "tidegate-broker repair" in said, said
    assert run("tidegate-broker", "repair", "-c", broker.conf_path, "--yes")[0] == 0
    broker.start()
    load.check()
    broker.stop()


def test_database_cut_under_it(broken, topic):
    """The last line names file, offset and command; after the repair it starts with what the log has."""
    broker, _ = broken("checkpoint_interval 20ms\n")
    load = loaded(broker, topic, least=1000)
    os.truncate(broker.data / "checkpoint" / "data.mdb", 0)
    said = broker.last_words()
    load.join()
    assert "checkpoint/data.mdb: offset 0x" in said and "tidegate-broker repair" in said, said
    said = broker.refusal()
    assert "checkpoint/data.mdb" in said and "tidegate-broker repair" in said, said
    assert run("tidegate-broker", "repair", "-c", broker.conf_path, "--yes")[0] == 0
    broker.start()
    load.check()
    broker.stop()


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_log_hurt_under_it(broken, topic, how):
    """Noticed while it runs; refused with file and offset; repair says what is lost, and the broker serves again."""
    broker, _ = broken()
    load = loaded(broker, topic)
    for path in (broker.data / "log").glob("0*.seg"):
        path.unlink() if how == "removed" else os.truncate(path, 8192)
    said = broker.last_words()
    load.join()
    assert "failed for good" in said and "/log/0000" in said and " do=" in said, said
    said = broker.refusal()
    assert "/log/0000" in said and "offset" in said and "tidegate-broker repair" in said, said
    status, out, _ = run("tidegate-broker", "repair", "-c", broker.conf_path)
    assert status == 1 and "lost: records" in out, out
    assert run("tidegate-broker", "repair", "-c", broker.conf_path, "--yes")[0] == 0
    broker.start()
    loaded(broker, topic + "again").stop()
    broker.stop()


def test_idle_log_removed_under_it(broken, topic):
    """Nobody reads or writes it, and it is noticed all the same: what came next would go where nobody finds it."""
    broker, _ = broken()
    load = loaded(broker, topic)
    load.stop()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_lag_bytes") == 0, "the checkpoint has everything")
    for path in (broker.data / "log").glob("0*.seg"):
        path.unlink()
    said = broker.last_words()
    # The log's thread says so, or the one that reads it for the checkpoint and was not done yet.
    assert "failed for good" in said and (".seg: the segment was removed" in said or ": the segment is missing" in said), said


def test_connections_leave_descriptors_for_files(tmp_path, topic, monkeypatch):
    """More clients than descriptors: the rest waits outside, and the log goes on into new segments."""
    broker = faults.make_broker(tmp_path / "broker", SMALL)
    spawn = subprocess.Popen

    def limited(*arguments, **options):
        return spawn(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150)), **options)

    monkeypatch.setattr(programs.subprocess, "Popen", limited)
    broker.start()
    monkeypatch.undo()
    load = loaded(broker, topic)
    clients = []
    for number in range(150):
        client = wire.Client(broker.port)
        client.send_tolerant(wire.connect_packet(f"{topic} {number}"))
        clients.append(client)
    wait_until(lambda: "cannot accept connections" in broker.stderr(), "there are no descriptors left for connections")
    rolls = [path.name for path in (broker.data / "log").glob("0*.seg")]
    wait_until(lambda: [path.name for path in (broker.data / "log").glob("0*.seg")] != rolls, "the log goes on in another segment", 60)
    for client in clients:
        client.close()
    load.stop()
    load.check()
    broker.stop()
