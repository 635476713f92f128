"""The options of a new LUKS volume, which the format luks and others that hold volumes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from imgtool.errors import BadOption, UnsupportedFeature
from imgtool.options import Option

if TYPE_CHECKING:
    from imgtool.crypto.sectors import CipherSpec
    from imgtool.secrets import Secret

#: The values that QEMU knows. Some of them it refuses all the same, and so does imgtool.
_CIPHERS = frozenset(
    (
        *("aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128", "serpent-128"),
        *("serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256", "sm4"),
    )
)
_HASHES = frozenset(
    ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3"),
)


def volume_options(prefix: str = "", secret_help: str = "") -> tuple[Option, ...]:
    """The options, in qemu-img's order and words, each with ``prefix`` before its name."""
    return (
        Option(f"{prefix}key-secret", "str", secret_help, secret=True),
        Option(f"{prefix}cipher-alg", "str", "Name of encryption cipher algorithm"),
        Option(f"{prefix}cipher-mode", "str", "Name of encryption cipher mode"),
        Option(f"{prefix}ivgen-alg", "str", "Name of IV generator algorithm"),
        Option(f"{prefix}ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
        Option(f"{prefix}hash-alg", "str", "Name of encryption hash algorithm"),
        Option(f"{prefix}iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    )


def password_of(options: Mapping[str, Any], prefix: str = "") -> bytes:
    """Return the password that the options of an image hold; :class:`BadOption` if none."""
    secret: Secret | None = options.get(f"{prefix}key_secret")
    if secret is None:
        raise BadOption(
            f"Parameter '{prefix}key-secret' is required for cipher: it is the id of an "
            "--object secret (in Python, give password=)"
        )
    return secret.value


def new_password(options: Mapping[str, Any], prefix: str = "") -> bytes:
    """Return the password for a new volume.

    Raises :class:`BadOption` if there is none, or one with which QEMU could not open the volume.
    """
    password = password_of(options, prefix)
    try:
        text = password.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadOption("The password of a new image must be UTF-8 without NUL characters")
    return password


class VolumeOptions(NamedTuple):
    """What a new volume will be; ``iteration_time`` is in milliseconds."""

    spec: CipherSpec
    hash: str
    iteration_time: int

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], prefix: str = "") -> VolumeOptions:
        """Judge ``options``, whose names begin with ``prefix`` and use ``_`` for ``-``.

        Raises :class:`BadOption` for values that there are not, and for volumes that QEMU could
        not open.
        """
        from imgtool.crypto.ivgen import GENERATORS
        from imgtool.crypto.luks_header import STRIPES, known_hash
        from imgtool.crypto.sectors import MODES, SECTOR, CipherSpec

        def value(name: str, default: str | None, allowed: frozenset[str]) -> Any:
            chosen = options.get(prefix + name.replace("-", "_"), default)
            if chosen is not None and chosen not in allowed:
                raise BadOption(f"Parameter '{name}' does not accept value '{chosen}'")
            return chosen

        algorithm = value("cipher-alg", "aes-256", _CIPHERS)
        mode = value("cipher-mode", "xts", frozenset(MODES))
        ivgen = value("ivgen-alg", "plain64", frozenset(GENERATORS))
        ivgen_hash = value("ivgen-hash-alg", "sha256" if ivgen == "essiv" else None, _HASHES)
        digest_name = value("hash-alg", "sha256", _HASHES)
        iteration_time = options.get(f"{prefix}iter_time", 2000)
        if iteration_time < 0:
            raise BadOption("Parameter 'iter-time' expects a number of milliseconds")
        cipher, _, bits = algorithm.partition("-")
        try:
            if not bits:
                raise UnsupportedFeature([f"the cipher {algorithm}"])
            spec = CipherSpec(cipher, int(bits) // 8, mode, ivgen, ivgen_hash)
            # Finds out, before any file is touched, if the cipher is there at all.
            spec.with_key(bytes(spec.key_length))
            known_hash(digest_name)
        except UnsupportedFeature as error:
            raise BadOption(error.reason) from error
        if spec.key_length * STRIPES % SECTOR:
            raise BadOption(
                f"With {algorithm} in mode {mode} key material does not end with a sector, and "
                "QEMU cannot open such volumes"
            )
        return cls(spec, digest_name, iteration_time)
