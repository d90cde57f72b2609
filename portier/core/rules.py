"""Prefix rules, compiled for one set of ports: longest match, patterns, ties.

The most specific prefix whose host pattern matches wins; at equal prefix a pattern beats none, more mask
bits beat fewer, and an explicit rule beats one that stands for the upstream's prefixes.  Two rules that
still tie never get here: the configuration refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from portier.core.model import Answer, Bound, Live, Network, Role, Rule


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether an interface name is meant by a list of names, globs and ``!`` exclusions.  An exclusion
    wins wherever it stands, and globs never mean the loopback."""
    found = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if fnmatchcase(name, pattern[1:]):
                return False
        elif name == pattern or (name != "lo" and fnmatchcase(name, pattern)):
            found = True
    return found


class Prefixes:
    """Longest-prefix match from networks of either family to values."""

    __slots__ = ("_tables",)

    def __init__(self, entries: Iterable[tuple[Network, int]] = ()) -> None:
        tables: dict[int, dict[int, dict[int, int]]] = {4: {}, 16: {}}
        for network, value in entries:
            size = network.max_prefixlen // 8
            shift = network.max_prefixlen - network.prefixlen
            table = tables[size].setdefault(shift, {})
            table.setdefault(int(network.network_address) >> shift, value)
        self._tables = {size: tuple(sorted(by_shift.items())) for size, by_shift in tables.items()}

    def get(self, address: bytes) -> int:
        """The value of the longest prefix that holds `address`, or 0."""
        number = int.from_bytes(address, "big")
        for shift, table in self._tables[len(address)]:
            if (value := table.get(number >> shift)) is not None:
                return value
        return 0


class CompiledRule:
    """One rule for one prefix, tied to the ports there are.

    ``ports`` are the interfaces on which its hosts may live, None for every port of the group.
    ``shadowed`` is for `always`: the kernel's best route for its targets leaves by the upstream, so that an
    answer alone would make a black hole; None when that differs within the prefix.
    """

    __slots__ = ("_askers", "allow", "answer", "network", "ports", "rule", "shadowed")

    def __init__(self, rule: Rule, network: Network, bound: Bound) -> None:
        self.rule = rule
        self.network = network
        self.allow = rule.allow
        self.answer = rule.answer
        self.ports: frozenset[int] | None = None
        if rule.downstream:
            self.ports = frozenset(
                port.ifindex
                for port in bound.ports
                if port.role is Role.DOWNSTREAM and matches(port.name, rule.downstream)
            )
        self._askers = Prefixes((asker, 1) for asker in rule.askers) if rule.askers else None
        self.shadowed = _shadowed(network, bound) if rule.answer is Answer.ALWAYS else False

    def admits(self, asker: bytes) -> bool:
        """Whether this asker's solicitations are answered."""
        return self._askers is None or self._askers.get(asker) == 1

    @property
    def particular(self) -> bool:
        """Whether some askers are refused."""
        return self._askers is not None

    def __str__(self) -> str:
        text = f"{'allow' if self.allow else 'deny'} {self.network}"
        if isinstance(self.rule.prefix, Live):
            text += f" ({self.rule.prefix})"
        if self.rule.host is not None:
            value, mask = (type(self.network.network_address)(number) for number in self.rule.host)
            text += f" with host pattern {value}/{mask}"
        if self.rule.downstream:
            text += f" on {', '.join(self.rule.downstream)}"
        return text


def _shadowed(network: Network, bound: Bound) -> bool | None:
    best: tuple[int, bool] = (-1, True)  # the default route, which leaves by the upstream
    for port in bound.ports:
        upstream = port.role is Role.UPSTREAM
        for prefix in port.prefixes:
            if prefix.version != network.version or not prefix.overlaps(network):
                continue
            if prefix.prefixlen > network.prefixlen:
                return None
            best = max(best, (prefix.prefixlen, upstream))
    return best[1]


class RuleTable:
    """All rules of a group, compiled.  ``singles`` are those that allow one address."""

    __slots__ = ("_tables", "count", "singles")

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        tables: dict[int, dict[int, dict[int, list[tuple[int, int, CompiledRule]]]]] = {4: {}, 16: {}}
        self.count = 0
        singles = []
        for rule in rules:
            self.count += 1
            if rule.allow and rule.network.num_addresses == 1:
                singles.append(rule)
            bits = rule.network.max_prefixlen
            shift = bits - rule.network.prefixlen
            pattern = rule.rule.host
            mask, value = (pattern.mask, pattern.value & pattern.mask) if pattern else (0, 0)
            key = int(rule.network.network_address) >> shift
            tables[bits // 8].setdefault(shift, {}).setdefault(key, []).append((mask, value, rule))
        for by_shift in tables.values():
            for table in by_shift.values():
                for candidates in table.values():
                    if len(candidates) > 1:
                        candidates.sort(key=_precedence)
        self._tables = {size: tuple(sorted(by_shift.items())) for size, by_shift in tables.items()}
        self.singles = tuple(singles)

    @classmethod
    def compile(cls, bound: Bound) -> RuleTable:
        """The rules of `bound`, with ``upstream`` standing for its live prefixes."""
        return cls(
            CompiledRule(rule, network, bound)
            for rule in bound.group.rules
            for network in _networks(rule, bound)
        )

    def lookup(self, address: bytes) -> CompiledRule | None:
        """The rule that decides on `address` (packed), or None when none matches."""
        number = int.from_bytes(address, "big")
        for shift, table in self._tables[len(address)]:
            candidates = table.get(number >> shift)
            if candidates is not None:
                for mask, value, rule in candidates:
                    if number & mask == value:
                        return rule
        return None


def _networks(rule: Rule, bound: Bound) -> tuple[Network, ...]:
    if not isinstance(rule.prefix, Live):
        return (rule.prefix,)
    version = 6 if rule.prefix is Live.UPSTREAM else 4
    return tuple(network for network in bound.live if network.version == version)


def _precedence(candidate: tuple[int, int, CompiledRule]) -> tuple[int, bool]:
    mask, _, rule = candidate
    return -mask.bit_count(), isinstance(rule.rule.prefix, Live)
