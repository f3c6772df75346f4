"""The judge: a claim's rule applied to what was measured, and everything it refuses to judge."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casestudies_lib.claims import MEASUREMENTS_MIME, SYMBOLS, VERDICTS_MIME, Case, Report, ReportError, Table

# Student's t for 95 %, three degrees of freedom, from a printed table.
T_3 = 3.182
HOSTILE = '<script>alert("&")</script>'
SEEDS = (3, 1, 4, 15)


def claim(name, kind, upheld_if="<= 0.01", refuted_if=">= 0.1", **changes):
    plain = {
        "id": name,
        "kind": kind,
        "says": f"{name} says so",
        "measure": "a size",
        "unit": "metres",
        "why": "because",
    }
    return plain | {"upheld_if": upheld_if, "refuted_if": refuted_if, "min_seeds": 4} | changes


def report(*claims, **changes):
    source = {"repository": "someone/something", "document": "notes.md", "date": "May 2025"}
    content = {"slug": "made_up", "title": "A title", "source": source, "summary": "Short.", "claims": list(claims)}
    return Report.model_validate(content | changes)


def case(*claims, **changes):
    return Case(report(*claims, **changes))


@pytest.fixture
def open_case():
    return case(
        claim("A1", "identity", min_seeds=0),
        claim("A2", "arithmetic", min_seeds=0),
        claim("A3", "effect"),
        claim("A4", "diagnostic"),
        claim("A5", "remedy"),
    )


@given(st.floats(-1, 1), st.sampled_from(["identity", "arithmetic"]))
def test_one_number_is_upheld_refuted_or_neither_as_its_region_says(value, kind):
    expected = "upheld" if value <= 0.01 else "refuted" if value >= 0.1 else "inconclusive"
    verdict = case(claim("A1", kind, min_seeds=0)).judge("A1", value)
    assert verdict.verdict == expected
    assert (verdict.low, verdict.value, verdict.high, verdict.n) == (value, value, value, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.001, 0.002, 0.003, 0.002), "upheld"),
        ((0.5, 0.6, 0.7, 0.6), "refuted"),
        ((0.05, 0.06, 0.05, 0.06), "inconclusive"),  # between the two regions
        ((0.001, 0.001, 0.001, 0.03), "inconclusive"),  # mean .00825 is inside, the interval is not
        ((0.05, 0.05, 0.4, 0.2), "inconclusive"),  # mean .175 is inside, the interval is not
    ],
)
@pytest.mark.parametrize("kind", ["effect", "remedy"])
def test_an_effect_needs_its_whole_interval_inside_the_region(kind, values, expected):
    assert case(claim("A1", kind)).judge("A1", values, seeds=SEEDS).verdict == expected


def test_the_interval_of_an_effect_is_the_tabulated_one():
    # 1, 2, 3, 4: mean 2.5, standard deviation sqrt(5/3), standard error sqrt(5/12).
    verdict = case(claim("A1", "effect")).judge("A1", [1, 2, 3, 4], seeds=SEEDS)
    half = T_3 * math.sqrt(5 / 12)
    assert verdict.value == pytest.approx(2.5)
    assert verdict.low == pytest.approx(2.5 - half, abs=1e-3)
    assert verdict.high == pytest.approx(2.5 + half, abs=1e-3)
    assert (verdict.n, verdict.seeds) == (4, list(SEEDS))


def test_equal_values_on_the_edge_of_a_closed_region_are_inside():
    # The floating-point mean of four or more times 0.1 may miss 0.1 by one bit, and the edge with it.
    for count in range(4, 40):
        verdict = case(claim("A1", "effect", "<= 0.1", "> 0.1")).judge("A1", [0.1] * count, seeds=range(count))
        assert (verdict.verdict, verdict.low, verdict.high) == ("upheld", 0.1, 0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["A1", "A2", "A3", "A4", "A5"])
def test_a_value_that_is_not_finite_is_refused_by_every_kind(open_case, name, bad):
    measured = bad if name in ("A1", "A2") else [0.001, bad, 0.001, 0.001]
    with pytest.raises(ReportError, match=rf"^{name}: measured holds -?(nan|inf); .*finite"):
        open_case.judge(name, measured, seeds=SEEDS)


def test_a_control_that_is_not_finite_is_refused(open_case):
    with pytest.raises(ReportError, match=r"^A4: control holds nan"):
        open_case.judge("A4", [0.0] * 4, seeds=SEEDS, control=[1, 1, math.nan, 1])


@pytest.mark.parametrize("name", ["A3", "A4", "A5"])
def test_too_few_seeds_are_refused_with_the_number_needed(open_case, name):
    with pytest.raises(ReportError, match=rf"^{name} needs at least 4 different seeds; came 3 seeds"):
        open_case.judge(name, [0.0] * 3, seeds=(1, 2, 3))


def test_a_single_number_may_ask_for_seeds_too():
    strict = case(claim("A1", "identity", min_seeds=4))
    with pytest.raises(ReportError, match="needs at least 4 different seeds; came 0 seeds"):
        strict.judge("A1", 0.0)
    assert strict.judge("A1", 0.0, seeds=SEEDS).seeds == list(SEEDS)


@pytest.mark.parametrize("seeds", [(1, 2, 3, 4, 4), (1.2, 1.7, 2, 3, 4), torch.tensor([1, 2, 3, 4, 4])])
def test_a_seed_given_twice_is_refused_even_where_enough_are_left(open_case, seeds):
    with pytest.raises(ReportError, match=r"A3 needs .* came 5 seeds, 4 of them different"):
        open_case.judge("A3", [0.0] * 5, seeds=seeds)


def test_values_and_seeds_must_pair_up(open_case):
    with pytest.raises(ReportError, match="A3: 5 measured values for 4 seeds; give one value a seed"):
        open_case.judge("A3", [0.0] * 5, seeds=SEEDS)
    with pytest.raises(ReportError, match="A4: 3 control values for 4 seeds"):
        open_case.judge("A4", [0.0] * 4, seeds=SEEDS, control=[1.0] * 3)


@pytest.mark.parametrize("act", [lambda c: c.judge("A9", 0.0), lambda c: c.untested("A9", "a cluster")])
def test_an_unknown_claim_is_refused_with_the_known_ones(open_case, act):
    with pytest.raises(ReportError, match=r"unknown claim 'A9'; made_up.toml holds A1, A2, A3, A4, A5"):
        act(open_case)


@pytest.mark.parametrize("act", [lambda c: c.judge("A1", 0.0), lambda c: c.untested("A1", "a cluster")])
def test_a_claim_is_judged_once(open_case, act):
    first = open_case.judge("A1", 0.5)
    with pytest.raises(ReportError, match="A1 is judged already"):
        act(open_case)
    open_case.withdraw("A1")
    act(open_case)
    assert first.verdict == "refuted"


def test_only_a_verdict_that_exists_can_be_withdrawn(open_case):
    open_case.judge("A2", 0.0)
    with pytest.raises(ReportError, match="A1 has no verdict to withdraw; judged so far: A2"):
        open_case.withdraw("A1")


@pytest.mark.parametrize("show", [Case.verdicts, Case.table, Case.evidence])
def test_claims_that_were_never_judged_are_named_and_nothing_is_shown(open_case, show):
    open_case.judge("A2", 0.0)
    with pytest.raises(ReportError, match="never judged: A1, A3, A4, A5; judge each"):
        show(open_case)


def test_a_refused_measurement_leaves_the_claim_open(open_case):
    with pytest.raises(ReportError):
        open_case.judge("A1", math.nan)
    with pytest.raises(ReportError, match="never judged: A1"):
        open_case.verdicts()
    assert open_case.judge("A1", 0.0).verdict == "upheld"


@pytest.mark.parametrize("name", ["A1", "A2"])
@pytest.mark.parametrize("measured", [[0.0], [], np.zeros(1), torch.zeros(2), "0", None])
def test_a_kind_of_one_number_refuses_several(open_case, name, measured):
    with pytest.raises(ReportError, match=rf"{name} is of kind \w+ and takes one number; measured is"):
        open_case.judge(name, measured, seeds=SEEDS)


@pytest.mark.parametrize("name", ["A3", "A4", "A5"])
@pytest.mark.parametrize("measured", [0.0, np.float32(0), torch.tensor(0.0), None, "many", np.zeros((4, 2))])
def test_a_kind_of_one_number_a_seed_refuses_anything_else(open_case, name, measured):
    with pytest.raises(ReportError, match=rf"{name} is of kind \w+ and takes one number per paired seed; measured is"):
        open_case.judge(name, measured, seeds=SEEDS)


@pytest.mark.parametrize("name", ["A1", "A2", "A3", "A5"])
def test_only_a_diagnostic_takes_a_control(open_case, name):
    measured = 0.0 if name in ("A1", "A2") else [0.0] * 4
    with pytest.raises(ReportError, match=rf"{name} is of kind \w+; only a diagnostic takes control="):
        open_case.judge(name, measured, seeds=SEEDS, control=[0.0] * 4)


@pytest.mark.parametrize("needs", ["", "   ", "\n"])
def test_untested_must_say_what_a_test_would_take(open_case, needs):
    with pytest.raises(ReportError, match="A3: say what a test would need"):
        open_case.untested("A3", needs)


def test_untested_holds_no_number(open_case):
    verdict = open_case.untested("A3", "eight accelerators for a week")
    assert verdict.verdict == "untested"
    assert verdict.reason == "It would take eight accelerators for a week."
    assert (verdict.value, verdict.low, verdict.high, verdict.n, verdict.seeds) == (None, None, None, 0, [])


CLEAN, FAULTY, BETWEEN = [0.001, 0.002, 0.001, 0.002], [0.5, 0.6, 0.5, 0.6], [0.05, 0.06, 0.05, 0.06]
REACHING = [0.0, 0.0, 0.02, 0.03]  # mean .0125; its interval crosses 0.01
REACHING_HIGH = [0.05, 0.06, 0.11, 0.12]  # mean .085; its interval crosses 0.1


@pytest.mark.parametrize(
    ("measured", "control", "expected"),
    [
        (CLEAN, None, "uninformative"),
        (FAULTY, None, "uninformative"),
        (BETWEEN, None, "uninformative"),
        (CLEAN, CLEAN, "uninformative"),  # the evidence comes out the same with the cause absent
        (FAULTY, FAULTY, "uninformative"),
        (CLEAN, REACHING, "inconclusive"),
        (FAULTY, REACHING_HIGH, "inconclusive"),
        (CLEAN, FAULTY, "upheld"),
        (CLEAN, BETWEEN, "upheld"),
        (FAULTY, CLEAN, "refuted"),
        (FAULTY, BETWEEN, "refuted"),
        (BETWEEN, CLEAN, "inconclusive"),
        (BETWEEN, FAULTY, "inconclusive"),
    ],
)
def test_a_diagnostic_says_something_only_where_its_control_says_otherwise(measured, control, expected):
    verdict = case(claim("A1", "diagnostic")).judge("A1", measured, seeds=SEEDS, control=control)
    assert verdict.verdict == expected
    assert verdict.control == (None if control is None else pytest.approx(sum(control) / 4))


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_a_diagnostic_is_never_decided_by_a_measurement_that_its_control_shares(measured, control):
    alone = case(claim("A1", "effect")).judge("A1", measured, seeds=SEEDS).verdict
    beside = case(claim("A1", "effect")).judge("A1", control, seeds=SEEDS).verdict
    verdict = case(claim("A1", "diagnostic")).judge("A1", measured, seeds=SEEDS, control=control).verdict
    if verdict in ("upheld", "refuted"):
        assert verdict == alone != beside
    if verdict == "uninformative":
        assert alone == beside in ("upheld", "refuted")


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=8, unique=True))
def test_nothing_is_upheld_that_lies_in_neither_region(values):
    verdict = case(claim("A1", "effect", "<= -100", ">= 100")).judge("A1", values, seeds=range(len(values)))
    # Eight numbers within ±10 cannot give a mean beyond ±10 or an interval that lies whole beyond ±100.
    assert verdict.verdict == "inconclusive"


def test_an_interval_that_overflows_is_refused_rather_than_recorded(open_case):
    with pytest.raises(ValueError, match="not finite"):
        open_case.judge("A3", [1e308, -1e308, 1.5e308, 1e308], seeds=SEEDS)


def judged():
    trial = case(
        claim("A1", "identity", min_seeds=0),
        claim("A2", "effect", says=HOSTILE),
        claim("A3", "diagnostic"),
        claim("A4", "remedy", unit=HOSTILE),
        measured_nowhere,
    )
    # Judged out of order on purpose; the report's order must come back.
    trial.untested("A5", "a cluster")
    trial.judge("A4", np.array([0.7654321, 0.7654322, 0.7654321, 0.7654325], dtype=np.float32), seeds=np.array(SEEDS))
    trial.judge("A3", torch.tensor([0.00123456] * 4), seeds=torch.tensor(SEEDS), control=np.full(4, 0.987654))
    trial.judge("A2", [0.0456789, 0.0456788, 0.0456787, 0.0456786], seeds=SEEDS)
    trial.judge("A1", np.float64(0.333444))
    return trial


measured_nowhere = claim("A5", "effect", measure=HOSTILE, upheld_if="<= 0.01")
NUMBERS = ("0.7654", "0.765", "0.00123", "0.98765", "0.988", "0.04567", "0.0457", "0.3334", "0.333", "0.0012")


def test_the_verdict_table_keeps_the_order_of_the_report_and_shows_every_verdict_with_its_sign():
    rows = judged().table().rows
    assert [row[0] for row in rows] == ["A1", "A2", "A3", "A4", "A5"]
    assert [row[1] for row in rows] == ["✗ refuted", "≈ inconclusive", "✓ upheld", "✗ refuted", "… untested"]
    assert len(set(SYMBOLS.values())) == 5


def test_no_output_but_the_evidence_holds_a_measured_number():
    trial = judged()
    shown = [repr(trial.table()), trial.table()._repr_html_(), repr(trial.bets()), trial.bets()._repr_html_()]
    for verdict in trial.verdicts():
        shown += [repr(verdict), str(verdict), f"{verdict}", verdict._repr_html_()]
    for text in shown:
        assert not [number for number in NUMBERS if number in text]
    evidence = repr(trial.evidence())
    assert all(number in evidence for number in ("0.765", "0.00123", "0.988", "0.0457", "0.333"))


def test_the_text_of_tables_does_not_change_with_the_measurement_inside_a_region():
    first, second = case(claim("A1", "effect")), case(claim("A1", "effect"))
    first.judge("A1", [0.001, 0.002, 0.003, 0.002], seeds=SEEDS)
    second.judge("A1", [-5, -5.1, -5.2, -5], seeds=(7, 8, 9, 10))
    assert repr(first.table()) == repr(second.table())
    assert repr(first.verdicts()) == repr(second.verdicts())


def test_html_escapes_what_reports_say():
    trial = judged()
    pages = [trial.table()._repr_html_(), trial.evidence()._repr_html_(), trial.bets()._repr_html_()]
    pages += [verdict._repr_html_() for verdict in trial.verdicts()]
    pages.append(Table(HOSTILE, (HOSTILE,), [(HOSTILE,), (HOSTILE,)])._repr_html_())
    assert all("<script" not in page for page in pages)
    escaped = "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;"
    assert sum(escaped in page for page in pages) == 5  # table, evidence, bets, A2, the table made of nothing else
    assert pages[-1].count(escaped) == 5  # label, caption, head, two rows


def test_a_rule_with_a_smaller_sign_is_escaped_too():
    page = case(claim("A1", "identity", "< 1", "> 2", min_seeds=0)).judge("A1", 0)._repr_html_()
    assert "upheld if &lt; 1; refuted if &gt; 2" in page


def test_evidence_carries_exactly_the_records_and_they_are_plain_json():
    trial = judged()
    bundle = trial.evidence()._repr_mimebundle_()
    records = bundle[VERDICTS_MIME]
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert [record["id"] for record in records] == ["A1", "A2", "A3", "A4", "A5"]
    assert set(records[0]) == {
        "id", "chapter", "kind", "verdict", "says", "measure", "unit", "value", "low", "high", "n", "seeds", "control",
        "rule", "reason",
    }  # fmt: skip
    first, third, last = records[0], records[2], records[4]
    assert (first["value"], first["n"], first["seeds"], first["control"]) == (0.333444, 1, [], None)
    assert first["rule"] == "upheld if <= 0.01; refuted if >= 0.1"
    assert (third["seeds"], third["n"], third["control"]) == (list(SEEDS), 4, pytest.approx(0.987654))
    assert (last["value"], last["n"], last["verdict"]) == (None, 0, "untested")
    assert {record["chapter"] for record in records} == {"made_up"}


def test_measurements_ride_along_one_a_seed_with_their_setting():
    trial = judged()
    assert MEASUREMENTS_MIME not in trial.evidence()._repr_mimebundle_()
    trial.record("A3", "final loss", [0.5, 0.25], unit="nats", seeds=[7, 8], setting={"epochs": 10})
    records = trial.evidence()._repr_mimebundle_()[MEASUREMENTS_MIME]
    common = {"chapter": "made_up", "claim": "A3", "measure": "final loss", "unit": "nats", "setting": {"epochs": 10}}
    assert records == [common | {"seed": 7, "value": 0.5}, common | {"seed": 8, "value": 0.25}]


@pytest.mark.parametrize(
    ("claim_id", "values", "message"),
    [("A9", [1.0], "unknown claim 'A9'"), ("A3", [1.0, 2.0], "2 values"), ("A3", [math.nan], "nan")],
)
def test_a_measurement_that_nobody_could_place_is_refused(claim_id, values, message):
    with pytest.raises(ReportError, match=message):
        judged().record(claim_id, "final loss", values, unit="nats", seeds=[7])


def test_only_the_evidence_carries_records():
    trial = judged()
    assert VERDICTS_MIME not in trial.table()._repr_mimebundle_()
    assert VERDICTS_MIME not in trial.bets()._repr_mimebundle_()


def test_bets_need_no_verdict(open_case):
    assert [row[0] for row in open_case.bets().rows] == ["A1", "A2", "A3", "A4", "A5"]


def test_a_table_aligns_its_columns():
    table = Table("Heights", ("who", "metres"), [("a", "1"), ("longer", "22")])
    assert repr(table) == "who     metres\na       1\nlonger  22"


def test_a_printed_number_is_read_by_name_and_an_unknown_name_lists_the_known():
    number = {"value": 0.25, "unit": "share", "source": "page 1"}
    trial = case(claim("A1", "effect"), printed={"quarter": number})
    assert trial.printed("quarter") == 0.25
    with pytest.raises(ReportError, match="prints no 'half'; known are quarter"):
        trial.printed("half")
    with pytest.raises(ReportError, match="known are none"):
        case(claim("A1", "effect")).printed("half")


def test_importing_claims_and_loading_a_report_imports_neither_torch_nor_scipy():
    code = (
        "import sys; from casestudies_lib.claims import load_report; load_report('zero_weight_head');"
        "print([name for name in ('torch', 'scipy', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
