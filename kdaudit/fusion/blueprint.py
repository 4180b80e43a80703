"""What an audit graph is made of, and what comes out of it."""

from dataclasses import dataclass

from kdaudit.divergence import BEHAVIOUR_FEATURES, BEHAVIOUR_LOGITS
from kdaudit.preprocess import Preprocess
from kdaudit.signature import InputType, OutputKind, Signature

COLUMNS = ("teacher_top1", "student_top1", "teacher_confidence", "student_confidence", "gap", "js", "finite")
"""The first columns of an audit graph's row; behind them stands the row of `kdaudit.divergence.behaviour`."""


class NotFused(Exception):
    """Two networks that do not go into one graph; the text says why in a few words. Nothing is wrong with either."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network's part of the audit graph.

    Attributes:
        input_name: name of its image input.
        output_name: the tensor that holds the class scores.
        output_kind: what the scores are.
        features: name of the tensor that the last linear layer reads; None where it is not wanted.
    """

    input_name: str
    output_name: str
    output_kind: OutputKind
    features: str | None = None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """Everything that shapes an audit graph beside the two networks.

    Attributes:
        teacher: the suspect model's part.
        control: the control's part.
        recipe: of the preprocessing, `Preprocess.recipe`.
        dtype: element type of the networks' input.
        ranks: dimensions of the networks' input.
        classes: K.
        width: D, numbers in a row of the teacher's features; 0 where they are not wanted.
        batch: images per run; None: any number.
        prefix: how the names of all that is not the teacher's begin; no name of the teacher's does.
    """

    teacher: Network
    control: Network
    recipe: str
    dtype: InputType
    ranks: int
    classes: int
    width: int
    batch: int | None
    prefix: str

    @property
    def preprocess(self) -> Preprocess:
        """From pixels to the networks' input."""
        return Preprocess.parse(self.recipe, self.dtype, self.ranks)

    @property
    def own(self) -> str:
        """How the names of the control's tensors begin, inside the graph."""
        return f"{self.prefix}control/"

    @property
    def pixels(self) -> str:
        """Name of the graph's input, uint8 [n, H, W, C]."""
        return f"{self.prefix}pixels"

    @property
    def rows(self) -> str:
        """Name of the graph's output, float32 [n, `Blueprint.length`]."""
        return f"{self.prefix}rows"

    @property
    def profile(self) -> str:
        """The one shape that is run where `batch` is fixed, as TensorRT takes it."""
        g = self.preprocess.geometry
        return f"{self.pixels}:{self.batch}x{g.height}x{g.width}x{g.channels}"

    @property
    def length(self) -> int:
        """Numbers in a row: `COLUMNS` and the behaviour."""
        features = min(self.width, BEHAVIOUR_FEATURES) + 1 if self.width else 0
        return len(COLUMNS) + 2 * min(self.classes, BEHAVIOUR_LOGITS) + 1 + features


@dataclass(frozen=True, slots=True)
class Fused:
    """A composed audit graph.

    Attributes:
        model: its bytes; they come from a process that has read a suspect model, and are run confined only.
        blueprint: what it was made from.
    """

    model: bytes
    blueprint: Blueprint


def draw(teacher: Signature, control: Signature, preprocess: Preprocess, width: int, given: bytes) -> Blueprint:
    """The blueprint for two networks.

    Args:
        teacher: the suspect model's signature.
        control: the control's.
        preprocess: from pixels to the input of both.
        width: numbers in a row of the teacher's features; 0: not wanted.
        given: the teacher's bytes, in which no name begins as ours do; they are searched and not parsed.
    """
    number = 0
    while (prefix := f"kdaudit{number}/").encode() in given:
        number += 1
    return Blueprint(
        Network(teacher.input_name, teacher.output_name, teacher.output_kind, teacher.features if width else None),
        Network(control.input_name, control.output_name, control.output_kind),
        preprocess.recipe,
        preprocess.dtype,
        preprocess.ranks,
        teacher.classes,
        width,
        teacher.batch,
        prefix,
    )
