"""Whatever is done to a checkpoint's files, it loads, or is refused in one line and at once."""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coral_lab import load
from coral_lab.errors import CheckpointError
from tests.fuzz.checkpoints import corrupt
from tests.models.layouts import Layout, write

MINI = Path(__file__).parents[2] / "data/coral-mini"
MANY = int(os.environ.get("CORAL_LAB_FUZZ", "2000"))
SEEDS = st.integers(min_value=0, max_value=2**32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Today's files, and those of Qwen2.5-VL's first release."""
    load(MINI)  # the first one compiles and imports
    first = Layout("flat", processor="first", shards=3, leftovers="both")
    return MINI, write(MINI, tmp_path_factory.mktemp("first") / "mini", first)


def loads_or_is_refused(source: Path, seed: int) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "mini"
        what = corrupt(source, folder, seed)
        start = time.process_time()
        try:
            load(folder)
        except CheckpointError as error:
            said = str(error)
            assert len(said) <= 300, what
            assert said.isprintable(), what
            assert said.startswith(str(folder)), what
        assert time.process_time() - start < 2, what


SHORTLY = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SHORTLY
@given(seed=SEEDS, first=st.booleans())
def test_a_corrupt_checkpoint_loads_or_is_refused(sources, seed, first):
    loads_or_is_refused(sources[first], seed)


@pytest.mark.slow
@settings(SHORTLY, max_examples=MANY, derandomize=False)
@given(seed=SEEDS, first=st.booleans())
def test_many_corrupt_checkpoints_load_or_are_refused(sources, seed, first):
    loads_or_is_refused(sources[first], seed)
