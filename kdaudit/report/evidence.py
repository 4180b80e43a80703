"""Collecting what the report shows of the images: the last stage of an audit that reads them."""

from functools import partial

import numpy as np

from kdaudit.clock import Clock
from kdaudit.compared import Comparison
from kdaudit.flagging import score_of
from kdaudit.judgement import Judged
from kdaudit.report.build import answer_names
from kdaudit.report.candidates import Evidence, cluster_sections, plots_of
from kdaudit.report.gallery import draw_gallery
from kdaudit.report.reading import read_candidates, read_scored
from kdaudit.rundir import RunDirectory
from kdaudit.settings import Settings
from kdaudit.workbench import Sets, Workbench


def collect(
    judged: Judged,
    calibration: Comparison,
    sets: Sets,
    bench: Workbench,
    settings: Settings,
    run: RunDirectory,
    clock: Clock,
) -> Evidence:
    """Group the candidates, draw them into gallery.json, and count for the plots."""
    assert sets.suspect is not None
    run.mark("draw the gallery")
    names = answer_names(bench, sets)
    found = read_candidates(run.file("samples.parquet"))
    clusters = cluster_sections(found, names, judged.carried.found if judged.carried else ())
    with clock.stage("draw the gallery") as advance:
        geometry = bench.preprocess.geometry
        gallery = draw_gallery(found, clusters, sets.suspect, bench.decoder, geometry, names, advance)
        gallery.write(run.path)
    score_name = {
        "divergence": "divergence, nats (0 where not mixed with clean images)",
        "score": "log-probability gap, nats",
        "argmax": "divergence, nats",
    }
    plots = plots_of(
        score_name[settings.rule],
        partial(read_scored, run.file("samples.parquet")),
        np.asarray(score_of(calibration, settings.rule), np.float64),
    )
    return Evidence(found, clusters, plots)
