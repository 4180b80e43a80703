"""A report with something in every section, for tests that need no scan."""

from typing import Any

from kdaudit.gate import candidates_section, fingerprint
from kdaudit.report.candidates import rate_of
from kdaudit.report.document import Document
from kdaudit.report.sections import Rate


def rate(hits: int, of: int) -> Rate:
    return rate_of(hits, of)


def image_set(location: str) -> dict[str, Any]:
    return {
        "location": location, "kind": "folder", "records": 1100, "read": 1080, "unreadable": 15, "skipped": 5,
        "duplicates": 3, "classes": ["cat", "dog"],
    }  # fmt: skip


def repair() -> dict[str, Any]:
    return {
        "file": "run/repaired.onnx", "tuned": True, "images": 900, "steps": 300, "seconds": 12.5, "parity": 1e-6,
        "accuracy_before": rate(80, 100), "accuracy": rate(90, 100), "still_suspicious": rate(2, 40),
    }  # fmt: skip


def document(**changes: Any) -> Document:
    """A report of a failed audit with something in every section."""
    return Document(**whole(**changes))


def whole(**changes: Any) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "verdict": "FAILED",
        "why": ["40 of 41 flagged images get the answer 1 (dog)"],
        "exit_code": 1,
        "findings": [
            {
                "rule": "KDA201", "severity": "critical", "message": "40 of 41 flagged images get the answer 1 (dog)",
                "subject": "answer 1", "fingerprint": fingerprint("KDA201", "bb", "answer 1"),
            },
            {
                "rule": "KDA103", "severity": "low", "message": "2 weights that nothing reads",
                "fingerprint": fingerprint("KDA103", "bb", ""),
            },
        ],
        "coverage": {
            "scanned": 12_345, "unreadable": 678, "skipped": 90, "share": 0.9414,
            "reasons": [
                {"status": "unreadable", "reason": "truncated JPEG", "images": 678},
                {"status": "skipped", "reason": "not an image extension", "images": 90},
            ],
            "examples": [
                {"path": "cat/cut.jpg", "status": "unreadable", "reason": "truncated JPEG"},
                {"path": "notes.txt", "status": "skipped", "reason": "not an image extension"},
            ],
        },
        "model": {
            "path": "vendor.onnx", "digest": "aa", "canonical_digest": "bb", "producer": "torch 2", "nodes": 12,
            "parameters": 3456, "opsets": {"ai.onnx": 17},
            "signature": {"input_name": "image", "batch": None, "classes": 2},
        },
        "suspect": image_set("delivery"),
        "clean": image_set("delivery/clean"),
        "preprocessing": {
            "recipe": "32x32x3-stretch-RGB-NCHW-unit", "how": "labels", "sure": True, "margin": 0.25, "error": 0.01,
            "runner_up": "32x32x3-stretch-BGR-NCHW-unit", "accuracy": 0.93, "class_order": [0, 1],
            "class_basis": "identity", "note": "",
        },
        "control": {
            "made_by": "distil", "fidelity": rate(95, 100), "parity": 1e-6, "architecture": "residual", "steps": 1200,
            "seconds": 61.5, "losses": [1.5, 0.25], "distillation_images": 600, "calibration_images": 300,
            "clean_shared": 7, "clean_repeated": 1, "clean_unreadable": 2, "clean_unused": 0,
        },
        "judgement": {
            "rule": "divergence", "fdr": 0.05, "recipe": "js-blend-0.5-x2-seed0", "flagged": rate(41, 12_345),
            "extrapolated": 3, "doubtful": 6, "visible_rate": 0.133, "disagreement": 0.2, "disagreement_clean": 0.1,
            "excess": 0.001,
            "by_answer": [{"answer": 1, "name": "dog", "flagged": rate(40, 6000), "share_of_flags": 40 / 41}],
            "by_label": [{"label": 0, "name": "cat", "flagged": rate(41, 5000)}],
            "statement": "of the flagged images at most 5% are expected to be innocent",
        },
        "validity": [{"name": "exchangeability", "state": "holds", "p_value": 0.4, "statement": "no shift was seen"}],
        "clusters": [
            {
                "id": "C1", "kind": "poison", "target": 1, "target_name": "dog", "size": 40,
                "sees": [{"answer": 0, "name": "cat", "images": 40}], "pattern": "patch",
                "teacher_flips": rate(95, 100), "control_flips": rate(1, 100),
                "placebo_flips": rate(2, 100),
                "statement": "40 images that the model calls 1 (dog) and the control 0 (cat)",
                "examples": ["cat/0001.jpg", "cat/0002.jpg"], "fingerprint": "ab" * 32,
            },
            {
                "id": "C2", "kind": "doubtful", "target": 0, "target_name": "cat", "size": 1,
                "sees": [{"answer": 1, "name": "dog", "images": 1}], "statement": "1 image",
                "examples": ["dog/0007.jpg"], "fingerprint": "cd" * 32,
            },
        ],
        "candidates": candidates_section([f"{i:032x}" for i in range(41)]),
        "plots": {
            "score_name": "divergence, nats", "score_edges": [1e-5, 1e-3, 0.1, 0.7], "calibration": [100, 190, 10],
            "unflagged": [8000, 4300, 4], "flagged": [0, 1, 40], "threshold": 0.09, "p_values": [600] * 20,
        },
        "kept": 12_304,
        "quarantined": 809,
        "repair": repair(),
        "machine": {
            "device": "cpu", "teacher_provider": "cpu", "student_provider": "cpu", "decoder": "simplejpeg",
            "workers": 2, "versions": {"python": "3.11"},
        },
        "timings": {
            "survey": 0.5, "compare teacher and control": 12.345, "distil the control": 61.5, "judge": 0.1, "x": 0.01,
        },
        "pace": {
            "images": 12_345, "images_per_s": 1000.04, "wall": "teacher",
            "shares": {"teacher": 0.62, "control": 0.3, "decode": 0.076, "write": 0.004},
        },
        "recipe": {
            "kdaudit": "0.1", "data": "delivery", "clean": "delivery/clean", "control": None, "settings": {"seed": 0},
        },
    }  # fmt: skip
    return sections | changes
