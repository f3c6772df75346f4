"""Report files: one TOML a published post-mortem, with its claims and the rules fixed before the run."""

import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from casestudies_lib import paths
from casestudies_lib.regions import Region, region

Kind = Literal["identity", "arithmetic", "effect", "diagnostic", "remedy"]


class ReportError(ValueError):
    """A report file, or the use made of it, is wrong; the message names file, claim and field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


RegionField = Annotated[Region, BeforeValidator(lambda value: region(value) if isinstance(value, str) else value)]
Text = Annotated[str, Field(min_length=1)]


class Claim(_Strict):
    """One checkable statement of a report, with the rule that decides it."""

    id: Annotated[str, Field(pattern=r"^[A-Z][0-9]+$")]
    kind: Kind
    says: Text
    measure: Text
    unit: Text
    upheld_if: RegionField
    refuted_if: RegionField
    min_seeds: Annotated[int, Field(ge=0)]
    why: Text

    @property
    def rule(self) -> str:
        """Return the rule as one line."""
        return f"upheld if {self.upheld_if.text}; refuted if {self.refuted_if.text}"

    @model_validator(mode="after")
    def _rule_can_go_both_ways(self) -> "Claim":
        for low, high, closed in self.upheld_if.parts:
            inner_low, inner_high = (low, high) if closed else (math.nextafter(low, high), math.nextafter(high, low))
            if self.refuted_if.meets(inner_low, inner_high):
                raise ValueError(f"upheld_if ({self.upheld_if.text}) and refuted_if ({self.refuted_if.text}) overlap")
        if self.kind in ("effect", "remedy", "diagnostic") and self.min_seeds < 2:
            raise ValueError(f"min_seeds is {self.min_seeds}; kind {self.kind} needs an interval, so at least 2")
        return self


class Source(_Strict):
    """Where the report was published."""

    repository: Text
    document: Text
    date: Text


class Symptom(_Strict):
    """What a log or curve shows, the claim whose trial explains it, and the probe that finds it, if there is one.

    `suspect` names the cause where the claim does not. `then` lists the trials to read next if that is not it, the
    likeliest first: an id of this report, or `slug:ID` of another.
    """

    shows: Text
    claim: Text
    probe: Text | None = None
    suspect: Text | None = None
    then: list[Annotated[str, Field(pattern=r"^(?:[a-z][a-z0-9_]*:)?[A-Z][0-9]+$")]] = []


class PrintedNumber(_Strict):
    """A number that the report prints, or that its public code shows; `source` says which document."""

    value: float
    unit: Text
    source: Text


class Report(_Strict):
    """A published post-mortem: its source, its printed numbers, its claims and the symptoms they explain."""

    slug: Annotated[str, Field(pattern=r"^_?[a-z][a-z0-9_]*$")]
    title: Text
    source: Source
    summary: Text
    printed: dict[str, PrintedNumber] = {}
    claims: Annotated[list[Claim], Field(min_length=1)]
    symptoms: list[Symptom] = []

    @model_validator(mode="after")
    def _ids_agree(self) -> "Report":
        ids = [claim.id for claim in self.claims]
        if doubled := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"claims: id {', '.join(doubled)} stands twice")
        for symptom in self.symptoms:
            for name in (symptom.claim, *(name for name in symptom.then if ":" not in name)):
                if name not in ids:
                    raise ValueError(f"symptoms: {symptom.shows!r} names claim {name}; known are {', '.join(ids)}")
        return self


def report_slugs() -> list[str]:
    """Return the slugs of all report files, in alphabetical order; the template is not a report."""
    return sorted(path.stem for path in paths.reports().glob("[!_]*.toml"))


def load_report(slug: str) -> Report:
    """Read and validate the report file of a chapter.

    Raises:
        ReportError: the file is missing, is not TOML, or breaks the schema; names file, claim and field.
    """
    path = paths.reports() / f"{slug}.toml"
    if not path.is_file():
        known = ", ".join(report_slugs()) or "none"
        raise ReportError(f"no report file {path.name} in {path.parent}; known are {known}")
    return parse_report(path)


def parse_report(path: Path) -> Report:
    """Read and validate one report file; raises as `load_report` does."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{path.name} is not valid TOML: {error}; mend that line") from error
    try:
        report = Report.model_validate(content)
    except ValidationError as error:
        raise ReportError("\n".join(_explain(path.name, content, item) for item in error.errors())) from error
    if report.slug != path.stem:
        raise ReportError(f"{path.name}: slug is {report.slug!r}; it must be the file's name, {path.stem!r}")
    return report


def _explain(name: str, content: dict, item: dict) -> str:
    where = []
    for position, key in enumerate(item["loc"]):
        entry = content.get("claims", []) if position == 1 and item["loc"][0] == "claims" else []
        named = isinstance(key, int) and len(entry) > key and isinstance(entry[key], dict)
        where.append(str(entry[key].get("id", key)) if named else str(key))
    came = "" if isinstance(item["input"], dict | list) else f" (came: {item['input']!r})"
    return f"{name}: {' → '.join(where) or 'file'}: {item['msg']}{came}"
