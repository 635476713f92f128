"""Repairing qcow2 images: afterwards all is right, and whatever could be read reads the same."""

from __future__ import annotations

import errno
import functools
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.budget import Budget
from imgtool.errors import ImageError, OverBudget, ReadOnly
from imgtool.findings import CheckResult
from imgtool.formats.qcow2 import schema
from imgtool.formats.qcow2.check import check
from imgtool.formats.qcow2.repair import repair
from imgtool.storage.base import Storage
from imgtool.storage.memory import MemoryStorage
from tests.kit.corrupt import flips, overwrites, patch, put
from tests.kit.disks import NONE, open_disk
from tests.kit.effort import effort
from tests.kit.faults import FailingStorage, WrappedStorage, nth
from tests.kit.limits import measure, within_limits
from tests.kit.qcow2 import COMPRESSED, COPIED, CORRUPT, DIRTY, ImageBuilder
from tests.kit.qcow2_gallery import GALLERY
from tests.kit.views import View, assert_nothing_lost, view

Damage = Callable[[ImageBuilder, bytes], bytes]

_OFFSET = 0x00FF_FFFF_FFFF_FE00
_TABLE_OFFSET, _TABLE_CLUSTERS = 48, 56
_INCOMPATIBLE = 72


@functools.cache
def built(name: str) -> tuple[ImageBuilder, bytes]:
    builder = GALLERY[name]()
    return builder, builder.build()


def repaired(image: bytes, what: str = "all") -> tuple[bytes, CheckResult]:
    storage = MemoryStorage(image, "x.img")
    result = repair(storage, what)
    return storage.getvalue(), result


def judged(image: bytes) -> CheckResult:
    """What a check finds."""
    with open_disk(MemoryStorage(image), "qcow2", policy=NONE, follow=False) as device:
        return check(device)


def seen(image: bytes) -> View:
    return view(MemoryStorage(image))


def assert_repaired(image: bytes, after: bytes) -> None:
    """Nothing is wrong, no mark is left, nothing is lost, and nothing is left to be done."""
    found = judged(after)
    assert (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0), found.messages[:5]
    if after[7] >= 3:
        assert not struct.unpack_from(">Q", after, _INCOMPATIBLE)[0] & (DIRTY | CORRUPT)
    assert_nothing_lost(seen(image), seen(after))
    again, result = repaired(after)
    assert again == after
    assert (result.leaks_fixed, result.corruptions_fixed) == (0, 0)


# Damages, each of a built image


def words(image: bytes, place: tuple[int, int]) -> list[int]:
    offset, length = place
    return list(struct.unpack_from(f">{length // 8}Q", image, offset))


def change_l2(change: Callable[[int], int], *, every: int = 1) -> Damage:
    """Change plain entries with a host cluster, in the active tables, every so many of them."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        step = 2 if builder.extended_l2 else 1
        seen = 0
        for name, place in builder.places.items():
            if not name.startswith("l2-"):
                continue
            table = words(image, place)
            for index in range(0, len(table), step):
                if table[index] & _OFFSET and not table[index] & COMPRESSED:
                    seen += 1
                    if seen % every == 0:
                        data = struct.pack(">Q", change(table[index]))
                        image = put(image, place[0] + 8 * index, data)
        assert seen
        return image

    return damage


def change_packed(change: Callable[[int], int]) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        step = 2 if builder.extended_l2 else 1
        for name, place in builder.places.items():
            if name.startswith("l2-"):
                table = words(image, place)
                for index in range(0, len(table), step):
                    if table[index] & COMPRESSED:
                        data = struct.pack(">Q", change(table[index]) & ((1 << 64) - 1))
                        image = put(image, place[0] + 8 * index, data)
        return image

    return damage


def change_l1(change: Callable[[int], int], prefix: str = "") -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        place = builder.places.get(f"{prefix}l1")
        if place is None:
            return image
        table = words(image, place)
        return put(image, place[0], struct.pack(">Q", change(table[0])))

    return damage


def change_subclusters(change: Callable[[int], int]) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        if not builder.extended_l2:
            return image
        for name, place in builder.places.items():
            if name.startswith("l2-"):
                table = words(image, place)
                for index in range(0, len(table), 2):
                    if table[index]:
                        data = struct.pack(">Q", change(table[index + 1]))
                        image = put(image, place[0] + 8 * index + 8, data)
        return image

    return damage


def fill(name: str, byte: int) -> Damage:
    """Overwrite a structure, or the first so many bytes of it."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        offset, length = builder.places[name]
        return put(image, offset, bytes([byte]) * length)

    return damage


def header(offset: int, format: str, value: int) -> Damage:
    return lambda builder, image: put(image, offset, struct.pack(format, value))


def mark(bits: int) -> Damage:
    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        if builder.version < 3:
            return image
        found = struct.unpack_from(">Q", image, _INCOMPATIBLE)[0]
        return put(image, _INCOMPATIBLE, struct.pack(">Q", found | bits))

    return damage


def cut(part: float) -> Damage:
    return lambda builder, image: image[: int(len(image) * part)]


def past_end(clusters: int) -> Damage:
    """Point entries behind the end of the file, so many clusters from it."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        end = -(-len(image) // builder.cluster_size) + clusters
        target = end * builder.cluster_size
        return change_l2(lambda entry: entry & ~_OFFSET | target, every=3)(builder, image)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda builder, image: functools.reduce(
        lambda image, damage: damage(builder, image), damages, image
    )


def to_place(name: str) -> Damage:
    """Let an entry name the cluster of a structure."""

    def damage(builder: ImageBuilder, image: bytes) -> bytes:
        offset = builder.places[name][0]
        return change_l2(lambda entry: entry & ~_OFFSET | offset, every=4)(builder, image)

    return damage


_LOST = both(fill("refcount-block-0", 0), mark(DIRTY))

DAMAGES: dict[str, Damage] = {
    "none": lambda builder, image: image,
    "dirty": mark(DIRTY),
    "corrupt": mark(CORRUPT),
    "both-marks": mark(DIRTY | CORRUPT),
    "leaks": fill("refcount-block-0", 0xFF),
    "refcounts-junk": fill("refcount-block-0", 0x5A),
    "refcounts-lost": _LOST,
    "table-lost": fill("refcount-table", 0),
    "table-junk": fill("refcount-table", 0x5A),
    "table-none": header(_TABLE_CLUSTERS, ">I", 0),
    "table-unaligned": header(_TABLE_OFFSET, ">Q", 0x101),
    "table-far": header(_TABLE_OFFSET, ">Q", 1 << 50),
    "table-very-far": header(_TABLE_OFFSET, ">Q", 1 << 60),
    "table-too-large": header(_TABLE_CLUSTERS, ">I", 1 << 31),
    "table-at-header": header(_TABLE_OFFSET, ">Q", 0),
    "copied-flipped": change_l2(lambda entry: entry ^ COPIED),
    "copied-flipped-l1": change_l1(lambda entry: entry ^ COPIED),
    "past-end": past_end(0),
    "past-end-by-one": past_end(1),
    "past-end-far": past_end(1 << 20),
    "past-end-and-lost": both(past_end(0), _LOST),
    "unaligned": change_l2(lambda entry: entry + 512, every=3),
    "reserved": change_l2(lambda entry: entry | 1 << 57 | 1 << 60),
    "entry-to-l1": to_place("l1"),
    "entry-to-l2": to_place("l2-0"),
    "entry-to-block": to_place("refcount-block-0"),
    "entry-to-table": to_place("refcount-table"),
    "packed-copied": change_packed(lambda entry: entry | COPIED),
    "packed-past-end": change_packed(lambda entry: entry + (1 << 30)),
    "packed-longer": change_packed(lambda entry: entry | 7 << 55),
    "subclusters-all": change_subclusters(lambda bitmap: (1 << 64) - 1),
    "l1-past-end": change_l1(lambda entry: 1 << 40),
    "l1-unaligned": change_l1(lambda entry: entry | 0x200),
    "l1-reserved": change_l1(lambda entry: entry | 0x5),
    "l1-header": change_l1(lambda entry: COPIED),
    "l1-junk": change_l1(lambda entry: 0x1234_5678_9ABC_DEF0),
    "l1-of-snapshot": change_l1(lambda entry: entry | 1 << 45, "0:"),
    "cut-a-little": cut(0.95),
    "cut-half": cut(0.5),
    "cut-most": cut(0.2),
    "much": both(
        past_end(0), change_l2(lambda entry: entry ^ COPIED, every=2), fill("refcount-table", 1)
    ),
}  # fmt: skip


#: The kinds of images that go through all of it; a few damages tell whether others differ.
_ALL_DAMAGES = ("v2", "512", "1k", "4k", "extended", "refcount-1", "refcount-64")
_FEW_DAMAGES = ("none", "leaks", "past-end-and-lost", "entry-to-l2", "much")


@pytest.mark.parametrize("name", GALLERY)
def test_every_damage_of_every_kind_of_image(name: str) -> None:
    builder, image = built(name)
    for damage_name in DAMAGES if name in _ALL_DAMAGES else _FEW_DAMAGES:
        damage = DAMAGES[damage_name]
        damaged = damage(builder, image)
        try:
            after, result = repaired(damaged)
        except ImageError:
            # What is left of the file isn't enough of a header, or of snapshots.
            assert damage_name.startswith("cut-"), damage_name
            continue
        try:
            assert_repaired(damaged, after)
        except AssertionError as error:
            raise AssertionError(f"{damage_name}: {error}") from error
        if damage_name == "none":
            assert after == image
        assert result.corruptions == 0


@pytest.mark.parametrize("name", ["v2", "v3", "512", "extended", "refcount-1", "zstd"])
def test_dry_run_foretells_and_changes_nothing(name: str) -> None:
    builder, image = built(name)
    for damage in DAMAGES.values():
        damaged = damage(builder, image)
        storage = MemoryStorage(damaged, "x.img", read_only=True)
        try:
            foretold = repair(storage, "all", dry_run=True)
        except ImageError:
            with pytest.raises(ImageError):
                repaired(damaged)
            continue
        assert storage.getvalue() == damaged
        done = repaired(damaged)[1]
        assert foretold.leaks_fixed == done.leaks_fixed
        assert foretold.corruptions_fixed == done.corruptions_fixed
        assert foretold.leaks >= foretold.leaks_fixed
        assert foretold.messages == done.messages


# What it takes of memory


@pytest.mark.parametrize("name", ["512", "v3", "refcount-1"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_too_little_memory_is_found_before_anything_is_written(name: str, dry_run: bool) -> None:
    """Of each damage the least memory is looked for that does, so much is tried that does not."""
    builder, image = built(name)
    for damage_name, damage in DAMAGES.items():
        damaged = damage(builder, image)
        low, high, refused = 0, 2 << 20, 0
        while high - low > 512:
            middle = (low + high) // 2
            budget = Budget(max_memory=middle)
            storage = MemoryStorage(damaged, "x.img")
            storage.account = budget.account(storage.name)
            try:
                repair(storage, "all", dry_run=dry_run)
                high = middle
            except OverBudget:
                assert storage.getvalue() == damaged, (damage_name, middle)
                low, refused = middle, refused + 1
            except ImageError:
                assert damage_name.startswith("cut-"), damage_name
                break
            assert budget.taken == 0
        assert refused or damage_name.startswith("cut-")


def test_memory_and_size_in_the_library(tmp_path: Path) -> None:
    builder, image = built("v3")
    path = tmp_path / "x.qcow2"
    path.write_bytes(_LOST(builder, image))
    before = path.read_bytes()
    size = imgtool.info(path).virtual_size
    for budget in (Budget(max_memory=32 << 10), Budget(max_virtual_size=size - 1)):
        with pytest.raises(OverBudget) as caught:
            imgtool.check(path, repair="all", budget=budget)
        assert caught.value.filename == str(path)
        assert budget.taken == 0
        assert path.read_bytes() == before
    enough = Budget(max_memory=4 << 20, max_virtual_size=size)
    assert imgtool.check(path, repair="all", budget=enough).corruptions_fixed
    assert enough.taken == 0


def test_the_refcounts_of_a_full_tebibyte(tmp_path: Path) -> None:
    """Each of the surveys lets go of what the one before it has counted."""
    path = tmp_path / "full.qcow2"
    imgtool.create(path, 1 << 40, preallocation="metadata")
    with path.open("r+b") as file:
        head = file.read(_TABLE_CLUSTERS)
        file.seek(struct.unpack_from(">Q", head, _TABLE_OFFSET)[0])
        file.write(bytes(1 << 16))

    report, cost = measure(lambda: imgtool.check(path, repair="all"))
    assert report.corruptions_fixed > 1 << 24
    assert report.clean
    assert cost.memory < 150 << 20


# Single damages, looked at closely


@pytest.mark.parametrize("where", [0, 1, 5, 1 << 20])
@pytest.mark.parametrize("version", [2, 3])
def test_rebuilt_refcounts_stay_clear_of_entries_past_the_end(version: int, where: int) -> None:
    """The entry reads as zeros: it must not come to read the refcounts that are put there."""
    builder = ImageBuilder(1 << 20, version=version, header={"compatible_features": 1})
    content = builder.data(0) and builder.expected()[: 1 << 16]
    builder.data(5)
    image = mark(DIRTY)(builder, builder.build())
    damaged = both(past_end(where), fill("refcount-block-0", 0))(builder, image)
    # past_end() changes every third entry: take the one of cluster 5 by hand.
    l2 = builder.places["l2-0"][0]
    target = (len(image) // builder.cluster_size + where) * builder.cluster_size
    damaged = put(damaged, l2 + 5 * 8, struct.pack(">Q", target | COPIED))
    before = seen(damaged)
    assert before[None][5] == bytes(1 << 16)
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    assert seen(after)[None][5] == bytes(1 << 16)
    assert seen(after)[None][0] == content


def test_version_2_zeros_hide_the_backing_image() -> None:
    """Without zero clusters, a cluster of zeros has to be there; two entries share it."""
    builder = ImageBuilder(1 << 20, version=2, backing=b"base.raw", backing_format=b"raw")
    for index in (0, 3, 7, 9):
        builder.data(index)
    image = change_l2(lambda entry: entry | 1 << 40, every=2)(builder, builder.build())
    after, result = repaired(image)
    assert judged(after).corruptions == 0
    assert result.corruptions_fixed
    base = imgtool.chain.Reference(MemoryStorage(b"\xee" * (1 << 20)), "raw")
    with open_disk(MemoryStorage(after), "qcow2", children={"backing": base}) as disk:
        kept, zeros = disk.read_at(0, 1 << 16), disk.read_at(3 << 16, 1 << 16)
        assert kept == builder.expected()[: 1 << 16]
        assert not any(zeros)
        assert not any(disk.read_at(9 << 16, 1 << 16))
        assert disk.read_at(1 << 16, 1 << 16) == b"\xee" * (1 << 16)


@pytest.mark.parametrize("order", range(7))
def test_two_guest_clusters_upon_one_another(order: int) -> None:
    builder = ImageBuilder(1 << 20, cluster_bits=12, refcount_order=order)
    host = builder.data(0)
    builder.data(1)
    builder.data(2)
    first = builder.expected()[:4096]
    image = builder.build()
    l2 = builder.places["l2-0"][0]
    damaged = image
    for index in (1, 5, 9):
        damaged = put(damaged, l2 + 8 * index, struct.pack(">Q", host | COPIED))
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    # What is written to one of them shows in that one alone.
    storage = MemoryStorage(after)
    with open_disk(storage, "qcow2", writable=True) as disk:
        disk.write_at(5 * 4096, b"new" * 1000)
        disk.flush()
        for index in (0, 1, 9):
            assert disk.read_at(index * 4096, 4096) == first
        assert disk.read_at(5 * 4096, 3000) == b"new" * 1000
    assert judged(storage.getvalue()).corruptions == 0


def test_tables_that_lie_upon_data_move_and_leave_the_data_as_they_are() -> None:
    builder = ImageBuilder(1 << 20, cluster_bits=12)
    junk = random.Random(1).randbytes(4096)
    host = builder.data(0, junk)
    builder.data(3)
    image = builder.build()
    # L1 entry 1 takes a guest's data for an L2 table.
    damaged = put(image, builder.places["l1"][0] + 8, struct.pack(">Q", host | COPIED))
    after, _ = repaired(damaged)
    assert_repaired(damaged, after)
    assert seen(after)[None][0] == junk


def test_snapshots_that_share_with_refcounts_of_one_bit() -> None:
    """Everything is named twice, tables and data, and nothing can be counted twice."""
    builder = ImageBuilder(1 << 20, cluster_bits=12, refcount_order=4)
    for index in range(6):
        builder.data(index)
    builder.compressed(8)
    builder.compressed(9)
    builder.snapshot(b"1", b"first")
    builder.data(2)
    image = put(builder.build(), 96, struct.pack(">I", 0))
    after, _ = repaired(image)
    assert_repaired(image, after)
    assert seen(after)["1"] == seen(image)["1"]


def test_snapshots_that_cannot_be_read_become_empty_and_others_stay() -> None:
    builder, image = built("v3")
    table = builder.places["snapshots"][0]
    damaged = put(image, table, struct.pack(">Q", 0x10200))
    after, result = repaired(damaged)
    assert_repaired(damaged, after)
    assert result.corruptions_fixed
    assert seen(after)["2"] == seen(image)["2"]
    assert seen(after)[None] == seen(image)[None]


def test_only_leaks() -> None:
    builder, image = built("v3")
    damaged = both(fill("refcount-block-0", 0xFF), mark(DIRTY))(builder, image)
    after, result = repaired(damaged, "leaks")
    assert result.leaks_fixed
    assert result.leaks == 0
    assert_repaired(damaged, after)


def test_only_leaks_leaves_corruption_and_marks() -> None:
    builder, image = built("v3")
    damaged = both(
        fill("refcount-block-0", 0xFF), past_end(0), mark(DIRTY | CORRUPT)
    )(builder, image)  # fmt: skip
    after, result = repaired(damaged, "leaks")
    assert result.leaks == 0
    assert result.corruptions
    assert struct.unpack_from(">Q", after, _INCOMPATIBLE)[0] & (DIRTY | CORRUPT) == 3
    assert_nothing_lost(seen(damaged), seen(after))


def test_only_leaks_refuses_refcounts_that_are_no_help() -> None:
    builder, image = built("v3")
    for damage in (_LOST, fill("refcount-table", 0), to_place("refcount-block-0")):
        storage = MemoryStorage(damage(builder, image), "x.img")
        with pytest.raises(ImageError, match="-r all"):
            repair(storage, "leaks")
        assert storage.getvalue() == damage(builder, image)


def test_marks_stay_where_something_is_left() -> None:
    """Snapshots beside an external data file are nothing that could be repaired."""
    builder = ImageBuilder(1 << 20, external=True)
    builder.data(0)
    builder.snapshot(b"1", b"first")
    image = mark(DIRTY | CORRUPT)(builder, builder.build())
    after, result = repaired(image)
    assert result.corruptions
    assert struct.unpack_from(">Q", after, _INCOMPATIBLE)[0] & (DIRTY | CORRUPT) == 3


# Opening for writing


def test_opening_a_dirty_image_for_writing_repairs_it() -> None:
    builder, image = built("4k")
    storage = MemoryStorage(_LOST(builder, image))
    before = seen(storage.getvalue())
    with open_disk(storage, "qcow2", writable=True) as disk:
        disk.write_at(0, b"x")
    after = storage.getvalue()
    assert judged(after).corruptions == 0
    assert not struct.unpack_from(">Q", after, _INCOMPATIBLE)[0] & DIRTY
    assert before[None][1:] == seen(after)[None][1:]


def test_opening_a_corrupt_image_for_writing_is_refused() -> None:
    builder, image = built("4k")
    storage = MemoryStorage(mark(DIRTY | CORRUPT)(builder, image), "x.img")
    with pytest.raises(ReadOnly, match=r"imgtool check -r all 'x\.img'"):
        open_disk(storage, "qcow2", writable=True)


def test_the_library(tmp_path: Path) -> None:
    builder, image = built("v3")
    path = tmp_path / "x.qcow2"
    path.write_bytes(_LOST(builder, image))
    foretold = imgtool.check(path, repair="all", dry_run=True)
    assert foretold.corruptions
    assert path.read_bytes() == _LOST(builder, image)
    report = imgtool.check(path, repair="all")
    assert report.clean
    assert report.corruptions_fixed == foretold.corruptions_fixed
    assert imgtool.check(path).clean
    with pytest.raises(imgtool.BadOption):
        imgtool.check(path, repair="everything")
    with pytest.raises(imgtool.BadOption):
        imgtool.check(path, dry_run=True)


# Repairs that are cut short

_CUT_SHORT = [
    (name, damage)
    for name in ("v2", "512", "extended")
    for damage in ("much", "past-end-and-lost", "entry-to-l2", "entry-to-block", "table-lost")
]


@pytest.mark.parametrize(("name", "damage"), _CUT_SHORT)
@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_second_repair_mends_what_the_first_left(name: str, damage: str, kind: str) -> None:
    builder, image = built(name)
    damaged = DAMAGES[damage](builder, image)
    before = seen(damaged)
    for number in stops(damaged, kind):
        storage = MemoryStorage(damaged, "x.img")
        failing = FailingStorage(storage, nth(number, kind, number=errno.EIO, for_ever=True))
        with pytest.raises(OSError, match="Input/output"):
            repair(failing, "all")
        after, result = repaired(storage.getvalue())
        assert result.corruptions == 0
        assert_nothing_lost(before, seen(after))
        assert judged(after).corruptions == 0


def stops(damaged: bytes, kind: str) -> Iterator[int]:
    """The numbers of the calls of a kind that a repair makes, thinned out if they are many."""
    counting = FailingStorage(MemoryStorage(damaged, "x.img"), nth(-1, kind))
    repair(counting, "all")
    calls = counting.calls.get(kind, 0)
    yield from range(0, calls, max(1, calls // effort(12)))


class LossyStorage(WrappedStorage):
    """Keeps apart what was written since the last flush, as a power cut may lose it."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.states: list[tuple[bytes, list[tuple[int, bytes]]]] = []
        self._durable = inner.read_at(0, inner.size())
        self._waiting: list[tuple[int, bytes]] = []

    def write_at(self, offset: int, data: Any) -> None:
        self._waiting.append((offset, bytes(data)))
        super().write_at(offset, data)

    def flush(self) -> None:
        if self._waiting:
            self.states.append((self._durable, self._waiting))
        self._durable, self._waiting = self.inner.read_at(0, self.inner.size()), []
        super().flush()


@pytest.mark.parametrize(("name", "damage"), _CUT_SHORT)
def test_a_second_repair_mends_what_a_power_cut_left(name: str, damage: str) -> None:
    """Of what was not flushed anything may arrive: each write alone, all but one, or some."""
    builder, image = built(name)
    damaged = DAMAGES[damage](builder, image)
    before = seen(damaged)
    storage = LossyStorage(MemoryStorage(damaged, "x.img"))
    repair(storage, "all")
    assert storage.states
    chance = random.Random(5)
    for durable, writes in storage.states:
        choices = [[place] for place in range(len(writes))]
        choices += [[p for p in range(len(writes)) if p != lost] for lost in range(len(writes))]
        choices += [[p for p in range(len(writes)) if chance.random() < 0.5] for _ in range(3)]
        for choice in chance.sample(choices, min(len(choices), effort(4))):
            state = durable
            for place in choice:
                state = put(state, *writes[place])
            after, _ = repaired(state)
            assert_nothing_lost(before, seen(after))
            assert judged(after).corruptions == 0


# Whatever the bytes are


@pytest.mark.parametrize("name", ["v2", "512", "4k", "extended", "refcount-1", "refcount-64"])
def test_damage_at_random(name: str) -> None:
    builder, image = built(name)
    regions = [place for key, place in builder.places.items() if key != "header" and place[1]]
    for seed, maker in ((11, flips), (12, overwrites)):
        for damaged in maker(image, regions, seed=seed, count=effort(12)):
            try:
                after, result = repaired(damaged)
            except ImageError as error:
                assert error.filename == "x.img"  # noqa: PT017
                continue
            assert result.corruptions == 0, result.messages
            assert_repaired(damaged, after)


@pytest.mark.parametrize("name", ["v3", "512", "extended"])
def test_damaged_headers_at_random(name: str) -> None:
    """Repaired or refused, and never anything else."""
    image = built(name)[1]
    for damaged in overwrites(image, [(0, 112)], seed=13, count=effort(40)):
        try:
            after, result = repaired(damaged)
        except ImageError as error:
            assert error.filename == "x.img"  # noqa: PT017
            continue
        if not result.corruptions:
            assert_repaired(damaged, after)


def test_a_file_of_great_length_that_holds_nothing(tmp_path: Path) -> None:
    builder = ImageBuilder(1 << 40, header={"incompatible_features": DIRTY})
    builder.data(0)
    builder.data(1 << 20)
    path = tmp_path / "long.qcow2"
    path.write_bytes(fill("refcount-block-0", 0)(builder, builder.build()))
    with path.open("r+b") as file:
        file.truncate(8 << 40)
    report = within_limits(lambda: imgtool.check(path, repair="all"))
    assert report.clean
    assert report.corruptions_fixed
    assert path.stat().st_blocks * 512 < 16 << 20


def test_what_lies_upon_each_other_does_not_blow_up_the_file() -> None:
    """One cluster of data under every entry, and nothing that could count it twice."""
    builder = ImageBuilder(1 << 30, cluster_bits=16, refcount_order=0)
    host = builder.data(0)
    image = builder.build()
    l2 = builder.places["l2-0"][0]
    damaged = put(image, l2, struct.pack(">Q", host) * 8192)
    after, result = repaired(damaged)
    assert len(after) < 300 << 20
    assert result.corruptions
    assert_nothing_lost(seen(damaged), seen(after))


def test_a_snapshot_whose_name_ends_past_the_end_of_the_file() -> None:
    """The table is written anew: it would be refused as it stands."""
    builder, image = built("4k")
    place, _ = builder.places["snapshots"]
    image = patch(image, schema.SNAPSHOT_HEAD, place, name_size=60_000)
    after, result = repaired(image)
    assert any("past the end of the file" in line for line in result.messages)
    assert_repaired(image, after)


def test_what_names_no_table_is_given_none() -> None:
    """The header is counted twice, which one bit cannot say: L1 entries of zeros stay so."""
    builder, image = built("refcount-1")
    image = put(image, builder.places["l1"][0], struct.pack(">Q", COPIED | 4))
    image = put(image, _TABLE_OFFSET, bytes(8))
    after, _ = repaired(image)
    assert all(piece is not None and not any(piece) for piece in seen(after)[None])
    assert_repaired(image, after)


def test_clusters_that_a_repair_adds_are_not_compared() -> None:
    _, image = built("refcount-32")
    image = put(image, 36, struct.pack(">I", 0x100001))
    image = put(image, _TABLE_CLUSTERS, bytes(4))
    after, _ = repaired(image)
    assert_repaired(image, after)
