"""Teacher and control as one graph, from pixels to columns: one message to one worker instead of two or more.

For the cheap pass. The graph runs in a worker of its own, confined as the teacher is. It is used only after it has
given the same columns as the two sessions on clean images, and whatever goes wrong later is theirs to sort out: they
know which network has died, blocked or answered nonsense on which image.
"""

import threading
from dataclasses import replace

import numpy as np

from kdaudit import divergence
from kdaudit.asking import BATCH_TOLERANCE
from kdaudit.clock import Laps
from kdaudit.engines import AnyEngine, open_engine
from kdaudit.errors import Inconclusive, ModelRefused
from kdaudit.fusion import NotFused
from kdaudit.fusion.blueprint import COLUMNS, Blueprint, draw
from kdaudit.fusion.confined import compose_confined
from kdaudit.looks import Look, Pixels, ask_both, look_of
from kdaudit.machine import Placement
from kdaudit.opening import ON_ONE_GPU
from kdaudit.preprocess import Preprocess
from kdaudit.sandbox.process import WorkerLost
from kdaudit.session import IN_WORKERS, REPEAT_EVERY, Session

TOLERANCE = 1e-4
"""How far the columns of both forms may lie apart, absolutely and relatively: what rounding in another order takes.
On a CPU they lie within 1e-5 (tests/test_one_graph.py)."""

ROUNDED_TOLERANCE = 2e-2
"""The same where a GPU may round what it multiplies to 10 bits: each form rounds in its own way."""

PROOF = 32
"""Images on which both forms are compared before one graph is used."""


class OneGraph:
    """An audit graph, ready to be asked. Thread-safe.

    Attributes:
        confinement: the level of confinement that its process reached.
    """

    confinement: str

    def __init__(
        self, engine: AnyEngine, blueprint: Blueprint, teacher: Session, control: Session, fill: int | None = None
    ) -> None:
        """Take up a loaded graph.

        Args:
            engine: holds the composed graph.
            blueprint: what it was composed from.
            teacher: the same teacher alone; is told what the graph shows of it.
            control: the same control alone; likewise.
            fill: images that a run is filled up to where the graph takes any number; None: it takes those at hand.
        """
        self._engine, self._blueprint, self._fill = engine, blueprint, fill
        self._teacher, self._control = teacher, control
        self._lock = threading.Lock()
        self._looks, self._over = 0, False
        self.confinement = engine.confinement

    def look(self, pixels: Pixels) -> Look | None:
        """Look at images as they are.

        Args:
            pixels: uint8 [B, H, W, C], RGB.

        Returns:
            Their columns; None where the two sessions have to be asked, because there are no images, the worker did
            not survive these, or what came back is no answer.
        """
        if self._over or not len(pixels):
            return None
        try:
            rows = self._rows(pixels)
            with self._lock:
                self._looks += 1
                again = self._looks % REPEAT_EVERY == 1
            if again:
                self._compare(pixels, rows, self._rows(pixels))
        except (ModelRefused, WorkerLost):
            return None
        except Inconclusive:  # it has lost more workers than anybody waits for
            self._over = True
            return None
        return self._taken(rows)

    def close(self) -> None:
        """End the graph's own process."""
        if isinstance(self._engine, IN_WORKERS):
            self._engine.close()

    def _rows(self, pixels: Pixels) -> np.ndarray:
        """The graph's answer, [B, `Blueprint.length`]."""
        plan = self._blueprint
        rows = plan.batch or self._fill or len(pixels)
        (found,) = self._engine.run({plan.pixels: pixels}, [plan.rows], None if rows == len(pixels) else rows)
        if found.shape != (len(pixels), plan.length) or found.dtype != np.float32:
            raise ModelRefused("KDA021", f"the audit graph gave {found.dtype} {list(found.shape)}")
        return found

    def _taken(self, rows: np.ndarray) -> Look | None:
        """The columns, if they are such as the comparison can give."""
        known, student, *numbers, finite = rows[:, : len(COLUMNS)].astype(np.float64).T
        behaviour = rows[:, len(COLUMNS) :]
        confidence, own, gap, js = numbers
        classes = self._blueprint.classes
        sound = np.isfinite(rows).all() and np.isin(finite, (0, 1)).all()
        sound &= all((top >= 0).all() and (top < classes).all() and (top % 1 == 0).all() for top in (known, student))
        sound &= all((p >= 0).all() and (p <= 1 + TOLERANCE).all() for p in (confidence, own))
        if not sound or (js < 0).any() or (js > np.log(2) + TOLERANCE).any():
            return None
        answers = divergence.Answers(known.astype(np.int64), student.astype(np.int64), confidence, own, gap, js)
        return Look(answers, np.ascontiguousarray(behaviour), finite == 1)

    def _compare(self, pixels: Pixels, rows: np.ndarray, again: np.ndarray) -> None:
        """Note it where one of the networks answers otherwise when it is asked again."""
        width = min(self._blueprint.classes, divergence.BEHAVIOUR_LOGITS)
        for number, session in enumerate((self._teacher, self._control)):
            start = len(COLUMNS) + number * width
            one, other = (found[:, start : start + width] for found in (rows, again))
            span = float(np.ptp(one)) or 1.0
            if not np.allclose(other, one, rtol=0, atol=BATCH_TOLERANCE * span, equal_nan=True):
                session.note_other_answer(pixels)


def open_one_graph(
    teacher: Session,
    control: Session,
    preprocess: Preprocess,
    pixels: Pixels,
    placement: Placement = ON_ONE_GPU,
) -> OneGraph:
    """Compose two networks into one graph, load it behind walls, and prove that it answers as the two do.

    Args:
        teacher: the suspect model; has been asked before.
        control: the control.
        preprocess: from pixels to the input of both.
        pixels: clean images, uint8 [n, H, W, C]; the first `PROOF` serve.
        placement: on which GPUs, and how.

    Raises:
        NotFused: they do not go into one graph; the text says why in a few words.
    """
    why = _apart(teacher, control)
    if why:
        raise NotFused(why)
    fixed = teacher.provider == "tensorrt"
    plan = draw(teacher.signature, control.signature, preprocess, teacher.features, teacher.model)
    plan = replace(plan, batch=plan.batch or placement.batch) if fixed else plan
    fused = compose_confined(teacher.model, control.model, plan)
    try:
        engine = open_engine(
            fused.model,
            teacher.provider,
            teacher.threads,
            confined=True,
            placement=placement,
            profile=plan.profile if fixed else "",
        )
    except ModelRefused as refused:
        raise NotFused(f"onnxruntime does not load it: {refused}") from None
    graph = OneGraph(engine, plan, teacher, control, placement.fill(engine.provider))
    try:
        if engine.provider != teacher.provider:
            raise NotFused(f"it runs on {engine.provider} and the model on {teacher.provider}")
        tolerance = ROUNDED_TOLERANCE if placement.fp16 or placement.tf32 else TOLERANCE
        _prove(graph, teacher, control, preprocess, pixels[:PROOF], tolerance)
    except BaseException:
        graph.close()
        raise
    return graph


def _apart(teacher: Session, control: Session) -> str:
    """Why two sessions cannot become one graph; empty where nothing is in the way."""
    one, other = teacher.signature, control.signature
    if teacher.one_by_one or control.one_by_one:
        return "one of the networks answers for one image at a time"
    if (one.input_type, one.layout, one.classes) != (other.input_type, other.layout, other.classes):
        return "the networks take or give different things"
    if teacher.provider != control.provider:
        return f"the model runs on {teacher.provider} and the control on {control.provider}"
    return "" if teacher.model and control.model else "the bytes of one of the networks are not at hand"


def _prove(
    graph: OneGraph, teacher: Session, control: Session, preprocess: Preprocess, pixels: Pixels, tolerance: float
) -> None:
    """Compare both forms on some images.

    Raises:
        NotFused: they differ, or the graph does not answer.
    """
    found, expected = graph.look(pixels), look_of(ask_both(teacher, control, preprocess, pixels, Laps()))
    if found is None:
        raise NotFused("it does not answer")
    columns = [(*look.answers, look.behaviour, look.finite) for look in (found, expected)]
    for one, other in zip(*columns, strict=True):
        if one.shape != other.shape or not np.allclose(one, other, rtol=tolerance, atol=tolerance):
            raise NotFused("it answers otherwise than the two networks do by themselves")
