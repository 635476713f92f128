"""The options of a new qcow2 image, judged together. ``create`` and ``measure`` share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from imgtool.errors import BadOption
from imgtool.formats.qcow2.geometry import (
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MIN_CLUSTER_BITS,
    Geometry,
)
from imgtool.formats.qcow2.schema import Compression
from imgtool.units import align_up

if TYPE_CHECKING:
    from imgtool.crypto.luks_options import VolumeOptions

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_COMPRESSIONS = {"zlib": Compression.ZLIB, "zstd": Compression.ZSTD}
_MIN_EXTENDED_L2_BITS = 14
_NEEDS_V3 = "compatibility level 1.1 and above (use version=v3 or greater)"

#: Guest sizes are counted in sectors.
SECTOR = 512


class CreateOptions(NamedTuple):
    """What a new image will be. ``size`` is its virtual size in bytes, whole sectors.

    ``preallocation`` is ``off``, ``metadata``, ``falloc`` or ``full``.
    """

    size: int
    geometry: Geometry
    version: int = 3
    compression: Compression = Compression.ZLIB
    preallocation: str = "off"
    lazy_refcounts: bool = False
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    encryption: VolumeOptions | None = None

    @classmethod
    def from_mapping(cls, size: int, options: Mapping[str, Any]) -> CreateOptions:
        """Judge ``options``, which have the types of the format's table.

        Raises :class:`BadOption` for values and combinations that the format does not have.
        """
        version = version_of(options.get("compat", "1.1"))
        compression_name = options.get("compression_type", "zlib")
        if compression_name not in _COMPRESSIONS:
            raise BadOption(
                f"Parameter 'compression-type' does not accept value '{compression_name}'"
            )
        chosen = cls(
            size=align_up(size, SECTOR),
            geometry=Geometry(
                _cluster_bits(options.get("cluster_size", 65536)),
                refcount_order(options.get("refcount_bits", 16)),
                options.get("extended_l2", False),
            ),
            version=version,
            compression=_COMPRESSIONS[compression_name],
            preallocation=options.get("preallocation", "off"),
            lazy_refcounts=options.get("lazy_refcounts", False),
            backing_file=options.get("backing_file") or None,
            backing_format=options.get("backing_fmt") or None,
            data_file=options.get("data_file") or None,
            data_file_raw=options.get("data_file_raw", False),
            encryption=_encryption(options),
        )
        chosen._judge()
        return chosen

    def _judge(self) -> None:
        geometry = self.geometry
        if geometry.extended_l2:
            if self.version < 3:
                raise BadOption(f"Extended L2 entries are only supported with {_NEEDS_V3}")
            if geometry.cluster_bits < _MIN_EXTENDED_L2_BITS:
                raise BadOption(
                    "Extended L2 entries are only supported with cluster sizes of at least "
                    f"{1 << _MIN_EXTENDED_L2_BITS} bytes"
                )
        if self.version < 3:
            if geometry.refcount_order != 4:
                raise BadOption(
                    "Different refcount widths than 16 bits require compatibility level 1.1 or "
                    "above (use version=v3 or greater)"
                )
            if self.lazy_refcounts:
                raise BadOption(f"Lazy refcounts only supported with {_NEEDS_V3}")
            if self.compression is not Compression.ZLIB:
                raise BadOption(f"Non-zlib compression type is only supported with {_NEEDS_V3}")
            if self.data_file is not None:
                raise BadOption(f"External data files are only supported with {_NEEDS_V3}")
        if self.data_file_raw and self.data_file is None:
            raise BadOption("data-file-raw requires data-file")
        if self.data_file_raw and self.backing_file is not None:
            raise BadOption("Backing file and data-file-raw cannot be used at the same time")
        if self.preallocation != "off" and self.backing_file and not geometry.extended_l2:
            raise BadOption(
                "Backing file and preallocation can only be used at the same time if extended_l2 "
                "is on"
            )
        if geometry.l1_entries(self.size) * 8 > MAX_L1_BYTES:
            raise BadOption(
                "The image size is too large for file format 'qcow2' (try using a larger cluster "
                "size)"
            )

    @property
    def luks_clusters(self) -> int:
        """Host clusters that hold the LUKS header and its key material."""
        if self.encryption is None:
            return 0
        from imgtool.crypto.luks_header import slot_offsets

        return self.geometry.clusters(slot_offsets(self.encryption.spec)[-1])

    @property
    def preallocates_metadata(self) -> bool:
        """Whether every guest cluster gets a host cluster from the start.

        A raw external data file must be readable without the image, so its mapping is whole.
        """
        return self.preallocation != "off" or self.data_file_raw


def _encryption(options: Mapping[str, Any]) -> VolumeOptions | None:
    """The LUKS volume that holds the keys of an encrypted image."""
    chosen = options.get("encrypt.format")
    if options.get("encryption"):
        if chosen is not None:
            raise BadOption(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time"
            )
        chosen = "aes"
    if chosen is None:
        if any(name.startswith("encrypt.") for name in options):
            raise BadOption("Parameter 'encrypt.format' is missing")
        return None
    if chosen == "aes":
        raise BadOption("Images with the old AES encryption are only read: use encrypt.format=luks")
    if chosen != "luks":
        raise BadOption(f"Parameter 'format' does not accept value '{chosen}'")
    from imgtool.crypto.luks_options import VolumeOptions

    return VolumeOptions.from_mapping(options, "encrypt.")


def _cluster_bits(size: int) -> int:
    bits = size.bit_length() - 1
    if size != 1 << max(bits, 0) or not MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS:
        raise BadOption("Cluster size must be a power of two between 512 and 2048k")
    return bits


def version_of(compat: str) -> int:
    """The version that a compatibility level stands for; raises :class:`BadOption`."""
    if compat not in _VERSIONS:
        raise BadOption(f"Parameter 'version' does not accept value '{compat}'")
    return _VERSIONS[compat]


def refcount_order(width: int) -> int:
    """The logarithm of a refcount width in bits; raises :class:`BadOption`."""
    order = width.bit_length() - 1
    if width < 1 or width > 64 or width != 1 << order:
        raise BadOption("Refcount width must be a power of two and may not exceed 64 bits")
    return order
