"""The links of a snapshot: found by name or pattern, with the addresses that a port may speak from."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache
from typing import NamedTuple

from portier.core.model import Link, LinkAddress, Snapshot


class _Patterns(NamedTuple):
    """A list of names, globs and exclusions, ready to be matched."""

    names: tuple[str, ...]
    globs: tuple[tuple[str, re.Pattern[str]], ...]  # what a glob literally begins with, and the whole
    excluded: frozenset[str]
    excluded_globs: tuple[re.Pattern[str], ...]


@lru_cache(maxsize=16384)
def _patterns(texts: tuple[str, ...]) -> _Patterns:
    names, globs, excluded, excluded_globs = [], [], set(), []
    for text in texts:
        pattern = text.removeprefix("!")
        wild = re.search(r"[*?\[]", pattern)
        if text.startswith("!"):
            if wild:
                excluded_globs.append(re.compile(translate(pattern)))
            else:
                excluded.add(pattern)
        elif wild:
            globs.append((pattern[: wild.start()], re.compile(translate(pattern))))
        else:
            names.append(pattern)
    return _Patterns(tuple(names), tuple(globs), frozenset(excluded), tuple(excluded_globs))


class Links:
    """The links of one snapshot, found by index, name or pattern, with their addresses."""

    __slots__ = ("addresses", "by_index", "by_name", "names")

    def __init__(self, snapshot: Snapshot) -> None:
        self.by_index = {link.ifindex: link for link in snapshot.links}
        self.by_name = {link.name: link for link in snapshot.links}
        self.names = sorted(self.by_name)
        self.addresses: dict[int, list[LinkAddress]] = {}
        for address in snapshot.addresses:
            self.addresses.setdefault(address.ifindex, []).append(address)

    def expand(self, texts: tuple[str, ...]) -> dict[str, bool]:
        """The names that a list of names, globs and exclusions means, in its order; the value tells
        whether the name itself stands in the list (then there need not be such a link)."""
        patterns = _patterns(texts)
        found = dict.fromkeys(patterns.names, True)
        for literal, pattern in patterns.globs:
            for name in self.names[bisect_left(self.names, literal) :]:
                if not name.startswith(literal):
                    break
                if name not in found and pattern.match(name) and not self.by_name[name].loopback:
                    found[name] = False
        if patterns.excluded or patterns.excluded_globs:
            for name in list(found):
                if name in patterns.excluded or any(p.match(name) for p in patterns.excluded_globs):
                    del found[name]
        return found

    def master(self, link: Link) -> str | None:
        """The bridge, bond or team that takes this link's frames, or None.  A VRF takes none."""
        if not link.master:
            return None
        master = self.by_index.get(link.master)
        if master is None:
            return f"interface {link.master}"
        return None if master.kind == "vrf" else master.name

    def usable(self, link: Link) -> list[LinkAddress]:
        """The addresses that the host may speak from: those past duplicate address detection."""
        found = self.addresses.get(link.ifindex)
        return [a for a in found if not (a.tentative or a.failed)] if found else []


def link_local(address: bytes) -> bool:
    """fe80::/10, and 169.254.0.0/16 (RFC 3927), whose addresses belong to one link as well."""
    if len(address) == 4:
        return address[:2] == b"\xa9\xfe"
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_global(address: bytes) -> bool:
    """Whether an address may be a host's beyond its link: neither link-local, loopback nor multicast."""
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127 and not link_local(address)
    return address[0] != 0xFF and not link_local(address) and address > b"\0" * 15 + b"\1"


def speaks_from(addresses: Iterable[LinkAddress]) -> bytes | None:
    """Link-local before others, fresh before deprecated, and always the same one of several."""
    best = min(
        ((not link_local(a.address), a.deprecated, a.address) for a in addresses if len(a.address) == 16),
        default=None,
    )
    return best[2] if best else None


def speaks_from4(addresses: Iterable[LinkAddress]) -> bytes | None:
    """Routable before link-local, fresh before deprecated, and of several the one the kernel has first, which
    is what it would speak from itself."""
    found = [a for a in addresses if len(a.address) == 4 and (is_global(a.address) or link_local(a.address))]
    best = min(found, key=lambda a: (link_local(a.address), a.deprecated), default=None)
    return best.address if best else None
