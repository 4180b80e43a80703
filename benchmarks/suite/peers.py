"""Peers on the same teachers and images, from the adversarial-robustness-toolbox (Nicolae et al., 2018).

Activation Clustering and Spectral Signatures get what they ask for: the teacher's penultimate features and the data
set's labels, and Spectral Signatures the true poison rate, which nobody has in the field. STRIP gets the clean pool.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import lab
from benchmarks.lab import Images
from benchmarks.suite.forms import Form
from kdaudit.preprocess import Preprocess

STRIP_IMAGES, STRIP_BLENDS = 3000, 20


@dataclass(frozen=True)
class Found:
    """What a method says.

    Attributes:
        flag: bool [n], poison candidates.
        score: float [n], larger = more suspicious; None where the method has none.
        index: which images of the delivery it was asked about, int64 [n].
        cpu: CPU-seconds, without the features that it was given.
    """

    flag: NDArray[np.bool_]
    score: NDArray[np.float64] | None
    index: NDArray[np.int64]
    cpu: float


def features(teacher: Any, pixels: NDArray[np.uint8], feed: Preprocess) -> NDArray[np.float32]:
    """Inputs of the teacher's last linear layer, [n, F]; `feed` makes the tensor that it takes."""
    import onnxruntime as ort

    model = onnx.load(teacher)
    made_by = {output: node for node in model.graph.node for output in node.output}
    name = model.graph.output[0].name
    while made_by[name].op_type not in ("Gemm", "MatMul"):
        name = made_by[name].input[0]
    tensor = made_by[name].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    into = session.get_inputs()[0].name
    parts = [session.run([tensor], {into: lab.fed(pixels[i : i + 256], feed)})[0] for i in range(0, len(pixels), 256)]
    return np.concatenate([p.reshape(len(p), -1) for p in parts])


def probabilities(teacher: Path, x: NDArray[np.float32], form: Form) -> NDArray[np.float32]:
    """The teacher's probabilities [n, K] for x/255, float32 [n, H, W, C]."""
    z = _session(teacher).run(None, {"input": lab.fed(255 * x, form.feed(x.shape[1:]))})[0]
    if form.softmax:
        return np.asarray(z, np.float32)
    e = np.exp(z - z.max(1, keepdims=True))
    out: NDArray[np.float32] = e / e.sum(1, keepdims=True)
    return out


@cache
def _session(teacher: Path) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(str(teacher), providers=["CPUExecutionProvider"])


def activation_clustering(layer: NDArray[np.float32], given: Images) -> Found:
    """Chen et al., 2018: 2-means per label on ten components; the smaller cluster, if it is under 35 %."""
    from art.defences.detector.poison import ActivationDefence

    def find() -> NDArray[np.bool_]:
        defence = ActivationDefence(_Classifier(layer, len(given.classes)), given.pixels, _one_hot(given))  # type: ignore[arg-type]
        clusters, _ = defence.cluster_activations(nb_clusters=2, nb_dims=10, reduce="PCA")
        # ART's own rule by relative size fails on numpy 2 for a class without a small cluster; it is this one.
        flag = np.zeros(len(given), bool)
        for label, assigned in enumerate(clusters):
            own, counts = np.flatnonzero(given.labels == label), np.bincount(assigned, minlength=2)
            small = int(counts.argmin())
            flag[own] = (assigned == small) & (counts[small] < 0.35 * len(own))
        return flag

    return _timed(find, len(given))


def spectral_signatures(layer: NDArray[np.float32], given: Images, rate: float) -> Found:
    """Tran et al., 2018: the projection on the first singular vector, per label; 1.5 times the true rate is removed."""
    from art.defences.detector.poison import SpectralSignatureDefense

    scores = np.zeros(len(given))
    for label in np.unique(given.labels):
        own = np.flatnonzero(given.labels == label)
        scores[own] = SpectralSignatureDefense.spectral_signature_scores(layer[own]).ravel()

    def find() -> NDArray[np.bool_]:
        defence = SpectralSignatureDefense(
            _Classifier(layer, len(given.classes)),  # type: ignore[arg-type]
            given.pixels,
            _one_hot(given),
            expected_pp_poison=rate,
            batch_size=256,
        )
        _, clean = defence.detect_poison()
        return ~np.asarray(clean, bool)

    return _timed(find, len(given), scores)


def strip(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    given: Images,
    clean: NDArray[np.uint8],
    poison: NDArray[np.bool_],
    seed: int,
) -> Found:
    """Gao et al., 2019, by ART: entropy over blends of weight 1/2; threshold at 1 % of the clean pool. On a sample.

    The sample holds up to a third poison; its rates are rates among poison and among innocents, so the mixture does
    not matter.
    """
    from art.estimators.poison_mitigation.strip.strip import STRIPMixin

    rng = np.random.default_rng(seed)
    bad, good = np.flatnonzero(poison), np.flatnonzero(~poison)
    few = rng.choice(bad, min(len(bad), STRIP_IMAGES // 3), replace=False)
    index = np.sort(np.concatenate([few, rng.choice(good, STRIP_IMAGES - len(few), replace=False)]))
    np.random.seed(seed)
    partners = clean[rng.choice(len(clean), min(len(clean), 300), replace=False)].astype(np.float32) / 255

    def find() -> NDArray[np.bool_]:
        defence = STRIPMixin(predict, num_samples=STRIP_BLENDS, false_acceptance_rate=0.01)
        defence._nb_classes = len(given.classes)  # what it abstains with is a row of so many zeros
        defence.mitigate(partners)
        answers = np.concatenate([defence.predict(given.pixels[i : i + 1].astype(np.float32) / 255) for i in index])
        return np.asarray((answers == 0).all(axis=1))  # ART's "abstain" is a row of zeros

    found = _timed(find, len(index))
    return Found(found.flag, None, index, found.cpu)


class _Classifier:
    """As much of an ART classifier as these two defences ask for: the features were computed beforehand."""

    def __init__(self, layer: NDArray[np.float32], classes: int) -> None:
        self._layer, self.nb_classes, self.layer_names = layer, classes, ["penultimate"]
        self.input_shape = SimpleNamespace()

    def get_activations(self, *_args: Any, **_more: Any) -> NDArray[np.float32]:
        """The features [n, F], whatever layer is asked for."""
        return self._layer


def _one_hot(given: Images) -> NDArray[np.float32]:
    return np.eye(len(given.classes), dtype=np.float32)[given.labels]


def _timed(find: Callable[[], NDArray[np.bool_]], n: int, score: NDArray[np.float64] | None = None) -> Found:
    began = time.process_time()
    flag = find()
    return Found(flag, score, np.arange(n), time.process_time() - began)
