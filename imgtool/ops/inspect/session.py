"""Detects what claims a file, lets each claimant's inspector run, and passes the verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

from imgtool import registry
from imgtool.errors import BadOption
from imgtool.inspection import (
    Claim,
    Inspection,
    Notes,
    Problem,
    Severity,
    Steps,
    file_size,
    read,
)
from imgtool.ops.inspect.signatures import Signature, known_signatures
from imgtool.ops.inspect.tasks import Tasks
from imgtool.units import align_up, format_size

#: What signatures are looked for in: ISO 9660 and UDF have theirs behind 32 KiB.
HEAD = 64 << 10
TAIL = 64 << 10

#: The least score of a format that has found its signature; those that QEMU probes have 100.
_LEAST = 10

#: What is another format's name for the same.
_ALIASES = {"vpc": "vhd", "vhd": "vhd", "iso": "iso9660", "bin": "raw"}

#: What may lie inside a disk of any format: what guests have on their disks.
_GUESTS_OWN = frozenset(("luks", "luks2", "iso9660"))
#: What can be looked at as a plain disk, so that partition tables in it are its own.
_PLAIN = frozenset(("raw", "iso9660", "vhd"))


class Session:
    """One inspection, of a file or a stream: its tasks and what they found.

    ``format`` is what the file is said to be, ``accept`` the codes of problems that do not count.
    """

    def __init__(
        self,
        *,
        format: str | None = None,
        max_virtual_size: int | None = None,
        accept: Collection[str] = (),
    ) -> None:
        self.tasks = Tasks()
        self._signatures = known_signatures()
        self._expected = None if format is None else _ALIASES.get(format, format)
        self._told_by_their_tails = {known.name for known in self._signatures if known.by_tail}
        names = {"raw", "gpt", "mbr", *(known.name for known in self._signatures)}
        if self._expected is not None and self._expected not in names:
            raise BadOption(f"Unknown format '{format}': inspect knows {', '.join(sorted(names))}")
        self._max_virtual_size = max_virtual_size
        self._accept = frozenset(accept)
        self._claims: list[tuple[int, Claim]] = []
        self._head_seen = False
        self._general = Notes("", self.tasks.started)
        self._raw = Notes("raw", self.tasks.started)
        self._notes: dict[str, Notes] = {}
        self._general.start(self._detect())

    def unsafe_so_far(self, seen: int) -> bool:
        """Whether something was found in ``seen`` bytes that nothing behind them can mend."""
        problems = [
            problem
            for notes in (self._general, *self._notes.values())
            for problem in notes.problems
        ]
        claims = self._ordered_claims()
        if claims:
            problems += self._judge_claims(claims, claims[0].format)
        return self._any_unsafe(problems) or self.unmet_so_far(seen)

    def unmet_so_far(self, seen: int) -> bool:
        """Whether it can't be any more what it was said to be, or is larger than is allowed."""
        if not self._head_seen:
            return False
        problems: list[Problem] = []
        claims = self._ordered_claims()
        size = 0
        if claims:
            # What claims the head goes before what claims the tail.
            kind = claims[0].format
            problems += self._judge_expected(kind, tuple(self._raw.contents))
            size = self._notes[kind].virtual_size or 0
        elif self._expected not in self._told_by_their_tails:
            problems += self._judge_expected("raw", tuple(self._raw.contents))
        problems += self._judge_size(size, seen)
        return self._any_unsafe(problems)

    def cut_short(self, seen: int) -> None:
        """The rest behind ``seen`` bytes is not waited for."""
        self._general.not_checked("What follows", seen, "it was not waited for")

    def _any_unsafe(self, problems: list[Problem]) -> bool:
        return any(self._accepted(problem).severity is Severity.UNSAFE for problem in problems)

    def _ordered_claims(self) -> list[Claim]:
        return [claim for _, claim in sorted(self._claims, key=lambda found: -found[0])]

    def _detect(self) -> Steps[None]:
        head = yield from read(0, HEAD, "The first bytes of the file")
        for known in self._signatures:
            score = known.probe(head, b"")
            if score >= _LEAST:
                self._claim(known, "head", 0, score)
        self._head_seen = True
        self._raw.start(registry.find("raw").load_inspector()(self._raw))
        size = yield from file_size()
        start = max(0, size - TAIL)
        tail = yield from read(start, size - start, "The last bytes of the file")
        for known in self._signatures:
            if known.probe(b"", tail) >= _LEAST:
                self._claim(known, "tail", max(0, size - 512), _LEAST)

    def _claim(
        self, known: Signature, place: Literal["head", "tail"], offset: int, score: int
    ) -> None:
        self._claims.append((score, Claim(known.name, place, offset)))
        if known.name in self._notes:
            return
        notes = self._notes[known.name] = Notes(known.name, self.tasks.started)
        if known.load is None:
            notes.not_checked("The structure of the image", None, "the format has no inspector")
        else:
            notes.start(known.load()(notes))

    def result(self, filename: str, size: int) -> Inspection:
        """Pass the verdict on a file of ``size`` bytes, when all tasks are done."""
        claims = self._ordered_claims()
        own = self._notes[claims[0].format] if claims else self._raw
        kind = own.format
        noted = [*self._notes.values()] or [self._raw]
        for notes in noted:
            claims += self._contents_claims(notes)
        plain = kind in _PLAIN
        tables = tuple(self._raw.contents)
        if not plain:
            claims += [Claim(table, "head", 0) for table in tables]
        virtual_size = align_up(size, 512) if own is self._raw else own.virtual_size

        problems = list(self._general.problems)
        for notes in noted:
            problems += notes.problems
        if kind == "iso9660":
            # Hybrid images have partition tables that hold for another size of sector.
            problems += [
                replace(problem, severity=Severity.WARNING) for problem in self._raw.problems
            ]
        elif plain and own is not self._raw:
            problems += self._raw.problems
        problems += self._judge_claims(claims, kind)
        problems += self._judge_expected(kind, tables)
        problems += self._judge_size(virtual_size, size)
        problems = [self._accepted(problem) for problem in problems]
        problems.sort(key=_order)
        unchecked = sorted(
            (
                item
                for notes in (self._general, *noted, *([self._raw] if plain else []))
                for item in notes.unchecked
            ),
            key=lambda item: (item.offset or 0, item.what),
        )
        unchecked = list(dict.fromkeys(unchecked))
        reasons = [problem.text for problem in problems if problem.severity is Severity.UNSAFE] + [
            f"{item.what} could not be checked: {item.reason}" for item in unchecked
        ]
        return Inspection(
            filename=filename,
            format=kind,
            variant=own.variant,
            file_size=size,
            virtual_size=virtual_size,
            claims=tuple(claims),
            contents=tuple(dict.fromkeys((*own.contents, *(tables if plain else ())))),
            names=tuple(name for notes in noted for name in notes.names),
            features=tuple(sorted(own.features)),
            encryption=own.encryption,
            problems=tuple(problems),
            unchecked=tuple(unchecked),
            verdict="unsafe" if reasons else "safe",
            reasons=tuple(dict.fromkeys(reasons)),
        )

    def _contents_claims(self, notes: Notes) -> Iterator[Claim]:
        for offset, head in notes.guest_heads:
            for known in self._signatures:
                if known.probe(head, b"") >= _LEAST:
                    yield Claim(known.name, "contents", offset)

    def _judge_claims(self, claims: list[Claim], kind: str) -> Iterator[Problem]:
        for claim in claims:
            if claim.place == "contents" and claim.format not in _GUESTS_OWN:
                yield Problem(
                    "nested-format",
                    Severity.UNSAFE,
                    f"What a guest sees begins as an image of the format {claim.format}",
                    claim.offset,
                )
            elif claim.place != "contents" and claim.format != kind:
                yield Problem(
                    "polyglot",
                    Severity.UNSAFE,
                    f"It is an image of the format {claim.format} as well as {kind}",
                    claim.offset,
                )

    def _judge_expected(self, kind: str, tables: tuple[str, ...]) -> Iterator[Problem]:
        known_as = {kind, *tables} if kind in _PLAIN else {kind}
        if kind == "iso9660":
            known_as.add("raw")
        if self._expected is not None and self._expected not in known_as:
            yield Problem(
                "wrong-format",
                Severity.UNSAFE,
                f"Its format is {kind}, not {self._expected}",
            )

    def _judge_size(self, virtual_size: int | None, size: int) -> Iterator[Problem]:
        """Judge what is known of the disk's size, from ``size`` bytes of the file."""
        limit = self._max_virtual_size
        if limit is None:
            return
        as_raw = self._size_as_raw(size)
        if virtual_size is None:
            yield Problem("virtual-size", Severity.UNSAFE, "Its virtual size is not known")
        elif virtual_size > limit:
            yield Problem(
                "virtual-size",
                Severity.UNSAFE,
                f"Its virtual size of {format_size(virtual_size)} is more than the "
                f"{format_size(limit)} that are allowed",
            )
        elif as_raw > limit:
            yield Problem(
                "virtual-size",
                Severity.UNSAFE,
                f"As a raw disk it has {format_size(as_raw)}, more than the "
                f"{format_size(limit)} that are allowed",
            )

    def _size_as_raw(self, size: int) -> int:
        """The disk that they see who know a format by its first bytes alone, as QEMU does.

        It is 0 where these name one. A footer, which fixed VHD disks have, does not count.
        """
        if any(claim.place == "head" and claim.format != "iso9660" for _, claim in self._claims):
            return 0
        return max(0, align_up(size, 512) - 512)

    def _accepted(self, problem: Problem) -> Problem:
        if problem.severity is Severity.UNSAFE and problem.code in self._accept:
            return replace(problem, severity=Severity.WARNING)
        return problem


_RANKS = {Severity.UNSAFE: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def _order(problem: Problem) -> tuple[int, str, int, str]:
    """The worst first; the order in which tasks came about does not show."""
    return _RANKS[problem.severity], problem.code, problem.offset or 0, problem.text
