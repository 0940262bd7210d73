"""CONNECT and CONNACK: what is let in, what is refused, and with which answer."""
import pytest

from harness import wire
from harness.wire import CONNACK, DISCONNECT, PUBLISH


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "kept"])
def test_3_1_4_5_success_is_acknowledged(broker, dial, name, version, clean):
    client = dial(broker, version)
    connack = client.connect(name(), clean=clean)
    assert (connack.acknowledge_flags, connack.reason) == (0, 0)
    client.ping()


def test_3_1_0_1_first_packet_is_another(broker, dial, version):
    for first in (wire.PING, wire.publish_packet("t", b"x", version=version), wire.subscribe_packet([("#", 0)], version=version),
                  wire.disconnect_packet()):
        client = dial(broker, version)
        client.send(first)
        assert client.rest() == []


def test_3_1_0_2_second_connect(broker, dial, name, version):
    client = dial(broker, version)
    client_id = name()
    client.connect(client_id)
    client.send(wire.connect_packet(client_id, version=version))
    assert client.expect_closed(0x82 if version == 5 else None) == []


@pytest.mark.parametrize("sent, answer", [
    (wire.connect_packet("x", name="MQTX"), "20 03 00 84 00"),
    (wire.connect_packet("x", name="mqtt"), "20 03 00 84 00"),
    (wire.connect_packet("x", name=""), "20 03 00 84 00"),
    (wire.connect_packet("x", version=4, name="MQTX"), "20 02 00 01"),
], ids=["MQTX", "mqtt", "empty", "MQTX-level-4"])
def test_3_1_2_1_wrong_protocol_name(broker, dial, sent, answer):
    client = dial(broker)
    client.send(sent)
    assert client.socket.recv(100) == bytes.fromhex(answer)
    assert client.rest() == []


@pytest.mark.parametrize("sent, answer", [
    (wire.connect_packet("x", level=6), "20 03 00 84 00"),
    (wire.connect_packet("x", level=255), "20 03 00 84 00"),
    (wire.connect_packet("x", level=0), "20 03 00 84 00"),
    (wire.connect_packet("x", version=3, level=4), "20 02 00 01"),
    (wire.connect_packet("x", version=3, level=5), "20 02 00 01"),
], ids=["6", "255", "0", "MQIsdp-4", "MQIsdp-5"])
def test_3_1_2_2_unsupported_version_is_told_in_its_form(broker, dial, sent, answer):
    before = broker.metrics().get("tidegate_refused_connects_total", reason="version")
    client = dial(broker)
    client.send(sent)
    assert client.socket.recv(100) == bytes.fromhex(answer)
    assert client.rest() == []
    broker.wait_metric(lambda metrics: metrics.get("tidegate_refused_connects_total", reason="version") == before + 1, "it is counted")


def test_3_1_2_3_reserved_connect_flag(broker, dial, name, version):
    client = dial(broker, version)
    client.send(wire.connect_packet(name(), version=version, flags=3))
    if version == 3:
        assert client.expect(CONNACK).reason == 0  # 3.1 calls the bit unused
    elif version == 4:
        assert client.rest() == []
    else:
        connack = client.expect(CONNACK)
        assert (connack.reason, connack.session_present) == (0x81, 0)
        assert client.rest() == []


# (name, clauses, bytes): CONNECTs that do not fit. 3.1.1 has no code for them: closed in silence; 5 says Malformed Packet.
def malformed_connects(version):
    def body(flags, payload, properties=b"\0"):
        return wire.packet(1, 0, wire.string("MQTT") + bytes([version, flags]) + b"\0\x3c" + (properties if version == 5 else b"") + payload)

    will_properties = b"\0" if version == 5 else b""
    will = will_properties + wire.string("will/topic") + wire.string("gone")
    yield "3_1_2_9-will_missing", body(0x06, wire.string("id"))
    yield "3_1_2_9-will_payload_missing", body(0x06, wire.string("id") + will_properties + wire.string("will/topic"))
    yield "3_1_2_11-will_qos_without_will", body(0x0A, wire.string("id"))
    yield "3_1_2_12-will_qos_3", body(0x1E, wire.string("id") + will)
    yield "3_1_2_13-will_retain_without_will", body(0x22, wire.string("id"))
    yield "3_1_2_16-user_name_not_announced", body(0x02, wire.string("id") + wire.string("user"))
    yield "3_1_2_17-user_name_missing", body(0x82, wire.string("id"))
    yield "3_1_2_19-password_missing", body(0xC2, wire.string("id") + wire.string("user"))
    yield "3_1_3_3-no_client_id", body(0x02, b"")
    yield "3_1_3_4-client_id_not_utf8", body(0x02, wire.string(b"\xc3\x28"))
    yield "3_1_3_4-client_id_with_nul", body(0x02, wire.string(b"a\0b"))
    yield "3_1_3_4-client_id_surrogate", body(0x02, wire.string(b"\xed\xa0\x80"))
    yield "3_1_3_11-will_topic_not_utf8", body(0x06, wire.string("id") + will_properties + wire.string(b"\xff") + wire.string("x"))
    yield "3_1_3_12-user_name_not_utf8", body(0x82, wire.string("id") + wire.string(b"\xff"))
    yield "3_1_4_1-cut_short", wire.packet(1, 0, wire.string("MQTT") + bytes([version, 2]))
    yield "3_1_4_1-client_id_longer_than_packet", body(0x02, b"\x00\x10abc")
    if version == 4:
        yield "3_1_2_22-password_without_user_name", body(0x42, wire.string("id") + wire.string("secret"))
    else:
        yield "1_5_5_1-property_length_not_shortest", body(0x02, wire.string("id"), b"\x80\x00")
        yield "unknown_property", body(0x02, wire.string("id"), b"\x02\x7f\x00")


@pytest.mark.parametrize("sent", [pytest.param(sent, id=label) for label, sent in malformed_connects(5)])
def test_3_1_4_1_malformed_connect_v5(broker, dial, sent):
    client = dial(broker, 5)
    client.send(sent)
    connack = client.expect(CONNACK)
    assert (connack.reason, connack.session_present) == (0x81, 0)
    assert client.rest() == []


@pytest.mark.parametrize("sent", [pytest.param(sent, id=label) for label, sent in malformed_connects(4)])
def test_3_1_4_1_malformed_connect_v311(broker, dial, sent):
    before = broker.metrics().get("tidegate_refused_connects_total", reason="malformed")
    client = dial(broker, 4)
    client.send(sent)
    assert client.rest() == []
    broker.wait_metric(lambda metrics: metrics.get("tidegate_refused_connects_total", reason="malformed") == before + 1, "it is counted")


@pytest.mark.parametrize("properties", [
    [(wire.SESSION_EXPIRY, 1), (wire.SESSION_EXPIRY, 1)],
    [(wire.RECEIVE_MAXIMUM, 0)],
    [(wire.MAXIMUM_PACKET_SIZE, 0)],
    [(wire.REQUEST_PROBLEM, 2)],
    [(wire.REQUEST_RESPONSE, 2)],
    [(wire.AUTH_DATA, b"x")],
], ids=["twice", "receive_maximum_0", "maximum_packet_size_0", "problem_information_2", "response_information_2", "auth_data_alone"])
def test_3_1_4_1_connect_properties_protocol_error(broker, dial, name, properties):
    client = dial(broker, 5)
    assert client.connect(name(), expect_reason=None, properties=properties).reason == 0x82
    assert client.rest() == []


def test_3_1_3_5_ids_of_all_lengths(broker, dial, version):
    for size in (1, 23, 24, 64, 1000, 65535):
        client = dial(broker, version)
        client.connect("i" * (size - 1) + str(version), clean=True)
        client.ping()
        client.disconnect()


def test_1_5_4_3_bom_belongs_to_the_id(broker, dial, name):
    plain = name()
    first, second = dial(broker), dial(broker)
    first.connect(plain)
    second.connect("\ufeff" + plain)
    first.ping()  # not taken over


def test_3_1_3_6_empty_id_gets_one(broker, dial):
    clients = [dial(broker) for _ in range(8)]
    ids = [client.connect("").get(wire.ASSIGNED_ID) for client in clients]
    assert all(ids) and len(set(ids)) == len(ids)
    for client in clients:
        client.ping()


def test_3_1_3_7_assigned_id_is_used_as_if_sent(broker, dial):
    first = dial(broker)
    assigned = first.connect("", properties=[(wire.SESSION_EXPIRY, 100)]).get(wire.ASSIGNED_ID)
    first.disconnect()
    second = dial(broker)
    assert second.connect(assigned, clean=False).session_present == 1


def test_3_1_3_6_empty_id_of_old_versions(broker, dial):
    for version in (3, 4):
        client = dial(broker, version)
        assert client.connect("", expect_reason=None, clean=True).reason == 0
        client.ping()


def test_3_1_3_8_empty_id_with_session_is_refused(broker, dial):
    for version in (3, 4):
        client = dial(broker, version)
        assert client.connect("", expect_reason=None, clean=False).reason == 2
        assert client.rest() == []


def test_3_1_3_8_zero_length_ids_switched_off(new_broker, dial):
    broker = new_broker("allow_zero_length_clientid false\n")
    for version, reason in ((4, 2), (5, 0x85)):
        client = dial(broker, version)
        assert client.connect("", expect_reason=None).reason == reason
        assert client.rest() == []


def test_3_1_4_2_anonymous_is_refused(new_broker, dial, name):
    broker = new_broker(listener="listener 0 127.0.0.1\nallow_anonymous false\n")
    for version, reason in ((3, 5), (4, 5), (5, 0x87)):
        client = dial(broker, version)
        assert client.connect(name(), expect_reason=None).reason == reason
        assert client.rest() == []
    assert broker.metrics().get("tidegate_refused_connects_total", reason="not_authorized") == 3


def test_3_1_4_6_nothing_is_processed_after_a_refusal(broker, dial, join, name, topic, nothing_but):
    watcher, publisher = join(broker, name()), join(broker, name())
    watcher.subscribe(topic)
    client = dial(broker, 4)
    client.send_tolerant(wire.connect_packet("", version=4, clean=False), wire.publish_packet(topic, b"no", version=4))
    assert client.expect(CONNACK).reason == 2
    assert client.rest() == []
    nothing_but(watcher, publisher, topic)


def test_3_1_4_pipelined_packets_follow_connect(broker, dial, name, topic, version):
    """CONNECT, SUBSCRIBE and PUBLISH in one segment, also when the connection moves to another shard."""
    for _ in range(4):
        client = dial(broker, version)
        client.send(wire.connect_packet(name(), version=version), wire.subscribe_packet([(topic, 1)], 7, version=version), wire.PING)
        assert client.recv().kind == CONNACK
        client.expect(wire.SUBACK)
        client.expect(wire.PINGRESP)
        client.publish(topic, b"hello", qos=1)
        assert client.take().payload == b"hello"
        client.unsubscribe(topic)


def test_3_1_4_byte_by_byte(broker, dial, name, topic):
    client = dial(broker)
    client.client_id = name()
    client.send_bytewise(wire.connect_packet(client.client_id, properties=[(wire.USER_PROPERTY, ("a", "b"))]))
    assert client.expect(CONNACK).reason == 0
    client.send_bytewise(wire.subscribe_packet([(topic, 1)], 1))
    client.expect(wire.SUBACK)
    client.send_bytewise(wire.publish_packet(topic, b"slowly", 1, 5))
    assert client.expect(wire.PUBACK).packet_id == 5
    assert client.take().payload == b"slowly"


def test_3_1_connect_timeout(new_broker, dial, name):
    """Who does not say CONNECT in time is closed, with nothing and with half a CONNECT sent; others are not touched."""
    broker = new_broker("connect_timeout 500ms\n")
    stays = dial(broker)
    stays.connect(name())
    silent, half = dial(broker), dial(broker)
    half.send(wire.connect_packet(name())[:10])
    assert silent.rest() == [] and half.rest() == []
    stays.ping()
    metrics = broker.metrics()
    assert metrics.get("tidegate_door_refused_connections_total", reason="connect_timeout") == 2


def test_3_1_2_24_connack_tells_what_holds(new_broker, dial, name):
    broker = new_broker("max_packet_size 100000\nreceive_maximum 33\nretain_available false\nmax_keepalive 50\n",
                        listener="listener 0 127.0.0.1\nallow_anonymous true\nmax_qos 1\nmax_topic_alias 7\n")
    client = dial(broker)
    connack = client.connect(name(), keep_alive=100)
    assert connack.get(wire.MAXIMUM_PACKET_SIZE) == 100000
    assert connack.get(wire.RECEIVE_MAXIMUM) == 33
    assert connack.get(wire.RETAIN_AVAILABLE) == 0
    assert connack.get(wire.SERVER_KEEP_ALIVE) == 50
    assert connack.get(wire.MAXIMUM_QOS) == 1
    assert connack.get(wire.ALIAS_MAXIMUM) == 7
    assert connack.get(wire.SHARED_AVAILABLE) == 0


def test_3_2_2_9_qos_above_the_maximum(new_broker, dial, join, name, topic):
    broker = new_broker(listener="listener 0 127.0.0.1\nallow_anonymous true\nmax_qos 1\n")
    client = join(broker, name())
    client.subscribe((topic, 2), granted=[1] if client.connack.get(wire.MAXIMUM_QOS) is None else [2])  # [MQTT-3.2.2-10]
    client.publish(topic, b"fits", qos=1)
    client.take()
    client.send(wire.publish_packet(topic, b"too much", 2, 9))
    client.expect_closed(0x9B)  # [MQTT-3.2.2-11]
    refused = dial(broker)
    assert refused.connect(name(), expect_reason=None, will={"topic": topic, "qos": 2}).reason == 0x9B  # [MQTT-3.2.2-12]
    assert refused.rest() == []


def test_3_2_2_13_retain_without_support(new_broker, dial, join, name, topic):
    broker = new_broker("retain_available false\n")
    client = join(broker, name())
    client.send(wire.publish_packet(topic, b"x", retain=True))
    client.expect_closed(0x9A)  # [MQTT-3.2.2-14]
    refused = dial(broker)
    assert refused.connect(name(), expect_reason=None, will={"topic": topic, "retain": True}).reason == 0x9A
    assert refused.rest() == []


def test_4_12_0_1_unknown_authentication_method(broker, dial, name):
    client = dial(broker)
    assert client.connect(name(), expect_reason=None, properties=[(wire.AUTH_METHOD, "GS2-KRB5")]).reason == 0x8C
    assert client.rest() == []


def test_4_12_0_7_auth_without_method(broker, join, name):
    client = join(broker, name())
    client.send(wire.packet(wire.AUTH, 0, b"\x18\x00"))
    client.expect_closed(0x82)


def test_3_1_2_29_no_problem_information(broker, join, name, topic):
    """Nothing but PUBLISH, CONNACK and DISCONNECT may carry a reason string or user properties then."""
    client = join(broker, name(), properties=[(wire.REQUEST_PROBLEM, 0)])
    ack = client.publish(topic, b"nobody", qos=1)
    suback = client.subscribe(("$share/g/x", 0), granted=[0x9E])
    for packet in (ack, suback):
        assert packet.all(wire.REASON_STRING) == [] and packet.all(wire.USER_PROPERTY) == []


@pytest.mark.parametrize("version_taken", [4, 5], ids=["v311", "v5"])
def test_3_1_4_3_takeover(broker, dial, name, topic, version_taken):
    """The old connection gets 0x8E (v5) or nothing (3.1.1) and is closed; the new one works."""
    client_id = name()
    old, new = dial(broker, version_taken), dial(broker, 5)
    old.connect(client_id)
    old.subscribe(topic)
    new.connect(client_id)
    found = old.rest()
    assert [packet.kind for packet in found] == ([DISCONNECT] if version_taken == 5 else [])
    if found:
        assert found[0].reason == 0x8E
    new.ping()


def test_3_1_4_3_takeover_many_times(broker, dial, join, name, topic):
    """A session that is fought over keeps its subscription and loses no message."""
    client_id, publisher = name(), join(broker, name())
    client = dial(broker)
    client.connect(client_id, clean=False, properties=[(wire.SESSION_EXPIRY, 100)])
    client.subscribe((topic, 1))
    for round_number in range(20):
        publisher.publish(topic, str(round_number), qos=1)
        again = dial(broker)
        assert again.connect(client_id, clean=False, properties=[(wire.SESSION_EXPIRY, 100)]).session_present == 1
        client.rest()
        message = again.take()
        assert message.payload == str(round_number).encode()
        again.ping()
        client = again


def test_3_1_4_4_clean_start_on_takeover(broker, dial, join, name, topic, nothing_but):
    client_id, publisher = name(), join(broker, name())
    old = dial(broker)
    old.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    old.subscribe((topic, 1), (topic + "/last", 1))
    new = dial(broker)
    assert new.connect(client_id, clean=True).session_present == 0
    # The old subscriptions leave the tree a moment later: until then the publisher may be told that somebody matched (0x00).
    publisher.publish(topic, b"for nobody", qos=1)
    new.subscribe(topic + "/last")
    nothing_but(new, publisher, topic + "/last")


def test_3_2_0_1_connack_comes_first(broker, dial, join, name, topic):
    """Also when messages wait for the session and others pour in."""
    client_id, publisher = name(), join(broker, name())
    client = dial(broker)
    client.connect(client_id, properties=[(wire.SESSION_EXPIRY, 100)])
    client.subscribe((topic, 1))
    client.disconnect()
    for number in range(5):
        publisher.publish(topic, str(number), qos=1)
    again = dial(broker)
    again.send(wire.connect_packet(client_id, clean=False, properties=[(wire.SESSION_EXPIRY, 100)]))
    assert again.recv().kind == CONNACK
    assert [again.expect(PUBLISH).payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
