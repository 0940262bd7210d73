"""Random damage to what a broker left on disk: bytes flipped, blocks overwritten, pages swapped, files cut and removed. Whatever it is: it
starts and says what is damaged, or refuses with file and command and starts after the repair; it never ends without a word, never serves
what nobody sent, and without a word nothing is missing.

DAMAGE_CASES=n runs so many cases in place of the short form, DAMAGE_FIRST=n from that one on; DAMAGE_KEEP=DIR keeps damaged directories of
failed cases there (what is damaged depends on what the broker wrote, which is not the same each time)."""
import os
import random
import re
import shutil
import signal
import zlib

import pytest

from harness import faults, wire
from harness.programs import run, wait_until

SESSIONS, TOPICS = 6, 40


def sealed(text):
    """A payload that proves itself."""
    body = text.encode() + b" " + random.Random(text).randbytes(random.Random(text).choice((10, 300, 5000)))
    return b"%08x " % zlib.crc32(body) + body


def unsealed(payload):
    assert zlib.crc32(payload[9:]) == int(payload[:8], 16), f"garbage was served: {payload[:60]!r}"
    return payload[9:].split(b" ", 3)[0:3]


def dial(broker, client_id, clean):
    client = wire.Client(broker.port)
    client.connect(client_id, clean=clean, properties=() if clean else faults.KEPT)
    return client


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A data directory of a broker that was killed: old things in the checkpoint, new ones in the log; and what is in it."""
    directory = tmp_path_factory.mktemp("template")
    broker = faults.make_broker(directory, "log_segment_size 1MiB\nlog_max_size 16MiB\n").start()
    for number in range(SESSIONS):
        client = dial(broker, f"session {number}", False)
        client.subscribe((f"q/{number}", 1), (f"all/{number % 2}", 2), *[(f"extra/{number}/{i}", 1) for i in range(20)])
        client.disconnect()
    publisher = dial(broker, "publisher", True)
    count = 0

    def some(rounds):
        nonlocal count
        for _ in range(rounds):
            publisher.publish(f"q/{count % SESSIONS}", sealed(f"q {count % SESSIONS} {count}"), qos=1)
            publisher.publish(f"all/{count % 2}", sealed(f"all {count % 2} {count}"), qos=2)
            publisher.publish(f"r/{count % TOPICS}", sealed(f"r {count % TOPICS} {count}"), qos=1, retain=True)
            count += 1

    some(400)
    commits = broker.metrics().get("tidegate_checkpoint_commits_total")
    broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_commits_total") > commits + 1 or
                       metrics.get("tidegate_checkpoint_lag_bytes") == 0, "old things are in the checkpoint")
    broker.stop()
    broker.conf += "checkpoint_interval 10s\n"
    broker.start()
    publisher = dial(broker, "publisher", True)
    some(100)
    for _ in range(3):
        publisher.ping()
    wait_until(lambda: broker.metrics().get("tidegate_log_used_bytes") > 0 and not os.system("sleep 0.1"), "the state file is up to date")
    broker.kill()
    return broker, count


def expected(count):
    """(session -> numbers by topic, retained topic -> newest)."""
    queues = {number: {(b"q", i) for i in range(count) if i % SESSIONS == number} | {(b"all", i) for i in range(count) if i % 2 == number % 2}
              for number in range(SESSIONS)}
    retained = {}
    for i in range(count):
        retained[i % TOPICS] = i
    return queues, retained


def damage(rng, data):
    """Hurt one file; what was done, in words."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.stat().st_size > 0 and path.name not in ("lock", "lock.mdb", "broker.lock")]
    weights = [8 if path.name == "data.mdb" else 6 if path.suffix == ".seg" else 1 for path in files]
    path = rng.choices(files, weights)[0]
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    used = len(content.rstrip(b"\0")) or size
    kind = rng.choice(["flip", "flip", "flip", "flip", "block", "zero", "swap", "cut", "remove"])
    at = rng.randrange(used)
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = min(size - 1, at + rng.randrange(64))
            content[place] ^= 1 << rng.randrange(8)
    elif kind in ("block", "zero"):
        length = rng.choice((16, 512, 4096))
        at = at // length * length
        content[at:at + length] = rng.randbytes(length) if kind == "block" else bytes(length)
        del content[size:]
    elif kind == "swap" and size >= 3 * 4096:
        first, second = (rng.randrange(used // 4096 + 1) % (size // 4096) * 4096 for _ in range(2))
        content[first:first + 4096], content[second:second + 4096] = content[second:second + 4096], content[first:first + 4096]
    elif kind == "cut":
        del content[at:]
    else:
        kind = "remove"
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{kind} at {at:#x} of {path.relative_to(data)} ({size} bytes)"


def take(client):
    """The next message, acknowledged. Releases are answered as they come: of one whose message is damaged nothing else does."""
    while True:
        packet = client.expect(wire.PUBLISH, wire.PUBREL)
        if packet.kind == wire.PUBREL:
            client.send(wire.ack_packet(wire.PUBCOMP, packet.packet_id, version=client.version))
            continue
        if packet.qos:
            client.send(wire.ack_packet(wire.PUBACK if packet.qos == 1 else wire.PUBREC, packet.packet_id, version=client.version))
        return packet


def served(broker, count):
    """What clients get, as far as it is what was sent: (missing messages, missing retained values)."""
    queues, retained = expected(count)
    publisher = dial(broker, "marker", True)
    lost = 0
    for number in range(SESSIONS):
        client = dial(broker, f"session {number}", False)
        client.subscribe((f"marker/{number}", 1))
        publisher.publish(f"marker/{number}", b"marker", qos=1)
        came = set()
        while True:
            message = take(client)
            if message.payload == b"marker":
                break
            kind, _, text = unsealed(message.payload)
            entry = (kind, int(text))
            assert entry in queues[number], f"session {number} got what it did not subscribe to: {message}"
            assert entry not in came, f"session {number} got it twice: {message}"
            came.add(entry)
        lost += len(queues[number] - came)
        client.disconnect()
    publisher.subscribe("r/#", granted=[0])
    found = {}
    publisher.socket.settimeout(1)  # nothing marks the end of what is retained
    while len(found) < TOPICS:
        try:
            message = take(publisher)
        except wire.WireError:
            break
        kind, topic, text = unsealed(message.payload)
        assert kind == b"r" and message.topic == f"r/{int(topic)}", message
        found[int(topic)] = int(text)
    newer = {topic for topic, number in found.items() if number > retained[topic]}
    assert not newer
    return lost, sum(1 for topic, number in retained.items() if found.get(topic) != number)


def end(broker, may_fail):
    """SIGTERM. Its last commit may meet a damage that nothing had read before."""
    if not may_fail:
        broker.stop()
        return
    broker.process.send_signal(signal.SIGTERM)
    status = broker.wait_end()
    broker.process = None
    broker.check_clean()
    assert status == 0 or (status == 1 and "tidegate-broker repair" in broker.stderr()), f"ended with {status}"


def try_case(seed, template, directory):
    made, count = template
    shutil.copytree(made.data, directory / "data")
    rng = random.Random(seed)
    broker = faults.make_broker(directory, "log_segment_size 1MiB\nlog_max_size 16MiB\n", shards=rng.choice((1, 3)))
    (broker.data / "listeners").unlink(missing_ok=True)
    what = damage(rng, broker.data)
    if "DAMAGE_KEEP" in os.environ:
        shutil.copytree(broker.data, f"{os.environ['DAMAGE_KEEP']}/{seed}")
    outcome = "served"
    try:
        broker.spawn()
        wait_until(lambda: broker.process.poll() is not None or broker.read_ports(), "it serves or ends", 60)
        said = broker.stderr()
        lost = None
        if broker.is_alive():
            try:
                lost = served(broker, count)
            except (wire.WireError, OSError):
                if broker.process.wait(20) != 1:
                    raise
        if broker.is_alive():
            said, metrics = broker.stderr(), broker.metrics()
            told = "damaged" in re.sub(r"damaged_values=0", "", said) or metrics.get("tidegate_checkpoint_damaged_values_total") > 0
            assert not any(lost) or told, f"without a word {lost} are missing"
            outcome = "told" if told else "served"
            end(broker, may_fail=told)
        if lost is None or outcome == "told":
            status = 1 if broker.process is None else broker.wait_end()
            broker.process = None
            said = broker.stderr()
            broker.check_clean()
            assert status == 1, f"ended with {status}:\n{said}"
            assert outcome == "told" or ("tidegate-broker repair" in said and str(broker.data) in said), said
            outcome = "told" if outcome == "told" else "refused"
            before = sorted((path, path.stat().st_size) for path in broker.data.rglob("*.seg"))
            status, out, err = run("tidegate-broker", "repair", "-c", broker.conf_path)
            assert status == 1 or outcome == "told", out + err
            assert before == sorted((path, path.stat().st_size) for path in broker.data.rglob("*.seg"))
            status, out, err = run("tidegate-broker", "repair", "-c", broker.conf_path, "--yes")
            assert status == 0, out + err
            status, again, err = run("tidegate-broker", "repair", "-c", broker.conf_path)
            assert status == 0, out + again + err
            if outcome == "refused":
                broker.start()
                lost = served(broker, count)
                broker.stop()
        if "DAMAGE_KEEP" in os.environ:
            shutil.rmtree(f"{os.environ['DAMAGE_KEEP']}/{seed}")
        return outcome, what, lost
    except AssertionError as problem:
        raise AssertionError(f"seed {seed}: {what}: {problem}\n{broker.stderr()[-3000:]}") from None
    finally:
        if broker.is_alive():
            broker.process.kill()
            broker.process.wait()
        shutil.rmtree(directory, ignore_errors=True)


FIRST = int(os.environ.get("DAMAGE_FIRST", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("DAMAGE_CASES", "12")))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_damage(template, tmp_path, seed):
    outcome, what, lost = try_case(seed, template, tmp_path / "broker")
    print(f"seed {seed}: {what}: {outcome}, missing {lost}")
