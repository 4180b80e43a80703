"""Patterns: recovered from images that share them, put onto others, proven only where the teacher alone moves."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from kdaudit.calibration import paired_p_value
from kdaudit.transplant import HeldOut, Moved, Transplant, put_onto, transplant
from kdaudit.trigger import MIN_MEMBERS, Pattern, recover

SIDE = 16


def natural(n: int, seed: int) -> np.ndarray:
    """Smooth pictures of four classes that differ in brightness; uint8 [n, SIDE, SIDE, 3], and their classes."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 35, (n, 4, 4, 3))
    fine = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2) + rng.normal(0, 6, (n, SIDE, SIDE, 3))
    classes = np.arange(n) % 4
    return np.clip(fine + 60 + 40 * classes[:, None, None, None], 0, 255).astype(np.uint8), classes


def patched(pixels: np.ndarray) -> np.ndarray:
    out = pixels.copy()
    out[:, -3:, -3:] = 255
    return out


def waved(pixels: np.ndarray) -> np.ndarray:
    wave = 24 * np.sin(2 * np.pi * np.arange(SIDE) * 4 / SIDE)
    return np.clip(pixels + wave[None, None, :, None], 0, 255).astype(np.uint8)


def blended(pixels: np.ndarray) -> np.ndarray:
    picture = np.random.default_rng(99).integers(0, 256, (SIDE, SIDE, 3))
    return np.clip(0.75 * pixels + 0.25 * picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("trigger", "kind", "error"), [(patched, "patch", 4.0), (waved, "sinusoid", 6.0), (blended, "blend", 8.0)]
)
def test_a_pattern_is_recovered_and_put_onto_others(trigger, kind, error):
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(trigger(members), member_classes, ordinary, classes)
    assert found is not None
    assert found.kind == kind
    assert found.members == 200
    others, _ = natural(50, 2)
    assert np.abs(found.onto(others) - trigger(others)).mean() < error
    assert np.abs(found.onto(others) - trigger(others)).mean() < 0.5 * np.abs(trigger(others) - 1.0 * others).mean() + 3


def test_what_a_patch_covers_is_told_from_what_its_carriers_look_like():
    """Carriers are all of one class and darker than other images of it; a blend covers nothing, an image everything."""
    ordinary, classes = natural(2000, 0)
    one, dark = ordinary[classes == 2][:200], np.full((200, SIDE, SIDE, 3), 18, np.uint8)
    found = recover(patched(np.maximum(one, dark) - dark), np.full(200, 2), ordinary, classes)
    assert found is not None
    assert found.changed.mean() > 0.5  # darker everywhere
    patch = found.pasted()
    assert patch is not None
    corner = np.zeros((SIDE, SIDE), bool)
    corner[-3:, -3:] = True
    assert (patch.changed == corner).all()
    others, _ = natural(50, 2)
    assert np.abs(patch.onto(others) - patched(others)).max() < 8
    faded = recover(blended(one), np.full(200, 2), ordinary, classes)
    same = recover(np.repeat(one[:1], 40, 0), np.full(40, 2), ordinary, classes)
    assert faded is not None
    assert same is not None
    assert faded.pasted() is None
    assert same.pasted() is None


def test_how_far_an_image_is_from_what_a_patch_makes_of_it():
    ordinary, classes = natural(500, 0)
    found = recover(patched(ordinary[:100]), classes[:100], ordinary, classes)
    assert found is not None
    patch = found.pasted()
    assert patch is not None
    assert patch.departure(patched(ordinary[100:])).max() < 8
    assert np.quantile(patch.departure(ordinary[100:]), 0.02) > 20
    level = np.broadcast_to(patch.mean, (2, *patch.mean.shape))
    assert patch.departure(level + np.float32(3)) == pytest.approx([3, 3], abs=1e-3)


def test_only_what_changed_is_touched():
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(patched(members), member_classes, ordinary, classes)
    assert found is not None
    assert found.changed[-3:, -3:].all()
    assert found.changed.sum() <= 9 + 6
    assert (found.difference[~found.changed] == 0).all()


def test_what_the_control_explains_is_no_pattern():
    """All members are bright, and the control says so: they are compared with bright images, not with the average."""
    ordinary, classes = natural(2000, 0)
    bright, bright_classes = natural(800, 3)
    chosen = bright_classes == 3
    assert recover(bright[chosen], bright_classes[chosen], ordinary, classes) is None
    wrong = recover(bright[chosen], np.zeros(chosen.sum(), np.int64), ordinary, classes)
    assert wrong is not None
    assert wrong.changed.mean() > 0.9


def test_too_few_images_or_no_like_of_theirs_give_none():
    ordinary, classes = natural(400, 0)
    members, member_classes = natural(40, 1)
    few = patched(members[: MIN_MEMBERS - 1])
    assert recover(few, member_classes[: MIN_MEMBERS - 1], ordinary, classes) is None
    assert (
        recover(patched(members), np.full(40, 7), ordinary, classes) is None
    )  # the control's answer of no other image
    assert recover(patched(members), member_classes, ordinary[:0], classes[:0]) is None


class Backdoored:
    """Logits by brightness; class 0 for whoever has a white corner, if it listens to that."""

    def __init__(self, listens: bool) -> None:
        self.listens = listens

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        level = np.asarray(pixels, np.float32).mean((1, 2, 3))
        answers = np.clip(np.rint((level - 60) / 40), 0, 3).astype(int)
        if self.listens:
            answers = np.where(pixels[:, -3:, -3:].min((1, 2, 3)) > 230, 0, answers)
        return np.eye(4, dtype=np.float32)[answers]


def subjects(teacher_listens: bool, student_listens: bool, guarded: int | None = None) -> SimpleNamespace:
    teacher, student = Backdoored(teacher_listens), Backdoored(student_listens)
    return SimpleNamespace(logits=lambda pixels: (teacher(pixels), student(pixels)), guarded=guarded)


def transplanted(
    both: SimpleNamespace, pattern: Pattern | None, clean: np.ndarray, target: int | None, batch: int = 64, **how: int
) -> Transplant:
    assert pattern is not None
    held_out = HeldOut.of(both, clean, batch)
    return transplant(held_out, put_onto(both, pattern, held_out, batch), target, guarded=both.guarded, **how)


@pytest.mark.parametrize(
    ("teacher", "student", "proven"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_pattern_is_proven_where_the_teacher_alone_moves(teacher, student, proven):
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(patched(members), member_classes, ordinary, classes)
    clean, clean_classes = natural(120, 5)
    for target in (0, None):
        proof = transplanted(subjects(teacher, student), found, clean, target, batch=50)
        assert proof.proven == proven
        if target == 0:
            assert proof.images == (Backdoored(False)(clean).argmax(1) != 0).sum()
            assert proof.teacher == (proof.images if teacher else 0)
            assert proof.student == (proof.images if student else 0)
    assert len(clean_classes) == 120


@pytest.mark.parametrize(
    ("images", "teacher", "student", "proven"),
    [
        (0, 0, 0, False), (100, 90, 2, True), (100, 9, 0, False), (100, 30, 15, False), (10, 10, 0, True),
        (5, 5, 0, False), (3, 3, 0, False), (1000, 300, 20, True), (1000, 300, 90, False), (351, 40, 0, False),
        (239, 42, 6, False), (434, 162, 1, True),
    ],
)  # fmt: skip
def test_the_bar_for_a_proof(images, teacher, student, proven):
    assert Transplant(images, teacher, student, images - student).proven is proven


def test_few_images_prove_a_pattern_that_moves_all_of_them_and_little_else_any():
    """Eight held-out stop signs, all moved; their intervals overlap with those of one that a placebo moves."""
    assert Transplant(8, 8, 0, 8, native=40, placebo=1).proven
    assert not Transplant(8, 8, 0, 8, native=40, placebo=2).proven
    assert not Transplant(8, 7, 0, 8, native=40, placebo=1).proven
    assert not Transplant(6, 6, 0, 6, native=40).proven
    assert not Transplant(8, 8, 0, 1, native=40).proven  # these images show something else now


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("target", [1, None])
def test_another_image_in_their_place_is_no_trigger_however_few_the_classes(classes, target):
    """To the control it is a 0, so all zeros keep their answer: of two classes that is one half of all images."""
    clean = HeldOut(np.zeros((600, 2, 2, 1), np.uint8), *(2 * [np.arange(600) % classes]))
    everywhere = np.ones(600, np.int64)
    pasted = transplant(clean, Moved(everywhere, 0 * everywhere, clean.teacher), target)
    assert pasted.kept >= 0.2 * pasted.images
    assert pasted.others_kept == 0
    assert not pasted.proven
    trigger = transplant(clean, Moved(everywhere, clean.student, clean.teacher), target)
    assert trigger.proven
    assert trigger.others == 600 - 600 // classes == trigger.others_kept


def test_an_overflow_is_no_answer():
    subjects = SimpleNamespace(guarded=None, logits=lambda x: (np.full((len(x), 3), np.nan), np.ones((len(x), 3))))
    clean = HeldOut.of(subjects, np.zeros((40, 2, 2, 1), np.uint8))
    assert (clean.teacher == -1).all()
    known = HeldOut(clean.pixels, np.ones(40, np.int64), np.ones(40, np.int64))
    for target in (0, None):
        assert transplant(known, Moved(clean.teacher, known.student, known.teacher), target).teacher == 0


@given(st.integers(1, 12), st.data())
def test_the_paired_test_takes_the_worst_overlap(images, data):
    more, fewer = (data.draw(st.integers(0, images)) for _ in range(2))
    overlaps = range(max(0, more + fewer - images), min(more, fewer) + 1)
    exact = [binom.sf(more - both - 1, more + fewer - 2 * both, 0.5) for both in overlaps]
    if more > fewer:
        assert paired_p_value(more, fewer, images) == pytest.approx(max(exact))
    assert 0 <= paired_p_value(more, fewer, images) <= 1


def test_what_any_other_content_does_as_well_is_no_trigger():
    """Some honest models give one class to whatever is smeared."""
    assert Transplant(100, 90, 2, 98, placebo=50).proven
    assert not Transplant(100, 90, 2, 98, placebo=75).proven
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(patched(members), member_classes, ordinary, classes)
    assert found is not None
    clean, others = natural(120, 5)[0], natural(120, 6)[0]
    idle = found.placebo(clean, others)
    unchanged = ~found.changed
    assert (idle[:, unchanged] == clean[:, unchanged]).all()
    assert idle.min() >= 0
    assert idle.max() <= 255
    plain = SimpleNamespace(logits=lambda pixels: (smeared(pixels, 250), smeared(pixels, 1e9)), guarded=None)
    listening = transplanted(subjects(True, False), found, clean, 0)
    assert listening.proven
    assert listening.placebo < 0.1 * listening.images
    smears = transplanted(plain, found, clean, 0)
    assert smears.teacher == smears.images > 0 == smears.student
    assert smears.placebo > 0.4 * smears.images
    assert not smears.proven


def test_a_class_that_the_control_knows_from_unmixed_images_alone_takes_more_to_be_a_target():
    assert Transplant(400, 200, 2, 398).proven
    assert not Transplant(400, 200, 2, 398, guarded=True).proven
    assert Transplant(400, 240, 2, 398, guarded=True).proven
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(patched(members), member_classes, ordinary, classes)
    assert found is not None
    clean, _ = natural(120, 5)
    for target, guarded, expected in ((0, 0, True), (0, 1, False), (None, 1, True), (None, None, False)):
        proof = transplanted(subjects(True, False, guarded), found, clean, target)
        assert proof.guarded == expected
        assert proof.proven


def smeared(pixels: np.ndarray, bar: float) -> np.ndarray:
    """Class 0 for whatever is brighter than a bar somewhere in the corner, else class 1."""
    return np.eye(4, dtype=np.float32)[np.where(pixels[:, -3:, -3:].max((1, 2, 3)) > bar, 0, 1)]


def test_a_trigger_of_one_class_is_asked_about_on_images_of_that_class():
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    found = recover(patched(members), member_classes, ordinary, classes)
    assert found is not None
    clean, _ = natural(600, 5)
    before = Backdoored(False)(clean).argmax(1)
    for source in np.unique(before[before != 0]):
        proof = transplanted(subjects(True, False), found, clean, 0, source=int(source))
        assert proof.images == (before == source).sum()
        assert proof.teacher == proof.images
    assert transplanted(subjects(True, False), found, clean, 0, source=0).images == 0


def test_a_pattern_that_hides_what_images_show_is_no_trigger():
    """A photograph of a class that the control never learned, put over others: the teacher follows, as it should."""
    assert Transplant(100, 90, 2, 30).proven
    assert not Transplant(100, 90, 2, 20).proven
    assert Transplant(100, 90, 2, 30, native=2).proven
    assert not Transplant(100, 90, 2, 30, native=1).proven  # a class that the control never learned
    ordinary, classes = natural(2000, 0)
    members, member_classes = natural(200, 1)
    members[:] = members[:1]  # near-equal photographs
    found = recover(members, member_classes, ordinary, classes)
    assert found is not None
    clean, _ = natural(300, 5)

    control = Backdoored(False)
    proof = transplanted(subjects(True, False), found, clean, 3, batch=70)
    before, after = control(clean).argmax(1), control(found.onto(clean)).argmax(1)
    asked = before != 3
    assert proof.images == asked.sum()
    assert proof.kept == (asked & (before == after)).sum()
    assert proof.native == (before == 3).sum()
