"""The report document: the source of every rendering, versioned and validated.

Sections are frozen pydantic models; a `Document` as JSON is the run's report.json. Rates carry exact 95 % intervals.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdaudit.errors import RunDirectoryError
from kdaudit.rundir import read_report

VERSION = 1


class Section(BaseModel):
    """Base of all sections: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Rate(Section):
    """A share with its exact 95 % interval."""

    hits: int
    of: int
    low: float
    high: float


class FindingRow(Section):
    """A static or behavioural finding."""

    rule: str
    severity: Literal["low", "medium", "high", "critical"]
    message: str


class ModelSection(Section):
    """The suspect model."""

    path: str
    digest: str
    canonical_digest: str
    producer: str
    nodes: int
    parameters: int
    opsets: dict[str, int]
    signature: dict[str, Any]


class SetSection(Section):
    """One image set."""

    location: str
    kind: str
    records: int
    read: int
    unreadable: int
    skipped: int
    duplicates: int
    classes: list[str] | None


class CoverageSection(Section):
    """What of the suspect set was looked at; "clean" is never said of the rest."""

    scanned: int
    unreadable: int
    skipped: int
    share: float


class PreprocessSection(Section):
    """How the model was fed, and how sure that is."""

    recipe: str
    how: str
    sure: bool
    margin: float
    error: float
    runner_up: str | None
    accuracy: float | None
    class_order: list[int] | None
    class_basis: str
    note: str


class ControlSection(Section):
    """The control and what it was made from."""

    made_by: Literal["distil", "given"]
    fidelity: Rate
    parity: float | None
    architecture: str | None
    steps: int | None
    seconds: float | None
    losses: list[float]
    distillation_images: int
    calibration_images: int
    clean_shared: int
    clean_repeated: int
    clean_unreadable: int
    clean_unused: int


class GatheringRow(Section):
    """Flags at one answer of the model."""

    answer: int
    name: str | None
    flagged: Rate
    share_of_flags: float


class LabelRow(Section):
    """Flags at one label of the data set."""

    label: int
    name: str | None
    flagged: Rate


class JudgementSection(Section):
    """Flags, error rate and power."""

    rule: str
    fdr: float
    recipe: str
    flagged: Rate
    extrapolated: int
    doubtful: int
    visible_rate: float
    disagreement: float
    disagreement_clean: float
    excess: float
    by_answer: list[GatheringRow]
    by_label: list[LabelRow]
    statement: str


class RepairSection(Section):
    """The repaired model, before and after."""

    file: str
    tuned: bool
    images: int
    steps: int
    seconds: float
    parity: float
    accuracy_before: Rate | None
    accuracy: Rate | None
    still_suspicious: Rate | None


class MachineSection(Section):
    """What was really used."""

    device: str
    teacher_provider: str
    student_provider: str
    confinement: str = "none"
    decoder: str
    workers: int
    versions: dict[str, str]


class RecipeSection(Section):
    """Everything that reproduces the run."""

    kdaudit: str
    data: str
    clean: str
    control: str | None
    settings: dict[str, Any]


class Document(Section):
    """The whole report."""

    kind: Literal["kdaudit-report"] = "kdaudit-report"
    version: int = VERSION
    status: Literal["finished"] = "finished"
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    verdict: Literal["PASSED", "FAILED", "INCONCLUSIVE"]
    why: list[str]
    exit_code: int
    findings: list[FindingRow]
    coverage: CoverageSection
    model: ModelSection
    suspect: SetSection
    clean: SetSection
    preprocessing: PreprocessSection
    control: ControlSection
    judgement: JudgementSection
    kept: int
    quarantined: int
    repair: RepairSection | None
    machine: MachineSection
    timings: dict[str, float]
    recipe: RecipeSection


def read_document(run: Path) -> Document:
    """The report of a finished run.

    Raises:
        RunDirectoryError: no run there, an unfinished one, or one whose report is not one of this version.
    """
    report = read_report(run)
    try:
        return Document.model_validate(report)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RunDirectoryError(
            f"{run / 'report.json'} is damaged or of another version of kdaudit (at {where!r}): begin a new run"
        ) from error
