"""The budget: everything that an image makes us keep is charged to it, and goes back."""

from __future__ import annotations

import gc
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import imgtool
from imgtool import Budget, OverBudget
from imgtool.budget import DEFAULT_MEMORY
from imgtool.cli.main import run
from imgtool.errors import ImageError
from imgtool.formats.qcow2.driver import Qcow2Device
from imgtool.storage.file import FileStorage
from tests.kit import qcow2
from tests.kit.corrupt import put
from tests.kit.qcow2 import ImageBuilder
from tests.kit.qcow2_parts import bitmap_entry, change, snapshot_entry

KiB, MiB = 1 << 10, 1 << 20


def plain(path: Path, size: int = MiB, **options: object) -> Path:
    builder = ImageBuilder(size, **options)  # type: ignore[arg-type]
    builder.data(0)
    path.write_bytes(builder.build())
    return path


# The object itself


def test_accounts() -> None:
    budget = Budget(max_memory=100)
    one, other = budget.account("one"), budget.account("other")
    one.charge(60, "A table")
    other.check(40, "A list")
    other.charge(40, "A list")
    one.charge(0, "Nothing")
    assert (budget.taken, budget.room(), one.room()) == (100, 0, 0)
    with pytest.raises(OverBudget) as caught:
        other.charge(1, "The last straw")
    error = caught.value
    assert (error.what, error.needed, error.allowed) == ("The last straw", 1, 0)
    assert error.filename == "other"
    assert "--max-memory" in error.reason
    one.close()
    one.close()
    assert budget.taken == 40
    with pytest.raises(OverBudget):
        one.check(61, "A table")
    other.close()
    assert budget.taken == 0


def test_without_a_limit_what_is_stored_counts() -> None:
    budget = Budget()
    account = budget.account("x")
    account.charge(DEFAULT_MEMORY, "All")
    with pytest.raises(OverBudget):
        account.charge(1, "More")
    with pytest.raises(OverBudget):
        account.charge(21, "Counters", stored=10)
    account.charge(20, "Counters", stored=10)
    strict = Budget(max_memory=10).account("x")
    with pytest.raises(OverBudget):
        strict.charge(11, "Counters", stored=1 << 40)


def test_threads_take_no_more_than_there_is() -> None:
    budget = Budget(max_memory=1000)
    taken = []

    def work() -> None:
        for _ in range(1000):
            if budget.take(1):
                taken.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == budget.taken == 1000


def test_work_is_never_given_back() -> None:
    budget = Budget(max_work=10)
    one, other = budget.account("one"), budget.account("other")
    one.spend(6)
    other.spend(4)
    one.close()
    assert budget.work == 10
    with pytest.raises(OverBudget) as caught:
        other.spend(1)
    error = caught.value
    assert (error.needed, error.allowed, error.filename) == (11, 10, "other")
    assert "--max-work" in error.reason
    endless = Budget()
    endless.account("x").spend(1 << 60)
    assert endless.work == 1 << 60


def test_what_is_let_go_of_early_is_given_back() -> None:
    budget = Budget(max_memory=100)
    account = budget.account("x")
    account.charge(100, "A list")
    account.release(70)
    account.charge(70, "Another")
    account.close()
    assert budget.taken == 0


@pytest.mark.parametrize("limits", [{"max_memory": -1}, {"max_virtual_size": -1}, {"max_work": -1}])
def test_limits_below_zero(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Budget(**limits)


# Sizes

CALLS: dict[str, Callable[[Path, Budget], object]] = {
    "open": lambda path, budget: imgtool.open(path, budget=budget).close(),
    "info": lambda path, budget: imgtool.info(path, budget=budget),
    "check": lambda path, budget: imgtool.check(path, budget=budget),
    "map": lambda path, budget: list(imgtool.map(path, budget=budget)),
    "convert": lambda path, budget: imgtool.convert(
        path, path.with_name("out"), format="raw", budget=budget
    ),
    "measure": lambda path, budget: imgtool.measure(path, format="qcow2", budget=budget),
    "hash": lambda path, budget: imgtool.hash(path, budget=budget),
    "compare": lambda path, budget: imgtool.compare(path, path, budget=budget),
    "snapshots": lambda path, budget: imgtool.snapshots(path, budget=budget),
}

#: Calls that change the image, a fresh one each time.
WRITING: dict[str, Callable[[Path, Budget], object]] = {
    "open to write": lambda path, budget: imgtool.open(path, writable=True, budget=budget).close(),
    "repair": lambda path, budget: imgtool.check(path, repair="all", budget=budget),
    "dry run": lambda path, budget: imgtool.check(path, repair="all", dry_run=True, budget=budget),
    "resize": lambda path, budget: imgtool.resize(path, MiB // 2, shrink=True, budget=budget),
    "amend": lambda path, budget: imgtool.amend(path, lazy_refcounts=True, budget=budget),
    "amend refcounts": lambda path, budget: imgtool.amend(path, refcount_bits=8, budget=budget),
    "compact": lambda path, budget: imgtool.compact(path, budget=budget),
    "compact into": lambda path, budget: imgtool.compact(
        path, path.with_name("out"), budget=budget
    ),
    "rebase": lambda path, budget: imgtool.rebase(path, None, budget=budget),
    "bitmap": lambda path, budget: imgtool.bitmap(path, "b", "add", budget=budget),
    "snapshot": lambda path, budget: imgtool.create_snapshot(path, "s", budget=budget),
}


@pytest.mark.parametrize("name", WRITING)
def test_virtual_size_of_what_is_written(tmp_path: Path, name: str) -> None:
    path = plain(tmp_path / "disk.qcow2")
    before = path.read_bytes()
    with pytest.raises(OverBudget) as caught:
        WRITING[name](path, Budget(max_virtual_size=MiB - 1))
    assert (caught.value.needed, caught.value.allowed) == (MiB, MiB - 1)
    assert path.read_bytes() == before
    budget = Budget(max_virtual_size=MiB)
    WRITING[name](path, budget)
    assert budget.taken == 0


@pytest.mark.parametrize("name", WRITING)
def test_memory_of_what_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.qcow2"
    low, high = 0, 2 * MiB
    while low + KiB < high:
        middle = (low + high) // 2
        budget = Budget(max_memory=middle)
        try:
            WRITING[name](plain(path), budget)
            high = middle
        except OverBudget:
            low = middle
        gc.collect()
        assert budget.taken == 0
        assert not imgtool.check(path).corruptions
    assert 64 * KiB < high < MiB


def test_virtual_size_of_what_is_made(tmp_path: Path) -> None:
    path, budget = tmp_path / "disk.qcow2", Budget(max_virtual_size=MiB)
    with pytest.raises(OverBudget):
        imgtool.create(path, MiB + 512, budget=budget)
    assert not path.exists()
    imgtool.create(path, MiB, budget=budget)
    with pytest.raises(OverBudget):
        imgtool.resize(path, "+512", budget=budget)
    assert imgtool.info(path).virtual_size == MiB
    assert budget.taken == 0
    with pytest.raises(OverBudget):
        imgtool.create(
            tmp_path / "top.qcow2",
            backing_file=path.name,
            backing_format="qcow2",
            budget=Budget(max_virtual_size=MiB - 512),
        )


def test_commit_and_snapshots_of_other_sizes(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    imgtool.create(base, 2 * MiB)
    imgtool.create_snapshot(base, "large")
    imgtool.resize(base, MiB, shrink=True)
    with pytest.raises(OverBudget):
        imgtool.apply_snapshot(base, "large", budget=Budget(max_virtual_size=MiB))
    imgtool.create(top, MiB, backing_file="base.qcow2", backing_format="qcow2")
    with pytest.raises(OverBudget):
        imgtool.commit(top, budget=Budget(max_virtual_size=MiB - 512))
    imgtool.commit(top, budget=Budget(max_virtual_size=MiB))
    imgtool.apply_snapshot(base, "large", budget=Budget(max_virtual_size=2 * MiB))
    imgtool.delete_snapshot(base, "large", budget=Budget(max_virtual_size=2 * MiB))
    assert imgtool.info(base).virtual_size == 2 * MiB


# Work


def test_steps_of_a_map(tmp_path: Path) -> None:
    """An extent, or a KiB of tables, is a step: the same image takes the same, one less is over."""
    builder = ImageBuilder(8192 << 16)
    for index in range(0, 100, 2):
        builder.data(index)
    path = tmp_path / "disk.qcow2"
    path.write_bytes(builder.build())
    budget = Budget(max_work=64 + 100)
    assert len(list(imgtool.map(path, budget=budget))) == 100
    assert budget.work == 164
    with pytest.raises(OverBudget) as caught:
        list(imgtool.map(path, budget=Budget(max_work=163)))
    assert (caught.value.needed, caught.value.allowed) == (164, 163)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    "name", sorted({*CALLS, *WRITING} - {"open", "info", "snapshots", "open to write"})
)
def test_steps_of_every_walk(tmp_path: Path, name: str) -> None:
    """What a call has taken is enough for it, and one step less is not."""
    path = tmp_path / "disk.qcow2"
    builder = ImageBuilder(64 << 16, backing=b"base.qcow2", backing_format=b"qcow2")
    builder.data(0)
    builder.data(5)
    image = builder.build()
    plain(tmp_path / "base.qcow2")
    call = {**CALLS, **WRITING, "resize": shrink}[name]
    path.write_bytes(image)
    budget = Budget()
    call(path, budget)
    if not budget.work:
        assert name in ("amend", "bitmap", "resize")
        return
    path.write_bytes(image)
    call(path, Budget(max_work=budget.work))
    path.write_bytes(image)
    with pytest.raises(OverBudget, match="--max-work"):
        call(path, Budget(max_work=budget.work - 1))
    assert not imgtool.check(path).corruptions


@pytest.mark.parametrize("name", ["resize", "take", "apply", "delete"])
def test_work_that_is_refused_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.qcow2"
    imgtool.create(path, "64M", cluster_size="4k")
    with imgtool.open(path, writable=True) as device:
        for offset in range(0, 64 * MiB, 2 * MiB):
            device.write_at(offset, b"x")
    imgtool.create_snapshot(path, "one")
    imgtool.bitmap(path, "dirty", "add")
    calls: dict[str, Callable[[Budget], object]] = {
        "resize": lambda budget: imgtool.resize(path, MiB, shrink=True, budget=budget),
        "take": lambda budget: imgtool.create_snapshot(path, "two", budget=budget),
        "apply": lambda budget: imgtool.apply_snapshot(path, "one", budget=budget),
        "delete": lambda budget: imgtool.delete_snapshot(path, "one", budget=budget),
    }
    if name == "apply":
        imgtool.bitmap(path, "dirty", "remove")
    before = path.read_bytes()
    with pytest.raises(OverBudget):
        calls[name](Budget(max_work=1))
    assert path.read_bytes() == before
    calls[name](Budget(max_work=1000))
    assert path.read_bytes() != before
    assert imgtool.check(path).clean


def test_salvage_is_no_way_round_the_budget(tmp_path: Path) -> None:
    path = plain(tmp_path / "disk.qcow2")
    with pytest.raises(OverBudget):
        imgtool.convert(
            path, tmp_path / "out", format="raw", salvage=True, budget=Budget(max_work=1)
        )
    assert not (tmp_path / "out").exists()


def shrink(path: Path, budget: Budget) -> object:
    return imgtool.resize(path, 512, shrink=True, budget=budget)


def test_reading_is_no_work(tmp_path: Path) -> None:
    with imgtool.open(plain(tmp_path / "disk.qcow2"), budget=Budget(max_work=0)) as device:
        device.read_at(0, MiB)
        assert device.as_file().read(MiB)


def test_holes_of_the_file_below_extents_are_steps(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for place in range(10):
            file.seek(place * 64 * KiB)
            file.write(b"x" * 4096)
    budget = Budget()
    extents = list(imgtool.map(path, format="raw", budget=budget))
    assert budget.work == len(extents) >= 1
    with pytest.raises(OverBudget):
        list(imgtool.map(path, format="raw", budget=Budget(max_work=budget.work - 1)))


# Sizes of what is read


@pytest.mark.parametrize("name", CALLS)
def test_virtual_size(tmp_path: Path, name: str) -> None:
    path = plain(tmp_path / "disk.qcow2")
    CALLS[name](path, Budget(max_virtual_size=MiB))
    with pytest.raises(OverBudget) as caught:
        CALLS[name](path, Budget(max_virtual_size=MiB - 1))
    assert (caught.value.needed, caught.value.allowed) == (MiB, MiB - 1)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("name", CALLS)
def test_memory(tmp_path: Path, name: str) -> None:
    """The least that does is found, and all of it comes back, whether it was enough or not."""
    path = plain(tmp_path / "disk.qcow2")
    low, high = 0, MiB
    while low + KiB < high:
        middle = (low + high) // 2
        budget = Budget(max_memory=middle)
        try:
            CALLS[name](path, budget)
            high = middle
        except OverBudget:
            low = middle
        gc.collect()
        assert budget.taken == 0
    assert 64 * KiB < high < 512 * KiB


def test_virtual_size_of_what_lies_below(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(2 * MiB))
    path = plain(tmp_path / "disk.qcow2", backing=b"base.raw", backing_format=b"raw")
    with pytest.raises(OverBudget) as caught:
        imgtool.open(path, budget=Budget(max_virtual_size=MiB))
    assert caught.value.filename == str(tmp_path / "base.raw")
    assert imgtool.info(path, budget=Budget(max_virtual_size=MiB)).virtual_size == MiB


def test_virtual_size_of_a_snapshot(tmp_path: Path) -> None:
    builder = ImageBuilder(MiB)
    builder.snapshot(b"1", b"one", extra=struct.pack(">QQ", 0, 256 * MiB))
    (tmp_path / "disk.qcow2").write_bytes(builder.build())
    budget = Budget(max_virtual_size=MiB)
    imgtool.open(tmp_path / "disk.qcow2", budget=budget).close()
    with pytest.raises(OverBudget):
        imgtool.open(tmp_path / "disk.qcow2", snapshot="one", budget=budget)


def test_a_chain_shares_one_budget(tmp_path: Path) -> None:
    """Each image is small, and many are not."""
    names = [b"", *(f"{number}.qcow2".encode() for number in range(20))]
    for number, name in enumerate(names):
        builder = ImageBuilder(MiB, backing=name, backing_format=b"qcow2" if name else None)
        (tmp_path / f"{number}.qcow2").write_bytes(builder.build())
    budget = Budget(max_memory=2 * MiB)
    with imgtool.open(tmp_path / "5.qcow2", budget=budget):
        assert 0 < budget.taken < 2 * MiB
    with pytest.raises(OverBudget) as caught:
        imgtool.open(tmp_path / "20.qcow2", budget=budget)
    # The one that found nothing left is named, and those above it could not be opened for it.
    assert caught.value.filename != caught.value.opening[-1]
    assert budget.taken == 0


# Each structure


def l1_of_8_mib(path: Path) -> None:
    plain(path)
    with path.open("r+b") as file:
        file.write(change(path.read_bytes(), l1_size=MiB, l1_table_offset=16 * MiB))
        file.truncate(24 * MiB)


def refcount_table_of_8_mib(path: Path) -> None:
    plain(path)
    with path.open("r+b") as file:
        file.write(
            change(path.read_bytes(), refcount_table_clusters=128, refcount_table_offset=16 * MiB)
        )
        file.truncate(24 * MiB)


def many_snapshots(path: Path) -> None:
    entry = snapshot_entry(4, 4, 100)
    image = change(plain(path).read_bytes(), nb_snapshots=2000, snapshots_offset=MiB)
    path.write_bytes(image.ljust(MiB, b"\0") + entry * 2000)


def many_bitmaps(path: Path) -> None:
    builder = ImageBuilder(MiB, header={"autoclear_features": 1})
    directory = bitmap_entry(b"n" * 999) * 1000
    where = builder.place(directory, "directory")
    packed = struct.pack(">IIQQ", 1000, 0, len(directory), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    path.write_bytes(builder.build())


def large_bitmap(path: Path) -> None:
    builder = ImageBuilder(2 * MiB * 4096, header={"autoclear_features": 1})
    table = builder.place(bytes(8 * 32), "table")
    entry = bitmap_entry(b"b", bits=9, table=table, entries=32)
    where = builder.place(entry, "directory")
    packed = struct.pack(">IIQQ", 1, 0, len(entry), where)
    builder.extensions = [(qcow2.BITMAPS_EXTENSION, packed)]
    path.write_bytes(builder.build())


def long_extension(path: Path) -> None:
    plain(path, cluster_bits=21, extensions=[(0x12345678, bytes(MiB))])


def feature_names(path: Path) -> None:
    table = bytes(48) * 20_000
    extensions = [(qcow2.FEATURE_NAMES, table)]
    plain(path, cluster_bits=20, extensions=extensions, header={"incompatible_features": 1 << 60})


def many_references(path: Path) -> None:
    """A file of 8 TiB that has next to nothing stored, and an L2 table that names all of it."""
    builder = ImageBuilder(262144 << 21, cluster_bits=21)
    builder.entry(0, 1 << 21)
    image = builder.build()
    entries = struct.pack(">262144Q", *((1 + number) << 21 for number in range(262144)))
    path.write_bytes(put(image, builder.places["l2-0"][0], entries))
    os.truncate(path, 8 << 40)


def bitmaps_of(path: Path, budget: Budget) -> None:
    with imgtool.open(path, budget=budget) as device:
        assert isinstance(device, Qcow2Device)
        assert device.bitmaps


STRUCTURES: list[tuple[Callable[[Path], None], Callable[[Path, Budget], object], str]] = [
    (l1_of_8_mib, CALLS["open"], "The L1 table"),
    (l1_of_8_mib, CALLS["info"], "The L1 table"),
    (
        refcount_table_of_8_mib,
        lambda path, budget: imgtool.open(path, writable=True, budget=budget).close(),
        "The refcount table",
    ),
    (many_snapshots, CALLS["snapshots"], "The snapshot table"),
    (many_snapshots, CALLS["info"], "The snapshot table"),
    (many_bitmaps, bitmaps_of, "The bitmap directory"),
    (
        large_bitmap,
        lambda path, budget: list(imgtool.dirty_ranges(path, "b", budget=budget)),
        "The bitmap 'b'",
    ),
    (long_extension, CALLS["open"], "The header's"),
]


@pytest.mark.parametrize(
    ("make", "use", "what"), STRUCTURES, ids=lambda value: getattr(value, "__name__", None)
)
def test_structures_are_charged(
    tmp_path: Path,
    make: Callable[[Path], None],
    use: Callable[[Path, Budget], object],
    what: str,
) -> None:
    path = tmp_path / "disk.qcow2"
    make(path)
    use(path, Budget())
    with pytest.raises(OverBudget) as caught:
        use(path, Budget(max_memory=MiB))
    assert caught.value.what.startswith(what)
    assert caught.value.filename == str(path)


def test_feature_names_are_charged(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    feature_names(path)
    with pytest.raises(ImageError, match="Unknown incompatible feature"):
        imgtool.info(path)
    with pytest.raises(OverBudget, match="feature name table"):
        imgtool.info(path, budget=Budget(max_memory=3 * MiB))


def test_what_a_check_counts_is_charged(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    many_references(path)
    assert imgtool.check(path).corruptions
    with pytest.raises(OverBudget, match="Counting references"):
        imgtool.check(path, budget=Budget(max_memory=12 * MiB))


def test_a_check_counts_what_is_referred_to_where_every_cluster_is_too_much(
    tmp_path: Path,
) -> None:
    path = plain(tmp_path / "disk.qcow2", cluster_bits=9, size=64 * KiB)
    os.truncate(path, 512 * MiB)
    assert imgtool.check(path, budget=Budget(max_memory=MiB)).corruptions == 0


def test_caches_share_what_there_is(tmp_path: Path) -> None:
    """An L2 cache takes no more than its disk can use, and a quarter of what is left."""
    large = tmp_path / "large.qcow2"
    imgtool.create(large, 1 << 40)
    budget = Budget(max_memory=40 * MiB)
    opened = []
    for _ in range(12):
        opened.append(imgtool.open(large, budget=budget))
    assert budget.taken < 40 * MiB
    for device in opened:
        assert device.read_at(0, 512) == bytes(512)
        device.close()
    assert budget.taken == 0
    with imgtool.open(plain(tmp_path / "small.qcow2"), budget=budget):
        assert budget.taken < 256 * KiB


def test_a_file_keeps_no_account_of_a_budget_that_is_not_there(tmp_path: Path) -> None:
    with FileStorage.open(plain(tmp_path / "disk.qcow2")) as storage:
        storage.account.charge(1 << 60, "Anything")
        storage.account.check(1 << 60, "Anything")


# At the command line


@pytest.mark.parametrize(
    "command",
    ["info", "check", "map", "measure -O qcow2", "hash", "snapshot -l", "compare", "convert", "dd"],
)
def test_options(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(plain(tmp_path / "disk.qcow2")), str(tmp_path / "out")
    operands = {
        "compare": [path, path],
        "convert": ["-O", "raw", path, out],
        "dd": [f"if={path}", f"of={out}"],
    }.get(command, [path])
    for option, allowed in (("--max-virtual-size", "1M"), ("--max-memory", "1M")):
        assert run([*command.split(), option, allowed, *operands]) == 0
        capsys.readouterr()
        assert run([*command.split(), option, "1k", *operands]) > 0
        printed = capsys.readouterr()
        assert option in printed.err
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "map", "measure -O qcow2", "hash", "compact"])
def test_the_option_for_work(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(plain(tmp_path / "disk.qcow2"))
    assert run([*command.split(), "--max-work", "10000", path]) == 0
    capsys.readouterr()
    assert run([*command.split(), "--max-work", "1", path]) > 0
    printed = capsys.readouterr()
    assert "--max-work" in printed.err
    assert printed.err.count("\n") == 1
    assert run([*command.split(), "--max-work", "many", path]) > 0


@pytest.mark.parametrize(
    "command",
    [
        "resize DISK 2M",
        "amend -o lazy_refcounts=on DISK",
        "commit DISK",
        "rebase -b  DISK",
        "compact DISK",
        "bitmap --add DISK b",
        "snapshot -c s DISK",
        "io -c length DISK",
        "check -r all DISK",
        "check -r all --dry-run DISK",
        "create -f qcow2 -b disk.qcow2 -F qcow2 TOP",
    ],
)
def test_options_of_commands_that_write(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MiB))
    path = plain(tmp_path / "disk.qcow2", backing=b"base.raw", backing_format=b"raw")
    names = {"DISK": str(path), "TOP": str(tmp_path / "top.qcow2")}
    before = path.read_bytes()
    words = [names.get(word, word) for word in command.split(" ")]
    for option in ("--max-virtual-size", "--max-memory"):
        capsys.readouterr()
        assert run([*words[:1], option, "1k", *words[1:]]) > 0
        printed = capsys.readouterr()
        assert option in printed.err
        assert printed.err.count("\n") == 1
        assert path.read_bytes() == before
        assert not os.path.exists(names["TOP"])
    assert run([*words[:1], "--max-virtual-size=2M", "--max-memory=2M", *words[1:]]) == 0
