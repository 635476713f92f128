"""What an inspection found. All sizes and offsets are bytes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal


class Severity(enum.Enum):
    """How much a problem matters: only ``UNSAFE`` ones decide."""

    NOTE = "note"
    WARNING = "warning"
    UNSAFE = "unsafe"


@dataclass(frozen=True)
class Problem:
    """Something that was found. ``code`` is stable, for programs; ``text`` is for people.

    ``offset`` is the first place in the file, where there is one; ``count`` how many there were.
    """

    code: str
    severity: Severity
    text: str
    offset: int | None = None
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON has it."""
        values: dict[str, Any] = {
            "code": self.code,
            "severity": self.severity.value,
            "text": self.text,
        }
        if self.offset is not None:
            values["offset"] = self.offset
        if self.count != 1:
            values["count"] = self.count
        return values


@dataclass(frozen=True)
class NamedFile:
    """A file that the image names. ``role`` is ``backing-file``, ``data-file``, ``extent``...

    ``name`` stands as the image has it (bytes that are no text are surrogates), or is the unique
    id of a parent; ``format`` is the format that the image records for it.
    """

    role: str
    name: str
    format: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the name as JSON has it."""
        values: dict[str, Any] = {"role": self.role, "name": self.name}
        if self.format is not None:
            values["format"] = self.format
        return values


@dataclass(frozen=True)
class Claim:
    """A format whose signature is in the file.

    ``place`` says where: ``head`` or ``tail`` of the file, or ``contents``, the first bytes that
    a guest sees; ``offset`` is where that is in the file, None where it is compressed.
    """

    format: str
    place: Literal["head", "tail", "contents"]
    offset: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the claim as JSON has it."""
        values: dict[str, Any] = {"format": self.format, "place": self.place}
        if self.offset is not None:
            values["offset"] = self.offset
        return values


@dataclass(frozen=True)
class Unchecked:
    """Something that should have been looked at and could not be, and why."""

    what: str
    offset: int | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        values: dict[str, Any] = {"what": self.what, "reason": self.reason}
        if self.offset is not None:
            values["offset"] = self.offset
        return values


@dataclass(frozen=True)
class Inspection:
    """What a file is, and whether it is safe to hand on.

    ``format`` is what it is (``raw`` where no format claims it), ``variant`` which kind of that;
    ``claims`` are all formats that would claim it. ``contents`` are the partition tables, file
    systems and types of archives that a raw disk begins with. ``virtual_size`` is None where the
    file is too damaged to tell, ``encryption`` None where there is none. ``verdict`` is ``safe``
    only if nothing unsafe was found and everything was looked at that should be; ``reasons`` say
    what speaks against it. Where a stream was not read to its end, ``file_size`` is what was read.
    """

    filename: str
    format: str
    variant: str | None
    file_size: int
    virtual_size: int | None
    claims: tuple[Claim, ...]
    contents: tuple[str, ...]
    names: tuple[NamedFile, ...]
    features: tuple[str, ...]
    encryption: str | None
    problems: tuple[Problem, ...]
    unchecked: tuple[Unchecked, ...]
    verdict: Literal["safe", "unsafe"]
    reasons: tuple[str, ...]

    @property
    def safe(self) -> bool:
        return self.verdict == "safe"

    def to_dict(self) -> dict[str, Any]:
        """Return what ``imgtool inspect --output=json`` prints."""
        values: dict[str, Any] = {"filename": self.filename, "verdict": self.verdict}
        values["reasons"] = list(self.reasons)
        values["format"] = self.format
        if self.variant is not None:
            values["variant"] = self.variant
        values["file-size"] = self.file_size
        if self.virtual_size is not None:
            values["virtual-size"] = self.virtual_size
        if self.encryption is not None:
            values["encryption"] = self.encryption
        values["claims"] = [claim.to_dict() for claim in self.claims]
        values["contents"] = list(self.contents)
        values["names"] = [name.to_dict() for name in self.names]
        values["features"] = list(self.features)
        values["problems"] = [problem.to_dict() for problem in self.problems]
        values["unchecked"] = [item.to_dict() for item in self.unchecked]
        return values
