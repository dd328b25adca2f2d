"""Where the CPU seconds of a command go: `python -m benchmarks.seconds make study`.

Every Python process that the command starts looks 50 times a second at what its main thread is doing. A look is filed
under the first of `KINDS` that is anywhere on the stack, and a process's CPU time is shared out by its looks.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

KINDS = {  # what is going on, and parts of the names of files that show it
    "starting: imports": ("<frozen importlib",),
    "drawing and reading data": ("/worlds/", "/lib/files/", "lib/language/examples", "lib/language/tokens"),
    "figures": ("/lib/figures/", "/matplotlib/"),
    "encoder passes while adapting": ("vision/objective", "language/objective", "adaptation/objectives"),
    "merging while adapting": ("/lib/adaptation/", "/lib/concrete/"),
    "fine-tuning": ("vectors/fine_tuning",),
    "scoring": ("study/evaluation", "vision/scoring", "vision/heads", "vision/models", "language/generation"),
    "fusion methods, Fisher and Gram matrices": ("/lib/fusion/", "vision/activations", "/lib/vectors/"),
    "keys and the store": ("/lib/runtime/",),
}
FILE = "SECONDS_FILE"  # environment variable: where every process leaves its counts
STARTED = "started"
PAUSE = 0.02  # seconds between two looks


def kind_of(frame: FrameType | None) -> str:
    """What a stack is doing; "" while it waits for messages, as a kernel between two cells."""
    names = []
    while frame is not None:
        names.append(frame.f_code.co_filename)
        frame = frame.f_back
    if names and names[0].endswith("selectors.py"):
        return ""
    found = (kind for kind, parts in KINDS.items() if any(part in name for name in names for part in parts))
    return next(found, "other")


def watch() -> None:
    """Look at the main thread until the process ends, then append its counts to the file."""
    looks, main_thread = Counter(), threading.main_thread().ident

    def note(line: str) -> None:
        with open(os.environ[FILE], "a") as file:
            file.write(line + "\n")

    def look() -> None:
        while True:
            time.sleep(PAUSE)
            if frame := sys._current_frames().get(main_thread):
                looks[kind_of(frame)] += 1

    def leave() -> None:
        times = os.times()
        note(json.dumps({"cpu": times.user + times.system, "looks": dict(looks)}))

    note(STARTED)
    threading.Thread(target=look, daemon=True).start()
    atexit.register(leave)


def shares(lines: list[str]) -> Counter[str]:
    """CPU seconds by kind, over all processes."""
    seconds = Counter()
    for process in map(json.loads, lines):
        looks = {kind: count for kind, count in process["looks"].items() if kind} or {"other": 1}
        for kind, count in looks.items():
            seconds[kind] += process["cpu"] * count / sum(looks.values())
    return seconds


def lines_of(file: Path) -> list[str]:
    """What the processes left, once all have; a kernel may end some seconds after the notebook's run."""
    for _ in range(100):
        lines = file.read_text().splitlines()
        if lines.count(STARTED) * 2 == len(lines):
            break
        time.sleep(0.1)
    return [line for line in lines if line != STARTED]


def main() -> int:
    """Run the command with every Python process in it watched, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command or ["make", "study"]
    with tempfile.TemporaryDirectory() as folder:
        # Python imports a module of this name, if there is one, when it starts.
        (Path(folder) / "sitecustomize.py").write_text("from benchmarks.seconds import watch\n\nwatch()\n")
        root, file = Path(__file__).parent.parent, Path(folder) / "looks.jsonl"
        file.touch()
        path = os.pathsep.join([folder, str(root)])
        code = subprocess.run(command, env=os.environ | {"PYTHONPATH": path, FILE: str(file)}).returncode
        seconds = shares(lines_of(file))
    total = sum(seconds.values()) or 1.0
    print(f"\n{total:.0f} CPU seconds")
    for kind, own in seconds.most_common():
        print(f"{own:8.1f}  {100 * own / total:5.1f} %  {kind}")
    return code


if __name__ == "__main__":
    sys.exit(main())
