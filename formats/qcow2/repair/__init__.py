"""Repairing qcow2 images.

What refers to what is believed, as far as it can be; the refcounts are made to agree with it. No
sector that could be read before reads differently afterwards. The order:

1. tables: entries that cannot be are mended, tables that lie upon something else move;
2. refcounts: corrected where they lie, or written anew behind the end of the file;
3. COPIED flags;
4. a check of the result, and only if it finds nothing the dirty and corrupt bits are cleared.

Each step is durable before the next, and each can be cut short: a repair after it begins anew. What
it takes of memory is charged before anything is written, as far as it can be told by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from imgtool.errors import ImageError, ReadOnly
from imgtool.findings import CheckResult, Findings
from imgtool.formats.qcow2.bitmaps import Bitmap, read_bitmaps
from imgtool.formats.qcow2.bitmaps import memory_of as bitmaps_memory
from imgtool.formats.qcow2.check.copied import check_copied
from imgtool.formats.qcow2.check.l1 import L1Check
from imgtool.formats.qcow2.check.refcounts import RefcountCheck
from imgtool.formats.qcow2.check.state import Charges, State
from imgtool.formats.qcow2.check.survey import count_references, count_structures, new_state
from imgtool.formats.qcow2.header import Header, read_header
from imgtool.formats.qcow2.repair.bitmaps import sound_bitmaps, without_bitmaps
from imgtool.formats.qcow2.repair.copied import repair_copied
from imgtool.formats.qcow2.repair.fresh import Fresh
from imgtool.formats.qcow2.repair.header import switch_header
from imgtool.formats.qcow2.repair.overflow import Split, memory_to_split
from imgtool.formats.qcow2.repair.refcounts import (
    blocks_alone,
    correct,
    memory_to_rebuild,
    rebuild,
    table_shared,
    uncounted,
    usable,
)
from imgtool.formats.qcow2.repair.snapshots import readable_snapshots, write_snapshots
from imgtool.formats.qcow2.repair.tables import TableRepair
from imgtool.formats.qcow2.schema import Incompatible
from imgtool.formats.qcow2.snapshots import Snapshot, read_snapshots
from imgtool.formats.qcow2.snapshots import memory_of as snapshots_memory
from imgtool.storage.base import Storage
from imgtool.storage.overlay import OverlayStorage
from imgtool.units import align_down

_MARKS = Incompatible.DIRTY | Incompatible.CORRUPT


def repair(
    storage: Storage,
    what: str,
    report: Callable[[str], None] | None = None,
    *,
    dry_run: bool = False,
) -> CheckResult:
    """Repair the image in ``storage``; see :class:`imgtool.format.Repair`."""
    try:
        if not dry_run:
            with contextlib.closing(_Repair(storage, report)) as repairing:
                return repairing.run(what)[1]
        with (
            OverlayStorage(storage) as overlay,
            contextlib.closing(_Repair(overlay, report)) as repairing,
        ):
            found, left = repairing.run(what)
            found.leaks_fixed, found.corruptions_fixed = left.leaks_fixed, left.corruptions_fixed
            return found
    except ImageError as error:
        raise error.in_file(storage.name) from error.__cause__


def repair_dirty(storage: Storage) -> None:
    """Repair an image that was not closed properly, so that it can be written to.

    Raises :class:`ReadOnly` if something is left that is wrong.
    """
    left = repair(storage, "all")
    if left.corruptions or left.check_errors:
        raise ReadOnly(
            "The image was not closed properly (dirty bit), and could not be repaired: see "
            f"imgtool check '{storage.name}'",
            filename=storage.name,
        )


class _Survey(NamedTuple):
    """All that refers to clusters, counted, and how it compares with the refcounts."""

    state: State
    tables: L1Check
    refcounts: RefcountCheck


class _Repair:
    """One repair under way."""

    def __init__(self, storage: Storage, report: Callable[[str], None] | None) -> None:
        self._storage = storage
        self._report = report
        self._found = CheckResult()
        self._findings = Findings(self._found, report)
        self._header: Header
        self._snapshots: list[Snapshot]
        self._bitmaps: list[Bitmap]
        self._lists = Charges(storage, "What is repaired")
        self._states: list[State] = []

    def close(self) -> None:
        """Give back all memory that was charged."""
        for state in self._states:
            state.release()
        self._lists.release()

    def run(self, what: str) -> tuple[CheckResult, CheckResult]:
        """Repair; return what was found, and what is left."""
        left = self._all() if what == "all" else self._leaks()
        left.leaks_fixed = max(0, self._found.leaks - left.leaks)
        left.corruptions_fixed = max(0, self._found.corruptions - left.corruptions)
        left.messages = self._found.messages
        marked = self._header.incompatible & _MARKS
        if marked and not (left.corruptions or left.check_errors):
            unmarked = self._header.incompatible & ~_MARKS
            switch_header(self._storage, self._header._replace(incompatible=unmarked))
        return self._found, left

    def _leaks(self) -> CheckResult:
        """Lower what is counted too high; mend COPIED flags if nothing else is wrong then."""
        self._header = self._read_header(for_repair=False)
        self._bitmaps = read_bitmaps(self._storage, self._header)
        self._snapshots = read_snapshots(self._storage, self._header)
        self._charge_lists()
        survey, left = self._survey(self._findings), self._found
        if self._found.corruptions and (
            not blocks_alone(survey.state, survey.refcounts)
            or uncounted(survey.state, survey.refcounts)
        ):
            raise ImageError("The refcounts cannot be relied upon: repair them with -r all")
        if self._found.leaks:
            correct(survey.state, survey.refcounts, lower_only=True)
            left = CheckResult()
            survey.state.release()
            survey = self._survey(Findings(left, self._report))
        if survey.refcounts.copied_wrong or survey.tables.copied_unclear:
            if left.corruptions or left.check_errors or left.leaks:
                check_copied(survey.state, survey.refcounts)
            else:
                # The refcounts are right, so the flags can be made to agree with them.
                left = replace(left)
                repair_copied(survey.state, survey.tables, survey.refcounts, self._findings)
        return left

    def _read_header(self, *, for_repair: bool) -> Header:
        header = read_header(self._storage, for_repair=for_repair)
        self._storage.account.check_virtual_size(align_down(header.size, 512))
        return header

    def _charge_lists(self) -> None:
        # Snapshots are listed as they were and as they are to be.
        self._lists(2 * snapshots_memory(self._snapshots) + bitmaps_memory(self._bitmaps))

    def _all(self) -> CheckResult:
        """Repair everything."""
        found = self._read_header(for_repair=True)
        self._header, self._bitmaps = sound_bitmaps(self._storage, found, self._findings)
        self._snapshots, whole = readable_snapshots(self._storage, self._header, self._findings)
        self._charge_lists()
        state, tables = self._walk(self._findings)
        self._check_room(state)
        if self._header is not found:
            switch_header(self._storage, self._header)
        state, tables, old_end = self._repair_tables(state, tables, whole)
        refcounts = count_structures(state)
        refcounts.compare(old_end)
        survey = _Survey(state, tables, refcounts)
        if self._split(state) or old_end is not None:
            state.release()
            survey = self._survey(Findings(CheckResult()))
        survey = self._repair_refcounts(survey)
        left = replace(survey.state.findings.result)
        if survey.refcounts.copied_wrong or survey.tables.copied_unclear:
            repair_copied(survey.state, survey.tables, survey.refcounts, self._findings)
        return left

    def _check_room(self, state: State) -> None:
        """Raise :class:`OverBudget` now if what comes later finds no memory.

        Later something may have been written already.
        """
        later = replace(state, charge=Charges(self._storage))
        try:
            RefcountCheck(later)
            later.charge(memory_to_split(state) + memory_to_rebuild(state))
        finally:
            later.charge.release()

    def _walk(self, findings: Findings) -> tuple[State, L1Check]:
        state = new_state(self._storage, self._header, findings)
        self._states.append(state)
        return state, count_references(state, self._snapshots, self._bitmaps)

    def _survey(self, findings: Findings) -> _Survey:
        state, tables = self._walk(findings)
        refcounts = count_structures(state)
        refcounts.compare()
        return _Survey(state, tables, refcounts)

    def _repair_tables(
        self, state: State, tables: L1Check, snapshots_whole: bool
    ) -> tuple[State, L1Check, int | None]:
        """Repair all tables; return what they refer to, and where the file's old clusters end.

        What the repair itself has added is not among what was found; None says it has done nothing.
        """
        broken = self._found.corruptions > 0
        repair = TableRepair(state, tables, self._snapshots)
        misplaced = repair.misplaced()
        if misplaced:
            self._findings.corruption(
                "Repairing tables that share clusters, or end past the end of the file", misplaced
            )
        if not (broken or misplaced) and snapshots_whole:
            return state, tables, None
        before, old_header, old_end = self._snapshots, self._header, repair.fresh.next
        self._header, self._snapshots = repair.run()
        if repair.unreadable:
            self._findings.tell(
                f"{repair.unreadable} guest clusters could not be read: they are zeros now"
            )
        if not snapshots_whole or self._snapshots != before:
            self._write_snapshots(self._snapshots, repair.fresh)
        state.release()
        state, tables = self._walk(Findings(CheckResult()))
        state.findings = self._findings
        if self._header.snapshots_offset != old_header.snapshots_offset:
            table_size = sum(snapshot.size_on_disk for snapshot in before)
            state.count(old_header.snapshots_offset, table_size)
        return state, tables, old_end

    def _write_snapshots(self, snapshots: list[Snapshot], fresh: Fresh) -> None:
        self._header = write_snapshots(self._storage, self._header, snapshots, fresh)
        # They are listed as they were and as they are now: no more than has been charged already.
        self._lists.release()
        self._snapshots = read_snapshots(self._storage, self._header)
        self._charge_lists()

    def _split(self, state: State) -> bool:
        """Copy what more refer to than a refcount can say; return whether there was any."""
        split = Split(state)
        if not split.needed:
            return False
        snapshots = split.snapshots(self._snapshots)
        if snapshots != self._snapshots:
            self._write_snapshots(snapshots, split.fresh)
            state.release()
            state, _ = self._walk(Findings(CheckResult()))
            split = Split(state)
        split.tables(self._snapshots)
        state.release()
        state, tables = self._walk(Findings(CheckResult()))
        Split(state).data(tables)
        state.release()
        if self._bitmaps and self._too_many():
            self._drop_bitmaps_that_overlap()
        return True

    def _too_many(self) -> bool:
        """Whether anything is referred to more often than can be counted."""
        state, _ = self._walk(Findings(CheckResult()))
        needed = Split(state).needed
        state.release()
        return needed

    def _drop_bitmaps_that_overlap(self) -> None:
        """Drop the bitmaps if it is they that lie upon something, or upon each other."""
        kept = self._header, self._bitmaps
        self._header, self._bitmaps = without_bitmaps(self._header), []
        if self._too_many():
            self._header, self._bitmaps = kept
            return
        self._findings.corruption("Dropping all bitmaps: they lie upon other structures")
        switch_header(self._storage, self._header)

    def _repair_refcounts(self, survey: _Survey) -> _Survey:
        state, refcounts = survey.state, survey.refcounts
        if usable(state, refcounts):
            if not (self._found.corruptions or self._found.leaks):
                return survey
            correct(state, refcounts, lower_only=False)
            state.release()
        else:
            if table_shared(state):
                self._findings.corruption("ERROR the refcount table shares its clusters")
            self._findings.tell("Rebuilding refcount structure")
            # Once more without the structures: nothing of them is kept.
            state.release()
            state, _ = self._walk(Findings(CheckResult()))
            self._header = rebuild(state)
            state.release()
        return self._survey(Findings(CheckResult(), self._report))
