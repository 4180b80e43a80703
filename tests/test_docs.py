"""The documentation names what there is, all of it, and nothing that is not there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from deliveries import ROOT

from kdaudit.admission import FINDINGS, REFUSALS, RULES
from kdaudit.cli.main import cli
from kdaudit.errors import Exit
from kdaudit.report.rules import rules as every_rule
from kdaudit.settings import Settings
from kdaudit.signs import BEHAVIOUR

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("sh", "bash", "shell", "console")


def text_of(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def commands_in(block: str) -> list[str]:
    """The command lines of a shell block: continued lines joined, prompts and comments left out."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.strip().startswith("#")]


def rows(page: str) -> list[list[str]]:
    """Cells of all table rows, headers included."""
    lines = [line.strip() for line in text_of(page).splitlines() if line.strip().startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def options_of(command: click.Command) -> list[click.Option]:
    """A command's options, its --help among them."""
    context = click.Context(command, info_name="kdaudit", help_option_names=["-h", "--help"])
    return [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]


ALL = {"": cli, **cli.commands}
OPTIONS = sorted(
    {
        spelling
        for command in ALL.values()
        for option in options_of(command)
        for spelling in (*option.opts, *option.secondary_opts)
    }
)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_documented(name):
    assert re.search(rf"\bkdaudit {name}\b", everything())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_documented(option):
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", everything())


@pytest.mark.parametrize("code", list(Exit))
def test_every_exit_code_has_its_row(code):
    found = [cells for cells in rows("docs/exit-codes.md") if cells[0] == str(int(code))]
    assert len(found) == 1
    assert found[0][1] == code.name.lower()


def test_the_table_of_exit_codes_has_no_other():
    assert {cells[0] for cells in rows("docs/exit-codes.md") if cells[0].isdigit()} == {str(int(code)) for code in Exit}


def test_the_help_names_every_exit_code():
    assert cli.epilog is not None
    assert set(re.findall(r"\b\d+\b", cli.epilog.splitlines()[1])) == {str(int(code)) for code in Exit}


def test_every_rule_has_its_row_with_the_title_that_the_code_gives_it():
    titles = REFUSALS | FINDINGS | BEHAVIOUR
    assert len(titles) == len(REFUSALS) + len(FINDINGS) + len(BEHAVIOUR)
    documented = {cells[0]: cells[-1] for cells in rows("docs/rules.md") if cells[0].startswith("KDA")}
    assert documented == titles


def test_every_rule_id_in_the_code_is_in_one_of_the_tables():
    used = {
        rule
        for file in (ROOT / "kdaudit").rglob("*.py")
        for rule in re.findall(r"KDA\d{3}", file.read_text(encoding="utf-8"))
    }
    assert used == set(REFUSALS | FINDINGS | BEHAVIOUR)


def test_every_static_finding_is_documented_as_the_catalogue_has_it():
    documented = {cells[0]: tuple(cells[1:]) for cells in rows("docs/rules.md") if cells[0] in FINDINGS}
    assert documented == {rule: tuple(entry) for rule, entry in RULES.items()}


def test_every_static_finding_has_its_section():
    sections = re.findall(r"^## (KDA\d{3})", text_of("docs/graph-rules.md"), re.MULTILINE)
    assert sections == list(RULES)


def test_every_finding_is_documented_with_the_severity_that_the_code_gives_it():
    table = BEHAVIOUR
    code = "".join((ROOT / "kdaudit" / room).read_text(encoding="utf-8") for room in ("signs.py", "labelling.py"))
    given = dict(re.findall(r'Finding\(\s*"(KDA\d{3})",\s*"(\w+)"', code))
    assert given.keys() == table.keys()
    documented = {cells[0]: cells[1] for cells in rows("docs/rules.md") if cells[0] in table}
    assert documented == given


def test_the_techniques_of_a_finding_of_behaviour_are_those_of_its_tags():
    documented = {
        cells[0]: set(re.findall(r"AML\.T[\d.]+", cells[2])) for cells in rows("docs/rules.md") if cells[0] in BEHAVIOUR
    }
    given = {
        rule: {tag for tag in known.tags if tag.startswith("AML.")}
        for rule, known in every_rule().items()
        if rule in BEHAVIOUR
    }
    assert documented == given


def test_rule_ids_are_documented_only_where_they_exist():
    mentioned = set(re.findall(r"\bKDA\d{3}\b", everything()))
    assert mentioned == set(REFUSALS | FINDINGS | BEHAVIOUR)


def setting_rows() -> dict[str, list[str]]:
    return {cells[0].strip("`"): cells for cells in rows("docs/settings.md") if len(cells) == 5 and "`" in cells[0]}


def test_every_setting_has_its_row_and_no_other_is_there():
    assert list(setting_rows()) == list(Settings.model_fields)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_a_settings_row_gives_its_option_variable_and_default(name):
    _, option, variable, default, meaning = setting_rows()[name]
    spellings = {
        spelling
        for command in cli.commands.values()
        for parameter in options_of(command)
        if parameter.name == name
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"-[\w-]+", option)) == spellings
    assert variable == f"`KDAUDIT_{name.upper()}`"
    value = Settings.model_fields[name].default
    if value in (None, ()):
        assert default == ""
    else:
        assert default.strip("`").split(",") == [
            str(part).lower() for part in (value if isinstance(value, tuple) else [value])
        ]
    assert meaning


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_the_default_in_an_options_help_is_the_settings_own(name):
    default = Settings.model_fields[name].default
    for command in cli.commands.values():
        for option in options_of(command):
            shown = re.search(r"\[default: ([^\]]+)\]", option.help or "")
            if option.name != name or not shown or isinstance(default, bool) or default is None:
                continue
            number = re.fullmatch(r"[\d.]+", shown[1])
            assert (float(shown[1]) == default) if number else (shown[1] == str(default))


def command_lines() -> list[tuple[str, str]]:
    """Every `kdaudit ...` line in a shell block of the documentation."""
    return [
        (page.relative_to(ROOT).as_posix(), line)
        for page in PAGES
        for language, block in fences(page.read_text(encoding="utf-8"))
        if language in SHELL
        for line in commands_in(block)
        if re.match(r"(\S*/)?kdaudit\s", line)
    ]


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_a_documented_command_line_uses_what_there_is(page, line):
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "||", ";")), len(words))]
    name = next((word for word in words if not word.startswith("-")), "")
    assert name in ALL
    known = {s for option in options_of(ALL[name]) for s in (*option.opts, *option.secondary_opts)}
    assert {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)} <= known


def test_the_two_commands_of_the_readme_are_what_ci_runs():
    """Install and demo, then the tests: a shell block of one command each, word for word in .ci/run.

    Shell blocks that begin with `kdaudit` are examples on the reader's own files.
    """
    blocks = [commands_in(block) for language, block in fences(text_of("README.md")) if language in SHELL]
    blocks = [block for block in blocks if not block[0].startswith("kdaudit ")]
    assert [len(block) for block in blocks] == [1, 1]
    ci = re.sub(r"\s+", " ", re.sub(r"\\\n", " ", text_of(".ci/run")))
    for (command,) in blocks:
        assert re.sub(r"\s+", " ", command) in ci
    assert blocks[0][0].endswith("kdaudit demo")
    assert blocks[1][0].endswith("test")


def test_the_page_of_commands_is_what_the_program_says():
    """Made anew with `python -m kdaudit.cli.reference > docs/commands.md`."""
    from kdaudit.cli.reference import reference

    assert text_of("docs/commands.md") == reference()


def test_an_option_that_is_renamed_in_the_code_fails_these_tests(monkeypatch):
    """Shown once: what the tests above would say if `--fail-on` became `--stop-on` and nobody told the docs."""
    from kdaudit.cli.reference import reference

    (option,) = [o for o in options_of(cli.commands["scan"]) if o.name == "fail_on"]
    monkeypatch.setattr(option, "opts", ["--stop-on"])
    assert text_of("docs/commands.md") != reference()
    with pytest.raises(AssertionError):
        test_every_option_is_documented("--stop-on")
    with pytest.raises(AssertionError):
        test_a_settings_row_gives_its_option_variable_and_default("fail_on")


def test_the_page_of_the_run_directory_names_every_column_and_rendering():
    from kdaudit.report.gallery import FILE
    from kdaudit.report.outputs import FILES
    from kdaudit.rows import FIRST

    named = {name for cells in rows("docs/run-directory.md") for name in re.findall(r"`([^`]+)`", cells[0])}
    assert named >= {*FILES.values(), FILE, *FIRST, "report.json", "samples.parquet", "kept.csv", "quarantine.csv"}
    for file in (*FILES.values(), "report.json", "samples.parquet"):
        assert f"`{file}`" in text_of("README.md")


def test_the_page_of_ci_names_the_actions_inputs_and_outputs_and_no_others():
    from ruamel.yaml import YAML

    action = YAML(typ="safe").load(text_of("action.yml"))
    (line,) = [line for line in text_of("docs/ci.md").splitlines() if line.startswith("Inputs:")]
    page = " ".join(text_of("docs/ci.md").split())
    inputs, _, outputs = page[page.index(line.split(";")[0]) :].partition("Outputs:")
    assert set(re.findall(r"`([^`]+)`", inputs)) == action["inputs"].keys()
    assert set(re.findall(r"`([^`]+)`", outputs.partition("## ")[0])) == action["outputs"].keys()
    used = set(re.findall(r"^\s{6}([\w-]+):", text_of("docs/ci.md"), re.MULTILINE)) & action["inputs"].keys()
    assert {"model", "data"} <= used


@pytest.mark.parametrize("form", ["text", "json", "html", "sarif", "junit", "markdown", "github"])
def test_every_format_is_documented_and_offered(form):
    (choice,) = [o for o in options_of(cli.commands["report"]) if o.name == "form"]
    assert form in choice.type.choices
    assert f"`{form}`" in text_of("README.md")
    assert f"`{form}`" in text_of("docs/settings.md")


def test_no_page_is_left_alone():
    """Each page can be reached from the README."""
    reached, open_pages = set(), [README]
    while open_pages:
        page = open_pages.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        open_pages += [(page.parent / target).resolve() for target in targets if not re.match(r"[a-z]+:", target)]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            place = page.parent / target.partition("#")[0]
            assert Path(place).exists(), target
