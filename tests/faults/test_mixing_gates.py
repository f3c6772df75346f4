"""Takes each fault of the chapter out, or puts it back, and expects the verdict or the probe to change."""

import pytest

SMALL = {"n_seeds": 12}  # a few gates close far more than the rest, so that G4 needs more than the fewest
PROBED = range(3)


@pytest.fixture(scope="module")
def chapter(bench):
    """The chapter with short runs, up to each of its judgements."""
    chapter = bench("mixing_gates", SMALL)
    chapter.run_cells("import math", "corpus = harbour()", "WARM_UP =", "def draw(", "class Run(", "KINDS = [")
    chapter.run_cells("gains = {kind", "COUPLED = Switches(", "def cost_of_removal(", "MAKE = {", "gated = train(")
    chapter.run("decay_only = np.cumprod(1 - rates * weight_decay)")
    chapter.run_cells("again = [losses", "gpt2 = {", "def explained(", "repeat = GatedModel(")
    chapter.run_cells("def carried_over(", "def with_gates(", "def at(model", "def accused(")
    return chapter


def printed_by(chapter, capsys, holds, change=None):
    capsys.readouterr()
    chapter.run_cells(holds, change=change)
    return capsys.readouterr().out


def test_g1_with_the_zeros_back_nothing_learns(restored):
    assert restored.verdict("G1") == "upheld"
    back = ("[alive_share(each) for each in seeds]", "[alive_share(each, coupler_zeros=True) for each in seeds]")
    assert restored.verdict("G1", change=back) == "refuted"


def test_g1_as_published_half_of_the_coupler_stays_dead(restored, capsys):
    shown = printed_by(restored, capsys, "WIRINGS = {")
    assert "wired as published real  additive mixing weights {4} of 4, others {4} of 8" in shown
    assert "wired as meant     zeros convex   mixing weights {3} of 3, others {0} of 6" in shown


def test_g2_if_what_gains_nothing_got_no_weight_the_weight_would_show_the_worth(restored):
    assert restored.verdict("G2") == "refuted"
    none = ("np.maximum(ends['redundant'], ends['useless'])", "0 * ends['useless']")
    assert restored.verdict("G2", change=none) == "upheld"


def test_g3_a_branch_of_noise_is_turned_off(restored):
    assert restored.verdict("G3") == "refuted"
    assert restored.verdict("G3", change=("costs['useful'][:, 0]", "costs['harmful'][:, 0]")) == "upheld"


def test_g3_without_decay_a_weight_before_zeros_stays_where_it_is(restored, capsys):
    assert "the line in every step: True" in printed_by(restored, capsys, "case.judge('G3'")
    restored.run("runs = {**runs, 'useless': runs['useless']._replace(path=runs['useless'].path * 0 + 0.3)}")
    assert "the line in every step: False" in printed_by(
        restored, capsys, "case.judge('G3'", ("case.", "None and case.")
    )


def test_g4_untrained_gates_stay_open(restored):
    assert restored.verdict("G4") == "refuted"
    assert restored.verdict("G4", change=("zip(gated.models, seeds)]", "zip(untrained, seeds)]")) == "upheld"


def test_g5_without_the_guard_zero_is_like_any_other(restored):
    restored.run("few = seeds[:4]")
    assert restored.verdict("G5", "ONE_BLOCK =") == "refuted"
    assert restored.verdict("G5", "ONE_BLOCK =", change=("guard=guard", "guard=False")) == "upheld"


def test_g6_a_repetition_that_repeats_everything_has_no_spread(restored):
    assert restored.verdict("G6") == "refuted"
    assert restored.verdict("G6", "again = [losses", change=("again=k", "again=0")) == "upheld"


def test_g7_step_2_as_named_is_wider(restored):
    assert restored.verdict("G7") == "refuted"
    assert restored.verdict("G7", "gpt2 = {", change=("gpt2[2, True]", "gpt2[2, False]")) == "upheld"


def test_g8_the_term_as_meant_is_the_transpose(restored):
    assert restored.verdict("G8") == "refuted"
    assert restored.verdict("G8", "def explained(", change=("build(5, True", "build(5, False")) == "upheld"


def test_g9_gates_from_past_tokens_carry_nothing_over(restored):
    assert restored.verdict("G9") == "refuted"
    assert restored.verdict("G9", change=("changes[True]", "changes[False]")) == "upheld"


def test_g10_gates_that_answer_to_the_text_are_not_undone_by_a_constant(restored):
    assert restored.verdict("G10") == "refuted"
    sharp = "replaced((out > out.flatten(0, 1).quantile(0.1, 0)).to(out.dtype))"
    assert restored.verdict("G10", "def with_gates(", change=("replaced(out)", sharp)) == "upheld"


def test_g11_the_golden_ratio_itself_would_be_upheld(restored):
    assert restored.verdict("G11") == "refuted"
    assert restored.verdict("G11", change=("case.printed('golden')", "1.618")) == "upheld"


@pytest.mark.parametrize("blind", ["norms < 0", "norms >= 0"])
def test_g12_a_log_that_accuses_nobody_or_everybody_is_worth_nothing(restored, blind):
    restored.run("few = seeds[:4]")
    assert restored.verdict("G12", "def accused(") == "upheld"
    assert restored.verdict("G12", "def accused(", change=("norms == 0", blind)) == "refuted"


def test_g13_starts_that_meet_would_be_upheld(restored):
    restored.run("few = seeds[:4]")
    restored.run_cells("FORMS = [", change=("FORMS = ['interpolated', 'discrete', 'masked']", "FORMS = ['masked']"))
    assert restored.verdict("G13") == "refuted"
    meet = ("learned[form, start].models", "learned[form, STARTS[0]].models")
    assert restored.verdict("G13", change=meet) == "upheld"


@pytest.mark.parametrize(
    ("fault", "twin", "names"),
    [
        ("coupler_zeros=True, **COUPLER", "**COUPLER", "*_alpha"),
        ("planted='useful', guard=True", "planted='useful'", "*planted_alpha"),
    ],
    ids=["dead", "absorbing"],
)
def test_the_probe_finds_dead_and_absorbed_gates_and_clears_their_twins(restored, fault, twin, names):
    space = restored.space
    for seed in PROBED:
        answers = []
        for switches in (fault, twin):
            model = eval(f"built({seed}, {switches})", space)
            if "planted" in switches:
                model = space["at"](model, -0.01)
            result = space["gates"](
                model, space["next_token_loss"], space["draw"](space["train_on"][0], space["generator"](seed, 31)),
                names=names, optimiser=space["adamw"](model.parameters()), steps=4,
            )  # fmt: skip
            answers.append("fault" in {finding.severity for finding in result.findings})
        assert answers == [True, False]


@pytest.mark.parametrize(
    ("fault", "twin"),
    [
        ("head_gate='previous_batch'", "head_gate='past_tokens'"),
        ("head_gate='all_tokens'", "head_gate='past_tokens'"),
        ("reciprocal='transpose_over_mask'", "reciprocal='transpose'"),
    ],
)
def test_the_probe_finds_each_leak_and_clears_its_twin(restored, fault, twin):
    for seed in PROBED:
        models = [eval(f"built({seed}, {switches})", restored.space) for switches in (fault, twin)]
        assert [restored.space["causality"](model, restored.space["ids"]).ok for model in models] == [False, True]


def test_the_probe_finds_the_missing_width_of_step_2_and_clears_the_row_as_named(restored, capsys):
    shown = printed_by(restored, capsys, "NAMED = [").splitlines()
    assert "as named  ok: True" in shown[0]
    assert "ok: False" in shown[1]
    assert "feed_forward.widen" in shown[1]
