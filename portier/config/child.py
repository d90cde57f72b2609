"""The short-lived process that reads a configuration for a daemon: `python -m portier.config.child`.

Its argument is the main file; its standard output is what `wire.encode` makes of the outcome.  It steps
back behind the daemon's packet threads, and it decides nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from portier.config import Loaded, load, wire
from portier.errors import ConfigError


def main(arguments: list[str]) -> int:
    """Load, and write the outcome to standard output."""
    os.nice(5)
    (path,) = arguments
    outcome: Loaded | ConfigError
    try:
        outcome = load(Path(path))
    except ConfigError as error:
        outcome = error
    sys.stdout.buffer.write(wire.encode(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
