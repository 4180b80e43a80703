"""The attack suite from one command; every stage resumes, so it can run for hours in pieces.

python benchmarks/suite --profile cpu                       # all attacks, CIFAR-10 and GTSRB, 5 % clean images
python benchmarks/suite --data cifar10 --attacks badnets sig --rate 0.01 --clean 0.01
python benchmarks/suite --profile short                     # victims of 10 epochs, which take attacks up by half
python benchmarks/suite --forms plain vit --attacks badnets  # victims of other kinds
python benchmarks/suite --table                             # only what is finished
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from benchmarks import lab
from benchmarks.suite import measure, table, victims, worlds
from benchmarks.suite.forms import FORMS, USUAL
from benchmarks.suite.recipes import RECIPES


@dataclass(frozen=True)
class Profile:
    """What is measured where nothing else is asked for.

    Attributes:
        data: data sets.
        rate: poison rate where the recipe has none of its own.
        clean: clean pool, as a share of the delivery.
        epochs: of the victims' training, by data set; the suite's own short one where it is not named.
    """

    data: tuple[str, ...] = ("cifar10", "gtsrb")
    rate: float = 0.05
    clean: float = 0.05
    epochs: dict[str, int] = field(default_factory=dict)


PROFILES = {"cpu": Profile(epochs={"cifar10": 20, "gtsrb": 15}), "short": Profile()}


def main() -> int:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks/suite", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="data sets, rates, length of training")
    parser.add_argument("--data", nargs="+", choices=tuple(victims.EPOCHS), help="instead of the profile's")
    parser.add_argument("--attacks", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--rate", type=float, help="poison rate where the recipe has none of its own")
    parser.add_argument("--clean", type=float, help="clean pool, as a share of the delivery")
    parser.add_argument("--epochs", type=int, help="of the victims' training, instead of the profile's")
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=[USUAL], help="of the victims")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--backbone", type=Path, help="a network to trust (ONNX), for the controls to stand on")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--no-repair", action="store_true")
    parser.add_argument("--again", action="store_true", help="judge anew: the detector has changed, the controls not")
    parser.add_argument("--table", action="store_true", help="run nothing: print what is finished")
    parser.add_argument("--brief", action="store_true", help="print the README's table")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/suite_*.md")
    options = parser.parse_args()
    profile = PROFILES[options.profile]
    data, rate, clean = options.data or profile.data, options.rate or profile.rate, options.clean or profile.clean
    epochs = {name: options.epochs or profile.epochs.get(name) for name in data}
    torch.set_num_threads(1)  # the scan has processes of its own; two crowds of threads crawl
    others = [one for one in data if one not in profile.data]  # these have a table of their own
    name = _name(options, rate, clean, others)
    rows = _saved(name)
    for seed, data_set, attack, form in product(options.seeds, data, options.attacks, options.forms):
        case = worlds.case(data_set, attack, rate, seed, epochs[data_set], form)
        kept = case.folder / f"row-{measure.variant(clean, options.backbone)}.json"
        if not options.table:
            print(f"{data_set} {attack} seed {seed}", file=sys.stderr, flush=True)
            row = measure.measure(
                case,
                clean,
                with_peers=not options.no_peers,
                with_repair=not options.no_repair,
                again=options.again,
                backbone=options.backbone,
            )
            kept.write_text(json.dumps(row, indent=1))
        if kept.exists():
            row = json.loads(kept.read_text())
            rows[_key(row)] = row
    found = [rows[key] for key in sorted(rows)]
    what = "Attack suite" if options.forms == [USUAL] else "Victims of other kinds"
    title = f"{what}, poison {100 * rate:g} %, clean pool {100 * clean:g} %"
    title += f", controls on {options.backbone.name}" if options.backbone else ""
    text = table.render(found, title, epochs, options.forms)
    print(table.brief(found) if options.brief else text)
    if options.save:
        lab.write_result(f"{name}.md", text)
        (lab.RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _name(options: argparse.Namespace, rate: float, clean: float, others: list[str]) -> str:
    """What the files of results are called.

    `others`: data sets that are none of the profile's; these, or all that were named with another profile than the
    usual one, have tables of their own.
    """
    kinds = [options.profile] if options.profile != "cpu" else []
    kinds += (options.data or []) if kinds else others
    kinds += ["forms"] if options.forms != [USUAL] else []
    longer = f"_epochs{options.epochs}" if options.epochs else ""
    longer += "_backbone" if options.backbone else ""
    return "_".join(["suite", *kinds, f"poison{100 * rate:g}", f"clean{100 * clean:g}"]) + longer


def _key(row: table.Row) -> tuple[int, ...]:
    """What a row is a row of, in the table's order."""
    known = {"data": victims.EPOCHS, "form": FORMS, "attack": RECIPES}
    return *(list(names).index(row[what]) for what, names in known.items()), row["seed"]


def _saved(name: str) -> dict[tuple[int, ...], table.Row]:
    """Rows that were saved, by whatever machine: what is measured here takes their places."""
    file = lab.RESULTS / f"{name}.json"
    return {_key(row): row for row in json.loads(file.read_text())} if file.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
