"""Keys, nonces, epochs and the keyed hello, with the real cipher."""

import os

import pytest
from cryptography.exceptions import InvalidTag

from services.tunnel.core.link import DIRECT, PUNCHED, Link
from services.tunnel.core.packets import CONTROL, HEADER, HEADER_SIZE, RECORD, TAG_SIZE, CorruptLink
from services.tunnel.keys import FIRST_LINK, SESSION_ID_SIZE, LinkCipher, SessionCipher, SessionKeys, fresh_nonce
from tests.tunnel.harness import Net

MASTER = bytes(range(32))


def ends(master: bytes = MASTER) -> tuple[SessionKeys, SessionKeys]:
    return SessionKeys(master, initiator=True), SessionKeys(master, initiator=False)


def ciphers() -> tuple[SessionCipher, SessionCipher]:
    a, b = ends()
    return a.session_cipher(), b.session_cipher()


def seal(cipher: SessionCipher | LinkCipher, number: int, plain: bytes, kind: int = RECORD) -> bytearray:
    packet = bytearray(HEADER_SIZE + len(plain) + TAG_SIZE)
    view = memoryview(packet)
    HEADER.pack_into(packet, 0, kind, getattr(cipher, "epoch", 0), 0, len(plain) + TAG_SIZE, number)
    cipher.seal(number, view[:HEADER_SIZE], memoryview(plain), view[HEADER_SIZE:])
    return packet


def unseal(cipher: SessionCipher | LinkCipher, packet: bytes | bytearray) -> bytes:
    view = memoryview(packet)
    _, epoch, _, length, number = HEADER.unpack_from(packet)
    plain = bytearray(length - TAG_SIZE)
    cipher.open(epoch, number, view[:HEADER_SIZE], view[HEADER_SIZE:], memoryview(plain))
    return bytes(plain)


def test_each_direction_has_its_own_key() -> None:
    a, b = ciphers()
    packet = seal(a, 0, b"hello")
    assert unseal(b, packet) == b"hello"
    with pytest.raises(InvalidTag):
        unseal(a, packet)  # reflected
    assert seal(b, 0, b"hello")[HEADER_SIZE:] != packet[HEADER_SIZE:]


def test_another_handshake_another_session() -> None:
    one, other = SessionKeys(MASTER, initiator=True), SessionKeys(os.urandom(32), initiator=True)
    assert one.session_id != other.session_id
    with pytest.raises(InvalidTag):
        unseal(SessionKeys(os.urandom(32), initiator=False).session_cipher(), seal(one.session_cipher(), 0, b"x"))


@pytest.mark.parametrize("at", range(HEADER_SIZE + 3 + TAG_SIZE))
def test_every_byte_is_authentic_header_included(at: int) -> None:
    a, b = ciphers()
    packet = seal(a, 7, b"abc")
    packet[at] ^= 1
    with pytest.raises(Exception) as caught:
        unseal(b, packet)
    assert isinstance(caught.value, InvalidTag | ValueError)


def test_the_number_is_the_nonce() -> None:
    a, b = ciphers()
    bodies = {bytes(seal(a, number, b"same")[HEADER_SIZE:]) for number in (0, 1, 2, 1 << 40)}
    assert len(bodies) == 4
    assert seal(a, 3, b"same") == seal(a, 3, b"same"), "a record that is sent again is the same bytes"
    assert unseal(b, seal(a, 1 << 40, b"same")) == b"same"


# ---------------------------------------------------------------- rekey


def test_records_of_the_former_epoch_are_read_after_a_rekey() -> None:
    a, b = ciphers()
    before = [seal(a, number, b"%d" % number) for number in range(3)]
    a.rekey()
    after = [seal(a, number, b"%d" % number) for number in range(3, 6)]
    order = [after[0], before[0], after[2], before[2], after[1], before[1]]  # sent again over several links
    assert [unseal(b, packet) for packet in order] == [b"3", b"0", b"5", b"2", b"4", b"1"]


def test_older_and_future_epochs_are_refused() -> None:
    a, b = ciphers()
    packets = []
    for number in range(4):
        packets.append(seal(a, number, b"x"))
        a.rekey()
    unseal(b, packets[0])
    with pytest.raises(ValueError, match="epoch 2"):
        unseal(b, packets[2])  # two steps at once
    unseal(b, packets[1])
    unseal(b, packets[2])
    with pytest.raises(ValueError, match="epoch 0"):
        unseal(b, packets[0])
    assert unseal(b, packets[1]) == b"x"


def test_a_forged_epoch_does_not_move_the_receiver() -> None:
    a, b = ciphers()
    packet = seal(a, 0, b"x")
    forged = bytearray(packet)
    forged[1] = 1
    with pytest.raises(InvalidTag):
        unseal(b, forged)
    assert unseal(b, packet) == b"x"
    a.rekey()
    assert unseal(b, seal(a, 1, b"y")) == b"y"


def test_keys_of_epochs_differ_and_epochs_wrap() -> None:
    a, b = ciphers()
    bodies = set()
    for number in range(600):
        packet = seal(a, number, b"x")
        bodies.add(bytes(seal(a, 0, b"x")[HEADER_SIZE:]))
        assert unseal(b, packet) == b"x"
        a.rekey()
    assert len(bodies) == 600


def test_a_session_rekeys_under_way_and_resends_across_it() -> None:
    """The cores with the real ciphers: a relay dies with records of two epochs under way."""
    net = Net()
    a, b = ends()
    net.a.session._cipher, net.b.session._cipher = a.session_cipher(), b.session_cipher()
    net.link(relay="r1")
    net.run(0.3)
    stream = net.a.open()
    sent = b""
    for round_ in range(6):
        for _ in range(3):
            block = os.urandom(5000)
            sent += block
            net.a.session.send(stream, block)
            net.step()
            net.a.session._rekeyed_at = -1e9
        net.link(relay=f"r{round_ + 2}")
        net.run(0.02)
        net.relay_dies(f"r{round_ + 1}")
        net.run(0.3)
    assert bytes(net.b.got[1]) == sent
    assert net.a.session._cipher.epoch >= 15 and net.a.session.resent


# ---------------------------------------------------------------- links


def test_links_have_keys_of_their_own() -> None:
    a, b = ends()
    nonces = fresh_nonce(), fresh_nonce()
    packet = seal(a.link_cipher(*nonces), 0, b"ping", CONTROL)
    assert unseal(b.link_cipher(*nonces), packet) == b"ping"
    for other in ((nonces[1], nonces[0]), (FIRST_LINK, FIRST_LINK), (nonces[0], fresh_nonce())):
        with pytest.raises(InvalidTag):
            unseal(b.link_cipher(*other), packet)
    with pytest.raises(InvalidTag):
        unseal(b.session_cipher(), packet)
    assert a.link_id(*nonces) == b.link_id(*nonces) != a.link_id(FIRST_LINK, FIRST_LINK)


def test_join_is_for_the_other_end_only() -> None:
    a, b = ends()
    nonce = fresh_nonce()
    body = a.join(DIRECT, nonce)
    assert body[:SESSION_ID_SIZE] == b.session_id
    assert b.check_join(body) == (DIRECT, nonce)
    assert a.check_join(body) is None, "reflected"
    assert a.check_join(b.join(PUNCHED, nonce)) == (PUNCHED, nonce), "either side may dial"
    assert SessionKeys(os.urandom(32), initiator=False).check_join(body) is None
    for at in range(SESSION_ID_SIZE, len(body)):
        spoilt = bytearray(body)
        spoilt[at] ^= 1
        assert b.check_join(bytes(spoilt)) is None


def test_joined_answers_this_join_only() -> None:
    a, b = ends()
    nonce, other = fresh_nonce(), fresh_nonce()
    body = b.joined(nonce, other)
    assert a.check_joined(nonce, body) == other
    assert a.check_joined(fresh_nonce(), body) is None, "an answer recorded earlier"
    assert a.check_joined(nonce, body[:-1] + bytes([body[-1] ^ 1])) is None
    assert a.check_joined(nonce, b.join(DIRECT, nonce)[SESSION_ID_SIZE:]) is None, "a JOIN is no JOINED"


@pytest.mark.parametrize("size", [0, 1, 16, 31, 47, 63, 65, 100])
def test_bodies_of_other_sizes(size: int) -> None:
    a, _ = ends()
    assert a.check_join(os.urandom(size)) is None
    assert a.check_joined(fresh_nonce(), os.urandom(size)) is None


def test_a_recorded_join_opens_a_link_that_never_counts() -> None:
    """Whoever repeats a JOIN is answered with a fresh nonce, for whose keys the session's master is needed."""
    a, b = ends()
    net = Net()
    net.b.session._cipher = b.session_cipher()
    recorded = seal(a.session_cipher(), 0, b"")
    cipher = b.link_cipher(fresh_nonce(), fresh_nonce())
    link = Link(9, DIRECT, cipher, net.now)
    net.b.session.link_up(link, net.now)
    view = memoryview(recorded)
    with pytest.raises(CorruptLink):
        net.b.session.receive(link, view[:HEADER_SIZE], view[HEADER_SIZE:], net.now)
    assert net.b.session.active is None
