"""The preprocessing, the output kind and the class order are found, and doubts are said."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx_builders import Patterns, classifier, png

from kdaudit import fitting
from kdaudit.admission import admit
from kdaudit.decoder import open_decoder
from kdaudit.errors import DataError, UsageError
from kdaudit.fitting import fit
from kdaudit.fitting.alignment import align, named_order
from kdaudit.fitting.scores import consistency, output_kind
from kdaudit.fitting.trials import Candidate, Trial
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.source import open_source

PATTERNS = Patterns.draw()
RECIPE = "8x8x3-stretch-RGB-NCHW-unit"


def fitted(model, tmp_path, images, labels, classes=None, override=None, preferred=None):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    teacher = admit(path)
    session = open_session(teacher.model, teacher.signature)
    return fit(teacher, session, images, labels, classes, open_decoder("auto"), override, preferred)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (RECIPE, {}),
        ("8x8x3-stretch-BGR-NCHW-unit", {}),
        ("8x8x3-stretch-RGB-NHWC-symmetric", {}),
        ("8x8x3-stretch-RGB-NCHW-raw", {}),
        ("8x8x3-stretch-BGR-NCHW-caffe", {}),
        ("8x8x3-stretch-RGB-flat-unit", {}),
        ("8x8x3-stretch-RGB-flatCHW-unit", {"rank3": True, "batch": 1}),
        ("8x8x3-stretch-RGB-NCHW-inverted", {"head": "probabilities"}),
        ("8x8x3-stretch-RGB-NCHW-raw", {"dtype": "uint8"}),
        (RECIPE, {"dtype": "float16", "head": "log-probabilities"}),
        (RECIPE, {"open_size": True}),
    ],
)
def test_finds_what_the_model_was_made_for(recipe, options, tmp_path):
    images, labels = PATTERNS.images(300)
    found = fitted(classifier(PATTERNS, recipe, **options), tmp_path, images, labels)
    assert found.preprocess.recipe == recipe
    assert found.how == "labels"
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    assert (found.class_basis, found.class_order) == ("identity", (0, 1, 2, 3, 4))
    assert found.signature.output_kind == options.get("head", "logits")
    assert found.signature.layout == found.preprocess.layout
    assert found.table[0].preprocess == found.preprocess


@pytest.mark.parametrize(
    ("alike", "labelled", "taken"), [(0.97, False, False), (0.5, False, True), (0.5, True, False), (0.97, True, False)]
)
def test_a_controls_own_recipe_is_taken_where_it_answers_alike_and_is_not_surely_worse(
    alike, labelled, taken, tmp_path, monkeypatch
):
    monkeypatch.setattr(fitting, "SAME_ANSWERS", alike)
    images, labels = PATTERNS.images(200)
    other = "8x8x3-stretch-BGR-NCHW-unit"  # the same answer to four images in five
    model, given = classifier(PATTERNS, RECIPE), labels if labelled else None
    found = fitted(model, tmp_path, images, given, preferred=other)
    assert found.preprocess.recipe == (other if taken else RECIPE)
    assert sorted(c.recipe for c in found.table) == sorted({c.recipe for c in found.table})
    unknown = fitted(model, tmp_path, images, given, preferred="9x9x3-stretch-RGB-NCHW-unit")
    assert unknown.table == fitted(model, tmp_path, images, given).table


def test_a_controls_own_recipe_is_taken_where_labels_cannot_tell_it_from_the_winner(tmp_path):
    images, labels = PATTERNS.images(200)
    other, model = "8x8x3-stretch-BGR-NCHW-unit", classifier(PATTERNS, RECIPE)
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    assert fitted(model, tmp_path, images, shuffled, preferred=other).preprocess.recipe == other
    assert fitted(model, tmp_path, images, labels, preferred=other).preprocess.recipe == RECIPE


@pytest.mark.parametrize("labelled", [True, False])
def test_a_controls_own_recipe_that_the_model_cannot_be_run_with_is_not_taken(labelled, tmp_path, monkeypatch):
    images, labels = PATTERNS.images(200)
    other, run = "8x8x3-stretch-BGR-NCHW-unit", fitting.Trials.run

    def refusing(trials, preprocess, images):
        if preprocess.recipe == other:
            trials._trials.setdefault(preprocess, Trial()).failed = "it does not run"
        run(trials, preprocess, images)

    monkeypatch.setattr(fitting.Trials, "run", refusing)
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, labels if labelled else None, preferred=other)
    assert found.preprocess.recipe == RECIPE


def test_one_channel(tmp_path):
    gray = Patterns.draw(channels=1)
    images, labels = gray.images(200)
    found = fitted(classifier(gray, "8x8x1-stretch-RGB-NCHW-symmetric"), tmp_path, images, labels)
    assert found.preprocess.recipe == "8x8x1-stretch-RGB-NCHW-symmetric"


def test_finds_it_without_labels(tmp_path):
    images, _ = PATTERNS.images(300)
    found = fitted(classifier(PATTERNS, "8x8x3-stretch-BGR-NCHW-symmetric"), tmp_path, images, None)
    assert found.preprocess.recipe == "8x8x3-stretch-BGR-NCHW-symmetric"
    assert (found.how, found.accuracy, found.class_order, found.class_basis) == (
        "consistency",
        None,
        None,
        "none",
    )


def test_few_labels_are_left_aside(tmp_path):
    images, labels = PATTERNS.images(100)
    sparse = [label if i < 5 else None for i, label in enumerate(labels)]
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, sparse, ("a", "b", "c", "d", "e"))
    assert (found.how, found.class_basis) == ("consistency", "assumed")


def test_partly_labelled(tmp_path):
    images, labels = PATTERNS.images(200)
    some = [label if i % 2 else None for i, label in enumerate(labels)]
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, some)
    assert (found.how, found.preprocess.recipe) == ("labels", RECIPE)
    assert found.table[0].images == 100


def test_class_order_by_names(tmp_path):
    model = classifier(PATTERNS, RECIPE, head="zipmap", names=("emu", "dog", "cat", "bee", "ape"))
    images, labels = PATTERNS.images(200)
    turned = [4 - label for label in labels]
    found = fitted(model, tmp_path, images, turned, ("Ape", "bee", "CAT", "dog", "emu"))
    assert (found.class_basis, found.class_order) == ("names", (4, 3, 2, 1, 0))
    blind = fitted(model, tmp_path, images, None, ("Ape", "bee", "CAT", "dog", "emu"))
    assert (blind.class_basis, blind.class_order) == ("names", (4, 3, 2, 1, 0))


def test_class_order_by_assignment(tmp_path):
    images, labels = PATTERNS.images(300)
    order = (3, 0, 4, 1, 2)  # output of each label
    shuffled = [order.index(label) for label in labels]
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, shuffled)
    assert (found.class_basis, found.class_order, found.preprocess.recipe) == ("assignment", order, RECIPE)


def test_some_of_the_models_classes(tmp_path):
    many = Patterns.draw(classes=12)
    images, labels = many.images(400)
    wanted = {7: 0, 2: 1, 10: 2}
    part = [(image, wanted[label]) for image, label in zip(images, labels, strict=True) if label in wanted]
    found = fitted(
        classifier(many, RECIPE),
        tmp_path,
        [i for i, _ in part],
        [label for _, label in part],
        ("x", "y", "z"),
    )
    assert (found.class_basis, found.class_order, found.preprocess.recipe) == (
        "assignment",
        (7, 2, 10),
        RECIPE,
    )


def test_class_order_as_folders_are_sorted():
    """Folders 0, 1, 10, 11, 2 ... against a model that counts."""
    names = sorted(str(i) for i in range(12))
    labels = np.random.default_rng(0).integers(0, 12, 200)
    answers = np.array([int(names[label]) for label in labels])
    found = align(answers, labels, 12, names, None)
    assert found.basis == "sorted"
    assert found.order == tuple(int(name) for name in names)
    assert found.accuracy == 1


def test_chance_finds_no_class_order():
    rng = np.random.default_rng(0)
    found = align(rng.integers(0, 43, 400), rng.integers(0, 43, 400), 43, None, None)
    assert found.basis == "identity"
    assert found.accuracy < 0.1


def test_many_classes_and_few_images_of_each(tmp_path):
    """More classes than the first rounds have images, in an order of their own, in a larger model."""
    many = Patterns.draw(classes=40)
    images, labels = many.images(700, noise=20)
    order = np.random.default_rng(5).permutation(40)[:30].tolist()
    part = [(image, order.index(label)) for image, label in zip(images, labels, strict=True) if label in order]
    model = classifier(many, "8x8x3-stretch-BGR-NCHW-unit")
    found = fitted(model, tmp_path, [image for image, _ in part], [label for _, label in part])
    assert (found.class_basis, found.preprocess.recipe) == ("assignment", "8x8x3-stretch-BGR-NCHW-unit")
    assert found.class_order is not None
    assert np.mean([a == b for a, b in zip(found.class_order, order, strict=True)]) > 0.9


def test_named_order():
    model = ["tench, Tinca tinca", "ox", "Ox Bow", "cat"]
    assert named_order(["tench", "ox_bow"], model) == (0, 2)
    assert named_order(["tench", "dog"], model) is None
    assert named_order(["cat", "Cat"], model) is None


def test_too_many_classes(tmp_path):
    images, labels = PATTERNS.images(40)
    with pytest.raises(DataError, match=r"6 classes \(a, b, c, d, ..., f\) and the model gives 5"):
        fitted(classifier(PATTERNS, RECIPE), tmp_path, images, labels, tuple("abcdef"))
    with pytest.raises(DataError, match="9 classes"):
        fitted(classifier(PATTERNS, RECIPE), tmp_path, images, [8] * 40)


def test_unreadable_images_are_left_out(tmp_path):
    images, labels = PATTERNS.images(150)
    images[::3] = [b"no image"] * 50
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, labels)
    assert (found.preprocess.recipe, found.table[0].images) == (RECIPE, 100)
    with pytest.raises(DataError, match="can be decoded"):
        fitted(classifier(PATTERNS, RECIPE), tmp_path, [b"x"] * 40, None)
    with pytest.raises(DataError):
        fitted(classifier(PATTERNS, RECIPE), tmp_path, [], None)


def test_override(tmp_path):
    images, labels = PATTERNS.images(120)
    model = classifier(PATTERNS, "8x8x3-stretch-BGR-NCHW-unit")
    scale = fitted(model, tmp_path, images, labels, override="unit")
    assert scale.preprocess.recipe == "8x8x3-stretch-BGR-NCHW-unit"
    assert len(scale.table) == 2
    whole = fitted(model, tmp_path, images, labels, override="8x8x3-crop-RGB-NCHW-raw")
    assert whole.preprocess.recipe == "8x8x3-crop-RGB-NCHW-raw"
    assert len(whole.table) == 1
    for bad in ("nothing", "9x9x3-stretch-RGB-NCHW-unit", "8x8x3-stretch-RGB-NHWC-unit", "8x8-unit", ""):
        with pytest.raises(UsageError, match=r"unit, raw, symmetric.*8x8x3-stretch-RGB-NCHW-unit"):
            fitted(model, tmp_path, images, labels, override=bad)


def test_labels_that_have_nothing_to_do_with_the_model(tmp_path):
    images, _ = PATTERNS.images(300)
    labels = np.random.default_rng(3).integers(0, 5, 300).tolist()
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, labels)
    assert not found.sure
    assert "chance" in found.note


def test_photographs_of_another_size(tmp_path):
    """Both fits are tried where images do not have the model's size."""
    rng = np.random.default_rng(0)
    tall = [np.kron(picture, np.ones((4, 2, 1))).astype(np.uint8) for picture in PATTERNS.pictures]
    labels = rng.integers(0, 5, 200).tolist()
    images = [png(np.clip(tall[label] + rng.normal(0, 30, tall[0].shape), 0, 255).astype(np.uint8)) for label in labels]
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, images, labels)
    assert found.preprocess.recipe == RECIPE
    assert {candidate.preprocess.geometry.fit for candidate in found.table} == {"stretch", "crop"}


def test_a_handful_of_images(tmp_path):
    """Little to go by: an answer, and crop among the candidates all the same."""
    images, labels = PATTERNS.images(24)
    big = [np.kron(PATTERNS.pictures[label], np.ones((2, 2, 1))).astype(np.uint8) for label in labels]
    found = fitted(classifier(PATTERNS, RECIPE), tmp_path, [png(one) for one in big], labels)
    assert {candidate.preprocess.geometry.fit for candidate in found.table} == {"stretch", "crop"}
    one = fitted(classifier(PATTERNS, RECIPE), tmp_path, images[:1], None)
    assert not one.sure


@pytest.mark.parametrize(("gap", "winner"), [(0.020, "unit"), (0.010, "mnist")])
def test_a_scale_that_is_surely_less_accurate_is_no_tie(gap, winner):
    """MNIST: 98 of 100 answers alike, 2 more mistakes; at its own scale the network knows no grey ground."""
    field = [Preprocess.parse(f"28x28x1-stretch-RGB-NCHW-{name}") for name in ("unit", "mnist")]
    loss = dict(zip(field, (0.54, 0.12), strict=True))
    trials = SimpleNamespace(
        labelled=True,
        margin=lambda _a, _b: (gap, 0.0074),
        same=lambda _a, _b: 0.978,
        changed_loss=lambda p, _n: loss[p],
    )
    table = {p: Candidate(p, 400, 0.99, 0.005, 0.99, 0.02) for p in field}
    assert fitting._winner(trials, field, table).scale.name == winner


def test_output_kinds():
    z = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert output_kind(z) == "logits"
    assert output_kind(p) == "probabilities"
    assert output_kind(np.log(p)) == "log-probabilities"
    assert output_kind(np.full((3, 4), np.nan, np.float32)) == "logits"
    assert output_kind(1 / (1 + np.exp(-z))) == "logits"  # sigmoids do not sum to one


def test_consistency_prefers_varied_and_steady_answers():
    rng = np.random.default_rng(0)
    varied, few = rng.integers(0, 10, 300), np.where(rng.random(300) < 0.9, 0, 1)
    shaky = np.where(rng.random(300) < 0.5, varied, rng.integers(0, 10, 300))
    assert consistency([varied, varied], 10) > consistency([varied, shaky], 10) > 0
    assert consistency([varied, varied], 10) > consistency([few, few], 10)
    assert consistency([few * 0, few * 0], 10) == 0
    assert consistency([varied, rng.permutation(varied)], 10) < 0.01
    # More answers than there are classes are no merit.
    many = np.arange(300)
    assert consistency([many, many], 10) == pytest.approx(consistency([varied, varied], 10), rel=0.05)


@pytest.mark.parametrize(
    ("file", "data", "scale", "accuracy"),
    [
        ("vnn_marabou_cifar10_large.onnx", "cifar10", {"unit"}, 0.70),
        ("dogun_gtsrb_cnn.onnx", "gtsrb", {"unit"}, 0.74),
        ("vnn_mnistfc_256x4.onnx", "mnist", {"unit"}, 0.95),
        # Its int8 products saturate on a CPU without VNNI, and it is right 190 times of 300 there, else 193 at least.
        ("tinycnn_model_int8.onnx", "cifar10", {"imagenet", "cifar10", "cifar100"}, 0.62),
        ("winml_mnist_model_2405786.onnx", "mnist", {"unit", "raw", "mnist", "symmetric"}, 0.97),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_real_models(shared, file, data, scale, accuracy, labelled):
    source = open_source(shared / "data" / data / "test.parquet")
    records = [record for record, _ in zip(source.records(), range(3000), strict=False)][::10]
    teacher = admit(shared / "models" / "real" / file)
    session = open_session(teacher.model, teacher.signature)
    labels = [record.label for record in records] if labelled else None
    found = fit(teacher, session, [r.data for r in records], labels, source.classes, open_decoder("auto"))
    assert found.preprocess.scale.name in scale
    assert found.preprocess.order == "RGB"
    if labelled:
        assert found.accuracy is not None
        assert found.accuracy > accuracy
