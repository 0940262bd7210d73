#!/usr/bin/python3
"""The long form of the kill campaign: as many campaigns side by side as there are cores, which share the crash points, and steps.py; then a
table of all points.

    tests/crash/long.py [--rounds N] [--points N] [--kills N] [--seed N]

Fails when one of them does, or when there is a point in the sources at which fewer than N kills fell."""
import argparse
import collections
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from crash.campaign import crash_points  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
OUTPUT_LINES = 90  # of one that failed


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--points", type=int, default=20, help="kills at each crash point")
    parser.add_argument("--kills", type=int, default=60, help="of each command, in steps.py")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 30))
    return parser.parse_args()


class Part:
    """One of the programs that run side by side."""

    def __init__(self, directory, name, program, *arguments):
        self.name, self.result_path, self.output_path = name, directory / f"{name}.json", directory / f"{name}.out"
        command = ["/usr/bin/python3", "-B", str(HERE / program), "--result", str(self.result_path), *map(str, arguments)]
        self.again = " ".join(command[2:3] + [str(argument) for argument in arguments])
        with open(self.output_path, "wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def result(self):
        try:
            return json.loads(self.result_path.read_text())
        except (OSError, ValueError):
            return {}

    def tell(self, took_s):
        lines = self.output_path.read_text(errors="replace").splitlines()
        print(f"== {self.name}, after {took_s:.0f} s: " + ("ok" if self.process.returncode == 0 else f"FAILED: {self.again}"), flush=True)
        for line in lines[-OUTPUT_LINES:] if self.process.returncode else [line for line in lines if "kills:" in line]:
            print(f"   {line}", flush=True)


def wait_all(parts):
    """Each is told of when it ends. Interrupted, none stays behind."""
    started_s, running = time.monotonic(), list(parts)
    try:
        while running:
            for part in [part for part in running if part.process.poll() is not None]:
                running.remove(part)
                part.tell(time.monotonic() - started_s)
            time.sleep(0.2)
    finally:
        for part in running:
            part.process.terminate()
            part.process.wait()


def main():
    options, shares = parse_arguments(), max(2, min(4, os.cpu_count() or 2))
    with tempfile.TemporaryDirectory(prefix="tidegate-crash-long-") as name:
        directory = pathlib.Path(name)
        parts = [Part(directory, f"campaign-{share}", "campaign.py", "--rounds", -(-options.rounds // shares), "--points", options.points,
                      "--share", f"{share}/{shares}", "--seed", options.seed + share) for share in range(shares)]
        parts.append(Part(directory, "steps", "steps.py", "--kills", options.kills, "--points", options.points, "--seed", options.seed + shares))
        print(f"kill campaign, long form: seed {options.seed}, {shares} campaigns and steps.py", flush=True)
        wait_all(parts)
        results = [part.result() for part in parts]
    kills, points = collections.Counter(), collections.Counter()
    for result in results:
        kills.update(result.get("kills", {}))
        points.update(result.get("points", {}))
    names = crash_points()
    print("| crash point | kills |\n|---|---:|")
    for point in names:
        print(f"| {point} | {points[point]} |")
    short = [point for point in names if points[point] < options.points]
    print(f"{sum(result.get('rounds', 0) for result in results)} rounds; kills: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kills.items())))
    print(f"not reached {options.points} times: {', '.join(short) or 'none'}")
    failed = sum(part.process.returncode != 0 for part in parts) + bool(short)
    print(f"{len(parts) + 1 - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
