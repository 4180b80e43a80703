"""The report's sections on what was found: flags and where they gather, clusters and their triggers, the repair."""

from typing import Literal

from kdaudit.report.sections import Rate, Section

Pattern = Literal["patch", "blend", "sinusoid", "added pattern", "unknown", "none"]


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


class ClusterSection(Section):
    """Candidates that belong together: the model gives them one answer, and they share what drives it.

    `says` counts the model's answers and `sees` the control's, most frequent first; `target` is the model's most
    frequent one, which not all that share a pattern need get. `teacher_flips` and `control_flips` are the rates
    at which the shared pattern, put on clean images, turns model and control to `target`, `placebo_flips` that at
    which other images' content does so in the model, as strong and in the same places; None where that was not tried.
    `examples` are paths of up to 20 members, highest score first. `fingerprint` covers all members' contents.
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
    placebo_flips: Rate | None = None
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


class CandidatesSection(Section):
    """The flagged images by content: what a later run compares with when this report is its baseline.

    `digests` are the content digests (32 hexadecimal digits) of the flagged images, sorted, each once; empty when there
    are more than 10,000 (the gate then reads them from the samples.parquet beside the report). `digest` covers all.
    """

    count: int = 0
    digest: str = ""
    digests: list[str] = []
