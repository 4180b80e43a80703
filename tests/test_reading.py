"""Candidates out of samples.parquet, and their plots, in pieces as at once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdaudit.report.candidates import Scored, plots_of
from kdaudit.report.reading import PER_ANSWER, read_candidates, read_scored
from kdaudit.stretches import STRETCH, stretches

CLEAN = np.random.default_rng(1).exponential(size=500)


def samples(path: Path, n: int, group: int, flagged: float = 0.02) -> dict[str, np.ndarray]:
    """A table as an audit writes it; its columns."""
    rng = np.random.default_rng(0)
    read = rng.random(n) > 0.05
    flag = read & (rng.random(n) < flagged)
    control = np.where(rng.random(n) < 0.9, 3, rng.integers(0, 6, n))
    table = pa.table(
        {
            "id": pa.array([f"{i:032x}:p{i}" for i in range(n)]),
            "path": pa.array([f"p{i}" for i in range(n)]),
            "label": pa.array(rng.integers(0, 6, n), pa.int32(), mask=rng.random(n) < 0.1),
            "status": pa.array(np.where(read, "read", "unreadable")),
            "teacher_top1": pa.array(rng.integers(0, 6, n), pa.int32(), mask=~read),
            "student_top1": pa.array(control, pa.int32(), mask=~read),
            "score": pa.array(rng.integers(0, 50, n).astype(float), mask=~read),
            "p_value": pa.array(rng.random(n), mask=~read),
            "flag": pa.array(flag),
            "reason": pa.array(np.where(read, "", "truncated")),
        }
    )
    pq.write_table(table, path, row_group_size=group)
    return {"read": read, "flag": flag, "control": control, "score": table["score"].fill_null(0).to_numpy()}


@pytest.mark.parametrize("group", [70, 10_000])
def test_candidates_and_their_stand_ins_are_the_same_in_any_row_groups(group, tmp_path):
    made = samples(tmp_path / "samples.parquet", 3000, group)
    found = read_candidates(tmp_path / "samples.parquet")
    rows = np.flatnonzero(made["flag"])
    expected = rows[np.lexsort((rows, -made["score"][rows]))]
    assert found.rows.tolist() == expected.tolist()
    assert found.control.tolist() == made["control"][expected].tolist()
    assert found.paths == tuple(f"p{i}" for i in expected)
    unread = int((~made["read"]).sum())
    assert (found.reasons[0].images, len(found.unread)) == (unread, 100)
    for answer in np.unique(found.control):
        here = np.flatnonzero(made["read"] & ~made["flag"] & (made["control"] == answer))
        spread = here[np.linspace(0, len(here) - 1, min(PER_ANSWER, len(here))).astype(int)]
        assert found.kept[found.kept_control == answer].tolist() == spread.tolist()
    assert len(found.kept) <= PER_ANSWER * 6


@pytest.mark.parametrize("group", [70, 10_000])
def test_plots_are_read_from_the_table(group, tmp_path):
    made = samples(tmp_path / "samples.parquet", 3000, group)
    read, flag, score, p_values = map(np.concatenate, zip(*read_scored(tmp_path / "samples.parquet"), strict=True))
    assert read.tolist() == made["read"].tolist()
    assert flag.tolist() == made["flag"].tolist()
    assert np.isnan(score).tolist() == np.isnan(p_values).tolist() == (~read).tolist()
    assert score[read].tolist() == made["score"][read].tolist()


def test_nothing_flagged_needs_no_stand_ins(tmp_path):
    samples(tmp_path / "samples.parquet", 500, 50, flagged=0)
    found = read_candidates(tmp_path / "samples.parquet")
    assert (len(found), len(found.kept), len(found.kept_control)) == (0, 0, 0)


@pytest.mark.parametrize(("n", "low"), [(STRETCH + 1000, 0.0), (STRETCH + 1000, -3.0), (50, 0.0)])
def test_plots_count_every_image_that_was_read(n, low):
    rng = np.random.default_rng(2)
    score = rng.exponential(size=n) + low
    score[::97], score[5] = np.nan, np.inf
    read = ~np.isnan(score)
    flag = read & (score > low + 4)
    p_values = np.where(read, rng.random(n), 1.0)
    plots = plots_of("s", lambda: (Scored(*(c[s] for c in (read, flag, score, p_values))) for s in stretches(n)), CLEAN)
    assert plots is not None
    edges = np.array(plots.score_edges)
    finite = np.concatenate([score[np.isfinite(score)], CLEAN])
    assert edges[-1] == pytest.approx(finite.max())
    assert edges[0] == pytest.approx(finite.min() if low < 0 else max(finite.min(), finite.max() * 1e-6))
    inside = np.clip(score, edges[0], edges[-1])
    assert plots.flagged == np.histogram(inside[flag], edges)[0].tolist()
    assert plots.unflagged == np.histogram(inside[read & ~flag], edges)[0].tolist()
    assert sum(plots.unflagged) + sum(plots.flagged) == sum(plots.p_values) == read.sum()
    assert plots.p_values == np.histogram(p_values[read], 20, (0, 1))[0].tolist()
    assert plots.threshold == (score[flag].min() if np.isfinite(score[flag].min()) else None)


def test_no_finite_score_no_plot():
    n = 3
    nothing = Scored(np.zeros(n, bool), np.zeros(n, bool), np.full(n, np.nan), np.full(n, np.nan))
    assert plots_of("s", lambda: [nothing], np.empty(0)) is None


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
def test_stretches_cover_all_rows_once(n):
    assert [row for span in stretches(n, 4) for row in range(n)[span]] == list(range(n))
