"""How much a model may ask of kdaudit before anything is run: caps, each looked at before memory is spent on it."""

MAX_MODEL_BYTES = 2_000_000_000
"""Graph and weights together. Protobuf itself ends at 2 GiB, and the canonical copy is one protobuf."""

MAX_MESSAGES = 2_000_000
"""Messages of the file, of any kind. Parsed, each takes some hundred bytes; honest classifiers have thousands."""

MAX_DEPTH = 60
"""Messages inside messages. A subgraph in a subgraph takes four; protobuf itself ends at 100."""

MAX_NODES = 100_000
"""Nodes, subgraphs and expanded functions included. The largest honest classifier seen had 2,500."""

MAX_NAME = 4096
"""Characters of a name; file names end there, too."""

MAX_ELEMENTS = 1 << 40
"""Elements of a tensor. No honest tensor is near it, and products below it cannot overflow anywhere."""

MAX_DIMENSIONS = 64
"""Dimensions of a tensor."""

MAX_CLASSES = 1_000_000
"""Scores of a classifier."""

MAX_BATCH = 4096
"""Images of a fixed batch."""

MAX_INPUT = 1 << 28
"""Numbers in a whole fixed batch: a gigabyte as float32, which the caller has to fill."""

MAX_PIXELS = 1 << 26
"""Height times width of a classifier's input: 8192 x 8192."""
