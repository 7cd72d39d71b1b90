"""The measuring half of `deploy/bench`, which starts it with the servers running."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

import cases
from cluster import Failed, sql


def machine():
    """What the figures were taken on."""
    model = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    return {"processor": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2)}


def git(*arguments):
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parent)
    return done.stdout.strip()


def shown(figure):
    return "-" if figure is None else f"{figure:.2f}" if figure < 100 else f"{figure:.0f}"


def main():
    arguments = argparse.ArgumentParser(prog="deploy/bench")
    arguments.add_argument("case", nargs="*")
    arguments.add_argument("--list", action="store_true")
    arguments.add_argument("--runs", type=int)
    arguments.add_argument("--json", type=pathlib.Path)
    arguments.add_argument("--only-copy", action="store_true", help="no peer besides \\copy")
    arguments.add_argument("--full-cache", action="store_true", help="fill the file cache before each run")
    arguments.add_argument("--flame", type=pathlib.Path, metavar="SVG", help="draw where a worker's time goes, and measure nothing")
    given = arguments.parse_args()
    cases.ONLY_COPY, cases.FULL_CACHE = given.only_copy, given.full_cache
    if given.list:
        print("\n".join(f"{name:18} {(function.__doc__ or '').strip()}" for name, function in cases.CASES.items()))
        return 0
    if given.flame:
        cases.flame(given.flame, *given.case)
        return 0
    result = {
        "revision": git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "machine": machine(),
        "postgres": sql("show server_version"),
        "rows": [],
    }
    try:
        for row in cases.measure(given.case, given.runs):
            result["rows"].append(row)
            if given.json:
                given.json.write_text(json.dumps(result, indent=1) + "\n")
    except Failed as failed:
        sys.exit(f"bench: {failed}")
    print(f"\nrevision {result['revision']}, {result['machine']}, PostgreSQL {result['postgres']}\n\n| what | measured | goal | |\n| --- | --- | --- | --- |")
    for row in result["rows"]:
        verdict = {True: "met", False: "**not met**", None: ""}[row["met"]]
        print(f"| {row['what']} | {shown(row['figure'])} {row['unit']} | {row['goal']} | {verdict} |")
    for row in result["rows"]:
        if "medians" in row:
            medians = ", ".join(f"{who} {seconds:.2f}" for who, seconds in row["medians"].items())
            print(f"\n{row['what']}, medians in seconds: {medians}")
        for who, spent in row.get("core_seconds", {}).items():
            print(f"  {who} spends core-seconds: {', '.join(f'{part} {seconds:.2f}' for part, seconds in spent.items())}")
    return 0 if all(row["met"] is not False for row in result["rows"]) else 1


sys.exit(main())
