"""The Neighbor Discovery proxy: hosts on one link reachable as if they sat on another."""

__version__ = "0.1.0"
