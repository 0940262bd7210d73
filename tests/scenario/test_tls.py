"""A TLS listener with a self-signed P-256 certificate, beside a plain one."""
import socket
import ssl
import subprocess

import pytest

from harness import wire


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate file, key file)"""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "server.crt", directory / "server.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out",
                    str(cert), "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                   check=True, capture_output=True)
    return cert, key


@pytest.fixture
def context(certificate):
    return ssl.create_default_context(cafile=str(certificate[0]))


@pytest.fixture
def tls_broker(new_broker, certificate, shards):
    cert, key = certificate
    return new_broker("connect_timeout 3s\n", shards=shards,
                      listener=f"allow_anonymous true\nlistener 0 127.0.0.1\nlistener 0 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n")


def test_tls_publish_and_subscribe(tls_broker, join, dial, context, name, topic):
    """Every QoS, large messages, between TLS and plain, whatever the home of each."""
    plain_port, tls_port = tls_broker.ports
    secure = []
    for _ in range(6):
        client = dial(tls_port, tls=context)
        client.connect(name("secure"))
        client.subscribe((topic, 2))
        secure.append(client)
    plain = dial(plain_port)
    plain.connect(name("plain"))
    plain.subscribe((topic, 2))
    for number, publisher in enumerate(secure + [plain]):
        for qos in (0, 1, 2):
            publisher.publish(topic, b"%d/%d" % (number, qos) + b"x" * 70000, qos=qos)
    for client in secure + [plain]:
        found = sorted(client.take().payload[:3] for _ in range(21))
        assert found == sorted(b"%d/%d" % (number, qos) for number in range(7) for qos in (0, 1, 2))
    metrics = tls_broker.metrics()
    assert metrics.get("tidegate_handed_over_connections_total", listener="1") == 6
    tls_broker.check_books()


def test_tls_pipelined_packets_survive_the_hand_over(tls_broker, dial, context, name, topic):
    """CONNECT, SUBSCRIBE and a publish in one record, for several ids, so that each shard is the home of some."""
    for _ in range(6):
        client = dial(tls_broker.ports[1], tls=context)
        client.send(wire.connect_packet(name()), wire.subscribe_packet([(topic, 1)], 1), wire.publish_packet(topic, b"x" * 10000, 1, 2))
        assert client.recv().kind == wire.CONNACK
        client.expect(wire.SUBACK)
        client.expect(wire.PUBACK)
        client.ping()
        client.unsubscribe(topic)


def test_tls_is_1_2_with_ecdhe(tls_broker, dial, context):
    client = dial(tls_broker.ports[1], tls=context)
    assert client.socket.version() == "TLSv1.2"
    assert client.socket.cipher()[0].startswith("ECDHE-ECDSA")


def test_tls_bad_clients_are_counted_and_hurt_nobody(tls_broker, dial, context, name):
    good = dial(tls_broker.ports[1], tls=context)
    good.connect(name())
    refuses = ssl.create_default_context()  # does not know the certificate
    with pytest.raises(ssl.SSLError):
        dial(tls_broker.ports[1], tls=refuses)
    plain_to_tls = dial(tls_broker.ports[1])
    plain_to_tls.send(wire.connect_packet(name()))
    try:
        while plain_to_tls.socket.recv(100):  # an alert, perhaps
            pass
    except ConnectionResetError:
        pass  # what it sent was not read
    silent = dial(tls_broker.ports[1])
    assert silent.socket.recv(1) == b""  # connect_timeout
    tls_broker.wait_metric(lambda metrics: metrics.get("tidegate_door_refused_connections_total", listener="1") >= 3, "all are counted")
    good.ping()


def test_tls_half_closed_and_reset(tls_broker, dial, context, name, topic):
    watcher = dial(tls_broker.ports[1], tls=context)
    watcher.connect(name())
    watcher.subscribe((topic, 1))
    for linger in (False, True):
        client = dial(tls_broker.ports[1], tls=context)
        client.connect(name(), will={"topic": topic, "payload": b"gone"})
        if linger:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert watcher.take().payload == b"gone"


def test_tls_one_byte_writes(tls_broker, dial, context, name, topic):
    """A record for each byte."""
    client = dial(tls_broker.ports[1], tls=context)
    client.client_id = name()
    client.send_bytewise(wire.connect_packet(client.client_id))
    assert client.expect(wire.CONNACK).reason == 0
    client.subscribe((topic, 1))
    client.send_bytewise(wire.publish_packet(topic, b"slowly", 1, 1))
    assert client.take().payload == b"slowly"


def test_tls_mosquitto_clients(tls_broker, certificate, dial, name, topic):
    watcher = dial(tls_broker.ports[0])
    watcher.connect(name())
    watcher.subscribe((topic, 1))
    done = subprocess.run(["mosquitto_pub", "-h", "127.0.0.1", "-p", str(tls_broker.ports[1]), "--cafile", str(certificate[0]), "-q", "1", "-t", topic,
                           "-m", "secret"], capture_output=True, text=True, timeout=wire.PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert watcher.take().payload == b"secret"


def test_tls_bad_files_are_clear_errors(tmp_path, certificate):
    """A certificate that is not there, one that is none, a key of another: file and reason are named, status is not 0."""
    from harness.programs import Broker, wait_until
    cert, key = certificate
    none = tmp_path / "none.pem"
    none.write_text("not a certificate\n")
    other = tmp_path / "other.key"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(other)], check=True, capture_output=True)
    for number, (cert_path, key_path, named) in enumerate([(tmp_path / "missing.crt", key, "missing.crt"), (none, key, "none.pem"),
                                                           (cert, tmp_path / "missing.key", "missing.key"), (cert, other, "other.key")]):
        broker = Broker(tmp_path / str(number), listener=f"listener 0 127.0.0.1\nallow_anonymous true\ncertfile {cert_path}\nkeyfile {key_path}\n").spawn()
        wait_until(lambda broker=broker: broker.process.poll() is not None, "it ends")
        assert broker.process.returncode not in (0, None)
        assert named in broker.stderr(), broker.stderr()
