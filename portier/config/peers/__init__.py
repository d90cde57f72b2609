"""The configurations of other proxies, read and told again as Portier's own.

One module a peer reads its language into a `Draft`: which prefixes are answered for on which interface, how,
and what was said besides.  `draft` makes groups of that and writes them down, every line with where it came
from and every remark next to what it is about.  Text in, text out: nothing here reads a file.

What is said of a peer (that it ignores a key, or takes a missing interface for `static`) is true of ndppd
0.2.5, npd6 1.1.0 and pndpd 1.2, and said to hold for others only where their sources say so.
"""

from __future__ import annotations

from portier.config.peers import ndppd, npd6, pndpd
from portier.config.peers.draft import Imported, write

_READERS = {"ndppd": ndppd.read, "npd6": npd6.read, "pndpd": pndpd.read}
PEERS = tuple(_READERS)


def convert(peer: str, text: str, file: str) -> Imported:
    """Portier's configuration for what ``text``, the configuration of ``peer``, asks for; ``file`` is the
    name that places bear.  Raises ConfigError where the text cannot be read, or asks for what must not be
    guessed at."""
    return write(_READERS[peer](text, file), peer, file)
