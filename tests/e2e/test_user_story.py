"""What a user does: publish, subscribe, query; with kill -9 of both in the middle, damaged files, a full disk, a sink that comes later."""
import json
import random
import subprocess

import pytest

from harness import programs, wire
from harness.pair import SEGMENT_FILES, fill_disk, flip, now_ms, replay_result
from harness.programs import wait_until

DEMO = sorted((programs.ROOT / "tests" / "demo").glob("*.csv.gz"))


def test_publish_subscribe_query(new_pair):
    pair = new_pair()
    port = str(pair.broker.port)
    sub = subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", "-d", "-h", "127.0.0.1", "-p", port, "-t", "fleet/#", "-q", "1", "-F", "> %t %p", "-C", "1"],
                           stdout=subprocess.PIPE, text=True)
    with sub:
        for line in sub.stdout:
            if line.startswith("Subscribed"):
                break
        payload = json.dumps({"ts": now_ms(), "speed": 61.5, "soc": 87})
        subprocess.run(["mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", "fleet/car42/telemetry", "-q", "1", "-m", payload], check=True, timeout=60)
        seen = [line.rstrip("\n") for line in sub.stdout if line.startswith("> ")]
    assert seen == [f"> fleet/car42/telemetry {payload}"]

    def query(*more):
        status, out, err = pair.sink.command("query", "--device", "car42", "--metric", "speed", "--from", "-1h", *more)
        assert status == 0, err
        return out

    wait_until(lambda: "61.5" in query(), "the value is printed")
    assert query().splitlines()[-1] == "1 row"
    assert pair.sink.metrics().get("tidegate_sink_publish_to_queryable_seconds_count") == 1
    for program in (pair.sink, pair.broker):
        program.kill()
    pair.broker.start()
    pair.sink.start()
    wait_until(lambda: "61.5" in query(), "the value is there after kill -9 of both")
    assert query().splitlines()[-1] == "1 row"
    assert [line.split(",")[2] for line in query("--format", "csv").splitlines()] == ["speed", "61.5"]
    assert json.loads(query("--format", "json"))["rows"][0]["values"] == {"speed": 61.5}


@pytest.mark.parametrize("victims", ["broker", "sink", "both"])
def test_kill_9_in_the_middle_of_a_replay(new_pair, start_replay, victims):
    """The demo's real series; everything acknowledged is there exactly once, by HTTP and by the command line."""
    assert DEMO
    pair = new_pair()
    replay = start_replay(pair, DEMO, "--rate", "2500")
    total = sum(len(rows) for rows in pair.expected.values())
    for part in (0.15, 0.35, 0.5, 0.75):
        wait_until(lambda part=part: acknowledged(pair) >= part * total, f"{part:.0%} are on their way")
        chosen = {"broker": [pair.broker], "sink": [pair.sink], "both": [pair.broker, pair.sink]}[victims]
        for program in chosen:
            program.kill()
        for program in chosen:
            program.start()
    result = replay_result(replay)
    assert int(result["rows"]) == total
    assert int(result["points"]) == sum(len(values) for rows in pair.expected.values() for values in rows.values())
    if victims != "sink":
        assert int(result["reconnects"]) > 0
    pair.wait_complete()
    for device, rows in pair.expected.items():
        assert pair.csv_rows(device) == rows
    pair.sink.restart()
    pair.wait_complete()
    pair.stop()
    assert pair.verify()["rows"] >= total  # rows that were resent are stored once per segment until they are merged


def acknowledged(pair):
    """Rows in the sink, whichever run of the broker took them."""
    return sum(len(pair.rows(device)) for device in pair.expected)


def test_sink_that_comes_later_catches_up(new_pair):
    """Queries of before are answered while the sink reads; its position comes back to the broker."""
    pair = new_pair(start=False).start(sink=False)
    client = pair.publisher()
    start = now_ms() - 3600 * 1000
    pair.publish_rows(client, "late", [(start + number * 100, {"n": number, "x": number / 8}) for number in range(5000)])
    pair.sink.start()
    pair.wait_complete()
    pair.sink.stop()
    pair.publish_rows(client, "late", [(start + 10**6 + number * 100, {"n": number}) for number in range(2000)])
    pair.sink.start()
    pair.wait_complete()
    assert pair.sink.metrics().get("tidegate_sink_telemetry_records_total") < 7000  # it went on where it was, not from the beginning


def test_resent_rows_are_stored_once(new_pair):
    pair = new_pair()
    client = pair.publisher()
    start = now_ms() - 10**6
    rows = [(start + number, {"a": number}) for number in range(300)]
    for _ in range(3):
        pair.publish_rows(client, "again", rows)
        pair.sink.restart()
    pair.publish_rows(client, "again", [(start, {"a": -1})])  # the last one wins
    wait_until(lambda: pair.rows("again")[start] == {"a": -1}, "the newer value is seen")
    pair.wait_complete()


def test_what_is_no_telemetry_is_kept_aside(new_pair):
    """Payloads that cannot be stored are counted with their reason and stop nothing."""
    pair = new_pair()
    client = pair.publisher()
    for payload in (b"", b"not json", b"[1,", b'{"ts":1e400}', b'"text"', b"\xff\xfe", b'{"ts":%d,"a":1}' % (now_ms() + 10**9), b"[" * 5000):
        client.publish("fleet/odd/telemetry", payload, qos=1)
    pair.publish_rows(client, "odd", [(now_ms(), {"fine": 1})])
    pair.wait_complete()
    metrics = pair.sink.metrics()
    assert metrics.get("tidegate_sink_quarantined_total") >= 6
    assert pair.sink.health()[0] == 200


def big_rows(start, count, size=4000):
    """Rows that cost the log much and the sink little: a random text that is no metric."""
    random_text = random.Random(start)
    return [(start + number, {"n": float(number), "pad": f"{random_text.getrandbits(size * 4):0{size}x}"}) for number in range(count)]


def without_pad(pair, device):
    pair.expected[device] = {ms: {"n": values["n"]} for ms, values in pair.expected[device].items()}


def test_log_segments_are_reused_behind_the_sink(new_pair):
    """Four times as much as the log may hold, with a sink that keeps up."""
    pair = new_pair("log_max_size 16MiB\nlog_segment_size 1MiB\n")
    client = pair.publisher()
    pair.publish_rows(client, "big", big_rows(now_ms() - 10**6, 16000))
    without_pad(pair, "big")
    pair.wait_complete()
    metrics = pair.broker.metrics()
    assert metrics.get("tidegate_log_written_bytes_total") > 24 << 20
    assert metrics.get("tidegate_log_segments_recycled_total") > 0
    on_disk = sum(path.stat().st_size for path in (pair.broker.data / "log").glob("*.seg"))
    assert on_disk <= 18 << 20


def send_until_held(client, packets, pause):
    """Send one by one until no answer comes although the server is asked again and again; the number acknowledged."""
    acknowledged_count = 0
    client.socket.settimeout(pause)
    try:
        for packet in packets:
            client.send(packet)
            client.expect(wire.PUBACK)
            acknowledged_count += 1
    except wire.WireError as error:
        assert "nothing came" in str(error), error
        return acknowledged_count
    except TimeoutError:
        return acknowledged_count
    finally:
        client.socket.settimeout(wire.PATIENCE_S)
    raise AssertionError(f"all {acknowledged_count} were acknowledged")


def test_full_log_holds_publishers_until_the_sink_reads(new_pair):
    """Without a sink the log fills to its bound: publishers of telemetry wait, others do not; nothing acknowledged is lost."""
    pair = new_pair("log_max_size 16MiB\nlog_segment_size 1MiB\n", start=False).start(sink=False)
    client = pair.publisher()
    rows = big_rows(now_ms() - 10**6, 40, 400000)
    packets = [wire.publish_packet("fleet/big/telemetry", json.dumps({"ts": ms, **values}), 1, 1, version=4) for ms, values in rows * 2]
    count = send_until_held(client, packets, 3)
    assert 5 < count
    status, health = pair.broker.health()
    assert status == 503 and "log_full" in [problem["check"] for problem in health["problems"]], health
    other = pair.publisher("other", 5)
    other.subscribe(("plain", 1))
    other.publish("plain", b"goes on", qos=1)
    assert other.take().payload == b"goes on"
    other.ping()
    pair.sink.start()
    assert client.expect(wire.PUBACK).packet_id == 1  # the held one
    pair.broker.wait_metric(lambda metrics: metrics.get("tidegate_log_has_room") == 1, "there is room")
    pair.expected["big"] = {ms: {"n": values["n"]} for ms, values in (rows * 2)[:count + 1]}
    pair.wait_complete()
    wait_until(lambda: pair.broker.health()[0] == 200, "the broker is well again")


def test_disk_full_under_the_broker(new_pair, tmpfs):
    """The disk fills before the log's own bound: publishers are held, nothing acknowledged is lost, and it goes on when there is space."""
    pair = new_pair("log_max_size 256MiB\nlog_segment_size 1MiB\nlog_free_disk_floor 2MiB\n", start=False)
    tmpfs(pair.broker.data, "24m")
    ballast = pair.broker.data / "ballast"
    ballast.write_bytes(bytes(12 << 20))
    pair.start(sink=False)
    client = pair.publisher()
    rows = big_rows(now_ms() - 10**6, 60, 400000)
    packets = [wire.publish_packet("fleet/big/telemetry", json.dumps({"ts": ms, **values}), 1, 1, version=4) for ms, values in rows]
    count = send_until_held(client, packets, 3)
    status, health = pair.broker.health()
    assert status == 503 and {problem["check"] for problem in health["problems"]} & {"log_full", "disk"}, health
    ballast.unlink()
    assert client.expect(wire.PUBACK).packet_id == 1
    client.send(packets[count + 1])
    assert client.expect(wire.PUBACK).packet_id == 1
    pair.expected["big"] = {ms: {"n": values["n"]} for ms, values in rows[:count + 2]}
    pair.broker.kill()
    pair.broker.start()
    pair.sink.start()
    pair.wait_complete()


def test_disk_filled_by_another_behind_the_brokers_back(new_pair, tmpfs):
    """No floor, and not a byte left while it writes; kill -9 in that state too."""
    pair = new_pair("log_max_size 256MiB\nlog_segment_size 1MiB\nlog_free_disk_floor 0\n", start=False)
    tmpfs(pair.broker.data, "24m")
    ballast = pair.broker.data / "ballast"
    pair.start(sink=False)
    client = pair.publisher()
    start = now_ms() - 10**6
    pair.publish_rows(client, "car", [(start + number, {"a": float(number)}) for number in range(500)])
    fill_disk(ballast)
    rows = big_rows(start, 40, 400000)
    packets = [wire.publish_packet("fleet/big/telemetry", json.dumps({"ts": ms, **values}), 1, 1, version=4) for ms, values in rows]
    count = send_until_held(client, packets, 3)
    assert pair.broker.is_alive()
    pair.broker.kill()
    ballast.unlink()
    pair.broker.start()
    client = pair.publisher()
    pair.publish_rows(client, "car", [(start + number, {"a": float(number)}) for number in range(500, 600)])
    pair.sink.start()
    wait_until(lambda: len(pair.rows("car")) == 600, "the small rows are there")
    wait_until(lambda: len(pair.rows("big")) >= count, "the large rows are there")
    assert pair.rows("car") == pair.expected["car"]
    assert set(list(dict(rows))[:count]) <= set(pair.rows("big"))


def test_disk_full_under_the_sink(new_pair, tmpfs):
    """Flushes fail; queries go on; when there is space everything is stored, and a restart keeps it."""
    pair = new_pair(start=False)
    tmpfs(pair.sink.data, "4m")
    pair.start()
    client = pair.publisher()
    start = now_ms() - 10**6
    pair.publish_rows(client, "car", [(start + number, {"a": float(number)}) for number in range(500)])
    wait_until(lambda: len(pair.rows("car")) == 500, "the first rows")
    ballast = pair.sink.data / "ballast"
    fill_disk(ballast)
    pair.publish_rows(client, "car", [(start + number, {"a": number / 3}) for number in range(500, 1500)])
    pair.sink.wait_metric(lambda metrics: metrics.get("tidegate_sink_commit_failures_total") > 0, "a flush fails")
    assert len(pair.rows("car")) >= 500 and pair.sink.is_alive()
    ballast.unlink()
    pair.wait_complete()
    flushes = pair.sink.metrics().get("tidegate_sink_flushes_total")
    pair.publish_rows(client, "car", [(start + number, {"a": number / 3}) for number in range(1500, 1600)])
    pair.sink.wait_metric(lambda metrics: metrics.get("tidegate_sink_flushes_total") > flushes, "flushes succeed again")
    pair.sink.kill()
    pair.sink.start()
    pair.wait_complete()


# ---- damaged files ----


def stored_pair(new_pair):
    """Two devices in different partitions, all in segments, both programs stopped. Returns the pair and the segment files."""
    pair = new_pair("", "compaction false\nflush_interval 100ms\n")
    client = pair.publisher()
    start = now_ms() - 10**7
    for device in [f"d{number}" for number in range(16)]:
        pair.publish_rows(client, device, [(start + number * 1000, {"a": number * 0.37, "b": float(number % 7)}) for number in range(500)])
    pair.wait_complete()
    client.close()
    pair.sink.stop()
    files = sorted(pair.sink.data.rglob(SEGMENT_FILES), key=lambda path: path.stat().st_size)
    assert len(files) >= 4
    return pair, files


@pytest.mark.parametrize("where", ["chunk", "index", "footer", "header", "cut", "gone"])
def test_damaged_segment(new_pair, where):
    """verify names file and offset; the sink starts, says so, and serves all the rest."""
    pair, files = stored_pair(new_pair)
    pair.verify()
    victim = files[-1]
    size = victim.stat().st_size
    if where == "cut":
        with open(victim, "r+b") as file:
            file.truncate(size // 2)
    elif where == "gone":
        victim.unlink()
    else:
        flip(victim, {"chunk": size // 3, "index": size - 100, "footer": size - 8, "header": 0}[where])
    status, out, err = pair.sink.command("verify")
    assert status != 0
    assert victim.name in out, out + err
    if where not in ("cut", "gone"):
        assert "offset" in out or "footer" in out or "header" in out, out
    pair.sink.start()
    complete, short = [], []
    for device, rows in pair.expected.items():
        found = pair.rows(device)
        assert all(rows.get(ms) == values for ms, values in found.items()), f"{device}: wrong values"
        (complete if len(found) == len(rows) else short).append(device)
    assert complete and short
    assert pair.sink.is_alive()
    text = pair.sink.stderr()
    metrics = pair.sink.metrics()
    assert victim.name in text, text
    assert metrics.get(f"tidegate_sink_corrupt_{'chunks' if where == 'chunk' else 'segments'}_total") >= 1
    status, health = pair.sink.health()
    assert status == 503 and health["status"] == "failed", health
    if where == "chunk":
        assert any(victim.name in problem["detail"] and "offset" in problem["detail"] for problem in health["problems"]), health
    client = pair.publisher("after")
    healthy = complete[0]
    pair.publish_rows(client, healthy, [(now_ms(), {"a": 1.0})])
    wait_until(lambda: pair.rows(healthy) == pair.expected[healthy], "new rows are stored")


@pytest.mark.parametrize("count", [1, 2], ids=["one", "both"])
def test_damaged_manifest(new_pair, count):
    """One slot: the other is used, nothing is missing. Both: that partition is left out, the others are served."""
    pair, files = stored_pair(new_pair)
    directory = files[-1].parent
    for number in range(count):
        flip(directory / f"manifest.{number}", 40)
    pair.sink.start()
    complete = [device for device, rows in pair.expected.items() if pair.rows(device) == rows]
    if count == 1:
        if len(complete) < len(pair.expected):  # the slot that is left may be older: the log has the rest
            pair.wait_complete()
    else:
        assert 0 < len(complete) < len(pair.expected)
        assert str(directory) in pair.sink.stderr()
        status, health = pair.sink.health()
        assert status == 503 or health["status"] != "ok", health
        assert pair.sink.metrics().get("tidegate_sink_partitions_failed") == 1


def unread_log(new_pair):
    """A broker that was stopped with records in its log that no sink has read, behind others that one has. Returns the pair and the file."""
    pair = new_pair()
    client = pair.publisher()
    start = now_ms() - 10**7
    pair.publish_rows(client, "car", [(start + number, {"a": float(number)}) for number in range(300)])
    pair.wait_complete()
    pair.sink.stop()
    for number in range(20):  # many writes, many blocks
        pair.publish_rows(client, "unread", [(start + number * 100 + index, {"b": float(index)}) for index in range(50)])
    client.close()
    newest = max((pair.broker.data / "log").glob("*.seg"), key=lambda path: len(path.read_bytes().rstrip(b"\0")))
    return pair, newest


def test_damaged_log_block_stops_the_start_with_file_and_offset(new_pair):
    """A hole in what is known to be durable is corruption, not a torn tail: no silent loss. What the sink has is served."""
    pair, segment = unread_log(new_pair)
    pair.broker.stop()
    used = len(segment.read_bytes().rstrip(b"\0"))
    flip(segment, used * 3 // 4)
    pair.broker.spawn()
    wait_until(lambda: pair.broker.process.poll() is not None, "the broker gives up")
    assert pair.broker.process.returncode not in (0, None)
    said = pair.broker.stderr()
    pair.broker.process = None
    assert segment.name in said and "offset" in said, said
    pair.sink.start()
    assert pair.rows("car") == pair.expected["car"]
    pair.sink.wait_metric(lambda metrics: pair.sink.health()[0] == 503, "the sink says that it cannot read on")
    text = pair.sink.stderr()
    assert segment.name in text and "offset" in text, text
    assert pair.rows("car") == pair.expected["car"]


def test_torn_tail_of_the_log_is_normal(new_pair):
    """Garbage behind the durable end, as a write that a crash cut off leaves: started, counted, nothing lost."""
    pair, segment = unread_log(new_pair)
    pair.broker.kill()
    data = segment.read_bytes()
    used = len(data.rstrip(b"\0"))
    used = (used + 4095) // 4096 * 4096
    if used + 4096 <= len(data):
        with open(segment, "r+b") as file:
            file.seek(used)
            file.write(random.Random(7).randbytes(2000))
    pair.broker.start()
    client = pair.publisher("after")
    pair.publish_rows(client, "after", [(now_ms(), {"a": 1.0})])
    pair.sink.start()
    pair.wait_complete()
