"""Why a model is not admitted: the table of rule ids, and the way a refusal is raised."""

from typing import NoReturn

from kdaudit.errors import ModelRefused

REFUSALS: dict[str, str] = {
    "KDA001": "the model file cannot be read",
    "KDA002": "the model is larger than kdaudit takes",
    "KDA003": "the model file is empty or truncated",
    "KDA004": "not an ONNX file",
    "KDA005": "external data: the file cannot be trusted or is missing",
    "KDA006": "external data: the range does not fit the file or the tensor",
    "KDA007": "the graph is malformed",
    "KDA008": "an operator comes from a domain that is not allowed",
    "KDA009": "an operator is unknown in its domain and opset",
    "KDA010": "the graph carries a precompiled binary",
    "KDA011": "the opset or the IR version is not supported",
    "KDA012": "the inputs are not one image",
    "KDA013": "not a classifier: no output holds one score per class",
    "KDA014": "fewer than two classes",
    "KDA015": "not a classifier: the output is an image",
    "KDA016": "a model-local function hides an operator",
    "KDA017": "the model asks for more than kdaudit spends on a check",
    "KDA020": "onnxruntime cannot load the model",
    "KDA021": "onnxruntime cannot run the model",
    "KDA022": "the model ends, blocks or exhausts its confined process",
}
"""Stable rule ids and short titles. An id is never given to another reason."""


def refuse(rule: str, message: str) -> NoReturn:
    """Raise `ModelRefused` for a rule of the table.

    Args:
        rule: a key of `REFUSALS`.
        message: one sentence without the final stop: what, where, what to do.

    Raises:
        ModelRefused: always.
    """
    assert rule in REFUSALS, rule
    raise ModelRefused(rule, message)
