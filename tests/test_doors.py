"""Each heavy library has its doors, and what needs none of them loads none of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from deliveries import ROOT, environment
from onnx_builders import Patterns, classifier

HEAVY = frozenset(
    {"torch", "torchvision", "onnxruntime", "onnx", "onnxscript", "nvidia", "pyarrow", "scipy", "sklearn", "pydantic"}
)

COMMANDS = (
    "scan", "inspect", "distill", "compare", "repair", "report", "gate", "diff", "explain", "schema", "demo", "doctor",
    "completion",
)  # fmt: skip

NETWORKS = {
    "student.py", "training.py", "export.py", "revival.py", "distillation.py", "showings.py", "tuning.py", "views.py",
    "kernels/",
}  # fmt: skip

DOORS: dict[str, set[str]] = {
    "onnxruntime": {"runtime.py"},
    "onnx": {"admission/", "fusion/", "grafting.py", "export.py", "revival.py"},
    "onnxscript": set(),  # torch.onnx loads it itself
    "google": {"admission/"},  # protobuf, for its DecodeError
    "nvidia": {"decoder/dali.py"},
    "simplejpeg": {"decoder/"},
    "PIL": {"decoder/", "demo.py", "doctor.py", "report/pictures.py"},
    "pyarrow": {"source/parquet.py", "rows.py", "samples.py", "quarantine.py", "report/reading.py"},
    "torch": NETWORKS | {"decoder/resize.py", "machine.py", "demo.py", "doctor.py"},
    "torchvision": {"student.py"},
    "triton": {"kernels/"},
    "sklearn": {"demo.py"},
    "scipy": {
        "calibration.py",
        "tails.py",
        "discriminant.py",
        "families.py",
        "interventions.py",
        "multiplicity.py",
        "validity.py",
        "fitting/alignment.py",
    },
    "pydantic": {"settings.py", "report/document.py", "report/sections.py", "admission/"},
    "pydantic_settings": {"settings.py"},
    "jinja2": {"report/page.py"},
    "markupsafe": {"report/page.py"},
    "click": {"cli/"},
    "rich": {"cli/console.py"},
}
"""Library -> the files that may import it; a name with a slash at its end stands for all that lies in it."""

ONLY_FOR_TYPES = {"quarantine.py"}

LOADED = """
import sys
from kdaudit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("exit", end.code)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded_by(program: str, *arguments: object) -> tuple[str, set[str]]:
    """What a program of Python printed, and the libraries that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        cwd=ROOT,
    )
    output, _, modules = done.stdout.rpartition("loaded")
    return output, set(modules.split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments):
    output, modules = loaded_by(LOADED, *arguments)
    assert output.endswith("exit 0\n")
    assert "kdaudit" in modules
    assert not modules & HEAVY


def test_the_commands_tried_here_are_all_that_there_are():
    from kdaudit.cli.main import cli

    assert set(cli.commands) == set(COMMANDS)


def test_importing_the_package_loads_nothing_heavy():
    _, modules = loaded_by('import sys, kdaudit; print("loaded", *{name.partition(".")[0] for name in sys.modules})')
    assert "kdaudit" in modules
    assert not modules & (HEAVY | {"numpy", "click"})


def test_inspecting_a_model_loads_neither_torch_nor_onnxruntime(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(classifier(Patterns.draw(), "8x8x3-stretch-RGB-NCHW-unit").SerializeToString())
    inspects_without_running(model)


@pytest.mark.parametrize("name", ["dogun_gtsrb_cnn.onnx", "winml_squeezenet_fp16.onnx", "ext_mnist_web/mnist.onnx"])
def test_inspecting_a_real_model_loads_neither_torch_nor_onnxruntime(name, shared):
    inspects_without_running(shared / "models/real" / name)


def inspects_without_running(model: Path) -> None:
    output, modules = loaded_by(LOADED, "inspect", model)
    assert "admitted" in output
    assert output.endswith("exit 0\n")
    assert not modules & {
        "onnx",
        "google",
        "torch",
        "torchvision",
        "onnxruntime",
        "nvidia",
        "pyarrow",
        "scipy",
        "sklearn",
    }


def imports(file: Path) -> set[tuple[str, bool]]:
    """The libraries that a file imports, each with whether it is for the type checker alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                names = [str(node.args[0].value)]
        found |= {(name.partition(".")[0], id(node) in guarded) for name in names}
    return found


def package_files() -> list[tuple[str, Path]]:
    """Every file of the package under its path there; `kernels/` is a link, which a walk does not follow."""
    folder = ROOT / "kdaudit"
    files = {*folder.rglob("*.py"), *(folder / "kernels").glob("*.py")}
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def goes_through(doors: set[str], name: str) -> bool:
    return any(name == door or (door.endswith("/") and name.startswith(door)) for door in doors)


def test_each_heavy_library_is_imported_by_its_doors_only():
    strays = [
        f"{name} imports {library}"
        for name, file in package_files()
        for library, for_types in sorted(imports(file))
        if library in DOORS and not for_types and not goes_through(DOORS[library] - ONLY_FOR_TYPES, name)
    ]
    assert strays == []


def test_even_annotations_name_a_heavy_library_only_behind_its_doors():
    strays = [
        f"{name} names {library}"
        for name, file in package_files()
        for library, _ in sorted(imports(file))
        if library in DOORS and not goes_through(DOORS[library], name)
    ]
    assert strays == []


def test_no_library_is_used_that_the_table_of_doors_does_not_know():
    ours = {"kdaudit", "numpy", "fsspec", *DOORS}
    strays = [
        f"{name} imports {library}"
        for name, file in package_files()
        for library, _ in sorted(imports(file))
        if library not in ours and library not in sys.stdlib_module_names
    ]
    assert strays == []


def test_every_door_in_the_table_is_used():
    used: dict[str, list[str]] = {library: [] for library in DOORS}
    for name, file in package_files():
        for library, _ in imports(file):
            used.get(library, []).append(name)
    unused = [
        f"{library}: {door}"
        for library, doors in DOORS.items()
        for door in sorted(doors)
        if not any(goes_through({door}, name) for name in used[library])
    ]
    assert unused == []
