"""Stage: find the preprocessing a teacher was trained with, by asking it.

Every plausible way from pixels to the input tensor is a candidate. All are scored on a few images, the best
on more. With labels the score is the share of right answers, without it is the consistency of the answers
under harmless changes (`scores.consistency`; benchmarks/results/third_party.md has what was measured).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kdaudit.admission import Teacher
from kdaudit.errors import DataError, ModelRefused
from kdaudit.fitting.alignment import SIGNIFICANCE, Basis, named_order
from kdaudit.fitting.candidates import candidates, with_crop
from kdaudit.fitting.pool import Pool, chosen
from kdaudit.fitting.trials import Candidate, Trials
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Decoder
from kdaudit.session import Session
from kdaudit.signature import Signature

__all__ = ["Candidate", "Fitted", "fit"]

ROUNDS = (48, 100, 400)
"""Images after each round; all candidates enter the first, the best few the last."""

LARGE_ROUNDS = (48, 96, 160)
"""The same for inputs of more than `LARGE` pixels: such models take long."""

LARGE_UNLABELLED_ROUNDS = (24, 64, 160)
"""The same without labels, where every image is asked about three times."""

LARGE = 96 * 96
FINALISTS = 5
SURVIVORS = 8
TIE_IMAGES = 100
"""Labelled images, each slightly changed in two ways, that decide between candidates which tie."""

OTHER_GAIN = 20
"""Scales whose gains differ by this factor are of different kinds: 0..1 and its likes against 0..255."""

SAME_ANSWERS = 0.97
"""Two candidates that answer alike on this share of the images are the same for the audit's purposes."""

ClassBasis = Basis | Literal["assumed", "none"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """How to feed a teacher, and how sure that is.

    Attributes:
        preprocess: the winner.
        signature: the teacher's, with layout and output kind settled by its behaviour.
        class_order: output index for each label index; None when nothing is known of the data set's classes.
        class_basis: where the order comes from: names, identity, sorted or assignment (all checked against
            labels if there are any), assumed (not checked), or none.
        how: what the candidates were scored by.
        accuracy: the winner's share of right answers on the images tried; None without labels.
        runner_up: the best candidate that answers otherwise; None if there is none.
        margin: winner's score less the runner-up's; 0 without a runner-up.
        error: standard error of the margin.
        sure: whether the margin is beyond two standard errors (of the score, or of the cross-entropy where
            scores tie) and the teacher agrees with the labels better than chance.
        note: sentences for the reader; empty when there is nothing to say.
        table: all candidates, the best first.
    """

    preprocess: Preprocess
    signature: Signature
    class_order: tuple[int, ...] | None
    class_basis: ClassBasis
    how: Literal["labels", "consistency"]
    accuracy: float | None
    runner_up: Candidate | None
    margin: float
    error: float
    sure: bool
    note: str
    table: tuple[Candidate, ...]


def fit(
    teacher: Teacher,
    session: Session,
    sample_images: Sequence[bytes],
    labels: Sequence[int | None] | None,
    classes: tuple[str, ...] | None,
    decoder: Decoder,
    override: str | None = None,
    preferred: str | None = None,
) -> Fitted:
    """Find size, fit, layout, channel order, scale, output kind and class order.

    Args:
        teacher: the admitted model.
        session: an open session of it, under any output kind.
        sample_images: encoded images, a few hundred drawn from the whole set; up to the last of `ROUNDS` are
            looked at, unreadable ones are left out.
        labels: label index per image, None where there is none; or None altogether.
        classes: the data set's names in label order, if it has any.
        decoder: bytes to pixels.
        override: a recipe as `Preprocess.recipe`, or the name of a scale; what it says is not searched for.
        preferred: the recipe that a control at hand was distilled with: of candidates that answer alike, or that the
            labels cannot tell apart, it is the one.

    Raises:
        UsageError: a bad override; the message lists the choices.
        DataError: no image can be read, or the data set has more classes than the model has outputs.
        ModelRefused: KDA021, the model runs with no candidate.
    """
    signature = teacher.signature
    _check_counts(signature, labels, classes)
    images, known = chosen(sample_images, labels, ROUNDS[-1])
    pool = Pool(images, decoder)
    field = candidates(signature, pool, override)
    pool.drop_unreadable(field[0].geometry)
    truth = None if known is None else np.asarray([known[i] for i in pool.kept], np.int64)
    trials = Trials(session, pool, truth, classes)
    # A whole recipe says how the image is fitted; the name of a scale does not.
    table = _tournament(trials, field, crops=override is None or "-" not in override)
    table = _as_preferred(trials, table, preferred) if preferred is not None else table
    return _verdict(trials, table, signature, classes)


def _check_counts(signature: Signature, labels: Sequence[int | None] | None, classes: tuple[str, ...] | None) -> None:
    """Every class of the data set must have an output."""
    count = len(classes) if classes is not None else 0
    if labels is not None:
        count = max(count, 1 + max((label for label in labels if label is not None), default=-1))
    if count > signature.classes:
        named = f" ({', '.join(classes[:4])}, ..., {classes[-1]})" if classes else ""
        raise DataError(
            f"the data set has {count} classes{named} and the model gives {signature.classes} scores; "
            "they cannot belong together: check that this data set goes with this model"
        )


def _tournament(trials: Trials, start: list[Preprocess], *, crops: bool) -> list[Candidate]:
    """Score all on a few images, the better ones on more; returns the table, the best first."""
    field = list(start)
    rounds = ROUNDS
    if field[0].geometry.height * field[0].geometry.width > LARGE:
        rounds = LARGE_UNLABELLED_ROUNDS if trials.truth is None else LARGE_ROUNDS
    table: dict[Preprocess, Candidate] = {}
    for number, images in enumerate(rounds):
        for preprocess in field:
            trials.run(preprocess, min(images, len(trials.pool)))
            table[preprocess] = trials.candidate(preprocess)
        field.sort(key=lambda p: (-table[p].score, table[p].calibration))
        if not table[field[0]].images:
            raise ModelRefused("KDA021", trials[field[0]].failed)
        if number == len(rounds) - 1 or (number and images >= len(trials.pool)):
            break
        field = _survivors(field, table)
        if number == 0 and crops:
            field += [crop for p in field for crop in with_crop(p, trials.pool) if crop not in table]
    winner = _winner(trials, field, table)
    rest = sorted((c for p, c in table.items() if p != winner), key=lambda c: (-c.images, -c.score, c.calibration))
    return [table[winner], *rest]


def _survivors(field: list[Preprocess], table: dict[Preprocess, Candidate]) -> list[Preprocess]:
    """Those that may still be the best: within three standard errors of it, and a few at most."""
    best = table[field[0]]
    near = [p for p in field if table[p].score >= best.score - 3 * np.hypot(best.error, table[p].error)]
    return [p for p in near[: max(FINALISTS, min(len(field) // 3, SURVIVORS))] if table[p].images]


def _winner(trials: Trials, field: list[Preprocess], table: dict[Preprocess, Candidate]) -> Preprocess:
    """The highest score; among those that tie with it, or answer alike and are not surely worse, the best calibrated.

    Scales that differ by a factor often give the same answers at another confidence, and the audit compares
    confidences: there the calibration knows more than the score. With labels it is taken on slightly changed
    images: on the images that a model was trained on, which these may be, it is never too confident. And of two
    scales of very different gain the smaller is the likelier: scaled up, a network's biases vanish and its answers
    stay; scaled down, they drown everything else.
    """
    top = field[0]
    tied = [top]
    for other in field[1:]:
        if not table[other].images:
            continue
        gap, error = trials.margin(top, other)
        if gap <= error or _alike(trials, top, other, gap, error):
            tied.append(other)
    least = min(p.scale.gain for p in tied)
    tied = [p for p in tied if p.scale.gain < OTHER_GAIN * least]
    if len(tied) == 1:
        return tied[0]
    calibration = {p: trials.changed_loss(p, TIE_IMAGES) if trials.labelled else table[p].calibration for p in tied}
    return min(tied, key=lambda p: (round(calibration[p], 2), -table[p].score))


def _alike(trials: Trials, top: Preprocess, other: Preprocess, gap: float, error: float) -> bool:
    """Whether a candidate answers as the best one does and is not surely worse; `gap`, `error`: the best one's margin.

    Alike on 97 of 100 leaves room for the other three to be mistakes: labels tell, and then nothing else counts.
    (Digits on a ground that less contrast makes grey are far from what their network knows at its own scale.)
    """
    return trials.same(top, other) >= SAME_ANSWERS and not (trials.labelled and gap >= 2 * error)


def _as_preferred(trials: Trials, table: list[Candidate], recipe: str) -> list[Candidate]:
    """The table with the candidate of this recipe first, where it is not surely worse than the winner.

    Which of several wins that answer alike, or are right equally often, depends on the images asked about and on
    whether they have labels: a control that was distilled on the clean pool alone would find itself made for another
    one. Without labels the two must answer alike: consistency hardly tells one scale from another.
    """
    best, own = table[0], next((c.preprocess for c in table if c.recipe == recipe), None)
    if own is None or own == best.preprocess:
        return table
    trials.run(own, best.images)
    again = trials.candidate(own)
    if again.images < best.images:  # the model cannot be run with it
        return table
    gap, error = trials.margin(best.preprocess, own)
    as_good = gap < 2 * error if trials.labelled else trials.same(best.preprocess, own) >= SAME_ANSWERS
    return [again, *(c for c in table if c.preprocess != own)] if as_good else table


def _verdict(trials: Trials, table: list[Candidate], signature: Signature, classes: tuple[str, ...] | None) -> Fitted:
    """Put the result together and say what is uncertain."""
    best = table[0]
    notes: list[str] = []
    rivals = [c for c in table[1:] if c.images == best.images]
    differing = [c for c in rivals if trials.same(best.preprocess, c.preprocess) < SAME_ANSWERS]
    if len(rivals) > len(differing):
        alike = len(rivals) - len(differing)
        count = f"{alike} other candidate{'s give' if alike > 1 else ' gives'} the same answers"
        notes.append(f"{count}: harmless to the audit, but control and repaired model know this one alone")
    # A candidate that fell out in an early round is still the runner-up if nobody else is left.
    others = differing or [c for c in table[1:] if 0 < c.images < best.images]
    runner_up = max(others, key=lambda c: c.score, default=None)
    margin, error, sure = 0.0, 0.0, True
    if runner_up is not None:
        margin, error = trials.margin(best.preprocess, runner_up.preprocess)
        decided = trials.explains_better(best.preprocess, runner_up.preprocess)
        sure = margin >= 2 * error or (margin > -error and decided)
        if not sure:
            share = 1 - trials.same(best.preprocess, runner_up.preprocess)
            notes.append(
                f"{runner_up.recipe} scores alike within the error and changes {share:.0%} of the answers; "
                "give --preprocess if you know which it is"
            )
    if trials.truth is not None:  # the class order is worth all the images there are
        trials.run(best.preprocess, len(trials.pool))
        best = trials.candidate(best.preprocess)
    order, basis = _class_order(trials, best, signature, classes, notes)
    if best.accuracy is not None and best.accuracy - SIGNIFICANCE * best.error <= trials.luck:
        sure = False
        notes.append(f"the teacher agrees with {best.accuracy:.0%} of the labels, no better than chance")
    kind = trials.kind(best.preprocess)
    return Fitted(
        preprocess=best.preprocess,
        signature=replace(signature, layout=best.preprocess.layout, output_kind=kind),
        class_order=order,
        class_basis=basis,
        how="consistency" if trials.truth is None else "labels",
        accuracy=best.accuracy,
        runner_up=runner_up,
        margin=margin,
        error=error,
        sure=sure,
        note="; ".join(notes),
        table=(best, *table[1:]),
    )


def _class_order(
    trials: Trials, best: Candidate, signature: Signature, classes: tuple[str, ...] | None, notes: list[str]
) -> tuple[tuple[int, ...] | None, ClassBasis]:
    """Class order and its basis; adds to the notes."""
    if trials.truth is not None:
        alignment = trials.alignment(best.preprocess)
        if alignment.unsupported and alignment.basis == "assignment":
            notes.append(f"the place of {len(alignment.unsupported)} classes rests on fewer than two images")
        return alignment.order, alignment.basis
    if classes is None:
        return None, "none"
    named = named_order(classes, signature.class_names) if signature.class_names else None
    if named is not None:
        return named, "names"
    if len(classes) == signature.classes:
        return tuple(range(len(classes))), "assumed"
    return None, "none"
