"""kdaudit: audits image classifiers and image data sets that came from somebody else.

The rooms, from the ground up (docs/design/house.md draws them):

* ground: `errors`, `settings`, `digest`, `sample`, `signature`;
* arithmetic, arrays in and arrays out: `divergence`, `calibration`, `preprocess`;
* doors, one heavy library each: `admission`, `session`, `decoder`, `source`, `student`, `training`, `export`;
* stages, one public function each: `fitting`, `pool`, `distillation`, `comparison`, `flagging`, `verdict`,
  `quarantine`, `tuning`;
* roof: `audit` (the method on one page), `report`, `cli`.

Importing this package loads nothing heavy, and keeps onnxruntime from telling its makers about it.
"""

import os

from kdaudit.version import __version__

# From 1.29 on, onnxruntime's own wheels send what they run (names and hashes of models, timings) to a collector on the
# internet, and leave a device's id on the disk. They look here when they are loaded, whoever loads them; releases
# have two names for it. A worker imports this package before it loads the library, too.
for _name in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
    os.environ[_name] = "1"

__all__ = ["__version__"]
