"""The door for models: from a path to a `Teacher` whose bytes are safe to hand to onnxruntime.

The one door to `onnx` for reading. Nothing of the model is run, and neither torch nor onnxruntime is loaded.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdaudit.admission.catalogue import FINDINGS, RULES, Finding, Severity
from kdaudit.admission.refusal import REFUSALS
from kdaudit.errors import ModelRefused
from kdaudit.signature import Signature

__all__ = ["FINDINGS", "REFUSALS", "RULES", "Finding", "Severity", "Teacher", "admit"]

OPEN_SIDE = 224
"""Side in pixels of the images that multiplications are counted for where a graph takes any."""

NOTE = "kdaudit."
"""How the metadata keys of kdaudit's own controls begin."""

MAX_NOTE, MAX_NOTES = 1000, 20

Opener = Callable[[Path, str, str], int]
"""Opens external data: (the model's folder, location, tensor) -> file descriptor; refuses what is not plain."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """An admitted model.

    Attributes:
        model: the canonical copy, one self-contained ONNX protobuf: the only thing that is ever run.
        digest: SHA-256 of the file as it was given, 64 hexadecimal digits.
        canonical_digest: SHA-256 of `model`; covers external data as well.
        signature: input and output.
        opsets: (domain, version) pairs, "ai.onnx" for the default domain.
        producer: name and version of the program that wrote the file; may be empty.
        nodes: number of nodes, subgraphs and functions included.
        parameters: number of elements of all constant tensors.
        multiplications: for one image, as far as the graph shows them; of `OPEN_SIDE` pixels a side where it takes any.
        findings: what the graph alone shows.
        external: locations of the external data files that were read into `model`.
        notes: (key, value) pairs of metadata that kdaudit writes into its own controls; claims of the sender.
        confinement: the level of confinement of the process that checked it; "none" in this process.
    """

    model: bytes = field(repr=False)
    digest: str
    canonical_digest: str
    signature: Signature
    opsets: tuple[tuple[str, int], ...]
    producer: str
    nodes: int
    parameters: int
    multiplications: int
    findings: tuple[Finding, ...]
    external: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    confinement: str = "none"

    def cost(self, height: int, width: int) -> int:
        """Multiplications for one image of a size, as far as the graph shows them."""
        open_sizes = self.signature.side is None
        return self.multiplications * height * width // OPEN_SIDE**2 if open_sizes else self.multiplications


def admit(path: Path) -> Teacher:
    """Read, check and copy a model.

    Args:
        path: an ONNX file; its external data, if any, lie in the same folder.

    Raises:
        ModelRefused: with a rule id of `REFUSALS` and one sentence that says what, where, and what to do.
    """
    from kdaudit.admission.external import open_external
    from kdaudit.admission.reading import read_file

    path = Path(path)
    return admit_bytes(read_file(path), path, open_external)


def admit_bytes(data: bytes, path: Path, opener: Opener) -> Teacher:
    """Check and copy a model whose file was read already.

    Args:
        data: the file's content.
        path: where it came from.
        opener: opens external data: (folder, location, tensor) -> file descriptor.

    Raises:
        ModelRefused: as `admit`.
    """
    from kdaudit.admission.arithmetic import multiplications
    from kdaudit.admission.canonical import canonical, serialise
    from kdaudit.admission.checking import check
    from kdaudit.admission.external import load_external, tensors
    from kdaudit.admission.findings import find
    from kdaudit.admission.interface import find_interface
    from kdaudit.admission.reading import parse
    from kdaudit.admission.tensors import elements

    model = parse(data, path)
    try:
        external = load_external(model, path.parent, opener)
        count = check(model)
        interface = find_interface(model)
        findings = find(model, interface.signature)
        work = multiplications(model, interface.signature, OPEN_SIDE)
    except ModelRefused as refused:
        text = str(refused).removesuffix(f" [{refused.rule}]")
        raise ModelRefused(refused.rule, f"{path.name}: {text}") from None
    copy = serialise(canonical(model, interface.extra_outputs))
    return Teacher(
        model=copy,
        digest=hashlib.sha256(data).hexdigest(),
        canonical_digest=hashlib.sha256(copy).hexdigest(),
        signature=interface.signature,
        opsets=tuple((entry.domain or "ai.onnx", entry.version) for entry in model.opset_import),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        nodes=count,
        parameters=sum(elements(tensor) for tensor in tensors(model.graph)),
        multiplications=work,
        findings=findings,
        external=external,
        notes=_notes(model.metadata_props),
    )


def _notes(metadata: Iterable[Any]) -> tuple[tuple[str, str], ...]:
    """What a control says about itself: keys that begin with `NOTE`, short values, a few."""
    own = ((entry.key, entry.value) for entry in metadata if entry.key.startswith(NOTE))
    return tuple((key, value) for key, value in own if len(key) + len(value) <= MAX_NOTE)[:MAX_NOTES]
