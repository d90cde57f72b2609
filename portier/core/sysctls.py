"""The sysctls that proxying needs, what they overwrite, and what they go back to.

IPv6 honours the switch for all interfaces, which overwrites each interface's own; IPv4 that of the interface
that a packet comes in by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from portier.core.links import Links
from portier.core.model import Bound, Config, Link, Mode, Port, ProxyEntry, Recorded, Snapshot, Sysctls

CONF: Final = "net/ipv6/conf"
CONF4: Final = "net/ipv4/conf"
FORWARDING: Final = f"{CONF}/all/forwarding"
FORWARDING_DEFAULT: Final = f"{CONF}/default/forwarding"
PROXY_NDP: Final = f"{CONF}/all/proxy_ndp"
_NEIGH: Final = {4: "net/ipv4/neigh", 6: "net/ipv6/neigh"}


def _path(name: str, key: str, tree: str = CONF) -> str:
    return f"{tree}/{name}/{key}"


def _split(path: str) -> tuple[str, str, str]:
    """The tree (net/ipv6/conf or net/ipv4/conf), the name of the interface, and the key."""
    rest, _, key = path.rpartition("/")
    tree, _, name = rest.rpartition("/")
    return tree, name, key


def is_overwritten(path: str) -> bool:
    """Whether the switch for all, IPv6's, overwrites this one."""
    tree, name, key = _split(path)
    return tree == CONF and key == "forwarding" and name != "all"


def overwritten(path: str, links: Iterable[Link]) -> tuple[str, ...]:
    """The sysctls that writing ``path`` overwrites too: all/forwarding those of every interface and of
    interfaces to come (Linux addrconf_fixup_forwarding)."""
    if path != FORWARDING:
        return ()
    own = [_path(link.name, "forwarding") for link in links if link.forwarding is not None]
    return (FORWARDING_DEFAULT, *own)


def unseen(path: str) -> bool:
    """Whether no snapshot shows this sysctl, so that it must be read."""
    return path == PROXY_NDP or "/neigh/" in path


def value_of(path: str, snapshot: Snapshot, links: Mapping[str, Link], recorded: Recorded) -> str | None:
    """What a sysctl is now, as far as is known."""
    if path == FORWARDING:
        return str(snapshot.forwarding)
    if path == FORWARDING_DEFAULT:
        return recorded.forwarding_default
    if unseen(path):
        return recorded.values.get(path)
    tree, name, key = _split(path)
    link = links.get(name)
    value: int | None = getattr(link, f"{key}4" if tree == CONF4 else key, None)
    return None if value is None else str(value)


class Binding(Protocol):
    """What of the groups, tied to their ports, tells which sysctls they need."""

    @property
    def bounds(self) -> Sequence[Bound]:
        """The groups that have ports."""

    @property
    def versions(self) -> Mapping[str, frozenset[int]]:
        """The versions of IP that a group has rules for, by its name."""

    @property
    def claims(self) -> Mapping[int, str]:
        """The group that an interface belongs to."""

    @property
    def proxies(self) -> frozenset[ProxyEntry]:
        """The proxy entries that the kernel should have."""


class Settings:
    """The sysctls that should be set, those to put back, and what to tell of them."""

    def __init__(self, snapshot: Snapshot, links: Links, recorded: Recorded) -> None:
        self.snapshot = snapshot
        self.links = links
        self.now = recorded
        self.unread: list[str] = []
        self.want: dict[str, str] = {}
        self.missing: list[str] = []
        self.left: list[str] = []
        self.forget: list[str] = []
        self.renamed: list[tuple[str, str]] = []
        self.recorded = self._current_names(recorded)

    def decide(self, config: Config | None, binding: Binding) -> None:
        """Fill in what is wanted and what is missing, and say what becomes of the record."""
        needed: dict[str, str] = {}
        if config:
            needed = self._needed(config, binding) | self._needed4(binding) | self._for_entries(binding)
        self.unread = [path for path in needed if unseen(path) and path not in self.now.values]
        if config and config.sysctls is Sysctls.CHECK:
            for path, value in needed.items():
                if self._value(path) != value:
                    name = path if "." in path else path.replace("/", ".")
                    self.missing.append(f"sysctl -w {name}={value}")
                elif path in self.recorded:
                    self.want[path] = value  # set before `check` was asked for; put back at the end
        else:
            self.want.update(needed)
        self._restore()

    def _value(self, path: str) -> str | None:
        return value_of(path, self.snapshot, self.links.by_name, self.now)

    def _current_names(self, recorded: Recorded) -> dict[str, tuple[str, str]]:
        """The record, with interfaces that were renamed under their new names and without those that are
        not the ones they were."""
        current = {}
        for path, values in recorded.sysctls.items():
            tree, name, key = _split(path)
            if name in {"all", "default"}:
                current[path] = values
                continue
            link = self.links.by_name.get(name)
            then = recorded.owners.get(path) or (link.ifindex if link else 0)
            if link is None or link.ifindex != then:
                if (now := self.links.by_index.get(then)) is None:
                    self.forget.append(path)
                    continue
                self.renamed.append((path, _path(now.name, key, tree)))
                path = _path(now.name, key, tree)  # noqa: PLW2901
            current[path] = values
        return current

    def _needed(self, config: Config, binding: Binding) -> dict[str, str]:
        names = [port.name for port in self._routing(binding, 6)]
        if not names:
            return {}
        by_name = self.links.by_name
        if self.snapshot.force_forwarding:
            if self.snapshot.forwarding:
                return {}
            has = [name for name in names if by_name[name].force_forwarding is not None]
            return {_path(name, "force_forwarding"): "1" for name in has}
        if self.snapshot.forwarding and FORWARDING not in self.recorded:
            return {}
        # A router ignores RAs unless told otherwise: an uplink that lives on them must keep its routes.
        needed = {}
        for group in config.groups:
            for name in group.upstream:
                link = by_name.get(name)
                if link is None or binding.claims.get(link.ifindex) != group.name:
                    continue
                path = _path(name, "accept_ra")
                if link.accept_ra == 1 or (link.accept_ra == 2 and path in self.recorded):
                    needed[path] = "2"
        needed[FORWARDING] = "1"
        return needed

    @staticmethod
    def _routing(binding: Binding, version: int) -> Iterable[Port]:
        """The ports between which the kernel is to route packets of that version of IP."""
        for bound in binding.bounds:
            if bound.group.mode is Mode.ROUTE and version in binding.versions[bound.group.name]:
                yield from bound.ports

    def _needed4(self, binding: Binding) -> dict[str, str]:
        """IPv4 forwards what comes in by an interface if that one's own switch is on, so nothing else need
        become a router; net.ipv4.ip_forward would overwrite all of them and turn redirects off."""
        names = [port.name for port in self._routing(binding, 4)]
        has = [name for name in names if self.links.by_name[name].forwarding4 is not None]
        return {_path(name, "forwarding", CONF4): "1" for name in has}

    def _for_entries(self, binding: Binding) -> dict[str, str]:
        """What the kernel's own answers take: without delay, and for IPv6 the switch of all interfaces (with
        an interface's own, unicast probes go unanswered) and the interface being a router by itself, for
        which neither force_forwarding nor a forwarding of all that came before it is enough."""
        needed = {}
        for address, ifindex, _ in binding.proxies:
            link = self.links.by_index[ifindex]
            version = 4 if len(address) == 4 else 6
            needed[_path(link.name, "proxy_delay", _NEIGH[version])] = "0"
            if version == 6:
                needed[PROXY_NDP] = "1"
                needed[_path(link.name, "forwarding")] = "1"
                path = _path(link.name, "accept_ra")
                upstream = any(link.name in bound.group.upstream for bound in binding.bounds)
                if upstream and (link.accept_ra == 1 or (link.accept_ra == 2 and path in self.recorded)):
                    needed[path] = "2"
        return needed

    def _restore(self) -> None:
        """Put back what is not needed any more, unless somebody else has changed it since."""
        keeping = FORWARDING in self.want
        putting_back = (
            not keeping
            and FORWARDING in self.recorded
            and self._value(FORWARDING) == self.recorded[FORWARDING][1] != self.recorded[FORWARDING][0]
        )
        switched = self.recorded[FORWARDING][1] if putting_back else None
        for path, (old, new) in self.recorded.items():
            own = is_overwritten(path)
            if path in self.want or (own and keeping):
                continue
            value = self._value(path)
            if own and putting_back:
                # Restoring the switch overwrites this one: set it again, to what it was or was made since.
                # If it is as the switch made it, and on record as put back with it, a crash came between.
                ours = value in {new, None} or new != switched == value
                self.want[path] = old if ours else value or old
            elif value == new != old:
                self.want[path] = old
            else:
                self.forget.append(path)
                if value not in {old, None}:
                    self.left.append(f"{path} is {value}, not {new} as Portier set it: left alone")
