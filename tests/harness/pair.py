"""The pair: a broker with a telemetry rule and a sink in direct mode beside it, and what is needed to hurt them."""
import csv
import gzip
import io
import json
import pathlib
import time
import urllib.parse

from . import wire
from .programs import Broker, Sink, stop_all, wait_until

RULE = "telemetry fleet/{device}/telemetry\n"
SEGMENT_FILES = "*-*-*.seg"


class Pair:
    """broker and sink, with the questions that the tests ask."""

    def __init__(self, directory, broker_conf="", sink_conf="", shards=2):
        self.directory = pathlib.Path(directory)
        self.broker = Broker(self.directory / "broker", RULE + broker_conf, shards=shards)
        self.sink = Sink(self.directory / "sink", self.broker.data, sink_conf)
        self.expected = {}  # device -> {time in ms: {metric: value}}, as acknowledged

    def start(self, sink=True):
        self.broker.start()
        # Whoever comes back after a restart comes back to the same port.
        self.broker.listener = self.broker.listener.replace("listener 0 ", f"listener {self.broker.port} ")
        if sink:
            self.sink.start()
        return self

    def stop(self):
        stop_all([self.sink, self.broker])

    def publisher(self, client_id="publisher", version=4):
        client = wire.Client(self.broker.port, version)
        client.connect(client_id)
        return client

    def publish_rows(self, client, device, rows):
        """rows: (time in ms, {metric: value}) each; QoS 1, a window of 100, until all are acknowledged. Remembers them."""
        store = self.expected.setdefault(device, {})
        topic = f"fleet/{device}/telemetry"
        for start in range(0, len(rows), 100):
            part = rows[start:start + 100]
            client.send(*[wire.publish_packet(topic, json.dumps({"ts": ms, **values}), 1, number + 1, version=client.version)
                          for number, (ms, values) in enumerate(part)])
            for ms, values in part:
                client.expect(wire.PUBACK)
                store[ms] = values

    # -- queries --

    def rows(self, device, **more):
        """{time in ms: {metric: value}} of everything stored, through HTTP; AssertionError when a time comes twice."""
        status, text = self.sink.get("/api/v1/query?" + urllib.parse.urlencode(dict({"device": device, "from": "1970-01-01T00:00:00Z", "format": "json", "limit": 1000000}, **more)))
        if status == 404:
            return {}
        assert status == 200, text
        answer = json.loads(text)
        assert not answer["truncated"]
        found = {}
        for row in answer["rows"]:
            ms = row["time_ns"] // 1000000
            assert ms not in found, f"{device}: {ms} comes twice"
            found[ms] = {metric: value for metric, value in row["values"].items() if value is not None}
        assert len(found) == answer["row_count"]
        return found

    def csv_rows(self, device):
        """The same through the command line, as CSV."""
        status, out, err = self.sink.command("query", "--device", device, "--from", "1970-01-01T00:00:00Z", "--limit", "1000000", "--format", "csv")
        assert status == 0, err
        found = {}
        for row in csv.DictReader(io.StringIO(out)):
            ms = int(row.pop("time_ns")) // 1000000
            row.pop("time")
            assert ms not in found, f"{device}: {ms} comes twice"
            found[ms] = {metric: float(value) for metric, value in row.items() if value != ""}
        return found

    def wait_complete(self, patience_s=60):
        """Until the sink has read all that is in the log; then everything that was acknowledged is there, once, with its values."""
        wait_until(lambda: all(len(self.rows(device)) >= len(rows) for device, rows in self.expected.items()), "all rows are stored", patience_s)
        for device, rows in self.expected.items():
            found = self.rows(device)
            assert found.keys() == rows.keys(), f"{device}: {len(found)} rows, {len(rows)} were acknowledged"
            assert found == rows, device

    def verify(self):
        """`tidegate-sink verify` finds nothing wrong; its last line as a mapping."""
        status, out, err = self.sink.command("verify")
        assert status == 0, out + err
        fields = [part.split(" ", 1) for part in out.splitlines()[-1].split(", ")]
        summary = {name: float(value) for value, name in fields}
        assert summary["problems"] == 0
        return summary


def read_csv(path):
    """A CSV of the demo's form: {device: {time in ms: {metric: value}}}."""
    opened = gzip.open(path, "rt") if str(path).endswith(".gz") else open(path, encoding="ascii")
    name = pathlib.Path(path).name.split(".")[0]
    found = {}
    with opened as lines:
        for row in csv.DictReader(lines):
            device = row.pop("device", None)
            ms = int(row.pop("ts_ms"))
            found.setdefault(f"{name}-{device}" if device else name, {})[ms] = {metric: float(value) for metric, value in row.items() if value != ""}
    return found


def replay_result(process):
    """Wait for the end of a replay: its line of key=value."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return dict(part.split("=") for part in out.split())


def now_ms():
    return time.time_ns() // 1000000


def fill_disk(path):
    """A file that takes all that is left of its file system."""
    with open(path, "wb", buffering=0) as out:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while out.write(bytes(size)):
                    pass
            except OSError:
                pass


def flip(path, offset, count=8):
    """Damage some bytes of a file."""
    data = bytearray(pathlib.Path(path).read_bytes())
    for at in range(offset, offset + count):
        data[at] ^= 0xFF
    with open(path, "r+b") as file:
        file.write(data)
