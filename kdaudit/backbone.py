"""A backbone: a network that the user trusts, whose features the control may stand on.

A few hundred photographs teach no network from scratch what a photograph shows; a network that saw a million of them
knows it already. The trigger is not in those images either, if the backbone is of another origin than the model.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdaudit.admission import Teacher
from kdaudit.admission.confined import admit_confined as admit
from kdaudit.asking import MAX_FEATURES
from kdaudit.clock import Clock
from kdaudit.engines import open_engine
from kdaudit.errors import Inconclusive, ModelRefused, UsageError
from kdaudit.fitting import fit
from kdaudit.grafting import FEATURES, PIXELS, cut
from kdaudit.machine import Placement
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Geometry
from kdaudit.sandbox.engine import ConfinedEngine
from kdaudit.sandbox.process import WorkerLost
from kdaudit.session import Session
from kdaudit.settings import Settings
from kdaudit.signature import Signature
from kdaudit.workbench import Sets, Workbench, draw_sample, set_up

BACKBONE = "kdaudit.backbone"
"""Metadata of a control that is a head over a backbone's features: SHA-256 of the file that the backbone came in."""

SPOTS = 60
"""Places in the clean pool at which images are drawn to find out how the backbone is fed. Fewer than for the teacher: a
head learns from features whose scale is a little off as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A trusted network without its last layer, ready to look at images.

    Attributes:
        origin: SHA-256 of the file that it came in.
        model: its graph, from `kdaudit.grafting.cut`.
        session: the same in onnxruntime.
    """

    origin: str
    model: bytes
    session: Session

    @property
    def digest(self) -> str:
        """SHA-256 of the graph."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def width(self) -> int:
        """D, numbers that it gives for an image."""
        return self.session.signature.classes

    def features(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """x/255 [N, C, H, W] -> features [N, D].

        Raises:
            Inconclusive: they are no numbers, or the backbone did not survive the images.
        """
        found = self.session.raw(planes)
        if not np.isfinite(found).all():
            raise Inconclusive(
                "the backbone gives features that are no numbers for clean or kept images, so no control can stand on "
                "it: give another with --backbone, or none"
            )
        return found

    def __deepcopy__(self, _memo: object) -> "Backbone":
        """Itself: a control's copy learns with a head of its own, on the same features."""
        return self


def check_backbone(path: Path | None, teacher: Teacher, known: str | None = None) -> Teacher | None:
    """Look at a backbone before the images are; None where none was given.

    Args:
        path: its file.
        teacher: the suspect model.
        known: SHA-256 of the file that an earlier run's control was made on; None: there is no such run.

    Raises:
        ModelRefused: it cannot be read.
        UsageError: it is the suspect model itself, shows no features, or is not the known one.
    """
    if path is None:
        return None
    trusted = admit(path)
    if known is not None and trusted.digest != known:
        raise UsageError(f"the backbone {path} is not the one that the run was made with: run the scan again")
    if trusted.canonical_digest == teacher.canonical_digest:
        raise UsageError(
            f"the backbone {path} is the suspect model itself, whose features carry its backdoor: give a network of "
            "another origin"
        )
    if trusted.signature.features is None:
        raise UsageError(
            f"the backbone {path} shows no features: its graph does not end in a linear layer; give a plain classifier"
        )
    if trusted.signature.channels < teacher.signature.channels:
        raise UsageError(f"the backbone {path} takes grey images, and the model colour: give one that takes colour")
    return trusted


def open_backbone(
    trusted: Teacher | None, bench: Workbench, sets: Sets, settings: Settings, clock: Clock
) -> Backbone | None:
    """Find how a backbone wants to be fed, on the clean images, and cut it before its last layer.

    Args:
        trusted: from `check_backbone`; None: there is none, and nothing is done.
        bench: the teacher, its preprocessing found.
        sets: the images.
        settings: of the audit.
        clock: told what was found.

    Raises:
        UsageError: its features are too many.
    """
    if trusted is None:
        return None
    theirs = set_up(trusted, settings)
    try:
        with clock.stage("find the backbone's preprocessing") as advance:
            images, _ = draw_sample(sets.clean, sets.clean_survey.count, SPOTS)
            fitted = fit(theirs.teacher, theirs.session, images, None, None, theirs.decoder)
            advance(len(images))
    finally:
        theirs.session.close()
    clock.say(f"the backbone is fed as {fitted.preprocess.recipe}")
    geometry, placement = bench.preprocess.geometry, bench.placement(settings)
    return trunk_of(trusted, fitted.preprocess, geometry, settings.provider, placement)


def trunk_of(
    trusted: Teacher, preprocess: Preprocess, geometry: Geometry, provider: str, placement: Placement
) -> Backbone:
    """Cut a backbone whose preprocessing is known.

    Args:
        trusted: from `check_backbone`.
        preprocess: how it wants to be fed.
        geometry: the teacher's, which the pixels come in.
        provider: onnxruntime's.
        placement: on which GPUs.
    """
    model = cut(trusted.model, trusted.signature, preprocess, geometry, pooled=False)
    width = _width(model, geometry)
    if width > MAX_FEATURES:
        model = cut(trusted.model, trusted.signature, preprocess, geometry, pooled=True)
        try:
            width = _width(model, geometry)
        except ModelRefused as refused:
            raise UsageError(
                f"the backbone gives {width:,} features for an image, and they are no maps that could be summed up "
                f"({refused}): give a classifier with {MAX_FEATURES:,} at most"
            ) from refused
    return _opened(model, trusted.digest, geometry, width, provider, placement)


def reopened(model: bytes, origin: str, width: int, bench: Workbench, settings: Settings) -> Backbone:
    """The backbone inside a control's file, from `kdaudit.revival.revived_head`."""
    placement = bench.placement(settings)
    return _opened(model, origin, bench.preprocess.geometry, width, settings.provider, placement)


def _opened(model: bytes, origin: str, geometry: Geometry, width: int, provider: str, placement: Placement) -> Backbone:
    """Load a trunk that gives `width` numbers for an image of a geometry."""
    signature = Signature(
        input_name=PIXELS,
        input_type="float32",
        input_shape=(None, geometry.channels, geometry.height, geometry.width),
        layout="NCHW",
        batch=None,
        height=geometry.height,
        width=geometry.width,
        channels=geometry.channels,
        output_name=FEATURES,
        output_type="float32",
        output_shape=(None, width),
        output_kind="logits",
        classes=width,
    )
    return Backbone(
        origin, model, open_session(model, signature, provider=provider, confined=True, placement=placement)
    )


def _width(trunk: bytes, geometry: Geometry) -> int:
    """Features of one image; what the graph declares is not always what it gives."""
    engine = open_engine(trunk, "cpu", 1, confined=True, placement=Placement())
    try:
        black = np.zeros((1, geometry.channels, geometry.height, geometry.width), np.float32)
        (array,) = engine.run({PIXELS: black}, [FEATURES])
    except WorkerLost as lost:
        raise ModelRefused("KDA022", f"the backbone does not answer: {lost.detail}; do not use it") from None
    finally:
        if isinstance(engine, ConfinedEngine):
            engine.close()
    return int(array.size)
