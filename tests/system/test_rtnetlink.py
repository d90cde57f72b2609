"""The netlink codec: attributes, and what a socket makes of odd answers."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portier.errors import KernelError
from portier.system import rtnetlink as nl
from tests.cables import own_namespace

Pairs = list[tuple[int, bytes]]
Script = Callable[[int, int], list[bytes]]

MULTI = 2


@given(st.lists(st.tuples(st.integers(1, 60), st.binary(max_size=40)), max_size=10))
def test_attributes_come_back(pairs: Pairs) -> None:
    """What is encoded is decoded, whatever the lengths."""
    data = b"head" + b"".join(nl.attribute(kind, value) for kind, value in pairs)
    assert nl.attributes(data, 4, len(data)) == dict(pairs)


@given(st.binary(max_size=200))
def test_garbage_is_survived(data: bytes) -> None:
    """No bytes make the walkers fail or run for ever."""
    nl.attributes(data, 0, len(data))
    assert all(len(message) >= nl.LENGTH for message in list(nl.messages(data))[:-1])


def message(kind: int, body: bytes, sequence: int, portid: int, flags: int = MULTI) -> bytes:
    """A message as the kernel sends it."""
    data = nl.HEADER.pack(nl.LENGTH + len(body), kind, flags, sequence, portid) + body
    return data + bytes(-len(data) % 4)


class Scripted:
    """A netlink socket whose other end follows a script: for each request, what it answers."""

    def __init__(self) -> None:
        self.netlink = nl.Socket()
        self.netlink._socket.close()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.netlink._socket = ours
        ours.settimeout(20)
        self.scripts: list[Script] = []
        self.requests: list[tuple[int, int, int]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while data := self._theirs.recv(65536):
            _, kind, flags, sequence, _ = nl.HEADER.unpack_from(data)
            self.requests.append((kind, flags, sequence))
            for answer in self.scripts.pop(0)(sequence, self.netlink.portid):
                self._theirs.send(answer)

    def close(self) -> None:
        """Close both ends."""
        self.netlink.close()
        self._thread.join(20)
        self._theirs.close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A socket and its script."""
    with own_namespace():
        made = Scripted()
        yield made
        made.close()


def done(sequence: int, portid: int, code: int = 0, flags: int = MULTI) -> bytes:
    """The end of a dump."""
    return message(nl.NLMSG_DONE, struct.pack("=i", code), sequence, portid, flags)


def collect(chunks: Iterator[bytes]) -> list[bytes]:
    """The bodies of a dump."""
    return [found[nl.LENGTH :] for chunk in chunks for found in nl.messages(chunk)]


def test_the_end_of_a_dump_alone_or_not(scripted: Scripted) -> None:
    """The end may come by itself or behind the last messages."""
    scripted.scripts = [
        lambda s, p: [message(24, b"one.", s, p) + message(24, b"two.", s, p), done(s, p)],
        lambda s, p: [message(24, b"one.", s, p) + message(24, b"two.", s, p) + done(s, p)],
        lambda s, p: [done(s, p)],
    ]
    assert scripted.netlink.dump(26, b"", collect) == [b"one.", b"two."]
    assert scripted.netlink.dump(26, b"", collect) == [b"one.", b"two."]
    assert scripted.netlink.dump(26, b"", collect) == []


def test_an_interrupted_dump_is_repeated(scripted: Scripted) -> None:
    """A dump that a change interrupted is asked for again, but not for ever."""
    torn: Script = lambda s, p: [message(24, b"torn", s, p, MULTI | nl.NLM_F_DUMP_INTR), done(s, p)]  # noqa: E731
    late: Script = lambda s, p: [  # noqa: E731
        message(24, b"late", s, p) + done(s, p, flags=MULTI | nl.NLM_F_DUMP_INTR)
    ]
    good: Script = lambda s, p: [message(24, b"good", s, p) + done(s, p)]  # noqa: E731
    scripted.scripts = [torn, late, good, torn, torn, torn]
    assert scripted.netlink.dump(26, b"", collect) == [b"good"]
    assert scripted.netlink.dump(26, b"", collect) == [b"torn"]


def test_answers_to_earlier_requests_are_passed_over(scripted: Scripted) -> None:
    """What was left in the socket is not taken for the answer."""
    scripted.scripts = [
        lambda s, p: [message(nl.NLMSG_ERROR, struct.pack("=i", -errno.EPERM), s - 1, p, 0),
                      message(nl.NLMSG_ERROR, struct.pack("=i", 0), s, p, 0)],
        lambda s, p: [done(s - 1, p), message(24, b"good", s, p), done(s, p)],
    ]  # fmt: skip
    assert scripted.netlink.call(24, 0, b"") == 0
    assert scripted.netlink.dump(26, b"", collect) == [b"good"]


def test_a_failed_dump(scripted: Scripted) -> None:
    """A failure at the start or at the end is told, with its number."""
    scripted.scripts = [
        lambda s, p: [message(nl.NLMSG_ERROR, struct.pack("=i", -errno.EPERM), s, p, 0)],
        lambda s, p: [message(24, b"some", s, p) + done(s, p, -errno.EINVAL)],
    ]
    for number in (errno.EPERM, errno.EINVAL):
        with pytest.raises(KernelError) as caught:
            scripted.netlink.dump(26, b"", collect)
        assert caught.value.errno == number


def test_the_kernels_own_words() -> None:
    """A refusal comes with what the kernel says about it."""
    with own_namespace(), nl.Socket() as netlink:
        payload = struct.pack("=BBBBBBBBI", socket.AF_INET6, 129, 0, 0, 254, 4, 0, 1, 0)
        assert netlink.call(nl.RTM_NEWROUTE, nl.NLM_F_CREATE, payload) == errno.EINVAL
        assert netlink.complaint
        assert netlink.call(nl.RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, 1, 0, 0)) == 0
        assert not netlink.complaint


def test_a_closed_socket() -> None:
    """Using it is an error that names itself, closing it again is none."""
    netlink = nl.Socket()
    netlink.close()
    netlink.close()
    with pytest.raises(KernelError, match="netlink request"):
        netlink.call(nl.RTM_GETLINK, 0, bytes(16))
