"""Opening disks in tests, and holding what an open disk says against what it ought to hold."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from imgtool.chain import Opener, OpenPolicy, Reference, Source, Trust, open_image
from imgtool.device import BlockDevice
from imgtool.extent import Extent, Kind, coalesce
from imgtool.secrets import Secret, Secrets

CONFINED = OpenPolicy(Trust.CONFINED)
ANY = OpenPolicy(Trust.ANY)
NONE = OpenPolicy(Trust.NONE)


def open_disk(
    source: Source,
    format: str | None = None,
    *,
    policy: OpenPolicy = CONFINED,
    options: Mapping[str, object] | None = None,
    children: Mapping[str, Reference | None] | None = None,
    writable: bool = False,
    follow: bool = True,
    share: bool = False,
    password: str | None = None,
) -> BlockDevice:
    """Open an image with its chain, under a policy that the environment has no say in."""
    secrets = Secrets(password=None if password is None else Secret(password))
    opener = Opener(policy=policy, writable=writable, follow=follow, share=share, secrets=secrets)
    return open_image(Reference(source, format, options or {}, children or {}), opener)


def edges(device: BlockDevice) -> list[int]:
    """Offsets at which something changes: where extents meet, and both ends of the disk."""
    found = {0, device.size}
    for extent in device.extents():
        found |= {extent.offset, extent.end}
    return sorted(found)


def check_reads(device: BlockDevice, content: bytes, *, seed: int = 0, count: int = 64) -> None:
    """Read ``device`` whole, about every edge and at random, and compare with ``content``."""
    assert device.size == len(content)
    assert device.read_at(0, device.size) == content
    for offset, length in ranges(edges(device), device.size, seed=seed, count=count):
        check_read(device, content, offset, length)


def check_read(device: BlockDevice, content: bytes, offset: int, length: int) -> None:
    """Read one range and compare."""
    found = device.read_at(offset, length)
    assert len(found) == length
    if found != content[offset : offset + length]:
        wrong = next(i for i in range(length) if found[i] != content[offset + i])
        raise AssertionError(
            f"reading {length} bytes at {offset}: byte {offset + wrong} is {found[wrong]:#x}, "
            f"not {content[offset + wrong]:#x}"
        )


def ranges(edges: list[int], size: int, *, seed: int = 0, count: int = 64) -> list[tuple[int, int]]:
    """Seeded ranges inside a disk: unaligned, of all lengths, out of order, drawn to ``edges``."""
    chance = random.Random(seed)
    found: list[tuple[int, int]] = []
    for _ in range(count):
        ends = []
        for _ in range(2):
            near = chance.choice(edges) if chance.random() < 0.7 else chance.randrange(size + 1)
            ends.append(min(size, max(0, near + chance.choice((0, 0, 1, -1, 511, -512, 4097)))))
        start, end = sorted(ends)
        if chance.random() < 0.5:
            end = min(end, start + chance.choice((1, 512, 4096, 70_000)))
        found.append((start, end - start))
    return found


def check_threads(
    device: BlockDevice, content: bytes, *, threads: int = 8, count: int = 25
) -> None:
    """Read from many threads at once, in different orders, and compare everything."""
    found = edges(device)

    def work(seed: int) -> None:
        for offset, length in ranges(found, device.size, seed=seed, count=count):
            check_read(device, content, offset, length)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, seed) for seed in range(threads)]:
            done.result()


def without_places(extents: Iterable[Extent]) -> list[Extent]:
    """What extents say but for where bytes lie, neighbours joined."""
    return list(coalesce(extent._replace(storage=None, host_offset=None) for extent in extents))


def check_extents(
    device: BlockDevice,
    content: bytes,
    offset: int = 0,
    length: int | None = None,
    *,
    encrypted: bool = False,
) -> None:
    """Extents must cover the range without gaps, be coalesced, and say nothing untrue.

    Of ``encrypted`` disks they must not say where anything lies: it does not lie there as it is.
    """
    if length is None:
        length = device.size - offset
    found = list(device.extents(offset, length))
    position = offset
    for extent in found:
        assert extent.length > 0
        assert extent.offset == position
        position = extent.end
    assert position == offset + length
    for before, after in pairwise(found):
        assert not before.joins(after), (before, after)
    assert without_places(device.kinds(offset, length)) == without_places(found)
    for extent in found:
        inside = content[extent.offset : extent.end]
        if extent.reads_zero:
            assert not any(inside), extent
        if extent.kind is Kind.COMPRESSED:
            assert extent.host_offset is None, extent
            assert extent.file is None
        if encrypted and not extent.depth:
            assert (extent.storage, extent.host_offset) == (None, None), extent
        elif extent.kind is Kind.DATA:
            assert extent.storage is not None
            assert extent.host_offset is not None
        if extent.host_offset is not None and extent.kind is Kind.DATA:
            assert extent.storage is not None
            assert extent.file == extent.storage.name
            assert extent.storage.read_at(extent.host_offset, extent.length) == inside, extent
        assert extent.depth >= 0
