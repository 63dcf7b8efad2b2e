"""Imports run one way, top to bottom, and the light commands stay light (DESIGN, "The house")."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bfp

PACKAGE = Path(bfp.__file__).parent

LINES = [
    {"cli"},
    {"targets"},
    {"drivers"},
    {"reports"},
    {"pretraining", "finetuning", "inference"},
    {"features", "metrics"},
    {"models"},
    {"batches"},
    {"store"},
    {"cohorts"},
    {"imaging"},
    {"runs"},
    {"storage"},
    {"specs", "errors"},
    {"words", "memory"},
]
"""Each line may import the lines below it; peers on one line do not import one another."""

ROOF = {"demo": {"storage", "errors"}}
"""Beside the map: the demo cohort is made for `cli` alone, and stands on these."""

SPEC_READERS = {"cli", "targets", "drivers", "specs"}
HEAVY = {"torch", "ray", "timm", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "SimpleITK", "nibabel"}
LEVEL = {name: number for number, line in enumerate(LINES) for name in line}


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer in ROOF:
        return imported in ROOF[importer]
    if imported in ROOF:
        return importer == "cli"
    if imported == "specs" and importer not in SPEC_READERS:
        return False
    # `errors` is what everybody, `specs` too, has in common.
    return imported == "errors" or LEVEL[importer] < LEVEL[imported]


def imports_of(file: Path) -> set[str]:
    """The parts of bfp that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; name the module in full"
            within = [f"bfp.{alias.name}" for alias in node.names] if node.module == "bfp" else []
            names = [node.module or "", *within]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("bfp.")}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return [file for file in sorted(PACKAGE.rglob("*.py")) if part_of(file) not in ("__init__", "__main__")]


def test_every_part_of_the_package_has_a_place_on_the_map():
    assert {part_of(file) for file in modules()} <= {*LEVEL, *ROOF}


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_look_down_only(file):
    wrong = {imported for imported in imports_of(file) if not allowed(part_of(file), imported)}
    assert not wrong, f"{file.relative_to(PACKAGE)} imports {wrong}: it stands above or beside"


def test_losses_geometry_and_metrics_know_no_ray():
    for part in ("pretraining", "imaging", "metrics", "models", "batches", "store", "cohorts"):
        for file in (PACKAGE / part).rglob("*.py"):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert not {name for name in names if name.split(".")[0] == "ray"}, file


MEASURE = """
import json, os, resource, sys
from bfp.cli.main import run
sys.stdout = sys.stderr = open(os.devnull, "w")
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({heavy!r} & set(sys.modules))
sys.__stdout__.write(json.dumps([code, used.ru_utime + used.ru_stime, heavy]))
"""
LIBRARIES = """
import resource
import pydantic, typer, yaml
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["submit", "--help"],
        ["export", "--help"],
        ["validate", "pretrain.yaml", "ingest.yaml"],
        ["init", "pretrain", "new.yaml"],
        ["schema", "ingest"],
    ],
    ids=" ".join,
)
def test_a_light_command_costs_a_few_times_its_libraries_and_loads_no_heavy_one(arguments, tmp_path):
    for kind in ("pretrain", "ingest"):
        spec = (PACKAGE / "demo" / "jobs" / f"{kind}.yaml").read_text(encoding="utf-8")
        (tmp_path / f"{kind}.yaml").write_text(spec, encoding="utf-8")
    ratios = []
    for _ in range(5):  # the quickest of five: the machine may be busy with something else
        (tmp_path / "new.yaml").unlink(missing_ok=True)
        code, used, heavy = measured(MEASURE.format(heavy=HEAVY), *arguments, folder=tmp_path)
        assert code == 0
        assert heavy == []
        ratios.append(used / measured(LIBRARIES, folder=tmp_path))
        if min(ratios) < 5:
            break
    assert min(ratios) < 5


def measured(code, *arguments, folder):
    command = [sys.executable, "-c", code, *arguments]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
