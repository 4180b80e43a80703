"""kdaudit: audits image classifiers and image data sets that came from somebody else.

The rooms, from the ground up (docs/design/house.md draws them):

* ground: `errors`, `settings`, `digest`, `sample`, `signature`;
* arithmetic, arrays in and arrays out: `divergence`, `calibration`, `preprocess`;
* doors, one heavy library each: `admission`, `session`, `decoder`, `source`, `student`, `training`, `export`;
* stages, one public function each: `fitting`, `pool`, `distillation`, `comparison`, `flagging`, `verdict`,
  `quarantine`, `tuning`;
* roof: `audit` (the method on one page), `report`, `cli`.

Importing this package loads nothing heavy.
"""

from kdaudit.version import __version__

__all__ = ["__version__"]
