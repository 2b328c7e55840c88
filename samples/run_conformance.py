"""Runs any checker of archives over every sample and compares the codes that it finds.

    python samples/run_conformance.py COMMAND...
    python samples/run_conformance.py --stream COMMAND...

COMMAND is called for each archive with its path as last argument, and prints the codes of what is
broken, one a line, nothing for a sound one. With --stream it is called once, gets the paths on
standard input, and answers each with one line of codes. Its exit code is not looked at.

Only the standard library is used: copy this file and ``v1`` to where the checker is.
"""

# ruff: noqa: INP001, T201 - a script

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "v1"


def expected(folder: Path = FOLDER) -> dict[Path, list[str]]:
    """Return the codes of each sample, by its path."""
    samples: dict[Path, list[str]] = {path: [] for path in sorted(folder.glob("good/*.tar.zst"))}
    for kind in ("bad", "warn"):
        for path in sorted(folder.glob(f"{kind}/*/archive.tar.zst")):
            samples[path] = [path.parent.name.partition("_")[0]]
    for path in sorted(folder.glob("written-by/*/archive.tar.zst")):
        told = json.loads(path.with_name("expected.json").read_text("utf-8"))
        samples[path] = sorted(told["codes"])
    return samples


def found(command: list[str], paths: list[Path], *, is_stream: bool) -> list[list[str]]:
    """Return the codes that a command finds in each archive."""
    if is_stream:
        asked = "".join(f"{path}\n" for path in paths)
        done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=False)
        lines = done.stdout.splitlines()
        if len(lines) != len(paths):
            sys.exit(f"{len(paths)} archives were asked for, {len(lines)} answered")
        return [sorted(set(line.split())) for line in lines]
    runs = (
        subprocess.run([*command, str(path)], stdout=subprocess.PIPE, text=True, check=False)
        for path in paths
    )
    return [sorted(set(run.stdout.split())) for run in runs]


def main(arguments: list[str]) -> int:
    """Compare, and print what differs."""
    is_stream = arguments[:1] == ["--stream"]
    command = arguments[is_stream:]
    if not command:
        sys.exit(__doc__)
    samples = expected()
    answers = found(command, list(samples), is_stream=is_stream)
    differing = 0
    for (path, wanted), codes in zip(samples.items(), answers, strict=True):
        if codes != wanted:
            differing += 1
            told = [" ".join(some) or "nothing" for some in (wanted, codes)]
            print(f"{path.relative_to(FOLDER)}: expected {told[0]}, found {told[1]}")
    print(f"{len(samples) - differing} of {len(samples)} samples as expected")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
