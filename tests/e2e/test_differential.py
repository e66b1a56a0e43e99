"""Random operations on mounts and on local directories side by side; `tests.e2e.differential` runs as many as one likes.

Seeds are fixed; S3MGR_TEST_RANDOM=1 adds one of the day, which a failure prints.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.differential.drafting import program
from tests.e2e.differential.running import KINDS, LARGE_KINDS, Course, Kind, Sites, sites
from tests.e2e.differential.steps import EVENTS
from tests.e2e.lab import Lab
from tests.servers.endpoint import Endpoint

LENGTH = 120
LARGE_LENGTH = 30
SEEDS = (53, 54, 55, 56, 89)
"""One for each of `KINDS`, and for large files. Together their programs have everything befall a mount."""


@pytest.fixture(scope="module")
def made(ministack: Endpoint, module_lab: Lab) -> Iterator[Sites]:
    before = os.umask(0o022)
    with sites(module_lab, ministack) as made:
        yield made
    os.umask(before)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *zip((*KINDS, LARGE_KINDS[0]), SEEDS, strict=True),
        *(
            [(KINDS[0], int.from_bytes(os.urandom(4)))]
            if os.environ.get("S3MGR_TEST_RANDOM")
            else []
        ),
    ],
)
def test_a_mount_is_a_local_directory(made: Sites, kind: Kind, seed: int) -> None:
    """A failure names the step; ``python -m tests.e2e.differential --seed`` with the seed reduces the program."""
    print(f"seed {seed} on {kind}")
    with made.site(kind) as site:
        course = Course(site, "p")
        length = LARGE_LENGTH if kind.is_large else LENGTH
        course.run(program(seed, length, large=kind.is_large))
    assert course.done["ok"] > length // 3


def test_the_fixed_seeds_have_everything_happen() -> None:
    steps = Counter(step.name for seed in SEEDS for step in program(seed, LENGTH))
    assert steps.keys() >= EVENTS.keys()
