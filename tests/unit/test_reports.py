"""Report files: what is refused, how the refusal reads, and that the shipped ones are fit for trial."""

import math
from pathlib import Path

import pytest

from casestudies_lib import claims, paths, probes
from casestudies_lib.regions import region
from casestudies_lib.reports import ReportError, load_report, report_slugs

HEAD = """
slug = "made_up"
title = "A title"
summary = "Short."

[source]
repository = "someone/something"
document = "notes.md"
date = "May 2025"
"""
CLAIM = """
[[claims]]
id = "A1"
kind = "effect"
says = "it holds"
measure = "a size"
unit = "metres"
upheld_if = "<= 0.01"
refuted_if = ">= 0.1"
min_seeds = 4
why = "because"
"""
SYMPTOM = """
[[symptoms]]
shows = "the loss is flat"
claim = "A1"
probe = "idle_parameters"
"""
GOOD = HEAD + CLAIM + SYMPTOM


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("CASEBOOK_ROOT", str(tmp_path))
    paths.reports().mkdir(parents=True)

    def read(text, slug="made_up"):
        (paths.reports() / f"{slug}.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_report(slug)

    return read


def test_a_good_file_gives_every_field(load):
    report = load(GOOD + '[printed.gap]\nvalue = 0.5\nunit = "AUC"\nsource = "page 2"\n')
    [claim], [symptom] = report.claims, report.symptoms
    assert (report.slug, report.title, report.summary) == ("made_up", "A title", "Short.")
    assert report.source.model_dump() == {
        "repository": "someone/something", "document": "notes.md", "date": "May 2025"
    }  # fmt: skip
    assert (claim.id, claim.kind, claim.says, claim.measure) == ("A1", "effect", "it holds", "a size")
    assert (claim.unit, claim.min_seeds, claim.why) == ("metres", 4, "because")
    assert (claim.upheld_if, claim.refuted_if) == (region("<= 0.01"), region(">= 0.1"))
    assert claim.rule == "upheld if <= 0.01; refuted if >= 0.1"
    assert (symptom.shows, symptom.claim, symptom.probe) == ("the loss is flat", "A1", "idle_parameters")
    assert report.printed["gap"].value == 0.5


def without(field, text=GOOD):
    return "\n".join(line for line in text.splitlines() if not line.startswith(f"{field} ="))


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("claims → A1 → ", ("kind", "says", "measure", "unit", "upheld_if", "refuted_if", "min_seeds", "why")),
        ("claims → 0 → ", ("id",)),
        ("source → ", ("repository", "document", "date")),
        ("", ("slug", "title", "summary")),
    ],
)
def test_a_missing_field_is_named_with_its_file_and_claim(load, place, fields):
    for field in fields:
        with pytest.raises(ReportError, match=rf"^made_up\.toml: {place}{field}: Field required$"):
            load(without(field, HEAD + CLAIM))


@pytest.mark.parametrize(
    ("line", "changed", "message"),
    [
        ('kind = "effect"', 'kind = "feeling"', r"claims → A1 → kind: .*'identity'.*'remedy'.*\(came: 'feeling'\)"),
        ('id = "A1"', 'id = "first"', r"claims → first → id: .*pattern.*\(came: 'first'\)"),
        ('says = "it holds"', 'says = ""', r"claims → A1 → says: .*at least 1 character"),
        ("min_seeds = 4", "min_seeds = -1", r"claims → A1 → min_seeds: .*greater than or equal to 0 \(came: -1\)"),
        ("min_seeds = 4", 'min_seeds = "many"', r"claims → A1 → min_seeds: .*valid integer.*\(came: 'many'\)"),
        ("min_seeds = 4", "min_seeds = 1", r"claims → A1: .*min_seeds is 1; kind effect needs an interval"),
        ('why = "because"', 'why = "because"\nmaybe = 1', r"claims → A1 → maybe: Extra inputs are not permitted"),
        ('"<= 0.01"', '"about 2"', r"claims → A1 → upheld_if: .*'about 2' is not one of '<= X'"),
        ('">= 0.1"', '"2 to 1"', r"claims → A1 → refuted_if: .*'2 to 1' is empty: 2.0 is not below 1.0"),
        ('">= 0.1"', '">= 1e999"', r"claims → A1 → refuted_if: .*too large for a float"),
        ('">= 0.1"', "0.1", r"claims → A1 → refuted_if: .*\(came: 0.1\)"),
        ('title = "A title"', 'title = "A title"\nauthor = "me"', r"author: Extra inputs are not permitted"),
        ('slug = "made_up"', 'slug = "Made up"', r"slug: .*pattern.*\(came: 'Made up'\)"),
        ('claim = "A1"', 'claim = "A7"', r"file: .*symptoms: 'the loss is flat' names claim A7; known are A1"),
        ('shows = "the loss is flat"', 'shows = ""', r"symptoms → 0 → shows: .*at least 1 character"),
    ],
)
def test_a_wrong_value_is_named_with_file_claim_and_field(load, line, changed, message):
    assert GOOD.count(line) == 1
    with pytest.raises(ReportError, match=rf"^made_up\.toml: {message}"):
        load(GOOD.replace(line, changed))


def test_every_error_of_a_file_is_told_at_once(load):
    text = GOOD.replace('kind = "effect"', 'kind = "feeling"').replace('unit = "metres"', 'unit = ""')
    with pytest.raises(ReportError) as caught:
        load(text)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "claims → A1 → kind",
        "claims → A1 → unit",
    ]


@pytest.mark.parametrize(
    ("upheld_if", "refuted_if"),
    [
        ("<= 1", ">= 1"),
        ("<= 1", ">= 0.5"),
        ("0 to 2", "outside 1 to 3"),
        ("== 3", ">= 3"),
        ("< 1", "== 0"),
        ("outside 0 to 1", "> 5"),
        ("> 0", "> 0"),
    ],
)
def test_a_rule_that_one_number_could_satisfy_both_ways_is_refused(load, upheld_if, refuted_if):
    text = GOOD.replace("<= 0.01", upheld_if).replace(">= 0.1", refuted_if)
    with pytest.raises(ReportError, match=r"claims → A1: .*upheld_if \(.*\) and refuted_if \(.*\) overlap"):
        load(text)


@pytest.mark.parametrize(
    ("upheld_if", "refuted_if"),
    [("< 1", ">= 1"), ("<= 1", "> 1"), ("< 1", "> 1"), ("== 0", "> 0"), ("0 to 1", "outside 0 to 1"), ("== 3", "<= 2")],
)
def test_regions_that_only_touch_are_allowed(load, upheld_if, refuted_if):
    assert load(GOOD.replace("<= 0.01", upheld_if).replace(">= 0.1", refuted_if)).claims[0].upheld_if.text == upheld_if


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + CLAIM + CLAIM + SYMPTOM, r"^made_up\.toml: file: .*id A1 stands twice"),
        (HEAD + CLAIM + CLAIM.replace('"A1"', '"A2"').replace('"metres"', '""'), "claims → A2 → unit"),
        (HEAD, r"^made_up\.toml: claims: (Field required|.*at least 1 item)"),
        (HEAD + CLAIM.replace("[[claims]]", "[claims]"), r"^made_up\.toml: claims: .*valid list"),
        ("slug = made_up", r"^made_up\.toml is not valid TOML: .*line 1.*mend"),
        (GOOD[: GOOD.index("someone") + 3], r"^made_up\.toml is not valid TOML: .*mend"),
        (b"slug = '\xff\xfe'", r"^made_up\.toml is not valid TOML"),
        (GOOD.replace("made_up", "other"), r"^made_up\.toml: slug is 'other'; it must be the file's name, 'made_up'"),
    ],
)
def test_a_file_that_is_no_report_is_refused(load, text, message):
    with pytest.raises(ReportError, match=message):
        load(text)


def test_an_unknown_report_is_refused_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("CASEBOOK_ROOT", str(tmp_path))
    with pytest.raises(ReportError, match=r"no report file made_up\.toml in .*known are none"):
        load_report("made_up")
    paths.reports().mkdir(parents=True)
    for slug in ("zebra", "ant"):
        (paths.reports() / f"{slug}.toml").write_text(GOOD.replace("made_up", slug), encoding="utf-8")
    with pytest.raises(ReportError, match="known are ant, zebra"):
        load_report("made_up")
    assert claims.open_case("ant").report.slug == "ant"


def test_every_path_hangs_off_one_root(tmp_path, monkeypatch):
    folders = {paths.reports: "data/reports", paths.notebooks: "notebooks", paths.book: "book", paths.build: "_build"}
    monkeypatch.delenv("CASEBOOK_ROOT", raising=False)
    assert (paths.root() / "casestudies_lib" / "paths.py").samefile(paths.__file__)
    for root in (paths.root(), tmp_path / "a b"):
        monkeypatch.setenv("CASEBOOK_ROOT", str(root))
        assert {folder(): None for folder in folders} == {Path(root, name): None for name in folders.values()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CASEBOOK_ROOT", "")  # set but empty is not set
    assert (paths.root() / "casestudies_lib").is_dir()


# From here on: the files that are shipped.


@pytest.mark.parametrize("slug", report_slugs())
def test_every_symptom_names_a_probe_that_exists_or_none(slug):
    symptoms = load_report(slug).symptoms
    for symptom in symptoms:
        assert symptom.probe is None or callable(getattr(probes, symptom.probe))
    assert any(symptom.probe for symptom in symptoms)


def inside(part):
    """Return a number well inside one part of a region."""
    low, high, _ = part
    if math.isinf(low):
        return high - 1
    return low + 1 if math.isinf(high) else (low + high) / 2


@pytest.mark.parametrize("slug", report_slugs())
def test_both_verdicts_of_every_claim_can_be_reached(slug):
    for claim in load_report(slug).claims:
        for region_of, other in ((claim.upheld_if, claim.refuted_if), (claim.refuted_if, claim.upheld_if)):
            number = inside(region_of.parts[0])
            assert region_of.holds(number, number)
            assert not other.meets(number, number)
