"""How a port fares, as the status tells it: judged in one place for the page and for the picture."""

from __future__ import annotations

from typing import Any

from portier.cli import text


def in_service(port: dict[str, Any]) -> bool:
    """Whether a port takes part in full."""
    return port["state"] == "active" and (port["relay"] is None or port["relay"]["service"] == "forwarding")


def state(port: dict[str, Any]) -> str:
    """Its state, in mode relay the part that it takes."""
    relay = port["relay"] if port["state"] == "active" else None
    return str(relay["service"] if relay else port["state"])


def faulty(port: dict[str, Any]) -> bool:
    """Whether a port is not in use because something is wrong with it."""
    return state(port) in {"refused", "conflict", "hold-down"}


def why(port: dict[str, Any]) -> str:
    """What is to be said of a port's state: of a hold-down also how long it lasts."""
    relay = port["relay"] if port["state"] == "active" else None
    said = [port["reason"]]
    if relay:
        left = f"{text.span(relay['left'])} left" if relay["left"] is not None else ""
        said += [relay["reason"], left]
    return "; ".join(filter(None, said))
