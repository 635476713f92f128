"""What is done to images that lie on others: commit and rebase."""

from __future__ import annotations

from imgtool.ops.commit import commit
from imgtool.ops.rebase import rebase
from tests.campaigns.crash.bench import Bench, Disk
from tests.campaigns.crash.observe import Layout
from tests.campaigns.crash.workloads.common import base_image, geometry, use


def committing(bench: Bench) -> None:
    """An overlay put into its backing image, which may have to grow, and then emptied."""
    options, _, size = geometry(bench)
    base = base_image(bench, max(4096, size + bench.random.choice((0, 0, -8192))))
    top = bench.image("image", size, options, backing=base)
    use(top, 8, 0)
    drop = bench.random.random() < 0.3
    bench.start()
    shown = bytes(top.content)
    wanted = shown.ljust(max(len(shown), base.size), b"\0")
    if base.size > len(shown):
        wanted = shown + bytes(base.content[len(shown) :])
    # The base grows as a whole, and then changes sector after sector.
    if len(wanted) > base.size:
        base.history.begin(base._segment())
        base.content[:] = bytes(base.content).ljust(len(wanted), b"\0")
        base.history.change(0, bytes(base.content))
        shape = base.history.segments[-2].shape
        assert shape is not None
        base.history.last.shape = shape._replace(size=len(wanted))
    base.bulk(
        "commit",
        lambda: commit(top.reference, drop=drop, opener=bench.opener),
        wanted,
    )
    top.history.promise(len(bench.log))
    use(top, 3)
    top.close()


def rebasing(bench: Bench) -> None:
    """An overlay that moves to another backing image, to none, or to a name."""
    options, _, size = geometry(bench)
    base = base_image(bench, size)
    other_options, _, _ = geometry(bench)
    other = bench.image("a-name-of-some-length-for-another-backing-image", size, other_options)
    use(other, 5, 0)
    other.write(0, size // 4)
    other.close()
    top = bench.image("image", size, options, backing=base)
    use(top, 5, 0)
    # It is judged over the backing image that it names, whichever that is.
    bench.disks = [base, other, top]
    bench.start()
    target = bench.random.choice((other.layout, None))
    _rebase(bench, top, target)
    use(top, 3)
    top.close()
    if target is None:
        return
    _rebase(bench, top, base.layout)


def _rebase(bench: Bench, top: Disk, below: Layout | None) -> None:
    old = top.layout
    reference = old.reference(dict(bench.files))
    top.layout = Layout(old.file, old.format, follows_names=True)
    top.command(
        f"rebase {None if below is None else below.file}",
        lambda: rebase(
            reference,
            None if below is None else below.file,
            None if below is None else below.format,
            opener=bench.opener,
        ),
    )
