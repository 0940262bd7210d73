"""Data of another version of the program: older data is taken over or refused, newer data is refused; by name of file and number, and what
is refused stays as it is, byte by byte. docs/operations.md, Upgrading, has the table that this follows."""
import pathlib
import struct
import tarfile

import pytest

from harness.checksum import crc32c
from harness.programs import Broker, run, wait_until

CONF = "checkpoint_interval 1m\ntelemetry fleet/{device}/telemetry\n"
OLDEST = pathlib.Path(__file__).with_name("data_format_1.tar.gz")
KEPT_OPEN = ("broker.lock", ".writable", "listeners", "log/lock", "checkpoint/lock.mdb")  # say nothing, and belong to who looks


def snapshot(data):
    """Everything in the data directory that means something: path -> bytes."""
    return {name: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()
            for name in [str(path.relative_to(data))] if name not in KEPT_OPEN}


def command(broker, verb, *arguments):
    broker.conf_path.write_text(broker.config_text())
    return run("tidegate-broker", verb, "-c", broker.conf_path, *arguments)


def seal(data, at, begin, end, stored):
    """Write the CRC of data[at + begin : at + end] to at + stored."""
    struct.pack_into("<I", data, at + stored, crc32c(bytes(data[at + begin:at + end])))


def patch_format(data, number):
    path = data / "format"
    path.write_text(f"tidegate-broker {number}\n")
    return path


def patch_checkpoint(data, number):
    """The value of `format` in the tree `meta`, wherever a page has it."""
    path = data / "checkpoint" / "data.mdb"
    content, key, at, found = bytearray(path.read_bytes()), b"format", 0, 0
    while (at := content.find(key, at)) >= 0:
        value = at + len(key)
        if crc32c(b"\0" + bytes(content[at:value + 16])) == struct.unpack_from("<I", content, value + 16)[0]:
            struct.pack_into("<I", content, value, number)
            struct.pack_into("<I", content, value + 16, crc32c(b"\0" + bytes(content[at:value + 16])))
            found += 1
        at = value
    assert found > 0
    path.write_bytes(content)
    return path.parent


def patch_slots(name):
    def patch(data, number):
        path = data / "log" / name
        content = bytearray(path.read_bytes())
        for at in (0, 4096):
            if any(content[at:at + 512]):
                struct.pack_into("<H", content, at + 8, number)
                seal(content, at, 8, 512, 4)
        path.write_bytes(content)
        return path
    return patch


def newest_segment(data):
    return max((path for path in (data / "log").glob("*.seg") if path.read_bytes()[4096:4100] == b"TGBK"), key=lambda path: path.name)


def patch_header(at, size):
    """Of the segment, or of its first block."""
    def patch(data, number):
        path = newest_segment(data)
        content = bytearray(path.read_bytes())
        struct.pack_into("<H", content, at + 8, number)
        seal(content, at, 8, size, 4)
        path.write_bytes(content)
        return path
    return patch


def patch_record(data, number):
    """The type of the first record of the last start."""
    path = newest_segment(data)
    content = bytearray(path.read_bytes())
    flags, size = struct.unpack_from("<H", content, 4096 + 10)[0], struct.unpack_from("<I", content, 4096 + 72)[0]
    assert not flags & 1  # not compressed
    content[4096 + 128 + 4] = number
    seal(content, 4096, 128, 128 + size, 80)
    seal(content, 4096, 8, 128, 4)
    path.write_bytes(content)
    return path


def patched(broker, patch, number):
    """The broker is killed, and its directory patched: the path, what was there before and what is then."""
    broker.kill()
    before = snapshot(broker.data)
    path = patch(broker.data, number)
    after = snapshot(broker.data)
    assert after != before
    return path, before, after


def make_value(broker, join, topic):
    join(broker, "first").publish(f"{topic}/1", b"kept", qos=1, retain=True)


def check_value(broker, join, topic):
    reader = join(broker, "reader")
    reader.subscribe((f"{topic}/1", 1))
    assert reader.take().payload == b"kept"


@pytest.mark.parametrize("patch, number", [(patch_format, 3), (patch_checkpoint, 3), (patch_slots("identity"), 2), (patch_slots("state"), 2),
                                           (patch_header(0, 4096), 2), (patch_header(4096, 128), 2)],
                         ids=["format", "checkpoint", "identity", "state", "segment", "block"])
def test_newer_data_is_refused_and_stays_as_it_is(new_broker, join, topic, patch, number):
    broker = new_broker(CONF)
    make_value(broker, join, topic)
    path, whole, there = patched(broker, patch, number)
    for _ in range(2):
        said = broker.refusal()
        assert str(path) in said and f" {number}," in said and "use the " in said, said
        assert snapshot(broker.data) == there
    for name, content in whole.items():  # the program that wrote it
        (broker.data / name).write_bytes(content)
    broker.start()
    check_value(broker, join, topic)


def test_a_record_of_a_newer_kind_is_refused(new_broker, join, topic):
    """The second door: whoever writes such records writes a newer format, too, and is refused by that. No record is passed over or lost."""
    broker = new_broker(CONF)
    make_value(broker, join, topic)
    path, _, there = patched(broker, patch_record, 200)
    for _ in range(2):
        said = broker.refusal()
        assert str(path) in said and "type 200" in said, said
        assert snapshot(broker.data)["checkpoint/data.mdb"] == there["checkpoint/data.mdb"]
        assert path.read_bytes()[4096:8192] == there[str(path.relative_to(broker.data))][4096:8192]


def test_a_checkpoint_from_before_the_first_release_says_what_to_do(new_broker, join, topic):
    broker = new_broker(CONF)
    make_value(broker, join, topic)
    path, _, there = patched(broker, patch_checkpoint, 1)
    said = broker.refusal()
    assert str(path) in said and "format 1," in said and "another persistence_location" in said, said
    assert snapshot(broker.data) == there
    broker.conf += f"persistence_location {broker.directory}/new/\n"
    broker.data = broker.directory / "new"
    broker.start()


def test_a_log_alone_is_taken_over_and_a_backup_brings_it_back(new_sink, tmp_path, join, topic):
    """Upgrade and back: the directory of a broker that knew no checkpoint, backed up by the new program before its first start there. Its
    records stay readable for the sink."""
    broker = Broker(tmp_path / "broker", CONF)
    broker.data.mkdir(parents=True)
    with tarfile.open(OLDEST) as archive:
        archive.extractall(broker.data)  # pylint: disable=consider-using-with
    old = snapshot(broker.data)
    assert not (broker.data / "format").exists()
    status, out, err = command(broker, "backup", tmp_path / "backup")
    assert status == 0, out + err
    assert snapshot(broker.data) == old
    try:
        broker.start()
        assert (broker.data / "format").read_text() == "tidegate-broker 2\n"
        make_value(broker, join, topic)
        join(broker, "car").publish("fleet/car0/telemetry", b'{"ts":1700000100,"speed":100}', qos=1)
        broker.kill()
        broker.start()
        check_value(broker, join, topic)
        sink = new_sink(broker)

        def rows():
            status, text = sink.get("/api/v1/query?device=car0&from=1970-01-01T00:00:00Z&format=csv&limit=1000")
            return text.strip().splitlines() if status == 200 else []

        wait_until(lambda: len(rows()) == 1 + 11, "ten rows of before and one of now are stored")
    finally:
        broker.stop()
    back = Broker(tmp_path / "back", CONF)
    status, out, err = command(back, "restore", tmp_path / "backup")
    assert status == 0, out + err
    assert not (back.data / "format").exists() and not (back.data / "checkpoint").exists()
    segments = [name for name in snapshot(back.data) if name.endswith(".seg")]
    assert segments and all(old[name].startswith((back.data / name).read_bytes()) for name in segments)
