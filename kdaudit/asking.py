"""How a graph is asked: what it leaves to the caller about batches, and which of its tensors are wanted.

Some graphs fix their batch, some declare it free and have it fixed inside, and in some an image's answer depends on
the images beside it. All are asked such that an image's answer is its own.
"""

import numpy as np
from numpy.typing import NDArray

from kdaudit.engines import AnyEngine
from kdaudit.errors import ModelRefused
from kdaudit.sandbox.process import WorkerLost
from kdaudit.signature import Signature

BATCH_TOLERANCE = 1e-3
"""How far an image's scores may move with its batch mates, relative to how far they lie apart."""

MAX_FEATURES = 1 << 14
"""Longest row of features that is taken; a longer one is a picture and no summary of one."""


class Asker:
    """One graph and what was found out about it.

    Attributes:
        together: whether images may share a run; None until `learn` has found out.
        features: numbers in a row of features; 0 where there are none.
    """

    together: bool | None
    features: int

    def __init__(self, engine: AnyEngine, signature: Signature, fill: int | None = None) -> None:
        """Take up a loaded graph.

        Args:
            engine: holds it.
            signature: its input and output.
            fill: images that a run is filled up to where the graph takes any number; None: it takes those at hand.
        """
        self._engine, self._signature, self._fill = engine, signature, fill
        self.together, self.features = None, 0

    def under(self, signature: Signature) -> "Asker":
        """The same graph under a signature that says more."""
        other = Asker(self._engine, signature, self._fill)
        other.together, other.features = self.together, self.features
        return other

    def learn(self, tensor: NDArray[np.generic]) -> None:
        """Find out whether images may share a run, and how long a row of features is, with images [n, ...] at hand.

        Raises:
            WorkerLost: a confined model does not survive it.
        """
        together = self._may_share(tensor)
        self.features = self._measured_features(tensor[:1])
        self.together = together

    def run(
        self,
        tensor: NDArray[np.generic],
        engine: AnyEngine | None = None,
        *,
        together: bool | None = None,
    ) -> NDArray[np.float32]:
        """Ask about images; one by one unless they may share a run.

        Args:
            tensor: input [n, ...], n at least 1.
            engine: another engine with the same model; None: the own one.
            together: whether they may share a run; None: as it was found out.

        Returns:
            Scores and features side by side, [n, K + D].

        Raises:
            ModelRefused: KDA021, the answer is not of the form that the signature promises.
            WorkerLost: a confined model died, blocked or answered nonsense.
        """
        signature = self._signature
        together = self.together if together is None else together
        rows = signature.batch or ((self._fill or len(tensor)) if together else 1)
        if not together and signature.batch:
            return np.concatenate([self.run(tensor[i : i + 1], engine, together=True) for i in range(len(tensor))])
        in_one = rows == len(tensor)
        wanted = [signature.output_name, *([signature.features] if signature.features and self.features else [])]
        array, *more = (engine or self._engine).run({signature.input_name: tensor}, wanted, None if in_one else rows)
        if array.size != len(tensor) * signature.classes or array.dtype.kind != "f":
            given = f"{array.dtype} {list(array.shape)} for a batch of {len(tensor)}"
            raise ModelRefused(
                "KDA021",
                f"output {signature.output_name} gave {given}; {signature.classes} scores each are needed",
            )
        scores = array.reshape(len(tensor), signature.classes).astype(np.float32, copy=False)
        if not more:
            return scores
        if more[0].size != len(tensor) * self.features:
            given = f"{list(more[0].shape)} for a batch of {len(tensor)}"
            raise ModelRefused("KDA021", f"tensor {signature.features} gave {given}; it gave another size before")
        return np.concatenate([scores, more[0].reshape(len(tensor), -1).astype(np.float32)], axis=1)

    def _measured_features(self, one: NDArray[np.generic]) -> int:
        """Numbers in a row of features; 0 where they are not one row of numbers for each image."""
        signature = self._signature
        if signature.features is None:
            return 0
        rows = signature.batch or 1
        try:
            (array,) = self._engine.run({signature.input_name: np.repeat(one, rows, axis=0)}, [signature.features])
        except (ModelRefused, WorkerLost):
            return 0
        length = array.size // rows
        flat = array.ndim >= 2 and array.shape[:2] == (rows, length)
        return length if flat and array.dtype.kind in "fiu" and 0 < length <= MAX_FEATURES else 0

    def _may_share(self, tensor: NDArray[np.generic]) -> bool:
        """Whether an image's answer is the same alone and beside others.

        Some exports fix the batch inside the graph although they declare it free, and dynamically quantised
        graphs take their ranges over the whole batch: such models are asked one image at a time.
        """
        if self._signature.batch == 1:
            return True
        rng = np.random.default_rng(0)
        noise = rng.random((2, *tensor.shape[1:]), dtype=np.float32)
        noise *= np.float32(np.abs(tensor.astype(np.float32)).max() or 1)
        rows = np.concatenate([noise[:1] / 64, noise[1:]]).astype(tensor.dtype)
        fill = (self._signature.batch or 2) - 2
        mates = np.concatenate([rows, np.repeat(rows[1:], fill, axis=0)])
        try:
            expected = self.run(rows[:1], together=True)
            beside = self.run(mates, together=True)[:1]
        except ModelRefused:
            return False
        span = float(np.ptp(expected)) or 1.0
        return bool(np.abs(beside - expected).max() <= BATCH_TOLERANCE * span)
