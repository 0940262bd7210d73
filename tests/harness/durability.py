"""Sessions that outlive their connection, and a checkpoint that has everything: what tests of durability begin and wait with."""
from . import wire

KEPT = [(wire.SESSION_EXPIRY, 3600)]
FAST = "checkpoint_interval 50ms\n"  # most tests look at what is behind a commit


def kept(version=5, more=()):
    """Options of a CONNECT whose session outlives the connection."""
    return {"clean": False, "properties": KEPT + list(more)} if version == 5 else {"clean": False}


def wait_checkpoint(broker):
    """Until the checkpoint has all that clients caused and saw the answer of (that of PINGREQ, if nothing else is answered).

    A PUBACK says that all before it is durable; of the commits that end after it, the third has begun after it."""
    probe = wire.Client(broker.port)
    probe.connect("checkpoint probe")
    for _ in range(3):
        commits = broker.metrics().get("tidegate_checkpoint_commits_total")
        probe.publish("checkpoint/probe", b"x", qos=1, retain=True)
        broker.wait_metric(lambda metrics: metrics.get("tidegate_checkpoint_commits_total") > commits, "the checkpoint goes on")
    probe.disconnect()
