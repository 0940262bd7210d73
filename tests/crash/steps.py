#!/usr/bin/python3
"""Commands that are killed in the middle: a start with much to replay and a database to compact, `backup`, `restore` and `repair --yes`.

    tests/crash/steps.py [--kills N] [--points N] [--seconds N] [--seed N] [--only start|backup|running|restore|repair|points] [--result FILE]

Each is run once to its end under disk_recorder.c, which counts what it does to files; then again and again from the same directory, and
killed when it has begun its k-th operation, for N different k (all, if there are fewer). With --points also at each CRASH_POINT that lies
on these ways (POINTS), so many times. Half of the kills take the power as well (disk_image.py). What must hold then:

  start    however often it was killed: the next one that comes to its end has every session, message and retained value
  backup   what it has made is refused by `restore`, or is a whole backup; the broker it was taken from has everything, and a cursor that
           was left behind goes with the next start
  running  the same with a broker that serves meanwhile: a whole backup has what was acknowledged before it began
  restore  what it has made is refused by the broker, or is all that was in the backup; never a part, nor a new broker beside it
  repair   run again it comes to its end; then nothing is found any more, and the broker has what it would have after an undisturbed repair

All is compared by what clients get (observe)."""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from crash.disk_image import END, CrashImage, Snapshot, read_journal  # noqa: E402
from harness import programs, wire  # noqa: E402
from harness.programs import Broker, wait_until  # noqa: E402

RECORDER = programs.BUILD / "disk_recorder.so"
# The crash points on these ways, and which way passes them.
POINTS = {
    "checkpoint_load": "start", "checkpoint_load_cleaned": "start", "lmdb_compacted": "start", "recovery_replayed": "start",
    "replay_applied": "start", "replay_committed": "start", "repair_segment_moved": "repair", "repair_segment_written": "repair",
}
SESSIONS = (("one", 4), ("two", 5), ("open", 5), ("hoard", 4))
QUIET_S = 1.5
CONF = "max_queued_messages 0\nmax_queued_bytes 0\nlog_max_size 24MiB\nqueue_qos0_messages true\n"
SLOT_STRIDE = 4096


class Finding(Exception):
    pass


# ---- what is in a data directory ----

def connect(port, name, version, clean=False):
    client = wire.Client(port, version)
    client.connect(name, clean=clean, properties=[(wire.SESSION_EXPIRY, 3600)] if version == 5 else ())
    return client


def payload(number, size):
    return b"%d " % number + bytes([97 + number % 26]) * size


def wait_committed(broker):
    """The checkpoint has everything."""
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_lag_bytes") == 0, "the checkpoint reaches the log's end")


def fill_hoard(broker):
    """So much for one session, fetched later, that the database is free pages above all."""
    hoard = connect(broker.port, "hoard", 4)
    hoard.subscribe(("hoard/#", 1))
    hoard.disconnect()
    publisher = connect(broker.port, "publisher", 4, clean=True)
    for number in range(100):
        publisher.publish("hoard/a", payload(number, 240000), qos=1)
    wait_committed(broker)
    hoard = connect(broker.port, "hoard", 4)
    hoard.take_payloads(100)
    hoard.disconnect()
    publisher.disconnect()
    wait_committed(broker)


def fill_first(broker):
    """What the checkpoint knows."""
    for name, version in SESSIONS[:3]:
        client = connect(broker.port, name, version)
        client.subscribe((f"data/{name}/#", 2), ("data/all/#", 1))
        client.disconnect()
    publisher = connect(broker.port, "publisher", 5, clean=True)
    for number in range(60):
        publisher.publish(f"data/{('one', 'two', 'open', 'all')[number % 4]}/{number % 3}", payload(number, 200 + number * 13), qos=1 + number // 4 % 2)
    for number in range(30):
        publisher.publish(f"kept/{number}", payload(number, number * 40), qos=1, retain=True)
    publisher.disconnect()
    wait_committed(broker)


def fill_second(broker, count, size):
    """What stands in the log only: deliveries, exchanges that are open, retained values replaced, removed and expired, much that is new."""
    one = connect(broker.port, "one", 4)
    one.take_payloads(10)
    one.disconnect()
    two = connect(broker.port, "two", 5)
    two.take_payloads(5)
    two.unsubscribe("data/all/#")
    publisher = connect(broker.port, "publisher", 5, clean=True)
    for number in range(1000, 1000 + count):
        name = ("one", "two", "open", "all")[number % 4]
        publisher.publish(f"data/{name}/{number % 3}", payload(number, size if number % 5 else 100), qos=1 + number // 4 % 2)
    for number in range(12):
        publisher.publish(f"kept/{number}", b"" if number % 3 == 0 else payload(2000 + number, 500), qos=1, retain=True)
        publisher.publish(f"soon/{number}", b"soon", qos=1, retain=True, properties=[(wire.MESSAGE_EXPIRY, 1)])
    half = connect(broker.port, "open", 5)  # the first is received and not released, the others are not answered at all
    message = half.expect(wire.PUBLISH)
    while message.qos != 2:
        half.acknowledge(message)
        message = half.expect(wire.PUBLISH)
    half.send(wire.ack_packet(wire.PUBREC, message.packet_id, version=5))
    half.expect(wire.PUBREL)
    publisher.publish("data/open/1", payload(3000, 10), qos=0)
    half.ping()
    publisher.ping()
    two.ping()  # "two", "open" and the publisher are connected when the broker dies
    return [two, half, publisher]


def drain(client, count):
    """Messages per QoS in their order, and releases; `count` of all, None: until nothing comes any more."""
    found, total = collections.defaultdict(list), 0
    if count is None:
        client.socket.settimeout(QUIET_S)
    try:
        while count is None or total < count:
            packet = client.expect(wire.PUBLISH, wire.PUBREL)
            total += 1
            if packet.kind == wire.PUBREL:
                client.send(wire.ack_packet(wire.PUBCOMP, packet.packet_id, version=client.version))
                total -= packet.packet_id in found["ours"]
                found["ours" if packet.packet_id in found["ours"] else "released"].append(packet.packet_id)
                continue
            if packet.qos == 2:
                found["ours"].append(packet.packet_id)
                client.send(wire.ack_packet(wire.PUBREC, packet.packet_id, version=client.version))
            elif packet.qos == 1:
                client.send(wire.ack_packet(wire.PUBACK, packet.packet_id, version=client.version))
            found[f"qos {packet.qos}"].append(f"{packet.topic} {packet.payload[:8].decode()} {len(packet.payload)} {zlib.crc32(packet.payload):08x}")
        client.ping()
    except wire.WireError as problem:
        if "nothing came" not in str(problem):
            raise
    extra = [packet for packet in client.waiting if packet.kind == wire.PUBLISH]
    found.pop("ours", None)
    if extra:
        found["more than that"] = [f"{packet.topic} {packet.payload[:8].decode()}" for packet in extra]
    return dict(found)


def observe_session(port, name, version, expected):
    client = wire.Client(port, version)
    ack = client.connect(name, clean=False, properties=[(wire.SESSION_EXPIRY, 3600)] if version == 5 else ())
    found = {"present": bool(ack.session_present), "items": drain(client, count_of(expected, name))}
    client.close()
    return found


def observe_kept(port, expected):
    looker = connect(port, "looker", 5, clean=True)
    looker.subscribe(("kept/#", 1), ("soon/#", 1))
    items = drain(looker, count_of(expected, "kept"))
    looker.close()
    return {"items": {key: sorted(values) for key, values in items.items()}}


def count_of(expected, name):
    return sum(len(items) for items in expected[name]["items"].values()) if expected else None


def observe(broker, expected=None):
    """What clients get from a broker that serves: {session or "kept": what}. With `expected` it waits for so many only."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        under_way = {name: pool.submit(observe_session, broker.port, name, version, expected) for name, version in SESSIONS}
        under_way["kept"] = pool.submit(observe_kept, broker.port, expected)
        return {name: future.result() for name, future in under_way.items()}


def difference(content, expected):
    """The first, in words."""
    for name, wanted in expected.items():
        found = content[name]
        if found.get("present") != wanted.get("present"):
            return f"{name}: session present {found.get('present')}, was to be {wanted.get('present')}"
        for key in sorted(wanted["items"].keys() | found["items"].keys()):
            one, other = wanted["items"].get(key, []), found["items"].get(key, [])
            if one != other:
                missing, more = [item for item in one if item not in other], [item for item in other if item not in one]
                return f"{name}, {key}: {len(other)} of {len(one)}; missing {missing[:3]}, too many {more[:3]}, or in another order"
    return None


# ---- directories, kills ----

def copy_tree(source, target):
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)


class Steps:
    def __init__(self, options, directory):
        self.options, self.directory, self.rng = options, directory, random.Random(options.seed)
        self.kills, self.point_kills, self.point_misses, self.trail = collections.Counter(), collections.Counter(), collections.Counter(), []
        self.ends, self.started_s = collections.Counter(), time.monotonic()
        self.work = directory / "work"
        self.work.mkdir()
        self.journal = directory / "journal"
        self.broker = self.broker_in(self.work)
        self.base = directory / "base"
        self.expected = self.make_base()

    def say(self, text):
        self.trail.append(f"[{time.monotonic() - self.started_s:8.3f} s] {text}")

    def is_over(self):
        return self.options.seconds and time.monotonic() - self.started_s > self.options.seconds

    @staticmethod
    def broker_in(directory):
        return Broker(directory, f"{CONF}checkpoint_interval 20ms\ncheckpoint_window 1MiB\n", shards=2)

    def make_base(self):
        """A broker that was killed with a checkpoint of long ago and a database to compact. Returns what it has."""
        first = self.broker_in(self.directory / "first")
        try:
            first.start()
            fill_hoard(first)
            fill_first(first)
            first.stop()
            first.conf = f"{CONF}checkpoint_interval 60s\ncheckpoint_window 64MiB\ncheckpoint_compact 0\n"
            first.start()
            clients = fill_second(first, 80, 90000)
        finally:
            if first.is_alive():
                first.kill()
        for client in clients:
            client.close()
        first.data.rename(self.base)
        time.sleep(1.1)  # what was to expire has
        return self.look(self.base)

    def look(self, data, expected=None):
        """Start a broker on a copy, and see what it has."""
        looker = self.broker_in(self.directory / "looker")
        copy_tree(data, looker.data)
        looker.forget_ports()
        try:
            looker.start()
            seen = observe(looker, expected)
            looker.check_books()
            return seen
        finally:
            if looker.is_alive():
                looker.kill()

    def judge(self, data, what, expected=None):
        expected = expected or self.expected
        try:
            problem = difference(self.look(data, expected), expected)
        except (AssertionError, OSError) as refusal:
            problem = f"it cannot be looked at: {refusal}"
        if problem:
            raise Finding(f"{what}: {problem}")

    def recorded(self, root, **more):
        self.journal.unlink(missing_ok=True)
        return dict({"LD_PRELOAD": str(RECORDER), "RECORD_ROOT": str(root), "RECORD_JOURNAL": str(self.journal)}, **more)

    def command(self, *arguments, env=None):
        """One of the broker's commands with the configuration of self.broker: (status, output)."""
        self.broker.conf_path.write_text(self.broker.config_text())
        status, out, err = programs.run("tidegate-broker", *arguments, env=env)
        return status, out + err

    def operations(self):
        return sum(entry.kind != END for entry in read_journal(self.journal))

    def places(self, count):
        """Where to kill: all, or so many of them."""
        every = list(range(1, count + 1))
        return every if count <= self.options.kills else sorted(self.rng.sample(every, self.options.kills))

    def killed(self, root, run, how):
        """run(env), which is to be killed; then the power goes, or not. Returns whether it was killed."""
        is_power = self.rng.random() < 0.5
        before = Snapshot.of(root) if is_power else None
        status = run(self.recorded(root, **how))
        if status == -9 and is_power:
            image = CrashImage(before, self.journal, self.rng)
            shutil.rmtree(root)
            root.mkdir()
            image.write(root)
            self.say(f"power lost: {image.summary()}")
        return status == -9

    # -- the start --

    def run_start(self, env):
        """Until it is killed or serves; then it is killed all the same, and that is no kill of ours."""
        self.broker.env = env
        self.broker.forget_ports()
        self.broker.spawn()
        try:
            wait_until(lambda: self.broker.process.poll() is not None or self.broker.read_ports(), "the broker serves or is killed", 120)
            status = self.broker.process.poll() or 0
        finally:
            self.broker.process.kill()
            self.broker.process.wait()
            self.broker.process = None
        if status not in (0, -9):
            raise Finding(f"the broker does not start, {status}:\n{self.broker.stderr()[-2000:]}")
        self.broker.check_clean()
        return status

    def try_start(self, how):
        """A chain of up to three starts, each killed. Returns whether the first was."""
        copy_tree(self.base, self.broker.data)
        was_killed = self.killed(self.broker.data, self.run_start, how)
        if not was_killed:
            return False
        self.kills["start"] += 1
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            again = {"RECORD_KILL_AT": str(self.rng.randrange(1, self.start_operations + 1))}
            self.say(f"once more: {again}")
            self.kills["start"] += self.killed(self.broker.data, self.run_start, again)
        self.judge(self.broker.data, f"a start that was killed at {how}")
        return True

    def start(self):
        for place in self.places(self.start_operations):
            self.say(f"start: operation {place} of {self.start_operations}")
            self.try_start({"RECORD_KILL_AT": str(place)})
            if self.is_over():
                return

    def count_start(self):
        copy_tree(self.base, self.broker.data)
        self.run_start(self.recorded(self.broker.data))
        self.start_operations = self.operations()

    # -- backup --

    def backup(self):
        root = self.work / "both"
        made = root / "backup"

        def set_up():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            copy_tree(self.base, root / "data")

        def run(env):
            return self.command("backup", "-c", self.broker.conf_path, made, env=env)[0]

        self.broker.data = root / "data"
        try:
            set_up()
            if run(self.recorded(root)) != 0:
                raise Finding("a backup of a broker that was killed fails")
            count = self.operations()
            for place in self.places(count):
                self.say(f"backup: operation {place} of {count}")
                set_up()
                self.kills["backup"] += self.killed(root, run, {"RECORD_KILL_AT": str(place)})
                self.judge_backup(made, place)
                if self.rng.random() < 0.2:
                    self.judge(root / "data", f"the broker whose backup was killed at operation {place}")
                if self.is_over():
                    return
        finally:
            self.broker.data = self.work / "data"
            shutil.rmtree(root, ignore_errors=True)

    def judge_backup(self, made, place):
        target = self.broker_in(self.work / "target")
        shutil.rmtree(target.data, ignore_errors=True)
        target.conf_path.write_text(target.config_text())
        status, out, err = programs.run("tidegate-broker", "restore", "-c", target.conf_path, made)
        self.ends["backup refused" if status else "backup whole"] += 1
        if status not in (0, 1) or (status == 1 and not err):
            raise Finding(f"restore of a backup that was killed at operation {place}: status {status}, {out}{err}")
        if status == 0:
            self.judge(target.data, f"a backup that was killed at operation {place} and counts as one")

    def running(self):
        """A backup of a broker that serves: the same, and what was acknowledged before the backup began is in it. Nobody takes the power here:
        what the broker writes is not recorded."""
        made, target = self.work / "backup", self.broker_in(self.work / "target")
        copy_tree(self.base, self.broker.data)
        self.broker.env = None
        self.broker.forget_ports()
        acked, is_over, is_done = [], threading.Event(), threading.Event()
        target.conf_path.write_text(target.config_text())

        def publish():
            client = connect(self.broker.port, "publisher", 4, clean=True)
            while not is_over.is_set():
                client.publish("data/one/0", b"more %d " % len(acked) + bytes(3000), qos=1)
                acked.append(len(acked))
                time.sleep(0.003)
            client.disconnect()
            is_done.set()

        def back_up(place):
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(target.data, ignore_errors=True)
            count = len(acked)
            status, said = self.command("backup", "-c", self.broker.conf_path, made, env=self.recorded(self.work, RECORD_KILL_AT=str(place)))
            restored, out, err = programs.run("tidegate-broker", "restore", "-c", target.conf_path, made)
            self.ends["backup refused" if restored else "backup whole"] += 1
            if status not in (0, -9) or restored not in (0, 1) or (status == 0 and restored):
                raise Finding(f"backup of a running broker, killed at operation {place}: status {status}, {said}; restore: {restored}, {out}{err}")
            if restored == 0:
                self.judge_more(target, count, f"a backup of a running broker, killed at operation {place}")
            return status == -9

        try:
            self.broker.start()
            publisher = threading.Thread(target=publish, daemon=True)
            publisher.start()
            back_up(0)
            count = self.operations()
            for place in [*self.places(count - 5), *range(count - 4, count + 1)]:
                self.say(f"backup of a running broker: operation {place} of {count}")
                self.kills["backup"] += back_up(place)
                if self.is_over():
                    break
            back_up(0)
            left = list((self.broker.data / "log").glob("cursor.backup-*"))
            if left:
                raise Finding(f"cursors of backups that were killed are left: {left}")
            is_over.set()
            publisher.join()
            if not is_done.is_set():
                raise Finding(f"publishing beside backups ended after {len(acked)} messages")
        finally:
            is_over.set()
            if self.broker.is_alive():
                self.broker.kill()

    def judge_more(self, target, count, what):
        target.forget_ports()
        try:
            target.start()
            client = connect(target.port, "one", 4)
            found = set()
            while len(found) < count:
                message = client.take()
                if message.payload.startswith(b"more"):
                    found.add(int(message.payload.split()[1]))
            client.close()
            if not found >= set(range(count)):
                raise Finding(f"{what}: of {count} acknowledged before, {sorted(set(range(count)) - found)[:5]} are missing")
            target.check_books()
        except (AssertionError, OSError) as problem:
            raise Finding(f"{what}: {problem}") from problem
        finally:
            if target.is_alive():
                target.kill()

    # -- restore --

    def restore(self):
        made = self.directory / "backup"
        copy_tree(self.base, self.broker.data)
        status, said = self.command("backup", "-c", self.broker.conf_path, made)
        if status:
            raise Finding(f"a backup of a broker that was killed fails: {said}")
        data = self.broker.data

        def set_up():
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir()

        def run(env):
            return self.command("restore", "-c", self.broker.conf_path, made, env=env)[0]

        set_up()
        if run(self.recorded(data)) != 0:
            raise Finding("a backup is not restored")
        count = self.operations()
        self.judge(data, "a backup that was restored undisturbed")
        for place in self.places(count):
            self.say(f"restore: operation {place} of {count}")
            set_up()
            self.kills["restore"] += self.killed(data, run, {"RECORD_KILL_AT": str(place)})
            self.judge_restore(place)
            if self.is_over():
                return

    def judge_restore(self, place):
        """A directory in which there is nothing yet is that of a new broker, and nobody can take it for a restored one."""
        names = sorted(str(path.relative_to(self.broker.data)) for path in self.broker.data.rglob("*"))
        if all(name in ("broker.lock", ".writable") for name in names):
            self.ends["restore not begun"] += 1
            return
        self.broker.env = None
        self.broker.forget_ports()
        self.broker.spawn()
        try:
            wait_until(lambda: self.broker.process.poll() is not None or self.broker.read_ports(), "the broker serves or refuses", 120)
            status = self.broker.process.poll()
            if status is None:
                problem = difference(observe(self.broker, self.expected), self.expected)
            else:
                problem = None if status == 1 and "restore" in self.broker.stderr() else f"status {status}: {self.broker.stderr()[-1000:]}"
        finally:
            if self.broker.process.poll() is None:
                self.broker.process.kill()
            self.broker.process.wait()
            self.broker.process = None
        self.ends["restore refused" if status else "restore whole"] += 1
        if problem:
            raise Finding(f"a restore that was killed at operation {place} left {names[:12]}: {problem}")

    # -- repair --

    def damages(self):
        """Ways to spoil a directory, by name."""
        return {"hole": (self.hole,), "hole, state": (self.hole, self.spoil_slots("log/state")),
                "hole, identity": (self.hole, self.spoil_slots("log/identity")), "hole, format": (self.hole, self.spoil_format),
                "checkpoint": (self.spoil_checkpoint,), "hole, checkpoint": (self.hole, self.spoil_checkpoint)}

    @staticmethod
    def hole(data):
        """In the middle of what the checkpoint does not have: the newest segments but two."""
        started = [path for path in sorted((data / "log").glob("*.seg")) if path.stem[0] in "0123456789abcdef" and any(path.read_bytes()[4096:8192])]
        path = started[-3]
        content = bytearray(path.read_bytes())
        at = content.find(b"TGBK", len(content) // 2)
        content[at:at + 4096] = bytes(4096)
        path.write_bytes(content)

    @staticmethod
    def spoil_slots(name):
        def spoil(data):
            content = bytearray((data / name).read_bytes())
            for at in (30, SLOT_STRIDE + 30):
                content[at:at + 8] = bytes(byte ^ 0xFF for byte in content[at:at + 8])
            (data / name).write_bytes(content)

        return spoil

    @staticmethod
    def spoil_format(data):
        (data / "format").write_text("tidegate-b")

    @staticmethod
    def spoil_checkpoint(data):
        """A retained value's body, wherever a copy of its page lies."""
        path = data / "checkpoint" / "data.mdb"
        path.write_bytes(path.read_bytes().replace(payload(17, 680)[:60], payload(17, 680)[:30] + b"?" * 30))

    def run_repair(self, env):
        status, said = self.command("repair", "-c", self.broker.conf_path, "--yes", env=env)
        if status not in (0, -9):
            raise Finding(f"repair ends with {status}: {said}")
        return status

    def damaged(self, name):
        """(directory, what it has after an undisturbed repair, operations of that); made once."""
        source = self.directory / ("damaged " + name)
        if name not in self.repaired:
            copy_tree(self.base, source)
            for spoil in self.damages()[name]:
                spoil(source)
            copy_tree(source, self.broker.data)
            self.run_repair(self.recorded(self.broker.data))
            self.repaired[name] = (self.look(self.broker.data), self.operations())
        return source, *self.repaired[name]

    def try_repair(self, name, how):
        source, expected, count = self.damaged(name)
        self.say(f"repair of {name}: {how} of {count}")
        copy_tree(source, self.broker.data)
        if not self.killed(self.broker.data, self.run_repair, how):
            return False
        self.kills["repair"] += 1
        for _ in range(self.rng.choice((0, 0, 1))):
            self.kills["repair"] += self.killed(self.broker.data, self.run_repair, {"RECORD_KILL_AT": str(self.rng.randrange(1, count + 1))})
        if self.run_repair({}) != 0:
            raise Finding(f"repair of {name}, killed at {how}: the next does not come to its end")
        status, said = self.command("repair", "-c", self.broker.conf_path)
        if status:
            raise Finding(f"repair of {name}, killed at {how}, and again to its end; still found: {said}")
        self.judge(self.broker.data, f"repair of {name}, killed at {how}, and again to its end", expected)
        return True

    def repair(self):
        names = sorted(self.damages())
        for index in range(self.options.kills):
            name = names[index % len(names)]
            count = self.damaged(name)[2]
            self.try_repair(name, {"RECORD_KILL_AT": str(self.rng.randrange(1, count + 1))})
            if self.is_over():
                return

    # -- points --

    def points(self):
        if programs.MODE != "crash":
            return
        for point, way in sorted(POINTS.items()):
            while self.point_kills[point] < self.options.points and self.point_misses[point] < 2 * self.options.points + 10:
                if self.is_over():
                    return
                passing = self.rng.choice((1, 1, 2, 3, 5)) if self.point_misses[point] <= self.options.points else 1  # some are passed once
                how = {"CRASH_POINT_AT": f"{point}:{passing}"}
                self.say(f"{way}: {how}")
                if way == "start":
                    was_killed = self.try_start(how)
                else:
                    was_killed = self.try_repair(self.rng.choice([name for name in sorted(self.damages()) if "hole" in name]), how)
                (self.point_kills if was_killed else self.point_misses)[point] += 1

    def go(self):
        self.repaired = {}
        self.count_start()
        ways = [self.options.only] if self.options.only else ["restore", "start", "backup", "repair", "running", "points"]
        for way in ways:
            getattr(self, way)()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of each command")
    parser.add_argument("--points", type=int, default=0, help="kills at each crash point on the way")
    parser.add_argument("--seconds", type=float, default=0, help="kill no more after so many seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--only", choices=("start", "backup", "running", "restore", "repair", "points"))
    parser.add_argument("--result", help="write the counts there")
    return parser.parse_args()


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(2))  # so that no broker stays behind
    options = parse_arguments()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-steps-"))
    print(f"commands killed in the middle: {programs.BUILD.name} build, seed {options.seed}, directory {directory}", flush=True)
    steps, finding, started_s = None, None, time.monotonic()
    try:
        steps = Steps(options, directory)
        steps.go()
    except Finding as problem:
        finding = str(problem)
    except (AssertionError, OSError):
        finding = traceback.format_exc()
    return tell(steps, options, directory, finding, time.monotonic() - started_s)


def tell(steps, options, directory, finding, took_s):
    kills = steps.kills if steps else collections.Counter()
    total, counts = sum(kills.values()), dict(steps.point_kills) if steps else {}
    print(f"{took_s:.0f} s; kills: {', '.join(f'{count} {way}' for way, count in sorted(kills.items())) or 'none'}; "
          f"{', '.join(f'{count} {end}' for end, count in sorted(steps.ends.items())) if steps else ''}")
    unreached = [point for point in POINTS if options.points and not options.seconds and options.only in (None, "points")
                 and counts.get(point, 0) < options.points and not finding]
    if options.result:
        pathlib.Path(options.result).write_text(json.dumps({"kills": kills, "points": counts, "finding": finding}))
    if finding:
        print("what happened before:")
        print("\n".join(f"  {line}" for line in (steps.trail if steps else [])[-30:]))
    else:
        shutil.rmtree(directory)
    if unreached:
        print(f"not reached often enough: {', '.join(unreached)}")
    if finding:
        print(f"FOUND with seed {options.seed}: {finding[:3000]}")
        print(f"kept: {directory}")
    print(f"{total} passed, {bool(finding) + bool(unreached)} failed")
    return 1 if finding or unreached else 0


if __name__ == "__main__":
    sys.exit(main())
