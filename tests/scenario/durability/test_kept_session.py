"""Sessions and subscriptions after the broker's end: which there are, with what options, and how their time goes on."""
import time

from harness import wire
from harness.durability import FAST, KEPT, kept, wait_checkpoint

NO_LOCAL, AS_PUBLISHED, ONLY_NEW = 4, 8, 32


def test_4_1_0_session_present(new_broker, dial, restart, version):
    broker = new_broker(FAST)
    for client_id in ("one", "two", "three"):
        client = dial(broker, version)
        assert not client.connect(client_id, **kept(version)).session_present
        if client_id == "three":
            client.disconnect()
    gone = dial(broker, version)
    gone.connect("two", clean=True)  # [MQTT-3.1.2-6]: ends the kept one
    restart(broker)
    for client_id, present in (("one", 1), ("two", 0), ("three", 1), ("four", 0)):
        assert dial(broker, version).connect(client_id, **kept(version)).session_present == (present if version > 3 else 0), client_id
    broker.check_books()


def test_4_1_0_ended_sessions_stay_ended(new_broker, dial, join, restart, topic, away):
    """Clean start, and an expiry interval of 0 at DISCONNECT: neither the session nor its queue comes back."""
    broker = new_broker(FAST)
    publisher = join(broker, "publisher")
    for client_id in ("clean", "zero"):
        away(broker, topic, client_id=client_id)
    publisher.publish(topic, b"old", qos=1)
    join(broker, "clean", clean=True, properties=KEPT).disconnect()
    client = dial(broker)
    assert client.connect("zero", **kept()).session_present
    client.disconnect(properties=[(wire.SESSION_EXPIRY, 0)])
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 2, "the session of expiry 0 has ended")
    wait_checkpoint(broker)  # the end of a session is answered by nothing: it counts once it is written
    restart(broker)
    client = dial(broker)
    assert client.connect("clean", **kept()).session_present
    client.subscribe((topic, 1))
    assert not dial(broker).connect("zero", **kept()).session_present
    join(broker, "publisher").publish(topic, b"new", qos=1)
    assert client.take().payload == b"new"


def test_4_1_0_2_session_expires_while_the_broker_is_down(new_broker, dial, join, restart, topic):
    """Time away counts: for an absent client from its disconnection on. And it goes on afterwards."""
    broker = new_broker(FAST)
    short = join(broker, "short", clean=False, properties=[(wire.SESSION_EXPIRY, 1)])
    short.subscribe((topic, 1))
    short.disconnect()
    join(broker, "long", clean=False, properties=[(wire.SESSION_EXPIRY, 3600)]).disconnect()
    never = join(broker, "never", clean=False, properties=[(wire.SESSION_EXPIRY, 0xFFFFFFFF)])
    never.disconnect()
    restart(broker, lambda: time.sleep(2.1))
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 2, "the expired session has ended")
    assert not dial(broker).connect("short", **kept()).session_present
    assert dial(broker).connect("long", **kept()).session_present
    assert dial(broker).connect("never", **kept()).session_present
    broker.wait_metric(lambda metrics: metrics.get("tidegate_subscriptions") == 0, "its subscription has gone with it")


def test_4_1_0_2_clock_starts_at_the_start_for_the_connected(new_broker, dial, join, restart):
    """Who was connected counts as disconnected at the start: not before, so that it has its interval; but from then on."""
    broker = new_broker(FAST)
    join(broker, "was here", clean=False, properties=[(wire.SESSION_EXPIRY, 4)])
    restart(broker, lambda: time.sleep(4.5))
    assert dial(broker).connect("was here", clean=False, properties=[(wire.SESSION_EXPIRY, 1)]).session_present
    restart(broker)
    broker.wait_metric(lambda metrics: metrics.get("tidegate_sessions") == 0, "it expires when it does not come back")


def test_3_14_2_expiry_of_disconnect_counts(new_broker, dial, join, killed):
    broker = new_broker(FAST)
    client = join(broker, "changed", clean=False, properties=[(wire.SESSION_EXPIRY, 1)])
    client.disconnect(properties=[(wire.SESSION_EXPIRY, 3600)])
    wait_checkpoint(broker)
    killed(broker, lambda: time.sleep(2.1))
    assert dial(broker).connect("changed", **kept()).session_present


# ---- subscriptions ----


def test_3_8_3_1_subscriptions_with_their_options(new_broker, join, restart, topic):
    broker = new_broker(FAST)
    client = join(broker, "options", **kept())
    client.subscribe((f"{topic}/qos0", 0), (f"{topic}/qos1", 1), (f"{topic}/qos2", 2))
    client.subscribe((f"{topic}/local", 1 | NO_LOCAL))
    client.subscribe((f"{topic}/flag/+", 1 | AS_PUBLISHED), properties=[(wire.SUBSCRIPTION_ID, 268435455)])
    client.subscribe((f"{topic}/id", 1), properties=[(wire.SUBSCRIPTION_ID, 7)])
    client.subscribe((f"{topic}/changed", 2 | NO_LOCAL), properties=[(wire.SUBSCRIPTION_ID, 8)])
    client.subscribe((f"{topic}/changed", 1))  # replaces it, identifier and all [MQTT-3.8.4-3]
    client.subscribe((f"{topic}/only new", 1 | ONLY_NEW))
    restart(broker)
    client = join(broker, "options", **kept())
    assert client.connack.session_present
    publisher = join(broker, "publisher")

    def comes(where, qos, expected_qos, retain=False, by=publisher):
        by.publish(f"{topic}/{where}", where, qos=qos, retain=retain)
        message = client.take()
        assert (message.topic, message.qos) == (f"{topic}/{where}", expected_qos), message
        return message

    for qos in (0, 1, 2):
        comes(f"qos{qos}", 2, qos)
    comes("local", 1, 1)
    client.publish(f"{topic}/local", b"own", qos=1)  # [MQTT-3.8.3-3]
    assert comes("flag/1", 2, 1, retain=True).retain == 1
    message = comes("flag/2", 2, 1)
    assert (message.retain, message.get(wire.SUBSCRIPTION_ID)) == (0, 268435455)
    message = comes("id", 1, 1, retain=True)
    assert (message.retain, message.get(wire.SUBSCRIPTION_ID)) == (0, 7)
    message = comes("changed", 2, 1, by=client)
    assert message.get(wire.SUBSCRIPTION_ID) is None
    broker.check_books()


def test_3_10_4_unsubscribed_stays_so(new_broker, join, restart, topic, version):
    broker = new_broker(FAST)
    client = join(broker, "client", version, **kept(version))
    client.subscribe((f"{topic}/a", 1), (f"{topic}/b", 1))
    client.unsubscribe(f"{topic}/a")
    client.disconnect()
    restart(broker)
    publisher = join(broker, "publisher")
    publisher.publish(f"{topic}/a", b"a", qos=1)
    publisher.publish(f"{topic}/b", b"b", qos=1)
    assert join(broker, "client", version, **kept(version)).take().payload == b"b"
    broker.wait_metric(lambda metrics: metrics.get("tidegate_subscriptions") == 1, "one subscription is left")
