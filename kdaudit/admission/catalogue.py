"""The static findings: id, severity, title, and the technique of MITRE ATLAS that each is a sign of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["low", "medium", "high", "critical"]


class Rule(NamedTuple):
    """A static rule.

    Attributes:
        severity: how much a finding says about a backdoor; honest models stay at "low".
        technique: id in MITRE ATLAS.
        title: what is found.
    """

    severity: Severity
    technique: str
    title: str


ARCHITECTURE = "AML.T0018.001"
"""Modify AI Model Architecture."""

SUPPLY_CHAIN = "AML.T0010"
"""AI Supply Chain Compromise."""

DENIAL = "AML.T0029"
"""Denial of AI Service."""

RULES: dict[str, Rule] = {
    "KDA101": Rule("high", ARCHITECTURE, "random operators"),
    "KDA102": Rule("medium", ARCHITECTURE, "control flow"),
    "KDA103": Rule("low", SUPPLY_CHAIN, "weights that nothing reads"),
    "KDA104": Rule("low", SUPPLY_CHAIN, "nodes whose result nothing reads"),
    "KDA105": Rule("low", SUPPLY_CHAIN, "several outputs"),
    "KDA106": Rule("low", SUPPLY_CHAIN, "model-local functions"),
    "KDA107": Rule("low", SUPPLY_CHAIN, "operators of early ONNX"),
    "KDA108": Rule("low", SUPPLY_CHAIN, "training graphs or settings in the file"),
    "KDA109": Rule("high", ARCHITECTURE, "a path from the raw image bypasses the trunk and rejoins near the scores"),
    "KDA110": Rule("high", ARCHITECTURE, "a condition on the image selects what the scores are"),
    "KDA111": Rule("high", ARCHITECTURE, "raw pixels are compared"),
    "KDA112": Rule("medium", ARCHITECTURE, "comparisons on the image's features steer the scores"),
    "KDA113": Rule("high", ARCHITECTURE, "whole-number or bit arithmetic on the image"),
    "KDA114": Rule("medium", ARCHITECTURE, "a constant of the image's shape is laid over the raw pixels"),
    "KDA115": Rule("medium", ARCHITECTURE, "exponentials of raw pixels, or chains of exponentials"),
    "KDA116": Rule("low", SUPPLY_CHAIN, "texts of unusual size in the file"),
    "KDA117": Rule("medium", ARCHITECTURE, "a path from the first layers bypasses the trunk"),
    "KDA118": Rule("medium", ARCHITECTURE, "the scores do not depend on the image"),
    "KDA121": Rule("high", DENIAL, "the model ends its process on some images"),
    "KDA122": Rule("high", DENIAL, "the model does not answer on some images"),
    "KDA123": Rule("high", ARCHITECTURE, "the model answers some images with what are no scores"),
    "KDA124": Rule("high", ARCHITECTURE, "the same image gets different answers"),
}
"""Rules by id: of the graph up to KDA118, then of what the model does to its confined process."""

FINDINGS: dict[str, str] = {rule: entry.title for rule, entry in RULES.items()}
"""Rule ids of static findings and short titles."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the graph that a reader should know.

    Attributes:
        rule: stable rule id; never reused for another reason.
        severity: how much it says about a backdoor; honest models stay at "low".
        message: one sentence.
        subject: what it is about, such as "answer 7"; empty where the rule has one subject only. Counts do not
            belong here: it names the same finding in another run.
    """

    rule: str
    severity: Severity
    message: str
    subject: str = ""


def found(rule: str, message: str) -> Finding:
    """A static finding with the severity of its rule."""
    return Finding(rule, RULES[rule].severity, message)


CONDUCT = {"died": "KDA121", "blocked": "KDA122", "confused": "KDA123", "differs": "KDA124"}
"""Rule by what a model did to its confined process."""


def conduct(incidents: Iterable[tuple[str, str]]) -> tuple[Finding, ...]:
    """Findings of a model's run, one for each way in which it misbehaved.

    Args:
        incidents: (a key of `CONDUCT`, what was seen), in the order of their happening.
    """
    by_rule: dict[str, list[str]] = {}
    for how, detail in incidents:
        by_rule.setdefault(CONDUCT[how], []).append(detail)
    texts = {
        "KDA121": "the model ended its confined process on {n} images",
        "KDA122": "the model did not answer in time on {n} images",
        "KDA123": "the model answered {n} images with what are no scores",
        "KDA124": "the model gave the same images other answers when asked again, {n} times",
    }
    return tuple(
        found(rule, f"{texts[rule].format(n=len(details))} ({details[0]}); their scores are missing in samples.parquet")
        if rule != "KDA124"
        else found(rule, texts[rule].format(n=len(details)))
        for rule, details in sorted(by_rule.items())
    )
