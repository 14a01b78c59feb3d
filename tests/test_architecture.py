"""The parts of the package import each other in one direction: read from the source.

errors, files, schedules, optimizers ◄── plan, models ◄── program ◄── observe ◄── execute ◄── train
                                                                              ◄── simulate
and cli, run import them all
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "orchestrator"

ALLOWED = {
    "errors": set[str](),
    "files": set[str](),
    "schedules": set[str](),
    "optimizers": {"errors"},
    "plan": {"errors", "files", "schedules", "optimizers"},
    "models": {"errors", "optimizers"},
    "program": {"errors", "schedules", "optimizers", "plan", "models"},
    "observe": {"errors", "files", "plan", "models", "program"},
    "execute": {"errors", "optimizers", "plan", "models", "program", "observe"},
    "simulate": {"errors", "schedules", "plan", "models", "program", "observe"},
    "train": {"errors", "files", "optimizers", "plan", "models", "program", "observe", "execute"},
}
# The package itself gives its version; what sits on top of everything may import everything.
ALLOWED[PACKAGE] = {"errors"}
ALLOWED["cli"] = ALLOWED["run"] = ALLOWED["__main__"] = {*ALLOWED, "cli", "run"}

# Halves of layer kinds that are written in torch.
IN_TORCH = tuple(f"{PACKAGE}.models.{name}_torch" for name in ("response_norm", "running"))
RAY_LAUNCH = f"{PACKAGE}.execute.ray_launch"


@dataclass(frozen=True)
class Import:
    """Module ``importer`` names ``target``, or something in it, at ``line``; both are dotted.

    ``late``: inside a function or for type checkers only, so that importing ``importer`` does not
    import ``target``.
    """

    importer: str
    target: str
    line: int
    late: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.target}"


def read_imports(root: Path) -> list[Import]:
    """Every import under ``root/orchestrator``, inside functions and ``if TYPE_CHECKING`` too.

    ``from a import b`` counts as ``a.b``: whether b is a module or a name in one, it lies in a.
    """
    return [
        Import(module, target, line, late)
        for path in sorted((root / PACKAGE).rglob("*.py"))
        for module in [module_name(path.relative_to(root))]
        for target, line, late in targets(path, module)
    ]


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(path: Path, module: str) -> Iterator[tuple[str, int, bool]]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node, late in nodes(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, node.lineno, late) for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                above = package[: len(package) - (level - 1)] if level else []
                full = ".".join([*above, *([base] if base else [])])
                yield from ((f"{full}.{alias.name}", node.lineno, late) for alias in names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if (
                name in ("import_module", "__import__")
            ):
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value, node.lineno, late


def nodes(node: ast.AST, *, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it is left alone when the module is imported."""
    body: list[ast.stmt] | list[ast.expr] = []
    match node:
        case ast.FunctionDef(body=found) | ast.AsyncFunctionDef(body=found):
            body = found
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=found):
            body = found
        case ast.Lambda(body=expression):
            body = [expression]
    for child in ast.iter_child_nodes(node):
        inside = late or child in body
        yield child, inside
        yield from nodes(child, late=inside)


def part(module: str) -> str:
    """The part a module lies in; the package itself for ``orchestrator`` and its own names."""
    second = module.split(".")[1:2]
    return second[0] if second and second[0] in ALLOWED else PACKAGE


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


IMPORTS = read_imports(ROOT)


def told(found: list[Import]) -> str:
    return "\n".join(map(str, found))


def test_the_reader_finds_every_form_of_import(tmp_path: Path) -> None:
    folder = tmp_path / PACKAGE / "program"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from . import ops\nfrom ..plan import Plan as P\n")
    (folder / "ops.py").write_text(
        "import torch.nn as nn, ray\n"
        "from .text import parse\n"
        "from .. import models\n"
        "if TYPE_CHECKING:\n"
        "    from torch import Tensor\n"
        "else:\n"
        "    import torch.fx\n"
        "def late(x=__import__('sklearn')):\n"
        "    from orchestrator.models import response_norm_torch\n"
        "    if x:\n"
        "        return importlib.import_module('orchestrator.cli')\n"
        "class C:\n"
        "    import numpy\n"
    )
    assert {
        (i.importer.removeprefix("orchestrator."), i.target, i.late) for i in read_imports(tmp_path)
    } == {
        ("program", "orchestrator.program.ops", False),
        ("program", "orchestrator.plan.Plan", False),
        ("program.ops", "torch.nn", False),
        ("program.ops", "ray", False),
        ("program.ops", "orchestrator.program.text.parse", False),
        ("program.ops", "orchestrator.models", False),
        ("program.ops", "torch.Tensor", True),
        ("program.ops", "torch.fx", False),
        ("program.ops", "sklearn", False),
        ("program.ops", "orchestrator.models.response_norm_torch", True),
        ("program.ops", "orchestrator.cli", True),
        ("program.ops", "numpy", False),
    }


def test_every_folder_and_module_is_a_known_part() -> None:
    found = {
        path.stem
        for path in (ROOT / PACKAGE).iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    }
    assert found - {"__init__"} <= set(ALLOWED)


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_a_part_imports_only_what_lies_below_it(name: str) -> None:
    wrong = [
        i
        for i in IMPORTS
        if part(i.importer) == name
        and within(i.target, PACKAGE)
        and part(i.target) not in ALLOWED[name] | {name, PACKAGE}
    ]
    assert not wrong, f"{name} may import {sorted(ALLOWED[name])}:\n{told(wrong)}"


def test_no_cycle_between_parts() -> None:
    edges: dict[str, set[str]] = {}
    for i in IMPORTS:
        # The package's own names (its version) are no part.
        if within(i.target, PACKAGE) and PACKAGE not in (part(i.importer), part(i.target)):
            edges.setdefault(part(i.importer), set()).add(part(i.target))
    for name, below in edges.items():
        below.discard(name)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as cycle:
        pytest.fail(" imports ".join(reversed(cycle.args[1])))


@pytest.mark.parametrize("name", ["schedules", "plan", "program", "simulate"])
def test_pure_parts_do_without_torch_and_ray(name: str) -> None:
    heavy = ("torch", "ray", "sklearn", *IN_TORCH)
    wrong = [i for i in IMPORTS if part(i.importer) == name and within(i.target, *heavy)]
    assert not wrong, told(wrong)


def test_layer_kinds_and_optimizers_import_torch_when_they_are_computed_only() -> None:
    """A description needs no torch, so imports of it stand inside functions."""
    wrong = [
        i
        for i in IMPORTS
        if part(i.importer) in ("models", "optimizers")
        and i.importer not in IN_TORCH
        and within(i.target, "torch", *IN_TORCH)
        and not i.late
    ]
    assert not wrong, told(wrong)


def test_ray_is_imported_in_the_launch_alone() -> None:
    wrong = [i for i in IMPORTS if within(i.target, "ray") and i.importer != RAY_LAUNCH]
    assert not wrong, told(wrong)


def test_importing_the_pure_parts_loads_neither_torch_nor_ray() -> None:
    """The source may look innocent while some module two imports away is not."""
    modules = sorted(
        name
        for path in (ROOT / PACKAGE).rglob("*.py")
        for name in [module_name(path.relative_to(ROOT))]
        if part(name) in ("schedules", "optimizers", "plan", "models", "program", "simulate")
        and name not in IN_TORCH
        and path.name != "__main__.py"  # runs when imported
    )
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'ray', 'sklearn'} & set(sys.modules)))"
    )
    assert loaded(code) == []


def test_a_plan_is_compiled_and_simulated_without_torch() -> None:
    """Layer kinds import torch where they are computed, and nothing of that is done here."""
    code = (
        "import sys\n"
        "from orchestrator.models import build_model\n"
        "from orchestrator.plan import load_plan\n"
        "from orchestrator.simulate.cluster import load_cluster\n"
        "from orchestrator.simulate.predict import simulate\n"
        "model = build_model('alexnet2012', {})\n"
        "simulate(load_plan('krizhevsky2012'), model, load_cluster('gtx580x2'))\n"
        "print(*sorted({'torch', 'ray', 'sklearn'} & set(sys.modules)))"
    )
    assert loaded(code) == []


def loaded(code: str) -> list[str]:
    """What Python code prints, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Folders of one person's machine. Ray's own images have a fixed home, so that may be named.
MACHINE_PATH = re.compile(
    r"""(?:^|[\s"'`=:,(\[<>])(/(?:work|root|home/(?!ray/)[\w.-]+|Users/[\w.-]+)/[\w.-]*)""", re.M
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /" + "root/x.yaml", ["/" + "root/x.yaml"]),
        ("path=/" + "home/me/x", ["/" + "home/me/x"]),
        ("https://example.org/" + "work/x, a/" + "work/b", []),
    ],
)
def test_machine_paths_are_told_from_others(text: str, found: list[str]) -> None:
    assert MACHINE_PATH.findall(text) == found


def test_no_file_names_a_folder_of_one_machine() -> None:
    # `safe.directory`: in a container the checkout may belong to another user. Untracked files are
    # read too, they are about to be committed.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run([*git, *listing], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    wrong = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or b"\0" in (content := path.read_bytes()):
            continue  # deleted but still tracked, or binary
        text = content.decode("utf-8", "replace")
        wrong += [
            f"{name}:{text.count(chr(10), 0, match.start(1)) + 1}: {match[1]}"
            for match in MACHINE_PATH.finditer(text)
        ]
    assert not wrong, "\n".join(wrong)


def test_no_file_cites_a_document_that_is_not_here() -> None:
    """Docstrings once cited a contract that no reader has."""
    cited = re.compile(r"\b(?:CONTRACT|DESIGN|FACTS)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("orchestrator", "benchmarks", "docs", "dashboards", "cluster", "partitions")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".jinja")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if cited.search(line)
    ]
    assert not wrong, "\n".join(wrong)
