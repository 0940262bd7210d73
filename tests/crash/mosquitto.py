#!/usr/bin/python3
"""What is left of an offline queue after kill -9: Debian's mosquitto beside tidegate, the same test on each.

    tests/crash/mosquitto.py [--messages N] [--rounds N] [--seconds S]

A persistent subscriber (QoS 1, fleet/#) says goodbye; a publisher sends QoS 1 messages with up to 50 open, and is in the middle of them when
the broker is killed. The broker starts again on the same directory, the subscriber comes back (clean session 0), and takes what there is.
`acknowledged` had a PUBACK, `recovered` of these came, `lost` did not. msg/s: acknowledged ones up to the kill, on the way to a queue that
nobody reads; one connection, from Python, so the figure says what waiting for the disk costs and not what a broker can do.

mosquitto is tried as it comes (persistence true and no more: it saves every 30 minutes) and at its best: autosave_on_changes true with
autosave_interval 1, a save after each change. Its database is written from one thread at each save, all of it: the longer the queue, the
slower. Not installed: says so and ends well."""
import argparse
import pathlib
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from harness import programs, wire  # noqa: E402

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
WINDOW = 50
BODY = bytes(200)


class Mosquitto:
    """Like programs.Broker, as far as this test asks."""

    def __init__(self, directory, conf):
        self.directory, self.conf, self.process = directory, conf, None
        directory.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self):
        path = self.directory / "mosquitto.conf"
        path.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {self.directory}/\n"
                        f"max_queued_messages 0\nmax_queued_bytes 0\nuser root\n{self.conf}")
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        programs.wait_until(self.serves, "mosquitto serves")

    def serves(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


def publish(port, count, patience_s):
    """Up to `count` messages, or as many as go in that time. The acknowledged numbers and msg/s; open ones are left open."""
    client = wire.Client(port, 4)
    client.connect("publisher")
    acked, sent, started = set(), 0, time.monotonic()
    while len(acked) < count and time.monotonic() - started < patience_s:
        while sent < count + WINDOW and sent - len(acked) < WINDOW:
            sent += 1
            client.send(wire.publish_packet(f"fleet/car{sent % 10}/telemetry", b'{"n":%d,"pad":"' % sent + BODY.replace(b"\0", b"x") + b'"}', 1,
                                            sent % 65535 + 1, version=4))
        packet = client.expect(wire.PUBACK)
        # One publisher, answers in order: the numbers are those of the ids.
        acked.add(len(acked) + 1)
        assert packet.packet_id == len(acked) % 65535 + 1
    took = time.monotonic() - started
    return client, acked, len(acked) / took


def recovered(port):
    """The numbers that come, until nothing has come for a while; and whether the session was there."""
    client = wire.Client(port, 4)
    present = client.connect("backend", clean=False).session_present
    found = set()
    while select.select([client.socket], [], [], 0 if client.data else 3)[0] or client.data:
        try:
            message = client.take()
        except wire.WireError:
            break
        found.add(int(message.payload.split(b":")[1].split(b",")[0]))
    client.close()
    return found, present


def try_broker(make, directory, count, rounds, patience_s):
    """(acknowledged, recovered, sessions kept, msg/s of each round)"""
    total, kept, sessions, rates = 0, 0, 0, []
    for number in range(rounds):
        broker = make(directory / str(number))
        broker.start()
        backend = wire.Client(broker.port, 4)
        backend.connect("backend", clean=False)
        backend.subscribe(("fleet/#", 1))
        backend.disconnect()
        publisher, acked, rate = publish(broker.port, count, patience_s)
        broker.kill()
        publisher.close()
        broker.start()
        found, present = recovered(broker.port)
        broker.kill()
        total, kept, sessions = total + len(acked), kept + len(acked & found), sessions + bool(present)
        rates.append(rate)
    return total, kept, sessions, rates


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()

    def tidegate(directory):
        return programs.Broker(directory, "max_queued_messages 0\nmax_queued_bytes 0\ntelemetry fleet/{device}/telemetry\n", shards=1)

    brokers = [("tidegate, default", tidegate)]
    if pathlib.Path(MOSQUITTO).exists():
        version = subprocess.run([MOSQUITTO, "-h"], capture_output=True, text=True, check=False).stdout.splitlines()[0]
        brokers += [(f"{version}, persistence true", lambda directory: Mosquitto(directory, "")),
                    (f"{version}, at its best", lambda directory: Mosquitto(directory, "autosave_on_changes true\nautosave_interval 1\n"))]
    else:
        print(f"mosquitto is not installed ({MOSQUITTO}): tidegate alone")
    print(f"kill -9 with an offline queue: {options.rounds} rounds, up to {options.messages} messages of {len(BODY)} B each\n")
    print(f"{'broker':<44}{'acknowledged':>13}{'recovered':>11}{'lost':>8}{'sessions':>10}{'msg/s':>9}")
    for name, make in brokers:
        with tempfile.TemporaryDirectory(prefix="tidegate-compare-") as directory:
            total, kept, sessions, rates = try_broker(make, pathlib.Path(directory), options.messages, options.rounds, options.seconds)
        print(f"{name:<44}{total:>13}{kept:>11}{total - kept:>8}{sessions:>6} of {options.rounds}{sorted(rates)[len(rates) // 2]:>8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
