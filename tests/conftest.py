"""Fixtures shared by all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_files import ROOT, WORKERS

if WORKERS > 1:  # before PyTorch is imported: to each its cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session")
def root() -> Path:
    "The top folder of the project."
    return ROOT


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    "What a test draws is gone after it."
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Guesses are cached in the test's folder, not in the user's."
    monkeypatch.setenv("ATTENSCRIBBLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    "The folder with the real data (acdc/, wsl4mis_h5/, …): $ATTENSCRIBBLE_DATA, else shared/data beside the project."
    folder = Path(os.environ.get("ATTENSCRIBBLE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "acdc").is_dir():
        pytest.skip(f"needs the real data: no acdc/ in {folder} (set ATTENSCRIBBLE_DATA)")
    return folder
