"""What the clients of a broker may demand, from their side alone: the books that the crash campaign is judged by.

Every event has a number (`tick`): all clients run in one thread, so "SUBACK came before the PUBLISH was sent" is a comparison of numbers.
The rules, each a finding when broken:

  acknowledged is saved   a message with PUBACK or PUBREC reaches every persistent session that had a matching subscription with its SUBACK
                          before the PUBLISH was sent for the first time; it is `owed` to the session from the acknowledgement until it comes
  exactly once            QoS 2 on both sides: one delivery per session, counted as a receiver of MQTT counts (a PUBLISH with an id that is
                          not released is the same delivery again)
  not twice for nothing   QoS 1: another delivery needs another connection of the subscriber or another sending by the publisher
  order                   first deliveries of one publisher's messages on one topic come in the order of sending
  subscriptions           nothing that was sent after UNSUBACK comes; nothing that was acknowledged before SUBSCRIBE was sent comes as new
  session present         a session whose CONNACK came is there after clean start 0 until its expiry; after clean start 1 and after its
                          expiry it is not, and nothing of the old one comes
  retained                the newest acknowledged value or a newer one that is not acknowledged; cleared stays cleared
  a new subscription      a persistent session gets, after SUBACK, something of each retained topic that had an acknowledged value when
                          SUBSCRIBE was sent and of which nothing came before SUBACK, unless that was cleared meanwhile
  wills                   at most once each; exactly once when the client did not say goodbye and did not come back
  expired                 a message is not delivered after its expiry

What a client cannot know (was the SUBSCRIBE handled whose SUBACK the crash took?) is neither demanded nor forbidden."""
import collections
import functools
import itertools
import time

# Added to every deadline after which something must not come any more: the client may be slow to read, the broker to run.
SLACK_S = 10.0


@functools.lru_cache(maxsize=100000)
def matches(topic_filter, topic):
    filter_levels, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(filter_levels):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(filter_levels) == len(levels)


class Message:
    """One PUBLISH of one publisher, however often it was sent."""

    __slots__ = ("publisher", "number", "topic", "qos", "is_retained", "is_empty", "expiry_s", "sent_tick", "acked_tick", "acked_s", "sendings",
                 "is_given_up", "history")

    def __init__(self, publisher, number, topic, qos, is_retained, is_empty, expiry_s, sent_tick):
        self.publisher, self.number, self.topic, self.qos, self.is_retained, self.is_empty = publisher, number, topic, qos, is_retained, is_empty
        self.expiry_s, self.sent_tick = expiry_s, sent_tick
        self.acked_tick = self.acked_s = None
        self.sendings, self.is_given_up, self.history = 1, False, []

    @property
    def name(self):
        return f"{self.publisher}/{self.number}"

    def __str__(self):
        return f"{self.name} on {self.topic} QoS {self.qos}" + (" retained" if self.is_retained else "") + (f" expiry {self.expiry_s} s" if self.expiry_s else "")


def may_be_owed(message):
    """As a retained value, to a subscription of QoS 1 or 2."""
    return not message.is_empty and message.qos > 0 and message.expiry_s is None


class Interval:
    """A subscription from SUBSCRIBE to UNSUBSCRIBE; None: not (yet) known."""

    __slots__ = ("filter", "qos", "sent_tick", "acked_tick", "unsubscribe_tick", "ended_tick")

    def __init__(self, topic_filter, qos, sent_tick):
        self.filter, self.qos, self.sent_tick = topic_filter, qos, sent_tick
        self.acked_tick = self.unsubscribe_tick = self.ended_tick = None


class Session:
    """What is known of a session, and what is owed to it."""

    def __init__(self, ledger, name, expiry_s):
        self.ledger, self.name, self.expiry_s = ledger, name, expiry_s  # expiry_s None: far away
        self.exists = False  # None: not known
        self.is_connected, self.connection, self.life = False, 0, 0
        self.gone_after_s = self.gone_before_s = None  # when it was disconnected: between these
        self.is_volatile = False  # MQTT 3.1.1 with clean session 1: it ends with its connection
        self.events = collections.deque(maxlen=300)  # for whoever reads a finding
        self.is_awaiting_restart = False  # connected when the broker was killed: it counts as disconnected from the restart on
        self._begin()

    def _begin(self):
        self.intervals, self.owed, self.seen, self.last = [], {}, {}, {}
        self.owed_values = {}  # topic: the retained message that it had
        self.came_ticks = {}  # topic: when something of it came last

    def note(self, text):
        self.ledger.note(f"{self.name}: {text}")
        self.events.append(self.ledger.stamp(f"{self.name}: {text}"))

    # -- life --

    def connect_sent(self, clean):
        self.was, self.connect_s = self.exists, time.monotonic()
        if clean:
            self._waive()
        if self.exists is not True or clean:
            self.exists = None

    def _waive(self):
        """Neither owed nor forbidden any more. The client has forgotten what it had received [MQTT-3.1.2-4]; if the server has not heard
        that, it may send it again."""
        self.owed, self.seen, self.last, self.owed_values = {}, {}, {}, {}
        for interval in self.intervals:
            interval.unsubscribe_tick = interval.unsubscribe_tick or self.ledger.tick()

    def connack(self, present, clean, is_volatile=False):
        """Whether the session is a new one."""
        self.is_volatile = is_volatile
        now = time.monotonic()
        report, expected = self.ledger.report, False if clean else self.was
        if expected is True and self.expiry_s is not None and self.gone_before_s is not None:
            if self.connect_s > self.gone_before_s + self.expiry_s + SLACK_S and not self.is_awaiting_restart:
                expected = False
            elif now > self.gone_after_s + self.expiry_s:
                expected = None
        if expected is True and not present:
            report(f"{self.name}: the session is lost: session present is 0", self.owed.values())
        if expected is False and present:
            report(f"{self.name}: session present is 1, but the session " + ("was to be discarded (clean start)" if clean else "cannot be there"))
        if not present:
            self._begin()
            self.life += 1
        self.exists, self.is_connected, self.is_awaiting_restart = True, True, False
        self.connection += 1
        self.note(f"CONNACK, session present {int(present)}, connection {self.connection}, life {self.life}")
        return not present

    def disconnected(self, last_heard_s, by_crash=False):
        if self.is_connected:
            self.is_connected, self.gone_after_s, self.gone_before_s = False, last_heard_s, time.monotonic()
            self.is_awaiting_restart = by_crash
            if self.is_volatile:
                self.forget()

    def forget(self):
        """It is gone with the connection, or with the process of a broker that keeps no sessions."""
        self._begin()
        self.exists, self.is_connected = False, False
        self.life += 1

    # -- subscriptions --

    def subscribe_sent(self, topic_filter, qos):
        interval = Interval(topic_filter, qos, self.ledger.tick())
        self.intervals.append(interval)
        return interval

    def suback(self, interval):
        interval.acked_tick = self.ledger.tick()
        self.note(f"SUBACK {interval.filter} QoS {interval.qos}")
        if interval.unsubscribe_tick or interval.qos == 0:
            return
        for topic, values in self.ledger.topics.items():
            if self.came_ticks.get(topic, 0) > interval.sent_tick:
                continue  # before SUBACK, of another subscription or already of this one
            if values and matches(interval.filter, topic) and values[0].acked_tick and values[0].acked_tick < interval.sent_tick and \
                    all(may_be_owed(value) for value in values):
                self.owed_values[topic] = values[0]

    def unsubscribe_sent(self, topic_filter):
        tick = self.ledger.tick()
        found = [interval for interval in self.intervals if interval.filter == topic_filter and interval.ended_tick is None]
        for interval in found:
            interval.unsubscribe_tick = interval.unsubscribe_tick or tick
        self.owed = {name: message for name, message in self.owed.items() if self.subscription_of(message)}
        self.owed_values = {topic: value for topic, value in self.owed_values.items() if not matches(topic_filter, topic)}
        return found

    def unsuback(self, intervals):
        tick = self.ledger.tick()
        for interval in intervals:
            interval.ended_tick = tick
            self.note(f"UNSUBACK {interval.filter}")

    def has(self, topic_filter):
        """Subscribed for certain."""
        return any(interval.filter == topic_filter and interval.acked_tick and not interval.unsubscribe_tick for interval in self.intervals)

    def subscription_of(self, message):
        """The subscription that had its SUBACK when the message was sent and was not given up before now."""
        for interval in self.intervals:
            if interval.acked_tick and interval.acked_tick < message.sent_tick and not interval.unsubscribe_tick and matches(interval.filter, message.topic):
                return interval
        return None

    # -- messages --

    def acknowledged(self, message):
        if message.expiry_s is None and not message.is_empty and message.name not in self.seen and self.subscription_of(message):
            self.owed[message.name] = message

    def came(self, topic):
        """A PUBLISH of this topic, with RETAIN or without."""
        self.owed_values.pop(topic, None)
        self.came_ticks[topic] = self.ledger.tick()

    def delivered(self, message, qos, is_dup, packet_id):
        """As new: not with the retain flag, not the same QoS 2 delivery again."""
        now, report = time.monotonic(), self.ledger.report
        message.history.append(self.ledger.stamp(f"-> {self.name} QoS {qos}{' DUP' if is_dup else ''} id {packet_id} connection {self.connection} life {self.life}"))
        self.events.append(self.ledger.stamp(f"-> {self.name} {message.name} {message.topic} QoS {qos}{' DUP' if is_dup else ''} id {packet_id}"))
        self.owed.pop(message.name, None)
        self._check_allowed(message)
        # With DUP its delivery had begun in time [MQTT-3.3.2-5].
        if message.expiry_s is not None and message.acked_s is not None and not is_dup and now > message.acked_s + message.expiry_s + SLACK_S:
            report(f"{self.name}: {message} came {now - message.acked_s:.1f} s after its acknowledgement", [message])
        before = self.seen.get(message.name)
        if before and qos == 2:
            report(f"{self.name}: {message} came twice with QoS 2", [message])
        elif before and before[1] >= message.sendings * (1 + self.connection - before[0]):
            report(f"{self.name}: {message} came {before[1] + 1} times without a reason", [message])
        elif not before and self.subscription_of(message) and not (message.expiry_s is not None and message.sendings > 1):
            # Otherwise an earlier sending may have come before SUBSCRIBE; or have expired, and this one came in its own time.
            key = (message.publisher, message.topic)
            if self.last.get(key, 0) > message.number:
                report(f"{self.name}: {message} came after {message.publisher}/{self.last[key]} of the same topic",
                       [message, self.ledger.messages[message.publisher, self.last[key]]])
            self.last[key] = max(message.number, self.last.get(key, 0))
        self.seen[message.name] = (before[0], before[1] + 1) if before else (self.connection, 1)

    def _check_allowed(self, message):
        found = [interval for interval in self.intervals if matches(interval.filter, message.topic)]
        if not found:
            self.ledger.report(f"{self.name}: {message} came, but this session has never subscribed to it", [message])
        elif all(interval.ended_tick is not None and interval.ended_tick < message.sent_tick for interval in found):
            self.ledger.report(f"{self.name}: {message} came, but UNSUBACK came before it was sent", [message])
        elif all(message.acked_tick is not None and message.acked_tick < interval.sent_tick for interval in found):
            self.ledger.report(f"{self.name}: {message} came as new, but was acknowledged before SUBSCRIBE was sent", [message])


class Will:
    """Of one connection. `state`: armed, left (DISCONNECT sent), cut (connection closed without)."""

    def __init__(self, name, client, delay_s):
        self.name, self.client, self.delay_s, self.state = name, client, delay_s, "asked"
        self.count, self.is_due, self.may_come, self.since_s, self.history = 0, False, True, None, []


class Ledger:
    def __init__(self, seed):
        self.seed, self.round, self.started_s = seed, 0, time.monotonic()
        self.ticks, self.findings, self.notes = 0, [], collections.deque(maxlen=400)
        self.messages, self.sessions, self.topics, self.wills = {}, {}, collections.defaultdict(list), {}
        self.numbers = collections.Counter()
        self.deliveries = 0
        self.is_stopping = False  # SIGTERM was sent: the broker may say goodbye

    def tick(self):
        self.ticks += 1
        return self.ticks

    def stamp(self, text):
        return f"[{time.monotonic() - self.started_s:8.3f} s round {self.round}] {text}"

    def note(self, text):
        self.notes.append(self.stamp(text))

    def report(self, text, messages=()):
        lines = [f"FOUND with seed {self.seed} in round {self.round} at {time.monotonic() - self.started_s:.3f} s: {text}"]
        messages = list(messages)
        for message in messages[:4]:
            lines.append(f"  message {message}")
            lines += [f"    {line}" for line in message.history[-40:]]
        if len(messages) > 4:
            lines.append(f"  and {len(messages) - 4} more: {' '.join(message.name for message in messages[4:40])}")
        self.findings.append("\n".join(lines))

    def session(self, name, expiry_s=None):
        return self.sessions.setdefault(name, Session(self, name, expiry_s))

    # -- publishing --

    def new_message(self, publisher, topic, qos, is_retained=False, is_empty=False, expiry_s=None):
        self.numbers[publisher] += 1
        message = Message(publisher, self.numbers[publisher], topic, qos, is_retained, is_empty, expiry_s, self.tick())
        self.messages[publisher, message.number] = message
        if is_retained:
            self.topics[topic].append(message)
            for session in self.sessions.values() if not may_be_owed(message) else ():
                session.owed_values.pop(topic, None)
        return message

    def acknowledged(self, message, packet_name):
        message.history.append(self.stamp(packet_name))
        if message.acked_tick is None:
            message.acked_tick, message.acked_s = self.tick(), time.monotonic()
            for session in self.sessions.values():
                session.acknowledged(message)
            if message.is_retained:  # what is older cannot be the value any more
                values = self.topics[message.topic]
                if message in values:
                    del values[:values.index(message)]

    def retained_values(self, topic):
        """The messages of which one must be the topic's value now; None: no value."""
        values = self.topics[topic]
        allowed = [None if message.is_empty else message for message in values]
        if not values or values[0].acked_tick is None:
            allowed.append(None)
        return allowed

    def forget_state(self):
        """The broker keeps no state over its end but telemetry."""
        for session in self.sessions.values():
            session.forget()
        self.topics.clear()
        for will in self.wills.values():
            will.is_due, will.state = False, "forgotten"

    def owed(self, names=None):
        return [(session, message) for session in self.sessions.values() if names is None or session.name in names
                for message in itertools.chain(session.owed.values(), session.owed_values.values())]

    # -- wills --

    def will_came(self, name):
        will = self.wills.get(name)
        if will is None:
            self.report(f"a will that nobody has: {name}")
            return
        will.count += 1
        will.history.append(self.stamp("came"))
        if will.count > 1:
            self.report(f"the will {name} came {will.count} times:\n  " + "\n  ".join(will.history))
        elif not will.may_come:
            self.report(f"the will {name} came, but must not:\n  " + "\n  ".join(will.history))

    def wills_due(self):
        return [will for will in self.wills.values() if will.is_due and will.count == 0]

    # -- the broker's end and beginning --

    def restarted(self):
        """The broker serves again: who was connected counts as gone from now on."""
        now = time.monotonic()
        for session in self.sessions.values():
            if session.is_awaiting_restart:
                session.is_awaiting_restart, session.gone_before_s = False, now
