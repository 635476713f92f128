"""Makes qcow2 images byte by byte, among them what QEMU reads but never writes.

Written from the format's specification and independent of imgtool: nothing of it is imported here.
A builder keeps, beside the image, what a guest must see.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

V2 = struct.Struct(">4sIQIIQIIQQIIQ")
V2_NAMES = (
    "magic", "version", "backing_file_offset", "backing_file_size", "cluster_bits", "size",
    "crypt_method", "l1_size", "l1_table_offset", "refcount_table_offset",
    "refcount_table_clusters", "nb_snapshots", "snapshots_offset",
)  # fmt: skip
V3 = struct.Struct(">QQQII")
V3_NAMES = (
    "incompatible_features", "compatible_features", "autoclear_features", "refcount_order",
    "header_length",
)  # fmt: skip

DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
LAZY_REFCOUNTS = 1
BITMAPS, RAW_EXTERNAL = 1, 2

BACKING_FORMAT = 0xE2792ACA
FEATURE_NAMES = 0x6803F857
BITMAPS_EXTENSION = 0x23852875
CRYPTO = 0x0537BE77
DATA_FILE = 0x44415441

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1


def deflate(data: bytes) -> bytes:
    """Raw deflate with the 4 KiB window that QEMU inflates with."""
    engine = zlib.compressobj(6, zlib.DEFLATED, -12)
    return engine.compress(data) + engine.flush()


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data)


@dataclass
class _Snapshot:
    id: bytes
    name: bytes
    extra: bytes
    mapping: dict[int, tuple[int, int]]
    content: dict[int, bytes | None]
    size: int
    vm_state_size: int
    l1_extra: int


@dataclass
class ImageBuilder:
    """An image in the making, of ``size`` bytes of disk; all other sizes are bytes as well.

    ``header`` overrides header fields by the specification's names, at the very end; ``extensions``
    are ``(type, data)``. ``l1_extra`` is how many L1 entries there are beyond need.
    """

    size: int
    version: int = 3
    cluster_bits: int = 16
    refcount_order: int = 4
    extended_l2: bool = False
    compression: str = "zlib"
    header_length: int | None = None
    backing: bytes = b""
    backing_format: bytes | None = None
    external: bool = False
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    l1_extra: int = 0
    seed: int = 0
    header: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cluster_size = 1 << self.cluster_bits
        #: Where everything lies: ``name -> (offset, length)``.
        self.places: dict[str, tuple[int, int]] = {}
        #: The external data file, if there is one.
        self.data_file = bytearray()
        self._chance = random.Random(self.seed)
        self._file = bytearray(self.cluster_size)
        self._packed = 0
        self._references: dict[int, int] = {0: 1}
        self._mapping: dict[int, tuple[int, int]] = {}
        #: What a guest sees, by unit; None where the backing image shines through.
        self._content: dict[int, bytes | None] = {}
        self._snapshots: list[_Snapshot] = []

    @property
    def unit(self) -> int:
        """What is allocated at a time: a cluster, or a 32nd of one with extended L2 entries."""
        return self.cluster_size // 32 if self.extended_l2 else self.cluster_size

    @property
    def l2_entries(self) -> int:
        """How many clusters one L2 table maps."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    @property
    def clusters(self) -> int:
        """How many clusters the disk has, the last perhaps in part."""
        return self._clusters(self.size)

    def _clusters(self, size: int) -> int:
        return -(-size // self.cluster_size)

    # Contents

    def fresh(self, length: int | None = None) -> bytes:
        """Bytes that differ everywhere and compress somewhat."""
        length = self.cluster_size if length is None else length
        block = self._chance.randbytes(-(-length // 2))
        return (block + bytes(256 - byte - 1 for byte in block[: length // 8]) + block)[
            :length
        ].ljust(length, b"\x5a")

    def data(self, index: int, content: bytes | None = None, *, at: int | None = None) -> int:
        """Put a cluster of data at guest cluster ``index``; return its host offset.

        ``at`` is a host offset to share; in an external data file the guest offset is the default.
        """
        content = self.fresh() if content is None else content
        host = self._store(index, content, at)
        self._mapping[index] = (host | (COPIED if self.external else 0), 0xFFFFFFFF)
        self._see(index, content)
        return host

    def zero(self, index: int, *, host: bool = False) -> None:
        """Let a guest cluster read as zeros; with ``host``, keep a cluster (of junk) for it."""
        where = self._store(index, self.fresh(), None) if host else 0
        copied = COPIED if host and self.external else 0
        if self.extended_l2:
            self._mapping[index] = (where | copied, 0xFFFFFFFF << 32)
        else:
            assert self.version >= 3
            self._mapping[index] = (where | copied | ZERO, 0)
        self._see(index, bytes(self.cluster_size))

    def subclusters(self, index: int, kinds: str, *, host: bool = True) -> None:
        """Map the 32 subclusters of a cluster: ``D`` data, ``Z`` zeros, ``.`` not allocated."""
        assert self.extended_l2
        assert len(kinds) == 32
        content = self.fresh()
        where = self._store(index, content, None) if host else 0
        bitmap = 0
        for number, kind in enumerate(kinds):
            part = content[number * self.unit : (number + 1) * self.unit]
            if kind == "D":
                bitmap |= 1 << number
            elif kind == "Z":
                bitmap |= 1 << (32 + number)
                part = bytes(self.unit)
            self._content[index * 32 + number] = None if kind == "." else part
        self._mapping[index] = (where | (COPIED if host and self.external else 0), bitmap)

    def compressed(
        self,
        index: int,
        content: bytes | None = None,
        *,
        payload: bytes | None = None,
        skip: int = 0,
        more_sectors: int = 0,
    ) -> int:
        """Put a compressed cluster right behind the last, ``skip`` bytes further on.

        ``payload`` replaces the compressed bytes; ``more_sectors`` claims more than they take.
        Returns the host offset.
        """
        content = self.fresh() if content is None else content
        if payload is None:
            payload = (zstd if self.compression == "zstd" else deflate)(content)
        # Packed clusters go on into the next host cluster, unless that holds something else.
        start = self._packed + skip
        room = -(-self._packed // self.cluster_size) * self.cluster_size
        if start + len(payload) > room and room != len(self._file):
            start = len(self._file) + skip
        self._grow(-(-(start + len(payload)) // self.cluster_size) * self.cluster_size)
        self._file[start : start + len(payload)] = payload
        self._packed = start + len(payload)
        last = start + len(payload) - 1
        sectors = (last >> 9) - (start >> 9) + more_sectors
        shift = 62 - (self.cluster_bits - 8)
        assert sectors < 1 << (self.cluster_bits - 8), "it does not fit a descriptor"
        self._mapping[index] = (COMPRESSED | sectors << shift | start, 0)
        self._see(index, content)
        return start

    def entry(self, index: int, value: int, bitmap: int = 0) -> None:
        """Write an L2 entry as it is. What a guest sees there is not kept."""
        self._mapping[index] = (value, bitmap)

    def mapping_of(self, index: int) -> tuple[int, int]:
        """The L2 entry of a guest cluster so far, and its subcluster bitmap."""
        return self._mapping[index]

    def unmap(self, index: int) -> None:
        """Forget a guest cluster; its host cluster is counted all the same if a snapshot has it."""
        self._mapping.pop(index, None)
        self._see(index, None)

    def allocate(self, length: int, name: str = "") -> int:
        """Take whole host clusters for ``length`` bytes; return the offset."""
        offset = len(self._file)
        self._grow(offset + -(-length // self.cluster_size) * self.cluster_size)
        if name:
            self.places[name] = (offset, length)
        return offset

    def place(self, content: bytes, name: str) -> int:
        """Put metadata into clusters of its own; return the offset."""
        offset = self.allocate(len(content), name)
        self._file[offset : offset + len(content)] = content
        self._refer(offset, len(content))
        return offset

    def snapshot(
        self,
        id: bytes,
        name: bytes,
        *,
        extra: int | bytes = 24,
        vm_state_size: int = 0,
        l1_extra: int = 0,
    ) -> None:
        """Keep the disk as it is now. ``extra`` is the extra data, or how much of it there is."""
        if isinstance(extra, int):
            full = struct.pack(">QQQ", vm_state_size, self.size, (1 << 64) - 1)
            extra = full.ljust(extra, b"\xee")[:extra]
        self._snapshots.append(
            _Snapshot(
                id,
                name,
                extra,
                dict(self._mapping),
                dict(self._content),
                self.size,
                vm_state_size,
                l1_extra,
            )
        )

    def expected(self, backing: bytes = b"") -> bytes:
        """What a guest must see, with ``backing`` below."""
        return self._render(self._content, self.size, backing)

    def expected_snapshot(self, number: int, backing: bytes = b"") -> bytes:
        """What a guest must see of a snapshot, counted from 0."""
        snapshot = self._snapshots[number]
        return self._render(snapshot.content, snapshot.size, backing)

    def _render(self, content: dict[int, bytes | None], size: int, backing: bytes) -> bytes:
        disk = bytearray(backing[:size].ljust(size, b"\0"))
        for unit, data in content.items():
            if data is not None:
                disk[unit * self.unit : (unit + 1) * self.unit] = data
        return bytes(disk[:size])

    # Assembly

    def build(self) -> bytes:
        """Return the image. Refcounts and COPIED bits are right unless entries are not."""
        snapshots = [
            self._place_mapping(
                snapshot.mapping, self._clusters(snapshot.size), snapshot.l1_extra, f"{number}:"
            )
            for number, snapshot in enumerate(self._snapshots)
        ]
        shared = self._count_data()
        l1_offset, l1_size = self._place_mapping(
            self._mapping, self.clusters, self.l1_extra, "", shared
        )
        snapshots_offset = self._place_snapshots(snapshots)
        table_offset, table_clusters = self._place_refcounts()
        self._write_header(
            l1_size=l1_size,
            l1_table_offset=l1_offset,
            refcount_table_offset=table_offset,
            refcount_table_clusters=table_clusters,
            nb_snapshots=len(self._snapshots),
            snapshots_offset=snapshots_offset,
        )
        return bytes(self._file)

    def refcounts(self) -> list[int]:
        """The refcount of every host cluster, as far as any has one; once it is built."""
        return [self._references.get(cluster, 0) for cluster in range(max(self._references) + 1)]

    def regions(self) -> list[tuple[int, int]]:
        """Where the metadata lies, for damage."""
        return [place for place in self.places.values() if place[1]]

    def _store(self, index: int, content: bytes, at: int | None) -> int:
        assert len(content) == self.cluster_size
        if self.external:
            host = index * self.cluster_size if at is None else at
            self.data_file.extend(bytes(max(0, host + len(content) - len(self.data_file))))
            self.data_file[host : host + len(content)] = content
            return host
        if at is None:
            at = self.allocate(self.cluster_size)
        self._file[at : at + len(content)] = content
        return at

    def _see(self, index: int, content: bytes | None) -> None:
        per_cluster = self.cluster_size // self.unit
        for number in range(per_cluster):
            part = (
                None if content is None else content[number * self.unit : (number + 1) * self.unit]
            )
            self._content[index * per_cluster + number] = part

    def _grow(self, length: int) -> None:
        self._file.extend(bytes(max(0, length - len(self._file))))

    def _refer(self, offset: int, length: int) -> None:
        last = min(offset + length, len(self._file)) - 1
        for cluster in range(offset >> self.cluster_bits, (last >> self.cluster_bits) + 1):
            self._references[cluster] = self._references.get(cluster, 0) + 1

    def _count_data(self) -> dict[int, int]:
        for mapping in (self._mapping, *(snapshot.mapping for snapshot in self._snapshots)):
            for value, _ in mapping.values():
                if value & COMPRESSED:
                    shift = 62 - (self.cluster_bits - 8)
                    start = value & ((1 << shift) - 1)
                    sectors = (value & (COMPRESSED - 1)) >> shift
                    first = start & ~511
                    self._refer(first, (sectors + 1) * 512)
                elif value & ~COPIED & ~511 and not self.external:
                    self._refer(value & 0x00FFFFFFFFFFFE00, 1)
        return self._references

    def _place_mapping(
        self,
        mapping: Mapping[int, tuple[int, int]],
        clusters: int,
        l1_extra: int,
        prefix: str,
        references: Mapping[int, int] | None = None,
    ) -> tuple[int, int]:
        tables: dict[int, bytearray] = {}
        for index, (value, bitmap) in sorted(mapping.items()):
            host = value & 0x00FFFFFFFFFFFE00
            alone = references is not None and references.get(host >> self.cluster_bits) == 1
            if host and not value & COMPRESSED and not self.external and alone:
                value |= COPIED
            table = tables.setdefault(index // self.l2_entries, bytearray(self.cluster_size))
            if self.extended_l2:
                struct.pack_into(">QQ", table, index % self.l2_entries * 16, value, bitmap)
            else:
                struct.pack_into(">Q", table, index % self.l2_entries * 8, value)
        count = -(-clusters // self.l2_entries) + l1_extra
        l1 = [0] * count
        for number, table in tables.items():
            offset = self.place(bytes(table), f"{prefix}l2-{number}")
            l1[number] = offset | (COPIED if references is not None else 0)
        if not l1:
            return 0, 0
        return self.place(struct.pack(f">{count}Q", *l1), f"{prefix}l1"), count

    def _place_snapshots(self, tables: list[tuple[int, int]]) -> int:
        if not tables:
            return 0
        whole = b""
        for snapshot, (l1_offset, l1_size) in zip(self._snapshots, tables, strict=True):
            whole = whole.ljust(-(-len(whole) // 8) * 8, b"\0")
            whole += struct.pack(
                ">QIHHIIQII", l1_offset, l1_size, len(snapshot.id), len(snapshot.name),
                1_600_000_000, 5, 7, snapshot.vm_state_size & 0xFFFFFFFF, len(snapshot.extra),
            )  # fmt: skip
            whole += snapshot.extra + snapshot.id + snapshot.name
        whole = whole.ljust(-(-len(whole) // 8) * 8, b"\0")
        return self.place(whole, "snapshots")

    def _place_refcounts(self) -> tuple[int, int]:
        bits = 1 << self.refcount_order
        per_block = self.cluster_size * 8 // bits
        used = len(self._file) // self.cluster_size
        blocks = table_clusters = 0
        while True:
            total = used + blocks + table_clusters
            need = -(-total // per_block)
            table_need = -(-need * 8 // self.cluster_size)
            if (need, table_need) == (blocks, table_clusters):
                break
            blocks, table_clusters = need, table_need
        table = self.allocate(table_clusters * self.cluster_size, "refcount-table")
        self._refer(table, table_clusters * self.cluster_size)
        offsets = [self.allocate(self.cluster_size, f"refcount-block-{i}") for i in range(blocks)]
        for offset in offsets:
            self._refer(offset, 1)
        struct.pack_into(f">{blocks}Q", self._file, table, *offsets)
        for cluster, count in self._references.items():
            assert count < 1 << bits, "the refcount does not fit"
            offset = offsets[cluster // per_block]
            number = cluster % per_block
            if bits >= 8:
                width = bits // 8
                place = offset + number * width
                self._file[place : place + width] = count.to_bytes(width, "big")
            else:
                self._file[offset + number * bits // 8] |= count << number * bits % 8
        return table, table_clusters

    def _write_header(self, **fields: int) -> None:
        incompatible = (
            (EXTERNAL_DATA if self.external else 0)
            | (COMPRESSION if self.compression == "zstd" else 0)
            | (EXTENDED_L2 if self.extended_l2 else 0)
        )
        length = self.header_length
        if length is None:
            length = 72 if self.version == 2 else 112 if incompatible & COMPRESSION else 104
        extensions = list(self.extensions)
        if self.backing_format is not None:
            extensions.insert(0, (BACKING_FORMAT, self.backing_format))
        body = b""
        for kind, data in extensions:
            body += struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")
        body += bytes(8)
        name_offset = length + len(body) if self.backing else 0
        values: dict[str, int | bytes] = {
            "magic": b"QFI\xfb",
            "version": self.version,
            "backing_file_offset": name_offset,
            "backing_file_size": len(self.backing),
            "cluster_bits": self.cluster_bits,
            "size": self.size,
            "crypt_method": 0,
            **fields,
            "incompatible_features": incompatible,
            "compatible_features": 0,
            "autoclear_features": 0,
            "refcount_order": self.refcount_order,
            "header_length": length,
            **self.header,
        }
        head = V2.pack(*(values[name] for name in V2_NAMES))
        if self.version >= 3:
            head += V3.pack(*(values[name] for name in V3_NAMES))
        head = head.ljust(length, b"\0")
        if length > 104:
            head = head[:104] + bytes([self.compression == "zstd"]) + head[105:]
        whole = head + body + self.backing
        assert len(whole) <= self.cluster_size
        self._file[: len(whole)] = whole
        self.places["header"] = (0, len(whole))
