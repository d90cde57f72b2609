"""npd6.conf: pairs of prefix and interface, black and white lists, and settings.

npd6 answers for every address of a prefix at once, which is `answer: always`.  It takes all blanks out of a
line, knows no comment behind a value, and passes over keys that it does not know.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from portier.config.peers.draft import (
    Draft,
    Note,
    Setting,
    Wish,
    is_interface,
    network,
    never_proxied,
    quoted,
    unlabelled,
)
from portier.config.peers.expressions import NONE, Addresses, Expressions, NoMaskError, Pattern, both, union
from portier.errors import ConfigError, Problem

_LINE = 127  # bytes of a line that npd6 reads in one piece
_MAX_EXPRESSIONS = 64
_MAX_LINE = 4096
_SHORT = re.compile(r"[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,7}:{0,2}")
_KEYS = (
    *("prefix", "interface", "listtype", "addrlist", "exprlist", "listlogging", "collectTargets"),
    *("linkOption", "ignoreLocal", "routerNA", "maxHops", "pollErrorLimit", "ralogging"),
)
_COMMENTED = {  # what comes of a comment behind a value
    "prefix": ", and of a prefix answers for every address",
    "interface": ", and does not start, for no interface is called so",
}
_BOOLEAN = {"linkOption": ("true", "false"), "ignoreLocal": ("true", "false"), "routerNA": ("true", "false")}
_BOOLEAN |= {"listlogging": ("on", "off"), "ralogging": ("on", "off")}
_NO_EQUIVALENT = {
    "listlogging": "no line is logged for what a list decides: `portier status` counts it",
    "collectTargets": "none needed: `portier neighbors` lists the hosts that are known",
    "linkOption": "none needed: the option is in every answer",
    "ignoreLocal": "none needed: the kernel answers for this host's own addresses, Portier for all others, "
    "those asked for by unicast too, which npd6 leaves unanswered by default",
    "maxHops": "none needed: the hop limit is 255, or nobody believes the answer (RFC 4861 section 7.1.2)",
    "pollErrorLimit": "none needed: a link may go and come back at any time",
    "ralogging": "Router Advertisements are not logged: `rdisc6` shows them",
}


class _Line(NamedTuple):
    key: str
    value: str
    number: int

    def __str__(self) -> str:
        return quoted(f"{self.key}={self.value}")


def read(text: str, file: str) -> Draft:
    """The file as a draft; raises ConfigError where it cannot be read, or a list is no mask."""
    return _Reader(text, file).draft


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.draft = Draft()
        self._file = file
        self._problems: list[Problem] = []
        lines = list(self._lines(text))
        pairs = self._pairs(lines)
        wanted, listed, expressions = self._lists(lines)
        settings = list(self._settings(lines))
        if self._problems:
            raise ConfigError(self._problems)
        for prefix, interface in pairs:
            outer = self.draft.outer(interface.value, interface.number)
            outer.settings = settings
            self._rules(*prefix, interface.value, wanted, listed, expressions)

    def _fail(self, line: int, message: str) -> None:
        self._problems.append(Problem(self._file, line, 1 if line else 0, "", message))

    def _note(self, line: int, message: str, *, loud: bool = True) -> None:
        self.draft.notes.append(Note(line, message, loud))

    def _lines(self, text: str) -> Iterator[_Line]:
        for number, raw in enumerate(text.split("\n"), 1):
            line = re.sub(r"\s", "", raw)
            if not line or line.startswith(("//", "#", ";")):
                continue
            if len(raw.encode("utf-8", "replace")) > _LINE:
                self._note(number, f"npd6 reads {_LINE} bytes of a line, and takes the rest for another line")
            if len(raw) > _MAX_LINE:
                self._fail(number, "the line is too long")
                continue
            key, _, value = line.partition("=")
            value = value if key == "exprlist" else value.lstrip("=").partition("=")[0]
            if key not in _KEYS:
                close = difflib.get_close_matches(key.lower(), [known.lower() for known in _KEYS], 1)
                meant = next((known for known in _KEYS if close and known.lower() == close[0]), "")
                about = f"; is {meant} meant?" if meant else ""
                self._note(number, f"npd6 ignores {quoted(line)}{about}")
                continue
            kept, comment, _ = value.partition("//")
            if comment:
                made = _COMMENTED.get(key, "")
                self._note(number, f"npd6 knows no comment behind a value: it reads it into the value{made}")
            if not kept:
                self._note(number, f"npd6 ignores {key}: it has no value")
                continue
            yield _Line(key, kept, number)

    # pairs

    def _pairs(self, lines: list[_Line]) -> list[tuple[tuple[IPv6Network, int], _Line]]:
        interfaces = [self._unlabelled(line) for line in lines if line.key == "interface"]
        given = [line for line in lines if line.key == "prefix"]
        for line in interfaces:
            if not is_interface(line.value):
                self._fail(line.number, f"{quoted(line.value)} is not the name of an interface")
        if len(given) != len(interfaces):
            self._fail(0, f"{len(given)} prefix and {len(interfaces)} interface: npd6 pairs them one to one")
        elif not given:
            self._fail(0, "no prefix and no interface: there is nothing to import")
        prefixes = [(self._prefix(line), line.number) for line in given]
        pairs = []
        for (prefix, number), interface in zip(prefixes, interfaces, strict=False):
            if prefix is None:
                continue
            if why := never_proxied(prefix):
                self.draft.outer(interface.value, interface.number)
                self._note(number, f"{prefix}: left out: {why}")
                continue
            pairs.append(((prefix, number), interface))
        return pairs

    def _unlabelled(self, line: _Line) -> _Line:
        interface, said = unlabelled(line.value)
        if said:
            self._note(line.number, said, loud=False)
        return line._replace(value=interface)

    def _prefix(self, line: _Line) -> IPv6Network | None:
        """npd6's way to write a prefix: as many groups as there are, and a colon; a length may follow."""
        text, slash, length = line.value.partition("/")
        if _SHORT.fullmatch(text):
            groups = text.rstrip(":")
            count = groups.count(":") + 1
            if not text.endswith(":"):
                self._note(line.number, f"{line}: npd6 wants a colon at the end, and does not start without")
            text = groups if count == 8 else f"{groups}::"
            implied = str(16 * count)
        else:
            implied = ""
            if slash and network(text):
                self._note(line.number, f"{line}: npd6 does not start with `::` inside of a prefix")
        found = network(f"{text}/{length or implied}") if slash or implied else None
        if found is None:
            self._fail(line.number, f"{line}: not a prefix such as 2001:db8:1:2: or 2001:db8:1:2::/64")
        elif found.prefixlen == 0:
            self._note(line.number, f"{line}: every address there is, those of the link in front among them")
        return found

    # lists

    def _lists(self, lines: list[_Line]) -> tuple[str, list[tuple[IPv6Address, int]], list[_Line]]:
        """The type of the list, its addresses, and the lines that are expressions."""
        wanted = "none"
        types = [line for line in lines if line.key == "listtype"]
        for line in types:
            meant = next((kind for kind in ("none", "black", "white") if line.value.startswith(kind)), "")
            if not meant:
                self._fail(line.number, f"{line}: npd6 takes that for none; write none, black or white")
            elif meant != line.value:
                self._note(line.number, f"{line}: npd6 takes that for none, and has no list; read as {meant}")
            wanted = meant or wanted
        if len(types) > 1:
            self._note(types[-1].number, "listtype for the last time: npd6 goes by this one")
        expressions = [line for line in lines if line.key == "exprlist"]
        addresses = [line for line in lines if line.key == "addrlist"]
        if wanted == "none":
            for line in (*addresses, *expressions):
                self._note(line.number, f"{line}: counts for nothing, for there is no list (listtype)")
            return wanted, [], []
        for line in expressions[_MAX_EXPRESSIONS:]:
            self._note(line.number, f"npd6 ignores this: it reads {_MAX_EXPRESSIONS} expressions")
        found = []
        for line in addresses:
            try:
                found.append((IPv6Address(line.value), line.number))
            except ValueError:
                self._note(line.number, f"{line}: npd6 ignores it, for it is no address")
        return wanted, found, expressions

    def _rules(
        self,
        prefix: IPv6Network,
        number: int,
        interface: str,
        wanted: str,
        listed: list[tuple[IPv6Address, int]],
        expressions: list[_Line],
    ) -> None:
        """The rules of one pair: the prefix, what the white list leaves of it, or the black list takes."""
        allow = wanted == "white"
        whole = int(prefix.network_address), int(prefix.netmask)
        rules: dict[tuple[IPv6Network, str], Wish] = {}

        def add(network: IPv6Network, host: str, line: int, *, allow: bool) -> None:
            wish = Wish(outer=interface, prefix=network, host=host, line=line, allow=allow, answer="always")
            rules.setdefault((network, host), wish)

        so_far: Addresses = NONE
        reader = Expressions()
        for line in expressions:
            try:
                fresh = reader.addresses(line.value)
                if not fresh or fresh[0].mask == 0:
                    every = "every" if fresh else "no"
                    said = f"{line} matches {every} address, as npd6 reads it (from left to right)"
                    self._note(line.number, said)
                before, so_far = so_far, union(so_far, fresh)
            except NoMaskError as error:
                problem = f"{line} does not amount to masks: {error}. Remove it, and write rules by hand"
                raise ConfigError([Problem(self._file, line.number, 1, "", problem)]) from None
            for pattern in so_far[len(before) :]:
                part = both(pattern, Pattern(*whole))
                if part is not None:
                    add(*_rule(part, pattern, prefix), line.number, allow=allow)
        for address, line_number in listed:
            if address in prefix:
                add(IPv6Network(address), "", line_number, allow=allow)
            else:
                self._note(line_number, f"{address} is not in {prefix}: no rule of that", loud=False)
        if wanted != "white":
            add(prefix, "", number, allow=True)
        elif not rules:
            self._note(number, f"nothing on the white list is in {prefix}: npd6 answers for nothing of it")
        self.draft.wishes += rules.values()

    # settings

    def _settings(self, lines: list[_Line]) -> Iterator[Setting]:
        last = {line.key: line for line in lines if line.key in _NO_EQUIVALENT or line.key == "routerNA"}
        for line in lines:
            if line.key not in last:
                continue
            if last[line.key] is not line:
                self._note(line.number, f"{line}: line {last[line.key].number} says it again, and counts")
            elif line.key in _BOOLEAN and line.value not in _BOOLEAN[line.key]:
                known = " or ".join(_BOOLEAN[line.key])
                self._fail(line.number, f"{line}: npd6 does not start with it; it must be {known}")
            elif line.key == "routerNA":
                value = "on" if line.value == "true" else "off"
                yield Setting("advertisement.router", value, line.number, str(line))
            else:
                missed = line.key in ("listlogging", "ralogging") and line.value == "on"
                missed = missed or (line.key == "maxHops" and line.value != "255")
                self._note(line.number, f"{line}: no equivalent, {_NO_EQUIVALENT[line.key]}", loud=missed)


def _rule(part: Pattern, pattern: Pattern, prefix: IPv6Network) -> tuple[IPv6Network, str]:
    """A pattern within a prefix: a longer prefix where it is one, else a host pattern."""
    length = part.mask.bit_count()
    if part.mask == ((1 << length) - 1) << (128 - length):
        return IPv6Network((part.value, length)), ""
    return prefix, f"{IPv6Address(pattern.value)}/{IPv6Address(pattern.mask)}"
