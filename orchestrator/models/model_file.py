"""Imports a user's model file, with its neighbours, and says where in it something failed.

Every file becomes a module of a name of its own, since two files may be called alike. What it
imports from beside it keeps its plain name, so neighbours of one folder at a time are in
``sys.modules``; those of another folder are set aside and put back with their file.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from orchestrator.errors import InputError

PREFIX = "_orchestrator_model_"
_PACKAGE = __name__.split(".")[0]
_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_PACKAGE_FOLDER = Path(__file__).parent.parent


@dataclass
class ModelFile:
    """A file that was imported.

    Args:
        path: absolute.
        module: what became of it.
        before: the names of modules that were there when it was imported.
        neighbours: by name, the modules from its folder; while it is not the current one.
    """

    path: Path
    module: ModuleType
    before: frozenset[str]
    neighbours: dict[str, ModuleType] = field(default_factory=dict)
    sources: dict[Path, bytes] = field(default_factory=dict)

    def from_folder(self) -> dict[str, ModuleType]:
        """By name, the modules that were imported from the file's folder since."""
        tops = {
            name
            for name, module in list(sys.modules.items())
            if "." not in name and name not in self.before and self._is_beside(module)
        }
        return {
            name: module for name, module in list(sys.modules.items()) if name.split(".")[0] in tops
        }

    def files(self) -> set[Path]:
        """The file and those of its neighbours, whether imported yet or by a function later."""
        found, unread = set[Path](), {self.path}
        for module in [*self.neighbours.values(), *self.from_folder().values()]:
            if origin := getattr(module, "__file__", None):
                unread.add(Path(origin))
        while unread:
            path = unread.pop()
            found.add(path)
            tops = _imports(path) - self.before
            beside = {self.path.parent / f"{top}.py" for top in tops}
            unread |= {path for path in beside - found if path.is_file()}
        return found

    def is_unchanged(self) -> bool:
        """Whether all files are as they were when they were imported."""
        with suppress(OSError):
            return all(path.read_bytes() == text for path, text in self.sources.items())
        return False

    def _is_beside(self, module: ModuleType) -> bool:
        if module is self.module:
            return False
        folder = str(self.path.parent)
        locations = [*(getattr(module, "__path__", None) or ())]
        origin = getattr(module, "__file__", None)
        return folder in map(os.path.dirname, [*locations, *([origin] if origin else [])])


def _imports(path: Path) -> set[str]:
    """The first names of all modules that a file imports anywhere."""
    found = set()
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


_files: dict[Path, ModelFile] = {}
_current: ModelFile | None = None


def import_model_file(file: Path) -> ModelFile:
    """A user's file as a module. One that has not changed is not run again.

    Raises:
        InputError: it fails; the message says where.
    """
    path = Path(os.path.abspath(file))
    known = _files.get(path)
    if known is not None and known.is_unchanged():
        _make_current(known)
        return known
    _make_current(None)
    name = f"{PREFIX}{path.stem}_{blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    module = ModuleType(name)
    module.__file__, module.__package__ = str(path), ""
    found = ModelFile(path, module, frozenset(sys.modules) - {name})
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    importlib.invalidate_caches()
    try:
        with running(found):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and whatever else a user's code may raise
        for stale in [name, *found.from_folder()]:
            del sys.modules[stale]
        _files.pop(path, None)
        raise user_error(error, f"{file} fails on import", path.parent) from error
    with suppress(OSError):
        found.sources = {source: source.read_bytes() for source in found.files()}
    _files[path] = found
    _make_current(found)
    return found


@contextmanager
def running(file: ModelFile) -> Iterator[None]:
    """While the user's code runs: its folder comes first, as in a script, and what it prints goes
    to standard error, since standard output is ours."""
    folder, wrote = str(file.path.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # a cached one is told from a newer one by whole seconds
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.dont_write_bytecode = wrote
        with suppress(ValueError):
            sys.path.remove(folder)


def _make_current(file: ModelFile | None) -> None:
    """Put one file's neighbours into ``sys.modules``, in place of those of the one before."""
    global _current
    if file is _current:
        return
    if _current is not None:
        _current.neighbours = _current.from_folder()
        for name in _current.neighbours:
            del sys.modules[name]
        with suppress(ValueError):
            sys.path.remove(str(_current.path.parent))
    if file is not None:
        sys.modules.update(file.neighbours)
        file.neighbours = {}
        sys.path.append(str(file.path.parent))  # for an import inside a function
    _current = file


def model_files() -> tuple[ModelFile, ...]:
    """All that were imported."""
    return tuple(_files.values())


def import_path() -> tuple[str | None, tuple[str, ...]]:
    """The folder that a function of the current model file imports from, and those of the other
    files, from which it must not: neighbours may be called alike."""
    current = str(_current.path.parent) if _current else None
    folders = {str(file.path.parent) for file in _files.values()}
    return current, tuple(sorted(folders - {current}))


def model_sources(path: Path) -> set[Path]:
    """A model file and what it imports from its folder."""
    known = _files.get(Path(os.path.abspath(path)))
    return known.files() if known else {path}


def is_of_user(kind: type) -> bool:
    """Whether a class is not one of this package."""
    return kind.__module__.split(".")[0] != _PACKAGE


def user_error(error: BaseException, what: str, folder: Path | None = None) -> InputError:
    """An exception in a user's code as a message with the file and line where it was raised.

    Args:
        error: with its traceback.
        what: what failed.
        folder: of the user's code, whose innermost line is told; None: the first line that is
            neither in this package nor in Python's library.
    """
    line = _line(error, folder)
    if isinstance(error, InputError):
        message = f"{line}: {error.message}" if line else error.message
        return InputError(message, error.location, error.remedy)
    text = error.msg if isinstance(error, SyntaxError) else str(error).strip()
    reason = f"{type(error).__name__}: {text}".rstrip(": ")
    return InputError(f"{what}: {reason}" + (f" ({line})" if line else ""))


def _is_of_python(path: Path) -> bool:
    return path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts


def _line(error: BaseException, folder: Path | None) -> str:
    """``net.py:12``, as a path from ``folder``; empty where no line is the user's."""
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((Path(error.filename), error.lineno))
    outside = [(p, n) for p, n in frames if not p.is_relative_to(_PACKAGE_FOLDER) and p.is_file()]
    if folder is None:
        outside = [(path, number) for path, number in outside if not _is_of_python(path)]
        return f"{outside[0][0].name}:{outside[0][1]}" if outside else ""
    inside = [
        (path.relative_to(folder), number)
        for path, number in outside
        if path.is_relative_to(folder) and "site-packages" not in path.parts
    ]
    return f"{inside[-1][0]}:{inside[-1][1]}" if inside else ""
