"""A port as the engine for mode `route` sees it: who asks there, who routes there, how it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from portier.core.engine import Bucket
from portier.core.family import Voice
from portier.core.model import Port, Role
from portier.core.neighbors import Neighbor
from portier.core.outcome import Verdict

# Bounds on memories that have no limit of their own in the configuration.
_ASKERS_PER_PORT: Final = 1024
_ROUTERS_PER_PORT: Final = 8


class Correspondent:
    """An asker on a port, with all of its answers prepared but target and flags.  ``neighbor`` is its own
    entry where it has one, so that asking counts as being heard."""

    __slots__ = ("frame", "neighbor")

    def __init__(self, frame: Callable[[bytes, int], bytes], neighbor: Neighbor | None) -> None:
        self.frame = frame
        self.neighbor = neighbor


class Attached:
    """A port and what the engine keeps with it.  ``reaches`` are the ports whose hosts are answered for
    on this one; ``routers`` the addresses from which Router Advertisements came; ``late`` counts the answers
    that waited for their target to be found; ``lookups`` is the bucket of questions to the kernel for host
    routes; ``asked`` are the lengths of the allowed addresses that somebody asked for here."""

    __slots__ = (
        "asked",
        "bucket",
        "correspondents",
        "counts",
        "ifindex",
        "late",
        "lookups",
        "mac",
        "port",
        "reaches",
        "routers",
        "upstream",
        "voices",
    )

    def __init__(self, port: Port, voices: tuple[Voice, Voice], rate: float, now: float) -> None:
        self.port = port
        self.voices: dict[int, Voice] = dict(zip((16, 4), voices, strict=True))
        self.ifindex = port.ifindex
        self.mac = port.mac
        self.upstream = port.role is Role.UPSTREAM
        self.bucket = Bucket(rate, now)
        self.lookups = Bucket(rate, now)
        self.counts = [0] * len(Verdict)
        self.late = 0
        self.asked: set[int] = set()
        self.correspondents: dict[bytes, Correspondent] = {}
        self.reaches: frozenset[int] = frozenset()
        self.routers: dict[bytes, None] = {}

    def voice(self, address: bytes) -> Voice:
        """How this port speaks of `address`."""
        return self.voices[len(address)]

    def remember(self, asker: bytes, mac: bytes, known: Neighbor | None) -> None:
        """Prepare the answers to one who will ask again."""
        if len(self.correspondents) >= _ASKERS_PER_PORT:
            del self.correspondents[next(iter(self.correspondents))]
        voice = self.voice(asker)
        key = voice.asker_key(asker, mac)
        self.correspondents[key] = Correspondent(voice.replies(asker, mac), known)

    def router_heard(self, address: bytes) -> None:
        """A Router Advertisement came from `address`."""
        self.routers.pop(address, None)
        if len(self.routers) >= _ROUTERS_PER_PORT:
            del self.routers[next(iter(self.routers))]
        self.routers[address] = None


def names(ports: Iterable[Attached]) -> str:
    """The names of ports with commas between them."""
    return ", ".join(this.port.name for this in ports)
