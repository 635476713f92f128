"""Headers of several sectors: whatever arrives of a switch, there is the old one or the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.header_switch import write_header
from imgtool.formats.qcow2.schema import ExtensionType
from imgtool.ops.create import create
from imgtool.storage.memory import MemoryStorage
from tests.kit.crash_states import build, choices, epochs
from tests.kit.recording import Log, Recorder

_LONG = "directory/" * 30 + "base.qcow2"


def _backing(name: str | None) -> Callable[[Header], Header]:
    return lambda header: header._replace(backing_file=name)


def _extension(data: bytes | None) -> Callable[[Header], Header]:
    return lambda header: header.with_extension(ExtensionType.BACKING_FORMAT, data)


def _known(header: Header) -> Header:
    """A header without its feature names, which may be missing for a moment."""
    return header.with_extension(ExtensionType.FEATURE_NAMES, None)


@pytest.mark.parametrize("cluster_size", [2048, 4096, 65536])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_backing(None), _backing("base.qcow2")),
        (_backing("base.qcow2"), _backing("another-base.qcow2")),
        (_backing(_LONG), _backing(_LONG.replace("base", "next"))),
        (_backing(_LONG), _backing("base.qcow2")),
        (_extension(None), _extension(b"raw")),
        (_extension(b"qcow2"), _extension(None)),
    ],
)
def test_it_is_one_or_the_other(
    cluster_size: int,
    first: Callable[[Header], Header],
    second: Callable[[Header], Header],
) -> None:
    memory = MemoryStorage()
    create(memory, 1 << 20, format="qcow2", options={"cluster_size": cluster_size})
    again = MemoryStorage(memory.getvalue())
    old = first(read_header(again))
    write_header(again, old)
    log = Log()
    storage = Recorder(log, "image", again.getvalue())
    new = second(read_header(storage))
    write_header(storage, new)

    assert read_header(storage) == new
    for epoch in epochs({"image": again.getvalue()}, log):
        for choice in choices(epoch, 1, 60):
            found = read_header(MemoryStorage(build(epoch, choice)["image"]))
            assert _known(found) in (_known(old), _known(new))


def test_a_change_of_one_sector_is_written_once() -> None:
    memory = MemoryStorage()
    create(memory, 1 << 20, format="qcow2")
    log = Log()
    storage = Recorder(log, "image", memory.getvalue())
    write_header(storage, read_header(storage)._replace(size=2 << 20))
    assert [change.kind.value for change in log.changes] == ["write", "sync"]
