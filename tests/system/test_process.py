"""What a process may, and what it may for another user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from portier.system import process

EVERYBODY = "0 0 4294967295"


@pytest.mark.skipif(
    os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split() != EVERYBODY.split(),
    reason="only root of all users can tell what others may",
)
def test_root_tells_what_the_service_cannot_read() -> None:
    """A file, and a directory whose names may be read and not what is in it."""
    with tempfile.TemporaryDirectory() as name:  # nobody gets into those of pytest
        place = Path(name)
        place.chmod(0o755)
        good, bad, shut, part = (place / name for name in ("good", "bad\n", "shut", "part"))
        for file, mode in ((good, 0o644), (bad, 0o600)):
            file.touch(mode)
        for directory, mode in ((shut, 0o700), (part, 0o744)):
            directory.mkdir()
            directory.chmod(mode)
        assert process.unreadable([good, place, bad, shut, part], user="nobody") == (bad, shut, part)
        assert process.unreadable([bad], user="root") == ()
        assert process.unreadable([bad], user="no-such-user") == ()
