"""ZMTP and CurveZMQ on the server's side, without I/O: what the RFCs say, and each fault."""

from __future__ import annotations

from hashlib import sha256

import pytest
from nacl.bindings import crypto_box, crypto_scalarmult_base

from node.curve import Keys
from node.zmtp import GREETING, MAX_METADATA_BYTES, Fault, Session, ZmtpError
from tests.node.curve_client import (
    COMMAND,
    DEALER,
    LONG,
    MORE,
    CurveClient,
    frame,
    frames,
    greeting,
)

SERVER = Keys.of(b"s" * 32)
MAX_MESSAGE = 5_000


class CountedEntropy:
    """Bytes that look random and are the same in each run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        """The next ones."""
        self.count += 1
        return sha256(b"%d" % self.count).digest()[:size]


def new_session(allowed: bytes | None = None) -> Session:
    """A session with a known key that lets in everybody, or one."""
    return Session(
        SERVER,
        allows=lambda key: allowed is None or key == allowed,
        entropy=CountedEntropy(),
        max_message_bytes=MAX_MESSAGE,
    )


def opened(minor: int = 1) -> tuple[Session, CurveClient]:
    """A session and its client after the handshake, outputs taken."""
    session, client = new_session(), CurveClient(SERVER.public)
    assert GREETING == session.take_output()
    assert [] == session.receive(greeting(minor=minor) + client.hello())
    client.take_welcome(session.take_output())
    assert [] == session.receive(client.initiate())
    client.take_ready(session.take_output())
    return session, client


def fault_of(session: Session, data: bytes) -> Fault:
    """The fault that some bytes are; the session is of no use after it."""
    with pytest.raises(ZmtpError) as caught:
        session.receive(data)
    assert not session.is_open
    assert [] == session.receive(data)
    return caught.value.fault


# The handshake


def test_the_greeting_is_that_of_a_server_of_zmtp_3_1_under_curve() -> None:
    """RFC 37: signature, version, mechanism, as-server, filler."""
    mechanism = b"CURVE" + bytes(15)
    expected = b"\xff\0\0\0\0\0\0\0\0\x7f" + b"\x03\x01" + mechanism + b"\x01" + bytes(31)
    assert expected == new_session().take_output()


def test_a_handshake_ends_with_ready_and_the_client_s_key() -> None:
    """RFC 26: HELLO, WELCOME, INITIATE, READY; the server says that it is a ROUTER."""
    session, client = new_session(), CurveClient(SERVER.public)
    session.take_output()
    session.receive(greeting())
    assert b"" == session.take_output()
    session.receive(client.hello())
    client.take_welcome(session.take_output())
    assert not session.is_open
    session.receive(client.initiate(b"\x08Identity\0\0\0\x01x" + DEALER + b"\x03X-a\0\0\0\0"))
    assert b"\x0bSocket-Type\0\0\0\x06ROUTER" == client.take_ready(session.take_output())
    assert session.is_open
    assert client.public_key == session.client_key


def test_the_handshake_s_bytes_are_golden() -> None:
    """The same keys and entropy give the same bytes, for ever."""
    session, client = new_session(), CurveClient(SERVER.public)
    sent = [session.take_output()]
    session.receive(greeting() + client.hello())
    sent.append(session.take_output())
    client.take_welcome(sent[-1])
    session.receive(client.initiate())
    sent.append(session.take_output())
    session.queue(b"answer")
    sent.append(session.take_output())
    assert [
        (64, "a808ea8b2a3ddfa0"),
        (170, "1d92403d1f48fd92"),
        (54, "2737c67389c3f6a0"),
        (41, "942d861d22510c06"),
    ] == [(len(one), sha256(one).hexdigest()[:16]) for one in sent]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 63, 64, 65, 100])
def test_bytes_come_in_any_portions(size: int) -> None:
    """A whole connection's bytes, cut anywhere, give the same messages."""
    session, client = new_session(), CurveClient(SERVER.public)
    session.take_output()

    def feed(data: bytes) -> list[bytes]:
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        return [message for part in parts for message in session.receive(part)]

    feed(greeting() + client.hello())
    client.take_welcome(session.take_output())
    feed(client.initiate())
    client.take_ready(session.take_output())
    messages = [b"", b"a", b"b" * 300, b"c" * MAX_MESSAGE]
    assert messages == feed(b"".join(client.message(one) for one in messages))
    assert (0, 0) == (session.buffered_bytes, session.expected_bytes)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"G", Fault.GREETING),
        (b"GET / HTTP/1.1\r\n", Fault.GREETING),
        (b"\xff" + bytes(9), Fault.GREETING),
        (b"\xff" + bytes(8) + b"\x7f\x01", Fault.GREETING),
        (greeting(major=2), Fault.GREETING),
        (greeting(mechanism=b"NULL"), Fault.MECHANISM),
        (greeting(mechanism=b"PLAIN"), Fault.MECHANISM),
        (greeting(mechanism=b"CURVEX"), Fault.MECHANISM),
        (greeting() + b"\x04\x05HELLO", Fault.HANDSHAKE),
        (greeting() + b"\x04\xc9", Fault.TOO_LARGE),
        (greeting() + frame(bytes(200)), Fault.FRAME),
        (greeting() + frame(bytes(200), COMMAND), Fault.HANDSHAKE),
        (greeting() + b"\x08\x00", Fault.FRAME),
        (greeting() + b"\x05\x00", Fault.FRAME),
        (greeting() + b"\x80\x00", Fault.FRAME),
        (greeting() + b"\x01\x00", Fault.MULTIPART),
        (greeting() + b"\x06" + (201).to_bytes(8, "big"), Fault.TOO_LARGE),
        (greeting() + b"\x06" + b"\xff" * 8, Fault.TOO_LARGE),
    ],
)
def test_what_is_no_greeting_and_hello_is_dropped(data: bytes, fault: Fault) -> None:
    """As soon as the first byte that is wrong is there, and before anything is kept for it."""
    assert fault == fault_of(new_session(), data)


@pytest.mark.parametrize(
    ("major", "minor", "speaks_ping"), [(3, 0, False), (3, 1, True), (4, 0, True)]
)
def test_later_versions_speak_as_this_one(major: int, minor: int, speaks_ping: bool) -> None:
    """RFC 23 §3.2: a peer of a higher version steps down; one of 3.0 knows no PING."""
    session = new_session()
    session.receive(greeting(major=major, minor=minor))
    assert speaks_ping == session.speaks_ping


def test_a_client_with_another_server_s_key_is_dropped_at_its_hello() -> None:
    """Nothing is answered: it does not know whom it speaks to."""
    session, client = new_session(), CurveClient(crypto_scalarmult_base(b"x" * 32))
    session.take_output()
    assert Fault.HANDSHAKE == fault_of(session, greeting() + client.hello())
    assert b"" == session.take_output()


def test_a_public_key_of_small_order_is_dropped() -> None:
    """Libsodium refuses it; that must not come out as an error of another kind."""
    hello = b"\x05HELLO\x01\x00" + bytes(72) + bytes(32) + bytes(7) + b"\x01" + bytes(80)
    assert Fault.HANDSHAKE == fault_of(new_session(), greeting() + frame(hello, COMMAND))


def test_a_hello_of_another_version_of_curve_is_dropped() -> None:
    """CurveZMQ 1.0 is the only one there is."""
    hello = CurveClient(SERVER.public).hello().replace(b"HELLO\x01\x00", b"HELLO\x02\x00")
    assert Fault.HANDSHAKE == fault_of(new_session(), greeting() + hello)


def test_a_hello_whose_box_holds_something_else_is_dropped() -> None:
    """RFC 26: 64 zeros."""
    nonce = b"CurveZMQHELLO---" + (1).to_bytes(8, "big")
    box = crypto_box(b"x" * 64, nonce, SERVER.public, b"t" * 32)
    client = CurveClient(SERVER.public, faults={"hello box": box})
    assert Fault.HANDSHAKE == fault_of(new_session(), greeting() + client.hello())


def welcomed(faults: dict[str, bytes], allowed: bytes | None = None) -> tuple[Session, CurveClient]:
    """A session that waits for an INITIATE, which will have faults."""
    session, client = new_session(allowed), CurveClient(SERVER.public, faults=faults)
    session.take_output()
    session.receive(greeting() + client.hello())
    client.take_welcome(session.take_output())
    return session, client


@pytest.mark.parametrize(
    "faults",
    [
        {"cookie": bytes(96)},
        {"client key": crypto_scalarmult_base(b"y" * 32)},
        {"client key": bytes(32)},
        {"vouch": bytes(64)},
        {"vouch": crypto_scalarmult_base(b"t" * 32) + crypto_scalarmult_base(b"x" * 32)},
        {"vouch": crypto_scalarmult_base(b"y" * 32) + SERVER.public},
    ],
    ids=[
        "cookie",
        "another's key",
        "no key",
        "no vouch",
        "for another server",
        "another transient",
    ],
)
def test_an_initiate_that_proves_nothing_is_dropped(faults: dict[str, bytes]) -> None:
    """Who does not own the key it names, for this connection and this server, is not answered."""
    session, client = welcomed(faults)
    assert Fault.HANDSHAKE == fault_of(session, client.initiate())
    assert b"" == session.take_output()


def test_a_cookie_of_another_connection_is_dropped() -> None:
    """A recorded handshake cannot be replayed: each connection has a cookie key of its own."""
    _, recorded = welcomed({})
    session = Session(
        SERVER, allows=lambda _: True, entropy=lambda size: b"z" * size, max_message_bytes=100
    )
    session.receive(greeting() + CurveClient(SERVER.public).hello())
    assert Fault.HANDSHAKE == fault_of(session, recorded.initiate())


def test_an_initiate_with_the_hello_s_nonce_is_dropped() -> None:
    """Nonces ascend from the first command on."""
    session, client = welcomed({})
    client.nonce = 0
    assert Fault.REPLAYED == fault_of(session, client.initiate())


def test_an_initiate_with_too_much_metadata_is_dropped_by_its_header() -> None:
    """Before its bytes have come."""
    session, client = welcomed({})
    large = client.initiate(bytes(MAX_METADATA_BYTES + 1))
    assert Fault.TOO_LARGE == fault_of(session, large[:9])


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"\x0bSocket-Type\0\0\0\x03REQ",
        b"\x0bSocket-Type\0\0\0\x06ROUTER",
        b"\x0bSocket-Type\0\0\0\x07DEALER",
        b"\x0bSocket-Type\xff\xff\xff\xffDEALER",
        b"\x0bSocket-Type",
        b"\x0bSocket",
        b"\0\0\0\0\0",
        DEALER + b"\x01",
    ],
)
def test_a_client_is_a_dealer(metadata: bytes) -> None:
    """Any other socket type would send what a port does not take; half a property is none."""
    session, client = welcomed({})
    assert Fault.METADATA == fault_of(session, client.initiate(metadata))


def test_the_name_of_a_property_is_in_any_case() -> None:
    """RFC 23: names are case-insensitive."""
    session, client = welcomed({})
    session.receive(client.initiate(DEALER.upper()))
    assert session.is_open


def test_a_key_that_is_not_let_in_is_told_so() -> None:
    """RFC 26: ERROR with a reason; 400 is what a ZAP handler says, and libzmq tells its user."""
    session, client = welcomed({}, allowed=crypto_scalarmult_base(b"y" * 32))
    assert Fault.KEY == fault_of(session, client.initiate())
    assert [(COMMAND, b"\x05ERROR\x03400")] == frames(session.take_output())
    session, client = welcomed({}, allowed=client.public_key)
    session.receive(client.initiate())
    assert session.is_open


# Messages


def test_messages_travel_both_ways_under_ascending_nonces() -> None:
    """RFC 26; a MESSAGE may have the command flag, as the RFC has it, or not, as libzmq has it."""
    session, client = opened()
    data = client.message(b"one") + client.message(b"two", flags=COMMAND)
    assert [b"one", b"two"] == session.receive(data)
    session.queue(b"x" * 300)
    session.queue(b"y")
    output = session.take_output()
    assert [(0, b"x" * 300), (0, b"y")] == client.opened(output)
    assert [2, 3] == [int.from_bytes(body[8:16], "big") for _, body in frames(output)]


def test_a_short_message_in_a_long_frame_is_taken() -> None:
    """RFC 23 asks for the short form where it fits and does not forbid the other."""
    session, client = opened()
    assert [b"a"] == session.receive(client.message(b"a", flags=LONG))


def test_a_replayed_message_is_dropped() -> None:
    """The very same bytes a second time."""
    session, client = opened()
    message = client.message(b"once")
    session.receive(message)
    assert Fault.REPLAYED == fault_of(session, message)


def test_messages_in_another_order_are_dropped() -> None:
    """Nonces ascend strictly."""
    session, client = opened()
    first, second = client.message(b"1"), client.message(b"2")
    session.receive(second)
    assert Fault.REPLAYED == fault_of(session, first)


def test_every_flipped_bit_of_a_message_is_seen() -> None:
    """Name, nonce, box: nothing of it can be changed on the way."""
    _, client = opened()
    length = len(client.message(b"abc"))
    for place in range(2, length):
        session, client = opened()
        message = bytearray(client.message(b"abc"))
        message[place] ^= 0x10
        assert fault_of(session, bytes(message)) in {Fault.FORGED, Fault.REPLAYED}


@pytest.mark.parametrize("body", [b"", b"\x07MESSAGE", b"\x07MESSAGE" + bytes(24), bytes(40)])
def test_what_is_too_short_for_a_message_is_dropped(body: bytes) -> None:
    """Also what is no MESSAGE at all."""
    session, _ = opened()
    assert Fault.FORGED == fault_of(session, frame(body))


@pytest.mark.parametrize(
    ("inner", "fault"), [(1, Fault.MULTIPART), (3, Fault.FRAME), (4, Fault.FRAME)]
)
def test_a_message_of_several_parts_is_dropped_at_the_first(inner: int, fault: Fault) -> None:
    """It announces another part, which is not waited for."""
    session, client = opened()
    assert fault == fault_of(session, client.message(b"part", inner=inner))


def test_parts_announced_outside_the_box_are_dropped_too() -> None:
    """By the frame's own flag, before the frame has arrived."""
    session, client = opened()
    assert Fault.MULTIPART == fault_of(session, client.message(b"part", flags=MORE)[:2])


def test_a_message_beyond_the_limit_is_dropped_by_its_header() -> None:
    """Not a byte of it is kept; the largest one is taken."""
    session, client = opened()
    assert [bytes(MAX_MESSAGE)] == session.receive(client.message(bytes(MAX_MESSAGE)))
    assert Fault.TOO_LARGE == fault_of(session, client.message(bytes(MAX_MESSAGE + 1))[:9])


# PING and PONG


def test_a_ping_is_answered_with_its_context() -> None:
    """RFC 37: PONG with up to 16 bytes of context; the TTL is in tenths of a second."""
    session, client = opened()
    context = b"0123456789abcdef"
    assert [] == session.receive(client.message(b"\x04PING\x00\x19" + context, inner=2))
    assert [(2, b"\x04PONG" + context)] == client.opened(session.take_output())
    assert 2.5 == session.ttl_s
    session.receive(client.message(b"\x04PING\x00\x00", inner=2))
    assert session.ttl_s is None


def test_a_ping_of_our_own_asks_for_nothing_but_an_answer() -> None:
    """No TTL: libzmq would close the connection by it."""
    session, client = opened()
    session.queue_ping()
    assert [(2, b"\x04PING\x00\x00")] == client.opened(session.take_output())
    assert [] == session.receive(client.message(b"\x04PONG", inner=2))
    assert b"" == session.take_output()


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"\x04PING",
        b"\x04PING\0",
        b"\x04PING\0\0" + bytes(17),
        b"\x04PONG" + bytes(17),
        b"\x09SUBSCRIBEx",
    ],
)
def test_any_other_command_is_dropped(command: bytes) -> None:
    """A DEALER has no other; a context has at most 16 bytes."""
    session, client = opened()
    assert Fault.FRAME == fault_of(session, client.message(command, inner=2))


def test_nothing_is_kept_of_a_dropped_connection() -> None:
    """Its buffer is let go of with it."""
    session, client = opened()
    session.receive(client.message(bytes(3_000))[:2_000])
    assert (2_000, 3_042) == (session.buffered_bytes, session.expected_bytes)
    assert Fault.FORGED == fault_of(session, bytes(5_000))
    assert 0 == session.buffered_bytes
