"""What a loss of power can leave of the files of a recording.

A state is all that was synced, and any subset of what was not, in the order in which it was done,
each change whole or torn between sectors. The file's length lies anywhere between the one that was
synced and the largest since; what came into being and was not written holds zeros or garbage.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.kit.recording import SECTOR, Change, Kind, Log

#: Up to so many changes every subset is tried.
EXHAUSTIVE = 12
#: A change that is no longer than this is taken for one of metadata.
_METADATA = 4096

_GARBAGE = random.Random(17).randbytes(1 << 16)


class Choice(NamedTuple):
    """One state of an epoch: which of its changes are on the disk, and how.

    ``torn`` is a seed if changes are torn, else 0. ``length`` says how long the files are: ``as
    written``, ``synced``, ``largest`` or ``between``. ``garbage`` fills what was never written.
    """

    kept: tuple[bool, ...]
    torn: int = 0
    length: str = "as written"
    garbage: bool = False


class Epoch(NamedTuple):
    """A moment before something becomes durable: what is, and what is under way.

    ``position`` is the place in the log up to which things have happened.
    """

    position: int
    durable: dict[str, bytes]
    pending: list[Change]


def epochs(start: dict[str, bytes], log: Log, without: str | None = None) -> Iterator[Epoch]:
    """The epochs of a recording that began with the files ``start``, all of it durable.

    ``without`` is a barrier that does nothing.
    """
    durable = {name: bytearray(data) for name, data in start.items()}
    pending: list[Change] = []
    renamed: dict[str, str] = {}
    for position, change in enumerate(log.changes):
        change = change._replace(file=renamed.get(change.file, change.file))
        if change.kind is not Kind.SYNC:
            pending.append(change)
            continue
        if change.barrier == without or not any(one.file == change.file for one in pending):
            continue
        yield Epoch(position, _frozen(durable), list(pending))
        for one in pending:
            if one.kind is Kind.RENAME and one.file == change.file:
                old, new = one.names
                rename(durable, one)
                renamed[old] = new
                pending = [
                    other._replace(file=new) if other.file == old else other for other in pending
                ]
            elif one.file == change.file:
                apply(durable.setdefault(one.file, bytearray()), one)
        pending = [one for one in pending if one.file != change.file]
    yield Epoch(len(log.changes), _frozen(durable), pending)


def _frozen(files: dict[str, bytearray]) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in files.items()}


def apply(
    data: bytearray, change: Change, tear: random.Random | None = None, garbage: bool = False
) -> None:
    """Let a change reach the disk, or, torn, some of its sectors."""
    if change.kind is Kind.LENGTH:
        _fill_up(data, change.offset, garbage)
        del data[change.offset :]
        return
    end = change.offset + len(change.data)
    if tear is None or len(change.data) <= SECTOR:
        _fill_up(data, change.offset, garbage)
        data[change.offset : end] = change.data
        return
    _fill_up(data, end, garbage)
    sectors = -(-len(change.data) // SECTOR)
    for sector in _some(sectors, tear):
        start = change.offset + sector * SECTOR
        part = change.data[sector * SECTOR : (sector + 1) * SECTOR]
        data[start : start + len(part)] = part


def _some(sectors: int, tear: random.Random) -> Iterable[int]:
    """The sectors that arrive: the first ones, the last ones, or any."""
    kind = tear.randrange(4)
    cut = tear.randrange(sectors + 1)
    if kind == 0:
        return range(cut)
    if kind == 1:
        return range(cut, sectors)
    if kind == 2:
        return range(sectors)
    return (sector for sector in range(sectors) if tear.random() < 0.5)


def _fill_up(data: bytearray, size: int, garbage: bool) -> None:
    missing = size - len(data)
    if missing > 0:
        data.extend(_noise(missing) if garbage else bytes(missing))


def _noise(length: int) -> bytes:
    return (_GARBAGE * (length // len(_GARBAGE) + 1))[:length]


def rename(files: dict[str, bytearray], change: Change) -> None:
    """Let a RENAME reach the disk."""
    old, new = change.names
    files[new] = files.pop(old, bytearray())


def build(epoch: Epoch, choice: Choice) -> dict[str, bytearray]:
    """The files of one state."""
    files = {name: bytearray(data) for name, data in epoch.durable.items()}
    tear = random.Random(choice.torn) if choice.torn else None
    for kept, change in zip(choice.kept, epoch.pending, strict=True):
        if kept and change.kind is not Kind.RENAME:
            apply(files.setdefault(change.file, bytearray()), change, tear, choice.garbage)
    if choice.length != "as written":
        for name, data in files.items():
            _set_length(epoch, choice, name, data)
    for kept, change in zip(choice.kept, epoch.pending, strict=True):
        if kept and change.kind is Kind.RENAME:
            rename(files, change)
    return files


def _set_length(epoch: Epoch, choice: Choice, name: str, data: bytearray) -> None:
    least = most = synced = len(epoch.durable.get(name, b""))
    if len(data) < synced:
        return  # it was cut off, which happens at once
    for change in epoch.pending:
        if change.file == name:
            most = max(most, change.offset + len(change.data))
    size = {"synced": synced, "largest": most}.get(choice.length)
    if size is None:
        size = random.Random(choice.torn).randint(least // SECTOR, most // SECTOR) * SECTOR
        size = min(max(size, least), most)
    _fill_up(data, size, choice.garbage)
    del data[size:]


def choices(epoch: Epoch, seed: int, most: int) -> Iterator[Choice]:
    """At most ``most`` states of an epoch, the most telling ones first; some may be alike."""
    return itertools.islice(_choices(epoch.pending, random.Random(seed)), most)


def _choices(pending: Sequence[Change], chance: random.Random) -> Iterator[Choice]:
    count = len(pending)
    all_of_it = (True,) * count
    yield Choice((False,) * count)
    if not count:
        return
    seeds = itertools.count(chance.randrange(1, 1 << 30))
    for kept in _structured(pending):
        yield Choice(kept, garbage=chance.random() < 0.5)
    yield Choice(all_of_it, length="synced")
    yield Choice(all_of_it, length="largest", garbage=True)
    yield Choice((False,) * count, length="largest", garbage=True)
    yield Choice((False,) * count, length="largest")
    if count <= EXHAUSTIVE:
        subsets = list(itertools.product((False, True), repeat=count))
        chance.shuffle(subsets)
        for kept in subsets:
            yield Choice(kept, garbage=chance.random() < 0.5)
    else:
        for kept in _pairs(pending, chance):
            yield Choice(kept, garbage=chance.random() < 0.5)
    # Torn, and of other lengths, for as long as anybody asks.
    for number in itertools.count():
        likely = chance.choice((0.1, 0.5, 0.5, 0.9))
        kept = tuple(chance.random() < likely for _ in pending)
        if number % 4 == 0:
            kept = all_of_it
        length = ("as written", "as written", "synced", "largest", "between")[chance.randrange(5)]
        yield Choice(kept, next(seeds), length, chance.random() < 0.5)


def _structured(pending: Sequence[Change]) -> Iterator[tuple[bool, ...]]:
    """Everything, each single change missing, each alone, and every prefix."""
    count = len(pending)
    yield (True,) * count
    for place in range(count):
        yield tuple(other != place for other in range(count))
        yield tuple(other == place for other in range(count))
        yield tuple(other <= place for other in range(count))


def _pairs(pending: Sequence[Change], chance: random.Random) -> Iterator[tuple[bool, ...]]:
    """Pairs of changes of metadata, alone and missing, in any order, and any subsets between."""
    small = [place for place, one in enumerate(pending) if len(one.data) <= _METADATA]
    pairs = list(itertools.combinations(small, 2))
    chance.shuffle(pairs)
    for pair in pairs[:2000]:
        yield tuple(place in pair for place in range(len(pending)))
        yield tuple(place not in pair for place in range(len(pending)))
        yield tuple(chance.random() < 0.5 for _ in pending)
