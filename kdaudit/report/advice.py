"""What to do next, in words: the same in the terminal, on the page and in the summary."""

from kdaudit.report.document import Document


def next_steps(document: Document) -> list[str]:
    """Sentences, the most urgent first."""
    if document.verdict == "FAILED":
        return _failed(document)
    if document.verdict == "INCONCLUSIVE":
        return _inconclusive(document)
    steps = []
    if document.judgement.flagged.hits:
        steps.append("look at the flagged images: quarantine.csv lists them, kept.csv is the delivery without them")
    rate = document.judgement.visible_rate
    if 0.01 < rate < 1:
        steps.append(f"poison rates below {rate:.2%} do not show by counting: more clean images would lower that")
    steps.append("a passed scan speaks of these images only: a trigger that is not in the delivery was not looked for")
    return steps


def _failed(document: Document) -> list[str]:
    steps = ["do not use the model as it is; look at the groups of candidates in report.html first"]
    if document.quarantined:
        steps.append("train on kept.csv, and show quarantine.csv to whoever delivered the images")
    if document.repair:
        steps.append("use repaired.onnx instead: same input, same output; test it on data of your own first")
    if document.gate.result == "passed":
        steps.append("the gate passed because of the suppressions above: check that they are still meant")
    return steps


def _inconclusive(document: Document) -> list[str]:
    steps = []
    c, k = document.coverage, document.control
    if unknown := c.unreadable + c.skipped - c.aside:
        steps.append(f"{unknown:,} images were not scanned: quarantine.csv says why, and they count as unknown")
    if k.fidelity.of and k.fidelity.low < 0.9:
        steps.append(
            f"give more clean images of the same kind: the control was distilled on {k.distillation_images:,} and "
            f"follows the model on {k.fidelity.hits / k.fidelity.of:.1%}"
            + ("" if k.backbone else "; of photographs it knows more on a network that you trust (--backbone)")
        )
    if doubtful := document.judgement.doubtful:
        steps.append(f"look at the {doubtful:,} rows of kept.csv that are marked doubtful, and train without them")
    steps.append("an inconclusive scan is not a passed one: mend the cause above and scan again")
    return steps
