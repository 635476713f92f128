"""Notes: what one format's inspector tells of a file."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from imgtool.inspection.filenames import oddities, shorten
from imgtool.inspection.result import NamedFile, Problem, Severity, Unchecked
from imgtool.inspection.steps import Steps

#: How many different problems, and how many names, are kept of one format's.
MAX_PROBLEMS = 256
MAX_NAMES = 256
#: What is kept of a guest's first bytes.
GUEST_HEAD = 4096


class Notes:
    """What is found of a file as an image of ``format``.

    ``variant``, ``virtual_size`` (bytes) and ``encryption`` are set by the inspector as it learns
    them. ``started`` is where further tasks go.
    """

    def __init__(self, format: str, started: deque[tuple[Notes, Steps[None]]]) -> None:
        self.format = format
        self.variant: str | None = None
        self.virtual_size: int | None = None
        self.encryption: str | None = None
        self.features: list[str] = []
        #: Partition tables, file systems, types of archives that the disk begins with.
        self.contents: list[str] = []
        self.names: list[NamedFile] = []
        self.unchecked: list[Unchecked] = []
        #: The first bytes that a guest sees, with their host offset (None: compressed).
        self.guest_heads: list[tuple[int | None, bytes]] = []
        self._problems: dict[tuple[str, str], Problem] = {}
        self._started = started

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems.values())

    def start(self, steps: Steps[None]) -> None:
        """Begin a further task, which asks for regions of its own beside this one."""
        self._started.append((self, steps))

    def feature(self, name: str) -> None:
        """The image uses something, which is worth a name."""
        if name not in self.features:
            self.features.append(name)

    def unsafe(self, code: str, text: str, offset: int | None = None) -> None:
        """A problem that speaks against the image."""
        self._note(Problem(code, Severity.UNSAFE, text, offset))

    def warn(self, code: str, text: str, offset: int | None = None) -> None:
        """A problem that is harmless to others."""
        self._note(Problem(code, Severity.WARNING, text, offset))

    def note(self, code: str, text: str, offset: int | None = None) -> None:
        """Something that is no problem, and worth knowing."""
        self._note(Problem(code, Severity.NOTE, text, offset))

    def _note(self, problem: Problem) -> None:
        key = (problem.code, problem.text)
        known = self._problems.get(key)
        if known is not None:
            first = min(known.offset or 0, problem.offset or 0)
            self._problems[key] = replace(
                known, count=known.count + 1, offset=None if known.offset is None else first
            )
        elif len(self._problems) < MAX_PROBLEMS or problem.code == "names-many":
            self._problems[key] = problem
        elif problem.severity is Severity.UNSAFE:
            self._problems[("more", "")] = Problem(
                "more", Severity.UNSAFE, "There are more problems"
            )

    def file(
        self, role: str, name: str, *, format: str | None = None, offset: int | None = None
    ) -> None:
        """The image names a file; ``role`` with a hyphen (``backing-file``) is the problem's code.

        Whoever reads the image opens that file, so it is unsafe, and so is any odd name again.
        """
        if len(self.names) == MAX_NAMES:
            self.unsafe("names-many", f"It names more than {MAX_NAMES} files", offset)
            return
        self.names.append(NamedFile(role, name, format))
        self.unsafe(role, f"It names the {role.replace('-', ' ')} '{shorten(name)}'", offset)
        for code, text in oddities(name):
            self.unsafe(code, text, offset)

    def parent(self, identifier: str, offset: int | None = None) -> None:
        """The image needs a parent that it knows by a unique id."""
        self.names.append(NamedFile("parent", identifier))
        self.unsafe("parent", f"It needs the parent image {identifier}", offset)

    def not_checked(self, what: str, offset: int | None, reason: str) -> None:
        """Something should be looked at and can't be."""
        if len(self.unchecked) < MAX_PROBLEMS:
            self.unchecked.append(Unchecked(what, offset, reason))

    def guest_head(self, offset: int | None, data: bytes | bytearray) -> None:
        """These are the first bytes of the disk that a guest sees."""
        self.guest_heads.append((offset, bytes(data[:GUEST_HEAD])))
