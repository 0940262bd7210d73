"""How many may come in: connections at one time, CONNECTs per second, deferred or refused."""
import pytest

from harness import wire
from harness.wire import CONNACK

LISTENER = "listener 0 127.0.0.1\nallow_anonymous true\n"


def test_d19_max_connections(new_broker, dial, join, name, shards):
    broker = new_broker(shards=shards, listener=LISTENER + "max_connections 5\n")
    clients = [join(broker, name()) for _ in range(5)]
    for version, reason in ((5, 0x97), (4, 3), (3, 3)):
        refused = dial(broker, version)
        assert refused.connect(name(), expect_reason=None).reason == reason
        assert refused.rest() == []
    for client in clients:
        client.ping()
    assert broker.metrics().get("tidegate_door_refused_connections_total", reason="max_connections") == 3
    clients[0].disconnect()
    broker.wait_metric(lambda metrics: metrics.get("tidegate_listener_connections") == 4, "there is room")
    join(broker, name()).ping()


def test_d19_max_connections_lets_a_takeover_in(new_broker, dial, name):
    """A client that comes back while its old connection still hangs is refused only if it needs a place: known limit, told with 0x97."""
    broker = new_broker(listener=LISTENER + "max_connections 1\n")
    client_id = name()
    first = dial(broker)
    first.connect(client_id)
    second = dial(broker)
    assert second.connect(client_id, expect_reason=None).reason == 0x97
    first.ping()


def test_global_max_connections(new_broker, dial, join, name):
    broker = new_broker("global_max_connections 3\n", listener=LISTENER + LISTENER)
    clients = [join(port, name()) for port in (broker.ports[0], broker.ports[1], broker.ports[1])]
    for port in broker.ports:
        refused = dial(port)
        assert refused.connect(name(), expect_reason=None).reason == 0x97
    for client in clients:
        client.ping()


def test_r57_connection_rate_reject(new_broker, dial, name, shards):
    """Above the rate: 0x9F (v5) or 3 at once; those who are in do not notice; later there is room again."""
    broker = new_broker("connection_rate 2\nconnection_burst 5\nconnection_policy reject\n", shards=shards)
    admitted, refused = [], 0
    for number in range(20):
        client = dial(broker, 5 if number % 2 else 4)
        reason = client.connect(name(), expect_reason=None).reason
        if reason == 0:
            admitted.append(client)
        else:
            assert reason == (0x9F if client.version == 5 else 3)
            assert client.rest() == []
            refused += 1
    assert len(admitted) >= 5 and refused > 0
    for client in admitted:
        client.ping()
    metrics = broker.metrics()
    assert metrics.get("tidegate_admission_total", event="connect", scope="process", verdict="reject") == refused
    while dial(broker).connect(name(), expect_reason=None).reason != 0:
        pass  # the rate lets one in after half a second


def test_r57_connection_rate_defer(new_broker, dial, name):
    """Above the rate: CONNECT waits for its place; all get in, in the end."""
    broker = new_broker("connection_rate 50\nconnection_burst 5\nconnection_policy defer\n")
    clients = [dial(broker) for _ in range(30)]
    for client in clients:
        client.send(wire.connect_packet(name()))
    for client in clients:
        assert client.expect(CONNACK).reason == 0
    metrics = broker.metrics()
    assert metrics.get("tidegate_admission_total", event="connect", scope="process", verdict="defer") > 0
    assert metrics.get("tidegate_admission_total", event="connect", scope="process", verdict="reject") == 0


def test_d19_deferred_connects_are_counted(new_broker, dial, name):
    """max_connections holds for those who had to wait for their place as well."""
    broker = new_broker("connection_rate 20\nconnection_burst 1\nconnection_policy defer\n", listener=LISTENER + "max_connections 5\n")
    clients = [dial(broker) for _ in range(15)]
    for client in clients:
        client.send(wire.connect_packet(name()))
    reasons = [client.expect(CONNACK).reason for client in clients]
    assert sorted(reasons) == [0] * 5 + [0x97] * 10


def test_r57_deferred_too_long_is_rejected(new_broker, dial, name):
    broker = new_broker("connection_rate 1\nconnection_burst 1\nconnection_policy defer\nconnection_defer 2s\n")
    clients = [dial(broker) for _ in range(10)]
    for client in clients:
        client.send(wire.connect_packet(name()))
    reasons = [client.expect(CONNACK).reason for client in clients]
    assert set(reasons) == {0, 0x9F} and reasons.count(0x9F) >= 6
    assert broker.metrics().get("tidegate_door_refused_connections_total", reason="connection_rate") == reasons.count(0x9F)


@pytest.mark.parametrize("key", ["listener_connection_rate", "listener_accept_rate"])
def test_r57_rate_of_one_listener(new_broker, dial, name, key):
    """A storm on one listener leaves the other alone."""
    burst = key.replace("rate", "burst")
    broker = new_broker("connection_policy reject\n", listener=LISTENER + f"{key} 1\n{burst} 3\n" + LISTENER)
    storm = [dial(broker.ports[0]) for _ in range(12)]
    for client in storm:
        client.send(wire.connect_packet(name()))
    for _ in range(12):
        assert dial(broker.ports[1]).connect(name()).reason == 0
    if key == "listener_connection_rate":
        reasons = [client.expect(CONNACK).reason for client in storm]
        assert reasons.count(0) >= 3 and reasons.count(0x9F) > 0
    else:
        assert [client.expect(CONNACK).reason for client in storm[:3]] == [0, 0, 0]  # the others wait in the backlog


def test_r57_accept_rate_of_the_process(new_broker, dial, name):
    """Accepting waits; nobody is refused."""
    broker = new_broker("accept_rate 20\naccept_burst 2\n")
    clients = [dial(broker) for _ in range(10)]
    for client in clients:
        client.send(wire.connect_packet(name()))
    for client in clients:
        assert client.expect(CONNACK).reason == 0


def test_max_sessions(new_broker, dial, name):
    broker = new_broker("max_sessions 3\n")
    reasons = []
    for _ in range(10):
        reasons.append(dial(broker).connect(name(), expect_reason=None, properties=[(wire.SESSION_EXPIRY, 100)]).reason)
    assert reasons == [0] * 3 + [0x97] * 7
    assert broker.metrics().get("tidegate_refused_connects_total", reason="sessions_max") == 7


def test_the_largest_fields_of_a_connect(new_broker, dial):
    """Each may have 65,535 bytes; the session is there with all of them."""
    broker = new_broker("max_packet_size 0\n")
    most = 65535
    client = dial(broker, 5)
    properties = [(wire.CONTENT_TYPE, "c" * most), (wire.RESPONSE_TOPIC, "r" * most), (wire.CORRELATION_DATA, b"d" * most)]
    client.connect("i" * most, user_name="u" * most, password=b"p" * most, properties=[(wire.SESSION_EXPIRY, 100)],
                   will={"topic": "w" * most, "payload": b"w" * most, "qos": 1, "properties": properties})
    client.disconnect()
    assert dial(broker, 5).connect("i" * most, clean=False, properties=[(wire.SESSION_EXPIRY, 100)]).session_present


def test_bad_first_packets_are_counted_by_reason(new_broker, dial):
    broker = new_broker("max_packet_size 1000\n")
    for sent, reason in ((b"GET / HTTP/1.1\r\n\r\n", "not_connect"), (b"\x10\xff\xff\xff\xff\x7f", "malformed"),
                         (wire.connect_packet("i" * 2000), "oversized"), (wire.PING, "not_connect")):
        before = broker.metrics().get("tidegate_door_refused_connections_total", reason=reason)
        client = dial(broker)
        client.send(sent)
        client.rest()
        assert broker.metrics().get("tidegate_door_refused_connections_total", reason=reason) == before + 1
