"""A teacher or a control as a function from a batch to its scores.

How a graph wants to be asked is `kdaudit.asking`'s; here are beliefs (probabilities become logits) and survival: an
image on which a hostile model dies, blocks or answers nonsense has no scores, is noted, and the others go on.
`kdaudit.opening` opens one. `Session.provider` is what was obtained, never what was asked.
"""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.asking import BATCH_TOLERANCE, Asker
from kdaudit.divergence import from_probabilities
from kdaudit.engines import AnyEngine, Fleet
from kdaudit.errors import Inconclusive, ModelRefused
from kdaudit.incidents import Incident, Incidents
from kdaudit.sandbox.engine import ConfinedEngine
from kdaudit.sandbox.process import WorkerLost
from kdaudit.signature import Signature

MAX_INCIDENTS = 16
"""After so many images that a model did not survive, nothing more is expected of it."""

REPEAT_EVERY = 256
"""One run in so many is repeated: a model that rolls dice now and then is found, at half a percent of the time."""


IN_WORKERS = (ConfinedEngine, Fleet)
"""Engines with processes of their own."""


class Session:
    """A model that is ready to answer. Thread-safe.

    Attributes:
        provider: the execution provider that was really obtained: cpu, cuda or tensorrt.
        signature: the model's input and output.
        threads: onnxruntime threads inside one run.
        confinement: the level of confinement that its process reached; "none" in this process.
        model: the bytes that it was opened with.
    """

    provider: str
    signature: Signature
    threads: int

    def __init__(
        self,
        engine: AnyEngine,
        signature: Signature,
        threads: int,
        model: bytes = b"",
        rows: int | None = None,
        fill: int | None = None,
    ) -> None:
        """Take up a loaded model.

        Args:
            engine: holds it.
            signature: its input and output.
            threads: onnxruntime threads inside one run.
            model: its bytes.
            rows: images in every run, whatever the graph would take; None: as the graph and `fill` say.
            fill: images that a run is filled up to where images may share one; None: those at hand are enough.
        """
        self._engine, self._rows, self._fill = engine, rows, fill
        self.model = model
        self._sharing = threading.Lock()
        self._asker = Asker(engine, self._asked(signature), fill)
        self._proven = False  # until it has run once: from then on a lost worker is told of, and no refusal
        self._runs = 0
        self.signature = signature
        self.threads = threads
        self.provider = engine.provider
        self.confinement = engine.confinement
        self._noted = Incidents()

    @property
    def incidents(self) -> list[Incident]:
        """What the model has done so far that no honest model does; of an interrupted pass as well."""
        return self._noted.seen

    @property
    def features(self) -> int:
        """Numbers in a row of the model's last features; 0 where it shows none, and before the first run."""
        return self._asker.features

    @property
    def one_by_one(self) -> bool:
        """Whether images run one at a time: the graph wants it, or answers depend on batch mates."""
        return self.signature.batch == 1 or self._asker.together is False

    def settled(self, signature: Signature) -> "Session":
        """The same loaded model under a signature that says more (the output kind, say)."""
        other = Session(self._engine, signature, self.threads, self.model, self._rows, self._fill)
        other._asker, other._proven = self._asker.under(self._asked(signature)), self._proven
        other._noted = self._noted
        return other

    def prove(self) -> None:
        """Run the model once on noise; where the graph leaves the size open, the first batch will show.

        Raises:
            ModelRefused: as for `raw`.
        """
        signature = self.signature
        if signature.height is not None and signature.width is not None:
            shape = tuple(side or 1 for side in signature.input_shape[1:])
            if signature.layout == "NCHW":
                shape = (signature.channels, signature.height, signature.width)
            elif signature.layout == "NHWC":
                shape = (signature.height, signature.width, signature.channels)
            self.raw(np.random.default_rng(0).random((1, *shape), dtype=np.float32))
        self._proven = True

    def keep_incidents(self, file: Path, recipe: str) -> None:
        """Keep incidents in a file from now on, those of an interrupted pass among them; see `Incidents.keep`."""
        self._noted.keep(file, recipe)

    def close(self) -> None:
        """End the model's own process, if it has one."""
        if isinstance(self._engine, IN_WORKERS):
            self._engine.close()

    def raw(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """The class scores as the graph gives them.

        Args:
            tensor: input [n, ...] in the signature's layout; n may be any number, also 0.

        Returns:
            Scores [n, K], float32; non-finite values are left in. Rows of images on which a confined model died,
            blocked or answered nonsense are NaN; `incidents` says what happened.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this tensor; KDA022, a confined model does
                not even survive the proof that it runs.
            Inconclusive: a confined model has died or blocked too often.
        """
        return self._answers(tensor)[:, : self.signature.classes]

    def logits(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """Scores whose softmax is the model's belief.

        Probabilities are raised to `divergence.PROBABILITY_FLOOR` and brought back to sum one, then their logarithm is
        taken; logits and log-probabilities pass as they are.

        Args:
            tensor: input [n, ...] in the signature's layout.

        Returns:
            Logits [n, K], float32; non-finite values of the model are left in.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this tensor.
        """
        return self._as_logits(self.raw(tensor))

    def logits_and_features(self, tensor: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `logits`, and what the model's last linear layer read to give them, from the same run.

        Args:
            tensor: input [n, ...] in the signature's layout.

        Returns:
            Logits [n, K] and features [n, D], float32; D is 0 where the graph shows none. Non-finite values of the
            model are left in.

        Raises:
            ModelRefused: KDA021, onnxruntime cannot run the model on this tensor.
        """
        found = self._answers(tensor)
        classes = self.signature.classes
        return self._as_logits(found[:, :classes]), found[:, classes:]

    def _asked(self, signature: Signature) -> Signature:
        """The signature under which the graph is asked: every run holds as many images where the shape is fixed."""
        return signature if self._rows is None else replace(signature, batch=self._rows)

    def _as_logits(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        return from_probabilities(scores) if self.signature.output_kind == "probabilities" else scores

    def _answers(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """Scores and features side by side, [n, K + D]."""
        tensor = tensor.astype(self.signature.input_type, copy=False)
        if len(tensor) == 0:
            return np.empty((0, self.signature.classes + self._asker.features), np.float32)
        if self._asker.together is None:
            with self._sharing:
                if self._asker.together is None:
                    self._learn(tensor)
        return self._survived(tensor)

    def _learn(self, tensor: NDArray[np.generic]) -> None:
        try:
            self._asker.learn(tensor)
        except WorkerLost as lost:
            if not self._proven:
                raise ModelRefused("KDA022", f"the model does not answer: {lost.detail}; do not use it") from None
            self._asker.together = False

    def _survived(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """Ask once; if the model does not survive it, once more image by image in a process of its own."""
        try:
            scores = self._asker.run(tensor)
        except WorkerLost as lost:
            if not self._proven:
                raise ModelRefused("KDA022", f"the model does not answer: {lost.detail}; do not use it") from None
            return self._singly(tensor)
        except ModelRefused:
            if not self._proven or not isinstance(self._engine, IN_WORKERS):
                raise
            return self._singly(tensor)
        self._runs += 1
        if self._runs % REPEAT_EVERY == 1:
            self._repeat(tensor, scores)
        return scores

    def _repeat(self, tensor: NDArray[np.generic], scores: NDArray[np.float32]) -> None:
        """Ask the same once more; features are of another scale than the scores and follow from what they follow."""
        scores = scores[:, : self.signature.classes]
        try:
            again = self._asker.run(tensor)[:, : self.signature.classes]
        except (ModelRefused, WorkerLost):
            again = np.full_like(scores, np.nan)
        span = float(np.ptp(scores[np.isfinite(scores)], axis=None)) if np.isfinite(scores).any() else 1.0
        if not np.allclose(again, scores, rtol=0, atol=BATCH_TOLERANCE * (span or 1.0), equal_nan=True):
            self.note_other_answer(tensor)

    def _singly(self, tensor: NDArray[np.generic]) -> NDArray[np.float32]:
        """The images of a batch that was lost, one by one: only the culprits lose their scores.

        Raises:
            ModelRefused: onnxruntime cannot run the model on any of them; then it is not the images' doing.
        """
        assert isinstance(self._engine, IN_WORKERS)
        rows = np.full((len(tensor), self.signature.classes + self._asker.features), np.nan, np.float32)
        refusals: list[tuple[ModelRefused, str]] = []
        probe = self._engine.isolated()
        try:
            for row in range(len(tensor)):
                try:
                    rows[row] = self._asker.run(tensor[row : row + 1], probe)[0]
                except WorkerLost as lost:
                    self._note(Incident(lost.how, lost.detail, _digest(tensor[row])))
                except ModelRefused as refused:
                    refusals.append((refused, _digest(tensor[row])))
        finally:
            probe.close()
        if len(refusals) == len(tensor):
            raise refusals[0][0]
        for one, what in refusals:
            self._note(Incident("confused", str(one).removesuffix(f" [{one.rule}]"), what))
        return rows

    def note_other_answer(self, tensor: NDArray[np.generic]) -> None:
        """Note that the model gave other scores to the same images when it was asked again."""
        self._note(Incident("differs", "the same images got other scores when asked again", _digest(tensor)))

    def _note(self, incident: Incident) -> None:
        self._noted.add(incident)
        often = sum(one.how != "differs" for one in self.incidents) > MAX_INCIDENTS
        if often:
            raise Inconclusive(
                f"the model died, blocked or answered nonsense on {MAX_INCIDENTS + 1} images (the last time: "
                f"{incident.detail}), so nothing can be said about the others: do not use it"
            )


def _digest(tensor: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
