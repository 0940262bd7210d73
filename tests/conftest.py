"""Fixtures of the scenario and the end-to-end tests. MODE=release|debug|asan|ubsan|tsan names the build that is tried."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from harness import programs  # noqa: E402
from harness.wire import Client  # noqa: E402


def pytest_report_header():
    return f"programs: {programs.BUILD}"


@pytest.fixture
def new_broker(tmp_path):
    """new_broker(conf="", shards=1, ...): a broker of this test's own, stopped and judged at the end."""
    made = []

    def make(conf="", **options):
        directory = options.pop("directory", tmp_path / f"broker{len(made)}")
        broker = programs.Broker(directory, conf, **options)
        made.append(broker)
        return broker.start()

    yield make
    programs.stop_all(made)


@pytest.fixture
def new_sink(tmp_path):
    """new_sink(broker, conf=""): a sink beside it."""
    made = []

    def make(broker, conf="", start=True, **options):
        sink = programs.Sink(options.pop("directory", tmp_path / f"sink{len(made)}"), broker.data, conf, **options)
        made.append(sink)
        return sink.start() if start else sink

    yield make
    programs.stop_all(made)


@pytest.fixture
def dial():
    """dial(broker or port, version=5, ...): an open connection on which nothing has been said."""
    opened = []

    def make(where, version=5, **options):
        client = Client(getattr(where, "port", where), version, **options)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def join(dial):
    """join(broker, client_id, version=5, **options of Client.connect): a connected client."""

    def make(where, client_id="", version=5, **options):
        client = dial(where, version, **{name: options.pop(name) for name in ("tls", "receive_buffer") if name in options})
        client.connack = client.connect(client_id, **options)
        return client

    return make
