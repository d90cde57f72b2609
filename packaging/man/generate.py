"""Makes portier(8), portier.yaml(5) and portier-situations(7): generate.py OUTDIR.

The pages are ``*.in`` beside this file, in man(7), with lines like ``@commands@`` in the places of what is
said elsewhere already: commands and options by argparse, keys by the JSON Schema, situations by the README.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from portier import __version__  # noqa: E402  (from this tree, whatever is installed)
from portier.cli import COMMANDS, make_parser  # noqa: E402
from portier.cli.manual import MANUAL  # noqa: E402

README = ROOT / "README.md"
SCHEMA = ROOT / "schema" / "portier.schema.json"
WIDTH = 64  # of a text before anything in it is escaped or made bold; mandoc asks for 80 at most after it


def escape(text: str) -> str:
    """Text as roff: nothing in it is a request or an escape, and a minus can be copied as one."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return re.sub("^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def paragraph(text: str) -> str:
    """A text of help or schema; what stands in `backticks` is bold."""
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escape("\n".join(lines)))


def tagged(tag: str, *body: str) -> str:
    """An entry of a list."""
    return "\n".join([".TP", tag, *body])


# -- the command line ------------------------------------------------------------------------------------


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]  # noqa: SLF001


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]  # noqa: SLF001


def _value(action: argparse.Action) -> str:
    """What stands for an argument's value: a name, or the choices."""
    if action.choices is not None and not action.metavar:
        return "|".join(rf"\fB{escape(str(choice))}\fR" for choice in action.choices)
    if action.nargs == 0:
        return ""
    return rf"\fI{escape(str(action.metavar or action.dest.upper()))}\fR"


def _spelled(action: argparse.Action) -> str:
    """An option as a tag: every spelling, then its value."""
    names = ", ".join(rf"\fB{escape(name)}\fR" for name in action.option_strings)
    return f"{names} {_value(action)}".rstrip()


def _brief(action: argparse.Action) -> str:
    """An argument as it stands in a synopsis."""
    if not action.option_strings:
        return f"[{_value(action)}]" if action.nargs == "?" else _value(action)
    name = rf"\fB{escape(action.option_strings[-1])}\fR"
    return f"[{name} {_value(action)}]" if _value(action) else f"[{name}]"


def _help(action: argparse.Action) -> str:
    text = f"{action.help or ''}."
    if text.partition(" ")[0] not in (action.choices or ()):  # those are written as they are typed
        text = f"{text[0].upper()}{text[1:]}"
    return paragraph(text)


def options() -> str:
    """The options that every command has."""
    return "\n".join(tagged(_spelled(action), _help(action)) for action in _options(make_parser()))


def commands() -> str:
    """Every command, with the arguments of its own and its exit codes."""
    whole = make_parser()
    common = {action.dest for action in _options(whole)}
    (choice,) = (action for action in _arguments(whole) if action.dest == "command")
    parts = []
    for name, parser in dict(choice.choices or {}).items():
        own = [action for action in _options(parser) if action.dest not in common]
        arguments = _arguments(parser)
        tag = " ".join([rf"\fB{name}\fR", *map(_brief, own), *map(_brief, arguments)])
        meaning = f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}. {MANUAL[name].text}"
        parts.append(tagged(tag, paragraph(meaning)))
        if own or arguments:
            entries = [
                tagged(_spelled(action) if action in own else _value(action), _help(action))
                for action in [*arguments, *own]
            ]
            parts += [".RS", *entries, ".RE"]
        exits = ", ".join(f"{code} {what}" for code, what in MANUAL[name].exits.items())
        parts += [".IP", paragraph(f"Exit status: {exits}.")]
    return "\n".join(parts)


# -- the configuration -----------------------------------------------------------------------------------


def _kind(schema: dict[str, Any]) -> str:
    """What a key's value is, with its range."""
    if "title" in schema:
        return rf"\fI{escape(schema['title'])}\fR"
    values = schema.get(
        "enum",
        [True, False] if schema.get("type") == "boolean" else [schema["const"]] if "const" in schema else [],
    )
    if values:
        words = [str(value).lower() for value in values]
        if {"on", "off"} & set(words):  # true and false are other ways to write these
            words = [word for word in words if word not in {"true", "false"}]
        return " | ".join(rf"\fB{escape(word)}\fR" for word in words)
    if schema["type"] == "integer":
        return rf"\fIa whole number from {schema['minimum']} to {schema['maximum']}\fR"
    return {"object": r"\fIa mapping\fR", "array": r"\fIa list\fR"}[schema["type"]]


def _described(schema: dict[str, Any]) -> str:
    """A description; the values that it explains (``off: ...`` at the start of a sentence) are bold."""
    text = paragraph(schema["description"])
    values = {escape(str(value).lower()) for value in [*schema.get("enum", ()), True, False]}
    word = "|".join(map(re.escape, values))
    return re.sub(
        rf"((?:^|[.;]\s+)(?:Default )?)((?:{word})(?:, (?:{word}))*)(?=[:;])", r"\1\\fB\2\\fR", text
    )


def _entries(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, part in schema["properties"].items():
        yield tagged(rf"\fB{escape(prefix + key)}\fR: {_kind(part)}", _described(part))
        if "properties" in part and not prefix and key not in {"defaults", "groups"}:
            yield from _entries(part, f"{key}.")


def _resolved(part: Any, whole: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it means."""
    if isinstance(part, list):
        return [_resolved(item, whole) for item in part]
    if not isinstance(part, dict):
        return part
    meant = _resolved(whole["$defs"][part["$ref"].rpartition("/")[2]], whole) if "$ref" in part else {}
    return meant | {key: _resolved(value, whole) for key, value in part.items() if key != "$ref"}


def keys(which: str) -> str:
    """The keys of the file (``top``), or of a definition in the schema (``group``, ``rule``)."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return "\n".join(_entries(_resolved(schema if which == "top" else schema["$defs"][which], schema)))


# -- the situations --------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Running text of the README: `code` and **strong** are bold, *emphasis* is slanted."""
    flat = " ".join(text.split())
    lines = textwrap.wrap(flat, WIDTH, break_long_words=False, break_on_hyphens=False)
    shown = re.sub(r"`([^`]+)`|\*\*([^*]+)\*\*", r"\\fB\1\2\\fR", escape("\n".join(lines)))
    return re.sub(r"(?<![\w*:\"])\*([^*\n]+)\*(?!\w)", r"\\fI\1\\fR", shown)


def _verbatim(lines: str) -> str:
    """A file, or what is typed and printed; a long line goes on in the next one of the source."""
    folded = (
        "\\\n".join(line[at : at + WIDTH].replace("\\", "\\e") for at in range(0, len(line), WIDTH))
        for line in lines.split("\n")
    )
    shown = re.sub(r"^([.'])", r"\\&\1", "\n".join(folded), flags=re.MULTILINE)
    shown = shown.replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    return f".PP\n.RS 4\n.EX\n{shown}\n.EE\n.RE"


def _situation(text: str) -> Iterator[str]:
    """A part of the README, block by block."""
    for part in re.split(r"^(```\w*\n.*?^```)$", text, flags=re.MULTILINE | re.DOTALL):
        if fenced := re.fullmatch(r"```\w*\n(.*?)\n?```", part, re.DOTALL):
            yield _verbatim(fenced[1])
            continue
        for block in filter(None, map(str.strip, part.split("\n\n"))):
            if block.startswith("|"):
                rows = [row.strip("| ").split(" | ") for row in block.split("\n")[2:]]
                yield "\n".join(tagged(_plain(tag), _plain(body)) for tag, body in rows)
            elif block.startswith("- "):
                items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
                yield "\n".join(f".IP \\(bu 2\n{_plain(item)}" for item in items)
            else:
                yield f".PP\n{_plain(block)}"


def situations() -> str:
    """The README's part on situations."""
    text = README.read_text(encoding="utf-8")
    part = re.split(r"^## ", text.partition("\n## Situations\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    first, *rest = re.split(r"^### (.*)$", part, flags=re.MULTILINE)
    parts = ["\n".join(_situation(first)).removeprefix(".PP\n")]
    for heading, body in zip(rest[::2], rest[1::2], strict=True):
        parts += [f'.SS "{escape(heading)}"', "\n".join(_situation(body)).removeprefix(".PP\n")]
    return "\n".join(parts)


# -- the pages -------------------------------------------------------------------------------------------


def page(template: str) -> str:
    """A page with everything in its place."""
    day = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or SCHEMA.stat().st_mtime))
    words = {"date": time.strftime("%Y-%m-%d", day), "version": __version__}
    parts = {"options": options, "commands": commands, "situations": situations} | {
        f"keys {which}": lambda which=which: keys(which) for which in ("top", "group", "rule")
    }
    text = re.sub(r"@(\w+)@", lambda found: words[found[1]] if found[1] in words else found[0], template)
    return re.sub(r"^@([\w ]+)@$", lambda found: parts[found[1]](), text, flags=re.MULTILINE)


def main() -> None:
    """Write the pages."""
    (directory,) = map(Path, sys.argv[1:])
    directory.mkdir(parents=True, exist_ok=True)
    for template in sorted(HERE.glob("*.in")):
        (directory / template.stem).write_text(page(template.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
