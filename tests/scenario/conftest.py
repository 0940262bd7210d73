"""One broker with one shard and one with three serve most scenarios: tests use topics and client ids of their own (`topic`, `name`). A test
that needs another configuration starts its own by new_broker()."""
import itertools

import pytest

from harness import programs
from harness.durability import kept
from harness.wire import PUBLISH

_numbers = itertools.count(1)

# Durable telemetry beside ordinary topics, so that both ways through the ack gate are tried everywhere.
SHARED_CONF = "telemetry fleet/{device}/telemetry\n"


@pytest.fixture(scope="session", params=[1, 3], ids=["1shard", "3shards"])
def _shared_broker(request, tmp_path_factory):
    broker = programs.Broker(tmp_path_factory.mktemp("shared"), SHARED_CONF, shards=request.param).start()
    yield broker
    broker.stop()


@pytest.fixture
def broker(_shared_broker):
    """The shared broker; its books are checked when the test is over."""
    yield _shared_broker
    assert _shared_broker.is_alive(), _shared_broker.stderr()[-8000:]
    _shared_broker.check_books()


@pytest.fixture(params=[1, 3], ids=["1shard", "3shards"])
def shards(request):
    """For tests with a broker of their own."""
    return request.param


@pytest.fixture(params=[3, 4, 5], ids=["v31", "v311", "v5"])
def version(request):
    return request.param


@pytest.fixture
def name():
    """name("x"): a client id nobody else has."""
    return lambda stem="client": f"{stem}-{next(_numbers)}"


@pytest.fixture
def topic():
    """A topic prefix nobody else has."""
    return f"t{next(_numbers)}"


@pytest.fixture
def spread(join, name):
    """spread(broker, **options): clients of which at least one is at home on every shard."""

    def make(where, version=5, **options):
        clients = []
        seen = where.homes()
        missing = set(seen)
        while missing:
            clients.append(join(where, name("spread"), version, **options))
            now = where.homes()
            missing -= {shard for shard in now if now[shard] > seen.get(shard, 0)}
            seen = now
        return clients

    return make


@pytest.fixture
def nothing_but():
    """nothing_but(subscriber, publisher, topic, qos): publish a last message and assert that it is the next one to come."""

    def check(subscriber, publisher, topic, qos=0):
        publisher.publish(topic, b"last", qos=qos)
        message = subscriber.expect(PUBLISH)
        assert message.payload == b"last", message
        subscriber.acknowledge(message)

    return check


@pytest.fixture
def away(join):
    """away(broker, topic, qos=1, client_id="absent"): a session that outlives its connection, with this subscription; its client has left."""

    def make(broker, topic, qos=1, client_id="absent"):
        client = join(broker, client_id, **kept())
        client.subscribe((topic, qos))
        client.disconnect()

    return make
