"""Points of the tiny sweep, and where the digits and compiled steps are kept for all tests."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from support import TINY_SWEEP

from mobilenet import experiment
from mobilenet.sweep import points
from mobilenet.sweep.points import Point


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(directory))
        jax.config.update("jax_compilation_cache_dir", str(directory / "xla"))
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def tiny_points() -> list[Point]:
    module = experiment.load_module(str(TINY_SWEEP))
    return points.points_of(module.get_config(), module.sweep())


@pytest.fixture
def sweep_directory(tmp_path: Path) -> Path:
    return tmp_path / "sweep"
