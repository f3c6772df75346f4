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

from casestudies_lib.claims import MEASUREMENTS_MIME, SYMBOLS, VERDICTS_MIME, Case, Table
from casestudies_lib.reports import Report, ReportError

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
        claim("A6", "identity"),
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


FOUR, NAN = [0.0] * 4, [0.0, math.nan, 0.0, 0.0]
REFUSED = [
    (lambda c: c.judge("A1", math.nan), "^A1: measured holds nan; .*finite"),
    (lambda c: c.judge("A3", NAN, seeds=SEEDS), "^A3: measured holds nan"),
    (lambda c: c.judge("A4", FOUR, seeds=SEEDS, control=NAN), "^A4: control holds nan"),
    (lambda c: c.judge("A3", [1e308, -1e308, 1.5e308, 1e308], seeds=SEEDS), "not finite"),
    (lambda c: c.judge("A3", [0.0] * 3, seeds=(1, 2, 3)), "A3 needs at least 4 different seeds; came 3 seeds"),
    (lambda c: c.judge("A5", [0.0] * 3, seeds=(1, 2, 3)), "A5 needs at least 4 different seeds"),
    (lambda c: c.judge("A6", 0.0), "A6 needs at least 4 different seeds; came 0 seeds"),
    (lambda c: c.judge("A3", [0.0] * 5, seeds=(1, 2, 3, 4, 4)), "came 5 seeds, 4 of them different"),
    (lambda c: c.judge("A3", [0.0] * 5, seeds=torch.tensor([1, 2, 3, 4, 4])), "4 of them different"),
    (lambda c: c.judge("A3", [0.0] * 5, seeds=SEEDS), "A3: 5 measured values for 4 seeds; give one value a seed"),
    (lambda c: c.judge("A4", FOUR, seeds=SEEDS, control=[1.0] * 3), "A4: 3 control values for 4 seeds"),
    (lambda c: c.judge("A9", 0.0), r"unknown claim 'A9'; made_up.toml holds A1, A2, A3, A4, A5, A6"),
    (lambda c: c.untested("A9", "a cluster"), "unknown claim 'A9'"),
    (lambda c: c.judge("A1", [0.0]), r"A1 is of kind identity and takes one number; measured is"),
    (lambda c: c.judge("A2", torch.zeros(2)), r"A2 is of kind arithmetic and takes one number"),
    (lambda c: c.judge("A1", None), "takes one number"),
    (lambda c: c.judge("A3", torch.tensor(0.0), seeds=SEEDS), "A3 is of kind effect and takes one number per paired"),
    (lambda c: c.judge("A5", np.zeros((4, 2)), seeds=SEEDS), "A5 is of kind remedy and takes one number per paired"),
    (lambda c: c.judge("A3", "many", seeds=SEEDS), "takes one number per paired seed"),
    (lambda c: c.judge("A1", 0.0, control=FOUR), "A1 is of kind identity; only a diagnostic takes control="),
    (lambda c: c.judge("A5", FOUR, seeds=SEEDS, control=FOUR), "A5 is of kind remedy; only a diagnostic"),
    (lambda c: c.untested("A3", " "), "A3: say what a test would need"),
    (lambda c: c.withdraw("A1"), "A1 has no verdict to withdraw"),
    (lambda c: c.record("A9", "final loss", [1.0], unit="nats", seeds=[7]), "unknown claim 'A9'"),
    (
        lambda c: c.record("A3", "final loss", [1.0, 2.0], unit="nats", seeds=[7]),
        "2 values of 'final loss' for 1 seeds",
    ),
    (lambda c: c.record("A3", "final loss", [math.nan], unit="nats", seeds=[7]), "'final loss' holds nan"),
    (lambda c: c.printed("half"), "prints no 'half'; known are none"),
    (Case.verdicts, "never judged: A1, A2, A3, A4, A5, A6; judge each"),
    (Case.table, "never judged: A1"),
    (Case.evidence, "never judged: A1"),
]


@pytest.mark.parametrize(("act", "message"), REFUSED)
def test_what_cannot_be_judged_is_refused_and_leaves_the_claims_open(open_case, act, message):
    with pytest.raises(ValueError, match=message):
        act(open_case)
    for name in ("A1", "A2"):
        open_case.judge(name, 0.0)
    for name in ("A3", "A5"):
        open_case.judge(name, FOUR, seeds=SEEDS)
    open_case.judge("A4", FOUR, seeds=SEEDS, control=[1.0] * 4)
    assert open_case.judge("A6", 0.0, seeds=SEEDS).seeds == list(SEEDS)
    assert [verdict.id for verdict in open_case.verdicts()] == ["A1", "A2", "A3", "A4", "A5", "A6"]


@pytest.mark.parametrize("act", [lambda c: c.judge("A1", 0.0), lambda c: c.untested("A1", "a cluster")])
def test_a_claim_is_judged_once(open_case, act):
    first = open_case.judge("A1", 0.5)
    with pytest.raises(ReportError, match="A1 is judged already"):
        act(open_case)
    open_case.withdraw("A1")
    act(open_case)
    assert first.verdict == "refuted"


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


def test_html_escapes_what_reports_say():
    trial = judged()
    pages = [trial.table()._repr_html_(), trial.evidence()._repr_html_(), trial.bets()._repr_html_()]
    pages += [verdict._repr_html_() for verdict in trial.verdicts()]
    pages.append(Table(HOSTILE, (HOSTILE,), [(HOSTILE,), (HOSTILE,)])._repr_html_())
    assert all("<script" not in page for page in pages)
    escaped = "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;"
    assert sum(escaped in page for page in pages) == 5  # table, evidence, bets, A2, the table made of nothing else
    assert pages[-1].count(escaped) == 5  # label, caption, head, two rows


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
    assert VERDICTS_MIME not in trial.table()._repr_mimebundle_() | trial.bets()._repr_mimebundle_()


def test_measurements_ride_along_one_a_seed_with_their_setting():
    trial = judged()
    assert MEASUREMENTS_MIME not in trial.evidence()._repr_mimebundle_()
    trial.record("A3", "final loss", [0.5, 0.25], unit="nats", seeds=[7, 8], setting={"epochs": 10})
    records = trial.evidence()._repr_mimebundle_()[MEASUREMENTS_MIME]
    common = {"chapter": "made_up", "claim": "A3", "measure": "final loss", "unit": "nats", "setting": {"epochs": 10}}
    assert records == [common | {"seed": 7, "value": 0.5}, common | {"seed": 8, "value": 0.25}]


def test_a_printed_number_is_read_by_name():
    number = {"value": 0.25, "unit": "share", "source": "page 1"}
    assert case(claim("A1", "effect"), printed={"quarter": number}).printed("quarter") == 0.25


def test_a_table_aligns_its_columns():
    table = Table("Heights", ("who", "metres"), [("a", "1"), ("longer", "22")])
    assert repr(table) == "who     metres\na       1\nlonger  22"


def test_importing_claims_and_loading_a_report_imports_neither_torch_nor_scipy():
    code = (
        "import sys; from casestudies_lib.claims import open_case; open_case('zero_weight_head');"
        "print([name for name in ('torch', 'scipy', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
