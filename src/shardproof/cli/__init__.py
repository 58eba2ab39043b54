"""The command line: one file a verb. Exit codes: 0 fine, 1 finding, 2 usage or refusal, 130 interrupted."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from shardproof.errors import EXIT_FINE, EXIT_REFUSED, ShardproofError

EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller (`>&-`)
            setattr(sys, stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no crash
    code = EXIT_FINE
    try:
        code = _run(given)
        sys.stdout.flush()  # what a full disk refuses is said here and not when the interpreter ends
    except KeyboardInterrupt:  # while modules were still being loaded
        return _interrupted(given)
    except BrokenPipeError:  # `| head`: who reads has enough
        _drop()
    except OSError as reason:
        _drop()
        sys.stderr.write(f"shardproof: the operating system refused: {reason}\n")
        return EXIT_REFUSED
    return code


def _run(given: list[str]) -> int:
    from shardproof.cli.app import VERBS, application

    app = application([verb for verb in VERBS if given[:1] == [verb]] or VERBS)
    try:
        result = app(given, standalone_mode=False, prog_name="shardproof")
    except ShardproofError as error:
        return _refused(error, given)
    except OSError as reason:
        if reason.filename is None:  # of a stream
            raise
        return _refused(_of_the_system(reason), given)
    except ModuleNotFoundError as missing:
        package = (missing.name or "shardproof").partition(".")[0]
        if package == "shardproof" or sys.modules.get(package):  # a part of one that is there: no advice helps
            raise
        return _refused(_not_installed(package), given)
    except SystemExit:  # typer's answer to a closed pipe, with a code that means something else here
        raise BrokenPipeError from None
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        return usage
    if result == EXIT_INTERRUPTED:  # typer's answer to Ctrl-C inside a verb
        return _interrupted(given)
    return result if isinstance(result, int) else EXIT_FINE


def _of_the_system(reason: OSError) -> ShardproofError:
    return ShardproofError(
        "system.file", "the operating system refused a file or folder", file=reason.filename, found=reason.strerror,
        next_step="correct the path, or what this user may do there",
    )  # fmt: skip


def _not_installed(package: str) -> ShardproofError:
    return ShardproofError(
        "system.package", "this needs a package that is not installed", found=f"no {package}", needed=package,
        next_step=f"pip install {package}",
    )  # fmt: skip


def _refused(error: ShardproofError, given: list[str]) -> int:
    from shardproof.cli.show import JSON_VERSION, print_json

    sys.stderr.write(f"shardproof: {error}\n")
    if "--json" in given:
        with contextlib.suppress(BrokenPipeError):
            print_json({"shardproof": JSON_VERSION, "error": error.to_dict()})
    return error.exit_code


def _interrupted(given: list[str]) -> int:
    kept = "; what was finished is kept: the same command goes on with it" if given[:1] == ["pack"] else ""
    sys.stderr.write(f"shardproof: interrupted{kept}\n")
    return EXIT_INTERRUPTED


def _drop() -> None:
    from shardproof.cli.show import drop_output

    drop_output()


def _usage_error(error: Exception) -> int | None:
    """Print a usage error the way its parser does; None for any other exception."""
    show = getattr(error, "show", None)
    if show is None or not hasattr(error, "exit_code"):
        return None
    show()
    return EXIT_REFUSED
