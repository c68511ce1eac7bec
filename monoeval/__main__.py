"""The command's way in: it is ready for Ctrl-C before anything slow is imported."""

import os
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Exit 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    # Threads that spin while they wait make probes ten times slower where others use the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from monoeval.cli.main import run

        run(debug="--debug" in sys.argv)
    except KeyboardInterrupt:
        code: int | str | None = INTERRUPTED
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    if code == INTERRUPTED:  # what Typer turns Ctrl-C into
        print("Stopped. What was finished is kept: the same command goes on from there.", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
