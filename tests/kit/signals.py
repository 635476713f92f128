"""Children that hear what they are told, however the tests were started."""

from __future__ import annotations

import signal


def heed() -> None:
    """In a child, before its program: what a shell or nohup has in the background ignores these."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
