#!/usr/bin/python3
"""The kill campaign: a broker under mixed load is killed again and again, and after each start its clients compare what they were told with
what they find (ledger.py has the rules).

    tests/crash/campaign.py [--rounds N] [--seconds N] [--seed N] [--points N] [--share I/N] [--only plain|power|point|cut] [--point NAME]
                            [--patience N] [--directory DIR] [--result FILE]

A round: start; reconnect everyone, resend, drain, check; load; kill. Three ways to be killed:

  plain   SIGKILL at a random moment, also while starting
  power   the same under disk_recorder.c: what was not synced is lost or torn at random (disk_image.py)
  point   under the recorder, at a named CRASH_POINT (common/crash_point.h), at its n-th passing; builds without them have none

All choices come from the seed: what each client does, where the kill falls as far as time lets it, what an image loses. --points N: at
least N kills at every point that steps.py does not bring about, or the campaign has failed (not with --seconds); --share I/N: only every
N-th of them, the others are another campaign's (long.py). Stops at the first finding, with its seed, round, client and message; the
directory stays.

What is demanded follows what the broker promises: one that has the option `will_restart_grace` keeps sessions, queues, retained values and
wills over its end; an older one telemetry alone. --only cut kills nobody: all connections break at once, and the same must hold; what is
found then has nothing to do with crashes. --patience: seconds without progress after which what was waited for counts as missing."""
import argparse
import asyncio
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from crash.disk_image import CrashImage, Snapshot  # noqa: E402
from crash.ledger import Ledger, Will  # noqa: E402
from crash.peer import PATIENCE_S, Peer  # noqa: E402
from crash.steps import POINTS as STEPS_POINTS  # noqa: E402
from harness import programs, wire  # noqa: E402
from harness.pair import Pair  # noqa: E402

GRACE_S = 2  # will_restart_grace
WINDOW = 20  # open PUBLISHes of a publisher
MESSAGES_MAX = 700  # of a round's load
FINDING_LINES = 16  # of the first finding, at the end of the output
RECORDER = programs.BUILD / "disk_recorder.so"

BROKER_CONF = {
    "max_queued_messages": "0", "max_queued_bytes": "0", "log_max_size": "32MiB", "log_segment_size": "1MiB", "connect_timeout": "60s",
    "will_restart_grace": f"{GRACE_S}s",
}
# Not told to an older broker: it would refuse to start.
CHECKPOINT_INTERVALS = ("20ms", "100ms", "1s")


class Stop(Exception):
    """There is a finding: no use in going on."""


def known_options():
    _, out, _ = programs.run("tidegate-broker", "--markdown")
    return set(re.findall(r"^\| `([a-z0-9_]+)` \|", out, re.M))


def crash_points():
    """All names in the sources."""
    found = set()
    for folder in ("common", "broker"):
        for path in (programs.ROOT / folder).rglob("*.c"):
            found.update(re.findall(r'CRASH_POINT\("([^"]+)"\)', path.read_text()))
    return sorted(found)


class Publisher(Peer):
    """Persistent; each of its topics has one QoS, so that order means something."""

    def __init__(self, campaign, index):
        super().__init__(campaign.ledger, f"pub{index}", 5 if index % 2 else 4, campaign.rng_of(f"pub{index}"))
        self.campaign = campaign
        name = self.name
        self.topics = [(f"data/{name}/q1a", 1), (f"data/{name}/q1b", 1), (f"data/{name}/q2a", 2)]
        self.devices = [(f"{name}-0", 1), (f"{name}-1", 2)]
        self.states = [(f"state/{name}/{k}", 1 + k % 2) for k in range(4)]
        self.soon = [(f"soon/{name}", 1)] if self.version == 5 else []

    def payload(self, message):
        draw = self.rng.random()
        if self.campaign.is_heavy and draw < 0.7:
            size = self.rng.choice((20000, 60000))
        else:
            size = self.rng.randrange(300) if draw < 0.92 else self.rng.randrange(5000, 20000) if draw < 0.99 else 300000
        return f"{message.publisher} {message.number} ".encode() + bytes([97 + message.number % 26]) * size

    def telemetry(self, message):
        fields = {"ts": self.campaign.first_ms + message.number, "p": message.publisher, "n": message.number}
        if self.rng.random() < 0.1:  # the log's segments are to be left behind
            fields["pad"] = "x" * self.rng.randrange(30000)
        return json.dumps(fields).encode()

    def publish_one(self):
        draw = self.rng.random()
        if draw < 0.4:
            topic, qos = self.rng.choice(self.topics)
            self.publish(topic, qos, self.payload)
        elif draw < 0.7:
            device, qos = self.rng.choice(self.devices)
            self.publish(f"fleet/{device}/telemetry", qos, self.telemetry)
        elif draw < 0.92 or not self.soon:
            topic, qos = self.rng.choice(self.states)
            self.publish(topic, qos, self.payload, is_retained=True, is_empty=self.rng.random() < 0.25)
        else:
            topic, qos = self.soon[0]
            self.publish(topic, qos, self.payload, expiry_s=1)

    def publish_each(self):
        """One on every topic: who is subscribed must get it."""
        for topic, qos in self.topics:
            self.publish(topic, qos, self.payload)
        for device, qos in self.devices:
            self.publish(f"fleet/{device}/telemetry", qos, self.telemetry)

    async def load(self):
        while self.campaign.is_loading:
            if not self.is_up:
                await self.connect(self.campaign.port)
            for _ in range(self.rng.randint(1, 10)):
                if self.is_up and len(self.out) < WINDOW and self.campaign.message_count < self.campaign.messages_max:
                    self.campaign.message_count += 1
                    self.publish_one()
            await asyncio.sleep(self.rng.choice((0, 0.001, 0.005, 0.02)))
            if self.rng.random() < 0.01:
                await self.cut()


class Subscriber(Peer):
    """A persistent session with subscriptions that it keeps."""

    def __init__(self, campaign, name, version, wanted, stays=0.9, **options):
        super().__init__(campaign.ledger, name, version, campaign.rng_of(name), **options)
        self.campaign, self.wanted, self.stays = campaign, dict(wanted), stays
        self.on_message = self.take

    def take(self, packet, is_again):
        """The message, for the history of its exchange."""
        self.session.came(packet.topic)
        if packet.retain or not packet.payload:
            return None
        message = self.campaign.message_of(packet)
        if is_again:
            return message
        if message is None:
            self.ledger.report(f"{self.name}: nobody has sent {packet}")
        else:
            self.session.delivered(message, packet.qos, packet.dup, packet.packet_id)
            self.ledger.deliveries += 1
        return message

    async def join(self):
        if self.is_up or await self.connect(self.campaign.port):
            await self.subscribe_wanted()

    async def load(self):
        """Those that stay are here most of the time, visitors come now and then."""
        self.hold_chance = self.rng.choice((0, 0, 0.05, 0.3))
        while self.campaign.is_loading:
            if not self.is_up and self.rng.random() < self.stays:
                await self.join()
            await asyncio.sleep(self.rng.choice((0.02, 0.1, 0.3)))
            if self.is_up and self.rng.random() < (0.1 if self.stays > 0.5 else 0.5):
                await (self.cut() if self.rng.random() < 0.6 else self.leave())
        self.hold_chance = 0


class Watch(Subscriber):
    """Who gets the wills."""

    def take(self, packet, is_again):
        if not is_again:
            self.ledger.will_came(packet.payload.decode())


class Changer(Subscriber):
    """Subscribes, unsubscribes and begins anew."""

    def __init__(self, campaign, name, version, filters):
        super().__init__(campaign, name, version, {})
        self.filters = filters

    async def load(self):
        self.hold_chance = 0.1
        while self.campaign.is_loading:
            if not self.is_up:
                clean = self.rng.random() < 0.15
                await self.connect(self.campaign.port, clean=clean)
            draw, topic_filter = self.rng.random(), self.rng.choice(self.filters)
            if self.is_up and draw < 0.4:
                await self.subscribe(topic_filter, 1 + self.filters.index(topic_filter) % 2)
            elif self.is_up and draw < 0.7:
                await self.unsubscribe(topic_filter)
            elif draw < 0.85:
                await (self.cut() if self.rng.random() < 0.5 else self.leave())
            await asyncio.sleep(self.rng.choice((0, 0.01, 0.05)))
        self.hold_chance = 0

    async def join(self):
        if not self.is_up:
            await self.connect(self.campaign.port)


class Mourned(Peer):
    """A client with a will, one for each of its connections."""

    def __init__(self, campaign, index):
        version, delay_s, is_clean = ((4, 0, True), (4, 0, False), (5, 0, True), (5, 0, False), (5, 1, False))[index % 5]
        super().__init__(campaign.ledger, f"mourned{index}", version, campaign.rng_of(f"mourned{index}"), is_clean=is_clean)
        self.campaign, self.delay_s, self.wills = campaign, delay_s, []

    async def join(self):
        name = f"{self.name}:{len(self.wills)}"
        will = Will(name, self.name, self.delay_s)
        earlier, self.wills = list(self.wills), self.wills + [will]
        self.ledger.wills[name] = will
        self.say(will, "CONNECT sent")
        properties = [(wire.WILL_DELAY, self.delay_s)] if self.delay_s else []
        if not await self.connect(self.campaign.port, will={"topic": f"will/{self.name}", "payload": name, "qos": 2, "properties": properties}):
            for before in earlier:
                self.returned_perhaps(before)
            return
        will.state, now = "armed", time.monotonic()
        self.say(will, "armed")
        for before in earlier:
            self.returned(before, now)

    def returned(self, will, now):
        """What the client's return means for a will of an earlier connection."""
        run = self.campaign.run
        if will.state == "crashed":
            will.is_due = False
            if will.run == run - 1 and now < self.campaign.spawned_s + GRACE_S:
                will.may_come = will.count > 0
        elif will.state == "cut" and self.delay_s:
            will.is_due = False
            if now < will.since_s + self.delay_s:
                will.may_come = will.count > 0
        elif will.state == "cut crashed":
            will.is_due = False
        elif will.state == "left" and will.run == run:
            will.may_come = will.count > 0
        if will.state != "returned":
            self.say(will, f"{will.state}; the client came back; due {will.is_due}, may come {will.may_come}")
        # A will without delay of a connection that was cut is due whether the client comes back or not.
        will.state = will.state if will.state == "cut" and will.is_due else "returned"

    def returned_perhaps(self, will):
        """CONNECT was sent, and no CONNACK came: the broker may have taken it before it was killed."""
        if will.is_due and (will.state in ("crashed", "cut crashed") or (will.state == "cut" and self.delay_s)):
            will.is_due = False
            self.say(will, f"{will.state}; the client came back, perhaps")

    def say(self, will, text):
        will.history.append(self.ledger.stamp(f"will {will.name} (delay {will.delay_s} s): {text}"))

    def ended(self, state):
        will = self.wills[-1]
        if will.state == "armed":
            will.state, will.since_s, will.run = state, time.monotonic(), self.campaign.run
            # Without a subscriber nobody could miss it; one that subscribes later, when it has not gone yet, may get it.
            will.is_due = state != "left" and self.campaign.watch.session.has("will/#")
            self.say(will, state)

    def crashed(self):
        """The broker was killed; or stopped in order, and the will may have come then."""
        if self.wills:
            self.ended("cut crashed" if self.ledger.is_stopping else "crashed")
        for will in self.wills:
            if will.state == "cut" and will.count == 0:
                will.state = "cut crashed"
                self.say(will, will.state)

    async def load(self):
        while self.campaign.is_loading:
            draw = self.rng.random()
            if not self.is_up:
                if draw < 0.3:
                    await self.join()
            elif draw < 0.1:
                self.ended("cut")
                await self.cut()
            elif draw < 0.15:
                await self.leave()
                # When the broker was killed meanwhile, nobody knows whether it heard.
                if self.campaign.is_serving():
                    self.ended("left")
                else:
                    self.wills[-1].state = "returned"
            await asyncio.sleep(self.rng.choice((0.05, 0.2)))


class Campaign:
    def __init__(self, options, directory):
        self.options, self.directory = options, directory
        self.rng, self.ledger = random.Random(options.seed), Ledger(options.seed)
        self.known = known_options()
        self.is_stateful = "will_restart_grace" in self.known
        names = crash_points() if programs.MODE == "crash" else []
        share, shares = options.share
        self.points = [options.point] if options.point else [name for name in names if name not in STEPS_POINTS][share::shares]
        # At these the start is killed, with the clients' whole ledger; how often, is counted by steps.py.
        self.other_points = [name for name, way in STEPS_POINTS.items() if way == "start" and name in names]
        self.point_kills, self.point_misses = collections.Counter(), collections.Counter()
        self.kills, self.checks, self.rows_checked, self.run, self.message_count = collections.Counter(), 0, 0, 0, 0
        self.first_ms, self.spawned_s, self.is_loading, self.is_heavy = time.time_ns() // 1000000, 0.0, False, False
        self.has_been_checked, self.tasks = True, []
        self.make_broker()
        self.publishers = [Publisher(self, index) for index in range(4)]
        self.watch = Watch(self, "watch", 5, {"will/#": 2})
        self.subscribers = [
            self.watch,
            Subscriber(self, "backend", 4, {"fleet/#": 2}, stays=0.1),
            Subscriber(self, "live", 5, {"data/#": 2}),
            Subscriber(self, "live4", 4, {"data/+/q1a": 1, "data/+/q2a": 2}),
            Subscriber(self, "narrow", 5, {"data/pub0/#": 1}, stays=0.2, receive_maximum=3),
            Subscriber(self, "away", 4, {"data/#": 2}, stays=0.02),
            Subscriber(self, "states", 5, {"state/#": 1}),
            Subscriber(self, "soon", 5, {"soon/#": 1}, stays=0.05),
            Subscriber(self, "soon4", 4, {"soon/#": 1}, stays=0.05),
            Subscriber(self, "brief", 5, {"data/pub1/#": 1}, stays=0.1, expiry_s=2),
        ]
        self.changers = [Changer(self, f"changer{version}", version, [f"data/pub{index}/#" for index in range(4)]) for version in (4, 5)]
        self.changers.append(Changer(self, "asker", 5, ["state/#", "state/+/1", "state/pub0/+"]))
        self.mourned = [Mourned(self, index) for index in range(5)]
        self.peers = self.publishers + self.subscribers + self.changers + self.mourned

    def rng_of(self, name):
        return random.Random(f"{self.options.seed} {name}")

    def make_broker(self):
        conf = "".join(f"{key} {value}\n" for key, value in BROKER_CONF.items() if key in self.known)
        self.base_conf = conf
        self.pair = Pair(self.directory, conf)
        self.broker, self.sink = self.pair.broker, self.pair.sink
        self.base_conf = self.broker.conf

    # -- small things --

    @property
    def port(self):
        return self.broker.port

    def is_serving(self):
        return self.broker.process is not None and self.broker.process.poll() is None

    def message_of(self, packet):
        try:
            if packet.topic.startswith("fleet/"):
                fields = json.loads(packet.payload)
                return self.ledger.messages.get((fields["p"], fields["n"]))
            publisher, number = packet.payload[:40].split(b" ")[:2]
            return self.ledger.messages.get((publisher.decode(), int(number)))
        except (ValueError, KeyError):
            return None

    def stop_if_found(self):
        if self.ledger.findings:
            raise Stop

    def found(self, text, messages=()):
        self.ledger.report(text, messages)
        raise Stop

    async def until(self, condition, what, progress=lambda: 0, messages=lambda: ()):
        """Poll; a finding when it does not come to pass and nothing moves for the patience."""
        last, since = progress(), time.monotonic()
        while not condition():
            self.stop_if_found()
            if not self.is_serving():
                self.broker_died()
            await asyncio.sleep(0.003)
            now = progress()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > self.options.patience:
                self.found(f"{what} (no progress for {self.options.patience} s)", messages())

    def broker_died(self):
        status = self.broker.process.poll() if self.broker.process else None
        self.found(f"the broker ended by itself with {status}:\n{self.broker.stderr()[-3000:]}")

    # -- the broker --

    def spawn(self, kind, point=None):
        self.run += 1
        for peer in self.peers:
            peer.was_lost = False  # it was connecting when the broker was killed
        env, data = {}, self.broker.data
        varied = {"checkpoint_interval": self.rng.choice(CHECKPOINT_INTERVALS), "checkpoint_window": self.rng.choice(("1MiB", "64MiB"))}
        self.broker.conf = self.base_conf + "".join(f"{key} {value}\n" for key, value in varied.items() if key in self.known)
        if kind in ("power", "point"):
            data.mkdir(parents=True, exist_ok=True)
            self.before, self.journal = Snapshot.of(data), self.directory / "journal"
            self.journal.unlink(missing_ok=True)  # the recorder may be killed before it begins one
            env = {"LD_PRELOAD": str(RECORDER), "RECORD_ROOT": str(data), "RECORD_JOURNAL": str(self.journal),
                   "RECORD_DELAY_US": str(self.rng.choice((0, 2000, 10000))), "RECORD_SEED": str(self.rng.randrange(1, 1 << 30))}
        if point:
            env["CRASH_POINT_AT"] = point
        self.broker.env = env
        self.broker.forget_ports()
        self.spawned_s = time.monotonic()
        self.broker.spawn()
        self.ledger.note(f"start {self.run}: {kind} {point or ''} {varied} delay {env.get('RECORD_DELAY_US', 0)} us")

    async def serve(self):
        """Until it listens; False when it has ended before."""
        deadline = time.monotonic() + 120
        while not self.broker.read_ports():
            if not self.is_serving():
                return False
            if time.monotonic() > deadline:
                self.found(f"the broker does not serve after 120 s:\n{self.broker.stderr()[-3000:]}")
            await asyncio.sleep(0.003)
        self.ledger.restarted()
        return True

    async def kill(self, kind):
        """SIGKILL (or it has happened); the clients learn of it; the power's image takes the place of the directory."""
        self.judge_lost()
        if kind == "cut":
            await self.cut_everyone()
            return
        process = self.broker.process
        if process.poll() is None:
            process.kill()
        process.wait()
        self.broker.process = None
        self.ledger.note(f"killed ({kind})")
        await asyncio.gather(*(peer.wait_lost() for peer in self.peers))
        for peer in self.peers:
            peer.was_lost = False
        self.is_loading = False
        for peer in self.mourned:
            peer.crashed()
        self.ledger.is_stopping = False
        try:
            self.broker.check_clean()
        except AssertionError as problem:
            self.found(str(problem))
        if kind != "plain":
            self.lose_power()
        if not self.is_stateful:
            self.ledger.forget_state()
        self.stop_if_found()

    async def cut_everyone(self):
        self.is_loading = False
        for peer in self.mourned:
            if peer.is_up:
                peer.ended("cut")
        for peer in self.peers:
            await peer.cut()
        self.stop_if_found()

    def judge_lost(self):
        """A connection that the broker closed while it lived."""
        lost = [peer.name for peer in self.peers if peer.was_lost and not peer.is_up]
        if lost and self.is_serving() and not self.ledger.is_stopping:
            time.sleep(0.1)
            if self.is_serving():
                self.found(f"the broker closed connections of {lost}:\n{self.broker.stderr()[-2000:]}")

    def lose_power(self):
        data, image_directory = self.broker.data, self.directory / "image"
        image = CrashImage(self.before, self.journal, self.rng)
        # The sink writes its cursor itself, and had stopped before.
        cursor = data / "log" / "cursor.sink"
        if cursor.exists():
            image.files["log/cursor.sink"] = cursor.read_bytes()
        image.write(image_directory)
        shutil.rmtree(self.directory / "data.before", ignore_errors=True)
        data.rename(self.directory / "data.before")
        image_directory.rename(data)
        self.ledger.note(f"power lost: {image.summary()}")

    # -- load --

    async def load(self, duration_s, messages_max=MESSAGES_MAX):
        self.is_loading, self.message_count, self.messages_max = True, 0, messages_max
        tasks = self.tasks = [asyncio.ensure_future(peer.load()) for peer in self.peers]
        end = time.monotonic() + duration_s
        while time.monotonic() < end and self.is_serving() and not self.ledger.findings:
            await asyncio.sleep(0.002)
        return tasks

    async def end_load(self, tasks):
        self.is_loading = False
        for task in asyncio.as_completed(tasks, timeout=120):
            await task

    # -- checking --

    async def check(self, everyone=False):
        self.stop_if_found()
        rows = asyncio.ensure_future(asyncio.to_thread(self.check_rows))
        try:
            await self.check_clients(everyone)
        finally:
            problem = await rows
        if problem:
            self.found(problem)
        await self.check_books()
        self.judge_lost()
        self.stop_if_found()
        self.checks += 1

    async def check_clients(self, everyone):
        await self.check_retained("after the start")
        online = [peer for peer in self.subscribers if everyone or peer.stays > 0.5 or self.rng.random() < 0.4] + self.changers
        for peer in online:
            await peer.join()
        for peer in self.publishers:
            if not peer.is_up:
                await peer.connect(self.port)
        self.stop_if_found()
        await self.until(lambda: not any(peer.out for peer in self.publishers), "PUBLISHes are not acknowledged",
                         progress=lambda: sum(len(peer.out) for peer in self.publishers),
                         messages=lambda: [entry.message for peer in self.publishers for entry in peer.out.values()])
        for peer in self.publishers:
            peer.publish_each()
        names = {peer.name for peer in online}
        await self.until(lambda: not any(peer.out for peer in self.publishers) and not self.ledger.owed(names), "acknowledged messages are not delivered",
                         progress=lambda: self.ledger.deliveries + sum(len(peer.out) for peer in self.publishers),
                         messages=lambda: self.tell_owed(names))
        if everyone or self.rng.random() < 0.2:
            await self.until(lambda: not self.ledger.wills_due(), "wills do not come", progress=lambda: len(self.ledger.wills_due()),
                             messages=self.tell_wills)
        for peer in online + self.publishers:
            await peer.ping()
        await self.check_retained("after resending")

    def tell_owed(self, names):
        owed = self.ledger.owed(names)
        for name in sorted({session.name for session, _ in owed}):
            self.ledger.notes.extend(f"  {event}" for event in self.ledger.sessions[name].events)
        self.ledger.note("owed: " + ", ".join(f"{session.name} {message.name}" for session, message in owed[:20]))
        return [message for _, message in owed]

    def tell_wills(self):
        for will in self.ledger.wills_due():
            self.ledger.notes.extend(will.history)
        return ()

    async def check_retained(self, when):
        """A newcomer sees of each topic an allowed value."""
        looker = Peer(self.ledger, "looker", self.rng.choice((4, 5)), self.rng, is_clean=True)
        seen = {}

        def look(packet, _):
            if packet.retain:
                seen[packet.topic] = self.message_of(packet)

        looker.on_message = look
        if not await looker.connect(self.port) or not await looker.subscribe("state/#", 1):
            if self.is_serving():
                self.found("a newcomer cannot look at retained values")
            self.broker_died()
        topics = [topic for peer in self.publishers for topic, _ in peer.states]
        allowed = {topic: self.ledger.retained_values(topic) for topic in topics}
        await self.until(lambda: all(topic in seen or None in allowed[topic] for topic in topics), f"retained values are missing {when}",
                         progress=lambda: len(seen),
                         messages=lambda: [allowed[topic][0] for topic in topics if topic not in seen and None not in allowed[topic]])
        await looker.ping()
        await asyncio.sleep(0.02)
        for topic in topics:
            value = seen.get(topic)
            if value not in allowed[topic]:
                self.found(f"{when} the retained value of {topic} is {value.name if value else None}; allowed: "
                           f"{[message.name if message else None for message in allowed[topic]]}",
                           [message for message in [value] + allowed[topic] + self.ledger.topics[topic] if message])
        await looker.leave()

    def check_rows(self):
        """The sink reads all that is in the log; then everything acknowledged is stored. In a thread; the problem as text."""
        expected = collections.defaultdict(dict)
        for message in list(self.ledger.messages.values()):
            if message.topic.startswith("fleet/"):
                device = message.topic.split("/")[1]
                expected[device][self.first_ms + message.number] = message
        acked = {device: {ms for ms, message in rows.items() if message.acked_tick is not None} for device, rows in expected.items()}
        try:
            self.sink.start()
            last, since = -1, time.monotonic()
            while True:
                found = {device: self.pair.rows(device) for device in acked}
                missing = [expected[device][ms] for device, wanted in acked.items() for ms in sorted(wanted - found[device].keys())]
                if not missing:
                    break
                if len(missing) != last:
                    last, since = len(missing), time.monotonic()
                elif time.monotonic() - since > self.options.patience:
                    return "acknowledged telemetry is not stored: " + ", ".join(f"{message} {message.history}" for message in missing[:5])
                time.sleep(0.02)
            for device, rows in found.items():
                for ms, values in rows.items():
                    if ms not in expected[device] and ms - self.first_ms > self.ledger.numbers[device.split("-")[0]]:
                        return f"a row of {device} that nobody has sent: {ms} {values}"
                    if values != {"n": float(ms - self.first_ms)}:
                        return f"{device} at {ms}: {values}"
            self.rows_checked = sum(len(rows) for rows in found.values())
            self.sink.stop()
        except (AssertionError, OSError) as problem:
            return f"the sink: {problem}\n{self.broker.stderr()[-1000:]}"
        finally:
            if self.sink.process and self.sink.process.poll() is None:
                self.sink.process.kill()
                self.sink.process.wait()
            self.sink.process = None
        return None

    async def check_books(self):
        """The two equations of the metrics, as soon as all is quiet."""
        deadline, difference = time.monotonic() + self.options.patience, None
        while difference != (0, 0):
            difference = (await asyncio.to_thread(self.broker.metrics)).book_difference()
            if difference != (0, 0) and time.monotonic() > deadline:
                self.found(f"the broker's books do not balance: copies {difference[0]}, telemetry {difference[1]}")
            await asyncio.sleep(0.005)

    # -- rounds --

    def next_point(self):
        """The point with the fewest kills so far, and at which passing."""
        if self.other_points and not self.options.point and self.rng.random() < 0.15:
            return self.rng.choice(self.other_points), self.rng.choice((1, 1, 2, 3))
        allowed = [name for name in self.points if not self.has_enough(name)] or self.points
        name = min(allowed, key=lambda point: (self.point_kills[point] + self.point_misses[point] * 2, point))
        is_rare = name.startswith("log_segment") or self.point_misses[name] > 0
        return name, 1 + self.rng.randrange(2) if is_rare else self.rng.choice((1, 1, 2, 3, 5, 10, 30))

    def choose(self):
        """How the next run ends."""
        if self.options.only and (self.options.only != "point" or self.has_been_checked):
            return self.options.only
        if self.options.only:
            return "power"
        share = 0.6 if self.ledger.round < self.options.rounds else 1.0  # beyond the rounds, points alone are missing
        if self.points and self.has_been_checked and self.rng.random() < share:
            return "point"
        return "plain" if self.rng.random() < 0.4 else "power"

    async def round(self):
        kind = self.choose()
        if kind == "point" and self.points:
            await self.round_point()
            return
        if kind != "cut" or not self.is_serving():
            self.spawn(kind)
        phase = self.rng.random()
        if phase < 0.15 and not self.options.only:
            await asyncio.sleep(self.rng.uniform(0, 0.15))
            await self.kill(kind)
            self.count(kind + " at the start")
            self.has_been_checked = False
            return
        if not await self.serve():
            self.broker_died()
        if phase > 0.3 or not self.has_been_checked:
            await self.check()
            self.has_been_checked = True
        tasks = await self.load(self.rng.uniform(0.05, 0.2) if phase < 0.4 else self.rng.uniform(0.2, 0.8))
        if not self.is_serving():
            self.broker_died()
        await self.kill(kind)
        await self.end_load(tasks)
        self.count(kind)

    async def round_point(self):
        name, passing = self.next_point()
        self.is_heavy = name.startswith("log_segment") or name == "log_part_written"
        self.spawn("point", f"{name}:{passing}")
        if await self.serve():
            tasks = await self.load(3, 4 * MESSAGES_MAX)
            if self.is_serving():  # some points lie on the way out
                self.ledger.is_stopping = True
                self.broker.process.terminate()
                end = time.monotonic() + 3
                while self.is_serving() and time.monotonic() < end:
                    await asyncio.sleep(0.005)
            await self.die_at_point(name, passing)
            await self.end_load(tasks)
        else:
            await self.die_at_point(name, passing)
        self.has_been_checked = self.is_heavy = False

    async def die_at_point(self, name, passing):
        status = self.broker.process.poll()
        reached = status == -9
        if status is not None and not reached and status != 0:
            self.broker_died()
        await self.kill("point")
        if reached:
            self.point_kills[name] += 1
            self.count("point")
        else:
            self.point_misses[name] += 1
            self.ledger.note(f"{name}: passing {passing} was not reached")

    def count(self, kind):
        self.kills[kind] += 1

    def is_over(self, started_s):
        if self.options.seconds and time.monotonic() - started_s > self.options.seconds:
            return True
        return self.ledger.round >= self.options.rounds and all(self.has_enough(name) for name in self.points)

    def has_enough(self, point):
        """Kills; or misses, so that a point that this load does not reach ends the campaign too (and fails it)."""
        return self.point_kills[point] >= self.options.points or self.point_misses[point] >= 2 * self.options.points + 10

    async def last_round(self):
        """Everyone comes back; then the same after an orderly stop."""
        for _ in range(2):
            if not self.is_serving():
                self.spawn("plain")
            if not await self.serve():
                self.broker_died()
            await self.check(everyone=True)
            for peer in self.peers:
                await peer.leave()
            for peer in self.mourned:
                if peer.wills and peer.wills[-1].state == "armed":
                    peer.ended("left")
            await asyncio.to_thread(self.broker.stop)
            self.ledger.note("stopped in order")
            if not self.is_stateful:
                self.ledger.forget_state()

    async def go(self):
        started_s = time.monotonic()
        try:
            while not self.is_over(started_s):
                self.ledger.round += 1
                await self.round()
            self.ledger.round += 1
            await self.last_round()
        except Stop:
            pass
        except (AssertionError, OSError, asyncio.TimeoutError):  # of the harness: of one of the programs, or of the machine
            self.ledger.report("the campaign cannot go on:\n" + traceback.format_exc())
        finally:
            for program in (self.broker, self.sink):
                if program.process and program.process.poll() is None:
                    program.process.kill()
                    program.process.wait()
            self.is_loading = False
            await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0)), *self.tasks], timeout=PATIENCE_S)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0, help="begin no round after so many seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--points", type=int, default=0, help="kill so many times at each crash point")
    parser.add_argument("--point", help="only this one")
    parser.add_argument("--only", choices=("plain", "power", "point", "cut"))
    parser.add_argument("--patience", type=float, default=60)
    parser.add_argument("--directory")
    parser.add_argument("--share", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1), help="I/N: every N-th point, from the I-th")
    parser.add_argument("--result", help="write the counts there")
    return parser.parse_args()


def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(2))  # so that no broker stays behind
    options = parse_arguments()
    directory = pathlib.Path(options.directory or tempfile.mkdtemp(prefix="tidegate-crash-"))
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started_s = time.monotonic()
    campaign = Campaign(options, directory)
    demands = "sessions, queues, retained values, wills and telemetry" if campaign.is_stateful else "telemetry alone"
    print(f"kill campaign: {programs.BUILD.name} build, seed {options.seed}, directory {directory}, demanded over a crash: {demands}", flush=True)
    asyncio.run(campaign.go())
    return tell(campaign, directory, time.monotonic() - started_s)


def tell(campaign, directory, took_s):
    ledger = campaign.ledger
    kills = ", ".join(f"{count} {kind}" for kind, count in sorted(campaign.kills.items())) or "none"
    acked = sum(message.acked_tick is not None for message in ledger.messages.values())
    print(f"{ledger.round} rounds in {took_s:.0f} s; kills: {kills}; {campaign.checks} checks; {len(ledger.messages)} messages, {acked} acknowledged, "
          f"{ledger.deliveries} deliveries, {sum(will.count for will in ledger.wills.values())} of {len(ledger.wills)} wills came, "
          f"{campaign.rows_checked} rows")
    unreached = []
    for name in campaign.points + campaign.other_points:
        print(f"  crash point {name}: {campaign.point_kills[name]} kills")
    for name in campaign.points:
        if not campaign.options.seconds and campaign.point_kills[name] < campaign.options.points:
            unreached.append(name)
    if ledger.findings:
        (directory / "notes").write_text("\n".join(ledger.notes))
        print("what happened before:")
        print("\n".join(f"  {note}" for note in list(ledger.notes)[-60:]))
        print("\n".join(ledger.findings))
    else:
        shutil.rmtree(directory)
    # What counts comes last: of a long log people see the end.
    if unreached:
        print(f"not reached often enough: {', '.join(unreached)}")
    if ledger.findings:
        print("\n".join(line[:400] for line in ledger.findings[0].splitlines()[:FINDING_LINES]))
        print(f"kept: {directory}; once more: make crash SEED={ledger.seed}")
    if campaign.options.result:
        result = {"kills": campaign.kills, "points": campaign.point_kills, "finding": ledger.findings[0] if ledger.findings else None,
                  "rounds": ledger.round}
        pathlib.Path(campaign.options.result).write_text(json.dumps(result))
    failed = len(ledger.findings[:1]) + bool(unreached)
    print(f"{campaign.checks} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
