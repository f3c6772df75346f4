"""Takes each fault of the chapter out, or puts it back, and expects the verdict to change."""

import pytest

SMALL = {"n_seeds": 4, "batches": 40, "teacher_steps": 60}
FEW_ARMS = """
ARMS = {name: ARMS[name] for name in ("published", "published, fix", "repaired", "repaired, fix", "masked")}
held_out = {each: texts[:8] for each, texts in held_out.items()}
"""


@pytest.fixture(scope="module")
def chapter(bench):
    """The chapter with four of its arms, few texts and short runs."""
    chapter = bench("distillation_loss", SMALL)
    chapter.run_cells("import inspect", "def short(", "TEACHER =", "def learn(", "def new_teacher", "class Pair")
    chapter.run_cells("def raw_terms(", "class Published", "RATE, WARM_UP", "def total(", "def train(", "class Run(")
    chapter.run_cells("'clipped apart': {")
    chapter.run(FEW_ARMS)
    chapter.run_cells(
        "def runs_of", "def slope(values", "def long_windows", "def growth(", "SHAPES =", "def retention("
    )
    chapter.run_cells("def comparisons(", "def exam(", "def novice(", "TOKENIZERS =")
    chapter.run_cells("def gradient_norm(", "def fall(", "def answers(")
    return chapter


def printed_by(chapter, capsys, holds, change=None):
    capsys.readouterr()
    chapter.run_cells(holds, change=change)
    return capsys.readouterr().out


def test_the_symptom_is_gone_once_the_loop_steps(restored, capsys):
    frozen = printed_by(restored, capsys, "five evaluations equal")
    assert "as the log prints it: ['0.000e+00']" in frozen
    assert "five evaluations equal to the last bit: True" in frozen
    assert "updates made: {0}" in frozen
    stepping = printed_by(restored, capsys, "five evaluations equal", ("['published']", "['repaired']"))
    assert "['0.000e+00']" not in stepping
    assert "five evaluations equal to the last bit: False" in stepping
    assert "updates made: {5}" in stepping


def test_the_published_loop_steps_with_an_odd_number_of_batches_and_never_with_an_even_one(restored):
    answers = restored.space["answers"]
    assert {n: answers(n, 960)[0] for n in (2, 3, 4, 5, 8, 15, 16)} == {2: 0, 3: 320, 4: 0, 5: 192, 8: 0, 15: 64, 16: 0}


def test_the_probe_tells_the_two_loops_apart_on_every_seed(restored):
    runs = restored.space["runs"]
    assert {runs[seed][arm].watched.ok for seed in runs for arm in ("published", "published, fix")} == {False}
    assert {runs[seed]["masked"].watched.ok for seed in runs} == {True}


def test_the_probe_warns_of_an_average_that_is_mostly_start(restored):
    answers = [restored.space["runs"][seed]["repaired"].watched for seed in restored.space["seeds"]]
    assert {
        (each.severity, each.where) for answer in answers for each in answer.findings if each.severity != "note"
    } == {("warning", "averaged weights (ema)")}


def test_d1_a_sum_grows_with_the_length(restored):
    assert restored.verdict("D1") == "refuted"
    assert restored.verdict("D1", change=("growth(error, losses.mean_square)", "growth(error, squares)")) == "upheld"


def test_d2_another_divisor_changes_the_loss(restored):
    assert restored.verdict("D2") == "refuted"
    assert restored.verdict("D2", change=("losses.sum_over_count, *each", "without_width, *each")) == "upheld"


def test_d3_a_mean_over_tokens_does_not_depend_on_the_length(restored):
    assert restored.verdict("D3") == "refuted"
    assert restored.verdict("D3", change=("per_token=False", "per_token=True")) == "upheld"


def test_d4_without_a_cap_the_perplexities_differ(restored):
    assert restored.verdict("D4") == "refuted"
    assert restored.verdict("D4", change=("capped_perplexity(loss)", "capped_perplexity(loss, 1000.0)")) == "upheld"


def test_d5_the_share_as_the_log_has_it_would_be_upheld(restored):
    assert restored.verdict("D5") == "refuted"
    assert restored.verdict("D5", change=("case.printed('layerwise_share')", "0.906")) == "upheld"


def test_d6_a_table_whose_perplexities_follow_from_its_losses_would_be_upheld(restored):
    assert restored.verdict("D6") == "refuted"
    own = "np.exp(case.printed(f'lm_low_{row}') / weight)"
    assert restored.verdict("D6", change=("case.printed(f'perplexity_{row}')", own)) == "upheld"


def test_d7_one_tokenizer_gives_one_length(restored):
    assert restored.verdict("D7") == "refuted"
    lengths = "case.printed('student_tokens') - case.printed('teacher_tokens')"
    one = "lengths_differ(student_tokenizer, again)"
    assert restored.verdict("D7", change=(lengths, one)) == "upheld"
    two = "lengths_differ(student_tokenizer, teacher_tokenizer)"
    assert restored.verdict("D7", change=(lengths, two)) == "refuted"


def test_d8_truncation_is_accurate_where_nothing_is_cut(restored):
    assert restored.verdict("D8") == "refuted"
    same = "table['the same tokenizer'][:, 0]"
    assert restored.verdict("D8", change=("favourable, seeds", f"{same}, seeds")) == "upheld"


def test_d8_offsets_rank_the_perfect_student_first_on_every_text(restored):
    ranks = restored.space["ranks"]
    assert {row[2] for rows in ranks.values() for row in rows} == {1.0}


def test_d9_a_gradient_that_is_really_large_dominates(restored):
    assert restored.verdict("D9") == "refuted"
    larger = ("raw['layerwise'] + constant", "raw['layerwise'] * 100000.0 + constant")
    assert restored.verdict("D9", "def gradient_norm(", change=larger) == "upheld"


def test_d10_an_arm_whose_loop_steps_converges(restored):
    assert restored.verdict("D10") == "refuted"
    assert restored.verdict("D10", change=("falls['published, fix']", "falls['repaired, fix']")) == "upheld"


def test_d11_an_average_updated_in_every_batch_shows_learning(restored):
    assert restored.verdict("D11") == "refuted"
    assert restored.verdict("D11", change=("kept[case.printed('accumulation')]", "kept[1]")) == "upheld"


def test_d12_layer_norm_does_normalise(restored):
    restored.run("ARMS = {**ARMS, 'layer norm': {'error': losses.normalised_square}}")
    restored.run("FIX, REMEDIES = 'fix', {'fix': 'repaired, fix', 'layer norm': 'layer norm'}")
    source = restored.cell("def factor(")
    restored.run(source[source.index("def factor(") :])
    assert restored.verdict("D12") == "refuted"
    assert restored.verdict("D12", change=("factors[FIX]", "factors['layer norm']")) == "upheld"
