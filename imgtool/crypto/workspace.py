"""Arrays that a thread uses again and again: fresh ones of this size cost more than the ciphers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Bytes = NDArray[np.uint8]

_per_thread = threading.local()

#: OpenSSL's interface demands room for nearly a block more than there is to be written.
_SLACK = 16


def words(purpose: str, shape: tuple[int, ...]) -> Words:
    """Return an array of this thread's for ``purpose``, its contents left over from the last use.

    Arrays for different purposes are different arrays.
    """
    import numpy as np

    count = 1
    for length in shape:
        count *= length
    kept: dict[str, Bytes] = _per_thread.__dict__
    store = kept.get(purpose)
    if store is None or len(store) < count * 8 + _SLACK:
        store = kept[purpose] = np.empty(count * 8 + _SLACK, dtype=np.uint8)
    return store[: count * 8].view(np.uint64).reshape(shape)


def with_slack(purpose: str, data: Words) -> Bytes:
    """The bytes of what :func:`words` returned for ``purpose``, and the room behind them."""
    kept: dict[str, Bytes] = _per_thread.__dict__
    return kept[purpose][: data.nbytes + _SLACK]
