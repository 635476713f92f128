"""One target under atheris, which is libFuzzer for Python: ``fuzz_atheris TARGET DIR``.

It is guided by the coverage of imgtool's own code, over whole images, single structures, or text.
Images are changed now by libFuzzer, now field by field. What breaks a rule is written to DIR; the
arguments behind it are libFuzzer's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pkgutil
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["imgtool"]):
    import imgtool

    # What is imported later, where it is needed, would not be followed.
    for module in pkgutil.walk_packages(imgtool.__path__, "imgtool."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from tests.fuzz.subjects import SUBJECTS
    from tests.fuzz.words import understand
    from tests.kit.fuzz import layout
    from tests.kit.fuzz.arena import KINDS, signature
    from tests.kit.fuzz.mutate import Mutator
    from tests.kit.fuzz.recipe import Recipe, difference
    from tests.kit.fuzz.structures import take_apart
    from tests.kit.fuzz.subject import Subject

#: Larger inputs are for the other engine, unless the format has no smaller seeds.
_LONGEST = 128 << 10

#: How often the figures are written, in seconds.
_TELL = 2.0


class _Watch:
    """Runs a target, and keeps what breaks a rule instead of ending with it."""

    def __init__(
        self,
        name: str,
        execute: Callable[[bytes], object],
        folder: Path,
        recipe: Callable[[bytes], Recipe] | None,
    ) -> None:
        self._name = name
        self._execute = execute
        self._folder = folder
        self._recipe = recipe
        self._known: set[str] = set()
        self._executions = 0
        self._told = 0.0

    def __call__(self, data: bytes) -> None:
        self._executions += 1
        try:
            self._execute(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._keep(error, data)
        if time.monotonic() - self._told > _TELL:
            self._told = time.monotonic()
            figures = {"executions": self._executions, "findings": len(self._known)}
            (self._folder / f"{self._name}.figures").write_text(json.dumps(figures))

    def _keep(self, error: BaseException, data: bytes) -> None:
        found = signature(error)
        if found in self._known:
            return
        self._known.add(found)
        path = self._folder / f"{self._name}-{hashlib.sha256(found.encode()).hexdigest()[:8]}"
        path.with_suffix(".bin").write_bytes(data)
        if self._recipe is not None:
            path.with_suffix(".json").write_text(self._recipe(data).to_json())
        path.with_suffix(".txt").write_text(
            f"{found}\n\n{''.join(traceback.format_exception(error))}"
        )


def _field_by_field(subject: Subject) -> Callable[[bytes, int, int], bytes]:
    """A mutator for libFuzzer that knows where the fields of an image are."""

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.4:
            return bytes(atheris.Mutate(data, longest))
        fields = layout.fields(subject.structures(data), data)
        edits, length = Mutator(data, fields).mutate(chance)
        changed = Recipe(subject.format, "", edits, length).apply(data, fields)
        return changed[:longest]

    return mutate


def _operations(data: bytes) -> int:
    """What decides what is done to an image."""
    return len(data) + sum(data[:512])


def _described(subject: Subject, data: bytes, operations: int) -> Recipe:
    """The recipe of an image: of all seeds, that which is most like it."""
    recipes = []
    for seed in subject.seeds:
        edits, length = difference(subject.image(seed), data)
        recipes.append(Recipe(subject.format, seed, edits, length, operations))
    return min(recipes, key=lambda recipe: sum(len(edit.data) for edit in recipe.edits))


def main() -> None:
    """Fuzz until libFuzzer's arguments say that it is enough. It ends the process itself."""
    name, folder, arguments = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    mutator = recipe = None
    corpus = Path(tempfile.mkdtemp(prefix="imgtool-fuzz-"))
    subject_name, _, kind = name.partition("-")
    longest = _LONGEST
    execute: Callable[[bytes], object]
    if name == "words":
        execute = understand
        for number, text in enumerate(("10G", "json:{}", "driver=qcow2,file.filename=x", "a,,b=c")):
            (corpus / str(number)).write_text(text)
    else:
        subject = SUBJECTS[subject_name]
        if kind == "schemas":
            execute = lambda data: take_apart(subject, data)  # noqa: E731
            for number, schema in enumerate(subject.schemas):
                (corpus / schema).write_bytes(bytes((number,)) + bytes(600))
        else:
            mutator = _field_by_field(subject)
            execute = lambda data: KINDS[kind](subject, data, _operations(data))  # noqa: E731
            recipe = lambda data: _described(subject, data, _operations(data))  # noqa: E731
            longest = max(longest, min(len(subject.image(seed)) for seed in subject.seeds))
            for seed in subject.seeds:
                if len(subject.image(seed)) <= longest:
                    (corpus / seed).write_bytes(subject.image(seed))
    for seed in corpus.iterdir():
        # What is allocated once and for all is not the first execution's.
        with contextlib.suppress(Exception):
            execute(seed.read_bytes())
    watch = _Watch(name, execute, folder, recipe)
    options = [f"-max_len={longest}", "-rss_limit_mb=0", "-timeout=300", "-print_final_stats=0"]
    command = [sys.argv[0], str(corpus), *options, "-verbosity=0", *arguments]
    if mutator is None:
        atheris.Setup(command, watch)
    else:
        atheris.Setup(command, watch, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
