"""The gate: what exits with which code, what a baseline and an ignore take out of it, and that both stay visible."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deliveries import Scan, copied, finished, honest_scan, kdaudit_command, vendor_scan
from reports import document, rate, whole

from kdaudit.errors import Exit, UsageError
from kdaudit.gate import MAX_DIGESTS, Baseline, apply, candidates_section, fingerprinted, read_baseline
from kdaudit.report.checks import conclude
from kdaudit.report.diff import compare_reports, render_difference
from kdaudit.report.document import Document
from kdaudit.report.sections import FindingRow
from kdaudit.settings import Settings, load_settings

TODAY = date(2026, 6, 1)
FORMATS = ("text", "json", "html", "sarif", "junit", "markdown", "github")


def gated(made: Document, baseline: Baseline | None = None, **settings: Any) -> Document:
    return apply(made, Settings(min_coverage=settings.pop("min_coverage", 0.9), **settings), baseline, TODAY)


def base(made: Document, tmp_path: Path) -> Baseline:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(made.model_dump(mode="json")))
    found = read_baseline(file)
    assert found is not None
    return found


def ignore(rule: str = "KDA201", expires: str = "2026-06-01", **more: str) -> dict[str, str]:
    return {"rule": rule, "reason": "known, ticket 12", "expires": expires} | more


def passed() -> Document:
    return document(verdict="PASSED", why=["nothing stands out"], findings=[])


# -- severities


@pytest.mark.parametrize(("fail_on", "code"), [("low", 1), ("medium", 1), ("high", 1), ("critical", 1), ("never", 0)])
def test_a_finding_at_or_over_the_bar_fails(fail_on, code):
    assert gated(document(), fail_on=fail_on).exit_code == code


@pytest.mark.parametrize(("fail_on", "code"), [("low", 1), ("medium", 0), ("high", 0), ("never", 0)])
def test_a_low_finding_fails_only_where_that_was_asked(fail_on, code):
    low = [f for f in whole()["findings"] if f["severity"] == "low"]
    made = gated(document(verdict="PASSED", why=["x"], findings=low), fail_on=fail_on)
    assert made.exit_code == code
    assert made.verdict == "PASSED"  # the gate never changes what was found


@pytest.mark.parametrize("fail_on", ["low", "never"])
def test_an_open_question_is_never_a_passed_gate(fail_on):
    made = gated(document(verdict="INCONCLUSIVE", why=["too few images"]), fail_on=fail_on)
    assert made.exit_code == Exit.INCONCLUSIVE
    assert made.gate.reasons == ["too few images"]


@pytest.mark.parametrize("verdict", ["PASSED", "FAILED", "INCONCLUSIVE"])
def test_exit_zero_exits_with_zero_and_says_what_it_hid(verdict):
    made = gated(document(verdict=verdict), exit_zero=True)
    assert made.exit_code == 0
    assert made.verdict == verdict
    if verdict == "INCONCLUSIVE":
        assert made.gate.notes == ["--exit-zero: the gate is inconclusive, the exit code is 0"]
    else:
        assert made.gate.result == "failed"
        assert made.gate.notes == ["--exit-zero: the gate failed, the exit code is 0"]


# -- the flagged rate


@pytest.mark.parametrize(("limit", "code"), [(0.0, 1), (41 / 12_345, 0), (40.9 / 12_345, 1), (1.0, 0)])
def test_more_flags_than_allowed_fail(limit, code):
    made = gated(passed(), max_flagged_rate=limit)
    assert made.exit_code == code
    assert [r for r in made.gate.reasons if "--max-flagged-rate" in r] == made.gate.reasons
    assert len(made.gate.reasons) == code


def test_with_a_baseline_only_new_flags_count_for_the_rate(tmp_path):
    known = base(passed(), tmp_path)
    assert gated(passed(), known, max_flagged_rate=0.0).exit_code == 0
    more = passed().model_copy(update={"candidates": candidates_section([f"{i:032x}" for i in range(43)])})
    made = gated(more, known, max_flagged_rate=0.0)
    assert made.exit_code == 1
    assert "2 of 12,345" in made.gate.reasons[0]


# -- the baseline


def test_a_run_passes_against_itself_and_still_shows_its_findings(tmp_path):
    made = gated(document(), base(document(), tmp_path))
    assert (made.exit_code, made.gate.result, made.verdict) == (0, "passed", "FAILED")
    assert [f.rule for f in made.findings] == ["KDA201", "KDA103"]
    assert {f.suppressed.by for f in made.findings if f.suppressed} == {"baseline"}
    assert made.gate.new_candidates == 0


def test_a_finding_that_is_new_fails(tmp_path):
    known = base(document(findings=whole()["findings"][1:]), tmp_path)
    made = gated(document(), known)
    assert made.exit_code == 1
    assert [f.suppressed is None for f in made.findings] == [True, False]


def test_new_candidates_bring_a_known_finding_about_images_back(tmp_path):
    known = base(document(), tmp_path)
    one_more = document(candidates=candidates_section([f"{i:032x}" for i in range(42)]))
    made = gated(one_more, known)
    assert made.exit_code == 1
    assert made.gate.new_candidates == 1
    assert "KDA201 is in the baseline, but 1 flagged images are not" in made.gate.notes[0]
    fewer = document(candidates=candidates_section([f"{i:032x}" for i in range(30)]))
    assert gated(fewer, known).exit_code == 0


def test_another_model_has_other_findings(tmp_path):
    known = base(document(), tmp_path)
    rows = [FindingRow(rule="KDA201", severity="critical", message="m", subject="answer 1")]
    assert gated(document(findings=fingerprinted(rows, "bb")), known).exit_code == 0
    assert gated(document(findings=fingerprinted(rows, "cc")), known).exit_code == 1


def test_a_fingerprint_follows_from_rule_model_and_subject_and_not_from_the_counts():
    def named(message: str, subject: str) -> str:
        (row,) = fingerprinted([FindingRow(rule="KDA201", severity="critical", message=message, subject=subject)], "bb")
        return row.fingerprint

    assert named("5 of 9", "answer 1") == named("6 of 9", "answer 1")
    assert named("5 of 9", "answer 1") != named("5 of 9", "answer 2")
    row = FindingRow(rule="KDA201", severity="critical", message="m")
    assert len({f.fingerprint for f in fingerprinted([row, row, row], "bb")}) == 3


def test_what_a_suppressed_finding_left_open_does_not_pass(tmp_path):
    """A FAILED verdict was given before anyone looked at the coverage; suppressed, the coverage counts."""
    made = gated(document(), base(document(), tmp_path), min_coverage=0.99)
    assert made.exit_code == Exit.INCONCLUSIVE
    assert "94.14%" in made.gate.reasons[0]
    made = gated(document(), base(document(), tmp_path), sensitivity=0.01)
    assert made.exit_code == Exit.INCONCLUSIVE


def test_too_few_clean_images_do_not_pass_because_a_finding_is_suppressed(tmp_path):
    few = document()
    few = few.model_copy(
        update={
            "control": few.control.model_copy(update={"calibration_images": 40}),
            "judgement": few.judgement.model_copy(update={"visible_rate": 1.0}),
        }
    )
    made = gated(few, base(few, tmp_path))
    assert made.exit_code == Exit.INCONCLUSIVE
    assert "40 calibration images show no poison by counting" in made.gate.reasons[0]
    other = few.model_copy(update={"judgement": few.judgement.model_copy(update={"rule": "argmax"})})
    assert gated(other, base(other, tmp_path)).exit_code == Exit.PASSED  # that rule does not count on them


@pytest.mark.parametrize(
    ("section", "change", "settings", "row"),
    [
        ("coverage", {"share": 0.8}, {}, "coverage"),
        ("coverage", {"unopened": 2}, {}, "archives"),
        ("judgement", {"visible_rate": 1.0}, {}, "calibration"),
        ("judgement", {"visible_rate": 0.2}, {"sensitivity": 0.1}, "sensitivity"),
    ],
)
def test_whatever_the_gate_finds_left_open_has_a_row_among_the_checks(section, change, settings, row):
    """And nothing else: what keeps a scan from passing and what the list of checks says are one question."""
    made = passed()
    wanting = made.model_copy(update={section: getattr(made, section).model_copy(update=change)})
    asked = Settings(min_coverage=0.9, min_fidelity=0.5, **settings)
    for one, missing in ((wanting, [row]), (made, [])):
        done = conclude(one, Settings(min_coverage=0.9, min_fidelity=0.5) if one is made else asked, None, TODAY)
        assert [c.id for c in done.checks if c.group == "audit" and c.state == "inconclusive"] == missing
        assert (done.exit_code == Exit.INCONCLUSIVE) == bool(missing)


def test_an_open_finding_beside_a_suppressed_one_does_not_pass():
    trace = FindingRow(rule="KDA208", severity="medium", message="300 images share where they are sharp")
    flags = [f for f in document().findings if f.rule == "KDA201"]
    made = document().model_copy(update={"findings": [*flags, trace]})
    held = gated(made, ignores=(ignore(),))
    assert (held.exit_code, held.gate.reasons) == (Exit.INCONCLUSIVE, [trace.message])
    assert gated(made, ignores=(ignore(), ignore("KDA208"))).exit_code == Exit.PASSED


def flagged_run(folder, digests):
    """A run directory's report and table, of as many flagged images as there are digests, and one that is not."""
    folder.mkdir()
    made = document(candidates=candidates_section(digests))
    (folder / "report.json").write_text(made.model_dump_json())
    ids = [f"{digest}:a/{i}.png" for i, digest in enumerate(digests)] + [f"{'f' * 32}:b.png"]
    flags = [True] * len(digests) + [False]
    pq.write_table(pa.table({"id": ids, "flag": flags}), folder / "samples.parquet", row_group_size=4000)
    return made


def test_more_flagged_images_than_a_report_lists_are_told_apart_by_the_tables(tmp_path):
    digests = [f"{i:032x}" for i in range(MAX_DIGESTS + 50)]
    old = flagged_run(tmp_path / "old", digests)
    new = flagged_run(tmp_path / "new", [*digests[7:], *(f"{i:032x}" for i in range(10**6, 10**6 + 3))])
    assert old.candidates.digests == new.candidates.digests == []
    known = read_baseline(tmp_path / "old")
    assert gated(old, known).gate.new_candidates == 0  # the very same images need no table
    settings = Settings(min_coverage=0.9)
    found = apply(new, settings, known, TODAY, tmp_path / "new")
    assert found.gate.new_candidates == 3
    assert found.exit_code == 1
    fewer = apply(flagged_run(tmp_path / "fewer", digests[:-5]), settings, known, TODAY, tmp_path / "fewer")
    assert (fewer.gate.new_candidates, fewer.exit_code) == (0, 0)
    told = compare_reports(old, new, (tmp_path / "old", tmp_path / "new"))
    assert (told.candidates_gone, told.candidates_new) == (digests[:7], [f"{i:032x}" for i in range(10**6, 10**6 + 3)])


def test_without_its_table_a_baseline_cannot_tell_more_images_apart(tmp_path):
    digests = [f"{i:032x}" for i in range(MAX_DIGESTS + 1)]
    many = flagged_run(tmp_path / "run", digests)
    known = base(many, tmp_path)  # the report alone
    assert gated(many, known).exit_code == 0  # the very same images
    with pytest.raises(UsageError, match=r"10,001 images are flagged.*keep .*samples\.parquet beside the report"):
        gated(document(), known)
    assert compare_reports(many, document()).candidates_new is None
    flagged_run(tmp_path / "other", [*digests[:-1], "e" * 32])
    (tmp_path / "other/samples.parquet").replace(tmp_path / "run/samples.parquet")
    with pytest.raises(UsageError, match="not that of the report beside it"):
        gated(document(), read_baseline(tmp_path / "run"))
    (tmp_path / "run/samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot be read"):
        gated(document(), read_baseline(tmp_path / "run"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("not json", "is not JSON"),
        ("{}", "is damaged or of another version of kdaudit"),
        ('{"status": "unfinished"}', "is the report of an unfinished run"),
        ("[]", "is damaged or of another version"),
    ],
)
def test_what_is_no_report_is_no_baseline(content, why, tmp_path):
    file = tmp_path / "b.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=why):
        read_baseline(file)


def test_a_baseline_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="gone"):
        read_baseline(tmp_path / "gone")
    assert read_baseline(None) is None


# -- ignores


def test_an_ignore_holds_through_its_last_day_and_not_a_day_longer():
    held = gated(document(), ignores=(ignore(),))
    assert held.exit_code == 0
    assert held.findings[0].suppressed is not None
    assert held.findings[0].suppressed.model_dump() == {
        "by": "ignore", "reason": "known, ticket 12", "expires": "2026-06-01",
    }  # fmt: skip
    expired = gated(document(), ignores=(ignore(expires="2026-05-31"),))
    assert expired.exit_code == 1
    assert expired.gate.notes == ["the ignore of KDA201 (known, ticket 12) expired on 2026-05-31: it counts again"]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({}, 0), ({"subject": "answer 1"}, 0), ({"subject": "answer 2"}, 1), ({"model": "aa"}, 0), ({"model": "ab"}, 1),
        ({"rule": "KDA202"}, 1),
    ],
)  # fmt: skip
def test_an_ignore_holds_for_what_it_names(more, code):
    assert gated(document(), ignores=(ignore(**more),)).exit_code == code


@pytest.mark.parametrize(
    "line",
    [
        '{rule = "KDA201", expires = 2026-01-01}', '{rule = "KDA201", reason = "", expires = 2026-01-01}',
        '{rule = "KDA201", reason = "x"}', '{rule = "201", reason = "x", expires = 2026-01-01}',
        '{rule = "KDA201", reason = "x", expires = "soon"}',
        '{rule = "KDA201", reason = "x", expires = 2026-01-01, y = 1}',
    ],
)  # fmt: skip
def test_an_ignore_needs_a_rule_a_reason_and_a_last_day(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kdaudit.toml").write_text(f"ignores = [{line}]\n")
    with pytest.raises(UsageError, match="ignores"):
        load_settings()


def test_ignores_come_from_the_configuration_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kdaudit.toml").write_text('[[ignores]]\nrule = "KDA103"\nreason = "why"\nexpires = 2030-12-31\n')
    (found,) = load_settings().ignores
    assert (found.rule, found.reason, found.expires) == ("KDA103", "why", date(2030, 12, 31))


def test_suppressed_findings_are_shown_everywhere(tmp_path):
    from outputs import valid_junit, valid_sarif

    from kdaudit.report.outputs import render_as

    made = conclude(document(), Settings(min_coverage=0.9, ignores=(ignore(),)), None, TODAY)
    results = valid_sarif(render_as("sarif", made, Path()))["runs"][0]["results"]
    assert [bool(result.get("suppressions")) for result in results] == [True, False, True, True]
    assert (
        valid_junit(render_as("junit", made, Path()))["KDA201 flagged images gather at one answer of the model"]
        == "skipped"
    )
    for form in ("text", "markdown", "github"):
        text = render_as(form, made, Path())
        assert "suppressed: known, ticket 12" in text
        assert "2026" in text
    held = gated(document(), base(document(), tmp_path))
    states = [r["baselineState"] for r in valid_sarif(render_as("sarif", held, Path()))["runs"][0]["results"][:2]]
    assert states == ["unchanged", "unchanged"]


def test_github_tells_a_suppressed_finding_with_its_reason_and_does_not_call_it_an_error():
    from kdaudit.report.markdown import render_github

    held = (ignore(), ignore("KDA103"))
    lines = render_github(conclude(document(), Settings(min_coverage=0.9, ignores=held), None, TODAY)).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::notice"] * 3
    title = "title=KDA201 flagged images gather at one answer of the model"
    message = "40 of 41 flagged images get the answer 1 (dog)"
    assert lines[0] == (
        f"::notice file=vendor.onnx,{title}::{message} (suppressed: known, ticket 12, until 2026-06-01)"
    )
    assert "KDA103" in lines[1]


def test_an_ignore_that_has_expired_is_told_by_every_format():
    from outputs import valid_junit, valid_sarif

    from kdaudit.report.outputs import render_as

    lapsed = ignore(expires="2026-05-31", subject="answer 1")
    made = conclude(document(), Settings(min_coverage=0.9, ignores=(lapsed,)), None, TODAY)
    assert made.findings[0].expired is not None
    assert made.findings[0].expired.expires == "2026-05-31"
    assert made.findings[1].expired is None
    for form in ("text", "json", "junit", "markdown", "sarif", "github"):
        assert "expired on 2026-05-31" in " ".join(render_as(form, made, Path()).split()), form
    results = valid_sarif(render_as("sarif", made, Path()))["runs"][0]["results"]
    assert "known, ticket 12, expired on 2026-05-31: it counts again" in results[0]["message"]["text"]
    assert "expired" not in results[1]["message"]["text"]
    assert not any("suppressions" in result for result in results)
    warning = "the ignore of KDA201 (known, ticket 12) expired on 2026-05-31: it counts again"
    assert f"::warning title=kdaudit gate::{warning}" in render_as("github", made, Path()).splitlines()
    assert valid_junit(render_as("junit", made, Path()))["gate the gate"] == "failure"


def test_an_ignore_that_has_expired_is_not_said_to_count_where_another_one_holds(tmp_path):
    old, new = ignore(expires="2026-05-31"), ignore(expires="2026-07-01")
    for made in (gated(document(), ignores=(old, new)), gated(document(), base(document(), tmp_path), ignores=(old,))):
        assert made.exit_code == 0
        assert made.findings[0].suppressed is not None
        assert made.findings[0].expired is None
        assert made.gate.notes == []


# -- diff


def test_equal_reports_have_no_difference():
    assert not compare_reports(document(), document(created="2020-01-01T00:00:00+00:00", timings={"judge": 9.0}))
    assert render_difference(compare_reports(document(), document()), {}) == "nothing changed"


def test_a_difference_names_exactly_what_changed():
    sections = whole()
    new = document(
        candidates=candidates_section([f"{i:032x}" for i in range(1, 42)]),
        findings=sections["findings"][:1],
        judgement=sections["judgement"]
        | {
            "flagged": rate(42, 12_345),
            "by_answer": [sections["judgement"]["by_answer"][0] | {"flagged": rate(41, 6000)}],
        },
        recipe=sections["recipe"] | {"settings": {"seed": 1}},
    )
    found = compare_reports(document(), new)
    assert found.changed == {
        "flagged": ("0.33 % (41 of 12,345)", "0.34 % (42 of 12,345)"),
        "flagged with answer 1": ("40", "41"),
    }
    assert found.findings_new == []
    assert found.findings_gone == ["KDA103 (low): 2 weights that nothing reads"]
    assert found.candidates_new == [f"{41:032x}"]
    assert found.candidates_gone == [f"{0:032x}"]
    assert found.settings == {"seed": ("0", "1")}
    text = render_difference(found, {f"{41:032x}": "dog/\x1bnew.png"})
    assert text.splitlines() == [
        "flagged: 0.33 % (41 of 12,345) -> 0.34 % (42 of 12,345)",
        "flagged with answer 1: 40 -> 41",
        "- finding KDA103 (low): 2 weights that nothing reads",
        "+ flagged now: 1 contents",
        "+   dog/\\x1bnew.png",
        "- flagged no more: 1 contents",
        f"-   {0:032x}",
        "setting seed: 0 -> 1",
    ]


# -- as people run it


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Scan:
    """The vendor's poisoned delivery, scanned once."""
    return vendor_scan(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Scan:
    """The honest delivery, scanned once."""
    return honest_scan(tmp_path_factory.getbasetemp())


@pytest.fixture
def run_gate(capsys):
    """`kdaudit gate ARGUMENTS` in this process: its exit code and what it printed."""
    from kdaudit.cli.main import main

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(["gate", *map(str, arguments)])
        return int(left.value.code or 0), capsys.readouterr().out

    return run


@pytest.mark.slow
def test_a_clean_run_exits_0_a_planted_one_1_and_against_its_own_baseline_0(planted, clean, run_gate):
    assert run_gate(clean.run)[0] == 0
    assert run_gate(planted.run)[0] == 1
    code, held = run_gate(planted.run, "--baseline", planted.run)
    assert code == 0
    assert "verdict: FAILED" in held
    assert "suppressed: in the baseline" in held
    for arguments, code in {
        ("--baseline", planted.run / "report.json"): 0,
        ("--baseline", clean.run): 1,
        ("--baseline", planted.run / "kept.csv"): 2,
        ("--exit-zero",): 0,
        ("--fail-on", "never"): 0,
        ("--fail-on", "never", "--max-flagged-rate", "0.01"): 1,
    }.items():
        assert run_gate(planted.run, *arguments)[0] == code, arguments
    # Nothing of this changed the run.
    assert json.loads((planted.run / "report.json").read_text()) == planted.report


@pytest.mark.slow
def test_a_scan_against_its_own_baseline_exits_0_and_its_files_say_so(planted, tmp_path):
    report = planted.again(tmp_path / "run", "--no-repair", "--baseline", planted.run / "report.json", code=0)
    assert (report["verdict"], report["gate"]["result"]) == ("FAILED", "passed")
    assert report["findings"][0]["suppressed"]["by"] == "baseline"
    assert '"suppressions"' in (tmp_path / "run/findings.sarif").read_text()


@pytest.mark.slow
def test_an_ignore_in_the_configuration_passes_and_an_expired_one_fails_again(planted, tmp_path, monkeypatch, run_gate):
    monkeypatch.chdir(tmp_path)
    for expires, code in (("9999-12-31", 0), ("2000-01-01", 1)):
        (tmp_path / "kdaudit.toml").write_text(
            "".join(
                f'[[ignores]]\nrule = "{rule}"\nreason = "known"\nexpires = {expires}\n'
                for rule in ("KDA201", "KDA202", "KDA207")
            )
        )
        found, output = run_gate(planted.run)
        assert found == code, output
        assert ("expired on 2000-01-01" in output) == bool(code)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_no_format_changes_the_exit_code(form, planted, clean, run_gate):
    assert run_gate(planted.run, "--format", form)[0] == 1
    assert run_gate(clean.run, "--format", form)[0] == 0


@pytest.mark.slow
def test_five_percent_unreadable_exit_3_in_every_format(clean, tmp_path, run_gate):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(clean.delivery.data, data)
    for number in range(round(0.05 * clean.report["coverage"]["scanned"]) + 3):
        (data / f"3/cut{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    run = copied(clean.run, tmp_path / "run")
    command = ["scan", clean.delivery.model, data, "-o", run, "--steps", clean.command[4], "--no-repair"]
    output = finished(kdaudit_command(*command), 3)
    assert "verdict: INCONCLUSIVE" in output
    for form in FORMATS:
        assert run_gate(run, "--format", form)[0] == 3
    assert run_gate(run, "--min-coverage", "0.5")[0] == 3  # the verdict was given under the stricter one


@pytest.mark.slow
def test_diff_names_the_images_that_are_flagged_in_one_run_only(planted, tmp_path):
    table = kdaudit_command("diff", planted.run, planted.run)
    assert finished(table, 0) == "nothing changed\n"
    planted.again(tmp_path / "run", "--no-repair", "--fdr", "0.3", code=1)
    found = json.loads(finished(kdaudit_command("diff", planted.run, tmp_path / "run", "--format", "json"), 0))
    before = set(planted.report["candidates"]["digests"])
    after = set(json.loads((tmp_path / "run/report.json").read_text())["candidates"]["digests"])
    assert set(found["candidates_gone"]) == before - after
    assert set(found["candidates_new"]) == after - before
    assert found["settings"]["fdr"] == ["0.05", "0.3"]
    text = finished(kdaudit_command("diff", planted.run, tmp_path / "run"), 0)
    assert "setting fdr: 0.05 -> 0.3" in text
