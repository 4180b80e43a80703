"""Stage: find the preprocessing a teacher was trained with, by asking it.

Every plausible way from pixels to the input tensor is a candidate. All are scored on a few images, the best on
more. With labels the score is the share of right answers. Without labels it is the mutual information between
the teacher's answers to an image and to the same image a little changed: wrong preprocessing makes answers
either few or shaky, and both lower it. It uses answers, not confidences: a scale that is too large makes any
network confident (benchmarks/results/third_party.md has what was measured).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Teacher
from kdaudit.alignment import SIGNIFICANCE, Alignment, align, named_order, paired
from kdaudit.errors import DataError, ModelRefused, UsageError
from kdaudit.preprocess import SCALES, Order, Preprocess, scale_named
from kdaudit.sample import Decoder, Fit, Geometry
from kdaudit.session import Session, from_probabilities
from kdaudit.signature import Layout, OutputKind, Signature

ROUNDS = (32, 100, 400)
"""Images after each round; all candidates enter the first, the best few the last."""

FINALISTS = 5
SAME_ANSWERS = 0.97
"""Two candidates that answer alike on this share of the images are the same for the audit's purposes."""

MIN_LABELLED = 20
"""Fewer labelled images than this say too little; the labels are then left aside."""

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Sizes that people train at, tried where the graph takes any."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to preprocess, and how it did.

    Attributes:
        preprocess: the candidate.
        images: how many images it was scored on.
        score: share of right answers (with labels) or mutual information in nats (without); higher is better.
        error: standard error of the score.
        accuracy: share of right answers; None without labels.
        calibration: with labels, cross-entropy in nats; without, how far confidence is from stability. Lower is
            better; it decides between candidates of equal score.
    """

    preprocess: Preprocess
    images: int
    score: float
    error: float
    accuracy: float | None
    calibration: float

    @property
    def recipe(self) -> str:
        """The candidate's name."""
        return self.preprocess.recipe


@dataclass(frozen=True, slots=True)
class Fitted:
    """How to feed a teacher, and how sure that is.

    Attributes:
        preprocess: the winner.
        signature: the teacher's, with layout and output kind settled by its behaviour.
        class_order: output index for each label index; None when nothing is known of the data set's classes.
        class_basis: where the order comes from: names, identity, sorted or assignment (all checked against
            labels), assumed (not checked), or none.
        how: what the candidates were scored by.
        accuracy: the winner's share of right answers on the images tried; None without labels.
        runner_up: the best candidate that answers otherwise; None if there is none.
        margin: winner's score less the runner-up's; 0 without a runner-up.
        error: standard error of the margin.
        sure: whether the margin is beyond two standard errors and the teacher agrees with the labels.
        note: sentences for the reader; empty when there is nothing to say.
        table: all candidates, the best first.
    """

    preprocess: Preprocess
    signature: Signature
    class_order: tuple[int, ...] | None
    class_basis: Literal["names", "identity", "sorted", "assignment", "assumed", "none"]
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
) -> Fitted:
    """Find size, fit, layout, channel order, scale, output kind and class order.

    Args:
        teacher: the admitted model.
        session: an open session of it, under any output kind.
        sample_images: encoded images, a few hundred drawn from the whole set; those past the last of `ROUNDS`
            are not looked at, unreadable ones are left out.
        labels: label index per image, None where there is none; or None altogether.
        classes: the data set's names in label order, if it has any.
        decoder: bytes to pixels.
        override: a recipe as `Preprocess.recipe`, or the name of a scale; what it says is not searched for.

    Raises:
        UsageError: a bad override; the message lists the choices.
        DataError: no image can be read, or the data set has more classes than the model has outputs.
        ModelRefused: KDA021, the model runs on no candidate.
    """
    signature = teacher.signature
    _check_counts(signature, labels, classes)
    chosen, known = _chosen(sample_images, labels)
    sample = _Sample(chosen, decoder)
    candidates = _candidates(signature, sample, override)
    sample.drop_unreadable(candidates[0].geometry)
    truth = None if known is None else np.asarray([known[i] for i in sample.kept], np.int64)
    judge = _Judge(session, sample, truth, classes)
    best = _tournament(judge, candidates)
    return _verdict(judge, best, signature, classes)


# ---------------------------------------------------------------- what goes in


def _check_counts(
    signature: Signature, labels: Sequence[int | None] | None, classes: tuple[str, ...] | None
) -> None:
    """Every class of the data set must have an output."""
    count = len(classes) if classes is not None else 0
    if labels is not None:
        count = max(count, 1 + max((label for label in labels if label is not None), default=-1))
    if count > signature.classes:
        raise DataError(
            f"the data set has {count} classes and the model gives {signature.classes} scores; "
            "they cannot belong together: check that this data set goes with this model"
        )


def _chosen(
    images: Sequence[bytes], labels: Sequence[int | None] | None
) -> tuple[list[bytes], list[int] | None]:
    """Up to the last round's number of images, in a fixed random order; labelled ones only if there are enough."""
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    shuffled = np.random.default_rng(0).permutation(len(images)).tolist()
    if labels is not None:
        pairs = [(images[i], label) for i in shuffled if (label := labels[i]) is not None][: ROUNDS[-1]]
        if len(pairs) >= min(MIN_LABELLED, len(images)) and pairs:
            return [image for image, _ in pairs], [label for _, label in pairs]
    return [images[i] for i in shuffled[: ROUNDS[-1]]], None


class _Sample:
    """The images, decoded once per geometry and only as far as a round needs them."""

    def __init__(self, images: list[bytes], decoder: Decoder) -> None:
        self._images = images
        self._decoder = decoder
        self._decoded: dict[Geometry, Pixels] = {}
        self.kept = list(range(len(images)))

    def drop_unreadable(self, geometry: Geometry) -> None:
        """Leave out images that do not decode."""
        pixels, reasons = self._decoder.decode(self._images, geometry)
        self.kept = [i for i, reason in enumerate(reasons) if not reason]
        if not self.kept:
            why = reasons[0] if reasons else "there are none"
            raise DataError(
                f"none of {len(reasons)} images can be decoded ({why}); check the data set's location"
            )
        self._images = [self._images[i] for i in self.kept]
        self._decoded[geometry] = np.ascontiguousarray(pixels[self.kept])

    def pixels(self, geometry: Geometry, start: int, stop: int) -> Pixels:
        """Decoded images [stop - start, H, W, C]."""
        have = self._decoded.get(geometry)
        done = 0 if have is None else len(have)
        if stop > done:
            more = self._decoder.decode(self._images[done:stop], geometry).pixels
            have = more if have is None else np.concatenate([have, more])
            self._decoded[geometry] = have
        assert have is not None
        return have[start:stop]

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self) -> list[tuple[int, int] | None]:
        """Height and width of each image as its header says; None where the header is unusual."""
        from kdaudit.decoder.header import plain

        headers = [plain(image) for image in self._images[: ROUNDS[0]]]
        return [header.upright if header else None for header in headers]


# ---------------------------------------------------------------- candidates


def _candidates(signature: Signature, sample: _Sample, override: str | None) -> list[Preprocess]:
    """All ways to feed this signature that are worth asking about, coarse: one fit, a few sizes."""
    ranks = len(signature.input_shape)
    if override is not None and "-" in override:
        return [_override(override, signature, ranks)]
    names = [scale for scale in SCALES if len(scale.mean) <= signature.channels]
    if signature.input_type == "uint8":
        names = [scale_named("raw")]
    if override is not None:
        names = [scale for scale in names if scale.name == override]
        if not names:
            raise UsageError(_choices(override, f"{override!r} is no scale for this model", signature))
    orders: tuple[Order, ...] = ("RGB", "BGR") if signature.channels == 3 else ("RGB",)
    layouts: tuple[Layout, ...] = (signature.layout,)
    if signature.layout == "flat" and signature.channels == 3:
        layouts = ("flatCHW", "flat")
    return [
        Preprocess(
            Geometry(height, width, signature.channels), scale, order, layout, signature.input_type, ranks
        )
        for (height, width), layout, order, scale in product(
            _sizes(signature, sample), layouts, orders, names
        )
    ]


def _sizes(signature: Signature, sample: _Sample) -> list[tuple[int, int]]:
    """Sizes to try: the declared one, or the images' own and those that people train at near it."""
    if signature.height is not None and signature.width is not None:
        return [(signature.height, signature.width)]
    known = [size for size in sample.sizes() if size is not None]
    short = float(np.median([min(size) for size in known])) if known else 224.0
    near = [(size, size) for size in SIZES if short / 2 <= size <= 1.5 * short] or [(224, 224)]
    if len(set(known)) == 1 and known[0] not in near and max(known[0]) <= SIZES[-1]:
        near.insert(0, known[0])
    return list(
        dict.fromkeys((signature.height or height, signature.width or width) for height, width in near)
    )


def _override(recipe: str, signature: Signature, ranks: int) -> Preprocess:
    """A recipe given by the user, checked against the graph."""
    try:
        preprocess = Preprocess.parse(recipe, signature.input_type, ranks)
    except ValueError as error:
        raise UsageError(_choices(recipe, str(error), signature)) from None
    geometry = preprocess.geometry
    fits = (
        geometry.channels == signature.channels
        and signature.height in (None, geometry.height)
        and signature.width in (None, geometry.width)
        and (
            preprocess.layout == signature.layout
            or (signature.layout == "flat" and preprocess.layout == "flatCHW")
        )
    )
    if not fits:
        raise UsageError(_choices(recipe, "it does not fit the model's input", signature))
    return preprocess


def _choices(given: str, why: str, signature: Signature) -> str:
    size = f"{signature.height or 224}x{signature.width or 224}x{signature.channels}"
    names = ", ".join(scale.name for scale in SCALES if len(scale.mean) <= signature.channels)
    return (
        f"--preprocess {given!r} cannot be used: {why}; give a scale ({names}) or a whole recipe such as "
        f"{size}-stretch-RGB-{signature.layout}-unit"
    )


def _with_crop(preprocess: Preprocess, sample: _Sample) -> list[Preprocess]:
    """The same with a centre crop, unless the images already have the right size."""
    geometry = preprocess.geometry
    if geometry.fit == "crop" or set(sample.sizes()) == {(geometry.height, geometry.width)}:
        return []
    fit: Fit = "crop"
    return [replace(preprocess, geometry=replace(geometry, fit=fit))]


# ---------------------------------------------------------------- scoring


def _changed(pixels: Pixels) -> tuple[NDArray[np.generic], ...]:
    """Harmless changes: one pixel to the left, and a little less contrast."""
    shifted = np.concatenate([pixels[:, :, 1:], pixels[:, :, -1:]], axis=2)
    return shifted, (pixels.astype(np.float32) - 128) * np.float32(0.85) + 128


@dataclass(slots=True)
class _Answers:
    """What the teacher said under one candidate."""

    preprocess: Preprocess
    views: list[NDArray[np.float32]]  # raw scores [n, K] per view; the first view is the image itself
    failed: str = ""

    @property
    def tops(self) -> list[NDArray[np.int64]]:
        """Top-1 answers per view [n]; -1 where a score is not finite."""
        return [
            np.where(np.isfinite(v).all(axis=1), v.argmax(axis=1), -1).astype(np.int64) for v in self.views
        ]


class _Judge:
    """Runs candidates, remembers every answer, and compares."""

    def __init__(
        self,
        session: Session,
        sample: _Sample,
        truth: NDArray[np.int64] | None,
        classes: tuple[str, ...] | None,
    ) -> None:
        self.session = session
        self.sample = sample
        self.truth = truth
        self._classes = classes
        self._answers: dict[Preprocess, _Answers] = {}

    def run(self, preprocess: Preprocess, images: int) -> _Answers:
        """Answers to the first `images` images; those already known are not asked again."""
        entry = self._answers.setdefault(preprocess, _Answers(preprocess, []))
        done = len(entry.views[0]) if entry.views else 0
        if entry.failed or done >= images:
            return entry
        pixels = self.sample.pixels(preprocess.geometry, done, images)
        views = (pixels,) if self.truth is not None else (pixels, *_changed(pixels))
        try:
            fresh = [self.session.raw(preprocess.apply(view)) for view in views]  # type: ignore[arg-type]
        except ModelRefused as error:
            entry.failed = str(error)
            return entry
        old = entry.views or [scores[:0] for scores in fresh]
        entry.views = [np.concatenate(pair) for pair in zip(old, fresh, strict=True)]
        return entry

    def alignment(self, entry: _Answers) -> Alignment:
        """The class order that a candidate's answers speak for."""
        assert self.truth is not None
        tops, signature = entry.tops[0], self.session.signature
        return align(tops, self.truth[: len(tops)], signature.classes, self._classes, signature.class_names)

    def candidate(self, preprocess: Preprocess) -> Candidate:
        """A candidate's line in the table."""
        entry = self._answers[preprocess]
        if entry.failed or not entry.views:
            return Candidate(preprocess, 0, -1.0, 0.0, None, float("inf"))
        n, tops = len(entry.views[0]), entry.tops
        if self.truth is None:
            score, error = information(tops), _bootstrap(tops)
            return Candidate(preprocess, n, score, error, None, self._overconfidence(entry))
        alignment = self.alignment(entry)
        error = float(np.sqrt(max(alignment.accuracy * (1 - alignment.accuracy), 1 / n) / n))
        loss = self._loss(entry, alignment)
        return Candidate(preprocess, n, alignment.accuracy, error, alignment.accuracy, loss)

    def margin(self, best: Preprocess, other: Preprocess) -> tuple[float, float]:
        """Score of one less that of another on the same images, with its standard error."""
        first, second = self._answers[best], self._answers[other]
        n = min(len(first.views[0]), len(second.views[0]))
        a, b = ([top[:n] for top in entry.tops] for entry in (first, second))
        if self.truth is None:
            return information(a) - information(b), _bootstrap(a, b)
        cut = [replace_views(entry, n) for entry in (first, second)]
        return paired(self.alignment(cut[0]).hits, self.alignment(cut[1]).hits)

    def same(self, one: Preprocess, other: Preprocess) -> float:
        """Share of images to which two candidates give the same answer."""
        a, b = self._answers[one].tops[0], self._answers[other].tops[0]
        n = min(len(a), len(b))
        return float((a[:n] == b[:n]).mean())

    def kind(self, preprocess: Preprocess) -> OutputKind:
        """What the scores are, by their behaviour."""
        return output_kind(self._answers[preprocess].views[0])

    def _beliefs(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        if output_kind(scores) == "probabilities":
            scores = from_probabilities(scores)
        z = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=1e9, neginf=-1e9)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(z / z.sum(axis=1, keepdims=True))

    def _loss(self, entry: _Answers, alignment: Alignment) -> float:
        """Cross-entropy of the labels, each image's share bounded at 1e-7."""
        assert self.truth is not None
        beliefs = self._beliefs(entry.views[0])
        outputs = np.asarray(alignment.order)[self.truth[: len(beliefs)]]
        return float(-np.log(np.maximum(beliefs[np.arange(len(beliefs)), outputs], 1e-7)).mean())

    def _overconfidence(self, entry: _Answers) -> float:
        """Distance between mean confidence and the share of answers that survive a harmless change."""
        tops = entry.tops
        stable = float(np.mean([(tops[0] == other).mean() for other in tops[1:]]))
        return abs(float(self._beliefs(entry.views[0]).max(axis=1).mean()) - stable)


def replace_views(entry: _Answers, images: int) -> _Answers:
    """The same answers, cut to the first images."""
    return _Answers(entry.preprocess, [view[:images] for view in entry.views])


def information(tops: Sequence[NDArray[np.int64]]) -> float:
    """Mutual information in nats between the answers to images and to the same images changed.

    Args:
        tops: answers [n] per view, the unchanged images first; -1 counts as an answer of its own.

    Returns:
        The mean over the changed views; 0 when there is none or when all answers are the same.
    """
    values = []
    for other in tops[1:]:
        joint = tops[0] * (int(max(tops[0].max(initial=0), other.max(initial=0))) + 2) + other
        values.append(_entropy(tops[0]) + _entropy(other) - _entropy(joint))
    return float(np.mean(values)) if values else 0.0


def _entropy(answers: NDArray[np.int64]) -> float:
    _, counts = np.unique(answers, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _bootstrap(a: Sequence[NDArray[np.int64]], b: Sequence[NDArray[np.int64]] | None = None) -> float:
    """Standard error of `information`, or of its difference between two candidates, by resampling images."""
    rng = np.random.default_rng(0)
    n = len(a[0])
    values = []
    for _ in range(50):
        rows = rng.integers(0, n, n)
        value = information([top[rows] for top in a])
        values.append(value - (information([top[rows] for top in b]) if b is not None else 0.0))
    return float(np.std(values)) + 1 / n


def output_kind(scores: NDArray[np.float32]) -> OutputKind:
    """What raw scores [n, K] are: rows in 0..1 that sum to one, their logarithms, or neither (logits)."""
    rows = scores[np.isfinite(scores).all(axis=1)].astype(np.float64)
    if not len(rows):
        return "logits"
    tolerance = 0.01  # float16 softmax over 1,000 classes is off by a few thousandths
    if rows.min() >= -1e-3 and rows.max() <= 1 + 1e-3 and np.abs(rows.sum(axis=1) - 1).max() <= tolerance:
        return "probabilities"
    if rows.max() <= 1e-3 and np.abs(np.exp(rows).sum(axis=1) - 1).max() <= tolerance:
        return "log-probabilities"
    return "logits"


# ---------------------------------------------------------------- choosing


def _tournament(judge: _Judge, candidates: list[Preprocess]) -> list[Candidate]:
    """Score all on a few images, the better ones on more; returns the table, the best first."""
    field = list(candidates)
    table: dict[Preprocess, Candidate] = {}
    for number, images in enumerate(ROUNDS):
        for preprocess in field:
            judge.run(preprocess, min(images, len(judge.sample)))
            table[preprocess] = judge.candidate(preprocess)
        field.sort(key=lambda p: (-table[p].score, table[p].calibration))
        if number == len(ROUNDS) - 1 or images >= len(judge.sample):
            break
        field = _survivors(field, table)
        if number == 0:
            field += [crop for p in field for crop in _with_crop(p, judge.sample) if crop not in table]
    if all(candidate.images == 0 for candidate in table.values()):
        first = judge.run(field[0], 0)
        raise ModelRefused("KDA021", first.failed.removesuffix(" [KDA021]"))
    winner = _winner(judge, field, table)
    rest = sorted(
        (c for p, c in table.items() if p != winner), key=lambda c: (-c.images, -c.score, c.calibration)
    )
    return [table[winner], *rest]


def _survivors(field: list[Preprocess], table: dict[Preprocess, Candidate]) -> list[Preprocess]:
    """Those that may still be the best: within three standard errors of it, and a few at most."""
    best = table[field[0]]
    near = [p for p in field if table[p].score >= best.score - 3 * np.hypot(best.error, table[p].error)]
    limit = max(FINALISTS, len(field) // 3)
    return [p for p in near[:limit] if table[p].images]


def _winner(judge: _Judge, field: list[Preprocess], table: dict[Preprocess, Candidate]) -> Preprocess:
    """The highest score; among those that tie with it or answer alike, the best calibrated.

    Scales that differ by a factor often give the same answers at another confidence, and the audit compares
    confidences: there the calibration knows more than the score.
    """
    full = [p for p in field if table[p].images == table[field[0]].images]
    top = full[0]
    tied = [top]
    for other in full[1:]:
        gap, error = judge.margin(top, other)
        if gap <= error or judge.same(top, other) >= SAME_ANSWERS:
            tied.append(other)
    return min(tied, key=lambda p: (round(table[p].calibration, 2), -table[p].score))


def _verdict(
    judge: _Judge, table: list[Candidate], signature: Signature, classes: tuple[str, ...] | None
) -> Fitted:
    """Put the result together and say what is uncertain."""
    best = table[0]
    notes: list[str] = []
    rivals = [c for c in table[1:] if c.images == best.images]
    differing = [c for c in rivals if judge.same(best.preprocess, c.preprocess) < SAME_ANSWERS]
    alike = len(rivals) - len(differing)
    if alike:
        notes.append(f"{alike} other candidates give the same answers; that tie is harmless")
    # A candidate that fell out in an early round is still the runner-up if nobody else is left.
    others = differing or [c for c in table[1:] if 0 < c.images < best.images]
    runner_up = max(others, key=lambda c: c.score, default=None)
    margin, error = judge.margin(best.preprocess, runner_up.preprocess) if runner_up else (0.0, 0.0)
    sure = runner_up is None or margin >= 2 * error
    if not sure and runner_up is not None:
        share = 1 - judge.same(best.preprocess, runner_up.preprocess)
        notes.append(
            f"{runner_up.recipe} scores the same within the error and changes {share:.0%} of the answers; "
            "give --preprocess if you know which it is"
        )
    order, basis, accuracy = _classes(judge, best, signature, classes, notes)
    if accuracy is not None and accuracy - SIGNIFICANCE * best.error <= 1 / signature.classes:
        sure = False
        notes.append(f"the teacher agrees with {accuracy:.0%} of the labels, no better than chance")
    settled = replace(
        signature,
        layout=best.preprocess.layout,
        output_kind=judge.kind(best.preprocess),
    )
    return Fitted(
        preprocess=best.preprocess,
        signature=settled,
        class_order=order,
        class_basis=basis,
        how="consistency" if judge.truth is None else "labels",
        accuracy=accuracy,
        runner_up=runner_up,
        margin=margin,
        error=error,
        sure=sure,
        note=". ".join(notes),
        table=tuple(table),
    )


def _classes(
    judge: _Judge, best: Candidate, signature: Signature, classes: tuple[str, ...] | None, notes: list[str]
) -> tuple[
    tuple[int, ...] | None,
    Literal["names", "identity", "sorted", "assignment", "assumed", "none"],
    float | None,
]:
    """Class order, its basis, and the accuracy under it; adds to the notes."""
    if judge.truth is not None:
        alignment = judge.alignment(judge.run(best.preprocess, best.images))
        if alignment.unsupported:
            notes.append(f"the place of {len(alignment.unsupported)} classes rests on fewer than two images")
        return alignment.order, alignment.basis, alignment.accuracy
    if classes is None:
        return None, "none", None
    named = named_order(classes, signature.class_names) if signature.class_names else None
    if named is not None:
        return named, "names", None
    if len(classes) == signature.classes:
        return tuple(range(len(classes))), "assumed", None
    return None, "none", None
