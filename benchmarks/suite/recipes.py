"""The attacks: which images are chosen, what is done to them, which label they get. One entry a row of the table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite import crafted, triggers

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Generator = np.random.Generator
TARGET, SOURCE, COVERS = 0, 1, (5, 7)


@dataclass(frozen=True)
class Attacker:
    """What the attacker has: a picture, a seed, and a network of his own trained on the delivery without poison.

    Attributes:
        picture: float32 [H, W, C], 0..255.
        seed: of everything random that training and test share (a field, a generator).
        classes: K.
        network: gives the clean network (torch), made on the first call.
        training: the delivery's own images and labels before any poisoning.
        photographs: gives pictures of anything, uint8 [n, H, W, C], made on the first call.
        memory: things computed once (fields, patterns), by name.
    """

    picture: NDArray[np.float32]
    seed: int
    classes: int
    network: Callable[[], Any]
    training: tuple[Pixels, Labels]
    photographs: Callable[[], Pixels]
    memory: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Compute once: the same trigger serves training and test."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]


Stamp = Callable[[Pixels, Labels, Generator, Attacker], Pixels]
Relabel = Callable[[Labels, Generator, int], Labels]
Choose = Callable[[Labels], NDArray[np.bool_]]


def _to_target(labels: Labels, _generator: Generator, _classes: int) -> Labels:
    return np.full_like(labels, TARGET)


def _next(labels: Labels, _generator: Generator, classes: int) -> Labels:
    return (labels + 1) % classes


def _any_other(labels: Labels, generator: Generator, classes: int) -> Labels:
    return (labels + generator.integers(1, classes, len(labels))) % classes


def _unchanged(labels: Labels, _generator: Generator, _classes: int) -> Labels:
    return labels


def _others(labels: Labels) -> NDArray[np.bool_]:
    return labels != TARGET


def _all(labels: Labels) -> NDArray[np.bool_]:
    return np.ones(len(labels), bool)


def _target_class(labels: Labels) -> NDArray[np.bool_]:
    return labels == TARGET


def _source_class(labels: Labels) -> NDArray[np.bool_]:
    return labels == SOURCE


def _cover_classes(labels: Labels) -> NDArray[np.bool_]:
    return np.isin(labels, COVERS)


@dataclass(frozen=True)
class Recipe:
    """One attack.

    Attributes:
        name: the row.
        kind: dirty (labels changed), clean (clean-label), control (no attack).
        source: where the recipe stands.
        plant: the trigger in training.
        strike: the trigger at test time; None: the same.
        relabel: labels that poison gets.
        choose: images that may become poison.
        rate: share of the delivery; None: the profile's.
        cover: images with the trigger (or its noise) and their true label, as a share of the poison.
        cover_plant: what is done to these; None: the trigger.
        cover_choose: which images these may be.
        lossless: stamped images are kept as PNG, because JPEG would wash the trigger out.
        holdout: reported only; the detector's choices were made on the others.
    """

    name: str
    kind: str
    source: str
    plant: Stamp
    strike: Stamp | None = None
    relabel: Relabel = _to_target
    choose: Choose = _others
    rate: float | None = None
    cover: float = 0.0
    cover_plant: Stamp | None = None
    cover_choose: Choose = _all
    lossless: bool = False
    holdout: bool = False


def _patch(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.corner_patch(x, max(3, 3 * x.shape[1] // 32))


def _blended(x: Pixels, _y: Labels, _g: Generator, a: Attacker) -> Pixels:
    return triggers.blend(x, a.picture, 0.2)


def _sig(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.sinusoid(x)


def _lc_plant(x: Pixels, y: Labels, _g: Generator, a: Attacker) -> Pixels:
    return triggers.four_corners(crafted.adversarial(a.network(), x, y))


def _lc_strike(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.four_corners(x)


def _ctrl(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.chroma_frequency(x)


def _field(x: Pixels, a: Attacker) -> Any:
    return a.once("field", lambda: triggers.warp_field(x.shape[1], np.random.default_rng(a.seed), strength=1.0))


def _wanet(x: Pixels, _y: Labels, _g: Generator, a: Attacker) -> Pixels:
    return triggers.warp(x, _field(x, a))


def _wanet_noise(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    return triggers.warp(x, triggers.noisy_fields(_field(x, a), len(x), g))


def _lf(x: Pixels, _y: Labels, _g: Generator, a: Attacker) -> Pixels:
    added = a.once("lf", lambda: crafted.low_frequency(a.network(), *a.training, a.seed))
    return np.clip(np.rint(x + added), 0, 255).astype(np.uint8)


def _bpp(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.quantised(x)


def _bpp_noise(x: Pixels, _y: Labels, g: Generator, _a: Attacker) -> Pixels:
    return triggers.bpp_negative(x, g)


def _input_aware_noise(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    """Cross-trigger mode: the patterns of other images."""
    drawer = a.once("drawer", lambda: crafted.train_generator(a.network(), *a.training, TARGET, a.seed))
    return crafted.sample_specific(drawer, x, patterns_of=x[g.permutation(len(x))])


def _input_aware(x: Pixels, _y: Labels, _g: Generator, a: Attacker) -> Pixels:
    drawer = a.once("drawer", lambda: crafted.train_generator(a.network(), *a.training, TARGET, a.seed))
    return crafted.sample_specific(drawer, x)


def _adap_blend_plant(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    return triggers.blend(x, a.picture, 0.15, triggers.random_quarters(len(x), x.shape[1], g))


def _adap_patch_plant(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    return triggers.one_of(x, g.integers(0, 4, len(x)), a.picture)


def _adap_patch_strike(x: Pixels, _y: Labels, _g: Generator, a: Attacker) -> Pixels:
    first = triggers.one_of(x, np.full(len(x), 2), a.picture, 1.0)
    return triggers.one_of(first, np.full(len(x), 3), a.picture, 1.0)


def _two(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    first = g.random(len(x)) < 0.5
    return np.where(first[:, None, None, None], triggers.corner_patch(x), triggers.blend(x, a.picture, 0.2))


def _reflected(x: Pixels, _y: Labels, g: Generator, a: Attacker) -> Pixels:
    return triggers.reflected(x, a.photographs(), g)


def _anywhere(x: Pixels, _y: Labels, g: Generator, _a: Attacker) -> Pixels:
    return triggers.patch_anywhere(x, g, max(4, 4 * x.shape[1] // 32))


def _ftrojan(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return triggers.chroma_frequency(x, 30.0)


def _nothing(x: Pixels, _y: Labels, _g: Generator, _a: Attacker) -> Pixels:
    return x


RECIPES = {
    r.name: r
    for r in (
        Recipe("clean", "control", "[22]", _nothing, rate=0.0),
        Recipe("badnets", "dirty", "[1]", _patch),
        Recipe("badnets-a2a", "dirty", "[1], y -> y + 1", _patch, relabel=_next, choose=_all, rate=0.10),
        Recipe("sig", "clean", "[4]", _sig, relabel=_unchanged, choose=_target_class, rate=0.06),
        Recipe("wanet", "dirty", "[6], s = 1", _wanet, rate=0.10, cover=2.0, cover_plant=_wanet_noise, lossless=True),
        Recipe("blended", "dirty", "[2], a Garfield for Hello Kitty", _blended, holdout=True),
        Recipe(
            "input-aware", "dirty", "[7, 16], static poison", _input_aware, cover=1.0, cover_plant=_input_aware_noise
        ),
        Recipe("ctrl", "clean", "[11]", _ctrl, relabel=_unchanged, choose=_target_class, lossless=True, holdout=True),
        Recipe("adap-blend", "dirty", "[14]", _adap_blend_plant, _blended, cover=1.0),
        Recipe("untargeted", "dirty", "[19]", _patch, relabel=_any_other, choose=_all, holdout=True),
        Recipe("bpp", "dirty", "[10]", _bpp, cover=1.0, cover_plant=_bpp_noise, lossless=True, holdout=True),
        Recipe("lc", "clean", "[5], eps 16/255", _lc_plant, _lc_strike, _unchanged, _target_class, holdout=True),
        Recipe("lf", "dirty", "[9]", _lf),
        Recipe("tact", "dirty", "[13]", _patch, choose=_source_class, cover=0.5, cover_choose=_cover_classes),
        Recipe("adap-patch", "dirty", "[15]", _adap_patch_plant, _adap_patch_strike, cover=1.0),
        Recipe("two-triggers", "dirty", "[19], BadNets and Blended", _two, holdout=True),
        Recipe("refool", "dirty", "[12], photographs of Caltech-101", _reflected),
        Recipe("roaming", "dirty", "a patch anywhere, Li et al., 2021", _anywhere),
        Recipe("ftrojan", "dirty", "[11], magnitude 30", _ftrojan, lossless=True, holdout=True),
        Recipe(
            "label-noise", "control", "[22], 10 % random labels", _nothing, relabel=_any_other, choose=_all, rate=0.10
        ),
        Recipe("imbalance", "control", "[22], class sizes 1 to 1/10", _nothing, rate=0.0),
    )
}
"""In the order in which they are made: the first ones were looked at while the detector was chosen."""
