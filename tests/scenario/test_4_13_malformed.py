"""What does not fit closes the connection: MQTT 5 is told why, 3.1.1 is not, and it is counted."""
import pytest

from harness import wire

HUGE = b"\xff\xff\xff\x7f"


def publish(topic=b"t", flags=0, rest=b"\0", payload=b""):
    return wire.packet(3, flags, wire.string(topic) + rest + payload)


def subscribe(body, flags=2):
    return wire.packet(8, flags, b"\0\1\0" + body)


# (name with the clause, bytes, reason code): on an established MQTT 5 connection.
V5 = [
    ("type_0", wire.packet(0, 0, b""), 0x81),
    ("1_5_5_1-remaining_length_not_shortest", b"\xc0\x80\x00", 0x81),
    ("remaining_length_of_five_bytes", b"\x30\xff\xff\xff\xff\x7f", 0x81),
    ("3_2_2_15-larger_than_the_maximum", b"\x30" + HUGE, 0x95),
    ("3_3_1_4-qos_3", publish(flags=6, rest=b"\0\1\0"), 0x81),
    ("3_3_1_2-dup_with_qos_0", publish(flags=8), 0x81),
    ("3_3_2_1-topic_not_utf8", publish(b"a\xff"), 0x81),
    ("3_3_2_1-topic_missing", wire.packet(3, 0, b""), 0x81),
    ("3_3_2_1-topic_cut_short", wire.packet(3, 0, b"\x00\x05ab"), 0x81),
    ("3_3_2_2-hash_in_topic", publish(b"a/#"), 0x90),
    ("3_3_2_2-plus_in_topic", publish(b"+/a"), 0x90),
    ("4_7_3_1-no_topic_no_alias", publish(b""), 0x82),
    ("4_7_3_2-nul_in_topic", publish(b"a\0b"), 0x81),
    ("1_5_4_1-surrogate_in_topic", publish(b"\xed\xa0\x80"), 0x81),
    ("1_5_4_1-overlong_in_topic", publish(b"\xc0\xaf"), 0x81),
    ("1_5_4_1-above_unicode", publish(b"\xf4\x90\x80\x80"), 0x81),
    ("2_2_1_3-publish_id_0", publish(flags=2, rest=b"\0\0\0"), 0x82),
    ("publish_id_missing", wire.packet(3, 2, wire.string("t")), 0x81),
    ("publish_without_property_length", wire.packet(3, 0, wire.string("t")), 0x81),
    ("publish_property_length_beyond_the_packet", publish(rest=b"\x20"), 0x81),
    ("publish_unknown_property", publish(rest=b"\x02\x04\x00"), 0x81),
    ("publish_property_of_connect", publish(rest=b"\x03\x21\x00\x01"), 0x81),
    ("publish_property_cut_short", publish(rest=b"\x02\x02\x00"), 0x81),
    ("publish_expiry_twice", publish(rest=wire.properties_bytes([(2, 1), (2, 1)])), 0x82),
    ("payload_format_2", publish(rest=wire.properties_bytes([(1, 2)])), 0x82),
    ("3_3_4_6-subscription_identifier", publish(rest=wire.properties_bytes([(0x0B, 1)])), 0x82),
    ("3_3_2_13-response_topic_not_utf8", publish(rest=wire.properties_bytes([(8, b"\xff")])), 0x81),
    ("3_3_2_14-response_topic_wildcard", publish(rest=wire.properties_bytes([(8, "a/#")])), 0x82),
    ("3_3_2_19-content_type_not_utf8", publish(rest=wire.properties_bytes([(3, b"\xff")])), 0x81),
    ("1_5_7_1-user_property_not_utf8", publish(rest=wire.properties_bytes([(0x26, (b"\xff", "x"))])), 0x81),
    ("puback_flags", wire.packet(4, 1, b"\0\1"), 0x81),
    ("puback_empty", wire.packet(4, 0, b""), 0x81),
    ("puback_id_0", wire.packet(4, 0, b"\0\0"), 0x82),
    ("puback_undefined_reason", wire.packet(4, 0, b"\0\1\x55"), 0x82),
    ("pubrec_flags", wire.packet(5, 2, b"\0\1"), 0x81),
    ("3_6_1_1-pubrel_flags", wire.packet(6, 0, b"\0\1"), 0x81),
    ("pubcomp_flags", wire.packet(7, 2, b"\0\1"), 0x81),
    ("3_8_1_1-subscribe_flags", subscribe(wire.string("a") + b"\0", flags=0), 0x81),
    ("3_8_3_1-filter_not_utf8", subscribe(wire.string(b"\xff") + b"\0"), 0x81),
    ("3_8_3_2-no_filter", subscribe(b""), 0x82),
    ("3_8_3_5-qos_3", subscribe(wire.string("a") + b"\3"), 0x82),
    ("3_8_3_5-reserved_bits", subscribe(wire.string("a") + b"\x40"), 0x81),
    ("3_8_3_5-retain_handling_3", subscribe(wire.string("a") + b"\x30"), 0x82),
    ("3_8_3_4-no_local_shared", subscribe(wire.string("$share/g/a") + b"\4"), 0x82),
    ("subscribe_options_missing", subscribe(wire.string("a")), 0x81),
    ("4_7_3_1-empty_filter", subscribe(wire.string("") + b"\0"), 0x8F),
    ("2_2_1_3-subscribe_id_0", wire.packet(8, 2, b"\0\0\0" + wire.string("a") + b"\0"), 0x82),
    ("subscription_identifier_0", wire.packet(8, 2, b"\0\1\x02\x0b\x00" + wire.string("a") + b"\0"), 0x82),
    ("3_10_1_1-unsubscribe_flags", wire.packet(10, 0, b"\0\1\0" + wire.string("a")), 0x81),
    ("3_10_3_1-unsubscribe_not_utf8", wire.packet(10, 2, b"\0\1\0" + wire.string(b"\xff")), 0x81),
    ("3_10_3_2-unsubscribe_nothing", wire.packet(10, 2, b"\0\1\0"), 0x82),
    ("2_2_1_3-unsubscribe_id_0", wire.packet(10, 2, b"\0\0\0" + wire.string("a")), 0x82),
    ("2_1_3_1-pingreq_flags", wire.packet(12, 1, b""), 0x81),
    ("pingreq_with_bytes", wire.packet(12, 0, b"x"), 0x81),
    ("3_14_1_1-disconnect_flags", wire.packet(14, 1, b""), 0x81),
    ("3_14_2_1-disconnect_undefined_reason", wire.packet(14, 0, b"\x55"), 0x82),
    ("3_15_1_1-auth_flags", wire.packet(15, 1, b"\x18\0"), 0x81),
    ("4_12_0_7-auth", wire.packet(15, 0, b"\x18\0"), 0x82),
    ("connack_from_a_client", wire.packet(2, 0, b"\0\0\0"), 0x82),
    ("suback_from_a_client", wire.packet(9, 0, b"\0\1\0\0"), 0x82),
    ("pingresp_from_a_client", wire.packet(13, 0, b""), 0x82),
]

# On an established MQTT 3.1.1 connection: closed in silence [MQTT-4.8.0-1].
V311 = [
    ("type_0", wire.packet(0, 0, b"")),
    ("type_15", wire.packet(15, 0, b"\x18\0")),
    ("remaining_length_of_five_bytes", b"\x30\xff\xff\xff\xff\x7f"),
    ("larger_than_the_maximum", b"\x30" + HUGE),
    ("3_3_1_4-qos_3", wire.packet(3, 6, wire.string("t") + b"\0\1")),
    ("3_3_2_2-wildcard_in_topic", wire.packet(3, 0, wire.string("a/#"))),
    ("4_7_3_1-empty_topic", wire.packet(3, 0, wire.string(""))),
    ("3_3_2_1-topic_not_utf8", wire.packet(3, 0, wire.string(b"\xc3\x28"))),
    ("2_3_1_1-publish_id_0", wire.packet(3, 2, wire.string("t") + b"\0\0")),
    ("puback_with_bytes_behind", wire.packet(4, 0, b"\0\1\0")),
    ("3_6_1_1-pubrel_flags", wire.packet(6, 0, b"\0\1")),
    ("3_8_1_1-subscribe_flags", wire.packet(8, 0, b"\0\1" + wire.string("a") + b"\0")),
    ("3_8_3_3-no_filter", wire.packet(8, 2, b"\0\1")),
    ("3_8_3_4-reserved_bits", wire.packet(8, 2, b"\0\1" + wire.string("a") + b"\4")),
    ("3_8_3_4-qos_3", wire.packet(8, 2, b"\0\1" + wire.string("a") + b"\3")),
    ("3_10_1_1-unsubscribe_flags", wire.packet(10, 0, b"\0\1" + wire.string("a"))),
    ("3_10_3_2-unsubscribe_nothing", wire.packet(10, 2, b"\0\1")),
    ("3_12_1-pingreq_with_bytes", wire.packet(12, 0, b"x")),
    ("3_14_1_1-disconnect_flags", wire.packet(14, 1, b"")),
    ("disconnect_with_bytes", wire.packet(14, 0, b"\0")),
]


def counted(metrics):
    return (metrics.get("tidegate_closed_connections_total", reason="malformed") +
            metrics.get("tidegate_closed_connections_total", reason="protocol_error"))


@pytest.mark.parametrize("sent, reason", [pytest.param(sent, reason, id=label) for label, sent, reason in V5])
def test_4_13_1_1_v5(broker, join, name, sent, reason):
    before = counted(broker.metrics())
    client = join(broker, name())
    client.send_tolerant(sent)
    assert client.expect_closed(reason) == []
    broker.wait_metric(lambda metrics: counted(metrics) == before + 1, "it is counted")


@pytest.mark.parametrize("sent", [pytest.param(sent, id=label) for label, sent in V311])
def test_4_8_0_1_v311(broker, join, name, sent):
    before = counted(broker.metrics())
    client = join(broker, name(), 4)
    client.send_tolerant(sent)
    assert client.expect_closed() == []
    broker.wait_metric(lambda metrics: counted(metrics) == before + 1, "it is counted")


def test_4_13_1_1_every_prefix_is_harmless(broker, join, dial, name, topic):
    """A connection cut at any byte of a PUBLISH leaves nothing behind."""
    watcher = join(broker, name())
    watcher.subscribe((topic, 2))
    whole = wire.connect_packet(name()) + wire.publish_packet(topic, b"x" * 20, 2, 1, properties=[(wire.USER_PROPERTY, ("a", "b"))])
    connect_size = len(wire.connect_packet(name()))
    for size in range(connect_size + 2, len(whole)):
        client = dial(broker)
        client.send(whole[:size])
        client.close()
    watcher.publish(topic, b"end", qos=1)
    assert watcher.take().payload == b"end"


def test_3_14_4_1_nothing_is_sent_after_disconnect(broker, join, name, topic):
    """Packets behind the bad one are not handled, and nothing follows DISCONNECT."""
    watcher = join(broker, name())
    watcher.subscribe((topic, 1))
    client = join(broker, name())
    client.send_tolerant(wire.publish_packet(topic, b"before", 1, 1) + wire.packet(8, 0, b"\0\1\0") + wire.publish_packet(topic, b"after", 1, 2))
    found = client.rest()
    assert found[-1].kind == wire.DISCONNECT and found[-1].reason == 0x81
    assert watcher.take().payload == b"before"
    watcher.publish(topic, b"end", qos=1)
    assert watcher.take().payload == b"end"
