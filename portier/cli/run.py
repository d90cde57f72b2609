"""`portier run`: the daemon, in the foreground."""

from __future__ import annotations

import argparse

from portier.daemon import Daemon


def run(options: argparse.Namespace) -> int:
    """Be the daemon until told to stop."""
    return Daemon(options.config, options.runtime_dir).run()
