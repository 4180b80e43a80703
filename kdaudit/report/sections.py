"""The report's sections on what was audited: the model, the sets, the control, the machine, the findings and the gate.

Sections are frozen pydantic models. Rates carry exact 95 % intervals.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

CheckState = Literal["passed", "noted", "failed", "suppressed", "inconclusive", "not run"]
GateResult = Literal["passed", "failed", "inconclusive"]


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
    subject) names the same finding in another report. `expired` is an ignore that held once: the finding counts again.
    """

    rule: str
    severity: Literal["low", "medium", "high", "critical"]
    message: str
    subject: str = ""
    fingerprint: str = ""
    suppressed: Suppression | None = None
    expired: Suppression | None = None


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
    first 100 of them. `unopened` of them are archives or folders, of who knows how many images each; `aside` are no
    images by name and by content, such as a label beside each image, and `share` does not count them.
    """

    scanned: int
    unreadable: int
    skipped: int
    share: float
    unopened: int = 0
    aside: int = 0
    reasons: list[ReasonRow] = []
    examples: list[UnreadRow] = []

    @property
    def not_scanned(self) -> str:
        """The rest in words, the same wherever it is told."""
        rest = f"{self.unreadable:,} unreadable, {self.skipped - self.aside:,} skipped"
        return rest + (f", {self.aside:,} that are no images" if self.aside else "")


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
    backbone: str | None = None
    steps: int | None
    seconds: float | None
    losses: list[float]
    distillation_images: int
    calibration_images: int
    clean_shared: int
    clean_repeated: int
    clean_unreadable: int
    clean_unused: int


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


class CheckRow(Section):
    """One thing that was checked; those that passed are listed as well.

    `noted` is a finding below `--fail-on`, `suppressed` one that a baseline or an ignore takes out of the gate.
    """

    id: str
    group: Literal["graph", "behaviour", "audit", "gate"]
    title: str
    state: CheckState
    detail: str = ""


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
