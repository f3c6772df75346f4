"""Claims are data: a report file fixes claims and rules before the run, and `Case.judge` applies them after it."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from casestudies_lib.records import MEASUREMENTS_MIME, SYMBOLS, VERDICTS_MIME
from casestudies_lib.regions import typeset
from casestudies_lib.reports import Claim, Kind, Report, ReportError, load_report
from casestudies_lib.tables import Table

_SINGLE = ("identity", "arithmetic")


class Measurement(BaseModel):
    """One measurement behind a claim, of one seed; sweeps put those of many runs side by side."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="forbid")

    chapter: str
    claim: str
    measure: str
    unit: str
    setting: dict[str, str | int | float]
    seed: int
    value: float


class Verdict(BaseModel):
    """One record of `verdicts.json`: a claim, what was measured, and what follows by the rule."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    id: str
    chapter: str
    kind: Kind
    verdict: Literal["upheld", "refuted", "inconclusive", "uninformative", "untested"]
    says: str
    measure: str
    unit: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    seeds: list[int]
    control: float | None
    rule: str
    reason: str

    @property
    def _ruling(self) -> str:
        return f"{self.id} {SYMBOLS[self.verdict]} {self.verdict}"

    def __repr__(self) -> str:
        """Return claim and verdict without the measured number, so that the text is the same on every machine."""
        return f"{self._ruling}: the report says that {self.says} ({typeset(self.rule)})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        says, rule = html.escape(self.says), html.escape(typeset(self.rule))
        ruling = f'<p class="casebook-verdict {self.verdict}"><strong>{self._ruling}</strong>'
        return f"{ruling} — the report says that {says} <small>({rule})</small></p>"


class Case:
    """The trial of one report: collects one verdict for each claim, in the order in which they are judged."""

    def __init__(self, report: Report) -> None:
        """Open the case with nothing judged."""
        self.report = report
        self._claims = {claim.id: claim for claim in report.claims}
        self._verdicts: dict[str, Verdict] = {}
        self._measurements: list[dict] = []

    def printed(self, name: str) -> float:
        """Return a number that the report prints; raises ReportError where its file holds no such number."""
        if name not in (known := self.report.printed):
            raise ReportError(f"{self.report.slug}.toml prints no {name!r}; known are {', '.join(known) or 'none'}")
        return self.report.printed[name].value

    def judge(
        self,
        claim_id: str,
        measured: float | Sequence[float],
        *,
        seeds: Sequence[int] = (),
        control: Sequence[float] | None = None,
    ) -> Verdict:
        """Apply the claim's rule to what was measured; the verdict is also kept for the verdict table.

        Args:
            claim_id: the id in the report file.
            measured: one number (identity, arithmetic), or one number per paired seed (effect, remedy, diagnostic).
            seeds: the seeds behind `measured`, in its order.
            control: diagnostics only: the same measurement where the claimed cause is absent, one number per seed.

        Raises:
            ReportError: unknown id, judged twice, too few or mismatched seeds, values not finite, or a shape that the
                claim's kind does not take.
        """
        claim = self._open_claim(claim_id)
        values = _checked_values(claim, measured, seeds, "measured")
        mean, low, high = _interval(values)
        if claim.kind == "diagnostic":
            controls = None if control is None else _checked_values(claim, control, seeds, "control")
            verdict, reason, control_mean = _judge_diagnostic(claim, low, high, controls)
        elif control is not None:
            raise ReportError(f"{claim_id} is of kind {claim.kind}; only a diagnostic takes control=")
        else:
            (verdict, reason), control_mean = _judge_interval(claim, low, high), None
        return self._keep(claim, verdict, reason, (mean, low, high), len(values), seeds, control_mean)

    def record(
        self,
        claim_id: str,
        measure: str,
        values: Sequence[float],
        *,
        unit: str,
        seeds: Sequence[int],
        setting: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Keep single measurements behind a claim, so that a sweep can put runs side by side; no verdict follows.

        Args:
            claim_id: the claim that they belong to.
            measure: what was measured, in a few words.
            values, unit, seeds: one number per seed.
            setting: what tells this measurement from others of its kind, such as `{"router": "soft", "epochs": 10}`.

        Raises:
            ReportError: unknown id, values and seeds differ in number, or a value is not finite.
        """
        self._known(claim_id)
        numbers = [float(value) for value in values]
        if len(numbers) != len(seeds):
            raise ReportError(f"{claim_id}: {len(numbers)} values of {measure!r} for {len(seeds)} seeds; give as many")
        if bad := [number for number in numbers if not math.isfinite(number)]:
            raise ReportError(f"{claim_id}: {measure!r} holds {bad[0]}; leave out what has no number and say so")
        common = {"chapter": self.report.slug, "claim": claim_id, "measure": measure, "unit": unit}
        self._measurements += [
            common | {"setting": dict(setting or {}), "seed": int(seed), "value": number}
            for seed, number in zip(seeds, numbers)
        ]

    def untested(self, claim_id: str, needs: str) -> Verdict:
        """Record that a claim could not be tried here, and what it would take.

        Raises:
            ReportError: unknown id, judged twice, or nothing said about what it would take.
        """
        claim = self._open_claim(claim_id)
        if not needs.strip():
            raise ReportError(f"{claim_id}: say what a test would need")
        return self._keep(claim, "untested", f"It would take {needs}.", (None, None, None), 0, (), None)

    def withdraw(self, claim_id: str) -> None:
        """Take a verdict back, so that a live notebook may judge the claim again; raises where there is none."""
        if self._verdicts.pop(claim_id, None) is None:
            raise ReportError(f"{claim_id} has no verdict to withdraw; judged so far: {', '.join(self._verdicts)}")

    def verdicts(self) -> list[Verdict]:
        """Return one verdict a claim, in the report's order.

        Raises:
            ReportError: a claim was never judged.
        """
        if missing := [name for name in self._claims if name not in self._verdicts]:
            raise ReportError(f"never judged: {', '.join(missing)}; judge each claim of {self.report.slug}.toml once")
        return [self._verdicts[name] for name in self._claims]

    def bets(self) -> Table:
        """Return the claims as a table, before any result."""
        rows = [(claim.id, claim.kind, claim.says, claim.measure) for claim in self.report.claims]
        return Table("Place your bets", ("claim", "kind", "the report says that", "what is measured"), rows)

    def table(self) -> Table:
        """Return the verdict table: no measured numbers, the same text on every machine."""
        rows = [(v.id, f"{SYMBOLS[v.verdict]} {v.verdict}", v.kind, v.says, typeset(v.rule)) for v in self.verdicts()]
        return Table("Verdicts", ("claim", "verdict", "kind", "the report says that", "rule"), rows)

    def evidence(self) -> Table:
        """Return the measured numbers behind the verdicts; this output also carries the records that runs collect."""
        verdicts = self.verdicts()
        rows = [(v.id, v.verdict, v.measure, _shown(v), v.unit, str(v.n), typeset(v.reason)) for v in verdicts]
        columns = ("claim", "verdict", "measure", "value [95 % interval]", "unit", "n", "because")
        records = {VERDICTS_MIME: [v.model_dump(mode="json") for v in verdicts]}
        if self._measurements:
            records[MEASUREMENTS_MIME] = list(self._measurements)
        return Table("Evidence", columns, rows, records)

    def _known(self, claim_id: str) -> Claim:
        if claim_id not in self._claims:
            raise ReportError(f"unknown claim {claim_id!r}; {self.report.slug}.toml holds {', '.join(self._claims)}")
        return self._claims[claim_id]

    def _open_claim(self, claim_id: str) -> Claim:
        if claim_id in self._verdicts:
            raise ReportError(f"{claim_id} is judged already; rerun from the top, or case.withdraw({claim_id!r}) first")
        return self._known(claim_id)

    def _keep(self, claim, verdict, reason, measured, n, seeds, control) -> Verdict:
        value, low, high = measured
        record = Verdict(
            id=claim.id, chapter=self.report.slug, kind=claim.kind, verdict=verdict, says=claim.says,
            measure=claim.measure, unit=claim.unit, value=value, low=low, high=high, n=n,
            seeds=[int(seed) for seed in seeds], control=control, rule=claim.rule, reason=reason,
        )  # fmt: skip
        self._verdicts[claim.id] = record
        return record


def open_case(slug: str) -> Case:
    """Open the case of a chapter; raises as `load_report` does."""
    return Case(load_report(slug))


def _checked_values(claim: Claim, measured: float | Sequence[float], seeds: Sequence[int], name: str) -> list[float]:
    single = isinstance(measured, int | float) or getattr(measured, "ndim", None) == 0
    try:
        if single != (claim.kind in _SINGLE):
            raise TypeError
        values = [float(measured)] if single else [float(value) for value in measured]
    except (TypeError, ValueError) as error:
        wanted = "one number" if claim.kind in _SINGLE else "one number per paired seed"
        raise ReportError(f"{claim.id} is of kind {claim.kind} and takes {wanted}; {name} is {measured!r}") from error
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ReportError(f"{claim.id}: {name} holds {bad[0]}; a verdict needs finite numbers, so find its cause first")
    different = len({int(seed) for seed in seeds})  # int, because each element of a tensor is an object of its own
    if different < max(claim.min_seeds, len(seeds)):
        came = f"{len(seeds)} seeds, {different} of them different"
        raise ReportError(f"{claim.id} needs at least {claim.min_seeds} different seeds; came {came}; raise n_seeds")
    if not single and len(values) != len(seeds):
        raise ReportError(f"{claim.id}: {len(values)} {name} values for {len(seeds)} seeds; give one value a seed")
    return values


def _interval(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    from casestudies_lib.stats import mean_interval  # scipy: only where something is measured

    return tuple(mean_interval(values))


def _judge_interval(claim: Claim, low: float, high: float) -> tuple[str, str]:
    if claim.upheld_if.holds(low, high):
        return "upheld", f"All of it lies where the claim holds ({claim.upheld_if.text})."
    if claim.refuted_if.holds(low, high):
        return "refuted", f"All of it lies where the claim fails ({claim.refuted_if.text})."
    return "inconclusive", "It reaches neither region whole."


def _judge_diagnostic(
    claim: Claim, low: float, high: float, control: list[float] | None
) -> tuple[str, str, float | None]:
    if control is None:
        return "uninformative", "No control was measured.", None
    verdict, reason = _judge_interval(claim, low, high)
    mean, control_low, control_high = _interval(control)
    if verdict == "inconclusive":
        return verdict, reason, mean
    reached = claim.upheld_if if verdict == "upheld" else claim.refuted_if
    if reached.holds(control_low, control_high):
        return "uninformative", "The control, without the claimed cause, gives the same result.", mean
    if reached.meets(control_low, control_high):
        return "inconclusive", "The control's interval reaches into the same region.", mean
    return verdict, f"{reason} The control does not ({mean:.3g}).", mean


def _shown(verdict: Verdict) -> str:
    limits = "" if verdict.low == verdict.high else f" [{verdict.low:.3g}, {verdict.high:.3g}]"
    return "—" if verdict.value is None else f"{verdict.value:.3g}{limits}"
