"""How log lines look: text for people and the journal, JSON for programs; always on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from portier.core.model import Event

# sd-daemon(3): what a line of stderr begins with for the journal to know its level.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    """``time level message``; in the journal, which has its own time, ``<priority>message``."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        if not self.journal:
            return super().format(record)
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in message.splitlines())


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
    journal = "JOURNAL_STREAM" in (os.environ if environ is None else environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text(journal=journal))
    logger = logging.getLogger("portier")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
