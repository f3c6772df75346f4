"""Takes each fault of the chapter out, or puts it back, and expects the verdict to change."""

import pytest

SMALL = {"n_seeds": 4, "steps": 20, "students": 200}


@pytest.fixture(scope="module")
def chapter(bench):
    """The chapter up to its training runs, which are too long for here."""
    chapter = bench("zero_weight_head", SMALL)
    chapter.run_cells(
        "import math", "def classroom", "def masked_loss", "def update", "def scores", "class Point",
        "def shared_gradients", "def head_gradients", "REPORTED =", "def walk(seed", "def shared(model)",
        "def partly_isolated", "FAULTS =", "def step(shape", "def predictions_after",
    )  # fmt: skip
    chapter.run("room = rooms[seed]")
    chapter.run("trained_walk = lambda seed: 1.0  # the long runs are not made here")
    return chapter


def test_z1_a_weight_that_is_not_zero_refutes_equal_gradients(restored):
    assert restored.verdict("Z1") == "upheld"
    assert restored.verdict("Z1", change=("largest_difference(seed, dtype, 1.0)", "control")) == "refuted"
    assert restored.verdict("Z1", change=("dtype, 1.0)", "dtype, 0.999)")) == "refuted"


def test_z2_a_weight_that_is_not_zero_refutes_a_zero_gradient(restored):
    assert restored.verdict("Z2") == "upheld"
    assert restored.verdict("Z2", change=("head_gradients(seed)", "head_gradients(seed, weight=0.999)")) == "refuted"


@pytest.mark.parametrize("optimiser", ["Adam, no decay", "AdamW, decoupled decay", "SGD, decay, momentum"])
def test_z3_without_coupled_decay_the_head_is_frozen_indeed(restored, optimiser):
    assert restored.verdict("Z3") == "refuted"
    assert (
        restored.verdict("Z3", change=("each, OPTIMISERS['Adam, coupled decay']", f"each, OPTIMISERS['{optimiser}']"))
        == "upheld"
    )


def test_z3_a_head_without_gradient_tensors_is_frozen_indeed(restored):
    assert restored.verdict("Z3", change=("epochs)[-1]", "epochs, no_gradient=True)[-1]")) == "upheld"


def test_z4_with_randomness_isolated_the_runs_are_the_same(restored):
    assert restored.verdict("Z4") == "refuted"
    assert (
        restored.verdict("Z4", change=("relative_difference(shared_stream", "relative_difference(isolated_streams"))
        == "upheld"
    )


@pytest.mark.parametrize("purpose", ["mastery_head weights", "mastery dropout"])
def test_z4_one_shared_draw_is_enough_to_break_the_run(restored, purpose):
    kept = f'relative_difference(partly_isolated("{purpose}")'
    assert restored.verdict("Z4", change=("relative_difference(shared_stream", kept)) == "refuted"


def test_z5_a_head_that_is_skipped_poisons_nothing(restored):
    assert restored.verdict("Z5") == "refuted"
    assert restored.verdict("Z5", change=("outcome(fault) != ", "outcome(fault, run_mastery=False) != ")) == "upheld"


def test_z6_a_head_outside_the_graph_costs_the_forward_pass_only(restored):
    bill = "bill = {"
    assert restored.verdict("Z6", bill) == "refuted"
    restored.run(
        "plain = tracing.MasteryHead.forward\n"
        "def outside(self, context):\n"
        "    with torch.no_grad():\n"
        "        return plain(self, context)\n"
        "tracing.MasteryHead.forward = outside\n"
    )
    try:
        assert restored.verdict("Z6", bill) == "upheld"
    finally:
        restored.run("tracing.MasteryHead.forward = plain")


def test_z7_an_encoder_of_the_printed_size_upholds_the_estimate(restored):
    assert restored.verdict("Z7") == "refuted"
    restored.run("REPORTED = tracing.Sizes(concepts=100, slots=200, dim=64, heads=4, blocks=2, hidden=64)")
    assert restored.verdict("Z7") == "upheld"


def test_z8_runs_that_are_cut_off_early_do_gain_from_more_updates(restored):
    restored.run(
        restored.cell("def stopping_run")
        .replace("stopped = [", "stopped = [] and [")
        .replace("late = ", "late, early = [], []; _ = ")
        .replace("early = [gain", "_ = [gain")
    )
    curve = "[Point(step, step / 1000, 0.6 + step / 5000) for step in range(10, 301, 10)]"
    restored.run(f"late = [gain({curve}, stop) for stop in (100, 110, 120, 130)]")
    assert restored.verdict("Z8") == "upheld"
    flat = "[Point(step, 0.7 - step / 1000, 0.6) for step in range(10, 301, 10)]"
    restored.run(f"late = [gain({flat}, stop) for stop in (100, 110, 120, 130)]")
    assert restored.verdict("Z8") == "refuted"


def test_z9_on_a_test_set_without_sampling_error_the_gap_would_need_explaining(restored):
    restored.run_cells("def run(arm, seed)")
    assert restored.verdict("Z9", "def half_width") == "refuted"
    assert restored.verdict("Z9", "def half_width", change=("case.printed('test_responses')", "1e12")) == "upheld"


def test_z10_scripts_with_the_same_loss_make_no_difference(restored):
    restored.run_cells("def stopping_run")
    assert restored.verdict("Z10", "stopped_masked =", change=("masked_loss", "padded_loss")) == "refuted"


def test_z10_a_script_that_loses_half_of_what_it_learns_is_a_major_factor(restored):
    restored.run_cells("def stopping_run")
    worse = "[best(curve, stop) - 0.05 * (arm is stopped) for"
    assert restored.verdict("Z10", "stopped_masked =", change=("[best(curve, stop) for", worse)) != "refuted"


def test_z11_without_the_rival_every_remedy_restores_the_run(restored):
    assert restored.verdict("Z11") == "refuted"
    restored.run('REMEDIES["use AKT"] = REMEDIES["skip head 2"]')
    assert restored.verdict("Z11") == "upheld"


def test_the_probe_is_silent_where_the_head_is_trained_and_fires_where_it_is_not(restored):
    restored.run("fixed = GainAKT4(sizes, isolated_streams(seed), build_mastery=False)")
    restored.run("batch = room.train.take(slice(BATCH))")
    restored.run_cells("def published_loss")
    assert restored.space["found"].ok is False
    restored.run_cells("def published_loss", change=("padded_loss)", "padded_loss, weight=0.9)"))
    assert restored.space["found"].ok is True
