"""The rows of a scan do not depend on how it was run: 1, 2 or 4 workers, any batch, one graph or two, resumed or not.

Real sessions, the suspect model in its confined worker as in a scan.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from onnx_builders import Patterns, classifier

from kdaudit import rows as row_store
from kdaudit.admission import admit
from kdaudit.compared import Comparison, concatenate
from kdaudit.comparison import Subjects, compare, usual_batch
from kdaudit.decoder import open_decoder
from kdaudit.interventions import InterventionPlan, Partners
from kdaudit.onegraph import open_one_graph
from kdaudit.opening import open_session
from kdaudit.preprocess import Preprocess
from kdaudit.rows import RowStore
from kdaudit.sample import Geometry, Record, Status
from kdaudit.settings import Settings

RECIPE = "8x8x3-stretch-RGB-NCHW-unit"
PLANS = {"cheap": InterventionPlan(()), "full": InterventionPlan(Settings().interventions)}
FORMS = ("cheap", "full", "one graph")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[dict[str, Subjects]]:
    folder = tmp_path_factory.mktemp("models")
    sessions = []
    for name, seed in (("teacher", 0), ("control", 3)):
        path = folder / f"{name}.onnx"
        path.write_bytes(classifier(Patterns.draw(seed=seed), RECIPE).SerializeToString())
        found = admit(path)
        sessions.append(open_session(found.model, found.signature, provider="cpu", confined=name == "teacher"))
    preprocess = Preprocess.parse(RECIPE)
    partners = Partners.of(Patterns.draw().copies(40, seed=5)[0], sessions[0], preprocess)
    found = {name: Subjects(*sessions, preprocess, partners, plan) for name, plan in PLANS.items()}
    graph = open_one_graph(*sessions, preprocess, Patterns.draw().copies(32, seed=6)[0])
    yield found | {"one graph": replace(found["cheap"], graph=graph)}
    graph.close()
    sessions[0].close()


def records(n: int = 203) -> list[Record]:
    images, labels = Patterns.draw().images(n, seed=8)
    found = [Record(f"p{i}.png", label, data) for i, (data, label) in enumerate(zip(images, labels, strict=True))]
    found[7] = Record("p7.png", 1, b"\x89PNG\r\n\x1a\n")
    found[50] = Record("p50.png", None, b"", Status.SKIPPED, "hidden")
    return found


def compared(subjects: Subjects, *, batch: int = 16, workers: int = 1) -> Comparison:
    return concatenate(list(compare(subjects, records(), open_decoder(), batch=batch, workers=workers)))


def assert_same(one: Comparison, other: Comparison, atol: float = 0.0) -> None:
    for name in Comparison.__dataclass_fields__:
        here, there = getattr(one, name), getattr(other, name)
        if isinstance(here, tuple):
            assert here == there, name
        elif here.dtype.kind == "f":
            assert np.allclose(here, there, rtol=0, atol=atol, equal_nan=True), name
        else:
            assert np.array_equal(here, there), name


@pytest.mark.parametrize("plan", FORMS)
@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_bit_of_a_row(both, plan, workers):
    alone = compared(both[plan])
    assert len(np.unique(alone.gap)) > 150  # rows that could be told apart
    assert len(np.unique(alone.teacher_top1)) > 3
    assert_same(compared(both[plan], workers=workers), alone)


@pytest.mark.parametrize("plan", FORMS)
@pytest.mark.parametrize("batch", [1, 64])
def test_the_batch_moves_a_row_by_rounding_only(both, plan, batch):
    # onnxruntime adds up a product of matrices in another order for another number of rows.
    assert_same(compared(both[plan], batch=batch), compared(both[plan]), atol=1e-4)


@pytest.mark.parametrize("form", ["full", "one graph"])
@pytest.mark.parametrize("stopped_after", [1, 5, 12])
def test_a_scan_that_was_stopped_and_resumed_has_the_same_table(both, tmp_path, monkeypatch, stopped_after, form):
    monkeypatch.setattr(row_store, "PART_ROWS", 32)

    def scan(store: RowStore, batches: int | None = None) -> None:
        left = records()[store.count :]
        for number, part in enumerate(compare(both[form], left, open_decoder(), batch=16, workers=2)):
            if number == batches:
                return  # killed here: what is pending is lost
            store.append(part)
        store.close()

    whole, resumed = RowStore(tmp_path / "whole", "r"), RowStore(tmp_path / "resumed", "r")
    scan(whole)
    scan(resumed, stopped_after)
    again = RowStore(tmp_path / "resumed", "r")
    assert again.count < 203
    scan(again)
    one, other = (list(store.tables()) for store in (whole, again))
    assert sum(map(len, one)) == sum(map(len, other)) == 203
    rows, resumed_rows = ([row for table in tables for row in table.to_pylist()] for tables in (one, other))
    for row, same in zip(rows, resumed_rows, strict=True):
        assert row["id"] == same["id"]
        assert repr(row) == repr(same)  # NaN is NaN


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_graph_gives_the_rows_of_two(both, workers):
    # The same arithmetic on the same answers; one graph hands its numbers out as float32.
    one, two = compared(both["one graph"], workers=workers), compared(both["cheap"], workers=workers)
    assert_same(one, two, atol=1e-5)
    assert not np.array_equal(one.gap, two.gap, equal_nan=True)  # it was really used


def test_the_cheap_pass_asks_each_network_once_and_agrees_with_the_full_one(both):
    cheap, full = compared(both["cheap"]), compared(both["full"])
    read = np.array([s == "read" for s in cheap.status])
    assert both["cheap"].plan.steps == ()
    for name in ("teacher_top1", "student_top1", "gap", "js", "teacher_confidence", "student_confidence"):
        assert np.array_equal(
            getattr(cheap, name), getattr(full, name), equal_nan=getattr(cheap, name).dtype.kind == "f"
        )
    assert np.array_equal(cheap.divergence[read], cheap.js[read])
    assert not np.array_equal(full.divergence[read], full.js[read])


@pytest.mark.parametrize(
    ("side", "provider", "images"),
    [
        (8, "cpu", 64),
        (32, "cpu", 64),
        (112, "cpu", 64),
        (224, "cpu", 16),
        (299, "cpu", 8),
        (1024, "cpu", 8),
        (224, "cuda", 64),
        (65, "cuda", 64),
        (64, "cuda", 256),
        (32, "tensorrt", 256),
    ],
)
def test_large_images_go_in_smaller_batches(side, provider, images):
    assert usual_batch(Geometry(side, side), provider) == images
