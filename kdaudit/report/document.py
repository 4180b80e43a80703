"""The report document: the source of every rendering, versioned and validated.

Sections are frozen pydantic models; a `Document` as JSON is the run's report.json. Rates carry exact 95 % intervals.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdaudit.errors import RunDirectoryError
from kdaudit.rundir import read_report

VERSION: Literal[1] = 1


class Section(BaseModel):
    """Base of all sections: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Rate(Section):
    """A share with its exact 95 % interval."""

    hits: int
    of: int
    low: float
    high: float


class Suppression(Section):
    """Why a finding does not count at the gate; it is shown all the same."""

    by: Literal["baseline", "ignore"]
    reason: str
    expires: str | None = None


class FindingRow(Section):
    """A static or behavioural finding.

    `subject` is what it is about, such as "answer 7"; `fingerprint` (64 hexadecimal digits, from rule, model and
    subject) names the same finding in another report.
    """

    rule: str
    severity: Literal["low", "medium", "high", "critical"]
    message: str
    subject: str = ""
    fingerprint: str = ""
    suppressed: Suppression | None = None


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


class UnreadRow(Section):
    """An image that was not scanned, and why."""

    path: str
    status: Literal["unreadable", "skipped"]
    reason: str


class ReasonRow(Section):
    """How many images were not scanned for one reason."""

    status: Literal["unreadable", "skipped"]
    reason: str
    images: int


class CoverageSection(Section):
    """What of the suspect set was looked at; "clean" is never said of the rest.

    `reasons` counts the images that were not scanned, most frequent reason first (50 at most); `examples` names the
    first 100 of them.
    """

    scanned: int
    unreadable: int
    skipped: int
    share: float
    reasons: list[ReasonRow] = []
    examples: list[UnreadRow] = []


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


class AnswerCount(Section):
    """How many images get one answer."""

    answer: int
    name: str | None
    images: int


Pattern = Literal["patch", "blend", "sinusoid", "added pattern", "unknown", "none"]


class ClusterSection(Section):
    """Candidates that belong together: the model gives them one answer, and they share what drives it.

    `says` counts the model's answers and `sees` the control's, most frequent first; `target` is the model's most
    frequent one, which not all that share a pattern need get. `teacher_flips` and `control_flips` are the rates
    at which the shared pattern, put on clean images, turns model and control to `target`; None where that was not
    tried. `examples` are paths of up to 20 members, highest score first. `fingerprint` covers all members' contents.
    """

    id: str
    kind: Literal["poison", "doubtful"]
    target: int
    target_name: str | None
    size: int
    says: list[AnswerCount] = []
    sees: list[AnswerCount]
    pattern: Pattern = "unknown"
    teacher_flips: Rate | None = None
    control_flips: Rate | None = None
    statement: str = ""
    examples: list[str] = []
    fingerprint: str = ""


class ValidityRow(Section):
    """Whether an assumption behind the error rate holds on these images, such as exchangeability."""

    name: str
    state: Literal["holds", "violated", "not tested"]
    p_value: float | None = None
    statement: str


class PlotsSection(Section):
    """What the plots show.

    `score_edges` are n + 1 bin edges of the rule's score; the three counts have n entries each: calibration images,
    suspect images that were not flagged, flagged ones. `threshold` is the smallest score of a flagged image; none where
    one was flagged without a score of its own. `p_values`
    are 20 equal bins from 0 to 1: suspect images by p-value.
    """

    score_name: str
    score_edges: list[float]
    calibration: list[int]
    unflagged: list[int]
    flagged: list[int]
    threshold: float | None
    p_values: list[int]


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
    """What was really used; `student_confinement` is "none" for a control that kdaudit distilled itself."""

    device: str
    teacher_provider: str
    student_provider: str
    confinement: str = "none"
    student_confinement: str = "none"
    decoder: str
    workers: int
    versions: dict[str, str]


class PaceSection(Section):
    """How fast the suspect images were compared, in the last pass of a run that was resumed.

    `shares` are of all working seconds, largest first; `wall` is the part to make faster.
    """

    images: int
    images_per_s: float
    shares: dict[str, float]
    wall: str


class RecipeSection(Section):
    """Everything that reproduces the run; `command` is the line to type."""

    kdaudit: str
    command: str = ""
    data: str
    clean: str
    control: str | None
    settings: dict[str, Any]


CheckState = Literal["passed", "noted", "failed", "suppressed", "inconclusive", "not run"]
GateResult = Literal["passed", "failed", "inconclusive"]


class CheckRow(Section):
    """One thing that was checked; those that passed are listed as well.

    `noted` is a finding below `--fail-on`, `suppressed` one that a baseline or an ignore takes out of the gate.
    """

    id: str
    group: Literal["graph", "behaviour", "audit", "gate"]
    title: str
    state: CheckState
    detail: str = ""


class CandidatesSection(Section):
    """The flagged images by content: what a later run compares with when this report is its baseline.

    `digests` are the content digests (32 hexadecimal digits) of the flagged images, sorted, each once; empty when there
    are more than 10,000 (the gate then reads them from the samples.parquet beside the report). `digest` covers all.
    """

    count: int = 0
    digest: str = ""
    digests: list[str] = []


class GateSection(Section):
    """What the gate made of the findings. The verdict speaks of model and images; the gate decides the exit code.

    `new_candidates` counts the flagged images that the baseline does not hold; None without a baseline.
    """

    result: GateResult = "passed"
    reasons: list[str] = []
    notes: list[str] = []
    fail_on: str = "high"
    max_flagged_rate: float | None = None
    exit_zero: bool = False
    baseline: str | None = None
    new_candidates: int | None = None


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
