"""Refcounts under repair: corrected where they lie, or built anew.

Blocks are corrected in place if every block that is needed is there, alone in its cluster and named
by a sound table. Otherwise all of it, table and blocks, is written behind the end of the file from
what was counted, and one header write switches: what there was before is free from then on.

Source: the specification's section "Host cluster management".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from imgtool.errors import ImageError
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import State
from imgtool.formats.qcow2.geometry import MAX_REFCOUNT_TABLE_BYTES
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.refcounts import pack_block
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.repair.header import switch_header
from imgtool.formats.qcow2.repair.tables import table_bytes
from imgtool.units import div_round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts = NDArray[np.unsignedinteger[Any]]


def usable(state: State, refcounts: RefcountCheck) -> bool:
    """Whether the refcount structures can be corrected where they lie. They have been counted."""
    last = refcounts.clusters()
    first = state.header.refcount_table_offset >> state.geometry.cluster_bits
    if first + state.header.refcount_table_clusters > last or table_shared(state):
        return False
    return blocks_alone(state, refcounts) and all(
        refcounts.block_offset(number) or not _used(state, refcounts, number, last)
        for number in refcounts.numbers(last)
    )


def table_shared(state: State) -> bool:
    """Whether the refcount table, which has been counted, lies upon something else."""
    header = state.header
    first = header.refcount_table_offset >> state.geometry.cluster_bits
    return bool((state.tally.window(first, header.refcount_table_clusters) > 1).any())


def blocks_alone(state: State, refcounts: RefcountCheck) -> bool:
    """Whether each block lies in a cluster of its own, so that it can be written to."""
    geometry, table = state.geometry, refcounts.table
    named = table[table != 0]
    if bool(((named & np.uint64(geometry.cluster_size - 1)) != 0).any()):
        return False
    clusters = named >> np.uint64(geometry.cluster_bits)
    if bool((clusters >= np.uint64(refcounts.clusters())).any()):
        return False
    return bool((state.tally.of(clusters.astype(np.int64)) == 1).all())


def _used(state: State, refcounts: RefcountCheck, number: int, last: int) -> bool:
    first = number * refcounts.per_block
    return bool(state.tally.window(first, min(refcounts.per_block, last - first)).any())


def uncounted(state: State, refcounts: RefcountCheck) -> bool:
    """Whether a cluster in use counts as free, so that something may have been put upon it."""
    last = refcounts.clusters()
    for number in refcounts.numbers(last):
        first = number * refcounts.per_block
        count = min(refcounts.per_block, last - first)
        counted = state.tally.window(first, count)
        found = refcounts.read(refcounts.block_offset(number))[:count]
        if bool(((found == 0) & (counted != 0)).any()):
            return True
    return False


def correct(state: State, refcounts: RefcountCheck, *, lower_only: bool) -> None:
    """Write what was counted into the blocks; with ``lower_only`` no refcount is raised."""
    geometry, most = state.geometry, np.uint64(refcounts.most)
    last = refcounts.clusters()
    for number in refcounts.numbers(last):
        offset = refcounts.block_offset(number)
        if not offset:
            continue
        first = number * refcounts.per_block
        count = min(refcounts.per_block, last - first)
        block = refcounts.read(offset)
        wanted = np.minimum(state.tally.window(first, count).astype(np.uint64), most)
        wanted = wanted.astype(block.dtype)
        if lower_only:
            wanted = np.minimum(wanted, block[:count])
        if not np.array_equal(wanted, block[:count]):
            block = block.copy()
            block[:count] = wanted
            state.storage.write_at(offset, pack_block(block, geometry.refcount_order))
    state.storage.flush()


def memory_to_rebuild(state: State) -> int:
    """About how many bytes :func:`rebuild` takes: a table, as numbers and as it is written."""
    geometry = state.geometry
    entries = div_round_up(state.tally.clusters, geometry.refcount_block_entries) + 1
    table = geometry.clusters(8 * entries) << geometry.cluster_bits
    return 3 * min(table, MAX_REFCOUNT_TABLE_BYTES)


def rebuild(state: State) -> Header:
    """Write refcount structures anew, and return the header that names them.

    Everything but the old structures has been counted, and all that refers to anything past the end
    of the file has been mended.
    """
    geometry, tally, storage = state.geometry, state.tally, state.storage
    bits, per_block = geometry.cluster_bits, geometry.refcount_block_entries
    fresh = Fresh(state)
    first = fresh.next
    touched = tally.touched(per_block)
    table_clusters, numbers = 1, touched
    while True:
        end = first + table_clusters + len(numbers)
        own = np.arange(first // per_block, div_round_up(end, per_block), dtype=np.int64)
        grown = np.union1d(touched, own)
        needed = geometry.clusters((int(grown[-1]) + 1) * 8)
        if len(grown) == len(numbers) and needed <= table_clusters:
            break
        numbers, table_clusters = grown, max(needed, table_clusters)
    if table_clusters << bits > MAX_REFCOUNT_TABLE_BYTES:
        raise ImageError("The file is too long for refcounts of all its clusters")
    fresh.take(end - first)

    table = np.zeros((table_clusters << bits) // 8, np.uint64)
    table[numbers] = (
        np.arange(len(numbers), dtype=np.uint64) + np.uint64(first + table_clusters)
    ) << np.uint64(bits)
    most = np.uint64((1 << geometry.refcount_bits) - 1)
    for number, place in zip(numbers.tolist(), table[numbers].tolist(), strict=True):
        begin = number * per_block
        counted = tally.window(begin, max(0, min(per_block, tally.clusters - begin)))
        block = np.zeros(per_block, np.uint64)
        block[: len(counted)] = np.minimum(counted.astype(np.uint64), most)
        block[max(0, first - begin) : max(0, end - begin)] = 1
        storage.write_at(place, pack_block(block, geometry.refcount_order))
    storage.write_at(first << bits, table_bytes(table))
    return switch_header(
        storage,
        state.header._replace(
            refcount_table_offset=first << bits,
            refcount_table_clusters=table_clusters,
        ),
    )
