"""Takes each fault of the chapter out, or puts it back, and expects the verdict or the probe to change."""

import pytest

SMALL = {"n_seeds": 4, "steps": 160, "draws": 4}
POSITIONS = "if arm not in ('with positions', 'with positions, shuffled')"


@pytest.fixture(scope="module")
def chapter(bench):
    """The chapter with short runs, and without the two arms that no verdict hangs on."""
    chapter = bench("value_head_spillover", SMALL)
    chapter.run_cells("import numpy", "data = domino_data.load()", "def q_loss", "def by_position", "LOOKS = ")
    chapter.run_cells("ARMS = {", change=("in ARMS.items()", f"in ARMS.items() {POSITIONS}"))
    chapter.run("ARMS = {arm: ARMS[arm] for arm in models}")
    chapter.run_cells(
        "def predict", "answers = {arm", "def fresh", "def reads_the_hand", "q_printed = ",
        "def sums(", "column = {", "def through_attention",
    )  # fmt: skip
    return chapter


def test_v1_becomes_evidence_once_its_controls_can_come_out_otherwise(restored):
    restored.run("seen = lambda model: float(reads_the_hand(model, batch)[:, HAND].abs().max())")
    assert restored.verdict("V1") == "uninformative"
    assert restored.verdict("V1", change=("max((on_hand(m, -1)", "max((seen(m)")) == "upheld"
    assert restored.verdict("V1", change=("[on_hand(model, -1) for", "[seen(model) for")) == "refuted"


def test_v2_a_trunk_that_connects_no_tokens_carries_no_value_gradient_to_the_hand(restored):
    watched = "by_depth = "
    assert restored.verdict("V2", watched) == "refuted"
    restored.run(
        "watched = {'reach': []}\n"
        "for each in seeds:\n"
        "    net = fresh(each)\n"
        "    for layer in net.layers:\n"
        "        torch.nn.init.zeros_(layer.attention.value.weight)\n"
        "    watched['reach'].append([reach(net, batch)])\n"
    )
    assert restored.verdict("V2", watched) == "upheld"


def test_v3_a_value_head_with_nothing_to_learn_from_the_position_is_not_coupled_to_q(restored):
    assert restored.verdict("V3") == "refuted"
    restored.run(
        "draw = torch.Generator().manual_seed(0)\n"
        "def value_loss(answers, batch):\n"
        "    return (answers.value * torch.randn(answers.value.shape, generator=draw)).mean()\n"
    )
    assert restored.verdict("V3") != "refuted"


def test_v4_passes_over_one_batch_add_up_and_passes_over_several_do_not(restored):
    restored.run("case = open_case('value_head_spillover')")
    assert restored.verdict("V4") == "refuted"
    printed = "case.printed('total_0') / (case.printed('value_weight') * case.printed('value_0'))"
    assert restored.verdict("V4", change=(printed, "sums(0)[0]")) == "upheld"
    assert restored.verdict("V4", change=(printed, "max((sums(k, move=True)[0] for k in range(8)))")) == "refuted"


def test_v5_a_slot_that_stands_out_from_the_others_is_called_elevated(restored):
    assert restored.verdict("V5") == "refuted"
    restored.run("q_printed = [q_printed[5], *q_printed[1:5], q_printed[0], q_printed[6]]")
    assert restored.verdict("V5") == "upheld"


def test_v6_a_value_gradient_that_spoils_slot_0_is_found_guilty(restored):
    restored.run("draw = torch.Generator().manual_seed(0)\nnoise = lambda: torch.randn(valid.q.shape, generator=draw)")
    restored.run("answers = {arm: [valid.q + 0.2 * noise() for _ in seeds] for arm in ARMS}")
    assert restored.verdict("V6", "gaps = {") == "upheld"
    restored.run("answers['as published'] = [q + noise() * (valid.rank == 0) for q in answers['as published']]")
    assert restored.verdict("V6", "gaps = {") == "refuted"


def test_v7_shuffling_that_also_mended_the_labels_would_be_a_cure(restored):
    restored.run("draw = torch.Generator().manual_seed(0)")
    restored.run("predict = lambda model, batch: batch.q + 0.2 * torch.randn(batch.q.shape, generator=draw)")
    assert restored.verdict("V7", "def by_slot_and_rank") == "refuted"
    mended = "(moved.q if 'shuffled' in arm else blanked(moved, seeds[place]), predict"
    assert restored.verdict(
        "V7", "def by_slot_and_rank", change=("(blanked(moved, seeds[place]), predict", mended)
    ) == ("upheld")


def test_v8_a_slot_0_whose_values_were_four_times_as_narrow_would_explain_it(restored):
    assert restored.verdict("V8") == "refuted"
    narrow = ("column[:, 0][exact.legal[:, 0]].var()", "(column[:, 0][exact.legal[:, 0]] / 4.2).var()")
    assert restored.verdict("V8", change=narrow) == "upheld"


def test_v9_ten_deals_with_sound_labels_pin_r_down(restored):
    assert restored.verdict("V9", "def width") == "refuted"
    assert (
        restored.verdict("V9", "def width", change=("'three bad deals': True", "'three bad deals': False")) == "upheld"
    )


def test_v10_without_zeros_r_does_not_fall(restored):
    assert restored.verdict("V10", "def read_in_order") == "upheld"
    assert restored.verdict("V10", "def read_in_order", change=("k]), True)", "k]), False)")) == "refuted"


def test_v11_with_the_indices_turned_and_attention_held_fixed_the_formula_is_exact(restored):
    assert restored.verdict("V11", "def errors") == "refuted"
    assert restored.verdict("V11", "def errors", change=("(printed, full)", "(printed, fixed)")) == "refuted"
    assert restored.verdict("V11", "def errors", change=("(printed, full)", "(turned, full)")) != "upheld"
    assert restored.verdict("V11", "def errors", change=("(printed, full)", "(turned, fixed)")) == "upheld"


def test_interference_fires_on_a_heavy_weight_and_a_false_sum_and_is_silent_on_the_published_weights(restored):
    restored.run("net = models['as published'][0]")
    restored.run_cells("def both_losses")
    assert restored.space["found"].ok is True
    restored.run_cells("def hundred_fold")
    assert restored.space["result"].ok is False
    assert restored.space["result"].findings[0].where == "total"
    restored.run_cells("def both_losses", change=("'value': 0.5", "'value': 0.64"))
    assert restored.space["found"].ok is False


def test_grouped_errors_names_the_three_deals_with_zeros_and_none_without(restored):
    restored.run_cells("generator = np.random.default_rng(seed)\nfor name, blank_them")
    assert restored.space["result"].ok is False
    assert len(restored.space["result"].measures["inconsistent_groups"]) == 3
    restored.run_cells(
        "generator = np.random.default_rng(seed)\nfor name, blank_them",
        change=("'zeros in three deals': True", "'zeros in three deals': False"),
    )
    assert restored.space["result"].ok is True


def test_the_label_check_finds_zeros_and_passes_solved_labels(restored):
    restored.run("spoilt_at = blanked(held_out, seed)")
    counts = "held_out.legal, -9).amax(1) != held_out.value).sum())"
    restored.run(f"clean, dirty = (int((target.masked_fill(~{counts} for target in (held_out.q, spoilt_at))")
    assert restored.space["clean"] == 0
    assert restored.space["dirty"] > 0
