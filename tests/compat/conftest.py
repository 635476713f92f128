from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.compat.corpus import Both, Corpus, build
from tests.compat.twins import Twins


@pytest.fixture
def twins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Twins:
    """qemu-img and imgtool, to be run with the same arguments."""
    return Twins(tmp_path, capsys, monkeypatch.chdir)


@pytest.fixture
def prepared(twins: Twins, images: Path) -> Twins:
    """Both programs have a copy of the module's images."""
    shutil.copytree(images, twins.qemu, dirs_exist_ok=True)
    return twins


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus of images, made once a run."""
    base = tmp_path_factory.getbasetemp()
    # Processes of one run have directories side by side.
    shared = base.parent if base.name.startswith("popen-") else base
    return build(shared / "corpus")


@pytest.fixture
def both(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Both:
    """qemu-img and imgtool, to be run on images of the corpus."""
    return Both(corpus, capsys, monkeypatch)
