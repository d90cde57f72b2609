"""pndpd.conf: blocks of `proxy` and `responder`.

A proxy asks behind before it answers, which is `resolve`; a responder answers at once, which is `always`.
Without filters both serve every address there is; `autosense` stands for the prefixes of an interface.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network

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
from portier.errors import ConfigError, Problem

_EVERYTHING = IPv6Network("::/0")
_KEYS = {
    "proxy": ("ext-iface", "int-iface", "autosense", "filter", "monitor-changes"),
    "responder": ("iface", "autosense", "filter", "monitor-changes"),
}
_OLD = {"iface1": "ext-iface", "iface2": "int-iface"}  # as they were called at first


@dataclass(slots=True)
class _Block:
    kind: str
    line: int
    values: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def first(self, key: str) -> str:
        """The value of a key that counts once; "" where it is missing."""
        return self.values[key][0][0] if key in self.values else ""

    def line_of(self, key: str) -> int:
        """Where a key stands."""
        return self.values[key][0][1] if key in self.values else self.line


def read(text: str, file: str) -> Draft:
    """The file as a draft; raises ConfigError where pndpd would not start with it, or a block never ends."""
    return _Reader(text, file).draft


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.draft = Draft()
        self._file = file
        blocks = list(self._blocks(text))
        if not blocks:
            raise self._fail(0, "no `proxy` and no `responder` block: there is nothing to import")
        for block in blocks:
            if block.kind == "proxy":
                self._proxy(block)
            else:
                self._responder(block)

    def _fail(self, line: int, message: str) -> ConfigError:
        return ConfigError([Problem(self._file, line, 1 if line else 0, "", message)])

    def _note(self, line: int, message: str, *, loud: bool = True) -> None:
        self.draft.notes.append(Note(line, message, loud))

    def _blocks(self, text: str) -> Iterator[_Block]:
        block: _Block | None = None
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.partition("//")[0].strip()
            if not line:
                continue
            if line.startswith("debug"):
                self._debug(line, number)
            elif "{" in line:
                kind, _, after = line.partition("{")
                if after or block is not None:
                    raise self._fail(number, "nothing may follow a {, and no block begins in another")
                if kind.strip() not in _KEYS:
                    raise self._fail(number, f"{quoted(kind.strip())} is no block; proxy and responder are")
                block = _Block(kind.strip(), number)
            elif "}" in line:
                if line != "}" or block is None:
                    raise self._fail(number, "a } stands alone in its line, and ends a block")
                yield block
                block = None
            elif block is None:
                self._note(number, f"pndpd ignores {quoted(line)}: it stands in no block")
            else:
                self._option(block, line, number)
        if block is not None:
            raise self._fail(block.line, f"this {block.kind} block never ends: pndpd passes over it")

    def _debug(self, line: str, number: int) -> None:
        if line.removeprefix("debug").strip() == "on":
            self.draft.head = [Setting("log.level", "debug", number, "debug on")]

    def _option(self, block: _Block, line: str, number: int) -> None:
        key, *rest = line.split(None, 1)
        key = _OLD.get(key, key) if block.kind == "proxy" else key
        if not rest:
            raise self._fail(number, f"{quoted(key)} has no value: pndpd does not start with it")
        if key not in _KEYS[block.kind]:
            close = difflib.get_close_matches(key, _KEYS[block.kind], 1)
            meant = f"; is {close[0]} meant?" if close else ""
            self._note(number, f"pndpd ignores {quoted(line)}{meant}")
            return
        values = block.values.setdefault(key, [])
        if values and key != "filter":
            self._note(number, f"pndpd ignores {quoted(line)}: line {values[0][1]} has it already")
        values.append((rest[0].strip(), number))

    def _interface(self, block: _Block, key: str) -> str:
        name, said = unlabelled(block.first(key))
        if said:
            self._note(block.line_of(key), said, loud=False)
        if not is_interface(name):
            what = f"{quoted(name)} is not the name of an interface" if name else f"{key} is missing"
            raise self._fail(block.line_of(key), f"{what}: pndpd does not start with it")
        return name

    def _proxy(self, block: _Block) -> None:
        outer, inner = self._interface(block, "ext-iface"), self._interface(block, "int-iface")
        if outer == inner:
            raise self._fail(block.line_of("int-iface"), f"{outer} is the outer interface already")
        self._common(block, outer)
        for prefix, line in self._filters(block):
            self._wish(Wish(outer=outer, prefix=prefix, line=line, inner=(inner,)))
        if "filter" in block.values:
            said = f"pndpd lets hosts behind {inner} ask for any address; Portier for what a rule allows"
            self._note(block.line, said, loud=False)
        elif "autosense" in block.values:
            self._autosense(block, outer, "resolve", inner)
        else:
            wish = Wish(outer=outer, prefix=_EVERYTHING, line=block.line, inner=(inner,))
            wish.notes.append(Note(block.line, "no filter: hosts behind may have any address there is"))
            self._wish(wish)

    def _responder(self, block: _Block) -> None:
        outer = self._interface(block, "iface")
        self._common(block, outer)
        for prefix, line in self._filters(block):
            self._wish(Wish(outer=outer, prefix=prefix, line=line, answer="always"))
        if "autosense" in block.values:
            self._autosense(block, outer, "always", "")
        elif "filter" not in block.values:
            wish = Wish(outer=outer, prefix=_EVERYTHING, line=block.line, answer="always")
            said = "no filter: every address there is is answered for, those of the link in front among them"
            wish.notes.append(Note(block.line, said))
            self._wish(wish)

    def _common(self, block: _Block, outer: str) -> None:
        self.draft.outer(outer, block.line)
        if "filter" in block.values and "autosense" in block.values:
            raise self._fail(
                block.line_of("autosense"), "filter and autosense: pndpd starts with one of them"
            )
        if block.first("monitor-changes") == "off":
            said = "`monitor-changes off`: no equivalent: Portier follows links and addresses, always"
            self._note(block.line_of("monitor-changes"), said)

    def _wish(self, wish: Wish) -> None:
        self.draft.wishes.append(wish)

    def _filters(self, block: _Block) -> Iterator[tuple[IPv6Network, int]]:
        for text, line in block.values.get("filter", []):
            prefix = network(text) if "/" in text else None
            if prefix is None:
                raise self._fail(line, f"{quoted(text)} is not an IPv6 prefix such as 2001:db8:7::/64")
            if why := never_proxied(prefix):
                self._note(line, f"{prefix}: left out: {why}")
                continue
            yield prefix, line

    def _autosense(self, block: _Block, outer: str, answer: str, inner: str) -> None:
        """The prefixes of an interface: `upstream` for those in front; what is routed to an interface behind
        is what `routed` answers for."""
        sensed, line = self._interface(block, "autosense"), block.line_of("autosense")
        if sensed == outer:
            behind = (inner,) if inner else ()
            self._wish(Wish(outer=outer, prefix="upstream", line=line, answer=answer, inner=behind))
            return
        wish = Wish(outer=outer, prefix=_EVERYTHING, line=line, answer="routed", inner=(sensed,))
        said = (
            f"autosense {sensed}: answered for what the kernel routes to {sensed}, asking nobody. Where "
            f"{outer} has the same prefix on-link, `- upstream` in its place asks first"
        )
        wish.notes.append(Note(line, said))
        self._wish(wish)
