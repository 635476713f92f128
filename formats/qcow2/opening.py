"""Opening qcow2 images: the files that belong to one, and what must not be written to."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imgtool.device import BlockDevice
from imgtool.errors import CorruptImage, ReadOnly
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.schema import Autoclear, Crypt
from imgtool.formats.qcow2.snapshots import Snapshot, find_snapshot, read_snapshots
from imgtool.formats.qcow2.tables import read_l1
from imgtool.storage.base import Storage
from imgtool.units import MAX_SIZE

if TYPE_CHECKING:
    from imgtool.chain import Opener
    from imgtool.crypto.sectors import SectorCipher
    from imgtool.formats.qcow2.writable import WritableQcow2


def open_device(storage: Storage, opener: Opener, options: Mapping[str, Any]) -> Qcow2Device:
    """Open a qcow2 image with the files that it names; ``snapshot`` opens the disk as it was then.

    An encrypted one is unlocked with ``encrypt.key_secret``, unless only metadata is wanted. Raises
    :class:`ReadOnly` for a writable open of what must not be written.
    """
    header = read_header(storage)
    kept = sum(len(extension.data) for extension in header.extensions)
    storage.account.charge(kept, "The header's extensions")
    snapshot = None
    if any(name.startswith("snapshot") for name in options):
        snapshot = find_snapshot(read_snapshots(storage, header), options)
        if snapshot is not None and (snapshot.disk_size or 0) > MAX_SIZE:
            raise CorruptImage(f"The disk size {snapshot.disk_size} of the snapshot is too large")
    if opener.writable:
        header = _prepare_writing(storage, header, snapshot)
    l1_offset, l1_size = header.l1_table_offset, header.l1_size
    if snapshot is not None:
        l1_offset, l1_size = snapshot.l1_table_offset, snapshot.l1_size
    l1 = read_l1(storage, l1_offset, l1_size, header.geometry)
    storage.account.charge(len(l1) * 8, "The L1 table")
    cipher = _unlock(storage, header, opener, options)

    data: Storage | None = storage
    if header.has_data_file:
        data = opener.data_file(storage, header.data_file)
    try:
        backing = opener.backing(storage, header.backing_file, header.backing_format)
    except BaseException:
        if data is not None and data is not storage:
            data.close()
        raise
    try:
        if opener.writable:
            assert data is not None
            return _writable(storage, header, l1, data, cipher, backing)
        if cipher is not None and data is not None:
            from imgtool.formats.qcow2.encryption import decrypted

            return decrypted(
                storage, header, l1, cipher, data=data, backing=backing, snapshot=snapshot
            )
        return Qcow2Device(
            storage,
            header,
            l1,
            data=data,
            backing=backing,
            snapshot=snapshot,
            follow=opener.follow,
        )
    except BaseException:
        for opened in (backing, data):
            if opened is not None and opened is not storage:
                opened.close()
        raise


def _prepare_writing(storage: Storage, header: Header, snapshot: Snapshot | None) -> Header:
    """Refuse what must not be written to, and repair what was not closed properly."""
    if snapshot is not None:
        raise ReadOnly("A snapshot cannot be written to", filename=storage.name)
    if header.corrupt:
        raise ReadOnly(
            "The image is marked corrupt: it can only be read, or repaired with "
            f"imgtool check -r all '{storage.name}'",
            filename=storage.name,
        )
    if header.crypt_method is Crypt.AES:
        raise ReadOnly(
            "The image has the old AES encryption, which is only read: convert it to one with "
            "encrypt.format=luks",
            filename=storage.name,
        )
    if header.dirty:
        from imgtool.formats.qcow2.repair import repair_dirty

        repair_dirty(storage)
        header = read_header(storage)
    return header


def _unlock(
    storage: Storage, header: Header, opener: Opener, options: Mapping[str, Any]
) -> SectorCipher | None:
    encrypted = header.crypt_method is not Crypt.NONE
    if not encrypted and "encrypt.format" not in options:
        return None
    from imgtool.formats.qcow2.encryption import check_format, unlock

    check_format(header, options)
    return unlock(storage, header, options) if encrypted and opener.unlocks else None


def _writable(
    storage: Storage,
    header: Header,
    l1: array[int],
    data: Storage,
    cipher: SectorCipher | None,
    backing: BlockDevice | None,
) -> WritableQcow2:
    # Readers do without these modules, and start sooner.
    from imgtool.formats.qcow2.allocator import Allocator
    from imgtool.formats.qcow2.bitmaps import read_bitmaps
    from imgtool.formats.qcow2.collisions import collision
    from imgtool.formats.qcow2.guarding import find_metadata
    from imgtool.formats.qcow2.header_switch import write_header
    from imgtool.formats.qcow2.refcounts import read_refcount_table
    from imgtool.formats.qcow2.writable import WritableQcow2

    known = header.autoclear & (Autoclear.BITMAPS | Autoclear.RAW_EXTERNAL_DATA)
    if known != header.autoclear:
        # What the unknown bits vouch for will not be kept up to date.
        header = header._replace(autoclear=known)
        write_header(storage, header)
    table = read_refcount_table(storage, header)
    storage.account.charge(len(table) * 8, "The refcount table")
    allocator = Allocator(storage, header.geometry, table, header.refcount_table_offset)
    snapshots, bitmaps = read_snapshots(storage, header), read_bitmaps(storage, header)
    met = collision(storage.size(), header, l1, table, snapshots, bitmaps)
    if met is not None:
        raise CorruptImage(
            "It can only be read, or repaired with imgtool check -r all: metadata lies upon other "
            "metadata, or past the end of the file",
            met,
            filename=storage.name,
        )
    allocator.guard = find_metadata(storage, header, l1, table, snapshots, bitmaps)
    contents = data
    if cipher is not None:
        from imgtool.storage.encrypted import EncryptedStorage

        contents = EncryptedStorage(data, cipher)
    return WritableQcow2(
        storage,
        header,
        l1,
        allocator,
        data=data,
        contents=contents,
        backing=backing,
        fresh=False,
    )
