"""What was parsed is built again as it was, or as it was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.errors import ImageError
from imgtool.formats.qcow2.header import read_header
from imgtool.formats.qcow2.schema import ExtensionType
from imgtool.storage.file import FileStorage
from tests.formats.qcow2.header.images import MiB, built, header_of
from tests.kit import qcow2
from tests.kit.corrupt import put
from tests.kit.effort import effort
from tests.kit.qcow2 import ImageBuilder


@pytest.mark.parametrize("length", [*range(104, 122), 200, 512, 4096])
def test_header_of_any_length_is_built_as_it_was(length: int) -> None:
    builder = ImageBuilder(
        MiB, header_length=length, backing=b"base.img", backing_format=b"raw",
        extensions=[(0x12345678, b"kept")], cluster_bits=13,
    )  # fmt: skip
    image = builder.build()
    if length > 105:
        image = put(image, 105, bytes(0x40 | number & 63 for number in range(length - 105)))
    header = header_of(image)
    again = header.build()
    assert again == image[: len(again)]
    assert header.header_length == length
    assert header.backing_file == "base.img"


@st.composite
def built_headers(draw: st.DrawFn) -> tuple[ImageBuilder, bytes]:
    """Valid images with whatever a header may hold, known or not."""
    version = draw(st.sampled_from([2, 3, 3, 3]))
    bits = draw(st.sampled_from([12, 14, 16, 21]))
    extended = version == 3 and bits >= 14 and draw(st.booleans())
    zstd = version == 3 and draw(st.booleans())
    unknown = st.tuples(
        st.integers(1, (1 << 32) - 1).filter(
            lambda kind: kind not in (qcow2.BITMAPS_EXTENSION, qcow2.CRYPTO)
        ),
        st.binary(max_size=100),
    )
    lengths = st.integers(112 if zstd else 104, 300)
    builder = ImageBuilder(
        size=draw(st.integers(0, 1 << 24)),
        version=version,
        cluster_bits=bits,
        refcount_order=draw(st.integers(0, 6)) if version == 3 else 4,
        extended_l2=extended,
        compression="zstd" if zstd else "zlib",
        header_length=draw(lengths) if version == 3 else None,
        backing=draw(st.binary(max_size=300)),
        backing_format=draw(st.none() | st.sampled_from([b"raw", b"qcow2", b"x" * 15])),
        extensions=draw(st.lists(unknown, max_size=5)),
        l1_extra=draw(st.integers(0, 20)),
    )
    features = builder.compression == "zstd" and qcow2.COMPRESSION
    builder.header = {
        "incompatible_features": (qcow2.EXTENDED_L2 if extended else 0)
        | features
        | draw(st.integers(0, 3)),
        "compatible_features": draw(st.integers(0, (1 << 64) - 1)),
        "autoclear_features": draw(st.integers(0, (1 << 64) - 1)) & ~3,
    }
    return builder, builder.build()


@given(built_headers())
@settings(max_examples=effort(200))
def test_parsed_header_is_built_as_it_was(made: tuple[ImageBuilder, bytes]) -> None:
    builder, image = made
    header = header_of(image)
    again = header.build()
    assert again == image[: builder.places["header"][1]]
    assert header.size == builder.size
    assert header.geometry.cluster_size == builder.cluster_size
    assert header.backing_file == (
        builder.backing.decode("utf-8", "surrogateescape") if builder.backing else None
    )
    kept = [(extension.type, extension.data) for extension in header.extensions]
    named = (
        [] if builder.backing_format is None else [(qcow2.BACKING_FORMAT, builder.backing_format)]
    )
    assert kept == named + builder.extensions


@given(built_headers(), st.data())
@settings(max_examples=effort(100))
def test_changed_header_is_read_as_changed(
    made: tuple[ImageBuilder, bytes], data: st.DataObject
) -> None:
    header = header_of(made[1])
    changed = header._replace(
        size=data.draw(st.integers(0, header.size)),
        backing_file=data.draw(st.none() | st.text(min_size=1, max_size=50).filter(_encodes)),
    ).with_extension(ExtensionType.BACKING_FORMAT, b"vmdk")
    again = header_of(changed.build().ljust(len(made[1]), b"\0"))
    assert again == changed
    without = again.with_extension(ExtensionType.BACKING_FORMAT, None)
    assert without.backing_format is None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True


def test_header_that_does_not_fit_its_cluster() -> None:
    header = header_of(built(cluster_bits=9))
    room = 512 - 104 - 8
    assert len(header._replace(backing_file="n" * room).build()) == 512
    with pytest.raises(ImageError, match="larger cluster_size"):
        header._replace(backing_file="n" * (room + 1)).build()


def test_reading_a_header_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(built()[:200])
    with FileStorage.open(path) as storage:
        assert read_header(storage).size == MiB
