"""The first bytes of the disk that a guest sees."""

from __future__ import annotations

from imgtool.codecs import inflate, zstd_decompress
from imgtool.formats.qcow2.header import Header
from imgtool.formats.qcow2.schema import (
    COMPRESSED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    ZERO_FLAG,
    Compression,
    Crypt,
)
from imgtool.inspection import Notes, Steps, read, read_exact
from imgtool.inspection.notes import GUEST_HEAD
from imgtool.inspection.steps import MAX_REGION


def guest_head(notes: Notes, header: Header) -> Steps[None]:
    """Follow the mapping of the first guest cluster, if it is in this file and not encrypted."""
    if header.crypt_method is not Crypt.NONE or header.has_data_file or not header.size:
        return
    geometry = header.geometry
    data = yield from read_exact(header.l1_table_offset, 8, "The active L1 table")
    l2_table = int.from_bytes(data, "big") & L1_OFFSET_MASK
    if not l2_table:
        return
    what = "The first L2 table"
    data = yield from read_exact(l2_table, geometry.l2_entry_size, what)
    entry = int.from_bytes(data[:8], "big")
    what = "The first cluster of the disk"
    if entry & COMPRESSED:
        offset, length = geometry.compressed_range(entry)
        # What is longer than a cluster is not worth compressing.
        data = yield from read(offset, min(length, MAX_REGION), what)
        unpack = zstd_decompress if header.compression is Compression.ZSTD else inflate
        notes.guest_head(None, unpack(data, geometry.cluster_size))
        return
    allocated = data[-1] & 1 if geometry.extended_l2 else not entry & ZERO_FLAG
    offset = entry & L2_OFFSET_MASK
    if offset and allocated:
        data = yield from read(offset, min(GUEST_HEAD, geometry.subcluster_size), what)
        notes.guest_head(offset, data)
