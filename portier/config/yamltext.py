"""YAML text to nodes: the parser's events, one loop, every key and value with its line and column.

Decides what YAML's own syntax means here: what users write unquoted and YAML cannot carry (a bare `*`,
`2001:db8:7::`, `!lxcbr0`, `eth[0-9]` in a flow list) is understood where it can mean nothing else; anchors,
aliases and merge keys work, bounded; tags do not.  What keys and values are for is not known here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from portier.config.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_PROBLEMS,
    Entry,
    Mapping,
    Node,
    Path,
    Place,
    Scalar,
    Sequence,
    problem_at,
)
from portier.errors import Problem

# libyaml is about twenty times as fast as the pure parser, which serves where PyYAML was built without.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Characters that mean something to YAML where they can mean only themselves to us are replaced by ones
# for private use before the parser sees them, and put back in every scalar: one for one, so that all
# places stay right.  Each is certain: the file would otherwise be no YAML at all, or have a tag, or a
# key that ends in a colon, and no file of ours has either.
STAND_INS = {"*": "\ue000", "!": "\ue001", "[": "\ue002", "]": "\ue003", ":": "\ue004"}
_HIDE = str.maketrans(STAND_INS)
_SHOW = str.maketrans({stand_in: char for char, stand_in in STAND_INS.items()})
_START = r"(?<![^\s\[{,])"  # of a token
_CERTAIN = re.compile(
    rf"{_START}(?P<star>\*)(?![0-9A-Za-z_-])"  # an alias needs a name: `*`, `*.100`
    rf"|{_START}(?P<tag>!)(?=[0-9A-Za-z*?\[])"  # `!lxcbr0`, a local tag to YAML
    r"|(?<=[0-9A-Za-z_.*?!-])(?P<set>(?:\[[^\s\[\]{},\"'#]+\])+)"  # `eth[0-9]`, a list after a word
    rf"|{_START}[0-9A-Fa-f:./]*:(?P<colon>:)(?=\s|\Z|[\]}},])"  # `2001:db8:7::`, a key of nothing
)

_TAGS = frozenset(("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"))
_QUOTE = (
    "names, globs and addresses that hold one of * ! [ ] { } : & % @ ` may have to be quoted, "
    'like "eth[0-9]*"'
)


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """The document in ``text``, None where it is empty or cannot be read, and every problem found.
    ``file`` is the name that places bear."""
    composer = _Composer(file)
    try:
        composer.run(_CERTAIN.sub(_hide, text))
    except _Hopeless as error:
        composer.problems.append(error.args[0])
        composer.root = None
    except yaml.MarkedYAMLError as error:
        composer.problems.append(_syntax_problem(error, text, file))
        composer.root = None
    except yaml.YAMLError as error:
        composer.problems.append(Problem(file, 0, 0, "", f"not valid YAML: {error}"))
        composer.root = None
    return composer.root, composer.problems


def _hide(match: re.Match[str]) -> str:
    start, end = match.span(match.lastgroup or 0)
    whole, text = match.start(), match.group()
    return text[: start - whole] + text[start - whole : end - whole].translate(_HIDE) + text[end - whole :]


class _Hopeless(Exception):  # noqa: N818  (says what the file is, carries a Problem)
    """Reading on makes no sense."""


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Sequence | Mapping
    path: Path
    anchor: str | None
    key: Scalar | None = None
    wants_value: bool = False  # the next node is the value of ``key``; with no key it is dropped
    merges: list[Mapping] = field(default_factory=list)

    def path_of_next(self) -> Path:
        if isinstance(self.node, Sequence):
            return (*self.path, len(self.node.items))
        return (*self.path, self.key.text) if self.key is not None else self.path


class _Composer:
    """Events to one tree.  An alias is the node it stands for, shared."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.open: list[_Open] = []
        self.documents = 0

    def run(self, text: str) -> None:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.ScalarEvent):
                self.scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self.start(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.end()
            elif isinstance(event, yaml.AliasEvent):
                self.alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    self.problem(
                        self.place(event), "a file holds one document: remove this `---`", fatal=True
                    )

    def place(self, event: yaml.Event) -> Place:
        mark = cast("yaml.Mark", event.start_mark)  # events always have theirs
        return Place(self.file, mark.line + 1, mark.column + 1)

    def problem(self, place: Place, message: str, *, fatal: bool = False) -> None:
        found = problem_at(place, self.open[-1].path_of_next() if self.open else (), message)
        if fatal or len(self.problems) >= MAX_PROBLEMS:
            raise _Hopeless(found)
        self.problems.append(found)

    def scalar(self, event: yaml.ScalarEvent) -> None:
        place = self.place(event)
        self.check_tag(event.tag, place)
        quoted = bool(event.style) or event.tag is not None
        self.finish(Scalar(place, event.value.translate(_SHOW), quoted), event.anchor)

    def start(self, event: yaml.CollectionStartEvent) -> None:
        place = self.place(event)
        self.check_tag(event.tag, place)
        if len(self.open) >= MAX_DEPTH:
            self.problem(place, "nested too deeply", fatal=True)
        kind = Sequence if isinstance(event, yaml.SequenceStartEvent) else Mapping
        path = self.open[-1].path_of_next() if self.open else ()
        self.anchors.pop(event.anchor or "", None)  # an alias inside is an alias to itself
        self.open.append(_Open(kind(place), path, event.anchor))

    def end(self) -> None:
        done = self.open.pop()
        if isinstance(done.node, Mapping):
            for merged in done.merges:
                for key, entry in merged.entries.items():
                    done.node.entries.setdefault(key, entry)
        self.finish(done.node, done.anchor)

    def alias(self, event: yaml.AliasEvent) -> None:
        name, place = event.anchor or "", self.place(event)
        node = self.anchors.get(name)
        if node is None:
            self.problem(place, f'*{name} refers to nothing: a name or glob must be quoted, "*{name}"')
        self.add(node)

    def check_tag(self, tag: str | None, place: Place) -> None:
        if tag is not None and tag not in _TAGS:
            self.problem(place, f"tags are not supported: remove {tag.translate(_SHOW)}, or quote the value")

    def finish(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = node
        self.add(node)

    def add(self, node: Node | None) -> None:
        """Put a node where it belongs; None takes the place of one that could not be understood."""
        if not self.open:
            self.root = node
            return
        parent = self.open[-1]
        if node is not None:
            parent.node.size += node.size
            if parent.node.size > MAX_NODES:
                self.problem(parent.node.place, "too many values, with the aliases written out", fatal=True)
        if isinstance(parent.node, Sequence):
            if node is not None:
                parent.node.items.append(node)
        elif not parent.wants_value:
            parent.wants_value = True
            if isinstance(node, Scalar):
                parent.key = node
            elif node is not None:
                message = (
                    "a key must be plain text; was a template not rendered? Values with braces need quotes"
                )
                self.problem(node.place, message)
        else:
            if parent.key is not None and node is not None:
                self.add_entry(parent, parent.node, parent.key, node)
            parent.key, parent.wants_value = None, False

    def add_entry(self, parent: _Open, mapping: Mapping, key: Scalar, node: Node) -> None:
        if key.text == "<<" and not key.quoted:
            merged = node.items if isinstance(node, Sequence) else [node]
            maps = [item for item in merged if isinstance(item, Mapping)]
            if len(maps) < len(merged):
                self.problem(node.place, "only mappings can be merged")
            parent.merges += maps
        elif (first := mapping.entries.get(key.text)) is not None:
            self.problem(key.place, f"the key stands here twice, first in line {first.place.line}")
        else:
            mapping.entries[key.text] = Entry(key.place, node)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    culprits = lines[line : line + 1]
    where = ""
    if error.context_mark is not None and error.context_mark.line != line:
        where = f" in line {error.context_mark.line + 1}"
        culprits += lines[error.context_mark.line : error.context_mark.line + 1]
    context = f"{error.context}{where}: " if error.context else ""
    culprit = "\n".join(culprits)
    if re.search(r"^ *\t", culprit, re.MULTILINE):
        hint = "; indent with spaces, not with tabs"
    elif "{{" in culprit or "{%" in culprit:
        hint = "; was a template not rendered?"
    elif re.search(r"[*!\[\]{}&%@`]|:\S*:|\S:\S", culprit):
        hint = f"; {_QUOTE}"
    else:
        hint = ""
    return Problem(file, line + 1, column + 1, "", f"not valid YAML: {context}{error.problem}{hint}")
