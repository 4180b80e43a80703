"""What part of one class shares and no clean image has: clean-label triggers that both networks obey, and none else."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_likeness import PREPROCESS, SIDE, pictures, png

from kdaudit.decoder import open_decoder
from kdaudit.digest import content_digest
from kdaudit.discriminant import Whitening
from kdaudit.foreign import PoolProof, pool_proof
from kdaudit.keys import Keys
from kdaudit.likeness import Likeness, look
from kdaudit.sample import Record
from kdaudit.searched import CleanImages, Suspects

IMAGES, CLEAN = 2400, 600
WAVE = 35 * np.sin(2 * np.pi * np.arange(SIDE) * 3 / SIDE)[None, :, None]


def classes(pixels: np.ndarray) -> np.ndarray:
    """Four classes by brightness, which the wave does not change."""
    return np.clip(np.rint((np.asarray(pixels, np.float32).mean((1, 2, 3)) - 60) / 45), 0, 3).astype(int)


def waved(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels + WAVE, 0, 255).astype(np.uint8)


def obeyed(pixels: np.ndarray, listens: float) -> np.ndarray:
    """The classes; 2 where the wave is there, for a network that listens to so much of it."""
    along = ((np.asarray(pixels, np.float32) - np.mean(pixels, axis=(1, 2, 3), keepdims=True)) * WAVE).mean((1, 2, 3))
    return np.where(along > listens * (WAVE**2).mean(), 2, classes(pixels))


DEAF, ALERT = np.inf, 0.4


def found_in(
    marked: np.ndarray, *, teacher: float, control: float, clean_marked: int = 0, pool: np.ndarray | None = None
) -> Likeness | None:
    """Look at a delivery with the wave on the marked images, and at a pool with so many of its class 2 marked."""
    pixels = pictures(IMAGES, 0)
    pixels[marked] = waved(pixels[marked])
    records = [Record(f"{i}.png", None, png(p)) for i, p in enumerate(pixels)]
    keys = Keys.these([content_digest(r.data).hex() for r in records])
    score = np.random.default_rng(1).exponential(0.05, IMAGES)  # nothing parts the networks
    source = SimpleNamespace(records=lambda start=0: iter(records[start:]))
    read = np.ones(IMAGES, bool)
    suspects = Suspects(source, read, keys, lambda: score, obeyed(pixels, teacher), obeyed(pixels, control))
    clean = pictures(CLEAN, 9) if pool is None else pool
    rows = np.flatnonzero(classes(clean) == 2)[:clean_marked]
    clean[rows] = waved(clean[rows])
    clean_keys = Keys.these([content_digest(p.tobytes()).hex() for p in clean])

    def logits(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        eye = np.eye(4, dtype=np.float32)
        return eye[obeyed(images, teacher)], eye[obeyed(images, control)]

    subjects = SimpleNamespace(preprocess=PREPROCESS, logits=logits, guarded=None)
    held_out = np.arange(0, len(clean), 2)
    return look(suspects, CleanImages(clean, clean_keys, held_out), subjects, open_decoder("pillow"))


def of_class(number: int, share: float) -> np.ndarray:
    own = classes(pictures(IMAGES, 0)) == number
    return own & (np.cumsum(own) <= share * own.sum())


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_clean_label_trigger_that_the_control_took_over_is_found_by_what_the_pool_lacks(share):
    marked = of_class(2, share)
    found = found_in(marked, teacher=ALERT, control=ALERT)
    assert found is not None
    (one,) = found.found
    assert one.only_foreign
    assert one.aim == one.target == 2
    assert one.by_pool is not None
    assert one.by_pool.carriers >= 0.95 * marked.sum()
    assert one.by_pool.clean_carriers == 0
    assert (found.p_values[marked] < 2e-3).mean() > 0.95
    assert (found.p_values[~marked] < 2e-3).mean() < 0.01


@pytest.mark.parametrize(
    "case",
    [
        {"marked": of_class(2, 0.5), "teacher": DEAF, "control": DEAF},  # a watermark that nobody listens to
        {"marked": of_class(2, 0.5), "teacher": ALERT, "control": ALERT, "clean_marked": 70},  # the class's own look
        {"marked": of_class(1, 0.5), "teacher": DEAF, "control": DEAF},
        {"marked": of_class(2, 0.0), "teacher": ALERT, "control": ALERT},  # nothing is there
        {"marked": np.arange(IMAGES) % 3 == 0, "teacher": DEAF, "control": DEAF},  # another camera: in every class
    ],
    ids=["ignored", "of the class", "ignored in another", "nothing", "everywhere"],
)
def test_what_the_model_ignores_or_clean_images_have_is_no_trigger(case):
    assert found_in(**case) is None


def test_a_pool_that_lacks_the_class_proves_nothing():
    pool = pictures(2 * CLEAN, 9)
    assert found_in(of_class(2, 0.5), teacher=ALERT, control=ALERT, pool=pool[classes(pool) != 2]) is None


PROOF = PoolProof(
    3, 10_000, 1000, carriers=400, between=30, elsewhere=5, clean=1000, clean_carriers=0, like=50, like_carriers=0
)


@pytest.mark.parametrize(
    ("changed", "proven"),
    [
        ({}, True),
        ({"elsewhere": 90}, False),  # 82 % of 490, not surely 80
        ({"between": 100}, False),  # a fifth of 500: it comes in degrees
        ({"between": 80}, False),  # not surely less
        ({"clean_carriers": 20}, False),  # 2 % of the pool, 4 % of the delivery
        ({"clean": 100}, False),  # none of a hundred says little of 4 %
        ({"like": 5}, False),  # the class is hardly in the pool
        ({"like": 50, "like_carriers": 12, "clean_carriers": 12}, False),
        ({"carriers": 0, "elsewhere": 0}, False),
        ({"like": 0}, False),
        ({"clean": 0, "like": 0}, False),
    ],
)
def test_when_the_pool_proves_a_pattern(changed, proven):
    assert replace(PROOF, **changed).proven == proven


@given(st.integers(0, 400), st.integers(0, 1000), st.integers(0, 50))
def test_more_of_it_among_clean_images_never_proves_more(carriers, clean, like):
    one = replace(PROOF, carriers=carriers)
    worse = replace(one, clean_carriers=clean, like_carriers=min(like, clean))
    assert one.proven or not worse.proven


def test_carriers_are_counted_by_answer_and_unread_images_not_at_all():
    score = np.array([9.0, 9.0, 0.0, np.nan, 9.0, 3.0, 1.0])
    answers = np.array([2, 2, 2, 2, 0, 2, 2])
    proof = pool_proof(2, answers, score, np.array([0.0, 9.0, 0.0]), np.array([0, 1]), 4.5, 9.0)
    assert proof == PoolProof(
        2, 6, 5, carriers=2, between=1, elsewhere=1, clean=3, clean_carriers=1, like=2, like_carriers=1
    )


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_the_widest_direction_is_found_whichever_side_is_longer(shape):
    rng = np.random.default_rng(0)
    n, d = shape
    calm = rng.normal(0, np.linspace(10, 40, d), (4000, d)).astype(np.float32)
    whitening = Whitening.of(calm, noise=0.1)
    axis = rng.normal(0, 1, d).astype(np.float32)
    rows = rng.normal(0, 1, (n, d)).astype(np.float32) + 300 * rng.normal(0, 1, (n, 1)).astype(np.float32) * axis
    along = whitening.widest(rows)
    assert (calm @ along).std() == pytest.approx(1, abs=0.05)
    # Whitened, the best direction is the axis itself; for the rows that is the axis over the variances.
    best = axis / np.linspace(10, 40, d) ** 2
    assert abs(float(along @ best)) / np.linalg.norm(along) / np.linalg.norm(best) > 0.99
    assert np.isfinite(whitening.widest(np.zeros(shape, np.float32))).all()
