#!/usr/bin/env python3
"""Compares the C++ engine with the PyTorch model on the same weights file.

    python3 check_against_torch.py --llm build/bin/llm [--weights F] [--text F] [--max-bytes N]

Two comparisons: the loss on a text, and greedy text from a prompt. Exit code 0 if both agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from moe_model import Config, Model
from safetensors_file import load
from train import held_out_loss, to_tokens

HERE = Path(__file__).resolve().parent
PROMPT = "In the beginning"
# Losses are means in nats per byte, computed in FP32 in different orders.
LOSS_TOLERANCE = 1e-4


def run_engine(llm: Path, weights: Path, arguments: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [str(llm), "--weights", str(weights), "--json", str(output), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, object] = json.loads(output.read_text())
        return result


@torch.no_grad()
def greedy_text(model: Model, prompt: str, count: int) -> str:
    tokens = to_tokens(prompt, "cpu").view(1, -1)
    for _ in range(count):
        logits, _, _ = model(tokens)
        tokens = torch.cat((tokens, logits[:, -1:].argmax(dim=-1)), dim=1)
    return bytes(tokens[0, len(prompt) :].tolist()).decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the C++ engine with PyTorch.")
    parser.add_argument("--llm", type=Path, required=True, help="the llm program")
    parser.add_argument("--weights", type=Path, default=HERE / "weights" / "moe.safetensors")
    parser.add_argument("--text", type=Path, default=HERE / "held_out.txt")
    parser.add_argument("--max-bytes", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()

    tensors, metadata = load(arguments.weights)
    model = Model.from_tensors(tensors, Config.from_metadata(metadata))
    text = arguments.text.read_bytes()[: arguments.max_bytes].decode()
    expected, _ = held_out_loss(model, to_tokens(text, "cpu"))
    measured = run_engine(
        arguments.llm,
        arguments.weights,
        ["--perplexity", str(arguments.text), "--max-bytes", str(arguments.max_bytes)],
    )["perplexity"]
    assert isinstance(measured, dict)
    loss = float(measured["loss"])
    print(f"loss on {len(text)} bytes: PyTorch {expected:.6f}, engine {loss:.6f}")

    reference = greedy_text(model, PROMPT, arguments.tokens)
    written = run_engine(
        arguments.llm,
        arguments.weights,
        ["--prompt", PROMPT, "--tokens", str(arguments.tokens), "--no-verify"],
    )["text"]
    same = written == reference
    print(f"greedy text: {'the same' if same else f'{reference!r} against {written!r}'}")
    sys.exit(0 if same and abs(loss - expected) < LOSS_TOLERANCE else 1)


if __name__ == "__main__":
    main()
