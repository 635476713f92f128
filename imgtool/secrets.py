"""Secrets: passwords by their ids, as ``--object secret,...`` defines them.

A secret is carried by whoever opens or creates an image, and never shown: not by ``repr``, not in
messages. There is no registry beyond the :class:`Secrets` that the caller made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from imgtool.errors import BadOption
from imgtool.options import OptionTable, split_pairs

#: The largest secret that is read from a file; bytes.
MAX_SECRET = 1 << 20

_IDENTIFIER = r"[A-Za-z][A-Za-z0-9._-]*"
_PARAMETERS = frozenset(("qom-type", "id", "data", "file", "format", "keyid", "iv"))


class Secret:
    """The bytes of a password, hidden from ``repr``."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    @property
    def value(self) -> bytes:
        """The password itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"


class Secrets(NamedTuple):
    """Secrets by id, and the ``password`` for images whose options name no secret."""

    by_id: Mapping[str, Secret] = MappingProxyType({})
    password: Secret | None = None

    def get(self, id: str) -> Secret:
        """Return the secret called ``id``; raises :class:`BadOption` if there is none."""
        try:
            return self.by_id[id]
        except KeyError:
            raise BadOption(f"No secret with id '{id}'") from None

    def fill_in(self, table: OptionTable, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``options``, checked against ``table``, with secrets in place of their ids.

        Where no secret is named the password is filled in, if there is one.
        """
        filled = dict(options)
        for option in table:
            if option.secret:
                name = option.key
                value = options.get(name)
                if isinstance(value, str):
                    filled[name] = self.get(value)
                elif value is not None:
                    if not isinstance(value, Secret):
                        raise BadOption(f"Parameter '{option.name}' expects the id of a secret")
                elif self.password is not None:
                    filled[name] = self.password
        return filled


def parse_objects(texts: Iterable[str]) -> Secrets:
    """Understand each ``secret,id=ID,data=TEXT`` or ``secret,id=ID,file=NAME[,format=base64]``.

    With ``keyid=ID,iv=BASE64`` it is encrypted with the secret of that id, which comes before it.
    JSON objects do as well. Files are read at once. Raises :class:`BadOption` for anything else,
    and ``OSError`` if a file cannot be read.
    """
    found: dict[str, Secret] = {}
    for text in texts:
        parameters = _parameters(text)
        if "qom-type" not in parameters:
            raise BadOption("Parameter 'qom-type' is missing")
        if parameters["qom-type"] != "secret":
            raise BadOption("Parameter 'qom-type' accepts only 'secret' in imgtool")
        for parameter in parameters:
            if parameter not in _PARAMETERS:
                raise BadOption(f"Parameter '{parameter}' is unexpected")
        name = parameters.get("id")
        if name is None:
            raise BadOption("Parameter 'id' is missing")
        if not re.fullmatch(_IDENTIFIER, name):
            raise BadOption(
                "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', "
                "starting with a letter"
            )
        if name in found:
            raise BadOption(f"The id '{name}' is given twice")
        value = _decode(_contents(parameters), parameters.get("format", "raw"))
        if "keyid" in parameters:
            value = _decrypt(value, Secrets(found).get(parameters["keyid"]), parameters.get("iv"))
        found[name] = Secret(value)
    return Secrets(found)


def _decrypt(value: bytes, key: Secret, vector: str | None) -> bytes:
    from imgtool.crypto.wrapping import unwrap

    if vector is None:
        raise BadOption("IV is required to decrypt secret")
    return unwrap(key.value, _decode(vector.encode("utf-8", "surrogateescape"), "base64"), value)


def _parameters(text: str) -> dict[str, str]:
    if not text.startswith("{"):
        first, comma, rest = text.partition(",")
        if first and "=" not in first:
            text = f"qom-type={first}{comma}{rest}"
        try:
            return dict(split_pairs(text)) if text else {}
        except BadOption:
            # The text holds a secret, so it is not repeated.
            raise BadOption("Invalid list of an object's parameters") from None
    import json

    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        raise BadOption("Could not parse the JSON of an object") from None
    if not all(isinstance(value, str) for value in parameters.values()):
        raise BadOption("The parameters of a secret are strings")
    return dict(parameters)


def _contents(parameters: Mapping[str, str]) -> bytes:
    data, file = parameters.get("data"), parameters.get("file")
    if data is not None and file is not None:
        raise BadOption("'file' and 'data' are mutually exclusive")
    if data is not None:
        return data.encode("utf-8", "surrogateescape")
    if file is None:
        raise BadOption("Either 'file' or 'data' must be provided")
    with open(file, "rb") as stream:
        contents = stream.read(MAX_SECRET + 1)
    if len(contents) > MAX_SECRET:
        raise BadOption(f"The secret in '{file}' is larger than {MAX_SECRET} bytes")
    return contents


def _decode(contents: bytes, format: str) -> bytes:
    if format == "raw":
        return contents
    if format != "base64":
        raise BadOption(f"Parameter 'format' does not accept value '{format}'")
    import base64

    try:
        return base64.b64decode(contents.replace(b"\n", b""), validate=True)
    except ValueError:
        raise BadOption("Base64 data contains invalid characters") from None
