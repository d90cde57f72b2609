"""`portier watch`: what happens, as it happens, one line each.

The daemon chooses by the filters; here is only how it looks, and the file that `--write` makes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import struct
from collections.abc import Callable
from datetime import datetime
from typing import IO, Any

from portier.cli import complain, exits, text
from portier.system.control import ControlClient

_NAMED = 20  # names that are told where one is not there
_TROUBLE = frozenset({"conflict", "claim", "loop", "limit", "sysctl", "worker", "missed"})
_GOOD = frozenset({"learned", "moved"})
_RED, _GREEN, _FAINT, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[0m"
# https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap: microseconds, version 2.4, Ethernet.
_PCAP_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 1)


def run(options: argparse.Namespace) -> int:
    """Print what happens until it is interrupted (0), or the daemon ends (4)."""
    question = {
        name: " ".join(getattr(options, name))
        for name in ("group", "port", "address", "kind")
        if getattr(options, name)
    }
    if options.write is not None:
        question["packets"] = "frames"
    elif options.packets:
        question["packets"] = "1"
    show = _program if options.json else _people()
    with contextlib.ExitStack() as stack:
        entries = ControlClient(options.runtime_dir).watch("/v1/events", **question)
        stack.enter_context(contextlib.closing(entries))
        _doubt(options)
        file = None
        if options.write is not None:
            file = stack.enter_context(options.write.open("wb"))
            file.write(_PCAP_HEAD)
            file.flush()
        try:
            for entry in entries:
                if file is not None and (frame := entry.pop("frame", None)) is not None:
                    _save(file, entry["time"], bytes.fromhex(frame))
                print(show(entry), flush=True)
        except KeyboardInterrupt:
            return exits.OK
    complain("watch", "the daemon has ended, or hung up because nothing was taken for ten minutes")
    return exits.NO_DAEMON


def _doubt(options: argparse.Namespace) -> None:
    """Say it where a filter names what is not there: it may come, or be misspelt, and nothing would be said
    for ever."""
    if not (options.group or options.port):
        return
    groups = ControlClient(options.runtime_dir).get("/v1/status")["groups"]
    ports = [port["name"] for group in groups for port in group["ports"]]
    for what, named, there in (
        ("group", options.group, [group["name"] for group in groups]),
        ("port", options.port, ports),
    ):
        if missing := [name for name in named if name not in there]:
            known = f"there is {', '.join(there[:_NAMED])}" if there else "there is none"
            complain("watch", f"no {what} is called {', '.join(missing)} now ({known}); waiting for it")


def _save(file: IO[bytes], when: float, frame: bytes) -> None:
    """Add a frame, so that the file is whole whenever it is read."""
    seconds, fraction = divmod(when, 1)
    file.write(struct.pack("<IIII", int(seconds), int(fraction * 1e6), len(frame), len(frame)) + frame)
    file.flush()


def _program(entry: dict[str, Any]) -> str:
    return json.dumps(entry)


def _people() -> Callable[[dict[str, Any]], str]:
    colours = text.colours()
    return lambda entry: render(entry, colours=colours)


def render(entry: dict[str, Any], *, colours: bool) -> str:
    """A line for people."""
    when = datetime.fromtimestamp(entry["time"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind, verdict = entry["kind"], entry.get("verdict", "")
    words = [kind, *(entry[name] for name in ("group", "port") if name in entry)]
    said = " ".join([*words, f"{verdict}:" if verdict else "", entry["text"]]).replace("  ", " ")
    said = text.clean(said)
    if not colours:
        return f"{when} {said}"
    if kind in _TROUBLE or entry.get("dropped"):
        colour = _RED
    elif kind in _GOOD or verdict in {"answered", "defended"}:
        colour = _GREEN
    else:
        colour = ""
    return f"{_FAINT}{when}{_PLAIN} {colour}{said}{_PLAIN if colour else ''}"
