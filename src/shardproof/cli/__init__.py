"""The command line: one file a verb. Exit codes: 0 fine, 1 finding, 2 usage or refusal, 130 interrupted."""

from __future__ import annotations

import sys

from shardproof.errors import EXIT_REFUSED, ShardproofError

EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given)
    except KeyboardInterrupt:  # while modules were still being loaded
        return _interrupted()


def _run(given: list[str]) -> int:
    from shardproof.cli.app import app
    from shardproof.cli.show import JSON_VERSION, print_json

    try:
        result = app(given, standalone_mode=False, prog_name="shardproof")
    except ShardproofError as error:
        if "--json" in given:
            print_json({"shardproof": JSON_VERSION, "error": error.to_dict()})
        sys.stderr.write(f"shardproof: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        return usage
    if result == EXIT_INTERRUPTED:  # typer's answer to Ctrl-C inside a verb
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    sys.stderr.write("shardproof: interrupted; what `pack` had finished is kept: the same command goes on with it\n")
    return EXIT_INTERRUPTED


def _usage_error(error: Exception) -> int | None:
    """Print a usage error the way its parser does; None for any other exception."""
    show = getattr(error, "show", None)
    if show is None or not hasattr(error, "exit_code"):
        return None
    show()
    return EXIT_REFUSED
