"""What is acknowledged is there after kill -9 and after SIGTERM: sessions, subscriptions, queues, exchanges, retained values, wills. Each test
has a broker of its own, which comes back with another number of shards.

`restart` is how it ends: "kill" at once, so that the next start finds it in the log; "kill_late" when the checkpoint has all of it, so that it
comes back from the database; "term" in order."""
import itertools

import pytest

from harness.durability import kept, wait_checkpoint


@pytest.fixture(params=["kill", "kill_late", "term"])
def restart(request):
    """restart(broker): the same broker after its end, with another number of shards. restart(broker, meanwhile): and that in between."""
    counts = itertools.cycle([3, 1, 2])

    def again(broker, meanwhile=None):
        if request.param == "kill_late":
            wait_checkpoint(broker)
        broker.stop() if request.param == "term" else broker.kill()
        if meanwhile:
            meanwhile()
        broker.shards = next(counts)
        return broker.start()

    again.how = request.param
    return again


@pytest.fixture
def version(restart):
    """Each way to end with a version of its own: that they do not meet crosswise saves time."""
    return {"kill": 5, "kill_late": 4, "term": 3}[restart.how]


@pytest.fixture
def killed():
    """The same, only with kill -9 at once: for what does not depend on how it ends."""

    def again(broker, meanwhile=None):
        broker.kill()
        if meanwhile:
            meanwhile()
        return broker.start()

    return again


@pytest.fixture
def make_state(join, away):
    """make_state(broker, topic): a queue of 50 messages and a retained value, for check_state()."""

    def make(broker, topic):
        away(broker, topic)
        publisher = join(broker, "publisher")
        for number in range(50):
            publisher.publish(topic, b"%d" % number, qos=1)
        publisher.publish(f"{topic}/retained", b"value", qos=1, retain=True)

    return make


@pytest.fixture
def check_state(join):
    """check_state(broker, topic): all of make_state() is there. Empties the queue."""

    def check(broker, topic):
        client = join(broker, "absent", **kept())
        assert client.connack.session_present
        assert client.take_payloads(50) == [b"%d" % number for number in range(50)]
        reader = join(broker, "reader")
        reader.subscribe(f"{topic}/retained")
        assert reader.take().payload == b"value"

    return check
