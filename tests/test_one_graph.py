"""Both networks as one graph: the teacher's nodes as they are, the rows as two sessions give them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_builders import Patterns, classifier

from kdaudit import contrast, onegraph
from kdaudit.admission import Teacher, admit
from kdaudit.clock import Laps
from kdaudit.comparison import Subjects, compare_pixels
from kdaudit.errors import Inconclusive, ModelRefused
from kdaudit.fusion import NotFused
from kdaudit.fusion.blueprint import draw
from kdaudit.fusion.graph import compose
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.looks import Look, ask_both, look_of
from kdaudit.machine import Placement
from kdaudit.onegraph import OneGraph, open_one_graph
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.runtime import Engine
from kdaudit.sandbox.process import WorkerLost
from kdaudit.session import Session

RECIPE = "8x8x3-stretch-RGB-NCHW-unit"
PIXELS = Patterns.draw().copies(41, seed=5)[0]


def admitted(model: onnx.ModelProto, folder: Path, name: str = "model") -> Teacher:
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return admit(path)


def pair(folder: Path, recipe: str = RECIPE, classes: int = 5, **options) -> tuple[Teacher, Teacher]:
    """A teacher and a control of other weights."""
    plain = {key: value for key, value in options.items() if key in ("dtype", "rank3")}
    teacher = classifier(Patterns.draw(classes), recipe, **options)
    control = classifier(Patterns.draw(classes, seed=3), recipe, **plain)
    return admitted(teacher, folder, "teacher"), admitted(control, folder, "control")


def opened(model: Teacher, preprocess: Preprocess) -> Session:
    session = open_session(model.model, replace(model.signature, layout=preprocess.layout), provider="cpu")
    session.logits(preprocess.apply(PIXELS[:3]))
    return session


def looks(folder: Path, recipe: str = RECIPE, **options) -> tuple[Look, Look]:
    """The same images through one graph and through two sessions."""
    teacher, control = pair(folder, recipe, **options)
    shape = teacher.signature.input_shape
    preprocess = Preprocess.parse(recipe, teacher.signature.input_type, len(shape))
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    graph = open_one_graph(*sessions, preprocess, PIXELS)
    try:
        found = graph.look(PIXELS)
    finally:
        graph.close()
    assert found is not None
    return found, look_of(ask_both(*sessions, preprocess, PIXELS, Laps()))


def assert_close(found: Look, expected: Look, atol: float) -> None:
    assert np.ptp(expected.answers.gap) > 0.5  # rows that could be told apart
    for one, other in zip((*found.answers, *found[1:]), (*expected.answers, *expected[1:]), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        if one.dtype.kind == "f":
            assert np.allclose(one, other, rtol=1e-6, atol=atol)
        else:
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (RECIPE, {}),
        (RECIPE, {"head": "probabilities"}),
        (RECIPE, {"head": "log-probabilities"}),
        (RECIPE, {"head": "tall"}),
        (RECIPE, {"head": "zipmap"}),
        (RECIPE, {"head": "half"}),
        (RECIPE, {"batch": 4}),
        (RECIPE, {"open_size": True}),
        (RECIPE, {"weights_as_inputs": True}),
        (RECIPE, {"dtype": "float16"}),
        ("8x8x3-stretch-RGB-NHWC-cifar10", {}),
        ("8x8x3-stretch-BGR-NCHW-imagenet", {}),
        ("8x8x3-stretch-RGB-flat-unit", {}),
        ("8x8x3-stretch-BGR-flatCHW-caffe", {"rank3": True}),
        ("8x8x3-stretch-RGB-NCHW-raw", {"dtype": "uint8"}),
        (RECIPE, {"classes": 40}),
    ],
)
def test_one_graph_gives_the_columns_of_two_sessions(recipe, options, tmp_path, monkeypatch):
    # In this process, for speed; the opsets below and tests/test_same_rows.py go through the confined workers.
    monkeypatch.setattr(onegraph, "compose_confined", compose)
    monkeypatch.setattr(onegraph, "open_engine", lambda model, provider, threads, **_: Engine(model, provider, threads))
    # float32 sums of probabilities are added up in another order; all else is the same arithmetic.
    assert_close(*looks(tmp_path, recipe, **options), atol=1e-5 if "head" in options else 2e-6)


def not_ours(graph: onnx.GraphProto, prefix: str) -> list[bytes]:
    """The nodes that neither have a name of ours nor write a tensor of ours."""
    return [n.SerializeToString() for n in graph.node if not any(s.startswith(prefix) for s in (n.name, *n.output))]


def awkward(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with a function, a graph inside the graph that reads an outer constant, and names like ours."""
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("own", "Gemm", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], opsets)
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(True), "kdaudit0/constant0"))
    outer = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    graph.initializer.append(outer)
    out = helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None)
    inner = [
        helper.make_graph([helper.make_node(op, ["logits", "half"], ["r"])], op, [], [out]) for op in ("Add", "Sub")
    ]
    branch = helper.make_node("If", ["kdaudit0/constant0"], ["chosen"], "", then_branch=inner[0], else_branch=inner[1])
    graph.node[-1].CopyFrom(branch)
    graph.node.append(helper.make_node("Gemm", ["chosen"], ["scores"], domain="own"))
    return model


@pytest.mark.parametrize("make", ["plain", "awkward", "zipmap"])
def test_no_node_of_the_teacher_is_altered(make, tmp_path):
    made = classifier(Patterns.draw(), RECIPE, head="zipmap" if make == "zipmap" else "logits")
    teacher = admitted(awkward(made) if make == "awkward" else made, tmp_path)
    control = admitted(classifier(Patterns.draw(seed=3), RECIPE), tmp_path, "control")
    plan = draw(teacher.signature, control.signature, Preprocess.parse(RECIPE), 0, teacher.model)
    theirs = onnx.load_model_from_string(teacher.model)
    whole = onnx.load_model_from_string(compose(teacher.model, control.model, plan).model)
    # Byte for byte, names included, and in their order: it is ours that stand aside.
    assert not_ours(whole.graph, plan.prefix) == [node.SerializeToString() for node in theirs.graph.node]
    assert len(whole.graph.node) > len(theirs.graph.node) + 40
    constants = {tensor.name: tensor.SerializeToString() for tensor in whole.graph.initializer}
    for tensor in theirs.graph.initializer:
        assert constants[tensor.name] == tensor.SerializeToString()
    assert len(constants) == len(whole.graph.initializer)
    assert list(whole.functions) == list(theirs.functions)
    assert list(whole.opset_import) == list(theirs.opset_import)
    assert [value.name for value in whole.graph.input] == [plan.pixels]
    assert [value.name for value in whole.graph.output] == [plan.rows]
    if make == "awkward":
        assert plan.prefix == "kdaudit1/"


def test_a_graph_with_graphs_inside_gives_the_same_columns(tmp_path):
    teacher = admitted(awkward(classifier(Patterns.draw(), RECIPE)), tmp_path)
    control = admitted(classifier(Patterns.draw(seed=3), RECIPE), tmp_path, "control")
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    graph = open_one_graph(*sessions, preprocess, PIXELS)
    assert_close(graph.look(PIXELS), look_of(ask_both(*sessions, preprocess, PIXELS, Laps())), atol=2e-6)
    graph.close()


# -- opsets


def at(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same in another opset; what it is built of means the same in all of these."""
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    return model


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """A control as `kdaudit distill` exports it."""
    import torch

    from kdaudit.export import export_network
    from kdaudit.student import StudentSpec, build

    network = build(StudentSpec("residual", 3, 8, 8, 5, (0.5,) * 3, (0.25,) * 3), 0).eval()
    return export_network(network, torch.zeros(2, 3, 8, 8), "image", "scores")


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22])
def test_the_control_moves_to_the_teachers_opset_or_the_two_stay_apart(opset, exported, tmp_path):
    teacher = admitted(at(classifier(Patterns.draw(), RECIPE), opset), tmp_path)
    control = admitted(exported, tmp_path, "control")
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    if opset < 11:
        with pytest.raises(NotFused, match=f"opset {opset}"):
            open_one_graph(*sessions, preprocess, PIXELS)
        return
    graph = open_one_graph(*sessions, preprocess, PIXELS)
    assert_close(graph.look(PIXELS), look_of(ask_both(*sessions, preprocess, PIXELS, Laps())), atol=1e-5)
    graph.close()


# -- what goes wrong is for the two sessions


class Scripted:
    """An engine that gives rows as it is told; raises what is no array."""

    provider, confinement = "cpu", "none"

    def __init__(self, *answers: np.ndarray | Exception) -> None:
        self.answers, self.asked = list(answers), 0

    def run(self, inputs, outputs, rows=None):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return [answer]


class Noting:
    """A session that is told of other answers."""

    def __init__(self) -> None:
        self.told = 0

    def note_other_answer(self, tensor):
        self.told += 1


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A blueprint, and the rows that its graph gives."""
    teacher, control = pair(tmp_path_factory.mktemp("models"))
    plan = draw(teacher.signature, control.signature, Preprocess.parse(RECIPE), 192, teacher.model)
    engine = Engine(compose(teacher.model, control.model, plan).model, "cpu", 1)
    return plan, engine.run({plan.pixels: PIXELS}, [plan.rows])[0]


def told(plan, *answers) -> tuple[list[Look | None], Scripted, list[int]]:
    engine, sessions = Scripted(*answers), (Noting(), Noting())
    graph = OneGraph(engine, plan, *sessions)
    return [graph.look(PIXELS) for _ in range(2)], engine, [session.told for session in sessions]


@pytest.mark.parametrize("lost", [WorkerLost("died", "it died"), ModelRefused("KDA021", "no"), Inconclusive("enough")])
def test_a_worker_that_is_lost_leaves_the_images_to_the_sessions(truth, lost):
    plan, rows = truth
    (first, second), engine, _ = told(plan, lost, rows)
    assert first is None
    # After one death the next images are asked about again; after too many nothing is.
    assert (second is None) is isinstance(lost, Inconclusive)
    assert engine.asked == (1 if isinstance(lost, Inconclusive) else 3)  # the first answer is asked for twice


@pytest.mark.parametrize(
    ("column", "value"),
    [(0, 5), (0, -1), (1, 0.5), (2, 1.5), (3, -0.1), (4, np.inf), (5, 0.8), (5, -0.1), (6, 2), (30, np.nan)],
)
def test_rows_that_no_comparison_gives_are_no_answer(truth, column, value):
    plan, rows = truth
    wrong = rows.copy()
    wrong[3, column] = value
    (found, _), _, _ = told(plan, wrong)
    assert found is None


@pytest.mark.parametrize("wrong", [np.zeros((41, 3), np.float32), np.zeros((2, 147), np.float32)])
def test_an_answer_of_another_shape_is_no_answer(truth, wrong):
    assert told(truth[0], wrong)[0][0] is None


def test_no_images_are_not_asked_about(truth):
    engine = Scripted(truth[1])
    assert OneGraph(engine, truth[0], Noting(), Noting()).look(PIXELS[:0]) is None
    assert engine.asked == 0


@pytest.mark.parametrize(("column", "whose"), [(8, [1, 0]), (13, [0, 1]), (40, [0, 0])])
def test_dice_are_found_by_repetition_and_told_of_whose_they_are(truth, column, whose):
    plan, rows = truth
    other = rows.copy()
    other[:, column] -= 1
    assert told(plan, rows, other)[2] == whose
    assert told(plan, rows)[2] == [0, 0]


def test_a_graph_that_answers_otherwise_is_not_used(tmp_path, monkeypatch):
    teacher, control = pair(tmp_path)
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    other = onegraph.compose_confined
    monkeypatch.setattr(
        onegraph, "compose_confined", lambda t, c, plan: other(t, c, replace(plan, recipe=RECIPE.replace("RGB", "BGR")))
    )
    with pytest.raises(NotFused, match="otherwise"):
        open_one_graph(*sessions, preprocess, PIXELS)


@pytest.mark.parametrize(("where", "held"), [
    (Placement(), onegraph.TOLERANCE), (Placement(tf32=True), 2e-2), (Placement(fp16=True), 2e-2),
])  # fmt: skip
def test_where_a_gpu_rounds_both_forms_may_differ_more(where, held, tmp_path, monkeypatch):
    teacher, control = pair(tmp_path)
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    for off, fits in ((0.3 * held, True), (3 * held, False)):
        look = OneGraph.look

        def rounded(graph, pixels, look=look, off=off):
            seen = look(graph, pixels)
            return seen._replace(answers=seen.answers._replace(gap=seen.answers.gap * (1 + off) + off))

        with monkeypatch.context() as patch:
            patch.setattr(OneGraph, "look", rounded)
            if fits:
                open_one_graph(*sessions, preprocess, PIXELS, where).close()
            else:
                with pytest.raises(NotFused, match="answers otherwise"):
                    open_one_graph(*sessions, preprocess, PIXELS, where)


def test_networks_that_answer_for_one_image_at_a_time_stay_apart(tmp_path):
    teacher, control = pair(tmp_path, batch=1)
    preprocess = Preprocess.parse(RECIPE)
    with pytest.raises(NotFused, match="one image at a time"):
        open_one_graph(*(opened(model, preprocess) for model in (teacher, control)), preprocess, PIXELS)


def test_what_is_not_finite_has_the_row_that_two_sessions_give(tmp_path):
    """A teacher that divides by nought where the first pixel is black."""
    model = classifier(Patterns.draw(), RECIPE)
    start, end = (numpy_helper.from_array(np.array([at]), name) for at, name in ((0, "start"), (1, "end")))
    axes = numpy_helper.from_array(np.array([1]), "axes")
    model.graph.initializer.extend([start, end, axes])
    model.graph.node.insert(2, helper.make_node("Slice", ["flat", "start", "end", "axes"], ["first"]))
    model.graph.node[-1].CopyFrom(helper.make_node("Div", ["logits", "first"], ["scores"]))
    teacher = admitted(model, tmp_path)
    control = admitted(classifier(Patterns.draw(seed=3), RECIPE), tmp_path, "control")
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(one, preprocess) for one in (teacher, control)]
    graph = open_one_graph(*sessions, preprocess, PIXELS)
    hostile = np.maximum(PIXELS, 1)
    hostile[[2, 7], 0, 0] = 0
    found, expected = graph.look(hostile), look_of(ask_both(*sessions, preprocess, hostile, Laps()))
    assert np.flatnonzero(~expected.finite).tolist() == [2, 7]
    assert_close(found, expected, atol=2e-6)
    graph.close()


# -- the door in the comparison


@pytest.mark.parametrize(
    ("graph", "provider", "wanted"),
    [
        ("auto", "cpu", False), ("auto", "cuda", True), ("auto", "tensorrt", True),
        ("one", "cpu", True), ("two", "cuda", False),
    ],
)  # fmt: skip
def test_left_to_itself_a_gpu_runs_one_graph_and_a_cpu_two(graph, provider, wanted, monkeypatch):
    both = Subjects(Noting(), Noting(), Preprocess.parse(RECIPE), None, InterventionPlan(()))
    both.teacher.provider = provider
    made = OneGraph(Scripted(), None, both.teacher, both.student)
    monkeypatch.setattr(contrast, "open_one_graph", lambda *given: made)
    assert contrast._as_one(both, PIXELS, graph, Placement()).graph is (made if wanted else None)


def test_where_it_cannot_be_done_the_reason_is_kept(tmp_path):
    teacher, control = pair(tmp_path, batch=1)
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    both = contrast._as_one(Subjects(*sessions, preprocess, None, InterventionPlan(())), PIXELS, "one", Placement())
    assert both.graph is None
    assert both.apart == "one of the networks answers for one image at a time"


def test_with_one_graph_only_pictures_are_asked_of_the_sessions(tmp_path):
    """The default rule: the graph looks at the image as it is, the two sessions at what is mixed from it."""
    teacher, control = pair(tmp_path)
    preprocess = Preprocess.parse(RECIPE)
    sessions = [opened(model, preprocess) for model in (teacher, control)]
    partners = Partners.of(PIXELS, sessions[0], preprocess)
    ids = [f"{i:032x}:x" for i in range(len(PIXELS))]
    two = Subjects(*sessions, preprocess, partners, InterventionPlan(()))
    above = float(np.median(compare_pixels(two, PIXELS, ids).js))
    two = replace(two, plan=InterventionPlan(("cut-0.5", "blend-0.65"), above=above * 1.001))
    one = replace(two, graph=open_one_graph(*sessions, preprocess, PIXELS))
    found, expected = (compare_pixels(both, PIXELS, ids) for both in (one, two))
    one.graph.close()
    assert 0 < (expected.divergence > 0).sum() < len(PIXELS)
    assert one.laps.seconds["both networks"] > 0
    for name in ("teacher_top1", "student_top1"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    for name in ("js", "gap", "divergence", "behaviour"):
        assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5), name


def test_a_graph_looks_at_images_as_they_are_and_at_nothing_else():
    with pytest.raises(AssertionError):
        Subjects(None, None, None, None, InterventionPlan(("cut-0.5",)), graph=OneGraph(Scripted(), None, None, None))
