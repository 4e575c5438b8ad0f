"""The command ``lipray``: commands are thin, and import what they need only when they run."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from lipray import __version__
from lipray.cli.certify import certify_command
from lipray.cli.doctor import doctor_command
from lipray.cli.estimate import estimate_command
from lipray.cli.jobs import logs_command, status_command, stop_command
from lipray.cli.plan import plan_command
from lipray.cli.report import report_command
from lipray.cli.resume import resume_command
from lipray.cli.runs import runs_command
from lipray.cli.submit import submit_command
from lipray.cli.sweep import sweep_command
from lipray.cli.train import train_command
from lipray.cli.verify import verify_command
from lipray.errors import LiprayError
from lipray.run.stop import Stopped

INTERRUPTED = 130
EXPECTED_VERSION = "LIPRAY_EXPECTED_VERSION"
"""Set in the driver of a job, see ``lipray.jobs.driver``."""


class Commands(click.Group):
    """A group whose errors are one message on stderr and an exit code, never a traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run a command and exit with its code."""
        words = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        sys.exit(self._run(words, rest, extra))

    def _run(self, words: list[str], rest: tuple[Any, ...], extra: dict[str, Any]) -> int:
        debug = "--debug" in words
        try:
            code = super().main(words, *rest, **extra)
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted")
            return INTERRUPTED
        except Stopped as told:
            _complain(f"stopped by {told.name}, before there was a bound")
            return told.exit_code
        except click.ClickException as fault:
            context = getattr(fault, "ctx", None)
            _complain(fault.format_message(), f"See {context.command_path} --help." if context else "")
            return fault.exit_code
        except LiprayError as fault:
            if debug:
                traceback.print_exc()
            _complain(fault.describe(), fault.hint)
            return fault.exit_code
        except BrokenPipeError:
            # Whoever read our output has gone; say nothing when Python flushes what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as fault:  # noqa: BLE001 - the last resort of the command
            if debug:
                traceback.print_exc()
            reason = str(fault).strip().splitlines()
            _complain(
                f"unexpected {type(fault).__name__}{': ' + reason[0] if reason else ''}",
                "This is a defect of lipray." + ("" if debug else " Run again with --debug for the traceback."),
            )
            return 1
        return code if isinstance(code, int) else 0


def _complain(message: str, hint: str = "") -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lipray")
def cli() -> None:
    """Certified upper bounds on Lipschitz constants of convolutional networks, with a lower bound beside them."""
    if EXPECTED_VERSION in os.environ:
        from lipray.jobs.driver import announce

        click.echo(announce(), err=True)


cli.add_command(plan_command)
cli.add_command(estimate_command)
cli.add_command(sweep_command)
cli.add_command(resume_command)
cli.add_command(runs_command)
cli.add_command(report_command)
cli.add_command(verify_command)
cli.add_command(train_command)
cli.add_command(certify_command)
cli.add_command(doctor_command)
cli.add_command(submit_command)
cli.add_command(status_command)
cli.add_command(logs_command)
cli.add_command(stop_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    cli.main(args, prog_name="lipray")


if __name__ == "__main__":
    main()
