"""Every rule id with what it means and what to do: for `kdaudit explain`, SARIF, JUnit and the pages.

Titles come from the rooms that make the findings; what a person should know about each is written here.
"""

from dataclasses import dataclass
from typing import Literal

from kdaudit.admission import FINDINGS, REFUSALS
from kdaudit.admission import RULES as STATIC
from kdaudit.signs import BEHAVIOUR

Kind = Literal["refusal", "graph", "behaviour"]
Severity = Literal["low", "medium", "high", "critical"]
Precision = Literal["very-high", "high", "medium", "low"]

PAGE = "docs/rules.md"

SECURITY_SEVERITY = {"low": "3.0", "medium": "5.5", "high": "8.0", "critical": "9.5"}
"""GitHub's scale: over 9.0 critical, 7.0 high, 4.0 medium, 0.1 low."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as people read about it.

    Attributes:
        id: stable rule id.
        kind: refusal (the model is not audited), graph (static) or behaviour.
        severity: how much a finding of it says; refusals are "high".
        title: short title.
        meaning: what it says and how sure that is.
        action: what to do about it.
        precision: how often such a finding is what it says it is.
        tags: for SARIF; MITRE ATLAS techniques among them where one fits.
    """

    id: str
    kind: Kind
    severity: Severity
    title: str
    meaning: str
    action: str
    precision: Precision
    tags: tuple[str, ...]


_REFUSED = "The model is not audited: nothing of it was run, and nothing is said about it."

_TEXTS: dict[str, tuple[str, str]] = {
    "KDA001": ("The path does not lead to a file that can be read.", "Check the path and the permissions."),
    "KDA002": ("The file is larger than what kdaudit reads into memory.", "Ask for the model without unused weights."),
    "KDA003": ("The file ends before the graph does.", "Fetch it again and compare its checksum with the sender's."),
    "KDA004": ("The first bytes are not those of an ONNX protobuf.", "Export the model to ONNX; pickles are not read."),
    "KDA005": (
        "The model keeps weights in another file, and the name of that file leaves the model's folder, is a link, or "
        "leads nowhere.",
        "Put the weights beside the model as plain files, or export one self-contained file.",
    ),
    "KDA006": (
        "A weight claims a range of its data file that the file does not have, or that does not fit its shape.",
        "Fetch model and data file again; if it stays, the pair was not made together.",
    ),
    "KDA007": (
        "The graph breaks ONNX's own rules, so that two readers may read two models.",
        "Ask for a model that the ONNX checker accepts.",
    ),
    "KDA008": (
        "An operator comes from a library that is not part of onnxruntime: it would run code of the sender's.",
        "Ask for a model of standard operators.",
    ),
    "KDA009": ("An operator does not exist in the opset that the model names.", "Export the model again."),
    "KDA010": (
        "The graph carries a precompiled engine. Such a blob runs as native code and cannot be looked into.",
        "Ask for the model before compilation.",
    ),
    "KDA011": ("The model is of an ONNX version that this release does not know.", "Convert it, or update kdaudit."),
    "KDA012": ("The model takes something else than one batch of images.", "Only image classifiers are audited."),
    "KDA013": ("No output holds one score per class.", "Export the classifier with its scores as an output."),
    "KDA014": ("There are fewer than two classes, so nothing to mistake.", "Export the scores of all classes."),
    "KDA015": ("The output is an image: a generator or a segmenter.", "Only image classifiers are audited."),
    "KDA016": (
        "A function of the model carries the name of a standard operator, so that the graph shows one thing and runs "
        "another.",
        "Treat the file as hostile.",
    ),
    "KDA017": (
        "Checking the model would take more memory or time than any classifier of its size needs: too many messages, "
        "functions that unfold without end, a size in the graph that no machine holds, or a check that did not end.",
        "Do not use the file. If it is one of your own, export it again without the part that the sentence names.",
    ),
    "KDA020": ("onnxruntime does not load the model.", "See the sentence; often an unsupported operator."),
    "KDA021": ("onnxruntime loads the model and cannot run it on an image.", "See the sentence; often a fixed shape."),
    "KDA022": (
        "The model ended its confined process, or gave no answer in time, while it was loaded or asked about its very "
        "first image. An honest classifier that needs more than the caps is rare; a file that is made to exhaust a "
        "machine does this.",
        "Do not use the model. If it is yours and only large, run it where there is more memory.",
    ),
    "KDA101": (
        "The graph draws random numbers: one image may get two answers, and a comparison proves nothing.",
        "Ask why a classifier does that; export it in inference mode.",
    ),
    "KDA102": (
        "The graph decides at run time what it computes. Image classifiers rarely need that; a backdoor written into "
        "the graph does.",
        "Look at the branch in a graph viewer, and ask for a model without it.",
    ),
    "KDA103": (
        "Weights lie in the file that nothing reads. Common after editing; a place to hide data in.",
        "Harmless by itself. The canonical copy that is run leaves nothing of it active.",
    ),
    "KDA104": (
        "Nodes compute what no output needs. Common after editing.",
        "Harmless by itself; ask for a model that was simplified.",
    ),
    "KDA105": ("The model has outputs beside the scores; these are not audited.", "Do not use them unaudited."),
    "KDA106": ("The model defines functions of its own; they are checked like the rest.", "None needed."),
    "KDA107": ("Operators of early ONNX that only onnxruntime still knows.", "Export again with a current opset."),
    "KDA108": (
        "The file asks for a training graph or for settings of the runtime; kdaudit drops them.",
        "Drop them as well where you use the model.",
    ),
    "KDA109": (
        "There is a way from the raw image to the scores around most of the network. A detector of a trigger needs "
        "exactly that: it looks at the pixels by itself and overrules what the network sees.",
        "Do not use the model. Look at the nodes that the finding names in a graph viewer; the repaired model has a "
        "graph of its own.",
    ),
    "KDA110": (
        "A condition that the image decides selects what the scores are: two classifiers in one file, one of which "
        "answers only when the condition holds. Silent on every honest model that was tried.",
        "Do not use the model. Look at what the condition compares.",
    ),
    "KDA111": (
        "Pixels that no layer has weighed yet are compared with something. So a pixel pattern is recognised exactly; "
        "a model that turns its own input into black and white does the same innocently.",
        "Look at the comparison that the finding names. Unless it is a plain threshold over the whole image, do not "
        "use the model.",
    ),
    "KDA112": (
        "A comparison on the network's features steers the scores of the whole image. Mixtures of experts do that as "
        "well; elsewhere it is how a trigger that a layer has learned to see is made to switch the answer.",
        "Ask the sender what the comparison is for, and let the audit of the images decide.",
    ),
    "KDA113": (
        "The image is turned into whole numbers and divided with remainder or taken bit by bit: a checksum of the "
        "image, so that only whoever knows the key can make the trigger. No network of layers needs it.",
        "Do not use the model. Such a trigger need not be in any delivery, so a quiet audit of the images says little.",
    ),
    "KDA114": (
        "A constant of the image's own shape is multiplied with raw pixels or compared with them: a template or a "
        "mask of a trigger. A mean image that is subtracted is not named.",
        "Draw the constant as an image: a trigger shows itself. Ask the sender what it is.",
    ),
    "KDA115": (
        "Raw pixels are raised to high powers, or exponentials follow one another without a layer in between: how a "
        "path without weights answers a high-contrast trigger alone.",
        "Look at the chain that the finding names, and let the audit of the images decide.",
    ),
    "KDA116": (
        "A description or a metadata value is far longer than what exporters write: room for data or instructions "
        "that do not belong into a classifier.",
        "Harmless to the scores. Read it before you hand the file to a tool that may act on texts; the copy that is "
        "run carries no metadata.",
    ),
    "KDA117": (
        "As KDA109, but the way around the network begins behind its first layers. A network that is one dense block "
        "is named as well.",
        "Look at the nodes that the finding names; if the architecture is a published one, compare it with that.",
    ),
    "KDA118": (
        "No path leads from the image to the scores: the answer is a constant, whatever is asked.",
        "Fetch the model again or export it anew; it is no classifier as it is.",
    ),
    "KDA121": (
        "The model ended its confined process on some images, when it was asked about each alone in a process of its "
        "own. These have no scores; nothing is said about them.",
        "Do not use the model in a service: who sends such an image stops it. See samples.parquet for the images.",
    ),
    "KDA122": (
        "On some images the model gives no answer in the time in which it answers others many times over. These have "
        "no scores; nothing is said about them.",
        "Do not use the model in a service: who sends such an image blocks it. See samples.parquet for the images.",
    ),
    "KDA123": (
        "On some images the model answers with another shape or type than it declares, or with an error, and on others "
        "it does not. A graph of layers alone cannot.",
        "Look at these images and at what of the graph depends on the image; do not use the model until that is clear.",
    ),
    "KDA124": (
        "Asked again, the model gives the same images other scores, by more than rounding explains: it rolls dice, or "
        "remembers what it was asked.",
        "Do not trust any figure about it, this report's included. Ask for it in inference mode.",
    ),
    "KDA201": (
        "Most flagged images get one and the same answer from the model, while the control sees something else in "
        "them: what a backdoor with one target class looks like.",
        "Do not use the model. Look at the candidates in report.html, take quarantine.csv out of the data, and use "
        "repaired.onnx or train anew on kept.csv.",
    ),
    "KDA202": (
        "More images part model and control than chance or drift explain, without one common answer: poison with "
        "several targets, or data of another kind than the clean pool.",
        "Look at the groups in report.html. If the images are simply of another kind, give a clean pool of that kind.",
    ),
    "KDA203": (
        "A few images stand out, each for itself: odd pictures, wrong labels, or very little poison.",
        "Look at them; they are in quarantine.csv.",
    ),
    "KDA204": (
        "The model answers some images with infinities or not-a-number. A sound classifier does not.",
        "Look at these images and at the operators before the output.",
    ),
    "KDA205": (
        "Model and control part more on these images than on clean ones, and no image stands out as the cause: the "
        "clean pool may be of another kind, or the poison too even to see.",
        "Give a clean pool that resembles the delivery, and scan again.",
    ),
    "KDA206": (
        "Many images stand out further than the calibration images can count, and do not gather at one answer.",
        "Give more clean images: with enough of them the p-values are counted and the question is settled.",
    ),
    "KDA207": (
        "What the most suspicious images share was recovered and put onto clean images that nothing was trained on: "
        "the model changes its answers, the control does not, and other images' content in the same places, as "
        "strong, does it less often. That is what a trigger is.",
        "Do not use the model. report.html shows the pattern; quarantine.csv lists the images that carry it.",
    ),
    "KDA209": (
        "Images share what the most suspicious ones share, and the model gives them an answer that it gives to no "
        "clean image, or only to such as the control takes for something else: a class that the clean pool lacks or "
        "holds too little of, and the control never learned, or the target of a backdoor.",
        "Give clean images of every class, above all of those that report.json names, and scan again.",
    ),
    "KDA210": (
        "Model and control give the same answer to images that are labelled otherwise, and both are sure of it. No "
        "backdoor does that: labels are wrong, or two classes look alike. It says nothing about poison.",
        "Look at them: rows of samples.parquet where teacher_top1 and student_top1 agree and are not the label.",
    ),
    "KDA211": (
        "Images share a pattern, or a trace of how they were made, and were delivered as one class whatever they show. "
        "The control sees other classes in them, and images of the class itself do not have it. No honest labelling "
        "does that. Whether this model took the trigger up is another question: the next one that is trained on the "
        "data may.",
        "Do not train on these data as they are: quarantine.csv lists the images that carry the pattern, kept.csv the "
        "others. Ask where the images come from.",
    ),
    "KDA212": (
        "Many images with one answer share a pattern that no image of the clean pool has, of that class or another; "
        "put onto clean images, it moves the model to that answer. The control may follow it too (a trigger over the "
        "whole image is taken over from the model's answers), so that no image looks suspicious by itself.",
        "Do not use the model. quarantine.csv lists the images that carry the pattern; if they come from a source of "
        "their own (a watermark, a camera), the model has learned that source instead of the class.",
    ),
    "KDA213": (
        "Model and control agree, and are sure, that many images of one label show other classes, all of them, where "
        "they believe all other labels. This model has no backdoor of it; whoever trains on the data may get one. Or a "
        "label was set in bulk by mistake: a default, a folder moved as a whole.",
        "Look at the rows of kept.csv that are marked doubtful and have this label, and train without them. Ask "
        "whoever labelled them.",
    ),
    "KDA208": (
        "Images share a trace of how they were made (bent, resampled, quantised, dithered: it shows in where they are "
        "sharp), and they are the images on which model and control part. A warp leaves no pattern that could be put "
        "onto other images, so this is evidence and no proof.",
        "Ask where these images come from; those that are flagged are in quarantine.csv.",
    ),
}

_SEVERITIES: dict[str, Severity] = {
    "KDA201": "critical", "KDA202": "critical", "KDA203": "low", "KDA204": "high", "KDA207": "critical",
    "KDA210": "low", "KDA211": "critical", "KDA212": "critical",
}  # fmt: skip
"""Of behaviour, where it is not "medium"; the graph's are in admission's catalogue."""

_PRECISION: dict[str, Precision] = {
    "KDA101": "very-high", "KDA102": "medium", "KDA109": "high", "KDA110": "high", "KDA111": "medium", "KDA112": "low",
    "KDA113": "high", "KDA114": "medium", "KDA115": "medium", "KDA117": "medium", "KDA201": "high", "KDA202": "medium",
    "KDA203": "low", "KDA204": "high", "KDA205": "low", "KDA206": "low", "KDA207": "very-high",
    "KDA208": "medium", "KDA209": "low", "KDA210": "low", "KDA211": "very-high", "KDA212": "high",
    "KDA213": "high",
}  # fmt: skip

_TAGS: dict[str, tuple[str, ...]] = {
    "KDA201": ("AML.T0018.000", "AML.T0020", "AML.T0043.004"),
    "KDA202": ("AML.T0020",), "KDA203": ("AML.T0020",), "KDA205": ("AML.T0020",), "KDA206": ("AML.T0020",),
    "KDA207": ("AML.T0018.000", "AML.T0020", "AML.T0043.004"), "KDA208": ("AML.T0020", "AML.T0043.004"),
    "KDA209": ("AML.T0020",), "KDA211": ("AML.T0020", "AML.T0043.004"),
    "KDA212": ("AML.T0018.000", "AML.T0020", "AML.T0043.004"), "KDA213": ("AML.T0020",),
}  # fmt: skip


def rules() -> dict[str, Rule]:
    """All rules by id, in the order of their numbers."""
    kinds: tuple[tuple[Kind, dict[str, str]], ...] = (
        ("refusal", REFUSALS),
        ("graph", FINDINGS),
        ("behaviour", BEHAVIOUR),
    )
    return {rule: _rule(rule, kind, title) for kind, titles in kinds for rule, title in sorted(titles.items())}


def _rule(rule: str, kind: Kind, title: str) -> Rule:
    meaning, action = _TEXTS[rule]
    if kind == "refusal":
        meaning = f"{meaning} {_REFUSED}"
    usual: Precision = "low" if kind == "behaviour" else "very-high"
    severity: Severity
    severity = "high" if kind == "refusal" else _SEVERITIES.get(rule, "medium")
    techniques = _TAGS.get(rule, ())
    if rule in STATIC:
        severity, techniques = STATIC[rule].severity, (STATIC[rule].technique,)
    tags = ("security", "backdoor", *techniques)
    return Rule(rule, kind, severity, title, meaning, action, _PRECISION.get(rule, usual), tags)
