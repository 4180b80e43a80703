"""A control that came as a file: checked, taken up in the place of one that is distilled, and tuned.

It runs confined as the teacher does: that `kdaudit distill` wrote it is only what the file says.
"""

from dataclasses import replace
from pathlib import Path

from kdaudit.admission import Teacher
from kdaudit.admission.confined import admit_confined as admit
from kdaudit.backbone import BACKBONE, reopened
from kdaudit.control import GUARDED, Control
from kdaudit.distillation import size_student
from kdaudit.errors import UsageError
from kdaudit.export import control_signature
from kdaudit.opening import open_session
from kdaudit.pool import Pool, split
from kdaudit.revival import revived, revived_head
from kdaudit.settings import Settings
from kdaudit.workbench import Workbench

NUMBERS = ("kdaudit.seed", "kdaudit.agreed", "kdaudit.validated")
"""Metadata of a control that are whole numbers."""

REVIVED_ON = 512
"""Clean images, at most, that show a given control's network what its norms meet."""


def check_control(path: Path, teacher: Teacher) -> Teacher:
    """Look at a control before the images are: admit it, if `kdaudit distill` wrote it for this teacher.

    Raises:
        ModelRefused: it cannot be read.
        UsageError: it is no control, or was made for another teacher.
    """
    control = admit(path)
    found = dict(control.notes)
    missing = {
        "kdaudit.teacher",
        "kdaudit.seed",
        "kdaudit.preprocess",
        "kdaudit.agreed",
        "kdaudit.validated",
    } - found.keys()
    if missing:
        raise UsageError(
            f"{path} is not a control of `kdaudit distill`: which clean images it was trained on is not known, so "
            "nothing can be calibrated"
        )
    if found["kdaudit.teacher"] != teacher.canonical_digest:
        raise UsageError(f"{path} was distilled from another model: distil a control from this one")
    numbers = [found[name] for name in (*NUMBERS, GUARDED) if name in found]
    if not all(text.isdecimal() and len(text) < 19 for text in numbers) or int(found[NUMBERS[-1]]) == 0:
        raise UsageError(f"{path} carries numbers that `kdaudit distill` does not write: distil it again")
    return control


def recipe_of(given: Teacher) -> str:
    """The preprocessing that a control was distilled with; `given`: from `check_control`."""
    return dict(given.notes)["kdaudit.preprocess"]


def take_control(path: Path, given: Teacher, bench: Workbench, pool: Pool, settings: Settings) -> Control:
    """Take up a control that came as a file; it runs confined as the teacher does, from the copy that was checked.

    Args:
        path: where it came from.
        given: from `check_control`.
        bench: the teacher, its preprocessing found.
        pool: the clean pool.
        settings: of the audit.

    Raises:
        UsageError: it was made for another preprocessing.
        ModelRefused: it does not run on the teacher's input.
    """
    found = dict(given.notes)
    recipe = recipe_of(given)
    if recipe != bench.preprocess.recipe:
        raise UsageError(
            f"{path} was distilled with preprocessing {recipe}, and {bench.preprocess.recipe} was found now, which "
            f"answers otherwise: distil it again with --preprocess {bench.preprocess.recipe}, or give --preprocess "
            f"{recipe} here if you know that one to be right"
        )
    signature = control_signature(bench.signature)
    session = open_session(
        given.model,
        signature,
        provider=settings.provider,
        confined=True,
        placement=bench.placement(settings),
    )
    parts = split(pool, int(found["kdaudit.seed"]))
    agreed, validated = int(found["kdaudit.agreed"]), int(found["kdaudit.validated"])
    guarded = int(found[GUARDED]) if GUARDED in found else None
    backbone = found.get(BACKBONE)
    return Control(session, given.digest, agreed, validated, None, parts, guarded, None, backbone=backbone)


def revive(control: Control, given: Teacher, bench: Workbench, pool: Pool, settings: Settings) -> Control:
    """A control that was given, with its network, to be tuned.

    Args:
        control: from `take_control`.
        given: from `check_control`.
        bench: the teacher, its preprocessing found.
        pool: the clean pool.
        settings: of the audit.

    Raises:
        UsageError: the file holds none of the networks that `kdaudit distill` makes for such a teacher.
    """
    if control.backbone is not None:
        from kdaudit.student import Headed

        model, head = revived_head(given.model, bench.preprocess.geometry, bench.signature.classes)
        trunk = reopened(model, control.backbone, len(head.mean), bench, settings)
        return replace(control, trainable=Headed(trunk, head))
    images = pool.pixels[control.parts.distillation[:REVIVED_ON]]
    logits = control.session.logits(bench.preprocess.apply(images))
    # Large images get another network where there is a GPU, and the file may come from such a machine.
    specs = [size_student(images, bench.signature.classes, device) for device in ("cpu", "cuda")]
    try:
        network = revived(given.model, specs[0], images, logits)
    except UsageError:
        if specs[0].architecture == specs[1].architecture:
            raise
        network = revived(given.model, specs[1], images, logits)
    return replace(control, trainable=network)
