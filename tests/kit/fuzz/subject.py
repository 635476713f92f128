"""Subject: all that fuzzing has to know of a format."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.kit.fuzz.layout import Field, Structure, fields


@dataclass(frozen=True, eq=False)
class Subject:
    """A format to be fuzzed.

    ``seeds`` make sound images. ``structures`` follows one, with the format's own schemas, and says
    where its structures are. ``schemas`` are all that the format parses, ``parsers`` the functions
    that judge bytes without a file. ``password`` opens the seeds. ``beyond_repair`` says of an
    image and what a check found after a repair whether that cannot be mended. ``during`` holds
    while images are open.
    """

    format: str
    seeds: Mapping[str, Callable[[], bytes]]
    structures: Callable[[bytes], Iterable[Structure]]
    schemas: Mapping[str, Any] = field(default_factory=dict)
    parsers: Mapping[str, Callable[[bytes], object]] = field(default_factory=dict)
    password: str | None = None
    beyond_repair: Callable[[bytes, str], bool] = lambda image, found: False
    during: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext

    def image(self, seed: str) -> bytes:
        """The seed image called ``seed``."""
        return _image(self, seed)

    def fields(self, seed: str) -> list[Field]:
        """The fields of that image."""
        return _fields(self, seed)


@functools.cache
def _image(subject: Subject, seed: str) -> bytes:
    return subject.seeds[seed]()


@functools.cache
def _fields(subject: Subject, seed: str) -> list[Field]:
    image = _image(subject, seed)
    return fields(subject.structures(image), image)
