"""Fuzzing in short: sound seeds, what was found before, fixed numbers, and some seconds of chance.

``python -m tests.campaigns.fuzz`` is the long form.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from tests.fuzz.subjects import SUBJECTS
from tests.kit.effort import effort
from tests.kit.fuzz import arena
from tests.kit.fuzz.arena import Tally, Target, run, targets
from tests.kit.fuzz.reading import Outcome, explore
from tests.kit.fuzz.recipe import Edit, Recipe
from tests.kit.fuzz.subject import Subject

_TARGETS = targets(SUBJECTS.values())
_CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))

#: Executions of each target that are the same every time, and seconds for others.
_FIXED = 120
_SECONDS = 5


@pytest.mark.parametrize(
    ("subject", "seed"),
    [(subject, seed) for subject in SUBJECTS.values() for seed in subject.seeds],
    ids=lambda value: value if isinstance(value, str) else value.format,
)
def test_seeds_are_sound(subject: Subject, seed: str) -> None:
    """Otherwise there is nothing to damage; and every field is where its name says."""
    image, fields = subject.image(seed), subject.fields(seed)
    assert explore(subject, image).whole
    assert all(field.end <= len(image) for field in fields)
    assert len({field.name for field in fields}) == len(fields)
    unchanged = tuple(Edit(field.name, image[field.offset : field.end]) for field in fields)
    assert Recipe(subject.format, seed, unchanged).apply(image, fields) == image


@pytest.mark.parametrize("path", _CORPUS, ids=lambda path: path.stem)
def test_what_was_found_before(path: Path) -> None:
    """Every finding of a campaign, in the form in which it was found."""
    recipe = Recipe.from_json(path.read_text())
    if recipe.seed not in SUBJECTS[recipe.subject].seeds:
        pytest.skip(f"the seed '{recipe.seed}' needs qemu-img")
    assert path.stem.startswith(f"{recipe.subject}-")
    kind = path.stem.split("-")[1]
    _TARGETS[f"{recipe.subject}-{kind}"].execute(recipe)


def _nothing_found(tally: Tally, campaign: str) -> None:
    told = [
        f"seed {campaign}, execution {found.number}: {found.signature}\n"
        f"{found.trace}\n{found.recipe.to_json()}"
        for found in tally.findings
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)
def test_fixed_numbers(target: Target) -> None:
    tally = run(target, "fixed", count=effort(_FIXED))
    _nothing_found(tally, "fixed")
    assert tally.executions == effort(_FIXED)
    # Of both kinds there are some: what is refused at once tests nothing behind it.
    assert 0 < tally.refused_at_once < tally.executions
    assert 0 < tally.whole < tally.executions


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)
def test_some_seconds_of_chance(target: Target) -> None:
    campaign = secrets.token_hex(4)
    _nothing_found(run(target, campaign, seconds=effort(_SECONDS)), campaign)


def test_no_number_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: a process that ends early leaves the rest to another."""
    monkeypatch.setattr(arena, "_CHUNK_SECONDS", 0.0)
    tally = run(_TARGETS["luks-read"], "fixed", count=5, jobs=2)
    _nothing_found(tally, "fixed")
    assert tally.executions == 5


def test_a_process_that_dies_takes_one_number_along() -> None:
    class Deadly(Target):
        def execute(self, recipe: Recipe) -> Outcome:
            if recipe == self.recipe("fixed", 1):
                os._exit(9)
            return super().execute(recipe)

    tally = run(Deadly(SUBJECTS["luks"], "read"), "fixed", count=4)
    assert [(found.number, found.signature) for found in tally.findings] == [
        (1, "the process died: exit 9")
    ]
    assert tally.executions == 3
