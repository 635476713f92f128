"""Finding formats where files cannot be read whole."""

from __future__ import annotations

import pytest

from imgtool import registry
from imgtool.errors import BadOption, WrongFormat
from imgtool.format import Format
from imgtool.storage.memory import MemoryStorage
from tests.kit.disks import open_disk
from tests.kit.faults import FailingStorage, bad_ranges
from tests.kit.qcow2 import ImageBuilder

SIZE = 1 << 20


def test_raw_is_opened_though_nothing_of_it_can_be_read() -> None:
    store = FailingStorage(MemoryStorage(bytes(SIZE)), bad_ranges((0, SIZE)))
    with open_disk(store, "raw") as device:
        assert device.size == SIZE
        with pytest.raises(OSError, match="Input/output"):
            device.read_at(0, 1)
    assert registry.find("raw").probe(b"", b"")


def test_a_bad_last_sector_hides_no_signature_at_the_head() -> None:
    builder = ImageBuilder(SIZE)
    builder.data(0)
    image = builder.build()
    store = FailingStorage(MemoryStorage(image), bad_ranges((len(image) - 512, 512)))
    assert registry.probe(store).name == "qcow2"
    registry.expect(store, registry.find("qcow2"))


def test_a_bad_head_is_an_error_where_a_signature_is_wanted() -> None:
    store = FailingStorage(MemoryStorage(bytes(SIZE)), bad_ranges((0, 512)))
    with pytest.raises(OSError, match="Input/output"):
        registry.probe(store)
    with pytest.raises(OSError, match="Input/output"):
        registry.expect(store, registry.find("qcow2"))


def test_what_is_certain_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def plugins() -> dict[str, Format]:
        raise AssertionError("plugins are looked for")

    monkeypatch.setattr(registry, "_plugins", plugins)
    assert registry.probe(MemoryStorage(ImageBuilder(SIZE).build())).name == "qcow2"
    with pytest.raises(AssertionError, match="looked for"):
        registry.probe(MemoryStorage(bytes(SIZE)))


def test_what_is_something_else() -> None:
    with pytest.raises(WrongFormat, match="qcow2"):
        registry.expect(MemoryStorage(bytes(SIZE)), registry.find("qcow2"))
    with pytest.raises(BadOption, match="Unknown format"):
        registry.find("nonsense")
