"""What a broker is judged by when its disk fails: a disk that fails on demand (failing_disk.c), load that goes on until the broker stops
acknowledging, and a small ledger: what was acknowledged is there after the next start."""
import errno
import pathlib
import subprocess
import threading

import pytest

from . import wire
from .durability import KEPT
from .programs import BUILD, MODE, Broker

FAST = "checkpoint_interval 50ms\ncheckpoint_max_size 4GiB\nmax_queued_messages 1000000\nmax_queued_bytes 1GiB\nmax_inflight_messages 1000\n"


def preload(library):
    """LD_PRELOAD for it: a sanitizer's own library must come first."""
    sanitizer = {"asan": "libasan.so", "tsan": "libtsan.so", "ubsan": "libubsan.so"}.get(MODE)
    found = [subprocess.run(["gcc", f"-print-file-name={sanitizer}"], capture_output=True, text=True, check=True).stdout.strip()] if sanitizer else []
    return " ".join(found + [str(library)])


class FailingDisk:
    """The broker's data directory on a disk that fails as told. To be made before the broker starts."""

    def __init__(self, broker):
        library = BUILD / "failing_disk.so"
        assert library.exists(), f"make MODE={MODE} {library}"
        self.rules = broker.directory / "disk.rules"
        self.mend()
        broker.env = {"LD_PRELOAD": preload(library), "FAILING_DISK_ROOT": str(broker.data), "FAILING_DISK_RULES": str(self.rules)}

    def fail(self, *rules):
        """rules: (operation, errno, part of the name) each; in place of what failed before."""
        new = self.rules.with_suffix(".new")
        new.write_text("".join(f"{operation} {number} {name}\n" for operation, number, name in rules))
        new.rename(self.rules)

    def fill(self):
        self.fail(("grow", errno.ENOSPC, "*"))

    def mend(self):
        self.fail()


class SmallDisk:
    """A file system of its own of so many bytes (tmpfs, or ext4 in a file), or a skip that says why there is none."""

    def __init__(self, path, mib, kind="tmpfs"):
        self.path, image = pathlib.Path(path), pathlib.Path(f"{path}.image")
        self.path.mkdir(parents=True)
        if kind == "ext4":
            with open(image, "wb") as file:
                file.truncate(mib << 20)
            self._do("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
            self._do("mount", "-o", "loop", str(image), str(self.path))
        else:
            self._do("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(self.path))

    @staticmethod
    def _do(*command):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not here")
        if done.returncode != 0:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")

    def remount(self, option):
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)

    def close(self):
        subprocess.run(["umount", "-l", str(self.path)], check=False)


class _Publisher(threading.Thread):
    """QoS 1 or 2, `window` at a time, until the broker does not acknowledge any more or enough was sent."""

    def __init__(self, load, number, qos, retain):
        super().__init__(daemon=True)
        self.load, self.number, self.qos, self.retain = load, number, qos, retain
        self.acknowledged, self.sent, self.end = [], 0, None
        self.client = wire.Client(load.broker.port, 5)
        self.client.connect(f"publisher {number}")
        self.client.socket.settimeout(load.patience_s)

    def run(self):
        try:
            while not self.load.is_stopped.is_set():
                self._round()
        except (wire.WireError, OSError) as problem:
            self.end = str(problem) or repr(problem)
        finally:
            self.client.close()

    def _round(self):
        first = self.sent
        packets = []
        for number in range(first, first + self.load.window):
            payload = b"%d %d " % (self.number, number) + self.load.body
            packets.append(wire.publish_packet(f"{self.load.topic}/{self.number}", payload, self.qos, number % 60000 + 1, retain=self.retain))
        self.sent = first + self.load.window
        self.client.send(*packets)
        for number in range(first, self.sent):
            ack = self.client.expect(wire.PUBACK if self.qos == 1 else wire.PUBREC)
            assert ack.packet_id == number % 60000 + 1, ack
            if ack.reason >= 0x80:
                raise wire.WireError(f"refused: {ack}")
            self.acknowledged.append(number)
        if self.qos == 2:
            self.client.send(*[wire.ack_packet(wire.PUBREL, number % 60000 + 1) for number in range(first, self.sent)])
            for _ in range(first, self.sent):
                self.client.expect(wire.PUBCOMP)


class Load:
    """Publishers of QoS 1, 2 and retained to a session that is away."""

    def __init__(self, broker, topic, body=b"x" * 200, window=8, patience_s=3.0):
        self.broker, self.topic, self.body, self.window, self.patience_s = broker, topic, body, window, patience_s
        self.is_stopped = threading.Event()
        absent = wire.Client(broker.port, 5)
        absent.connect(f"{topic} absent", clean=False, properties=KEPT)
        absent.subscribe((f"{topic}/+", 2))
        absent.disconnect()
        self.publishers = []
        self.resume()

    def resume(self):
        """Publishers that go on where a round before ended (their unfinished messages are not sent again)."""
        self.is_stopped.clear()
        first = len(self.publishers)
        new = [_Publisher(self, first, 1, False), _Publisher(self, first + 1, 2, False), _Publisher(self, first + 2, 1, True)]
        self.publishers += new
        for publisher in new:
            publisher.start()

    def count(self):
        return sum(len(publisher.acknowledged) for publisher in self.publishers)

    def join(self):
        """Until none is acknowledged any more; why each ended."""
        for publisher in self.publishers:
            publisher.join(120)
            assert not publisher.is_alive()
        return [publisher.end for publisher in self.publishers]

    def stop(self):
        self.is_stopped.set()
        return self.join()

    def check(self):
        """Connect the absent session: it gets all that was acknowledged, each publisher's in order, QoS 2 once, nothing that was not sent.
        The newest retained value is the newest acknowledged one or a later one. Returns how many came."""
        probe = wire.Client(self.broker.port, 5)
        probe.connect("ledger")
        probe.publish(f"{self.topic}/last", b"last", qos=1)
        absent = wire.Client(self.broker.port, 5)
        absent.connect(f"{self.topic} absent", clean=False, properties=KEPT)
        found = {publisher.number: [] for publisher in self.publishers}
        while True:
            message = absent.take()
            if message.payload == b"last":
                break
            number, payload = (int(part) for part in message.payload.split()[:2])
            assert message.payload.endswith(self.body) and message.topic == f"{self.topic}/{number}", message
            found[number].append(payload)
        absent.ping()
        absent.disconnect()
        for publisher in self.publishers:
            came = found[publisher.number]
            missing = set(publisher.acknowledged) - set(came)
            assert not missing, f"publisher {publisher.number}: acknowledged and lost: {sorted(missing)[:10]} of {len(publisher.acknowledged)}"
            assert came == sorted(set(came)), f"publisher {publisher.number}: out of order or twice"
            assert not came or came[-1] < publisher.sent
            if publisher.retain and publisher.acknowledged:
                probe.subscribe(f"{self.topic}/{publisher.number}")
                value = int(probe.take().payload.split()[1])
                assert publisher.acknowledged[-1] <= value < publisher.sent, (publisher.acknowledged[-1], value)
        probe.disconnect()
        return sum(len(came) for came in found.values())


def make_broker(directory, conf="", data=None, shards=2):
    broker = Broker(directory, FAST + conf, shards=shards)
    if data:
        broker.data = pathlib.Path(data)
    return broker
