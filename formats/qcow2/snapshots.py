"""The snapshot table: what internal snapshots an image has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from imgtool.errors import BadOption, CorruptImage
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.header import Header
from imgtool.schema.fields import build, parse
from imgtool.storage.base import Storage
from imgtool.units import align_up

MAX_TABLE_BYTES = 64 << 20
MAX_EXTRA_DATA = 1024
#: Ids and names in all, 256 bytes for each snapshot. QEMU has no such limit and writes no names as
#: long as that; as text they can take four times their bytes.
MAX_NAME_BYTES = 65536 * 256
#: What an entry takes in memory besides its extra data and its names; bytes.
_ENTRY_BYTES = 1024

_HEAD: int = schema.SNAPSHOT_HEAD.sizeof()


class Snapshot(NamedTuple):
    """One entry of the snapshot table (section "Snapshots").

    ``disk_size`` is the virtual size (bytes) when it was taken, None where the entry is too old
    to say; ``vm_clock_nsec`` counts guest nanoseconds, ``icount`` is None where not recorded.
    """

    raw_id: bytes
    raw_name: bytes
    l1_table_offset: int
    l1_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None
    extra_data: bytes

    @property
    def id(self) -> str:
        return self.raw_id.decode("utf-8", "surrogateescape")

    @property
    def name(self) -> str:
        return self.raw_name.decode("utf-8", "surrogateescape")

    @property
    def length(self) -> int:
        """Bytes of the entry in the snapshot table it was read from, without padding."""
        return _HEAD + len(self.extra_data) + len(self.raw_id) + len(self.raw_name)

    @property
    def size_on_disk(self) -> int:
        """The same with the padding that the next entry begins behind."""
        return align_up(self.length, 8)


def read_snapshots(storage: Storage, header: Header) -> list[Snapshot]:
    """Read the snapshot table, in its order. Raises :class:`CorruptImage` over the limits."""
    try:
        return list(entries(storage, header))
    except CorruptImage as error:
        raise error.in_file(storage.name) from error.__cause__


def entries(
    storage: Storage, header: Header, *, most_extra: int = MAX_EXTRA_DATA, whole: bool = True
) -> Iterator[Snapshot]:
    """Read the entries of the snapshot table; ``most_extra`` bounds the extra data of each.

    They must be there to their ends unless ``whole`` is false.
    """
    start = offset = header.snapshots_offset
    names = memory = 0
    for number in range(header.snapshot_count):
        what = f"Entry {number} of the snapshot table"
        data = storage.read_exact(offset, _HEAD, what)
        head = parse(schema.SNAPSHOT_HEAD, data, what, offset)
        if head.extra_data_size > most_extra:
            raise CorruptImage(f"{what} has too much extra data", offset)
        names += head.id_str_size + head.name_size
        if names > MAX_NAME_BYTES:
            raise CorruptImage("The snapshot table has too long names", start)
        length = head.extra_data_size + head.id_str_size + head.name_size
        memory += _ENTRY_BYTES + length
        storage.account.check(memory, "The snapshot table")
        if whole:
            tail = bytes(storage.read_exact(offset + _HEAD, length, what))
        else:
            tail = storage.read_at(offset + _HEAD, length)
        extra = tail[: head.extra_data_size]
        named = head.extra_data_size + head.id_str_size
        values = {
            name: field.parse(extra[8 * index : 8 * index + 8])
            for index, (name, field) in enumerate(schema.SNAPSHOT_EXTRA)
            if len(extra) >= 8 * index + 8
        }
        icount = values.get("icount")
        yield Snapshot(
            raw_id=tail[head.extra_data_size : named],
            raw_name=tail[named:],
            l1_table_offset=head.l1_table_offset,
            l1_size=head.l1_size,
            date_sec=head.date_sec,
            date_nsec=head.date_nsec,
            vm_clock_nsec=head.vm_clock_nsec,
            vm_state_size=values.get("vm_state_size_large", head.vm_state_size),
            disk_size=values.get("disk_size"),
            icount=None if icount is None or icount == (1 << 64) - 1 else icount,
            extra_data=extra,
        )
        offset = align_up(offset + _HEAD + length, 8)
        if offset - start > MAX_TABLE_BYTES:
            raise CorruptImage("The snapshot table is too large", start)


def memory_of(snapshots: list[Snapshot]) -> int:
    """About how many bytes of memory a list of snapshots takes."""
    return sum(
        _ENTRY_BYTES + len(one.extra_data) + len(one.raw_id) + len(one.raw_name)
        for one in snapshots
    )


def find_snapshot(snapshots: list[Snapshot], options: Mapping[str, Any]) -> Snapshot | None:
    """The snapshot that the open options ask for, None if they ask for none.

    ``snapshot`` is an id or else a name, ``snapshot.id`` and ``snapshot.name`` are one of them,
    or both. Raises :class:`BadOption` if there is no such snapshot.
    """
    wanted = options.get("snapshot")
    wanted_id, wanted_name = options.get("snapshot.id"), options.get("snapshot.name")
    if wanted is None and wanted_id is None and wanted_name is None:
        return None
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.id != wanted):
        if (
            wanted in (None, snapshot.id, snapshot.name)
            and wanted_id in (None, snapshot.id)
            and wanted_name in (None, snapshot.name)
        ):
            return snapshot
    described = " and ".join(
        f"the {what} '{value}'"
        for what, value in (("id or name", wanted), ("id", wanted_id), ("name", wanted_name))
        if value is not None
    )
    raise BadOption(f"snapshot not found: none has {described}")


def table_entry(snapshot: Snapshot, disk_size: int) -> bytes:
    """A snapshot table entry as bytes, padded; extra data that we do not know is kept.

    ``disk_size`` is what the entry says if the snapshot does not.
    """
    size = disk_size if snapshot.disk_size is None else snapshot.disk_size
    known = (
        snapshot.vm_state_size,
        size,
        (1 << 64) - 1 if snapshot.icount is None else snapshot.icount,
    )
    extra = b"".join(
        field.build(value) for (_, field), value in zip(schema.SNAPSHOT_EXTRA, known, strict=True)
    )
    extra += snapshot.extra_data[len(extra) :]
    identifier, name = snapshot.raw_id, snapshot.raw_name
    head = build(
        schema.SNAPSHOT_HEAD,
        {
            "l1_table_offset": snapshot.l1_table_offset,
            "l1_size": snapshot.l1_size,
            "id_str_size": len(identifier),
            "name_size": len(name),
            "date_sec": snapshot.date_sec,
            "date_nsec": snapshot.date_nsec,
            "vm_clock_nsec": snapshot.vm_clock_nsec,
            "vm_state_size": min(snapshot.vm_state_size, 0xFFFFFFFF),
            "extra_data_size": len(extra),
        },
    )
    entry = head + extra + identifier + name
    return entry.ljust(align_up(len(entry), 8), b"\0")
