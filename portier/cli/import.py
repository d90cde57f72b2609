# ruff: noqa: N999  (a command's module is named for it, and imported by its name)
"""`portier import ndppd|npd6|pndpd FILE`: another proxy's configuration as Portier's, on standard output.

What the user should decide stands in the output, as a comment next to what it is about, and once more on
stderr, each with its line in the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from portier.cli import exits
from portier.config import peers
from portier.errors import ConfigError, Problem

_MOST = 1 << 20  # bytes: more than ten thousand rules


def run(options: argparse.Namespace) -> int:
    """Read, convert, print."""
    name = "<stdin>" if options.file == "-" else options.file
    imported = peers.convert(options.peer, _text(options.file, name), name)
    sys.stdout.write(imported.text)
    sys.stdout.flush()
    for remark in imported.remarks:
        print(remark, file=sys.stderr)
    return exits.OK


def _text(file: str, name: str) -> str:
    """What the file holds; a byte that is not UTF-8 can only be part of a comment, or is found there."""
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as opened:
            content = opened.read(_MOST + 1)
    except PermissionError:
        raise
    except OSError as error:
        raise ConfigError([Problem(name, 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    if b"\0" in content:
        raise ConfigError([Problem(name, 0, 0, "", "not a text file")])
    if len(content) > _MOST:
        raise ConfigError([Problem(name, 0, 0, "", "larger than 1 MiB: no proxy's configuration")])
    return content.decode("utf-8-sig", "replace")
