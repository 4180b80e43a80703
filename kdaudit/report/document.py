"""The report document: the source of every rendering, versioned and validated.

A `Document` as JSON is the run's report.json. Its parts are in `kdaudit.report.sections` (what was audited) and
`kdaudit.report.results` (what was found).
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from kdaudit.errors import RunDirectoryError
from kdaudit.report.results import (
    CandidatesSection,
    ClusterSection,
    JudgementSection,
    PlotsSection,
    RepairSection,
    ValidityRow,
)
from kdaudit.report.sections import (
    CheckRow,
    ControlSection,
    CoverageSection,
    FindingRow,
    GateSection,
    MachineSection,
    ModelSection,
    PaceSection,
    PreprocessSection,
    RecipeSection,
    Section,
    SetSection,
)
from kdaudit.rundir import read_report

VERSION: Literal[1] = 1


class Document(Section):
    """The whole report."""

    kind: Literal["kdaudit-report"] = "kdaudit-report"
    version: Literal[1] = VERSION
    status: Literal["finished"] = "finished"
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    verdict: Literal["PASSED", "FAILED", "INCONCLUSIVE"]
    why: list[str]
    exit_code: int
    gate: GateSection = GateSection()
    findings: list[FindingRow]
    checks: list[CheckRow] = []
    coverage: CoverageSection
    model: ModelSection
    suspect: SetSection
    clean: SetSection
    preprocessing: PreprocessSection
    control: ControlSection
    judgement: JudgementSection
    validity: list[ValidityRow] = []
    clusters: list[ClusterSection] = []
    candidates: CandidatesSection = CandidatesSection()
    plots: PlotsSection | None = None
    kept: int
    quarantined: int
    repair: RepairSection | None
    machine: MachineSection
    timings: dict[str, float]
    pace: PaceSection | None = None
    recipe: RecipeSection


def parse_document(content: Any) -> Document:
    """A report from what its JSON holds.

    Raises:
        RunDirectoryError: it is unfinished, or not a report of this version.
    """
    if isinstance(content, dict) and content.get("status") == "unfinished":
        raise RunDirectoryError("the report of an unfinished run")
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RunDirectoryError(f"damaged or of another version of kdaudit (at {where!r})") from error


def read_document(run: Path) -> Document:
    """The report of a finished run.

    Raises:
        RunDirectoryError: no run there, an unfinished one, or one whose report is not one of this version.
    """
    report = read_report(run)
    try:
        return parse_document(report)
    except RunDirectoryError as error:
        raise RunDirectoryError(f"{run / 'report.json'} is {error}: begin a new run") from error
