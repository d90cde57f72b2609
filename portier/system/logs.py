"""How log lines look: text for people, JSON for programs, on stderr; fields where that is the journal."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from portier.core.model import Event
from portier.errors import printable
from portier.system import journal
from portier.system.service import STDERR, is_journal

_TEXT = "%(asctime)s %(levelname)s %(message)s"


class _Text(logging.Formatter):
    """For people, whose terminal no name of an interface shall command."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


class _Lines(_Text):
    """``<priority>message``, line by line: how the journal knows the level of what it reads from stderr
    (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{journal.PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "text": record.getMessage(),
        }
        event = getattr(record, "event", None)
        if isinstance(event, Event):
            entry["text"] = event.text
            entry["event"] = event.kind.value
            for name in ("group", "port", "address"):
                if value := getattr(event, name):
                    entry[name] = value
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(level: str, style: str, environ: Mapping[str, str] | None = None) -> None:
    """Log to stderr from ``level`` (debug, info, warning, error) on, as ``text`` or ``json``; may be called
    again."""
    printing = logging.StreamHandler(sys.stderr)
    handler: logging.Handler = printing
    formatter = _Json() if style == "json" else _Text(_TEXT)
    if is_journal(STDERR, os.environ if environ is None else environ):
        printing.setFormatter(_Lines())
        formatter = _Json() if style == "json" else _Text()
        handler = journal.JournalHandler(printing)
    handler.setFormatter(formatter)
    logger = logging.getLogger("portier")
    for old in logger.handlers:
        old.close()
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
