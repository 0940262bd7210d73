"""Real clients: paho-mqtt in 3.1.1 and 5, mosquitto_pub and mosquitto_sub, against one another and over every QoS."""
import queue
import shutil
import subprocess
import threading

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from harness.wire import PATIENCE_S

VERSIONS = {"v31": paho.MQTTv31, "v311": paho.MQTTv311, "v5": paho.MQTTv5}


class Paho:
    """paho with its network thread; what happens arrives in queues."""

    def __init__(self, port, client_id, protocol, **connect):
        clean = {} if protocol == paho.MQTTv5 else {"clean_session": connect.pop("clean_session", True)}
        self.client = paho.Client(client_id, protocol=protocol, **clean)
        self.connected, self.messages, self.subscribed, self.published = (queue.Queue() for _ in range(4))
        five = protocol == paho.MQTTv5
        self.client.on_connect = lambda *arguments: self.connected.put(arguments[2:4])
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_subscribe = lambda *arguments: self.subscribed.put(list(arguments[3]))
        self.client.on_publish = lambda _client, _data, mid: self.published.put(mid)
        if "will" in connect:
            self.client.will_set(**connect.pop("will"))
        self.client.connect("127.0.0.1", port, **connect)
        self.client.loop_start()
        self.flags, code = self.connected.get(timeout=PATIENCE_S)
        assert (code.value if five else code) == 0

    def subscribe(self, topic, qos=0, options=None):
        self.client.subscribe(topic, options=options) if options else self.client.subscribe(topic, qos)
        return [getattr(code, "value", code) for code in self.subscribed.get(timeout=PATIENCE_S)]

    def publish(self, *arguments, **options):
        self.client.publish(*arguments, **options).wait_for_publish(PATIENCE_S)

    def take(self):
        return self.messages.get(timeout=PATIENCE_S)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def new_paho(name):
    made = []

    def make(broker, protocol, client_id=None, **connect):
        made.append(Paho(broker.port, client_id or name("paho"), protocol, **connect))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("subscriber_version", VERSIONS)
@pytest.mark.parametrize("publisher_version", VERSIONS)
def test_paho_every_qos(broker, new_paho, topic, publisher_version, subscriber_version):
    subscriber = new_paho(broker, VERSIONS[subscriber_version])
    publisher = new_paho(broker, VERSIONS[publisher_version])
    assert subscriber.subscribe(topic + "/#", 2) == [2]
    for qos in (0, 1, 2):
        for number in range(20):
            publisher.publish(f"{topic}/{qos}", f"{number}", qos=qos)
    for qos in (0, 1, 2):
        messages = [subscriber.take() for _ in range(20)]
        assert [(message.topic, message.qos, message.payload) for message in messages] == [
            (f"{topic}/{qos}", qos, b"%d" % number) for number in range(20)]


def test_paho_properties_of_5(broker, new_paho, topic):
    subscriber, publisher = new_paho(broker, paho.MQTTv5), new_paho(broker, paho.MQTTv5)
    assert subscriber.subscribe(topic, options=SubscribeOptions(qos=2, noLocal=True, retainAsPublished=True)) == [2]
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    properties.ContentType = "application/json"
    properties.ResponseTopic = "re/ply"
    properties.CorrelationData = b"\0\1\2"
    properties.MessageExpiryInterval = 100
    publisher.publish(topic, b"{}", qos=2, retain=True, properties=properties)
    message = subscriber.take()
    assert message.properties.UserProperty == [("b", "1"), ("a", "2"), ("b", "3")]
    assert (message.properties.ContentType, message.properties.ResponseTopic) == ("application/json", "re/ply")
    assert message.properties.CorrelationData == b"\0\1\2"
    assert message.retain
    publisher.publish(topic, b"", retain=True)


def test_paho_persistent_session(broker, new_paho, name, topic):
    client_id = name("paho")
    first = new_paho(broker, paho.MQTTv311, client_id, clean_session=False)
    first.subscribe(topic, 2)
    first.close()
    publisher = new_paho(broker, paho.MQTTv311)
    for number in range(100):
        publisher.publish(topic, f"{number}", qos=1)
    again = new_paho(broker, paho.MQTTv311, client_id, clean_session=False)
    assert again.flags["session present"] == 1
    assert [again.take().payload for _ in range(100)] == [b"%d" % number for number in range(100)]


def test_paho_will(broker, new_paho, name, topic):
    subscriber = new_paho(broker, paho.MQTTv5)
    subscriber.subscribe(topic, 1)
    dying = new_paho(broker, paho.MQTTv311, will={"topic": topic, "payload": b"gone", "qos": 1})
    dying.client._sock_close()  # pylint: disable=protected-access
    assert subscriber.take().payload == b"gone"


def test_paho_many_clients_at_once(broker, new_paho, topic):
    """Ten publishers with ten subscribers each of all they say."""
    subscribers = [new_paho(broker, paho.MQTTv5) for _ in range(10)]
    for subscriber in subscribers:
        subscriber.subscribe(topic + "/+", 1)
    publishers = [new_paho(broker, paho.MQTTv311) for _ in range(10)]
    threads = [threading.Thread(target=lambda who=who, number=number: [who.publish(f"{topic}/{number}", f"{count}", qos=1) for count in range(20)])
               for number, who in enumerate(publishers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for subscriber in subscribers:
        found = {}
        for _ in range(200):
            message = subscriber.take()
            found.setdefault(message.topic, []).append(int(message.payload))
        assert found == {f"{topic}/{number}": list(range(20)) for number in range(10)}


# ---- mosquitto's clients ----

MOSQUITTO_VERSIONS = {"v31": "31", "v311": "311", "v5": "5"}


def mosquitto_pub(broker, *arguments):
    done = subprocess.run(["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), *arguments], capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def mosquitto_sub():
    """mosquitto_sub(broker, ...): started, and known to be subscribed (-d says so)."""
    assert shutil.which("mosquitto_sub"), "mosquitto-clients are not installed"
    made = []

    def make(broker, *arguments):
        process = subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", "-d", "-h", "127.0.0.1", "-p", str(broker.port), *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        made.append(process)
        lines = iter(process.stdout.readline, "")
        for line in lines:
            if line.startswith("Subscribed"):
                return process, lines
        raise AssertionError("mosquitto_sub did not subscribe")

    yield make
    for process in made:
        process.kill()
        process.wait()
        process.stdout.close()


def payload_lines(lines, count):
    found = []
    for line in lines:
        if line.startswith("> "):
            found.append(line[2:].rstrip("\n"))
            if len(found) == count:
                return found
    raise AssertionError(f"mosquitto_sub ended after {found}")


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.parametrize("mosquitto_version", MOSQUITTO_VERSIONS)
def test_mosquitto_pub_and_sub(broker, mosquitto_sub, topic, mosquitto_version, qos):
    version = MOSQUITTO_VERSIONS[mosquitto_version]
    _, lines = mosquitto_sub(broker, "-V", version, "-q", "2", "-t", topic + "/#", "-F", "> %t %q %p", "-C", "2")
    mosquitto_pub(broker, "-V", version, "-q", qos, "-t", topic + "/a", "-m", "hello")
    mosquitto_pub(broker, "-V", version, "-q", qos, "-t", topic + "/b", "-m", '{"speed":61.5}')
    assert payload_lines(lines, 2) == [f"{topic}/a {qos} hello", f"{topic}/b {qos} {{\"speed\":61.5}}"]


def test_mosquitto_retained_and_properties(broker, mosquitto_sub, topic):
    mosquitto_pub(broker, "-V", "5", "-q", "1", "-r", "-t", topic, "-m", "kept", "-D", "publish", "user-property", "k", "v")
    _, lines = mosquitto_sub(broker, "-V", "5", "-q", "1", "-t", topic, "-F", "> %p %r %P", "-C", "1")
    assert payload_lines(lines, 1) == ["kept 1 k:v"]
    mosquitto_pub(broker, "-r", "-n", "-t", topic)


def test_mosquitto_persistent_subscriber(broker, mosquitto_sub, name, topic):
    client_id = name("mosq")
    process, _ = mosquitto_sub(broker, "-V", "311", "-c", "-i", client_id, "-q", "1", "-t", topic)
    process.kill()
    process.wait()
    for number in range(3):
        mosquitto_pub(broker, "-q", "1", "-t", topic, "-m", str(number))
    done = subprocess.run(["mosquitto_sub", "-h", "127.0.0.1", "-p", str(broker.port), "-V", "311", "-c", "-i", client_id, "-q", "1", "-t", topic,
                           "-C", "3"], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.split() == ["0", "1", "2"], done.stderr
