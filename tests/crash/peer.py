"""One MQTT client that outlives its connections and the broker's: packet ids, open exchanges and what it has received are kept, as a correct
client keeps them with its session. Everything that happens goes into the ledger."""
import asyncio
import collections
import time

from harness import wire

PATIENCE_S = 60


class Link(asyncio.Protocol):
    """A connection. Closed on our side: nothing that comes afterwards counts."""

    def __init__(self, peer):
        self.peer, self.data, self.transport, self.is_ours_to_close = peer, bytearray(), None, False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        self.peer.heard_s = time.monotonic()
        while True:
            packet = self._parse()
            if packet is None:
                return
            self.peer.on_packet(self, packet)

    def _parse(self):
        at, size, shift, data = 1, 0, 0, self.data
        while True:
            if at >= len(data):
                return None
            byte = data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not byte & 0x80:
                break
        if len(data) < at + size:
            return None
        found = wire.Packet(data[0], bytes(data[at:at + size]), self.peer.version)
        del data[:at + size]
        return found

    def connection_lost(self, exc):
        self.peer.on_lost(self)
        if not self.lost.done():
            self.lost.set_result(None)


class Open:
    """An outgoing PUBLISH whose exchange is not over."""

    __slots__ = ("message", "packet", "is_received")

    def __init__(self, message, packet):
        self.message, self.packet, self.is_received = message, packet, False


class Peer:
    def __init__(self, ledger, name, version, rng, expiry_s=None, receive_maximum=None, is_clean=False):
        self.ledger, self.name, self.version, self.rng = ledger, name, version, rng
        self.expiry_s, self.receive_maximum, self.is_clean = expiry_s, receive_maximum, is_clean
        # The ledger holds sessions that outlive a connection; a clean one is asked nothing.
        self.session = None if is_clean else ledger.session(name, expiry_s)
        self.link = self.connack = None
        self.heard_s = 0.0
        self.out = collections.OrderedDict()  # packet id -> Open
        self.incoming = {}  # QoS 2 ids received and not released -> message, where it is a ledger's
        self.asked = {}  # packet id -> (future, what to do with the answer)
        self.held, self.hold_chance = collections.deque(), 0.0
        self.last_id = 0
        self.wanted = {}  # filter -> QoS
        self.was_lost = False  # the server closed, and not because we asked
        self.on_message = None  # packets that are no message of a ledger's publisher
        self.will = None

    # -- connecting --

    @property
    def is_up(self):
        return self.link is not None

    def connect_packet(self, clean, will):
        properties = []
        if self.version == 5:
            expiry = 0 if self.is_clean else 3600 if self.expiry_s is None else self.expiry_s
            properties.append((wire.SESSION_EXPIRY, expiry))
            if self.receive_maximum:
                properties.append((wire.RECEIVE_MAXIMUM, self.receive_maximum))
        return wire.connect_packet(self.name, self.version, clean=clean, properties=properties, will=will)

    async def connect(self, port, clean=False, will=None):
        """Whether it is connected."""
        clean = clean or self.is_clean
        try:
            _, link = await asyncio.get_running_loop().create_connection(lambda: Link(self), "127.0.0.1", port)
        except OSError:
            return False
        self.link, self.connack, self.was_lost = link, asyncio.get_running_loop().create_future(), False
        self.asked, self.is_clean_start = {}, clean
        self.held.clear()
        if self.session:
            self.session.connect_sent(clean)
        if clean:  # not only with CONNACK: identifiers of the server's new session may come with the next connection already
            self.forget()
        self.heard_s = time.monotonic()
        self.send(self.connect_packet(clean, will))
        try:
            return await asyncio.wait_for(self.connack, PATIENCE_S)
        except asyncio.TimeoutError:
            self.ledger.report(f"{self.name}: no CONNACK in {PATIENCE_S} s")
            return False

    def on_connack(self, packet):
        if packet.reason:
            self.ledger.report(f"{self.name}: refused with {packet.reason:#04x}")
            self.connack.set_result(False)
            return
        is_new = self.session.connack(bool(packet.session_present), self.is_clean_start, self.is_clean_start and self.version < 5) if self.session else True
        if is_new:
            self.forget()
        else:
            self.resume()
        if not self.connack.done():
            self.connack.set_result(True)

    def forget(self):
        """Its half of the session: the other is gone, or is to go."""
        for entry in self.out.values():
            entry.message.is_given_up = True
            entry.message.history.append(self.ledger.stamp(f"given up by {self.name}: its session is a new one"))
        self.out.clear()
        self.incoming.clear()

    def resume(self):
        """[MQTT-4.4.0-1]: what is open again, in its order, with its ids."""
        for packet_id, entry in self.out.items():
            if entry.is_received:
                entry.message.history.append(self.ledger.stamp(f"PUBREL again, id {packet_id}"))
                self.send(wire.ack_packet(wire.PUBREL, packet_id, version=self.version))
            else:
                entry.message.sendings += 1
                entry.message.history.append(self.ledger.stamp(f"PUBLISH again, id {packet_id}"))
                self.send(bytes([entry.packet[0] | 8]) + entry.packet[1:])

    def send(self, data):
        if self.link and not self.link.transport.is_closing():
            self.link.transport.write(data)

    async def cut(self):
        """The network fails."""
        link = self.link
        if link:
            link.is_ours_to_close = True
            link.transport.abort()
            await link.lost

    async def leave(self):
        """DISCONNECT; returns when the server has closed."""
        link = self.link
        if link:
            link.is_ours_to_close = True
            self.flush_held()
            self.send(wire.disconnect_packet(version=self.version))
            try:
                await asyncio.wait_for(asyncio.shield(link.lost), PATIENCE_S)
            except asyncio.TimeoutError:
                self.ledger.report(f"{self.name}: the server does not close after DISCONNECT")
                await self.cut()

    async def wait_lost(self):
        if self.link:
            await self.link.lost

    def on_lost(self, link):
        if link is not self.link:
            return
        self.link = None
        self.held.clear()
        self.was_lost = not link.is_ours_to_close
        if self.session:
            self.session.disconnected(self.heard_s, self.was_lost)
        if self.connack and not self.connack.done():
            self.connack.set_result(False)
        for future, _ in self.asked.values():
            if not future.done():
                future.set_result(False)
        self.asked = {}

    # -- asking --

    def new_id(self):
        while True:
            self.last_id = self.last_id % 65535 + 1
            if self.last_id not in self.out and self.last_id not in self.asked:
                return self.last_id

    async def _ask(self, packet_id, packet, on_answer):
        future = asyncio.get_running_loop().create_future()
        self.asked[packet_id] = (future, on_answer)
        self.send(packet)
        try:
            return await asyncio.wait_for(future, PATIENCE_S)
        except asyncio.TimeoutError:
            self.ledger.report(f"{self.name}: no answer to SUBSCRIBE or UNSUBSCRIBE in {PATIENCE_S} s")
            return False

    async def subscribe(self, topic_filter, qos):
        if not self.is_up:
            return False
        interval = self.session.subscribe_sent(topic_filter, qos) if self.session else None
        packet_id = self.new_id()

        def on_answer(packet):
            if packet.codes != [qos]:
                self.ledger.report(f"{self.name}: SUBACK {packet.codes} for {topic_filter} QoS {qos}")
            elif interval:
                self.session.suback(interval)

        return await self._ask(packet_id, wire.subscribe_packet([(topic_filter, qos)], packet_id, version=self.version), on_answer)

    async def unsubscribe(self, topic_filter):
        if not self.is_up:
            return False
        intervals = self.session.unsubscribe_sent(topic_filter)
        packet_id = self.new_id()
        return await self._ask(packet_id, wire.unsubscribe_packet([topic_filter], packet_id, version=self.version),
                               lambda packet: self.session.unsuback(intervals))

    async def subscribe_wanted(self):
        """What this client wants and is not sure to have."""
        for topic_filter, qos in list(self.wanted.items()):
            if not self.session.has(topic_filter):
                await self.subscribe(topic_filter, qos)

    def publish(self, topic, qos, payload_of, is_retained=False, is_empty=False, expiry_s=None):
        """payload_of(message) -> bytes. Returns the message."""
        message = self.ledger.new_message(self.name, topic, qos, is_retained, is_empty, expiry_s)
        packet_id = self.new_id()
        properties = [(wire.MESSAGE_EXPIRY, expiry_s)] if expiry_s is not None else []
        packet = wire.publish_packet(topic, b"" if is_empty else payload_of(message), qos, packet_id, retain=is_retained, properties=properties,
                                     version=self.version)
        self.out[packet_id] = Open(message, packet)
        message.history.append(self.ledger.stamp(f"PUBLISH, id {packet_id}"))
        self.send(packet)
        return message

    # -- receiving --

    def on_packet(self, link, packet):
        if link is not self.link or (link.is_ours_to_close and packet.kind == wire.DISCONNECT):
            return
        kind = packet.kind
        if kind == wire.PUBLISH:
            self.on_publish(packet)
        elif kind == wire.CONNACK:
            self.on_connack(packet)
        elif kind in (wire.PUBACK, wire.PUBREC, wire.PUBCOMP):
            self.on_ack(packet)
        elif kind == wire.PUBREL:
            self.tell(self.incoming.pop(packet.packet_id, None), f"<- {self.name} PUBREL, answered by PUBCOMP, id {packet.packet_id}")
            self.respond(wire.ack_packet(wire.PUBCOMP, packet.packet_id, version=self.version))
        elif kind in (wire.SUBACK, wire.UNSUBACK):
            future, on_answer = self.asked.pop(packet.packet_id, (None, None))
            if future is None:
                self.ledger.report(f"{self.name}: {packet} answers nothing")
            else:
                on_answer(packet)
                future.set_result(True)
        elif kind == wire.PINGRESP:
            future, _ = self.asked.pop("ping", (None, None))
            if future:
                future.set_result(True)
        elif kind != wire.DISCONNECT or not self.ledger.is_stopping:
            self.ledger.report(f"{self.name}: {packet} came")

    def on_ack(self, packet):
        entry = self.out.get(packet.packet_id)
        name = wire.NAMES[packet.kind]
        if entry is None or (packet.kind == wire.PUBACK) != (entry.message.qos == 1):
            self.ledger.report(f"{self.name}: {packet} acknowledges what is not open", [entry.message] if entry else [])
            return
        if packet.reason >= 0x80 and packet.kind != wire.PUBCOMP:
            entry.message.history.append(self.ledger.stamp(f"{name} refuses with {packet.reason:#04x}"))
            del self.out[packet.packet_id]
        elif packet.kind == wire.PUBREC:
            entry.is_received = True
            self.ledger.acknowledged(entry.message, name)
            self.send(wire.ack_packet(wire.PUBREL, packet.packet_id, version=self.version))
        else:
            if packet.kind == wire.PUBCOMP and not entry.is_received:
                self.ledger.report(f"{self.name}: PUBCOMP without PUBREC", [entry.message])
            self.ledger.acknowledged(entry.message, name)
            del self.out[packet.packet_id]

    def on_publish(self, packet):
        is_again = packet.qos == 2 and packet.packet_id in self.incoming
        if packet.qos == 2:
            self.incoming.setdefault(packet.packet_id, None)
            self.respond(wire.ack_packet(wire.PUBREC, packet.packet_id, version=self.version))
        elif packet.qos == 1:
            self.respond(wire.ack_packet(wire.PUBACK, packet.packet_id, version=self.version))
        if self.on_message:
            message = self.on_message(packet, is_again)
            if packet.qos == 2 and not is_again:
                self.incoming[packet.packet_id] = message
            elif is_again and message is not self.incoming[packet.packet_id]:
                before = self.incoming[packet.packet_id]
                self.ledger.report(f"{self.name}: id {packet.packet_id} is not released, and comes with another message: {message}, was {before}",
                                   [entry for entry in (message, before) if entry])
        if is_again:
            self.tell(self.incoming[packet.packet_id], f"-> {self.name} QoS 2 id {packet.packet_id} again, connection {self.session and self.session.connection}")

    def tell(self, message, text):
        if message:
            message.history.append(self.ledger.stamp(text))

    def respond(self, data):
        """At once, or after a while; always in order."""
        if self.held or self.rng.random() < self.hold_chance:
            if not self.held:
                asyncio.get_running_loop().call_later(self.rng.choice((0.002, 0.02, 0.1, 0.5)), self.flush_held)
            self.held.append(data)
        else:
            self.send(data)

    def flush_held(self):
        if self.held:
            self.send(b"".join(self.held))
            self.held.clear()

    async def ping(self):
        """When it returns True, all that was sent before was handled, and all that was under way has come."""
        if not self.is_up:
            return False
        future = asyncio.get_running_loop().create_future()
        self.asked["ping"] = (future, None)
        self.send(wire.PING)
        try:
            return await asyncio.wait_for(future, PATIENCE_S)
        except asyncio.TimeoutError:
            self.ledger.report(f"{self.name}: no PINGRESP in {PATIENCE_S} s")
            return False
