"""Stage 7, the measure: how much of a proven trigger, or of a trace, does each image carry?

So poison is found whose own answers betray nothing, and images that stand out for reasons of their own stay innocent.
What there is to measure comes from `kdaudit.search`.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdaudit.aside import Aside
from kdaudit.calibration import Column, Null, rank_p_values
from kdaudit.classwise import classwise_patterns
from kdaudit.comparison import Subjects
from kdaudit.delivered import OF_ITS_OWN, Delivered, LabelProof, label_proof
from kdaudit.discriminant import LEAST_SEEDS, Discriminant, Matrix, Pixels, appearance, sharpness
from kdaudit.disputed import Remainder, remainder
from kdaudit.foreign import pool_proof
from kdaudit.memory import give_back
from kdaudit.rereading import reread
from kdaudit.sample import Decoder, Geometry
from kdaudit.search import Search, shared_sharpness
from kdaudit.searched import CORE, Bench, CleanImages, Found, Suspects
from kdaudit.selection import spread, taken
from kdaudit.stretches import stretches
from kdaudit.trace import RARE, Trace, common, most_suspicious, weigh
from kdaudit.trigger import Pattern
from kdaudit.unseen import Worn

FURTHER = RARE / 10
"""A further pattern counts only if surely more than three times as many images carry it as chance gives, this rare:
images of one natural kind (white corners, say) may happen to look like a trigger that was found already."""

ENOUGH = 0.5
"""Images whose labels are asked about carry at least so much of what the pattern's core carries: a corner that is white
by nature carries some of a white patch, and has its own label."""


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How much of what was found each image carries, as columns [m] of suspect and [n] of clean held-out images.

    Attributes:
        found: the proven patterns; none where the images share a trace only.
        trace: what they share where no pattern was proven.
        which: the pattern that an image carries most of, int8; -1 where not read or no pattern was proven.
        score: standard deviations of calm images; NaN where not read.
        p_values: of "carries nothing of it", float32; 1 where not read.
        clean_p_values: of the held-out clean images among the clean.
        remainders: what the doubted images of the patterns' target classes share beyond them.
        worn: how far each image is from wearing the pasted part of a pattern; none without labels.
    """

    found: tuple[Found, ...]
    trace: Trace | None
    which: NDArray[np.int8]
    score: NDArray[np.float32]
    p_values: NDArray[np.float32]
    clean_p_values: Column
    remainders: tuple[Remainder, ...] = ()
    worn: tuple[Worn, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """How much of something an image carries: a discriminant, and the rows that it reads."""

    discriminant: Discriminant
    rows: Callable[[Pixels], Matrix]


def _measured(measures: Sequence[_Measure], pixels: Pixels, folds: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scores [k, n] of images uint8 [n, H, W, C] by each measure; what several read is made once."""
    rows = {make: make(pixels) for make in {one.rows for one in measures}}
    return np.stack([one.discriminant.score(rows[one.rows], folds) for one in measures])


def look(
    suspects: Suspects,
    clean: CleanImages,
    subjects: Subjects,
    decoder: Decoder,
    on_image: Callable[[int], None] = lambda _n: None,
) -> Likeness | None:
    """Look for patterns, then for a trace; None where neither is found.

    Args:
        suspects: the suspect images and their scores.
        clean: the clean pool.
        subjects: both networks.
        decoder: bytes to pixels.
        on_image: told the number of records passed since the last call; the set is read once, and once more where
            there is something to measure every image by.
    """
    known = suspects.read & np.isfinite(suspects.score())
    if known.sum() < 2 * LEAST_SEEDS:
        return None
    bench = Bench.of(suspects, known, clean, subjects, decoder, on_image)
    give_back()
    found, left = Search.of(bench).patterns()
    give_back()
    if not any(one.proof.proven for one in found):
        found += classwise_patterns(bench)
    measures = [_Measure(one.discriminant, appearance) for one in found]
    shared = None if any(one.proven for one in found) else shared_sharpness(bench)
    if shared is not None:
        measures.append(_Measure(shared, sharpness))
    if not measures:
        return None
    held_out = bench.held_out
    del bench  # its pictures, which nobody asks for any more
    give_back()
    ways = len(measures)
    measures += [_Measure(one, appearance) for one in left.values()]
    patches = [one.pattern.pasted() if suspects.told is not None else None for one in found]
    scores, apart = _every_image(suspects, known, measures, patches, subjects.preprocess.geometry, decoder, on_image)
    usual = _measured(measures, clean.pixels, clean.keys.folds)
    give_back()
    found = [_asked_by_label(one, suspects, row.column()) for one, row in zip(found, scores, strict=False)]
    found = [
        _asked_of_pool(one, suspects, clean.held_out[held_out.teacher == one.target], row.column(), own)
        for one, row, own in zip(found, scores, usual, strict=False)
    ]
    proven = [i for i, one in enumerate(found) if one.proven]
    kept = proven or list(range(len(found), ways))  # without any the trace, which comes last, if there is one
    if not kept:
        return None
    carried = tuple(found[i] for i in proven)
    give_back()
    seen = weighed(suspects, known, (scores[i].column() for i in kept), usual[kept], clean.held_out, carried)
    if seen is None:
        return None
    rest = zip(left, (row.column() for row in scores[ways:]), usual[ways:], strict=True)
    worn = tuple(
        Worn(_made_to_be(one, suspects.told, score.column()), row.column(), patch.departure(clean.pixels))
        for one, patch, row, score in zip(found, patches, apart, scores, strict=False)
        if suspects.told is not None and patch is not None and row is not None and one in seen.found
    )
    return replace(seen, remainders=_remainders(suspects, known, rest, {one.aim for one in seen.found}), worn=worn)


def _every_image(
    suspects: Suspects,
    known: NDArray[np.bool_],
    measures: Sequence[_Measure],
    patches: Sequence[Pattern | None],
    geometry: Geometry,
    decoder: Decoder,
    on_image: Callable[[int], None],
) -> tuple[list[Aside], list[Aside | None]]:
    """Scores of every image by each measure and its departure from each patch, float32 [m]; NaN where not known.

    Put aside: most of them are asked one question, and the rest one after the other.
    """
    scores = [Aside(np.float32, suspects.room) for _ in measures]
    apart = [None if patch is None else Aside(np.float32, suspects.room) for patch in patches]
    done = 0

    def write(column: Aside, end: int, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        part = np.full(end - done, np.nan, np.float32)
        part[rows - done] = values
        column.append(part)

    for index, pixels in reread(suspects.source, decoder, geometry, known, on_image):
        end = int(index[-1]) + 1
        for column, values in zip(scores, _measured(measures, pixels, suspects.keys.folds[index]), strict=True):
            write(column, end, index, values)
        for away, patch in zip(apart, patches, strict=True):
            if away is not None and patch is not None:
                write(away, end, index, patch.departure(pixels))
        done = end
    for column in (*scores, *filter(None, apart)):
        write(column, len(known), np.empty(0, np.int64), np.empty(0, np.float32))
    return scores, apart


def _remainders(
    suspects: Suspects,
    known: NDArray[np.bool_],
    rest: Iterable[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
    aims: Container[int | None],
) -> tuple[Remainder, ...]:
    """What is left beside the proven patterns; `rest`: label, scores [m] and clean scores [n] of each."""
    told, calm = suspects.told, suspects.calm(known)
    if told is None:
        return ()
    return tuple(
        remainder(told, label, suspects.teacher, suspects.student, score, usual, float(np.median(score[calm])))
        for label, score, usual in rest
        if label in aims
    )


def _asked_by_label(one: Found, suspects: Suspects, score: NDArray[np.float32]) -> Found:
    """A pattern with what the labels of its carriers say, where its seeds were chosen by theirs."""
    if suspects.told is None or one.label is None or not one.promising:
        return one
    said = label_proof(suspects.told, one.label, suspects.teacher, suspects.student, score, _bar(one))
    return replace(one, by_label=said)


def _made_to_be(one: Found, told: Delivered, score: NDArray[np.float32]) -> int | None:
    """The class that a pattern's carriers are delivered as; None: any, as the labels that the control doubts show.

    A pattern may be proven on one class only, and be at work on all (all-to-all).
    """
    labels = told.labels[(told.doubt > 0) & (score > _bar(one))]
    return one.aim if (labels == one.aim).sum() >= OF_ITS_OWN * len(labels) else None


def _asked_of_pool(
    one: Found, suspects: Suspects, like: NDArray[np.int64], score: NDArray[np.float32], usual: NDArray[np.float32]
) -> Found:
    """A pattern with what the clean pool says of it, where it was found among the images with one answer.

    `like`: the held-out clean images with that answer.
    """
    if not one.classwise or one.target is None:
        return one
    said = pool_proof(one.target, suspects.teacher, score, usual, like, _bar(one), one.strength)
    return replace(one, by_pool=said)


def _bar(one: Found) -> float:
    """The score from which an image counts as a carrier of a pattern."""
    return max(CORE, ENOUGH * one.strength)


def weighed(
    suspects: Suspects,
    known: NDArray[np.bool_],
    scores: Iterable[NDArray[np.float32]],
    usual: NDArray[np.float32],
    held_out: NDArray[np.int64],
    found: tuple[Found, ...],
) -> Likeness | None:
    """What k scores [m] amount to beside those of clean images [k, n]; None where a trace is no evidence."""
    calm, rows = suspects.calm(known), iter(scores)
    suspicious = None if found else most_suspicious(taken(suspects.score(), known))  # while nothing else is held
    score, carried = next(rows), [0]
    p, which = _own_p_values(score, usual[0], known, calm), np.where(known & bool(found), np.int8(0), np.int8(-1))
    clean_p = rank_p_values(usual[0])
    for number, own in enumerate(rows, start=1):  # one after the other: these are columns as long as the delivery
        further = _own_p_values(own, usual[number], known, calm)
        if common(taken(further, known), FURTHER):
            nearer = further < p
            np.copyto(score, own, where=nearer)
            which[nearer] = len(carried)
            np.minimum(p, further, out=p)
            np.minimum(clean_p, rank_p_values(usual[number]), out=clean_p)
            carried.append(number)
    found = tuple(found[i] for i in carried if found)
    trace = None
    if suspicious is not None:
        trace = weigh(taken(p, known), suspicious, _said_of_trace(suspects, score, p))
        if trace is None:
            return None
    for one in (p, clean_p):
        np.minimum(1.0, np.multiply(one, len(carried), out=one), out=one)
    return Likeness(found, trace, which, score, p, clean_p[held_out])


def _own_p_values(
    scores: NDArray[np.float32], usual: NDArray[np.float32], known: NDArray[np.bool_], calm: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """p-values [m] of "carries nothing of it", 1 where there is no score."""
    p = likeness_p_values(taken(scores, known), usual, float(np.median(scores[calm])))
    return spread(p, known, 1.0)


def _said_of_trace(suspects: Suspects, score: NDArray[np.float32], p: NDArray[np.float32]) -> LabelProof | None:
    """What the labels of a trace's carriers say of the one that most have; None without labels or carriers."""
    told, carriers = suspects.told, p <= RARE
    if told is None or not carriers.any():
        return None
    labels = told.labels[carriers & (told.labels >= 0) & (suspects.student != told.labels)]
    if len(labels) == 0:
        return None
    bar = float(np.nextafter(score[carriers].min(), -np.inf))
    return label_proof(told, int(np.bincount(labels).argmax()), suspects.teacher, suspects.student, score, bar)


def likeness_p_values(scores: NDArray[np.float32], clean: NDArray[np.float32], middle: float) -> NDArray[np.float32]:
    """p-values float32 [m] of scores along a discriminant, given the median of calm images along it.

    The larger of two. Clean images are exchangeable with innocent ones here, since no network's memory enters: their
    tail. And the mirror image of the suspect images' own lower tail, where no poison is (a discriminant's scores are
    symmetric without poison, as the mirror statistics of Dai et al., JASA 2023, assume): it guards against a clean
    pool of another make.
    """
    mirror = np.subtract(2 * middle, scores)
    mirror.sort()
    nulls, p = (Null.of_ordered(mirror), Null.of(clean.astype(np.float64))), np.empty(len(scores), np.float32)
    for span in stretches(len(scores)):
        p[span] = np.maximum(*(null.beyond(scores[span]) for null in nulls))
    return p
