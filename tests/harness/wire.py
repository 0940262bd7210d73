"""MQTT byte by byte: packets made by hand and one blocking connection, so that a test says exactly what travels and sees exactly what comes
back. Nothing is checked on the way out: malformed packets are made with the same functions.

    client = Client(port, version=5)
    connack = client.connect("me", clean=True)
    client.subscribe(("a/+", 1))
    client.publish("a/b", b"hello", qos=1)
    message = client.take()          # the PUBLISH, acknowledged
"""
import socket
import struct

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(1, 16)
NAMES = ["0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK",
         "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"]

# How long a test waits for what must come. Long, because nothing is learned from a busy machine; a correct broker never lets it pass.
PATIENCE_S = 30

PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA = 0x01, 0x02, 0x03, 0x08, 0x09
SUBSCRIPTION_ID, SESSION_EXPIRY, ASSIGNED_ID, SERVER_KEEP_ALIVE, AUTH_METHOD, AUTH_DATA = 0x0B, 0x11, 0x12, 0x13, 0x15, 0x16
REQUEST_PROBLEM, WILL_DELAY, REQUEST_RESPONSE, RESPONSE_INFO, SERVER_REFERENCE, REASON_STRING = 0x17, 0x18, 0x19, 0x1A, 0x1C, 0x1F
RECEIVE_MAXIMUM, ALIAS_MAXIMUM, ALIAS, MAXIMUM_QOS, RETAIN_AVAILABLE, USER_PROPERTY = 0x21, 0x22, 0x23, 0x24, 0x25, 0x26
MAXIMUM_PACKET_SIZE, WILDCARD_AVAILABLE, SUBSCRIPTION_ID_AVAILABLE, SHARED_AVAILABLE = 0x27, 0x28, 0x29, 0x2A

_KINDS = {
    0x01: "byte", 0x02: "u32", 0x03: "string", 0x08: "string", 0x09: "binary", 0x0B: "varint", 0x11: "u32", 0x12: "string", 0x13: "u16",
    0x15: "string", 0x16: "binary", 0x17: "byte", 0x18: "u32", 0x19: "byte", 0x1A: "string", 0x1C: "string", 0x1F: "string", 0x21: "u16",
    0x22: "u16", 0x23: "u16", 0x24: "byte", 0x25: "byte", 0x26: "pair", 0x27: "u32", 0x28: "byte", 0x29: "byte", 0x2A: "byte",
}


class WireError(AssertionError):
    """The other side did what the test does not allow."""


# ---- encoding ----


def varint(value):
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def raw_of(text):
    return text.encode() if isinstance(text, str) else bytes(text)


def string(text):
    raw = raw_of(text)
    return struct.pack(">H", len(raw)) + raw


def property_bytes(identifier, value):
    kind = _KINDS.get(identifier, "byte")
    if kind == "byte":
        body = bytes([value])
    elif kind == "u16":
        body = struct.pack(">H", value)
    elif kind == "u32":
        body = struct.pack(">I", value)
    elif kind == "varint":
        body = varint(value)
    elif kind == "pair":
        body = string(value[0]) + string(value[1])
    else:
        body = string(value)
    return varint(identifier) + body


def properties_bytes(properties):
    """properties: a list of (identifier, value), or bytes that stand for the whole field."""
    if isinstance(properties, (bytes, bytearray)):
        return bytes(properties)
    body = b"".join(property_bytes(identifier, value) for identifier, value in properties)
    return varint(len(body)) + body


def packet(kind, flags, body):
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def connect_packet(client_id="", version=5, clean=True, keep_alive=0, properties=(), will=None, user_name=None, password=None, flags=None,
                   name=None, level=None):
    """will: dict of topic, payload, qos, retain, properties."""
    if flags is None:
        flags = 2 if clean else 0
        if will is not None:
            flags |= 4 | will.get("qos", 0) << 3 | (0x20 if will.get("retain") else 0)
        flags |= (0x80 if user_name is not None else 0) | (0x40 if password is not None else 0)
    body = string(("MQIsdp" if version == 3 else "MQTT") if name is None else name)
    body += bytes([version if level is None else level, flags]) + struct.pack(">H", keep_alive)
    if version == 5:
        body += properties_bytes(properties)
    body += string(client_id)
    if will is not None:
        if version == 5:
            body += properties_bytes(will.get("properties", ()))
        body += string(will["topic"]) + string(will.get("payload", b""))
    if user_name is not None:
        body += string(user_name)
    if password is not None:
        body += string(password)
    return packet(CONNECT, 0, body)


def publish_packet(topic, payload=b"", qos=0, packet_id=None, retain=False, dup=False, properties=(), version=5):
    body = string(topic)
    if qos or packet_id is not None:
        body += struct.pack(">H", 1 if packet_id is None else packet_id)
    if version == 5:
        body += properties_bytes(properties)
    return packet(PUBLISH, (8 if dup else 0) | qos << 1 | (1 if retain else 0), body + raw_of(payload))


def ack_packet(kind, packet_id, reason=0, version=5, properties=None):
    body = struct.pack(">H", packet_id)
    if version == 5 and (reason or properties is not None):
        body += bytes([reason])
        if properties is not None:
            body += properties_bytes(properties)
    return packet(kind, 2 if kind == PUBREL else 0, body)


def subscribe_packet(filters, packet_id=1, properties=(), version=5):
    """filters: (filter, options byte) each."""
    body = struct.pack(">H", packet_id) + (properties_bytes(properties) if version == 5 else b"")
    return packet(SUBSCRIBE, 2, body + b"".join(string(name) + bytes([options]) for name, options in filters))


def unsubscribe_packet(filters, packet_id=1, properties=(), version=5):
    body = struct.pack(">H", packet_id) + (properties_bytes(properties) if version == 5 else b"")
    return packet(UNSUBSCRIBE, 2, body + b"".join(string(name) for name in filters))


def disconnect_packet(reason=0, properties=None, version=5):
    if version < 5 or (reason == 0 and properties is None):
        return packet(DISCONNECT, 0, b"")
    return packet(DISCONNECT, 0, bytes([reason]) + (properties_bytes(properties) if properties is not None else b""))


PING = packet(PINGREQ, 0, b"")

# ---- decoding ----


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        if self.at + size > len(self.data):
            raise WireError(f"packet cut short: {self.data[:64].hex()}")
        self.at += size
        return self.data[self.at - size:self.at]

    def byte(self):
        return self.take(1)[0]

    def u16(self):
        return struct.unpack(">H", self.take(2))[0]

    def u32(self):
        return struct.unpack(">I", self.take(4))[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def binary(self):
        return self.take(self.u16())

    def string(self):
        return self.binary().decode()

    def properties(self):
        end = self.varint() + self.at
        found = []
        while self.at < end:
            identifier = self.varint()
            kind = _KINDS.get(identifier)
            if kind is None:
                raise WireError(f"unknown property {identifier:#x}")
            value = {"byte": self.byte, "u16": self.u16, "u32": self.u32, "varint": self.varint, "string": self.string,
                     "binary": self.binary, "pair": lambda: (self.string(), self.string())}[kind]()
            found.append((identifier, value))
        if self.at != end:
            raise WireError("properties longer than their length says")
        return found

    def rest(self):
        return self.take(len(self.data) - self.at)


class Packet:
    """A packet from the server. Fields that its type does not have are None."""

    def __init__(self, first, body, version):
        self.kind, self.flags, self.size = first >> 4, first & 15, 1 + len(varint(len(body))) + len(body)
        self.packet_id = self.reason = self.session_present = self.topic = self.payload = self.codes = None
        self.properties = []
        reader = _Reader(body)
        five = version == 5
        if self.kind == CONNACK:
            self.acknowledge_flags, self.reason = reader.byte(), reader.byte()
            self.session_present = self.acknowledge_flags & 1
            if five and reader.at < len(body):
                self.properties = reader.properties()
        elif self.kind == PUBLISH:
            self.qos, self.dup, self.retain = self.flags >> 1 & 3, self.flags >> 3, self.flags & 1
            self.topic = reader.string()
            if self.qos:
                self.packet_id = reader.u16()
            if five:
                self.properties = reader.properties()
            self.payload = reader.rest()
        elif self.kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
            self.packet_id, self.reason = reader.u16(), 0
            if five and reader.at < len(body):
                self.reason = reader.byte()
                if reader.at < len(body):
                    self.properties = reader.properties()
        elif self.kind in (SUBACK, UNSUBACK):
            self.packet_id = reader.u16()
            if five:
                self.properties = reader.properties()
            self.codes = list(reader.rest())
        elif self.kind in (DISCONNECT, AUTH):
            self.reason = 0
            if five and reader.at < len(body):
                self.reason = reader.byte()
                if reader.at < len(body):
                    self.properties = reader.properties()
        if reader.at != len(body):
            raise WireError(f"{self}: {len(body) - reader.at} bytes too many")

    def get(self, identifier, default=None):
        """The one value of a property."""
        values = self.all(identifier)
        if len(values) > 1:
            raise WireError(f"{self}: property {identifier:#x} comes {len(values)} times")
        return values[0] if values else default

    def all(self, identifier):
        return [value for name, value in self.properties if name == identifier]

    def __repr__(self):
        parts = [NAMES[self.kind], f"flags={self.flags:x}"]
        for name in ("packet_id", "topic", "codes", "session_present"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if self.reason is not None:
            parts.append(f"reason={self.reason:#04x}")
        if self.payload is not None:
            parts.append(f"payload={bytes(self.payload[:40])!r}" + ("..." if len(self.payload) > 40 else ""))
        if self.properties:
            parts.append(f"properties={self.properties}")
        return "<" + " ".join(parts) + ">"


# ---- a connection ----


class Client:
    """One connection. Receiving blocks up to PATIENCE_S and raises WireError when nothing comes; whatever the test does not ask for by
    expect() keeps its place in the order."""

    def __init__(self, port, version=5, tls=None, receive_buffer=None, host="127.0.0.1"):
        self.version, self.data, self.waiting, self.next_id = version, bytearray(), [], 0
        self.client_id = None
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def close(self):
        """Without DISCONNECT: for the server the network has failed."""
        self.socket.close()

    def send(self, *packets):
        self.socket.sendall(b"".join(packets))

    def send_tolerant(self, *packets):
        """For packets during which the server may close."""
        try:
            self.send(*packets)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send_bytewise(self, data):
        for at in range(len(data)):
            self.socket.sendall(data[at:at + 1])

    # -- receiving --

    def _parse(self):
        at, size, shift = 1, 0, 0
        while True:
            if at >= len(self.data):
                return None
            byte = self.data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not byte & 0x80:
                break
            if at > 4:
                raise WireError("remaining length of more than four bytes")
        if len(self.data) < at + size:
            return None
        found = Packet(self.data[0], bytes(self.data[at:at + size]), self.version)
        del self.data[:at + size]
        return found

    def _next(self):
        """The next packet off the wire; None at the end of the connection."""
        while True:
            found = self._parse() if self.data else None
            if found:
                return found
            try:
                more = self.socket.recv(1 << 20)
            except socket.timeout:
                raise WireError(f"{self.client_id}: nothing came in {PATIENCE_S} s") from None
            except ConnectionResetError:
                more = b""
            if not more:
                if self.data:
                    raise WireError(f"connection ended inside a packet: {bytes(self.data[:32]).hex()}")
                return None
            self.data += more

    def recv(self):
        """The next packet, whatever it is."""
        found = self.waiting.pop(0) if self.waiting else self._next()
        if found is None:
            raise WireError(f"{self.client_id}: the connection was closed")
        return found

    def expect(self, *kinds):
        """The next packet of these types; others keep waiting."""
        for index, found in enumerate(self.waiting):
            if found.kind in kinds:
                return self.waiting.pop(index)
        while True:
            found = self._next()
            if found is None:
                raise WireError(f"{self.client_id}: closed while waiting for {[NAMES[kind] for kind in kinds]}; came: {self.waiting}")
            if found.kind in kinds:
                return found
            if found.kind == DISCONNECT:
                raise WireError(f"{self.client_id}: {found} while waiting for {[NAMES[kind] for kind in kinds]}")
            self.waiting.append(found)

    def rest(self):
        """Everything until the server closes."""
        found, self.waiting = self.waiting, []
        while True:
            more = self._next()
            if more is None:
                return found
            found.append(more)

    def expect_closed(self, reason=None):
        """The server closes; a v5 client is told `reason` first, others nothing. Returns what came before."""
        found = self.rest()
        if self.version == 5 and reason is not None:
            if not found or found[-1].kind != DISCONNECT:
                raise WireError(f"closed without DISCONNECT; came: {found}")
            if found[-1].reason != reason:
                raise WireError(f"DISCONNECT with {found[-1].reason:#04x}, not {reason:#04x}")
            found.pop()
        if any(packet.kind == DISCONNECT for packet in found):
            raise WireError(f"DISCONNECT that was not to come: {found}")
        return found

    # -- whole exchanges --

    def new_id(self):
        self.next_id = self.next_id % 65535 + 1
        return self.next_id

    def connect(self, client_id="", expect_reason=0, **options):
        self.client_id = client_id
        self.send(connect_packet(client_id, version=self.version, **options))
        connack = self.expect(CONNACK)
        if expect_reason is not None and connack.reason != expect_reason:
            raise WireError(f"{connack}: reason {expect_reason:#04x} was to come")
        return connack

    def subscribe(self, *filters, properties=(), granted=None):
        """filters: "a/b" (QoS 0) or ("a/b", options byte)."""
        filters = [entry if isinstance(entry, tuple) else (entry, 0) for entry in filters]
        packet_id = self.new_id()
        self.send(subscribe_packet(filters, packet_id, properties, self.version))
        suback = self.expect(SUBACK)
        expected = granted if granted is not None else [options & 3 for _, options in filters]
        if suback.packet_id != packet_id or suback.codes != expected:
            raise WireError(f"{suback}: packet_id={packet_id} codes={expected} were to come")
        return suback

    def unsubscribe(self, *filters, codes=None):
        packet_id = self.new_id()
        self.send(unsubscribe_packet(filters, packet_id, version=self.version))
        unsuback = self.expect(UNSUBACK)
        if self.version < 5:
            expected = []
        else:
            expected = codes if codes is not None else [0] * len(filters)
        if unsuback.packet_id != packet_id or unsuback.codes != expected:
            raise WireError(f"{unsuback}: packet_id={packet_id} codes={expected} were to come")
        return unsuback

    def publish(self, topic, payload=b"", qos=0, expect_reason=(0, 0x10), **options):
        """Publish and wait until it is acknowledged; returns the (first) acknowledgement. expect_reason None: any."""
        packet_id = options.pop("packet_id", None)
        if qos and packet_id is None:
            packet_id = self.new_id()
        self.send(publish_packet(topic, payload, qos, packet_id, version=self.version, **options))
        if qos == 0:
            return None
        ack = self.expect(PUBACK if qos == 1 else PUBREC)
        expected = expect_reason if isinstance(expect_reason, tuple) or expect_reason is None else (expect_reason,)
        if ack.packet_id != packet_id or (expected is not None and ack.reason not in expected):
            raise WireError(f"{ack}: packet_id={packet_id} reason={expected} were to come")
        if qos == 2 and ack.reason < 0x80:
            self.send(ack_packet(PUBREL, packet_id, version=self.version))
            complete = self.expect(PUBCOMP)
            if complete.packet_id != packet_id or complete.reason != 0:
                raise WireError(f"{complete}: packet_id={packet_id} reason=0 were to come")
        return ack

    def acknowledge(self, message):
        """Finish what a PUBLISH began."""
        if message.qos == 1:
            self.send(ack_packet(PUBACK, message.packet_id, version=self.version))
        elif message.qos == 2:
            self.send(ack_packet(PUBREC, message.packet_id, version=self.version))
            release = self.expect(PUBREL)
            if release.packet_id != message.packet_id or release.flags != 2:
                raise WireError(f"{release}: packet_id={message.packet_id} flags=2 were to come")
            self.send(ack_packet(PUBCOMP, message.packet_id, version=self.version))

    def take(self):
        """The next message, acknowledged."""
        message = self.expect(PUBLISH)
        self.acknowledge(message)
        return message

    def take_payloads(self, count):
        return [self.take().payload for _ in range(count)]

    def ping(self):
        """When this returns, the server has handled all that was sent before."""
        self.send(PING)
        self.expect(PINGRESP)

    def disconnect(self, reason=0, properties=None):
        self.send(disconnect_packet(reason, properties, self.version))
        found = self.rest()
        self.close()
        return found
