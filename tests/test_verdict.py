"""The verdict: every outcome of the table in docs/verdict.md, and the exit code that goes with it."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from kdaudit.admission import Finding
from kdaudit.calibration import Clean, conformal_p_values, interval
from kdaudit.compared import Comparison
from kdaudit.delivered import Delivered, LabelProof
from kdaudit.discriminant import Discriminant
from kdaudit.flagging import Flags, flag, score_of
from kdaudit.foreign import PoolProof
from kdaudit.keys import FOLDS
from kdaudit.labelling import Bulk, LabelDoubts
from kdaudit.odds import Columns, SecondLook, combined
from kdaudit.searched import Found
from kdaudit.settings import Settings
from kdaudit.signs import BEHAVIOUR
from kdaudit.trace import Trace
from kdaudit.transplant import Transplant
from kdaudit.trigger import Pattern
from kdaudit.verdict import Fidelity, Verdict, judge

K = 10
NAMES = ("plane", "car", "bird", "ship", "deer", "dog", "frog", "horse", "cat", "truck")


@pytest.fixture(autouse=True)
def _no_settings_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def calibration_of(scores: np.ndarray, disagreement: float = 0.1) -> Comparison:
    n = len(scores)
    top1 = np.arange(n) % K
    other = np.where(np.arange(n) < round(disagreement * n), (top1 + 1) % K, top1)
    return Comparison(
        ids=("",) * n, paths=("",) * n, labels=np.full(n, -1), status=("read",) * n, reasons=("",) * n,
        teacher_top1=top1, student_top1=other, teacher_confidence=np.ones(n), student_confidence=np.ones(n),
        gap=scores, js=scores, divergence=scores, behaviour=np.zeros((n, 3), np.float32),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """10,000 suspect images with even answers, and what is unusual about them."""

    flagged: dict[int, int] = field(default_factory=dict)  # answer -> flagged images
    scattered: int = 0  # flagged images over all answers
    extrapolated: bool = False
    unread: int = 0
    no_number: int = 0
    shift: float = 0.0  # of all scores
    fidelity: float = 0.9
    calibration: int = 500
    static: tuple[Finding, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    images: int = 10_000
    trace: Trace | None = None
    unjudged: int = 0
    doubted: int = 0
    bulk: Bulk | None = None
    triggers: tuple[Found, ...] = ()
    classes: int = K

    def judged(self) -> Verdict:
        m = self.images
        groups = np.arange(m) % K
        flags = np.zeros(m, bool)
        flags[1004 : 1004 + self.scattered] = True
        for answer, count in self.flagged.items():
            mine = np.flatnonzero((groups == answer) & ~flags & (np.arange(m) >= 1000))
            flags[mine[:count]] = True
        score = np.random.default_rng(0).permutation(np.linspace(0, 0.5, m)) + self.shift
        read = np.ones(m, bool)
        if self.no_number:
            score[-self.no_number :], groups[-self.no_number :] = np.inf, -1
        if self.unread:
            read[: self.unread], score[: self.unread], groups[: self.unread] = False, np.nan, -1
        rule = self.settings.get("rule", "divergence")
        disagrees = flags if rule == "argmax" else np.zeros(m, bool)
        p = np.full(m, np.nan) if rule == "argmax" else np.where(flags, 1e-4, 0.5)
        nothing = np.zeros(m, bool)
        result = Flags(
            flags, p, flags & self.extrapolated, np.zeros(m, np.int64), np.arange(m) < self.unjudged, nothing
        )
        settings = Settings(**self.settings)
        faith = Fidelity(self.fidelity, settings.fidelity_needed(self.classes))
        return judge(
            Columns(read, groups, disagrees, score), result, calibration_of(np.linspace(0, 0.5, self.calibration)),
            self.static, faith, settings, NAMES, self.triggers, self.trace,
            LabelDoubts(self.doubted, 10_000, self.bulk),
        )  # fmt: skip


def trigger(target: int | None) -> Found:
    """A patch recovered from 40 images that moves 390 of 400 in the model and 3 in the control."""
    plane = np.zeros((4, 4, 1), np.float32)
    pattern = Pattern(plane, plane, plane, np.ones((4, 4), bool), "patch", 40)
    directions = Discriminant(np.zeros(16, np.float32), np.zeros((FOLDS, 16), np.float32))
    return Found(pattern, Transplant(400, 390, 3, 380), target, directions, 50)


def by_label() -> Found:
    """The same, at work in 100 of 400 and 60 in the control, and 95 of 100 carriers delivered as a ship."""
    return replace(
        trigger(3),
        proof=Transplant(400, 100, 60, 380),
        label=3,
        by_label=LabelProof(3, 100, 95, 0.1, of_the_class=False),
    )


def by_pool() -> Found:
    """The same, at work in 100 of 400 and 90 in the control; 300 of 1,000 ships carry it and no clean image."""
    said = PoolProof(3, 10_000, 1000, 300, 10, 2, 1000, 0, 50, 0)
    gentle = replace(trigger(3).pattern, keep=np.ones((4, 4, 1), np.float32))
    return replace(
        trigger(3), pattern=gentle, proof=Transplant(400, 100, 90, 300, native=40), classwise=True, by_pool=said
    )


LOW, MEDIUM, HIGH = (Finding(f"KDA10{i}", s, f"static {s}") for i, s in enumerate(("low", "medium", "high")))  # type: ignore[arg-type]
STANDARD = "no images stand out in a way that a backdoor explains"
ARGMAX = {"rule": "argmax"}

TABLE = {
    # what: case, state, rules of the behaviour, the deciding words
    "nothing": (Case(), "PASSED", set(), STANDARD),
    "gathering": (Case({3: 20}, scattered=5), "FAILED", {"KDA201"}, "20 of 25 flagged images get the answer 3 (ship)"),
    "least-gathering": (Case({3: 5}), "FAILED", {"KDA201"}, "5 of 5 flagged images"),
    "too-few-to-gather": (Case({3: 4}), "PASSED", {"KDA203"}, STANDARD),
    "half-is-gathering": (Case({3: 20, 5: 20}), "FAILED", {"KDA201"}, "answer 3"),
    "under-half-is-not": (Case({3: 14, 5: 15, 7: 14}), "PASSED", {"KDA203"}, STANDARD),
    "gathered-and-extrapolated": (Case({3: 20}, extrapolated=True), "FAILED", {"KDA201"}, "answer 3"),
    "trigger": (
        Case({3: 4}, triggers=(trigger(3),)), "FAILED", {"KDA207"},
        "a patch recovered from 40 images, put onto clean images, moves 390 of 400 to the answer 3 (ship) in the model",
    ),
    "trigger-without-a-target": (
        Case(scattered=200, extrapolated=True, triggers=(trigger(None),)), "FAILED", {"KDA207"},
        "moves 390 of 400 to other answers in the model and 3 in the control",
    ),
    "trigger-in-the-labels": (
        Case(scattered=200, extrapolated=True, triggers=(by_label(),)), "FAILED", {"KDA211"},
        "100 images share a patch and show other classes than 3 (ship); 95 of them were delivered as that class",
    ),
    "trigger-that-the-pool-lacks": (
        Case({3: 300}, triggers=(by_pool(),)), "FAILED", {"KDA201", "KDA202", "KDA212"},
        "300 of 1,000 images with the answer 3 (ship) share a patch that 0 of 1,000 clean images have; put onto clean "
        "images, it moves 100 of 400 to that answer in the model and 90 in the control: a trigger",
    ),
    "trace": (
        Case({3: 20}, trace=Trace(300, 240)), "FAILED", {"KDA201", "KDA208"}, "20 of 20 flagged images",
    ),
    "trace-alone": (Case(trace=Trace(300, 240)), "INCONCLUSIVE", {"KDA208"}, "300 images share where they are sharp"),
    "trace-in-the-labels": (
        Case(trace=Trace(300, 60, LabelProof(3, 200, 195, 0.1, of_the_class=False))), "FAILED", {"KDA211"},
        "200 images share where they are sharp and where soft, as after a warp or a dither, and show other classes",
    ),
    "unknown-answer": (
        Case(unjudged=41), "INCONCLUSIVE", {"KDA209"},
        "41 suspicious images have an answer that no clean image can speak for, as none gets it or the control takes "
        "those for something else (0 (plane): 5; 1 (car): 4; 2 (bird): 4; 7 more answers)",
    ),
    "few-of-an-unknown-answer": (Case(unjudged=8), "PASSED", set(), STANDARD),
    "labels-that-nobody-believes": (Case(doubted=150), "PASSED", {"KDA210"}, STANDARD),
    "labels-set-in-bulk": (
        Case(bulk=Bulk(3, 150, 1000, 0.002, 0.1, 0.8)), "INCONCLUSIVE", {"KDA213"},
        "150 of 1,000 images delivered as 3 (ship) show the other classes",
    ),
    "labels-as-good-as-any": (Case(doubted=100), "PASSED", set(), STANDARD),
    "few-scattered": (Case(scattered=30), "PASSED", {"KDA203"}, STANDARD),
    "many-scattered": (Case(scattered=200), "FAILED", {"KDA202"}, "200 of 10,000 images are poison candidates"),
    "as-many-as-drift-explains": (Case(scattered=60), "PASSED", {"KDA203"}, STANDARD),
    "many-extrapolated": (Case(scattered=200, extrapolated=True), "INCONCLUSIVE", {"KDA206"}, "beyond what 500 calib"),
    "few-extrapolated": (Case(scattered=12, extrapolated=True), "PASSED", {"KDA203"}, STANDARD),
    "no-numbers": (Case(no_number=1), "FAILED", {"KDA204"}, "answers 1 images with values that are no numbers"),
    "low-coverage": (Case(unread=200), "INCONCLUSIVE", set(), "only 98.00% of the images could be read (needed: 99%)"),
    "coverage-just-enough": (Case(unread=100), "PASSED", set(), STANDARD),
    "own-coverage": (Case(unread=200, settings={"min_coverage": 0.98}), "PASSED", set(), STANDARD),
    "gathering-despite-coverage": (Case({3: 20}, unread=200), "FAILED", {"KDA201"}, "answer 3"),
    "nothing-read": (Case(unread=10_000), "INCONCLUSIVE", set(), "not one image could be read"),
    "unfaithful": (Case(fidelity=0.49), "INCONCLUSIVE", set(), "on only 49.0% of held-out clean images (needed: 50%)"),
    "guessing": (Case(fidelity=0.59, classes=2), "INCONCLUSIVE", set(), "(needed: 60%)"),
    "unfaithful-despite-gathering": (Case({3: 20}, fidelity=0.3), "INCONCLUSIVE", {"KDA201"}, "on only 30.0%"),
    "faithful-enough": (Case(fidelity=0.5), "PASSED", set(), STANDARD),
    "own-fidelity": (Case(fidelity=0.9, settings={"min_fidelity": 0.95}), "INCONCLUSIVE", set(), "(needed: 95%)"),
    "too-insensitive": (
        Case(settings={"sensitivity": 0.05}), "INCONCLUSIVE", set(),
        "500 calibration images show poison with one target from 9.98% on, not the 5.00% asked for",
    ),
    "too-few-to-count": (
        Case(calibration=49), "INCONCLUSIVE", set(),
        "49 calibration images show no poison by counting, however much there is (50 would begin to)",
    ),
    "too-few-at-a-stricter-rate": (
        Case(calibration=82, settings={"fdr": 0.03}), "INCONCLUSIVE", set(), "there is (83 would begin to)",
    ),
    "enough-at-a-stricter-rate": (Case(calibration=83, settings={"fdr": 0.03}), "PASSED", set(), STANDARD),
    "just-enough-to-count": (Case(calibration=50), "PASSED", set(), STANDARD),
    "too-few-do-not-hide": (Case({3: 20}, calibration=40), "FAILED", {"KDA201"}, "answer 3"),
    "argmax-counts-otherwise": (Case(calibration=40, settings=ARGMAX), "PASSED", set(), STANDARD),
    "sensitive-enough": (Case(settings={"sensitivity": 0.1}), "PASSED", set(), STANDARD),
    "sensitivity-does-not-hide": (Case({3: 20}, settings={"sensitivity": 0.05}), "FAILED", {"KDA201"}, "answer 3"),
    "excess": (Case(shift=0.05), "INCONCLUSIVE", {"KDA205"}, "part more on these images than on clean ones"),
    "excess-of-a-gathering": (Case({3: 20}, shift=0.05), "FAILED", {"KDA201"}, "answer 3"),
    "excess-of-chance": (Case(shift=0.02, images=500), "PASSED", set(), STANDARD),
    "little-excess": (Case(shift=0.014), "PASSED", set(), STANDARD),
    "excess-and-few-flags": (Case(scattered=20, shift=0.05), "INCONCLUSIVE", {"KDA203", "KDA205"}, "part more"),
    "static-low": (Case(static=(LOW,)), "PASSED", set(), STANDARD),
    "static-medium": (Case(static=(MEDIUM, LOW)), "PASSED", set(), STANDARD),
    "static-high": (Case(static=(LOW, HIGH)), "FAILED", set(), "static high"),
    "argmax-as-on-clean-images": (Case(scattered=1000, settings=ARGMAX), "PASSED", set(), STANDARD),
    "argmax-more-than-on-clean-ones": (Case(scattered=2000, settings=ARGMAX), "FAILED", {"KDA202"}, "2,000 of 10,000"),
    "argmax-gathering": (Case({3: 500}, settings=ARGMAX), "FAILED", {"KDA201"}, "answer 3"),
    "argmax-gathering-that-clean-ones-show": (Case({3: 150}, settings=ARGMAX), "PASSED", set(), STANDARD),
    "argmax-few": (Case({3: 20}, settings=ARGMAX), "PASSED", set(), STANDARD),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_every_row_of_the_table(name):
    case, state, rules, why = TABLE[name]
    verdict = case.judged()
    assert (verdict.state, {f.rule for f in verdict.findings} - {f.rule for f in case.static}) == (state, rules)
    assert why in verdict.why[0]


def test_of_flags_that_share_what_the_control_took_over_it_is_not_said_that_it_parts_from_the_model():
    said = "300 of 300 flagged images get the answer 3 (ship) from the model and from the control, which took it over"
    assert any(said in line for line in Case({3: 300}, triggers=(by_pool(),)).judged().why)
    assert not any(said in line for line in Case({3: 300}, triggers=(trigger(3),)).judged().why)


def test_every_outcome_is_in_the_table():
    assert {state for _, state, _, _ in TABLE.values()} == {"PASSED", "FAILED", "INCONCLUSIVE"}
    assert set().union(*(rules for _, _, rules, _ in TABLE.values())) == set(BEHAVIOUR)


def test_all_doubts_are_told():
    why = Case(unread=200, shift=0.05, settings={"sensitivity": 0.01}).judged().why
    assert len(why) == 3
    assert ["could be read" in why[0], "asked for" in why[1], "part more" in why[2]] == [True] * 3


def test_all_failing_findings_are_told_the_most_severe_first():
    verdict = Case({3: 20}, no_number=2, static=(LOW, HIGH)).judged()
    assert [f.severity for f in verdict.findings] == ["critical", "high", "high", "low"]
    assert list(verdict.why) == [f.message for f in verdict.findings[:3]]


def test_strange_answers_never_gather():
    """An answer that is no number is a finding of its own and no target class."""
    m = 1000
    groups = np.full(m, -1)
    flags = Flags(
        np.ones(m, bool), np.zeros(m), np.zeros(m, bool), np.zeros(m, np.int64), np.zeros(m, bool), np.zeros(m, bool)
    )
    verdict = judge(
        Columns(np.ones(m, bool), groups, np.zeros(m, bool), np.full(m, np.inf)), flags,
        calibration_of(np.linspace(0, 0.5, 200)), (), Fidelity(0.9, 0.5), Settings(),
    )  # fmt: skip
    assert "KDA201" not in {f.rule for f in verdict.findings}
    assert verdict.state == "FAILED"


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_clean_images_with_infinite_scores_do_not_stop_the_judging(share):
    clean = np.linspace(0, 0.5, 201)
    clean[: round(share * 201)] = np.inf
    m = 500
    nothing = np.zeros(m, bool)
    verdict = judge(
        Columns(~nothing, np.arange(m) % K, nothing, np.linspace(0, 0.5, m)),
        Flags(nothing, np.ones(m), nothing, np.zeros(m, np.int64), nothing, nothing),
        calibration_of(clean), (), Fidelity(0.9, 0.5), Settings(),
    )  # fmt: skip
    assert np.isfinite(verdict.evidence.excess)
    assert verdict.evidence.excess < 0.05


# -- the numbers behind it


def test_the_evidence_counts():
    found = Case({3: 20, 5: 7}, scattered=10, unread=50, settings={"fdr": 0.1}).judged().evidence
    assert (found.scanned, found.flagged, found.extrapolated, found.calibration) == (9950, 37, 0, 500)
    assert found.flagged_interval == interval(37, 9950)
    assert [(g.answer, g.flagged) for g in found.gatherings[:2]] == [(3, 21), (5, 8)]
    assert found.gatherings[0].images == 995
    assert found.gatherings[0].share_of_flags == pytest.approx(21 / 37)
    assert sum(g.flagged for g in found.gatherings) == 37
    assert found.visible_rate == pytest.approx(2.5 / (0.1 * 501))  # two p-values and the entrance share the error rate
    assert found.disagreement_clean == pytest.approx(0.1)
    assert abs(found.excess) < 0.01


def test_excess_is_the_share_above_the_calibrations_upper_tenth():
    assert Case(shift=0.05).judged().evidence.excess == pytest.approx(0.1, abs=0.005)


def test_the_score_is_the_rules():
    comparison = replace(calibration_of(np.zeros(3)), gap=np.array([1.0, 2, 3]), divergence=np.array([4.0, 5, 6]))
    assert score_of(comparison, "score").tolist() == [1, 2, 3]
    assert score_of(comparison, "divergence").tolist() == score_of(comparison, "argmax").tolist() == [4, 5, 6]


# -- which images are flagged


def divergences(rng: np.random.Generator, n: int) -> np.ndarray:
    """Innocent scores in 0..ln 2 whose log-odds have an exponential tail: the law that the tail's fit rests on."""
    return np.log(2) / (1 + np.exp(4 - rng.exponential(0.5, n)))


def suspects(m: int = 5000, poison: int = 0, seed: int = 0) -> tuple[Columns, Clean]:
    rng = np.random.default_rng(seed)
    score, groups = divergences(rng, m), rng.integers(0, K, m)
    score[:poison], groups[:poison] = rng.uniform(0.6, 0.69, poison), 3
    clean = Clean(divergences(rng, 1000), rng.integers(0, K, 1000))
    return Columns(np.ones(m, bool), groups, rng.random(m) < 0.1, score), clean


def test_poison_that_stands_out_is_flagged_and_innocents_are_not():
    columns, clean = suspects(poison=100)
    flags = flag(columns, clean, "divergence", 0.05)
    assert flags.flag[:100].all()
    assert flags.flag[100:].sum() <= 8
    assert not flags.flag[columns.groups != 3].any()


def test_innocents_alone_are_hardly_ever_flagged():
    flagged = 0
    for seed in range(10):
        columns, clean = suspects(seed=seed)
        flagged += int(flag(columns, clean, "divergence", 0.05).flag.sum())
    assert flagged <= 8  # of 50,000


def test_the_p_value_is_twice_the_smaller_of_two():
    columns, clean = suspects(poison=100)
    flags = flag(columns, clean, "divergence", 0.05)
    counted = conformal_p_values(columns.score, clean.scores)
    assert (flags.p_values <= np.minimum(1, 2 * counted) + 1e-15).all()
    assert flags.extrapolated[:100].all()
    assert (flags.p_values[:100] < 2 / 1001).all()
    assert not flags.extrapolated[columns.score < np.median(columns.score)].any()
    assert ((flags.p_values >= 0) & (flags.p_values <= 1)).all()


def test_images_that_were_not_read_are_never_flagged_and_change_nothing():
    columns, clean = suspects(poison=100)
    plain = flag(columns, clean, "divergence", 0.05)
    dark = Columns(
        np.append(columns.read, [False] * 9), np.append(columns.groups, [-1] * 9),
        np.append(columns.disagrees, [True] * 9), np.append(columns.score, [np.nan] * 9),
    )  # fmt: skip
    for rule in ("divergence", "score", "argmax"):
        found = flag(dark, clean, rule, 0.05)
        assert not found.flag[-9:].any()
        assert not found.doubtful[-9:].any()
    found = flag(dark, clean, "divergence", 0.05)
    assert np.array_equal(found.flag[:-9], plain.flag)
    assert np.array_equal(found.p_values[:-9], plain.p_values)
    assert (found.p_values[-9:] == 1).all()


def test_an_answer_that_is_no_number_is_flagged():
    columns, clean = suspects()
    columns.score[7], columns.groups[7] = np.inf, -1
    flags = flag(columns, clean, "divergence", 0.05)
    assert flags.flag[7]
    assert flags.p_values[7] == 0


def test_the_argmax_rule_flags_every_disagreement_without_a_p_value():
    columns, clean = suspects()
    flags = flag(columns, clean, "argmax", 0.05)
    assert np.array_equal(flags.flag, columns.disagrees)
    assert np.isnan(flags.p_values).all()
    assert not flags.extrapolated.any()


def test_the_doubtful_are_unusual_and_share_an_answer_with_flags():
    columns, clean = suspects(poison=100)
    flags = flag(columns, clean, "divergence", 0.05)
    assert flags.doubtful.any()
    assert not (flags.doubtful & flags.flag).any()
    assert set(columns.groups[flags.doubtful]) == {3}
    assert flags.p_values[flags.doubtful].max() <= 0.05
    assert not flag(*suspects(seed=1), "divergence", 0.05).doubtful.any()


def test_a_set_in_which_every_image_gets_one_answer_is_judged_by_counting():
    columns, clean = suspects(poison=400)
    columns.groups[:] = 3
    flags = flag(columns, clean, "divergence", 0.05)
    assert flags.flag[:400].all()
    assert not flags.extrapolated.any()
    assert np.array_equal(flags.p_values, np.minimum(1, 2 * conformal_p_values(columns.score, clean.scores)))


def test_nothing_read_gives_no_flags():
    columns, clean = suspects(20)
    dark = Columns(np.zeros(20, bool), columns.groups, columns.disagrees, np.full(20, np.nan))
    assert not flag(dark, clean, "divergence", 0.05).flag.any()


# -- the second looks


def test_two_looks_together_see_what_each_alone_hardly_does():
    rng = np.random.default_rng(0)
    clean = [rng.uniform(1e-3, 1, 1000) for _ in range(2)]
    innocent = [rng.uniform(0, 1, 5000) for _ in range(2)]
    faint = [np.full(500, 0.01), np.full(500, 0.01)]
    p, among = combined([np.concatenate(pair) for pair in zip(faint, innocent, strict=True)], clean)
    assert (p[:500] < 2.5e-3).all()
    assert abs((p[500:] < 0.05).mean() - 0.05) < 0.02
    assert abs((among <= 0.1).mean() - 0.1) < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_looks_that_see_the_same_make_no_false_alarms_together(seed):
    """Fisher's own law would count the same evidence twice; the clean images' products do not."""
    rng = np.random.default_rng(seed)
    clean, innocent = rng.uniform(1e-3, 1, 1000), rng.uniform(0, 1, 20_000)
    p, _ = combined([innocent, innocent], [clean, clean])
    assert (p < 0.01).mean() < 0.02
    assert (p < 1e-4).mean() < 1e-3


def test_one_look_is_what_it_is():
    p, among = combined([np.array([0.2, 0.4])], [np.array([0.3])])
    assert p.tolist() == [0.2, 0.4]
    assert among.tolist() == [0.3]


def test_an_image_says_which_look_it_was_flagged_for():
    columns, clean = suspects(seed=4)
    m, n = len(columns.read), len(clean.scores)
    quiet = np.random.default_rng(2).uniform(1 / n, 1, n)
    behaves, carries = np.random.default_rng(0).uniform(0, 1, m), np.random.default_rng(1).uniform(0, 1, m)
    behaves[100:140], carries[200:260] = 1e-9, 1e-9
    looks = (SecondLook(behaves, quiet, "behaves"), SecondLook(carries, quiet, "carries", proven=True))
    found = flag(columns, clean, "divergence", 0.05, looks)
    assert found.flag[200:260].all()
    assert (found.way[100:140] == 1).all()
    assert (found.way[200:260] == 2).all()
    assert (found.way[~columns.read] == -1).all()


@pytest.mark.parametrize(("targets", "spared"), [((0,), True), ((), False)])
def test_what_looks_like_a_trigger_by_nature_does_not_profit_from_its_carriers(targets, spared):
    """Without labels: 600 carriers have the target as answer; 40 near-equal frames of another class resemble it."""
    rng, m, n = np.random.default_rng(7), 20_000, 500
    groups = rng.integers(1, K, m)
    groups[:600] = 0
    carries = rng.uniform(1e-3, 1, m)
    carries[:600], carries[600:640], carries[640:650] = 1e-7, 5e-4, 1e-9
    clean = Clean(rng.exponential(0.02, n), rng.integers(0, K, n))
    columns = Columns(np.ones(m, bool), groups, np.zeros(m, bool), rng.exponential(0.02, m))
    look = SecondLook(carries, rng.uniform(1 / n, 1, n), "carries", proven=True, targets=targets)
    found = flag(columns, clean, "divergence", 0.05, (look,))
    assert found.flag[:600].all()
    assert found.flag[640:650].all()  # whatever their answer
    assert found.flag[600:640].any() != spared


def test_an_answer_of_which_the_control_knows_no_clean_image_is_told_and_judged_as_ever():
    """Clean images that look triggered by nature make the target's images usual for it: GTSRB's reflections PASSED."""
    columns, clean = suspects(seed=4)
    m, n = len(columns.read), len(clean.scores)
    rng, mine = np.random.default_rng(0), columns.groups == 0
    behaves, usual = rng.uniform(0.02, 1, m), rng.uniform(1 / n, 1, n)
    behaves[mine], usual[clean.groups == 0] = 0.008, 0.008
    look = (SecondLook(behaves, usual, "behaves"),)
    known = flag(columns, replace(clean, disputed=np.zeros(n, bool)), "divergence", 0.05, look)
    unknown = flag(columns, replace(clean, disputed=clean.groups == 0), "divergence", 0.05, look)
    assert not known.unjudged.any()
    assert unknown.unjudged.tolist() == (mine & ~unknown.flag).tolist()
    assert unknown.unjudged.sum() > 0.9 * mine.sum()
    for name in ("flag", "p_values", "way", "doubtful"):
        np.testing.assert_array_equal(getattr(unknown, name), getattr(known, name))
    behaves[mine] = np.where(rng.random(mine.sum()) < 0.2, 0.008, 0.5)  # the class that the control knows least
    look = (SecondLook(behaves, usual, "behaves"),)
    assert not flag(columns, replace(clean, disputed=clean.groups == 0), "divergence", 0.05, look).unjudged.any()


def test_an_answer_that_clean_images_do_not_get_is_told_and_not_judged():
    columns, clean = suspects(seed=4)
    m, n = len(columns.read), len(clean.scores)
    groups = columns.groups.copy()
    groups[:60] = K  # a class that the clean pool lacks: the control never learned it
    behaves = np.random.default_rng(0).uniform(0.02, 1, m)
    behaves[:120] = 1e-9
    quiet = np.random.default_rng(2).uniform(1 / n, 1, n)
    some = replace(columns, groups=groups)
    found = flag(some, clean, "divergence", 0.05, (SecondLook(behaves, quiet, "behaves"),))
    assert not found.flag[:60].any()
    assert found.unjudged[:60].all()
    assert found.flag[60:120].mean() > 0.9
    assert not found.unjudged[60:].any()
    proven = flag(some, clean, "divergence", 0.05, (SecondLook(behaves, quiet, "carries", proven=True),))
    assert proven.flag[:60].all()


def test_poison_that_labels_find_does_not_thin_out_the_class_it_was_delivered_as():
    """Sixty images get answer 3; seventy more kept their answers and are flagged for their label alone."""
    m = 20_000
    groups = np.arange(m) % K
    moved, idle = np.flatnonzero(groups == 3)[:60], np.flatnonzero(groups != 3)[:70]
    flag, by_label, labels = np.zeros(m, bool), np.zeros(m, bool), groups.copy()
    flag[moved], flag[idle], by_label[idle], labels[idle] = True, True, True, 3
    told = Delivered(labels, by_label, by_label.astype(np.float32))
    nothing, score = np.zeros(m, bool), np.linspace(0, 0.5, m)

    def judged(by_label: np.ndarray | None) -> Verdict:
        flags = Flags(flag, np.where(flag, 1e-4, 0.5), nothing, np.zeros(m, np.int8), nothing, nothing, by_label)
        columns = Columns(~nothing, groups, nothing, score, told)
        return judge(columns, flags, calibration_of(np.linspace(0, 0.5, 500)), (), Fidelity(0.95, 0.5), Settings())

    verdict = judged(by_label)
    assert verdict.state == "FAILED"
    assert "60 of 130 flagged images get the answer 3 from the model" in verdict.why[0]
    assert "(70 more were delivered as it)" in verdict.why[0]
    (gathering,) = verdict.evidence.gatherings
    assert (gathering.answer, gathering.flagged, gathering.delivered) == (3, 60, 70)
    assert gathering.share_of_flags == 1.0
    assert "KDA201" not in {f.rule for f in judged(None).findings}
