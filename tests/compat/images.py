"""Holding the images that both programs left against each other."""

from __future__ import annotations

from tests.compat.twins import Twins
from tests.kit import referee


def same_disks(twins: Twins, *names: str) -> None:
    """Require that disks hold the same and have the same size, and that ours are sound."""
    for name in names:
        kind = "raw" if name.endswith(".raw") else "qcow2"
        theirs, ours = twins.qemu / name, twins.imgtool / name
        done = referee.run("qemu-img", "compare", "-f", kind, "-F", kind, theirs, ours)
        assert done.stdout == "Images are identical.\n", (name, done.stdout, done.stderr)
        if kind == "qcow2":
            found = referee.check(ours)
            assert found["exit"] == 0, (name, found)
