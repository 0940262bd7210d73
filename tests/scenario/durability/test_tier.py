"""How durable a topic is made, and what the publisher is told of it."""
from harness import wire
from harness.durability import kept

ASK = (wire.USER_PROPERTY, ("tidegate-report-durability", ""))


def told(ack):
    return dict(ack.all(wire.USER_PROPERTY)).get("tidegate-durability")


def test_tiers_and_what_the_publisher_is_told(new_broker, join, topic, away):
    broker = new_broker(f"telemetry fleet/{{device}}/telemetry\ntier {topic}/fast/# memory\ntier {topic}/# log\n")
    away(broker, f"{topic}/#", qos=2)
    asks = join(broker, "asks", properties=[ASK])
    for qos in (1, 2):
        assert told(asks.publish(f"{topic}/fast/1", b"m", qos=qos)) == "memory"
        assert told(asks.publish(f"{topic}/slow", b"l", qos=qos)) == "log"
        assert told(asks.publish("fleet/car/telemetry", b"{}", qos=qos)) == "log"
        assert told(asks.publish("nobody/listens", b"n", qos=qos)) == "none"
        assert told(asks.publish("retained", b"r", qos=qos, retain=True)) == "log"
    silent = join(broker, "silent", properties=[ASK, (wire.REQUEST_PROBLEM, 0)])  # [MQTT-3.1.2-29]
    assert silent.publish(f"{topic}/slow", b"l", qos=1).properties == []
    other = join(broker, "other")
    assert other.publish(f"{topic}/slow", b"l", qos=1).properties == []
    broker.stop()  # in order: what is on its way to disk arrives
    broker.start()
    found = join(broker, "absent", **kept()).take_payloads(6)
    assert found == [b"m", b"l", b"m", b"l", b"l", b"l"]


def test_persistence_false_writes_nothing(new_broker, join, topic, away):
    broker = new_broker("persistence false\n")
    away(broker, topic, qos=2)
    publisher = join(broker, "publisher", properties=[ASK])
    for number in range(200):
        assert told(publisher.publish(topic, b"%d" % number, qos=1 + number % 2, retain=True)) == "none"
    client = join(broker, "absent", **kept())
    assert client.connack.session_present
    assert client.take_payloads(200) == [b"%d" % number for number in range(200)]
    client.ping()
    assert sorted(path.name for path in broker.data.iterdir()) == ["broker.lock", "listeners"]
    broker.check_books()
    broker.kill()
    broker.start()
    client = join(broker, "absent", **kept())
    assert not client.connack.session_present
    client.subscribe(topic)
    join(broker, "publisher").publish(topic, b"new")
    assert client.take().payload == b"new"  # no retained value came before


def test_persistence_switched_off_leaves_what_there_is(new_broker, join, topic, away):
    broker = new_broker("")
    away(broker, topic)
    join(broker, "publisher").publish(topic, b"before", qos=1)
    broker.kill()
    broker.conf = "persistence false\n"
    broker.start()
    assert "neither loaded nor changed" in broker.stderr()
    assert not join(broker, "absent", **kept()).connack.session_present
    broker.stop()
    broker.conf = ""
    broker.start()
    client = join(broker, "absent", **kept())
    assert client.connack.session_present
    assert client.take().payload == b"before"
