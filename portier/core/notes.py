"""What an engine remembers for those who ask why nothing happens: a few of each, those seen last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from portier.core.outcome import Verdict

_KEPT: Final = 16
# Whoever gets no answer asks again after RetransTimer, which is a second (RFC 4861 section 10).
_AGAIN: Final = 2.5


class Refused(NamedTuple):
    """A target that somebody asked for and the rules keep from being answered for.  ``again`` counts how
    often it was asked for once more within moments, as one does who got no answer from anybody."""

    target: bytes
    port: str
    asker: bytes
    mac: bytes
    verdict: Verdict
    again: int
    age: float


class Contested(NamedTuple):
    """An address that two say they have.  ``port`` and ``mac`` are those of the one who has it, ``mac`` None
    where that is the proxy itself; ``rival_port`` and ``rival_mac`` those of the other."""

    address: bytes
    port: str
    mac: bytes | None
    rival_port: str
    rival_mac: bytes
    age: float


class Noted(NamedTuple):
    """All that is remembered.  ``asked`` are the versions of IP, by port, in which somebody has ever asked
    for an address that a rule allows."""

    asked: Mapping[str, tuple[int, ...]] = {}
    refused: tuple[Refused, ...] = ()
    contested: tuple[Contested, ...] = ()


NOTHING_NOTED: Final = Noted()


class Notes:
    """Takes notes, for one thread; `noted` copies, for any."""

    __slots__ = ("_contested", "_refused")

    def __init__(self) -> None:
        # Upstream and behind apart, so that a guest who asks for much hides nothing.  Their ages are times.
        self._refused: dict[bool, dict[tuple[bytes, str], Refused]] = {True: {}, False: {}}
        self._contested: dict[tuple[bytes, str, bytes], Contested] = {}

    def refuse(
        self,
        target: bytes,
        port: str,
        asker: bytes,
        mac: bytes,
        verdict: Verdict,
        now: float,
        *,
        upstream: bool,
    ) -> None:
        """Somebody asked for a target in vain."""
        kept = self._refused[upstream]
        before = kept.pop((target, port), None)
        again = 0
        if before is not None:
            again = before.again + (before.asker == asker and now - before.age < _AGAIN)
        elif len(kept) >= _KEPT:
            del kept[next(iter(kept))]
        kept[target, port] = Refused(target, port, asker, mac, verdict, again, now)

    def contest(
        self, address: bytes, owner: tuple[str, bytes | None], rival: tuple[str, bytes], now: float
    ) -> None:
        """Two say that they have an address: its owner, and another; each a port and a link-layer address."""
        key = (address, *rival)
        if self._contested.pop(key, None) is None and len(self._contested) >= _KEPT:
            del self._contested[next(iter(self._contested))]
        self._contested[key] = Contested(address, *owner, *rival, now)

    def noted(self, asked: Mapping[str, tuple[int, ...]], now: float) -> Noted:
        """What was noted, the last first; of refusals those upstream first."""
        refused = [note for kept in self._refused.values() for note in reversed(list(kept.values()))]
        return Noted(
            asked,
            tuple(note._replace(age=now - note.age) for note in refused),
            tuple(note._replace(age=now - note.age) for note in reversed(list(self._contested.values()))),
        )
