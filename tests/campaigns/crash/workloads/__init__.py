"""What is done to images while the power may go: every operation that writes.

Each workload makes its images (in files whose free clusters hold old data), calls
:meth:`Bench.start`, and goes on with what is recorded. All choices come from the bench's seed.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.campaigns.crash.bench import Bench
from tests.campaigns.crash.workloads import chains, commands, guests, making, repairs, together

Workload = Callable[[Bench], None]

WORKLOADS: dict[str, Workload] = {
    "guest": guests.guest,
    "filling": guests.filling,
    "large-clusters": guests.large_clusters,
    "compressed": guests.compressed,
    "external": guests.external,
    "overlay": guests.overlay,
    "together": together.together,
    "snapshots": commands.snapshots,
    "bitmaps": commands.bitmaps,
    "resize": commands.resizing,
    "amend": commands.amending,
    "compact": commands.compacting,
    "compact-into": making.compacting_into,
    "repair": repairs.repairing,
    "commit": chains.committing,
    "rebase": chains.rebasing,
    "create": making.creating,
    "convert": making.converting,
    "convert-into": making.converting_into,
    "overwrite": making.overwriting,
    "encrypted": guests.encrypted,
    "raw": guests.raw,
}

#: Those whose images are large, or whose keys take long to derive.
SLOW = frozenset({"large-clusters", "encrypted"})
