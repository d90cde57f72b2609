"""ndppd.conf: the options of ndppd 0.2.x, of its master branch, and the names of 1.0.

ndppd 0.2 ignores what it does not know, and reads much otherwise than it is meant: such places are read as
they are meant, and pointed out.  Only what has no structure (a block that never ends) is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network

from portier.config.peers.draft import (
    Draft,
    Note,
    Outer,
    Setting,
    Wish,
    duration,
    is_interface,
    network,
    never_proxied,
    quoted,
    unlabelled,
)
from portier.errors import ConfigError, Problem

_MAX_DEPTH = 8  # ndppd has blocks in blocks, and nothing in those
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_VALUE = re.compile(r"[!-z|~]+")  # graphic characters but braces
_MAC = re.compile(r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}")
_NOBODY_TO_ASK = re.compile(r"(wg|tun|ppp|sit|gre|he-ipv6)[0-9._-]*\Z")  # as such links are usually called
_LEVELS = {
    "the top level": (
        *("proxy", "route-ttl", "address-ttl"),
        *("valid-ttl", "invalid-ttl", "renew", "retrans-limit", "retrans-time", "keepalive", "use-kernel"),
    ),
    "proxy": (
        *("rule", "router", "timeout", "ttl", "deadtime", "autowire", "keepalive", "retries", "promiscuous"),
        *("promisc", "target", "outgoing"),
    ),
    "rule": ("static", "iface", "auto", "autovia", "autowire", "rewrite", "table", "target"),
}
_POLLED = "no equivalent, and none needed: Portier is told by the kernel when addresses or routes change"
_ALWAYS_SO = "so it is in Portier anyway: a known host is probed before it is forgotten"
_TIMERS = {
    "timeout": ("retransmit", "how long an answer is waited for, each time it is asked"),
    "ttl": ("reachable", "how long a host is answered for before it is probed"),
    "deadtime": ("negative", "how long nobody is asked after nobody answered"),
    "valid-ttl": ("reachable", "how long a host is answered for before it is probed"),
    "invalid-ttl": ("negative", "how long nobody is asked after nobody answered"),
    "retrans-time": ("retransmit", "how long an answer is waited for, each time it is asked"),
}


@dataclass(slots=True)
class _Entry:
    """One option: key, value, and block where it has one."""

    key: str
    value: str
    line: int
    block: list[_Entry] | None = None
    notes: list[Note] = field(default_factory=list)

    def __str__(self) -> str:
        return quoted(f"{self.key} {self.value}".strip())


def read(text: str, file: str) -> Draft:
    """The file as a draft; raises ConfigError where it cannot be read."""
    return _Reader(file, _Text(text, file).entries()).draft


# -- text to entries ---------------------------------------------------------------------------------


class _Text:
    """The text, and how far it has been read."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._at = 0
        self._line = 1
        self._line_start = 0

    def _fail(self, message: str) -> ConfigError:
        column = self._at - self._line_start + 1
        return ConfigError([Problem(self._file, self._line, column, "", message)])

    def _move(self, to: int) -> None:
        lines = self._text.count("\n", self._at, to)
        if lines:
            self._line += lines
            self._line_start = self._text.rindex("\n", self._at, to) + 1
        self._at = to

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, *, lines: bool) -> None:
        """Pass over blanks and comments, and with ``lines`` over ends of lines."""
        text = self._text
        while self._at < len(text):
            if text[self._at] in " \t\r\f\v" or (lines and text[self._at] == "\n"):
                self._move(self._at + 1)
            elif text[self._at] == "#" or text.startswith("//", self._at):
                end = text.find("\n", self._at)
                self._move(end if end >= 0 else len(text))
            elif text.startswith("/*", self._at):
                end = text.find("*/", self._at + 2)
                if end < 0:
                    raise self._fail("this comment never ends")
                self._move(end + 2)
            else:
                return

    def entries(self) -> list[_Entry]:
        """All of the file.  A `}` too many is passed over, and noted."""
        found: list[_Entry] = []
        while True:
            found += self._block(0)
            if not self._peek():
                return found
            said = "one `}` too many: ndppd reads no further, and nothing below had an effect; now it has"
            found.append(_Entry("", "", self._line, notes=[Note(self._line, said)]))
            self._move(self._at + 1)

    def _block(self, depth: int) -> list[_Entry]:
        """The entries up to a `}` or the end, which are left."""
        found: list[_Entry] = []
        while True:
            self._skip(lines=True)
            if self._peek() in ("}", ""):
                return found
            found.append(self._entry(depth))

    def _entry(self, depth: int) -> _Entry:
        entry = _Entry("", "", self._line)
        if key := _KEY.match(self._text, self._at):
            entry.key = key[0]
            self._move(key.end())
        self._skip(lines=False)
        if self._peek() == "=":
            self._move(self._at + 1)
            self._skip(lines=False)
        self._value(entry)
        self._skip(lines=False)
        if self._peek() != "{" and entry.key in ("proxy", "rule"):
            self._skip(lines=True)
            if self._peek() == "{":
                said = f"the {{ of {entry} is not in its line, and ndppd leaves the block out"
                entry.notes.append(Note(entry.line, said))
        if self._peek() == "{":
            if depth >= _MAX_DEPTH:
                raise self._fail("blocks in blocks without end")
            opened = self._line
            self._move(self._at + 1)
            entry.block = self._block(depth + 1)
            if self._peek() != "}":
                raise self._fail(f"the block that line {opened} begins never ends: a }} is missing")
            self._move(self._at + 1)
        elif not entry.key and not entry.value:
            raise self._fail(f"{quoted(self._peek())} cannot stand here")
        return entry

    def _value(self, entry: _Entry) -> None:
        quote = self._peek()
        if quote and quote in "\"'":
            end = self._at + 1
            while end < len(self._text) and self._text[end] not in (quote, "\n"):
                end += 1
            entry.value = self._text[self._at + 1 : end]
            self._move(min(end + 1, len(self._text)) if self._text[end : end + 1] == quote else end)
            said = f"{quoted(entry.value)} in quotes: ndppd 0.2.5 loses what follows it in the line"
            entry.notes.append(Note(entry.line, said))
        elif value := _VALUE.match(self._text, self._at):
            entry.value = value[0]
            self._move(value.end())
            meant = re.split(r"#|//|;", entry.value, maxsplit=1)[0]
            if meant != entry.value:
                said = f"ndppd takes {quoted(entry.value)} for the value; read as {quoted(meant)}"
                entry.notes.append(Note(entry.line, said))
                entry.value = meant


# -- entries to wishes ---------------------------------------------------------------------------------


class _Reader:
    """Goes through the entries once, and fills the draft."""

    def __init__(self, file: str, entries: list[_Entry]) -> None:
        self.draft = Draft()
        self._file = file
        self._missing = False  # what ndppd makes of a missing interface has been said
        self._top(entries)
        if not any(entry.key == "proxy" for entry in entries):
            raise ConfigError([Problem(file, 0, 0, "", "no `proxy` section: there is nothing to import")])

    def _top(self, entries: list[_Entry]) -> None:
        draft = self.draft
        for entry in self._known(entries, "the top level", draft.notes):
            if entry.key in ("route-ttl", "address-ttl"):
                draft.notes.append(Note(entry.line, f"{entry}: {_POLLED}", loud=False))
            elif entry.key == "renew":
                draft.notes.append(Note(entry.line, f"{entry}: ndppd does nothing with it", loud=False))
            elif entry.key == "use-kernel":
                said = "no equivalent: Portier answers itself. `answer: kernel` is for single addresses"
                draft.notes.append(Note(entry.line, f"{entry}: {said}"))
            elif entry.key != "proxy":
                self._timer(entry, draft.defaults, draft.notes)
        for entry in entries:
            if entry.key == "proxy":
                self._proxy(entry)
        for outer in draft.outers:
            self._overlaps([wish for wish in draft.wishes if wish.outer == outer])

    def _known(self, entries: list[_Entry], level: str, notes: list[Note]) -> Iterator[_Entry]:
        """The entries that ndppd knows at this level, of each key the first; what else there is, is noted."""
        seen: dict[str, int] = {}
        for entry in entries:
            if entry.key not in ("proxy", "rule"):
                notes += entry.notes
            if entry.key not in _LEVELS[level]:
                if entry.key or entry.value:
                    notes.append(Note(entry.line, f"ndppd ignores {entry}{_about_unknown(entry.key, level)}"))
                continue
            first = seen.setdefault(entry.key, entry.line)
            if entry.key not in ("proxy", "rule") and first != entry.line:
                notes.append(Note(entry.line, f"ndppd ignores {entry}: line {first} has it already"))
                continue
            yield entry

    @staticmethod
    def _unlabel(entry: _Entry, notes: list[Note]) -> None:
        entry.value, said = unlabelled(entry.value)
        if said:
            notes.append(Note(entry.line, said, loud=False))

    def _proxy(self, entry: _Entry) -> None:
        self._unlabel(entry, entry.notes)
        if not is_interface(entry.value):
            message = f"{quoted(entry.value)} is not the name of an interface: ndppd does not start with it"
            if not entry.value:
                message = "`proxy` without an interface: ndppd does not start with it"
            raise ConfigError([Problem(self._file, entry.line, 1, "", message)])
        again = entry.value in self.draft.outers
        outer = self.draft.outer(entry.value, entry.line)
        outer.notes += entry.notes
        if again:
            said = f"a second section for {entry.value}: ndppd 0.2.5 goes by the last alone; here all count"
            outer.notes.append(Note(entry.line, said))
        known = list(self._known(entry.block or [], "proxy", outer.notes))
        for option in known:
            if option.key != "rule":
                self._option(option, outer)
        for option in known:
            if option.key == "rule":
                self._rule(option, outer)

    def _option(self, entry: _Entry, outer: Outer) -> None:
        """One setting of a proxy section."""
        if entry.key == "router":
            value = "on" if self._boolean(entry, outer.notes) else "off"
            outer.settings.append(Setting("advertisement.router", value, entry.line, str(entry)))
        elif entry.key == "autowire":
            value = "true" if self._boolean(entry, outer.notes) else "false"
            outer.settings.append(Setting("routes", value, entry.line, str(entry)))
        elif entry.key in ("promiscuous", "promisc"):
            if self._boolean(entry, outer.notes):
                said = "no equivalent, and none needed: Portier joins the groups that are asked"
                outer.notes.append(Note(entry.line, f"{entry}: {said}"))
        elif entry.key == "outgoing":
            said = "so it is in Portier anyway: this host's own solicitations are seen"
            outer.notes.append(Note(entry.line, f"{entry}: {said}", loud=False))
        elif entry.key == "target":
            self._target(entry, outer)
        else:
            self._timer(entry, outer.settings, outer.notes)

    def _timer(self, entry: _Entry, settings: list[Setting], notes: list[Note]) -> None:
        """Durations and counts."""
        if entry.key == "keepalive":
            said = _ALWAYS_SO
            if loud := not self._boolean(entry, notes):
                said = "no equivalent: a known host is probed before it is forgotten, always"
            notes.append(Note(entry.line, f"{entry}: {said}", loud=loud))
            return
        number = self._number(entry, notes)
        if entry.key in ("retries", "retrans-limit"):
            key, said = "timers.retries", "times it is asked"
            value = str(number) if 1 <= number <= 100 else ""
        else:
            key, said = _TIMERS[entry.key]
            key, value = f"timers.{key}", duration(number)
        if not value:
            notes.append(Note(entry.line, f"{entry}: out of range here; left at Portier's default"))
            return
        settings.append(Setting(key, value, entry.line, f"{entry}, {said}"))

    def _boolean(self, entry: _Entry, notes: list[Note]) -> bool:
        value = entry.value.lower()
        if value not in ("yes", "true", "no", "false"):
            notes.append(Note(entry.line, f"{entry}: ndppd knows yes and true, and takes all else for no"))
        return value in ("yes", "true")

    def _number(self, entry: _Entry, notes: list[Note]) -> int:
        found = re.match(r"[+-]?[0-9]{1,12}", entry.value)
        number = int(found[0]) if found else 0
        if not found or found[0] != entry.value:
            notes.append(Note(entry.line, f"{entry}: not a plain number; ndppd takes it for {number}"))
        return number

    def _target(self, entry: _Entry, outer: Outer) -> None:
        if not _MAC.fullmatch(entry.value):
            outer.notes.append(Note(entry.line, f"{entry}: not a link-layer address; left out"))
        elif int(entry.value.partition(":")[0], 16) & 1 or not int(entry.value.replace(":", ""), 16):
            outer.notes.append(Note(entry.line, f"{entry}: no host has such an address; left out"))
        else:
            value = f'"{entry.value}"'
            outer.settings.append(Setting("advertisement.link_layer", value, entry.line, str(entry)))

    # rules

    def _rule(self, entry: _Entry, outer: Outer) -> None:
        prefix = network(entry.value)
        notes = entry.notes
        if prefix is None:
            said = f"{entry}: no IPv6 address or prefix; ndppd takes it, and answers for nothing"
            outer.notes += [*notes, Note(entry.line, f"{said}. Left out")]
            return
        if why := never_proxied(prefix):
            outer.notes += [*notes, Note(entry.line, f"{entry}: left out: {why}")]
            return
        options = {option.key: option for option in self._known(entry.block or [], "rule", notes)}
        wish = Wish(outer=outer.name, prefix=prefix, line=entry.line, notes=notes)
        if str(prefix) != entry.value and "/" in entry.value and network(entry.value.partition("/")[0]):
            self._say_normal(entry, prefix, wish)
        if self._method(entry, options, wish, outer):
            self._extras(entry, options, wish, outer)
            self.draft.wishes.append(wish)

    def _say_normal(self, entry: _Entry, prefix: IPv6Network, wish: Wish) -> None:
        address = network(entry.value.partition("/")[0])
        if address and address.network_address != prefix.network_address:
            said = f"{entry}: bits beyond the length count for nothing: it is {prefix}"
            wish.notes.append(Note(entry.line, said, loud=False))

    def _method(self, entry: _Entry, options: dict[str, _Entry], wish: Wish, outer: Outer) -> bool:
        """How the rule answers; False where it does not."""
        given = [key for key in ("iface", "auto", "static") if key in options]
        for key in given[1:]:
            said = (
                f"{given[0]} and {key} in one rule: ndppd 0.2.5 does not start with it; older ones go by "
                f"{given[0]}, and so does the import"
            )
            wish.notes.append(Note(options[key].line, said))
        method = given[0] if given else ""
        if method == "iface":
            return self._iface(options["iface"], wish, outer)
        if method == "auto":
            wish.answer = "routed"
            said = "auto: ndppd asks on the interface of the route; Portier takes the route for the answer"
            wish.notes.append(Note(options["auto"].line, said, loud=False))
        else:
            wish.answer = "always"
        if not method:
            said = (
                f"{entry} says nothing of how: ndppd 0.2.5 does not start with it, and older ones take it "
                "for `static`: every address is answered for, whether a host has it or not. To ask first, "
                "remove `answer: always`, and name the interface behind as `downstream`"
            )
            wish.notes.append(Note(entry.line, said))
        return True

    def _iface(self, option: _Entry, wish: Wish, outer: Outer) -> bool:
        self._unlabel(option, wish.notes)
        if option.value == wish.outer:
            said = f"{option}: those are the hosts on {wish.outer} itself, which answer themselves; left out"
        elif not option.value:
            said = (
                "`iface` without an interface: ndppd 0.2.5 does not start with it; older ones leave the rule "
                "out, and so does the import"
            )
        elif not is_interface(option.value):
            said = (
                f"{option}: no interface has such a name, so that ndppd takes the rule for `static` and "
                "answers for every address of it; left out here"
            )
        else:
            wish.inner = (option.value,)
            if _NOBODY_TO_ASK.match(option.value):
                wish.answer = "routed"
                said = (
                    f"{option}: going by its name, a link without link-layer addresses, where nobody can be "
                    "asked (ndppd gets no answer there): answered for what is routed there"
                )
                wish.notes.append(Note(option.line, said))
            if not self._missing:
                self._missing = True
                said = (
                    f"{option}: were {option.value} missing at its start, ndppd would take the rule for "
                    "`static` and answer for every address of it; Portier waits for the interface"
                )
                wish.notes.append(Note(option.line, said, loud=False))
            return True
        outer.notes += [*wish.notes, Note(option.line, said)]
        return False

    def _extras(self, entry: _Entry, options: dict[str, _Entry], wish: Wish, outer: Outer) -> None:
        """What a rule of the master branch or of 1.0 may say besides."""
        if "autovia" in options and self._boolean(options["autovia"], wish.notes):
            said = "no equivalent: for a prefix behind a router there, add its route and use `answer: routed`"
            wish.notes.append(Note(options["autovia"].line, f"{options['autovia']}: {said}"))
        if wired := options.get("autowire"):
            wanted = not wired.value or self._boolean(wired, wish.notes)
            outer.settings.append(
                Setting("routes", str(wanted).lower(), wired.line, f"{wired}, for all rules of the group")
            )
        if "target" in options:
            self._target(options["target"], outer)
        if table := options.get("table"):
            number = self._number(table, wish.notes)
            if not 1 <= number <= 254:
                wish.notes.append(Note(table.line, f"{table}: no table for host routes; left out"))
            elif number != 254:
                if wish.answer == "routed":
                    said = "`routed` follows the kernel's policy rules, and no table by itself"
                    wish.notes.append(Note(table.line, f"{table}: no equivalent: {said}"))
                else:
                    outer.settings.append(Setting("routes.table", str(number), table.line, str(table)))
        if rewrite := options.get("rewrite"):
            wish.answer = "always"
            to = network(rewrite.value)
            told = f"{entry.value} : {rewrite.value}" if to else "FROM : TO"
            said = (
                f"{rewrite}: no equivalent: Portier translates nothing. Answered for all of {wish.prefix}; "
                f"translate with nftables' prefix translation: nft add rule ip6 nat prerouting iifname "
                f"{outer.name} dnat ip6 prefix to ip6 daddr map {{ {told} }}"
            )
            wish.notes.append(Note(rewrite.line, said))

    def _overlaps(self, wishes: list[Wish]) -> None:
        """Note where rules for prefixes in one another say different things: ndppd goes by all of them."""
        by_length: dict[int, dict[int, Wish]] = {}
        for wish in wishes:
            if isinstance(wish.prefix, IPv6Network):
                by_length.setdefault(wish.prefix.prefixlen, {}).setdefault(int(wish.prefix[0]), wish)
        for wish in wishes:
            if not isinstance(wish.prefix, IPv6Network) or wish.answer == "always":
                continue  # `always` within another is what it is for both
            for length in range(wish.prefix.prefixlen):
                around = by_length.get(length, {}).get(int(wish.prefix[0]) >> 128 - length << 128 - length)
                if around and (around.answer, around.inner) != (wish.answer, wish.inner):
                    said = (
                        f"lies within {around.prefix} of line {around.line}: ndppd goes by both (and "
                        "`static` wins), Portier by the more specific one alone"
                    )
                    wish.notes.append(Note(wish.line, said))
                    break


def _about_unknown(key: str, level: str) -> str:
    """What may have been meant by a key."""
    for other, keys in _LEVELS.items():
        if key in keys:
            return f" here: it belongs into {other}"
    close = difflib.get_close_matches(key.lower(), _LEVELS[level], 1)
    if level == "rule" and key.lower() in ("interface", "dev", "if"):
        close = ["iface"]
    return f"; is {close[0]} meant?" if close else ", which it does not know"
