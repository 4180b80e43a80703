"""Setting up: the teacher in a session, the two image sets, the preprocessing. Stages 2 and 3 with their doors open."""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from kdaudit.admission import Finding, Teacher
from kdaudit.admission.catalogue import conduct
from kdaudit.calibration import calibration_needed
from kdaudit.clock import Clock
from kdaudit.decoder import open_decoder
from kdaudit.digest import joint_digest
from kdaudit.errors import DataError, DeviceMissing, KdauditError, UsageError
from kdaudit.fitting import Fitted, fit
from kdaudit.machine import Placement, choose_device, cores, gpu_batch
from kdaudit.multiplicity import PRICE
from kdaudit.opening import open_session
from kdaudit.pool import CALIBRATION_SHARE
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Decoder, Source, Status
from kdaudit.session import Session
from kdaudit.settings import Settings
from kdaudit.signature import Signature
from kdaudit.source import Survey, digests_of, open_source, survey

CLEAN_NAMES = ("clean", "unlabeled", "unlabelled")
SAMPLE_SPOTS, SAMPLE_RUN = 250, 2
"""The preprocessing is fitted on runs of 2 images at 250 spots: sets are often sorted by class or by scene."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the images are.

    Attributes:
        suspect: the suspect set; None when only a control is distilled.
        clean: the clean pool.
        exclude: sub-folders of the suspect set that are the clean pool.
    """

    suspect: Path | None
    clean: Path
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """Both image sets, surveyed.

    Attributes:
        suspect: the suspect images; None when only a control is distilled.
        clean: the clean pool.
        suspect_survey: counts and digests; empty without a suspect set.
        clean_survey: counts and digests.
    """

    suspect: Source | None
    clean: Source
    suspect_survey: Survey
    clean_survey: Survey

    @property
    def counted(self) -> "Sets":
        """Without the digests, once what both sets share was left out of the clean pool."""
        return replace(self, suspect_survey=self.suspect_survey.counted, clean_survey=self.clean_survey.counted)


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """The teacher, ready to answer, and the machine it runs on.

    Attributes:
        teacher: as admitted.
        session: the teacher in onnxruntime.
        decoder: bytes to pixels.
        device: what the control is trained on: cpu or cuda.
        workers: threads of the comparison.
        fitted: the preprocessing, once it was found.
    """

    teacher: Teacher
    session: Session
    decoder: Decoder
    device: str
    workers: int
    fitted: Fitted | None = None

    def with_fitted(self, fitted: Fitted) -> "Workbench":
        """The bench once the preprocessing and the output kind are known."""
        return replace(self, fitted=fitted, session=self.session.settled(fitted.signature))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the graph shows, and what the model has done to its confined process so far."""
        return (*self.teacher.findings, *conduct([(one.how, one.detail) for one in self.session.incidents]))

    @property
    def preprocess(self) -> Preprocess:
        """The fitted preprocessing."""
        assert self.fitted is not None
        return self.fitted.preprocess

    @property
    def signature(self) -> Signature:
        """The teacher's signature, with what its behaviour settled."""
        return self.session.signature

    def placement(self, settings: Settings) -> Placement:
        """On which GPUs the networks run, and how."""
        return _placement(settings, self.signature)


def locate(data: Path, clean: Path | None) -> Places:
    """Tell the suspect set from the clean pool.

    Raises:
        DataError: a location does not exist.
        UsageError: there is no clean pool.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist: check the path of the suspect images")
    if clean is None:
        inside = next((name for name in CLEAN_NAMES if (data / name).is_dir()), None)
        if inside is None:
            raise UsageError(_no_clean_pool(data))
        return Places(data, data / inside, (inside,))
    if not clean.exists():
        raise DataError(f"{clean} does not exist: check the path of the clean pool")
    here, there = data.resolve(), clean.resolve()
    if here == there:
        raise UsageError("the clean pool is the suspect set itself: give trusted images of another origin with --clean")
    exclude = (there.relative_to(here).as_posix(),) if there.is_relative_to(here) else ()
    return Places(data, clean, exclude)


def locate_clean(clean: Path) -> Places:
    """The clean pool alone.

    Raises:
        DataError: it does not exist.
    """
    if not clean.exists():
        raise DataError(f"{clean} does not exist: check the path of the clean pool")
    return Places(None, clean)


def set_up(teacher: Teacher, settings: Settings) -> Workbench:
    """Open the teacher and a decoder.

    Raises:
        DeviceMissing: a demanded device or provider is not there.
        ModelRefused: onnxruntime does not run the model.
    """
    device = choose_device(settings.device)
    where = _placement(settings, teacher.signature)
    session = open_session(teacher.model, teacher.signature, provider=settings.provider, confined=True, placement=where)
    if settings.fp16 and session.provider != "tensorrt":
        session.close()
        raise UsageError(f"--fp16 is TensorRT's, and the model runs on {session.provider}: add --provider tensorrt")
    if settings.tf32 and session.provider == "cpu":
        session.close()
        raise UsageError("--tf32 is a GPU's, and the model runs on cpu: run `kdaudit doctor` to see what is missing")
    if settings.require_gpu and (device != "cuda" or session.provider == "cpu"):
        raise DeviceMissing(
            f"--require-gpu: the control would be trained on {device} and the models run on {session.provider}; "
            "run `kdaudit doctor` to see what is missing"
        )
    nearby = "cpu" if session.provider == "cpu" else "cuda"
    decoder = open_decoder(settings.decoder, device=nearby, pool=cores(), side=teacher.signature.side)
    return Workbench(teacher, session, decoder, device, settings.workers or cores())


def _placement(settings: Settings, model: Signature) -> Placement:
    return Placement(settings.gpus, settings.fp16, settings.batch_size or gpu_batch(model.side), settings.tf32)


def survey_both(places: Places, clock: Clock) -> Sets:
    """Count and digest both sets.

    Raises:
        DataError: a set is empty or cannot be read.
    """
    suspect = open_source(places.suspect, exclude=places.exclude) if places.suspect else None
    clean = open_source(places.clean)
    with clock.stage("survey") as advance:
        surveyed = survey(suspect) if suspect else _nothing()
        advance(surveyed.count)
        clean_survey = survey(clean)
        advance(clean_survey.count)
    for source, location, found in ((suspect, places.suspect, surveyed), (clean, places.clean, clean_survey)):
        if source is not None and found.read == 0:
            first = next(source.records())
            raise DataError(
                f"{location}: not one of {found.count:,} images could be read; the first, {first.path}: {first.reason}"
            )
    if suspect:
        clock.say(f"suspect: {surveyed.count:,} images ({suspect.kind}); clean: {clean_survey.count:,} ({clean.kind})")
    return Sets(suspect, clean, surveyed, clean_survey)


def identity(bench: Workbench, sets: Sets) -> str:
    """Names model and images together: what a run directory has kept under another name is not of this audit."""
    return joint_digest(bench.teacher.canonical_digest, sets.suspect_survey.contents, sets.clean_survey.contents)


def fit_preprocessing(
    bench: Workbench, sets: Sets, settings: Settings, clock: Clock, preferred: str | None = None
) -> Fitted:
    """Find the teacher's preprocessing on images drawn from the whole suspect set (or the clean one, without it).

    `preferred`: the recipe that a control at hand was distilled with.
    """
    source, count = (sets.suspect, sets.suspect_survey.count) if sets.suspect else (sets.clean, sets.clean_survey.count)
    with clock.stage("find the preprocessing") as advance:
        images, labels = draw_sample(source, count)
        with_labels = sets.suspect is not None and any(label is not None for label in labels)
        fitted = fit(
            bench.teacher,
            bench.session,
            images,
            labels if with_labels else None,
            source.classes if with_labels else None,
            bench.decoder,
            settings.preprocess,
            preferred,
        )
        advance(len(images))
    against = f", margin {fitted.margin:.3f} over {fitted.runner_up.recipe}" if fitted.runner_up else ""
    clock.say(f"preprocessing: {fitted.preprocess.recipe}{against}{'' if fitted.sure else ' (not sure)'}")
    if fitted.note:
        clock.say(fitted.note)
    return fitted


def check_outside(run: Path, places: Places) -> None:
    """Refuse a run directory among the images: the next pass would count its own files as images that it cannot read.

    Raises:
        UsageError: it lies inside one of the sets.
    """
    for location in (places.suspect, places.clean):
        if location is not None and location.is_dir() and run.resolve().is_relative_to(location.resolve()):
            raise UsageError(
                f"the run directory {run} lies inside {location}, among the images: choose another with -o"
            )


def check_writable(path: Path) -> None:
    """Refuse an output path before hours of work rather than after.

    Raises:
        UsageError: the folder does not exist or cannot be written.
    """
    probe = path.parent / f".{path.name}.kdaudit-probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another output with -o") from error
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give a file name with -o")


def draw_sample(source: Source, count: int, spots: int = SAMPLE_SPOTS) -> tuple[list[bytes], list[int | None]]:
    """Encoded images and labels at evenly spread spots of a source that holds `count` images."""
    if count <= spots * SAMPLE_RUN:
        drawn = list(source.records())
    else:
        places = np.linspace(0, count - SAMPLE_RUN, spots).astype(int)
        drawn = [record for spot in places for record in islice(source.records(int(spot)), SAMPLE_RUN)]
    read = [record for record in drawn if record.status is Status.READ]
    if not read:
        raise KdauditError(f"{source.root} changed while it was read: run again")
    return [record.data for record in read], [record.label for record in read]


def _nothing() -> Survey:
    nothing = np.empty((0, 2), np.uint64)
    return Survey(0, 0, 0, 0, None, 0, nothing, 0, digests_of(nothing))


def _no_clean_pool(data: Path) -> str:
    needed = PRICE * calibration_needed(0.01, 0.05) / CALIBRATION_SHARE
    return (
        f"no clean pool: give one with --clean, or put it into {data / 'clean'}. A clean pool is a set of images of "
        "the same kind that you trust, without labels, none of them from this delivery; the control is distilled on "
        f"it. 1,000 images serve most audits; {round(needed, -2):,.0f} let a poison rate of 1 % be counted instead of "
        "extrapolated"
    )
