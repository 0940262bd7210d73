"""SUBSCRIBE, UNSUBSCRIBE, topic names and filters, shared subscriptions."""
import pytest

from harness import wire
from harness.wire import PUBLISH, SUBACK, UNSUBACK


@pytest.fixture
def pair(broker, join, name, version):
    return join(broker, name("subscriber"), version), join(broker, name("publisher"), version)


def test_3_8_4_2_and_6_answer_has_id_and_a_code_each(broker, join, name, topic, version):
    client = join(broker, name(), version)
    filters = [(f"{topic}/{number}", number % 3) for number in range(100)]
    client.send(wire.subscribe_packet(filters, 65535, version=version))
    suback = client.expect(SUBACK)
    assert suback.packet_id == 65535
    assert suback.codes == [number % 3 for number in range(100)]  # [MQTT-3.9.3-1]
    client.send(wire.unsubscribe_packet([text for text, _ in filters] + [topic + "/none"], 12345, version=version))
    unsuback = client.expect(UNSUBACK)
    assert unsuback.packet_id == 12345
    assert unsuback.codes == ([0] * 100 + [0x11] if version == 5 else [])  # [MQTT-3.11.3-1, -2]


def test_3_8_4_3_same_filter_replaces(pair, topic):
    subscriber, publisher = pair
    subscriber.subscribe((topic, 2))
    subscriber.subscribe((topic, 0))
    publisher.publish(topic, b"a", qos=2)
    publisher.publish(topic, b"b", qos=2)
    messages = [subscriber.take(), subscriber.take()]
    assert [(message.payload, message.qos) for message in messages] == [(b"a", 0), (b"b", 0)]


def test_4_5_0_1_subscription_holds_from_suback_on(pair, topic):
    """Whatever is published after SUBACK arrives, every time."""
    subscriber, publisher = pair
    for number in range(50):
        subscriber.subscribe((f"{topic}/{number}", 1))
        publisher.publish(f"{topic}/{number}", b"%d" % number, qos=1)
        assert subscriber.take().payload == b"%d" % number


def test_3_10_4_1_unsubscribe_is_exact(pair, topic):
    subscriber, publisher = pair
    subscriber.subscribe((topic + "/a", 0), (topic + "/+", 0))
    subscriber.unsubscribe(topic + "/b", codes=[0x11])
    subscriber.unsubscribe(topic + "/A", codes=[0x11])
    subscriber.unsubscribe(topic + "/a")
    publisher.publish(topic + "/a", b"once")
    publisher.publish(topic + "/end", b"end")
    assert subscriber.take_payloads(2) == [b"once", b"end"]


def test_3_10_4_2_nothing_new_after_unsuback(pair, topic):
    subscriber, publisher = pair
    for _ in range(20):
        subscriber.subscribe((topic, 1), (topic + "/end", 1))
        publisher.publish(topic, b"one", qos=1)
        assert subscriber.take().payload == b"one"
        subscriber.unsubscribe(topic)
        publisher.publish(topic, b"two", qos=1)
        publisher.publish(topic + "/end", b"end", qos=1)
        assert subscriber.take().payload == b"end"


@pytest.mark.parametrize("topic_filter, matching, others", [
    ("{}", ["{}"], ["{}/", "/{}", "{}/a", "x{}"]),
    ("{}/#", ["{}", "{}/", "{}/a", "{}/a/b", "{}//"], ["x/{}/a"]),
    ("{}/+", ["{}/a", "{}/"], ["{}", "{}/a/b", "{}/a/"]),
    ("{}/+/b", ["{}/a/b", "{}//b"], ["{}/b", "{}/a/c"]),
    ("{}/+/#", ["{}/a", "{}/a/b", "{}/"], ["{}"]),
    ("{}/a/+/+", ["{}/a/b/c", "{}/a//"], ["{}/a/b"]),
    ("+/{}", ["/{}", "x/{}"], ["{}", "x/{}/y", "$x/{}"]),
    ("{}/ä/+", ["{}/ä/日本"], ["{}/a/x", "{}/a\u0308/x"]),
    ("{}/A", ["{}/A"], ["{}/a"]),
    ("/{}", ["/{}"], ["{}", "//{}"]),
    ("{}//", ["{}//"], ["{}/", "{}"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_4_7_1_matching(broker, join, name, topic, topic_filter, matching, others):
    """[MQTT-4.7.1-1, -2] [MQTT-4.7.2-1] [MQTT-4.7.3-4]"""
    subscriber, publisher = join(broker, name()), join(broker, name())
    subscriber.subscribe((topic_filter.format(topic), 1), ("end/" + topic, 1))
    for where in others + matching:
        publisher.publish(where.format(topic), b"x", qos=1)
    publisher.publish("end/" + topic, b"end", qos=1)
    found = []
    while (message := subscriber.take()).payload != b"end":
        found.append(message.topic)
    assert found == [where.format(topic) for where in matching]


def test_4_7_2_1_leading_wildcards_do_not_match_dollar_topics(new_broker, join, name, shards):
    broker = new_broker(shards=shards)
    everything, first_level, exact, below = (join(broker, name()) for _ in range(4))
    everything.subscribe(("#", 1))
    first_level.subscribe(("+/status", 1))
    exact.subscribe(("$mine/status", 1))
    below.subscribe(("$mine/#", 1))
    publisher = join(broker, name())
    publisher.publish("$mine/status", b"hidden", qos=1)
    publisher.publish("open/status", b"open", qos=1)
    assert everything.take().payload == b"open"
    assert first_level.take().payload == b"open"
    assert exact.take().payload == b"hidden"
    assert below.take().payload == b"hidden"


def test_4_7_publish_to_sys_is_not_special_for_others(broker, join, name, topic):
    """An ordinary client may use $ topics of its own."""
    client = join(broker, name())
    client.subscribe(("$" + topic + "/+", 1))
    client.publish("$" + topic + "/a", b"x", qos=1)
    assert client.take().topic == "$" + topic + "/a"


@pytest.mark.parametrize("topic_filter", ["a#", "a/#/b", "#/a", "a+", "a/+b", "+a", "a/b#", "##", "++"])
def test_4_7_1_bad_filters(broker, join, name, topic_filter):
    client = join(broker, name())
    client.send(wire.subscribe_packet([(topic_filter, 0)], 1))
    client.expect_closed(0x8F)
    older = join(broker, name(), 4)
    older.send(wire.subscribe_packet([(topic_filter, 0)], 1, version=4))
    assert older.expect_closed() == []


def test_4_7_many_filters_and_levels(broker, join, name, topic):
    """As many levels as fit, and a thousand subscriptions of one client."""
    client = join(broker, name())
    deep = topic + "/x" * 30000
    client.subscribe((deep, 1), granted=None)
    client.publish(deep, b"deep", qos=1)
    assert client.take().topic == deep
    for start in range(0, 1000, 100):
        client.subscribe(*[(f"{topic}/{number}", 1) for number in range(start, start + 100)])
    client.publish(topic + "/999", b"x", qos=1)
    assert client.take().topic == topic + "/999"


@pytest.mark.parametrize("version_used", [4, 5], ids=["v311", "v5"])
def test_4_8_2_shared_subscriptions_are_refused(broker, join, name, topic, version_used):
    """This version has none: 0x9E beside the codes of the others, and CONNACK said so."""
    client = join(broker, name(), version_used)
    if version_used == 5:
        assert client.connack.get(wire.SHARED_AVAILABLE) == 0
    refusal = 0x9E if version_used == 5 else 0x80
    client.subscribe((topic, 1), ("$share/group/" + topic, 1), granted=[1, refusal])
    client.publish(topic, b"x", qos=1)
    assert client.take().payload == b"x"
    client.ping()
    assert not [packet for packet in client.waiting if packet.kind == PUBLISH]


@pytest.mark.parametrize("topic_filter, reason", [("$share/", 0x8F), ("$share//a", 0x8F), ("$share/g", 0x8F), ("$share/g/", 0x8F), ("$share/g+/a", 0x8F),
                                                  ("$share/#/a", 0x8F)])
def test_4_8_2_1_and_2_bad_share_names(broker, join, name, topic_filter, reason):
    client = join(broker, name())
    client.send(wire.subscribe_packet([(topic_filter, 0)], 1))
    client.expect_closed(reason)


def test_3_8_3_4_no_local_on_a_shared_subscription(broker, join, name):
    client = join(broker, name())
    client.send(wire.subscribe_packet([("$share/g/a", 4)], 1))
    client.expect_closed(0x82)
