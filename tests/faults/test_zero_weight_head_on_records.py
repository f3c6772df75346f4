"""The first chapter on real students, small: the trials that depend on data run and judge."""

import pytest

from casestudies_lib import paths

RECORDS = paths.root().parent / "shared" / "data" / "assist2015"
SMALL = {"n_seeds": 4, "steps": 12, "students": 240, "record_slots": 40, "records": str(RECORDS)}
VERDICTS = {"upheld", "refuted", "inconclusive"}

pytestmark = pytest.mark.skipif(
    not RECORDS.is_dir(), reason=f"no ASSISTments 2015 records in {RECORDS.name} beside the checkout (see README)"
)


@pytest.fixture(scope="module")
def chapter(bench):
    chapter = bench("zero_weight_head", SMALL)
    chapter.run_cells(
        "import math", "def classroom", "room = rooms[seed]", "def masked_loss", "def update", "def scores",
        "class Point", "def run(arm, seed)", "def shared_gradients", "REPORTED =", "def walk(seed", "def half_width",
    )  # fmt: skip
    return chapter


def test_the_classes_hold_real_students_and_padding_as_the_records_have_it(chapter):
    room = chapter.space["room"]
    assert (len(room.train), len(room.valid), len(room.test)) == (240, 120, 240)
    assert 0.65 < room.train.share_right < 0.80
    assert 0.2 < room.train.padding_share < 0.7
    assert chapter.space["sizes"].slots == 40


@pytest.mark.parametrize(("claim", "verdict"), [("Z1", "upheld"), ("Z3", "refuted")])
def test_what_does_not_depend_on_the_size_of_the_run_is_decided_as_on_simulated_students(chapter, claim, verdict):
    assert chapter.verdict(claim) == verdict


def test_the_noise_of_two_runs_is_judged_on_real_students(chapter):
    assert chapter.verdict("Z9") in VERDICTS
    assert all(0 < width < 0.1 for width in chapter.space["noise"])


def test_the_scripts_are_judged_on_real_students(chapter):
    assert chapter.verdict("Z10", "def stopping_run", "stopped_masked =") in VERDICTS
    assert len(chapter.space["effect"]) == 4
