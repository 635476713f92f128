"""PBKDF2: from a password to a key, as slowly as one wants."""

from __future__ import annotations

import hashlib
import time

#: Fewer iterations than this are never chosen (LUKS1 specification, section 4.1).
MIN_ITERATIONS = 1000

#: How long a measurement takes before it is believed, in seconds.
_ENOUGH = 0.01


def derive(password: bytes, salt: bytes, iterations: int, length: int, hash: str) -> bytes:
    """Return ``length`` bytes (RFC 8018, section 5.2). Other threads go on meanwhile."""
    return hashlib.pbkdf2_hmac(hash, password, salt, iterations, length)


def iterations_for(seconds: float, length: int, hash: str) -> int:
    """How many iterations take ``seconds`` on this machine, at least :data:`MIN_ITERATIONS`."""
    tried = MIN_ITERATIONS
    while True:
        start = time.perf_counter()
        derive(b"password", b"salt" * 8, tried, length, hash)
        taken = time.perf_counter() - start
        if taken >= min(_ENOUGH, seconds):
            return max(MIN_ITERATIONS, int(tried * seconds / taken)) if taken else tried
        tried *= 4
