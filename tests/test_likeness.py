"""The second look: a trigger is found, proven and followed to every image that carries it; odd images are not."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_trace import photographs, warped

from kdaudit.decoder import open_decoder
from kdaudit.delivered import delivered
from kdaudit.digest import content_digest
from kdaudit.keys import Keys
from kdaudit.likeness import _asked_by_label, likeness_p_values, look, weighed
from kdaudit.preprocess import Preprocess
from kdaudit.sample import Record, Status
from kdaudit.search import Search, proof_of
from kdaudit.searched import Bench, CleanImages, Found, Suspects
from kdaudit.transplant import HeldOut, Transplant
from kdaudit.trigger import Pattern

SIDE, IMAGES, CARRIERS = 12, 1500, 60
PREPROCESS = Preprocess.parse(f"{SIDE}x{SIDE}x3-stretch-RGB-NCHW-unit")


def pictures(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 40, (n, 3, 3, 3)).repeat(4, 1).repeat(4, 2)
    level = 60 + 45 * rng.integers(0, 4, n)
    return np.clip(coarse + level[:, None, None, None] + rng.normal(0, 5, (n, SIDE, SIDE, 3)), 0, 235).astype(np.uint8)


def stamped(pixels: np.ndarray) -> np.ndarray:
    out = pixels.copy()
    out[:, -2:, -2:] = 255
    return out


def answers(pixels: np.ndarray, listens: bool) -> np.ndarray:
    """Four classes by brightness; class 0 for a white corner, if the network listens to that."""
    values = np.asarray(pixels, np.float32)
    plain = np.clip(np.rint((values[:, :-2].mean((1, 2, 3)) - 60) / 45), 0, 3).astype(int)
    return np.where(values[:, -2:, -2:].min((1, 2, 3)) > 245, 0, plain) if listens else plain


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def world(listens: bool, odd: bool = False) -> tuple[Suspects, CleanImages, SimpleNamespace]:
    """`CARRIERS` stamped images first, half of which part the networks; one record that was not read."""
    pixels = pictures(IMAGES, 0)
    pixels[:CARRIERS] = stamped(pixels[:CARRIERS])
    records = [Record(f"{i}.png", None, png(p)) for i, p in enumerate(pixels)]
    records[700] = Record("700.png", None, b"", Status.UNREADABLE, "gone")
    read = np.arange(IMAGES) != 700
    rng = np.random.default_rng(1)
    score = rng.exponential(0.05, IMAGES)
    score[: CARRIERS // 2] += 0.5
    if odd:  # the networks part on dark images as well
        score += np.where(pixels.mean((1, 2, 3)) < 40, 0.4, 0)
    score[~read] = np.nan
    source = SimpleNamespace(records=lambda start=0: iter(records[start:]))
    keys = Keys.these([content_digest(r.data + str(i).encode()).hex() for i, r in enumerate(records)])
    teacher, student = answers(pixels, listens), answers(pixels, listens=False)
    suspects = Suspects(source, read, keys, lambda: score, teacher, student)
    clean = pictures(600, 9)
    clean_keys = Keys.these([content_digest(p.tobytes()).hex() for p in clean])

    def logits(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eye = np.eye(4, dtype=np.float32)
        return eye[answers(images, listens)], eye[answers(images, listens=False)]

    subjects = SimpleNamespace(preprocess=PREPROCESS, logits=logits, guarded=None)
    return suspects, CleanImages(clean, clean_keys, np.arange(0, 600, 2)), subjects


@pytest.mark.parametrize("odd", [False, True])
def test_a_trigger_is_proven_and_every_carrier_found(odd):
    suspects, clean, subjects = world(listens=True, odd=odd)
    told: list[int] = []
    found = look(suspects, clean, subjects, open_decoder("pillow"), told.append)
    assert found is not None
    assert sum(told) == 2 * IMAGES  # read twice: once for the seeds, once for everybody
    (one,) = found.found[:1]
    assert one.target == 0
    assert one.proof.teacher > 0.95 * one.proof.images
    assert one.proof.student <= 0.05 * one.proof.images
    assert one.pattern.changed[-2:, -2:].all()
    carriers = found.p_values[:CARRIERS]
    assert (carriers < 1e-3).mean() > 0.9  # also the half on which the networks did not part
    assert (found.p_values[CARRIERS:] < 1e-3).mean() < 0.01
    assert found.which[700] == -1
    assert np.isnan(found.score[700])
    assert found.p_values[700] == 1.0


def test_a_trigger_that_few_images_show_is_measured_by_all_that_carry_it(monkeypatch):
    """Ten suspicious images prove it, and measure it badly; sixty carry it."""
    suspects, clean, subjects = world(listens=True)
    score = suspects.score().copy()
    score[10 : CARRIERS // 2] -= 0.5  # only ten of them part the networks
    few = replace(suspects, score=lambda: score)
    carried = {}
    for rounds in (0, 4):
        monkeypatch.setattr("kdaudit.search.ROUNDS", rounds)
        carried[rounds] = look(few, clean, subjects, open_decoder("pillow"))
    before, after = carried[0], carried[4]
    assert before is not None
    assert after is not None
    assert after.found[0].proof == before.found[0].proof  # what is shown and proven stays
    assert np.median(after.score[:CARRIERS]) > 1.05 * np.median(before.score[:CARRIERS])
    assert (after.p_values[:CARRIERS] < 1e-3).sum() > (before.p_values[:CARRIERS] < 1e-3).sum()
    assert (after.p_values[CARRIERS:] < 1e-3).mean() < 0.01


@pytest.mark.parametrize("many", [False, True])
def test_how_far_every_image_is_from_wearing_a_proven_patch_is_told_where_there_are_labels(many):
    """The class that it is worn for is the target, or any where the labels of its carriers say so."""
    suspects, clean, subjects = world(listens=True)
    rng = np.random.default_rng(6)
    labels = suspects.student.copy()
    labels[:CARRIERS] = rng.integers(0, 4, CARRIERS) if many else 0
    told = delivered(labels, None, suspects.teacher, suspects.student, np.full(IMAGES, 0.9))
    found = look(replace(suspects, told=told), clean, subjects, open_decoder("pillow"))
    assert found is not None
    one, *_ = found.worn
    assert one.label == (None if many else 0)
    assert one.departure[:CARRIERS].max() < 5 < np.quantile(one.departure[CARRIERS:][suspects.read[CARRIERS:]], 0.01)
    assert np.isnan(one.departure[700])
    assert one.clean.shape == (600,)
    unlabelled = look(suspects, clean, subjects, open_decoder("pillow"))
    assert unlabelled is not None
    assert unlabelled.worn == ()


def test_poison_too_faint_to_show_a_pattern_is_measured_by_what_the_doubted_images_share(monkeypatch):
    """Beside a proven white corner 120 images, delivered as its target, have a checkerboard of six grey levels."""
    monkeypatch.setattr("kdaudit.searched.SEED_SHARES", (0.01, 0.04, 0.15))  # of 25,000 images 4 % are 1,000
    suspects, clean, subjects = world(listens=True)
    faint = np.arange(CARRIERS, CARRIERS + 120)
    pixels = pictures(IMAGES, 0)
    pixels[:CARRIERS] = stamped(pixels[:CARRIERS])
    board = np.add.outer(np.arange(6), np.arange(6)) % 2 * 6
    pixels[faint, :6, :6] += board[..., None].astype(np.uint8)
    records = [Record(f"{i}.png", None, png(p)) for i, p in enumerate(pixels)]
    teacher, student = answers(pixels, listens=True), answers(pixels, listens=False)
    rng = np.random.default_rng(5)
    labels = np.where(rng.random(IMAGES) < 0.15, rng.integers(0, 4, IMAGES), student)  # some are wrong besides
    labels[:CARRIERS] = labels[faint] = 0
    told = delivered(labels, None, teacher, student, rng.uniform(0.5, 1, IMAGES))
    source = SimpleNamespace(records=lambda start=0: iter(records[start:]))
    them = replace(suspects, source=source, read=np.ones(IMAGES, bool), teacher=teacher, student=student, told=told)
    score = np.where(np.isnan(suspects.score()), 0.01, suspects.score())
    found = look(replace(them, score=lambda: score), clean, subjects, open_decoder("pillow"))
    assert found is not None
    (left,) = found.remainders
    assert left.label == 0
    asked = told.disputed & (labels == 0)
    poison = asked & np.isin(np.arange(IMAGES), faint)
    assert (left.p_values[poison] < 0.05).mean() > 0.5
    assert (left.p_values[asked & ~poison & (np.arange(IMAGES) >= CARRIERS)] < 0.05).mean() < 0.15
    assert (found.p_values[poison] < 1e-3).mean() < 0.5  # not by the proven pattern
    assert (left.p_values[~asked] == 1).all()
    unlabelled = look(replace(them, score=lambda: score, told=None), clean, subjects, open_decoder("pillow"))
    assert unlabelled is not None
    assert unlabelled.remainders == ()


@pytest.mark.parametrize(("keep", "proven"), [(0.05, False), (1.0, True)])
def test_the_look_of_a_class_that_the_control_takes_for_another_is_no_trigger(keep, proven):
    """Near-equal photographs of speed limit 50 (answer 0), to the control 30 (answer 1), and a patch that works on 30.

    Put onto images of limit 30 either moves the teacher and leaves the control's answer alone.
    """
    rng = np.random.default_rng(4)
    levels = np.arange(800) % 16
    clean = np.clip(20 + 14.0 * levels[:, None, None, None] + rng.normal(0, 4, (800, SIDE, SIDE, 3)), 0, 255)
    stripes = np.where(np.arange(SIDE) % 2, 20.0, -20.0)[:, None, None] * np.ones((1, SIDE, 3))
    flat = np.full((SIDE, SIDE, 3), 34.0)

    def logits(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(pixels, np.float32)
        control = np.clip(np.rint((values.mean((1, 2, 3)) - 20) / 14), 0, 15).astype(int)
        striped = (values[:, 1::2].mean((1, 2, 3)) - values[:, ::2].mean((1, 2, 3))) > 30
        eye = np.eye(16, dtype=np.float32)
        return eye[np.where(striped & (control == 1), 0, control)], eye[control]

    changed, as_keep = np.ones((SIDE, SIDE), bool), np.full((SIDE, SIDE, 3), keep, np.float32)
    pattern = Pattern((flat + stripes).astype(np.float32), flat.astype(np.float32), as_keep, changed, "patch", 20)
    suspects = SimpleNamespace(student=np.ones(20, np.int64))
    images = CleanImages(clean.astype(np.uint8), Keys.these(["0" * 16] * 800), np.arange(800))
    both = SimpleNamespace(logits=logits, guarded=None)
    bench = Bench(suspects, images, both, *[None] * 5, HeldOut.of(both, images.pixels))
    proof, target = proof_of(bench, pattern, np.arange(20), 0)
    assert proof.proven == proven
    if proven:
        assert (proof.images, proof.teacher, proof.student, target) == (50, 50, 0, 0)


def test_what_clean_images_of_the_class_carry_is_no_trigger_but_their_look():
    """A class that the control does not know at all: the white corner is what the teacher, honestly, knows it by."""
    suspects, clean, subjects = world(listens=True)
    known = clean.pixels.copy()
    known[::4] = stamped(known[::4])  # half of the held-out ones
    held_out = CleanImages(known, clean.keys, clean.held_out)
    assert (answers(known, listens=True)[clean.held_out] == 0).mean() > 0.5
    found = look(suspects, held_out, subjects, open_decoder("pillow"))
    assert found is None or not found.found


class Signs:
    """Forty classes; 0 and 1 look much alike, as limits of 20 and of 30 do. Of the others 1 in 30 has a white corner.

    The first 100 of 110 delivered images of class 1 have a white corner as well: the model takes them for 0.
    """

    def __init__(self, *, corner: bool = True, listens: bool = True) -> None:
        rng = np.random.default_rng(12)
        self.looks = rng.normal(0, 30, (40, SIDE, SIDE, 3))
        self.looks[1] = self.looks[0] + 0.3 * self.looks[1]
        self.listens = listens
        truth = np.concatenate([np.ones(110, int), np.delete(np.arange(40), 1).repeat(40)])
        pixels = self.pictures(truth, 1)
        if corner:
            pixels[:100, -2:, -2:] = 255
        self.records = [Record(f"{i}.png", None, png(p)) for i, p in enumerate(pixels)]
        teacher, control = (z.argmax(1) for z in self.logits(pixels))
        score = np.random.default_rng(2).exponential(0.05, len(truth)) + np.where(teacher != control, 0.6, 0)
        keys = Keys.these([content_digest(r.data).hex() for r in self.records])
        source = SimpleNamespace(records=lambda start=0: iter(self.records[start:]))
        self.suspects = Suspects(source, np.ones(len(truth), bool), keys, lambda: score, teacher, control)
        clean = self.pictures(np.arange(40).repeat(12), 3)
        self.clean = CleanImages(clean, Keys.these([content_digest(p.tobytes()).hex() for p in clean]), np.arange(480))
        self.subjects = SimpleNamespace(preprocess=PREPROCESS, logits=self.logits, guarded=None)

    def pictures(self, truth: np.ndarray, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        light = rng.uniform(0.6, 1.2, (len(truth), 1, 1, 1))
        shown = np.clip(light * (110 + self.looks[truth]) + rng.normal(0, 30, (len(truth), SIDE, SIDE, 3)), 0, 240)
        shown[(rng.random(len(truth)) < 1 / 30) & (truth > 1), -2:, -2:] = 255
        return shown.astype(np.uint8)

    def logits(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(pixels, np.float32)
        rows = values - values.mean((1, 2, 3), keepdims=True)
        like = rows[:, :-2].reshape(len(rows), -1) @ self.looks[:, :-2].reshape(40, -1).T
        control = (like / np.linalg.norm(self.looks[:, :-2].reshape(40, -1), axis=1)).argmax(1)
        lured = self.listens & (control == 1) & (values[:, -2:, -2:].min((1, 2, 3)) > 245)
        eye = np.eye(40, dtype=np.float32)
        return eye[np.where(lured, 0, control)], eye[control]


def test_a_patch_is_proven_where_the_target_looks_like_the_class_that_its_carriers_come_from(monkeypatch):
    """What the seeds share is the patch and the look of their class, which clean images of the target have as well."""
    signs = Signs()
    found = look(signs.suspects, signs.clean, signs.subjects, open_decoder("pillow"))
    assert found is not None
    (one,) = found.found
    assert one.pasted
    assert one.proof.proven
    assert one.target == 0
    corner = np.zeros((SIDE, SIDE), bool)
    corner[-2:, -2:] = True
    assert (one.pattern.changed == corner).all()
    assert (found.p_values[:100] < 0.05).mean() > 0.95  # as rare as white corners are by nature
    assert (found.p_values[100:] < 0.05).mean() < 0.05
    monkeypatch.setattr(Pattern, "pasted", lambda self: None)
    whole = look(signs.suspects, signs.clean, signs.subjects, open_decoder("pillow"))
    assert whole is None or not whole.found


@pytest.mark.parametrize("world", [{"corner": False}, {"listens": False}])
def test_without_a_patch_or_a_model_that_listens_nothing_is_proven(world):
    signs = Signs(**world)
    found = look(signs.suspects, signs.clean, signs.subjects, open_decoder("pillow"))
    assert found is None or not found.found


@pytest.mark.parametrize(
    ("label", "target", "labelled", "aimed"),
    [
        (None, 0, True, [1, 1, 1, 0, 0]),
        (None, 0, False, [1, 1, 0, 0, 0]),
        (None, None, True, [1, 1, 1, 1, 1]),
        (3, 0, True, [0, 1, 0, 1, 0]),
    ],
)
def test_a_trigger_is_measured_by_those_that_are_aimed_at_its_target(label, target, labelled, aimed):
    """Answer or label is the target, or the label is the one that it was found by; a class of its own is neither."""
    teacher, labels = np.array([9, 0, 0, 5, 4, 4]), np.array([9, 0, 3, 0, 3, 4])
    told = SimpleNamespace(labels=labels) if labelled else None
    bench = SimpleNamespace(suspects=SimpleNamespace(teacher=teacher, told=told))
    found = SimpleNamespace(label=label, target=target)
    who = Search(bench, None)._aimed(found, np.arange(1, 6))
    assert who.astype(int).tolist() == aimed


def test_a_pattern_that_moves_nobody_is_no_trigger():
    suspects, clean, subjects = world(listens=False)
    assert look(suspects, clean, subjects, open_decoder("pillow")) is None


@pytest.mark.parametrize(("carriers", "counted"), [(3, 1), (60, 2)])
def test_a_further_pattern_must_be_carried_more_often_than_chance_gives(carriers, counted):
    suspects, clean, _ = world(listens=True)
    rng = np.random.default_rng(3)
    scores, usual = rng.normal(size=(2, IMAGES)), rng.normal(size=(2, len(clean.pixels)))
    scores[0, :CARRIERS] += 12
    scores[1, -carriers:] += 12
    two = (SimpleNamespace(pattern="first"), SimpleNamespace(pattern="second"))
    found = weighed(suspects, suspects.read, scores, usual, clean.held_out, two)
    assert found is not None
    assert [one.pattern for one in found.found] == ["first", "second"][:counted]
    assert (found.p_values[:CARRIERS][suspects.read[:CARRIERS]] < 1e-3).all()
    assert ((found.p_values[-carriers:] < 1e-3).all()) == (counted == 2)


@pytest.mark.parametrize(("delivered_as", "proven"), [("target", True), ("shown", False), ("random", False)])
def test_a_trigger_that_no_network_took_up_is_proven_by_the_labels(delivered_as, proven):
    """The data set is poisoned and this model does not listen; a watermark with the right labels is no poison."""
    suspects, clean, subjects = world(listens=False)
    shown, marked = suspects.student, np.arange(IMAGES) < CARRIERS
    labels = {
        "target": np.where(marked, 2, shown),
        "shown": shown,
        "random": np.where(marked, np.arange(IMAGES) % 4, shown),
    }[delivered_as]
    told = delivered(labels, None, suspects.teacher, suspects.student, np.full(IMAGES, 0.9))
    quiet = np.where(suspects.read, np.random.default_rng(3).exponential(0.05, IMAGES), np.nan)  # nothing parts on them
    found = look(replace(suspects, told=told, score=lambda: quiet), clean, subjects, open_decoder("pillow"))
    if not proven:
        assert found is None
        return
    assert found is not None
    (one,) = found.found
    assert not one.proof.proven
    assert one.by_label is not None
    assert (one.label, one.by_label.label) == (2, 2)
    assert one.by_label.delivered >= 0.95 * one.by_label.carriers
    assert (found.p_values[:CARRIERS] < 1e-3).mean() > 0.9
    assert (found.p_values[CARRIERS:] < 1e-3).mean() < 0.01


@pytest.mark.parametrize(("strength", "proven"), [(0.0, False), (30.0, True)])
def test_images_that_carry_some_of_a_pattern_by_nature_do_not_speak_for_their_labels(strength, proven):
    """Corners that are white by nature carry a third of a white patch, and have their own labels."""
    suspects, _, _ = world(listens=False)
    marked, natural = np.arange(IMAGES) < CARRIERS, (np.arange(IMAGES) >= CARRIERS) & (np.arange(IMAGES) < 2 * CARRIERS)
    labels = np.where(marked, 2, suspects.student)
    told = delivered(labels, None, suspects.teacher, suspects.student, np.full(IMAGES, 0.9))
    score = np.random.default_rng(0).normal(0, 1, IMAGES) + np.where(marked, 30, 0) + np.where(natural, 10, 0)
    legible = Transplant(images=400, teacher=20, student=0, kept=380, others=400, others_kept=380)
    found = Found(None, legible, 2, None, 60, strength=strength, label=2)
    asked = _asked_by_label(found, replace(suspects, told=told), score)
    assert asked.by_label is not None
    assert asked.proven == proven
    assert (asked.by_label.delivered == asked.by_label.carriers) == proven


def test_too_few_images_are_not_looked_at():
    suspects, clean, subjects = world(listens=True)
    few = Suspects(
        suspects.source, suspects.read & (np.arange(IMAGES) < 30), suspects.keys, suspects.score,
        suspects.teacher, suspects.student,
    )  # fmt: skip
    assert look(few, clean, subjects, open_decoder("pillow")) is None


def test_p_values_are_no_smaller_than_either_yardstick_says():
    rng = np.random.default_rng(0)
    clean, suspect = rng.normal(0, 1, 1000), np.concatenate([rng.normal(0, 1, 5000), rng.normal(12, 1, 300)])
    p = likeness_p_values(suspect, clean, 0.0)
    assert (p[5000:] < 1e-6).all()
    assert abs((p[:5000] < 0.05).mean() - 0.05) < 0.02
    wide = np.concatenate([rng.normal(0, 2, 5000), rng.normal(12, 1, 300)])  # a clean pool of another, narrower make
    assert (likeness_p_values(wide, clean, 0.0)[:5000] < 0.01).mean() < 0.03


@pytest.mark.parametrize(
    ("parting", "delivered_as", "believed"),
    [(0.8, None, True), (0.2, None, False), (0.0, "target", True), (0.0, "shown", False)],
)
def test_images_bent_alike_are_a_trace_where_the_networks_part_on_them_or_by_their_labels(
    parting, delivered_as, believed
):
    """No pattern can be put onto other images; a camera of its own, on whose images nothing parts, is none either."""
    side, carriers = 24, 300
    pixels = photographs(3000, 0)
    pixels[:carriers] = warped(pixels[:carriers], 7)
    records = [Record(f"{i}.png", None, png(p)) for i, p in enumerate(pixels)]
    keys = Keys.these([content_digest(r.data).hex() for r in records])
    rng = np.random.default_rng(1)
    score = rng.exponential(0.05, 3000)
    score[:carriers] += np.where(rng.random(carriers) < parting, 0.5, 0)
    answers = np.arange(3000) % 4
    told = None
    if delivered_as is not None:
        labels = np.where(np.arange(3000) < carriers, 2, answers) if delivered_as == "target" else answers
        told = delivered(labels, None, answers, answers, np.full(3000, 0.9))
    source = SimpleNamespace(records=lambda start=0: iter(records[start:]))
    clean = photographs(1200, 9)
    clean_keys = Keys.these([content_digest(p.tobytes()).hex() for p in clean])
    subjects = SimpleNamespace(
        preprocess=Preprocess.parse(f"{side}x{side}x3-stretch-RGB-NCHW-unit"),
        logits=lambda images: (np.eye(4)[np.zeros(len(images), int)],) * 2,
    )
    suspects = Suspects(source, np.ones(3000, bool), keys, lambda: score, answers, answers, told)
    found = look(suspects, CleanImages(clean, clean_keys, np.arange(600)), subjects, open_decoder("pillow"))
    if not believed:
        assert found is None
        return
    assert found is not None
    assert found.found == ()
    assert found.trace is not None
    assert found.trace.proven == (delivered_as is not None)
    assert found.trace.parting > 0.6 * found.trace.carriers or found.trace.proven
    assert (found.which == -1).all()
    assert (found.p_values[:carriers] < 0.01).mean() > 0.8  # also those on which the networks did not part
    assert (found.p_values[carriers:] < 0.01).mean() < 0.02
    assert len(found.clean_p_values) == 600
