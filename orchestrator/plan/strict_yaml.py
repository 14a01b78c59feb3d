"""YAML read strictly: plain values, the line of each, and nothing that YAML guesses.

Scalars follow YAML 1.2, as editors do: ``off`` and ``no`` are text, ``1e-4`` is a number, ``010``
is ten. Duplicate keys, keys that are not text, explicit types and documents that unfold to
very much are refused. Whatever the text is, the only exception is ``InputError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from orchestrator.errors import InputError
from orchestrator.plan.problem import Path, Problem, printable

_CORE = "tag:yaml.org,2002:"
_MOST_VALUES = 100_000
_DEEPEST = 40
_MOST_DIGITS = 40

# https://yaml.org/spec/1.2.2/#103-core-schema, without octal and hexadecimal numbers.
RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (f"{_CORE}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (f"{_CORE}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (f"{_CORE}int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        f"{_CORE}float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars; only its composer is used, never its constructors."""

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.count = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Stops early on what would only be refused after a minute of parsing."""
        self.depth += 1
        self.count += 1
        _stop_if_too_much(self.depth, self.count)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


@dataclass
class Document:
    """A text's values, the line each path stands on (from 1), and what is wrong so far."""

    value: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    count: int = 0


def read_document(text: str, label: str) -> Document:
    """Reads one YAML document.

    Args:
        text: the YAML.
        label: what it is called in messages: a file, or a command-line option.

    Raises:
        InputError: the text is not YAML (with line and column), or unfolds to too much.
    """
    root = _compose(text, label)
    document = Document()
    try:
        if root is not None:
            document.value = _value(document, root, ())
    except _TooMuch as error:
        raise InputError(error.args[0], label, error.args[1]) from None
    return document


class _TooMuch(Exception):
    """The document is deeper, or unfolds to more values, than a plan can need; and the remedy."""


def _stop_if_too_much(depth: int, count: int) -> None:
    if depth > _DEEPEST:
        raise _TooMuch(f"values are nested more than {_DEEPEST} deep", "write it flat")
    if count > _MOST_VALUES:
        remedy = "write ranks as 0..7, and repeat less by anchors"
        raise _TooMuch(f"the text unfolds to more than {_MOST_VALUES} values", remedy)


def _compose(text: str, label: str) -> Node | None:
    try:
        loader = _Loader(text)
        try:
            node: Node | None = loader.get_single_node()
            return node
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = len(before) - before.rfind("\n")
        raise InputError(
            f"found the character {error.character!r}; allowed: printable text"
            if isinstance(error.character, str)
            else f"found the character U+{error.character:04X}; allowed: printable text",
            f"{label}:{before.count(chr(10)) + 1}:{column}",
            "remove it, and save the file as plain UTF-8 text",
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        problem = " ".join(str(part) for part in (error.problem, error.context) if part)
        message = f"not valid YAML: {printable(problem, 200)}"
        raise InputError(message, place, _syntax_remedy(problem)) from None
    except _TooMuch as error:
        raise InputError(error.args[0], label, error.args[1]) from None
    except Exception as error:  # PyYAML lets a few of its own slips out, such as chr() of 2**32
        message = f"not valid YAML: {printable(str(error), 200)}"
        raise InputError(message, label, "write it as the shipped plans are written") from None


def _syntax_remedy(problem: str) -> str:
    if "\\t" in problem:
        return "indent with spaces; YAML allows no tabs"
    if "mapping values" in problem or "could not find expected ':'" in problem:
        return "write `key: value`, one a line, and quote a value that holds a colon"
    if "single document" in problem or "another document" in problem:
        return "keep one plan in a file, without --- between"
    if "undefined alias" in problem:
        return "define it with & first, or quote the value if the * is meant as text"
    return "check indentation, brackets and quotes there"


def _value(document: Document, node: Node, path: Path) -> object:
    document.count += 1
    _stop_if_too_much(len(path), document.count)
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
        return _mapping(document, node, path)
    if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
        return [_value(document, item, (*path, i)) for i, item in enumerate(node.value)]
    if isinstance(node, ScalarNode):
        return _scalar(document, node, path)
    _refuse_tag(document, node, path)
    return None


def _mapping(document: Document, node: MappingNode, path: Path) -> dict[str, object]:
    result: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode) or key_node.tag != f"{_CORE}str":
            shown = printable(str(key_node.value)) if isinstance(key_node, ScalarNode) else "a list"
            document.lines.setdefault((*path, shown), line)
            message = f"found the key {shown}; allowed: keys that are text"
            document.problems.append(Problem((*path, shown), message, "put the key in quotes"))
            continue
        key = str(key_node.value)
        inner = (*path, key)
        if key in result:
            first = document.lines[inner]
            document.lines[inner] = line
            message = f"found this key twice (first on line {first}); allowed: once"
            document.problems.append(Problem(inner, message, "keep one of the two"))
            continue
        document.lines[inner] = line
        _check_text(document, key, inner)
        result[key] = _value(document, value_node, inner)
    return result


def _scalar(document: Document, node: ScalarNode, path: Path) -> object:
    text = str(node.value)
    readers: dict[str, Callable[[str], object]] = {
        f"{_CORE}null": lambda _: None,
        f"{_CORE}bool": lambda word: word.lower() == "true",
        f"{_CORE}int": int,
        f"{_CORE}float": lambda word: float(word.replace(".inf", "inf").replace(".nan", "nan")),
        f"{_CORE}str": str,
    }
    if node.tag == f"{_CORE}int" and len(text) > _MOST_DIGITS:
        message = f"found a number of {len(text)} digits; allowed: a number of at most 18"
        document.problems.append(Problem(path, message, "write a smaller number"))
        return None
    pattern = next((p for tag, p, _ in RESOLVERS if tag == node.tag), None)
    if node.tag not in readers or (pattern and not pattern.match(text)):
        _refuse_tag(document, node, path)
        return None
    _check_text(document, text, path)
    return readers[node.tag](text.lower() if node.tag == f"{_CORE}float" else text)


def _check_text(document: Document, text: str, path: Path) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):  # "\ud800" in quotes; no file can hold it
        message = f"found '{printable(text)}', half of a character; allowed: text"
        document.problems.append(Problem(path, message, "remove the \\ud... from the quotes"))


def _refuse_tag(document: Document, node: Node, path: Path) -> None:
    tag = printable(str(node.tag).replace(_CORE, "!!"))
    message = f"found the type {tag}; allowed: plain text, numbers, lists and mappings"
    document.problems.append(Problem(path, message, "remove the ! and the word after it"))
