#!/usr/bin/env python3
"""Draws the loss curve that train.py saved: python3 loss_curve.py loss.json loss.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def draw(source: Path, target: Path) -> None:
    """Draws `source` (train.py's loss.json) as a PNG; says so where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"matplotlib is missing: {target.name} is not drawn")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    curve = json.loads(source.read_text())["curve"]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    steps = [row["step"] for row in curve]
    axes.plot(steps, [row["train_loss"] for row in curve], label="training (with dropout)")
    axes.plot(steps, [row["held_out_loss"] for row in curve], label="held out")
    axes.set(xlabel="step", ylabel="loss, nats per byte", ylim=(0.8, 2.5))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} loss.json loss.png")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
