"""What messages and documents tell to type exists: verbs, options, shipped files, keys.

Once `compare` told to take the cluster ``localhost``, which nobody ships, and a cluster that was
too small ``--set nodes=2``, which sets nothing. The documentation once named the command
``orchestrator data prepare``, which there never was, and ``--set nodes=512``.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import cli
from orchestrator.plan import Plan, shipped_names
from orchestrator.plan.schema import ModelChoice, Training
from orchestrator.simulate.cluster_schema import ClusterFile
from tests.cli.command import SMALL, command, refused

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = {  # of ray, torchrun, prometheus, pytest with hypothesis
    "--head", "--address", "--num-cpus", "--working-dir", "--nproc-per-node", "--config",
    "--hypothesis-profile",
}  # fmt: skip
DOCUMENTS = (
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md",
    ROOT / "dashboards" / "README.md",
    *(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md"),  # old commands
)  # fmt: skip
WRITTEN = {"here"}  # clusters that the documents' own commands write
FENCED = re.compile(r"^( *)```\w*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
VERB = re.compile(r"orchestrator ([a-z]+)((?: (?:--[a-z-]+|[A-Za-z.<>{}/]+))*)")
NAMED = re.compile(r"(?:--(cluster|plan) (?!\S*/)|\b(cluster|partitions)/)([a-z0-9][\w-]*)")
SETTING = re.compile(r"--set '?(?!KEY=)([\w.]+)=")
MODULE = re.compile(r"-m ((?:orchestrator|benchmarks)[\w.]*)")


def texts() -> Iterator[tuple[str, str]]:
    """Location and text of every string in the package but docstrings; {} for what is put in."""
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        tree = ast.parse(path.read_text())
        skipped: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped.add(id(node.value))  # a docstring
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                yield place, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and id(node) not in skipped:
                yield place, str(node.value)


def documented() -> Iterator[tuple[str, str]]:
    """Location and text of each line of a fenced block and of each backticked span in a document.

    A line of a block that ends in a backslash and the next one are one line.
    """
    for path in DOCUMENTS:
        document, name = path.read_text(), path.relative_to(ROOT)
        for block in FENCED.finditer(document):
            number = document.count("\n", 0, block.start(2)) + 1
            for line in re.split(r"(?<!\\)\n", block[2]):
                yield f"{name}:{number}", line.replace("\\\n", " ").strip()
                number += line.count("\n") + 1
        prose = FENCED.sub(lambda block: "\n" * block[0].count("\n"), document)
        for span in SPAN.finditer(prose):
            yield f"{name}:{prose.count(chr(10), 0, span.start()) + 1}", " ".join(span[1].split())


def command_lines(text: str) -> Iterator[list[str]]:
    """The words behind each ``orchestrator`` of a text; of ``run --steps 3`` all."""
    named = re.match(r"([a-z]+) --[a-z]", text)
    if named and named[1] in VERBS:
        words = shlex.split(text)
        yield [*words, "VALUE"] if words[-1].startswith("--") else words
    if "orchestrator" not in text:
        return
    words = shlex.split(text, comments=True)
    for i, word in enumerate(words[:-1]):
        if word in ("orchestrator", "orchestrator.run"):
            end = next((j for j in range(i, len(words)) if words[j] in ("&&", "&", "|")), None)
            yield (["run"] if word == "orchestrator.run" else []) + words[i + 1 : end]


PLANS = {*shipped_names("partitions"), "-"}  # - is standard input
DOCUMENTED = list(documented())
TEXTS = [*texts(), *DOCUMENTED]


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Every command by its name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            yield from commands(found)


assert isinstance(cli, click.Group)
VERBS = cli.list_commands(click.Context(cli))
COMMANDS = dict(commands(cli))
OF_VERB = {
    name: {o for parameter in verb.params for o in parameter.opts} | {"--help"}
    for name, verb in COMMANDS.items()
}
for name, verb in COMMANDS.items():
    if isinstance(verb, click.Group):
        OF_VERB[name] |= {
            o for inner in verb.list_commands(click.Context(verb)) for o in OF_VERB[inner]
        }


def test_the_reader_finds_what_messages_name() -> None:
    """A check of the check: it reads some of each."""
    joined = "\n".join(text for _, text in TEXTS)
    assert len(OPTION.findall(joined)) > 100
    assert len(VERB.findall(joined)) >= 4
    assert len(SETTING.findall(joined)) >= 4
    assert OF_VERB["simulate"] > {"--plan", "--cluster", "--json"}


def test_the_reader_finds_what_documents_name() -> None:
    """A check of the check: blocks, spans, continued lines, several commands in a line."""
    commands = [words for _, text in DOCUMENTED for words in command_lines(text)]
    assert {words[0] for words in commands} >= set(COMMANDS) - {"push", "export", "prometheus"}
    assert len(commands) > 30
    assert any(words.count("--set") == 2 for words in commands)  # goes on in a second line
    assert list(command_lines("a && orchestrator show x && b")) == [["show", "x"]]
    assert list(command_lines("python -m orchestrator.run --steps 2")) == [["run", "--steps", "2"]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("orchestrator data prepare", "no command: data"),
        ("orchestrator dashboards prepare", "no command: dashboards prepare"),
        ("orchestrator show krizhevsky2012 --steps 3", "No such option"),
        ("orchestrator simulate single --cluster", "requires an argument"),
        ("run --step 3", "No such option"),
        ("orchestrator show krizhevsky", "no plan: krizhevsky"),
    ],
)
def test_a_command_that_does_not_exist_is_told(line: str, says: str) -> None:
    (words,) = command_lines(line)
    assert says in wrong_with(words)


def wrong_with(words: list[str]) -> str:
    """Why the command line does not take these words; empty if it does."""
    verb, name, rest = COMMANDS.get(words[0]), words[0], words[1:]
    if isinstance(verb, click.Group) and rest and not rest[0].startswith("-"):
        name, verb, rest = f"{name} {rest[0]}", COMMANDS.get(rest[0]), rest[1:]
    if verb is None:
        return f"no command: {name}"
    try:
        given, _, _ = verb.make_parser(click.Context(verb)).parse_args(list(rest))
    except click.UsageError as error:
        return error.format_message()
    for parameter in ("plan_source", "plan_argument", "plan_option", "sources"):
        value = given.get(parameter)
        for plan in value if isinstance(value, tuple) else (value,):
            if isinstance(plan, str) and re.fullmatch(r"[a-z0-9-]+", plan) and plan not in PLANS:
                return f"no plan: {plan}"
    return ""


def test_commands_of_the_documentation_are_taken() -> None:
    """By the command line's own parser."""
    wrong = [
        f"{at}: {shlex.join(words)}: {problem}"
        for at, text in DOCUMENTED
        for words in command_lines(text)
        if (problem := wrong_with(words))
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_of_the_documentation_exist() -> None:
    wrong = []
    for at, text in DOCUMENTED:
        for name in MODULE.findall(text):
            path = ROOT.joinpath(*name.rstrip(".").split("."))
            if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
                wrong.append(f"{at}: -m {name}")
    assert not wrong, "\n".join(wrong)


def test_options_exist() -> None:
    known = set().union(*OF_VERB.values()) | FOREIGN | {"--version", "--"}
    wrong = [f"{at}: {o}" for at, text in TEXTS for o in OPTION.findall(text) if o not in known]
    assert not wrong, "\n".join(wrong)


def test_verbs_exist_and_have_the_options_that_stand_behind_them() -> None:
    wrong = []
    for at, text in TEXTS:
        for verb, rest in VERB.findall(text):
            if verb in ("plan", "cluster", "again"):  # titles; `install orchestrator again`
                continue
            if verb not in OF_VERB:
                wrong.append(f"{at}: {verb}")
                continue
            wrong += [f"{at}: {verb} {o}" for o in OPTION.findall(rest) if o not in OF_VERB[verb]]
    assert not wrong, "\n".join(wrong)


def test_plans_and_clusters_exist() -> None:
    wrong = []
    for at, text in TEXTS:
        for option, folder, name in NAMED.findall(text):
            where = folder or {"cluster": "cluster", "plan": "partitions"}[option]
            if name not in {*shipped_names(where), *WRITTEN, "plan", "cluster"}:  # two schemas
                wrong.append(f"{at}: {where}/{name}")
    assert not wrong, "\n".join(wrong)


def test_keys_exist() -> None:
    wrong = []
    for at, text in TEXTS:
        for key in SETTING.findall(text):
            first, *rest = key.split(".")
            fields = set(Plan.model_fields)
            if first == "cluster" and rest:
                fields, first = set(ClusterFile.model_fields), rest[0]
            elif rest and first in ("model", "training"):
                of = ModelChoice if first == "model" else Training
                fields, first = set(of.model_fields), rest[0]
            if first not in fields:
                wrong.append(f"{at}: --set {key}")
    assert not wrong, "\n".join(wrong)


# -- remedies that are put together ---------------------------------------------------------------


def test_the_cluster_that_compare_names() -> None:
    message = refused("compare", "single")
    named = re.search(r"--cluster (\S+), or", message)
    assert named, message
    assert command("compare", "single", "--cluster", named[1]).code == 0


def test_the_setting_that_makes_a_cluster_large_enough() -> None:
    call = ("simulate", "--plan", "data-parallel", "--cluster", "dgx-a100", "--set", "replicas=8")
    named = re.search(r"--set cluster\.nodes=\d+", message := refused(*call))
    assert named, message
    assert command(*call, *named[0].split()).code in (0, 1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("cluster.nodes", "write it as --set cluster.nodes=2"),
        ("cluster.network.7.GBps=1", "--set 'cluster.network=...'"),
        ("cluster.nothing=1", "--set cluster.nothing=1"),
    ],
)
def test_settings_of_a_cluster_are_told_as_they_are_command_lines(setting: str, says: str) -> None:
    assert says in refused("show", "single", "--cluster", "gtx580x2", "--set", setting)


def test_a_run_names_the_cluster_as_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once told to compare with the name in a cluster's file, which only shipped ones have."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        (ROOT / "cluster" / "gtx580x2.yaml").read_text().replace("name: gtx580x2", "name: own", 1)
    )
    run = ("run", "--plan", "single", "--launcher", "local", "--steps", "2", "--out", "out")
    ended = command(*run, "--cluster", "mine.yaml", *SMALL)
    words = re.search(r"more: orchestrator (.+)", ended.out)
    assert words, ended.out
    assert command(*words[1].split()).code == 0


def test_resume_is_told_of_where_there_is_something_to_resume(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    run = ("run", "--plan", "single", "--launcher", "local", "--steps", "1", *SMALL)
    assert "--resume" not in refused(*run, "--out", str(tmp_path))
    before = str(tmp_path / "before")
    assert command(*run, "--out", before).code == 0
    named = re.search(r"--resume \S+", message := refused(*run, "--out", before))
    assert named, message
    assert command(*run, *named[0].split()).code == 0
