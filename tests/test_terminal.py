"""What a terminal gets: colours where they are wanted, lines that fit, bars that say how long, a mending doctor."""

import io
import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from deliveries import environment, finished, kdaudit_command
from reports import document, rate, whole

from kdaudit.cli import console, outcome
from kdaudit.demo import READING
from kdaudit.doctor import Check
from kdaudit.report.text import fitted, render

ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(variables, wanted, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert outcome.coloured() is wanted
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert outcome.coloured() is False
    if not variables.get("NO_COLOR"):
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert outcome.coloured() is True


def test_only_the_verdict_is_coloured_and_the_words_stay_the_same(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(outcome, "coloured", lambda: True)
    outcome.put(document(), tmp_path, "text")
    bright = capsys.readouterr().out
    monkeypatch.setattr(outcome, "coloured", lambda: False)
    outcome.put(document(), tmp_path, "text")
    plain = capsys.readouterr().out
    assert ANSI.sub("", bright) == plain
    assert ANSI.findall(bright)
    assert not ANSI.findall(plain)
    assert not ANSI.findall(bright.partition("\n")[2])


@pytest.mark.parametrize("columns", [40, 60, 80, 110])
def test_sentences_fit_the_window(columns, tmp_path):
    made = render(document(), tmp_path.relative_to("/"), columns)
    for line in [*made.splitlines(), *fitted(READING, 12, columns).splitlines()]:
        assert len(line) <= columns or " " not in line.strip(), line


@pytest.mark.parametrize("columns", [40, 60, 80, 110])
def test_the_table_of_classes_keeps_its_columns(columns, tmp_path):
    rows = [
        {"answer": n, "name": name, "flagged": rate(*flags), "share_of_flags": 0.1}
        for n, name, flags in ((7, None, (40, 6000)), (12, "a very long name of a class, as they come", (1, 2)))
    ]
    made = document(judgement=whole()["judgement"] | {"by_answer": rows * 4})
    lines = render(made, tmp_path.relative_to("/"), columns).splitlines()
    (at,) = [i for i, line in enumerate(lines) if re.match(r" +answer +flagged +of +rate", line)]
    table = lines[at : at + 6]
    ends = {re.search(r"(of|\d)(?=   (rate|\d))", line).end() for line in table}  # the third column is flush right
    assert len(ends) == 1
    assert ("interval" in table[0]) == ("[" in table[1]) == (columns >= 110)
    assert lines[at + 6].strip() == "and 3 more in report.html"


def test_the_summary_has_what_one_would_screenshot(tmp_path):
    made = document(why=["first reason", "second reason", "third reason", "fourth reason"])
    lines = render(made, tmp_path, 100).splitlines()
    assert [line.strip() for line in lines[:5]] == [
        "verdict: FAILED", "first reason", "second reason", "third reason", "and 1 more reasons in report.html",
    ]  # fmt: skip
    assert "what to do next" in lines
    assert any(line.startswith("run ") and "report.html" in line for line in lines)


@pytest.mark.parametrize(("width", "bar"), [(60, False), (120, True)])
def test_a_bar_says_rate_and_time_left_and_drops_the_bar_first(width, bar, monkeypatch):
    from rich.console import Console
    from rich.progress import Progress

    monkeypatch.setattr(Progress, "update", drawn_at_once(Progress.update))
    shown = io.StringIO()
    bars = console.Bars()
    bars._console = Console(file=shown, force_terminal=True, width=width, highlight=False, color_system=None)
    with bars.stage("compare", 1000) as advance:
        advance(500)
        advance(100)
    text = shown.getvalue()
    assert re.search(r"600/1,000 [\d,.]+ images/s \d+ s( left)?", text)
    assert re.search(r"✓ compare +(━+ )?600 images, [\d,.]+/s \d+ s", text)  # what was done, and how long it took
    assert "?" not in re.sub(r"\x1b\[\?", "", text)
    assert ("━" in text) is bar


def drawn_at_once(update):
    """Draw each change, whatever the clock says."""

    def now(progress, *arguments, **changes):
        update(progress, *arguments, **changes)
        progress.refresh()

    return now


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00"), (185, "3:05"), (7385, "2:03:05")]
)
def test_a_time_reads_at_a_glance(seconds, text):
    assert console._clocked(seconds) == text


def test_a_slow_rate_has_a_tenth_and_an_unknown_total_no_question_mark():
    assert [console._pace(rate) for rate in (0.123, 9.94, 9.95, 12_345.6)] == ["0.1", "9.9", "10", "12,346"]
    assert [console._count(0, None), console._count(7, None), console._count(0, 1500)] == ["", "7", "0/1,500"]


def test_without_a_terminal_there_are_lines_and_no_escapes():
    done = kdaudit_command("inspect", "nowhere.onnx")
    assert not ANSI.findall(done.stderr + done.stdout)
    assert done.returncode == 2


def test_help_in_a_real_terminal_is_readable_in_a_narrow_window():
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kdaudit", "gate", "--help"],
        stdout=child, stderr=child, env=environment(COLUMNS="50"), close_fds=True,
    )  # fmt: skip
    os.close(child)
    text = b""
    try:
        while part := os.read(parent, 4096):
            text += part
    except OSError:
        pass  # how a terminal says that the other side has gone
    os.close(parent)
    assert process.wait() == 0
    assert b"--baseline" in text


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("kdaudit ex", "1", {"plain,explain"}),
        ("kdaudit gate --fail-on ", "3", {"plain,low", "plain,never"}),
        ("kdaudit report --form", "2", {"plain,--format"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words, number, offered):
    env = environment(_KDAUDIT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=number)
    done = kdaudit_command(env=env)
    assert offered <= set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(shell):
    text = finished(kdaudit_command("completion", shell), 0)
    assert "_KDAUDIT_COMPLETE" in text
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_the_doctor_names_the_command_that_mends(monkeypatch, capsys):
    from kdaudit.cli.main import main

    checks = [
        Check(
            "torch", "broken", "does not import", "pip install -c constraints.txt --force-reinstall torch torchvision"
        ),
        Check("decoder dali", "absent", "not installed", "pip install -c constraints.txt '.[dali]'"),
        Check("provider cpu", "ok", "works"),
    ]
    monkeypatch.setattr("kdaudit.doctor.examine", lambda: iter(checks))
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    shown = capsys.readouterr()
    assert left.value.code == 2
    assert "!!  torch" in shown.out
    assert "mend it with: pip install -c constraints.txt --force-reinstall torch torchvision" in shown.out
    assert "mend it with: pip install -c constraints.txt '.[dali]'" in shown.out
    assert shown.out.count("mend it with") == 2


@pytest.mark.parametrize(
    ("gpus", "offered", "state"), [(0, ["cpu"], "absent"), (2, ["cpu"], "broken"), (2, ["cuda", "cpu"], "ok")]
)
def test_the_doctor_tells_a_missing_gpu_from_missing_libraries(gpus, offered, state, monkeypatch):
    from kdaudit import doctor

    monkeypatch.setattr("kdaudit.runtime.available_providers", lambda: offered)
    monkeypatch.setattr("kdaudit.runtime.cuda_devices", lambda: gpus)
    (found,) = [check for check in doctor._providers() if check.name == "provider cuda"]
    assert found.state == state
    assert ("'.[gpu]'" in found.mend) == (state == "broken")


@pytest.mark.parametrize(
    ("level", "state", "said"),
    [
        ("landlock+seccomp+limits", "ok", "landlock+seccomp+limits"),
        ("seccomp+limits", "absent", "seccomp+limits only: this kernel offers no landlock"),
        ("limits", "absent", "limits only: this kernel offers no landlock and no seccomp"),
    ],
)
def test_the_doctor_says_which_walls_stand(level, state, said, monkeypatch):
    from kdaudit import doctor

    worker = SimpleNamespace(level=level, close=lambda: None)
    monkeypatch.setattr("kdaudit.admission.confined.Admitter", lambda: worker)
    found = doctor._confinement()
    assert (found.state, found.detail) == (state, said)


def test_explain_and_schema_print():
    text = finished(kdaudit_command("explain", "kda201"), 0)
    assert text.startswith("KDA201: flagged images gather at one answer of the model")
    assert "what to do" in text
    assert finished(kdaudit_command("explain"), 0).count("KDA") > 30
    done = kdaudit_command("explain", "KDA999")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
