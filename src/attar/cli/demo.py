"""`attar demo`: everything at once, offline."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.demo import DemoConfig


def demo(
    *,
    out: Path = Path("runs/demo"),
    options: Annotated[DemoConfig, Parameter(name="*")] = DemoConfig(),
) -> None:
    """Distil the offline pocket teacher into a small student on shipped emoji, in minutes.

    Three emoji families train; the fourth (Noto) is held out. Teacher, student and plain training
    of the same backbone are compared on it, and the student is exported and reported.

    For example:

    `attar demo`

    `attar demo --student mobilenetv3_small_100 --concepts 50 --out runs/small-demo`

    Parameters
    ----------
    out
        Where the runs, the store and the page go.
    """
    from attar.cli.say import print_results
    from attar.demo import run_demo

    result = run_demo(options, out)
    print_results(result.distilled / "results.jsonl", ("teacher", "student", "baseline"))
    print(f"page:   {result.page}")
    print(f"bundle: {result.bundle}")
    print(f"try it: attar predict {result.bundle} {out / 'emoji' / 'noto'}")
    print(
        "your own folder: attar distill --data YOUR_FOLDER --classes classes.txt --teacher "
        "ViT-B-32/openai --student mobilenetv3_small_100 --method feature-mse --out runs/mine "
        "--export"
    )
