"""Run the four benchmarks one after another and print their answers as one line of JSON.

Each runs in a process of its own, so that none inherits the memory, threads or workers of the
one before. `--out FILE` keeps the line, indented; `--smoke` is handed on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("cached_step", "data_loading", "cached_vs_online", "embed_throughput")


def run_one(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Return the answer of one script; its progress stays on stderr.

    Raises:
        SystemExit: with the script's own status, when it fails.
    """
    script = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run(
        [sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--out", type=Path, help="file for the same answer, indented")
    args = parser.parse_args(arguments)
    options = ["--smoke"] if args.smoke else []
    answers = {}
    for name in NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        answers[name] = run_one(name, options)
    ratios = {name: answer["ratios"] for name, answer in answers.items()}
    line = {"ratios": ratios, "benchmarks": answers}
    if args.out:
        args.out.write_text(json.dumps(line, indent=2) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
