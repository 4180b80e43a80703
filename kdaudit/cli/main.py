"""The `kdaudit` command: its sub-commands, and the one place where errors become exit codes."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from kdaudit.cli.commands.compare import compare
from kdaudit.cli.commands.completion import completion
from kdaudit.cli.commands.demo import demo
from kdaudit.cli.commands.diff import diff
from kdaudit.cli.commands.distill import distill
from kdaudit.cli.commands.doctor import doctor
from kdaudit.cli.commands.explain import explain
from kdaudit.cli.commands.gate import gate
from kdaudit.cli.commands.inspect import inspect
from kdaudit.cli.commands.repair import repair
from kdaudit.cli.commands.report import report
from kdaudit.cli.commands.scan import scan
from kdaudit.cli.commands.schema import schema
from kdaudit.errors import Exit, KdauditError
from kdaudit.memory import frugal
from kdaudit.version import __version__

EPILOG = """\b
Exit codes: 0 passed, 1 a finding at or over --fail-on, 2 error, 3 inconclusive, 130 interrupted (resumable).
Settings are also read from KDAUDIT_ variables, kdaudit.toml and [tool.kdaudit] in pyproject.toml.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EPILOG)
@click.version_option(__version__, prog_name="kdaudit")
def cli() -> None:
    """Audit image classifiers and image data sets that came from somebody else.

    Answers three questions: is this classifier backdoored, which images of this data set are poison, and
    what to use instead. Begin with `kdaudit demo`.
    """


for command in (
    scan,
    inspect,
    distill,
    compare,
    repair,
    report,
    gate,
    diff,
    explain,
    schema,
    demo,
    doctor,
    completion,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    frugal()
    try:
        code = cli.main(args=arguments, prog_name="kdaudit", standalone_mode=False)
        sys.stdout.flush()
    except KdauditError as error:
        _complain(f"error: {error}")
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        code = Exit.ERROR
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted: nothing half-written is left behind; the same command with the same -o goes on")
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.ERROR
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        _complain(
            f"error: {error.strerror or error}{place}; what was written so far is kept, and the same command goes on"
        )
        code = Exit.ERROR
    except MemoryError:
        _complain("error: out of memory; try a smaller --batch-size or --max-clean")
        code = Exit.ERROR
    except Exception:  # noqa: BLE001  exit code 1 means "gate failed", so no defect of ours may end with it
        traceback.print_exc()
        _complain("error: this is a defect of kdaudit; please report it with the lines above and `kdaudit doctor`")
        code = Exit.ERROR
    sys.exit(int(code or 0))


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A polite kill ends a run the way Ctrl-C does."""
    raise KeyboardInterrupt


def _complain(line: str) -> None:
    click.echo(f"kdaudit: {line}", err=True)
