"""What an operator meets: configuration, its mistakes, start and stop, /metrics and /healthz, for both programs."""
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess

import pytest

from harness import programs, wire
from harness.programs import Broker, Sink, run, wait_until

MOSQUITTO_CONF = """# a file as mosquitto's users have it
per_listener_settings false
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {data}/
persistence_file mosquitto.db
autosave_interval 300
persistent_client_expiration 2m
max_inflight_messages 40
max_queued_messages 5000
max_packet_size 1048576
max_keepalive 3600
retain_available true
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
sys_interval 10
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def spawn_failing(program):
    """Start something that must not come up; its standard error."""
    program.spawn()
    try:
        wait_until(lambda: program.process.poll() is not None, f"{program.name} gives up")
        status = program.process.returncode
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()
        program.process = None
    program.check_clean()
    assert status not in (0, None) and status > 0, f"{status}: {program.stderr()}"
    return program.stderr()


@pytest.fixture
def mosquittos_broker(tmp_path):
    """(process, port, path of its stderr), with mosquitto's options alone. They know no port 0: one that was free may be taken by then."""
    env = programs.environment({"TIDEGATE_HTTP_LISTENER": "127.0.0.1:0"} |
                               {f"TIDEGATE_{key.upper()}": value for key, value in programs.SANITIZER_LIMITS.items()})
    for attempt in range(10):
        port, data, conf, said = free_port(), tmp_path / f"data{attempt}", tmp_path / "mosquitto.conf", tmp_path / "stderr"
        conf.write_text(MOSQUITTO_CONF.format(port=port, data=data))
        with open(said, "wb") as out:
            process = subprocess.Popen([str(programs.BUILD / "tidegate-broker"), "-c", str(conf)], stderr=out, stdin=subprocess.DEVNULL, env=env)
        wait_until(lambda: process.poll() is not None or (data / "listeners").exists(), "it serves, or ends")
        if process.poll() is None or "address already in use" not in said.read_text().lower():
            break
    yield process, port, said
    if process.poll() is None:
        process.kill()
        process.wait()


def test_mosquittos_options_alone_start_it(mosquittos_broker, dial, name):
    """Not one key of our own but the HTTP port, given by the environment because the default may be taken here."""
    process, port, said = mosquittos_broker
    assert process.poll() is None, said.read_text()
    client = dial(port)
    client.connect(name())
    client.publish("t", b"x", qos=1)
    client.disconnect()
    process.send_signal(signal.SIGTERM)
    assert process.wait(wire.PATIENCE_S) == 0, said.read_text()


@pytest.mark.parametrize("line, words", [
    ("max_packet_sise 1MiB", ["unknown", "max_packet_size"]),
    ("max_packet_size 12parsecs", ["max_packet_size", "12parsecs"]),
    ("max_packet_size -5", ["max_packet_size"]),
    ("connect_timeout 5", ["connect_timeout"]),
    ("connect_timeout 5 s", ["connect_timeout"]),
    ("connect_timeout 99h", ["connect_timeout"]),
    ("allow_anonymous maybe", ["allow_anonymous", "maybe"]),
    ("listener 70000", ["70000"]),
    ("listener", ["listener"]),
    ("shards many", ["shards", "many"]),
    ("connection_policy shrug", ["connection_policy", "shrug"]),
    ("password_file /etc/passwords", ["password_file", "mosquitto"]),
    ("acl_file /etc/acl", ["acl_file", "mosquitto"]),
    ("connection bridge", ["connection", "mosquitto"]),
    ("plugin /usr/lib/x.so", ["plugin", "mosquitto"]),
    ("protocol websockets", ["protocol"]),
    ("telemetry fleet/x{device}/y", ["telemetry"]),
    ("telemetry fleet/#/{device}", ["telemetry"]),
    ("http_listener nowhere", ["http_listener", "nowhere"]),
    ("certfile /nowhere.pem", ["certfile"]),
    ("log_cursor ../../etc", ["log_cursor"]),
    ("include_dir /nowhere/at/all", ["/nowhere/at/all"]),
])
def test_broker_conf_mistakes_name_file_and_line(tmp_path, line, words):
    conf = tmp_path / "broker.conf"
    conf.write_text(f"# comment\npersistence_location {tmp_path}/data\n{line}\n")
    for arguments in (("check", "-c", conf), ("-c", conf)):
        status, out, err = run("tidegate-broker", *arguments)
        assert status not in (0, None) and status > 0
        text = out + err
        assert f"{conf}:3:" in text, text
        for word in words:
            assert word in text, text
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("line, words", [
    ("flush_intervall 1s", ["unknown", "flush_interval"]),
    ("flush_interval 1", ["flush_interval"]),
    ("head_memory 10 bananas", ["head_memory"]),
    ("partitions 0", ["partitions"]),
    ("http_port 70000", ["http_port"]),
    ("payload_time_unit fortnights", ["payload_time_unit"]),
    ("compaction perhaps", ["compaction"]),
])
def test_sink_conf_mistakes_name_file_and_line(tmp_path, line, words):
    conf = tmp_path / "sink.conf"
    conf.write_text(f"data_directory {tmp_path}/sink\n\n{line}\n")
    for arguments in (("check", "-c", conf), ("-c", conf)):
        status, out, err = run("tidegate-sink", *arguments)
        assert status not in (0, None) and status > 0
        text = out + err
        assert f"{conf}:3:" in text, text
        for word in words:
            assert word in text, text


def test_all_mistakes_are_told_at_once(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text("nonsense 1\nmax_packet_size x\nallow_anonymous true\nshards -1\n")
    status, out, err = run("tidegate-broker", "check", "-c", conf)
    assert status != 0
    for line in (1, 2, 4):
        assert f"{conf}:{line}:" in out + err


def test_harmless_foreign_options_are_warnings(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text("sys_interval 10\nuser nobody\nallow_anonymous true\n")
    status, out, err = run("tidegate-broker", "check", "-c", conf)
    assert status == 0, err
    assert f"{conf}:1:" in out + err and f"{conf}:2:" in out + err


@pytest.mark.parametrize("program", ["tidegate-broker", "tidegate-sink"])
def test_unreadable_configuration(tmp_path, program):
    for path in (tmp_path / "missing.conf", tmp_path):
        for arguments in (("-c", path), ("check", "-c", path), ("dump", "-c", path)):
            status, out, err = run(program, *arguments)
            assert status not in (0, None) and status > 0
            assert str(path) in out + err


@pytest.mark.parametrize("program", ["tidegate-broker", "tidegate-sink"])
def test_check_dump_help_version(tmp_path, program):
    shipped = programs.ROOT / "conf" / ("broker.conf" if program == "tidegate-broker" else "sink.conf")
    status, out, err = run(program, "check", "-c", shipped)
    assert status == 0, out + err
    status, out, err = run(program, "dump", "-c", shipped, env={"TIDEGATE_LOG_LEVEL": "warning"})
    assert status == 0, err
    assert "# environment\nlog_level warning\n" in out, out
    assert re.search(rf"^# {re.escape(str(shipped))}:\d+$", out, re.MULTILINE) and "# default\n" in out + run(program, "dump")[1]
    for flag in ("--help", "--version"):
        status, out, _ = run(program, flag)
        assert status == 0 and program in out
    for wrong in (("--nonsense",), ("frobnicate",)):
        status, out, err = run(program, *wrong)
        assert status not in (0, None) and err


def test_dump_is_a_configuration(tmp_path):
    """What dump prints can be loaded and dumps the same."""
    conf = tmp_path / "broker.conf"
    conf.write_text("listener 1234 127.0.0.1\nallow_anonymous true\nmax_packet_size 3MiB\ntelemetry fleet/{device}/telemetry\n")
    _, first, _ = run("tidegate-broker", "dump", "-c", conf)
    again = tmp_path / "again.conf"
    again.write_text(first)
    status, second, err = run("tidegate-broker", "dump", "-c", again)
    assert status == 0, err

    def values(text):
        return sorted(line.split("#")[0].split() for line in text.splitlines() if line.split("#")[0].strip())

    assert values(first) == values(second)
    assert ["max_packet_size", "3MiB"] in values(first)


def test_check_topic_tells_the_decision(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text("allow_anonymous true\ntelemetry_ignore fleet/test/#\ntelemetry fleet/{device}/telemetry\ntier +/test/# memory\n")
    for topic, words in (("fleet/car42/telemetry", ["car42", "tier log"]), ("fleet/test/telemetry", ["not telemetry", "tier memory"]), ("other", ["not telemetry"])):
        status, out, err = run("tidegate-broker", "check", "-c", conf, "--topic", topic)
        assert status == 0, err
        for word in words:
            assert word in out


def test_environment_overrides(new_broker, join, name):
    broker = new_broker(env={"TIDEGATE_MAX_PACKET_SIZE": "5000"})
    assert join(broker, name()).connack.get(wire.MAXIMUM_PACKET_SIZE) == 5000
    status, out, err = run("tidegate-broker", "check", "-c", broker.conf_path, env={"TIDEGATE_MAX_PACKET_SIZE": "5 parsecs"})
    assert status != 0 and "environment" in out + err


@pytest.fixture(params=["broker", "sink"])
def program_in(request):
    def make(directory, broker_data=None, **options):
        if request.param == "broker":
            return Broker(directory, **options)
        return Sink(directory, broker_data or directory / "broker-data", **options)

    return make


def test_data_directory_is_a_file(tmp_path, program_in):
    program = program_in(tmp_path / "x")
    program.data.write_text("in the way")
    assert str(program.data) in spawn_failing(program)


def test_data_directory_cannot_be_made(tmp_path, program_in):
    """/proc takes no directories, not even root's."""
    program = program_in(tmp_path / "x")
    program.data = pathlib.Path("/proc/tidegate/data")
    assert "/proc/tidegate" in spawn_failing(program)


def test_data_directory_is_not_writable(tmp_path, program_in):
    """As root permissions do not count, so the file system is mounted read-only."""
    program = program_in(tmp_path / "x")
    program.data.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(program.data)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        program.forget_ports = lambda: None
        assert str(program.data) in spawn_failing(program)
    finally:
        subprocess.run(["umount", str(program.data)], check=True)


def test_second_instance_on_the_same_data_directory(new_broker, new_sink, tmp_path):
    broker = new_broker("telemetry fleet/{device}/telemetry\n")
    sink = new_sink(broker)
    second = Broker(tmp_path / "second")
    second.data = broker.data
    second.forget_ports = lambda: None
    said = spawn_failing(second)
    assert str(broker.data) in said and str(broker.process.pid) in said, said
    second_sink = Sink(tmp_path / "second-sink", broker.data)
    second_sink.data = sink.data
    second_sink.forget_ports = lambda: None
    said = spawn_failing(second_sink)
    assert str(sink.data) in said, said
    third_sink = Sink(tmp_path / "third-sink", broker.data)  # its own directory, but the same cursor
    said = spawn_failing(third_sink)
    assert "cursor" in said or "lock" in said, said
    assert broker.is_alive() and sink.is_alive()
    assert broker.health()[0] == 200 and sink.health()[0] == 200


def test_port_in_use(new_broker, tmp_path):
    broker = new_broker()
    second = Broker(tmp_path / "second", listener=f"listener {broker.port} 127.0.0.1\nallow_anonymous true\n")
    said = spawn_failing(second)
    assert str(broker.port) in said, said
    third = Broker(tmp_path / "third", f"http_listener 127.0.0.1:{broker.port}\n")
    said = spawn_failing(third)
    assert str(broker.port) in said, said
    sink = Sink(tmp_path / "sink", broker.data, f"http_port {broker.port}\n")
    said = spawn_failing(sink)
    assert str(broker.port) in said, said


def test_starts_that_fail_leave_nothing_behind(new_broker, join, name, tmp_path):
    """A service manager tries again for hours while something is in the way, and a consumer that is away holds the log."""
    other = new_broker()
    broker = new_broker("log_cursor audit\n")
    client = join(broker, name(), 4, clean=False)
    for number in range(20):
        client.publish("t", b"%d" % number * 1000, qos=1, retain=True)
    broker.stop()
    in_the_way = [f"listener {other.port} 127.0.0.1\n", f"http_listener 127.0.0.1:{other.port}\n", f"pid_file {tmp_path}/nowhere/pid\n"]
    failing = [Broker(tmp_path / f"failing{i}", f"log_cursor audit\n{line}") for i, line in enumerate(in_the_way)]
    failing[0] = Broker(tmp_path / "failing0", "log_cursor audit\n", listener=in_the_way[0] + "allow_anonymous true\n")
    for i in range(50):
        program = failing[i % 3]
        program.data = broker.data
        spawn_failing(program)
    # What was written before; once, by a start that came so far, that the client was away from then on; what is ready for the next record.
    segments = sorted(path.name for path in (broker.data / "log").glob("0*.seg"))
    assert len(segments) <= 3, segments
    broker.start()
    assert join(broker, name()).publish("t", b"after", qos=1)


def test_stops_with_clients_and_traffic(new_broker, join, name, shards):
    """SIGTERM under load: v5 clients are told 0x8B, what was acknowledged stays acknowledged, status 0."""
    broker = new_broker("telemetry fleet/{device}/telemetry\n", shards=shards)
    clients = [join(broker, name(), version) for version in (3, 4, 5, 5)]
    busy = join(broker, name())
    for number in range(1, 500):
        busy.send(wire.publish_packet("fleet/a/telemetry", b'{"a":%d}' % number, 1, number))
    broker.stop()
    assert [[packet.reason for packet in client.rest()] for client in clients] == [[], [], [0x8B], [0x8B]]
    acks = busy.rest()
    assert acks[-1].kind == wire.DISCONNECT
    assert [ack.packet_id for ack in acks[:-1]] == list(range(1, len(acks)))


def test_stop_and_start_again_many_times(new_broker, join, name):
    broker = new_broker("telemetry fleet/{device}/telemetry\n", shards=3)
    for _ in range(5):
        join(broker, name()).publish("fleet/a/telemetry", b"{}", qos=1)
        broker.restart()
    join(broker, name()).publish("fleet/a/telemetry", b"{}", qos=1)
    broker.kill()
    broker.start()
    join(broker, name()).publish("fleet/a/telemetry", b"{}", qos=1)


def test_sighup_opens_the_log_file_again(new_broker, tmp_path):
    path = tmp_path / "broker.log"
    broker = new_broker(f"log_file {path}\nlog_format json\n")
    wait_until(lambda: path.exists() and path.stat().st_size > 0, "there are lines")
    for line in path.read_text().splitlines():
        assert line.startswith("{") and line.endswith("}")
    path.rename(tmp_path / "old.log")
    broker.process.send_signal(signal.SIGHUP)
    wait_until(path.exists, "it is made anew")


def test_metrics_are_accepted_by_promtool(new_broker, new_sink, join, name):
    assert shutil.which("promtool"), "the package prometheus is not installed"
    broker = new_broker("telemetry fleet/{device}/telemetry\n", shards=2)
    sink = new_sink(broker)
    client = join(broker, name())
    client.subscribe(("#", 1))
    client.publish("fleet/a/telemetry", b'{"a":1}', qos=1)
    for program in (broker, sink):
        text = program.get("/metrics")[1]
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        queues = program.metrics().queues()
        assert queues, "no queues"
        for queue, parts in queues.items():
            assert parts == {"messages", "bytes", "oldest_seconds"}, (queue, parts)
        for metric in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
            assert program.metrics().get(metric) > 0
    assert {"ack_gate", "session_queue", "outbox", "log_pending", "connecting"} <= set(broker.metrics().queues())


def test_healthz_says_ok_and_what_is_wrong(new_broker, new_sink):
    broker = new_broker("telemetry fleet/{device}/telemetry\n")
    sink = new_sink(broker)
    for program in (broker, sink):
        status, health = program.health()
        assert status == 200 and health["status"] == "ok" and health["problems"] == [], health
    assert broker.get("/nothing")[0] == 404
    low = new_broker("telemetry fleet/{device}/telemetry\nlog_free_disk_floor 1024TiB\n")
    status, health = low.health()
    assert status == 503 and health["status"] == "failed"
    assert {problem["check"] for problem in health["problems"]} & {"disk", "log_full"}


def test_ages_of_queues_begin_with_what_is_in_them(new_broker, dial, join, name, topic):
    """The age of what waits for a session that is away counts from its arrival, not from the machine's start."""
    broker = new_broker()
    sleeper = dial(broker)
    sleeper.connect(name(), properties=[(wire.SESSION_EXPIRY, 1000)])
    sleeper.subscribe((topic, 1))
    sleeper.disconnect()
    publisher = join(broker, name())
    for number in range(20):
        publisher.publish(topic, b"%d" % number, qos=1)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_queue_messages", queue="session_queue") == 20, "queued")
    for queue in ("checkpoint_window", "session_queue"):
        assert broker.metrics().get("tidegate_queue_oldest_seconds", queue=queue) < 60
