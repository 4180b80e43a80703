"""Settings: who wins, what is refused and in which words, and that the help says what the defaults are."""

import re

import click
import pytest
from deliveries import ROOT

from kdaudit.cli import options
from kdaudit.cli.main import cli
from kdaudit.errors import Exit, UsageError
from kdaudit.pool import MIN_POOL
from kdaudit.settings import FOREIGN, Settings, load_settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"KDAUDIT_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(**given) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(**given)
    assert caught.value.exit_code == Exit.ERROR
    return str(caught.value)


# -- precedence


def test_option_beats_variable_beats_kdaudit_toml_beats_pyproject(tmp_path, monkeypatch):
    assert load_settings().seed == 0
    (tmp_path / "pyproject.toml").write_text("[tool.kdaudit]\nseed = 1\nfdr = 0.1\n[tool.other]\nseed = 9\n")
    assert load_settings().seed == 1
    (tmp_path / "kdaudit.toml").write_text("seed = 2\n")
    assert load_settings().seed == 2
    monkeypatch.setenv("KDAUDIT_SEED", "3")
    assert load_settings().seed == 3
    assert load_settings(seed=4).seed == 4
    assert load_settings(seed=None).seed == 3  # an option that was not given
    assert load_settings(seed=4).fdr == 0.1  # the others still come from below


def test_zero_and_false_are_given(monkeypatch):
    monkeypatch.setenv("KDAUDIT_SEED", "3")
    found = load_settings(seed=0, repair=False)
    assert (found.seed, found.repair) == (0, False)


def test_a_dotenv_file_is_not_read(tmp_path):
    (tmp_path / ".env").write_text("KDAUDIT_SEED=5\n")
    assert load_settings().seed == 0


def test_lists_come_from_every_place(tmp_path, monkeypatch):
    (tmp_path / "kdaudit.toml").write_text('interventions = ["blend-0.9", "cut-.4"]\n')
    assert load_settings().interventions == ("blend-0.9", "cut-.4")
    monkeypatch.setenv("KDAUDIT_INTERVENTIONS", '["cut-0.7"]')
    assert load_settings().interventions == ("cut-0.7",)
    assert load_settings(interventions=("cut-0.1",)).interventions == ("cut-0.1",)


def test_foreign_variables_and_tables_are_let_be(tmp_path, monkeypatch):
    for name in FOREIGN:
        monkeypatch.setenv(name, "/somewhere")
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 88\n")
    assert load_settings() == Settings()


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().seed = 1  # type: ignore[misc]


# -- refusals


@pytest.mark.parametrize(("file", "text"), [("kdaudit.toml", "{}"), ("pyproject.toml", "[tool.kdaudit]\n{}")])
def test_an_unknown_name_in_a_file_is_refused_by_its_name(tmp_path, file, text):
    (tmp_path / file).write_text(text.format("fdrr = 0.1\n"))
    assert refusal() == f"unknown setting 'fdrr' in {file}; did you mean 'fdr'?"


def test_an_unknown_name_is_said_to_be_in_each_file_that_has_it(tmp_path):
    (tmp_path / "kdaudit.toml").write_text("max-flagged-rate = 0.1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.kdaudit]\nmax-flagged-rate = 0.1\n")
    assert "'max-flagged-rate' in kdaudit.toml and pyproject.toml; did you mean 'max_flagged_rate'?" in refusal()


def test_a_name_that_is_near_to_none_is_pointed_to_the_list(tmp_path):
    (tmp_path / "kdaudit.toml").write_text("verbosity = 3\n")
    assert refusal() == "unknown setting 'verbosity' in kdaudit.toml; the names are listed by `kdaudit schema settings`"


@pytest.mark.parametrize("variable", ["KDAUDIT_FDRR", "kdaudit_fdrr"])
def test_an_unknown_variable_is_refused_like_an_unknown_name_in_a_file(variable, monkeypatch):
    monkeypatch.setenv(variable, "3")
    assert refusal() == f"unknown setting 'fdrr' in the variable {variable}; did you mean 'fdr'?"


def test_a_variable_in_small_letters_is_read(monkeypatch):
    monkeypatch.setenv("kdaudit_seed", "3")
    assert load_settings().seed == 3


def test_every_variable_that_the_repository_names_is_a_setting_or_let_be():
    """A test or benchmark that sets another one would be refused, or do nothing."""
    wrong_on_purpose = ("test_settings.py", "test_bad_input.py")
    files = [
        file
        for place in ("kdaudit", "benchmarks", "tests", "docs", "ci", ".ci")
        for file in (ROOT / place).rglob("*")
        if file.suffix in (".py", ".md", ".yml", ".sh", "") and file.is_file() and file.name not in wrong_on_purpose
    ]
    text = "\n".join(file.read_text(encoding="utf-8") for file in (*files, ROOT / "action.yml", ROOT / "README.md"))
    named = set(re.findall(r"(?<![A-Z_])KDAUDIT_[A-Z0-9_]+", text))
    assert named - {f"KDAUDIT_{name.upper()}" for name in Settings.model_fields} == FOREIGN


def test_an_unknown_key_of_an_ignore_is_named_and_not_the_one_that_it_was_meant_for(tmp_path):
    (tmp_path / "kdaudit.toml").write_text('[[ignores]]\nrul = "KDA103"\nreason = "x"\nexpires = 2030-01-01\n')
    message = refusal()
    assert message.startswith("unknown setting 'ignores.0.rul' (from KDAUDIT_IGNORES, kdaudit.toml or pyproject.toml)")
    assert message.endswith("; did you mean 'rule'?")


@pytest.mark.parametrize(
    "given",
    [
        {"seed": -1}, {"seed": 2**31}, {"fdr": 0}, {"fdr": 1}, {"fdr": float("nan")}, {"batch_size": 0}, {"workers": 0},
        {"max_clean": 99}, {"budget": 0}, {"budget": -3}, {"budget": float("inf")}, {"repair_epochs": float("inf")},
        {"steps": 0}, {"temperature": 0}, {"temperature": float("nan")}, {"min_fidelity": 1.1}, {"min_coverage": -0.1},
        {"sensitivity": 0}, {"interventions": ()},
        {"rule": "guess"}, {"device": "tpu"}, {"fail_on": "none"}, {"decoder": "opencv"}, {"provider": "rocm"},
    ],
)  # fmt: skip
def test_a_bad_option_is_named_as_it_was_given(given):
    (name,) = given
    message = refusal(**given)
    assert f"setting '{name}'" in message
    assert f"(given as --{name.replace('_', '-')})" in message
    assert "\n" not in message


def test_as_many_clean_images_as_a_pool_needs_can_be_asked_for():
    assert load_settings(max_clean=MIN_POOL).max_clean == MIN_POOL
    assert str(MIN_POOL) in refusal(max_clean=MIN_POOL - 1)


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv("KDAUDIT_BATCH_SIZE", "many")
    message = refusal()
    assert "'batch_size'" in message
    assert "from KDAUDIT_BATCH_SIZE" in message
    assert load_settings(batch_size=8).batch_size == 8


def test_a_bad_entry_of_a_list_is_named_with_the_lists_variable(tmp_path):
    (tmp_path / "kdaudit.toml").write_text('interventions = ["cut-0.8", "half"]\n')
    message = refusal()
    assert "'interventions.1'" in message
    assert "from KDAUDIT_INTERVENTIONS, kdaudit.toml" in message


@pytest.mark.parametrize("step", ["blend-0", "cut-1", "blend-1.2", "cut-0.0", "warp-0.5", "blend", "cut-half", ""])
def test_an_intervention_that_is_none_is_refused(step):
    assert "setting 'interventions.0'" in refusal(interventions=(step,))


def test_a_list_in_a_variable_that_is_no_list_is_said_to_be_a_variable(monkeypatch):
    monkeypatch.setenv("KDAUDIT_INTERVENTIONS", "cut-0.8")
    message = refusal()
    assert "KDAUDIT_ variable" in message
    assert "interventions" in message
    assert '["blend-0.65", "cut-0.5"]' in message
    assert "configuration file" not in message


@pytest.mark.parametrize("file", ["kdaudit.toml", "pyproject.toml"])
def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path, file):
    (tmp_path / file).write_text("seed = 1\nseed == 2\n")
    message = refusal()
    assert "a configuration file" in message
    assert "line 2" in message


# -- the command line

SHARED = (options.machine_options, options.control_options, options.judging_options, options.repair_options)


def shared_options() -> list[click.Option]:
    @click.command()
    def command() -> None: ...

    for stack in SHARED:
        stack(command)
    return [p for p in command.params if isinstance(p, click.Option)]


def command_options() -> list[tuple[str, click.Option]]:
    found = []
    for name, command in cli.commands.items():
        found += [(name, p) for p in command.params if isinstance(p, click.Option) and p.name in Settings.model_fields]
    return found


OPTIONS = [("shared", option) for option in shared_options()] + command_options()


def named(option: tuple[str, click.Option]) -> str:
    return f"{option[0]}-{option[1].name}"


def test_there_are_options_to_look_at():
    assert len(shared_options()) > 15
    assert len(command_options()) > 30


@pytest.mark.parametrize("option", shared_options(), ids=lambda o: o.name)
def test_every_shared_option_is_a_setting(option):
    assert option.name in Settings.model_fields
    assert f"--{option.name.replace('_', '-')}" in option.opts


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_an_option_that_is_not_given_leaves_the_setting_alone(option):
    if option[0] != "demo":  # its seed makes the delivery as well
        assert option[1].default in (None, click.core.UNSET)


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_the_default_in_the_help_is_the_settings(option):
    _, option = option
    found = re.search(r"\[default: (.+?)\]", option.help or "")
    if found is None:
        return
    said, real = found.group(1), Settings.model_fields[option.name].default
    if real is None:
        assert not re.fullmatch(r"[\d.]+", said)  # words for what is found out
    elif real is True:
        assert said == option.name
    elif isinstance(real, str):
        assert said == real
    else:
        assert float(said) == real


@pytest.mark.parametrize("option", OPTIONS, ids=named)
def test_a_number_or_choice_with_a_default_says_so(option):
    _, option = option
    real = Settings.model_fields[option.name].default
    if real is not None and not option.is_flag and not option.show_default:
        assert "[default: " in (option.help or "")


@pytest.mark.parametrize("option", [o for o in OPTIONS if isinstance(o[1].type, click.Choice)], ids=named)
def test_an_option_offers_the_settings_choices(option):
    _, option = option
    for choice in option.type.choices:
        assert str(getattr(load_settings(**{option.name: choice}), option.name)) == choice
    with pytest.raises(UsageError, match=r"Input should be|'") as caught:
        load_settings(**{option.name: "nonsense"})
    offered = set(re.findall(r"'(\w+)'", str(caught.value))) - {option.name}
    assert offered == set(option.type.choices)
