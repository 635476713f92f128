"""Every format that is fuzzed. A new one adds its :class:`~tests.kit.fuzz.subject.Subject` here."""

from __future__ import annotations

from tests.fuzz.luks import LUKS
from tests.fuzz.qcow2 import QCOW2
from tests.kit.fuzz.subject import Subject

SUBJECTS: dict[str, Subject] = {subject.format: subject for subject in (QCOW2, LUKS)}
