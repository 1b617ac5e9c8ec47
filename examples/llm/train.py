#!/usr/bin/env python3
"""Trains the language model of examples/llm and writes its weights, in one command.

    python3 train.py --corpus corpus.txt --out DIR --device cuda

corpus.txt comes from corpus.py. DIR receives moe.safetensors (the weights with the lowest held-out
loss, in bf16), held_out.txt, loss.json (settings and curve) and, with matplotlib, loss.png.
Needs PyTorch 2 and nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from corpus import split_chapters
from loss_curve import draw
from moe_model import Config, Model
from safetensors_file import load, save
from torch.nn import functional


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains the language model of examples/llm on a text file."
    )
    parser.add_argument("--corpus", type=Path, required=True, help="text from corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--minutes", type=float, default=4.5, help="limit of wall-clock time")
    parser.add_argument("--batch", type=int, default=96, help="sequences in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.12)
    parser.add_argument("--balance", type=float, default=0.01, help="load-balancing loss factor")
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    return parser.parse_args()


def to_tokens(text: str, device: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device, torch.long)


@torch.no_grad()
def held_out_loss(model: Model, tokens: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(nats per byte, expert shares). Windows of `context` bytes; every byte but the first of a
    window is predicted from those before it in the window."""
    context = model.config.context
    total, count = 0.0, 0
    shares = torch.zeros(model.config.layers, model.config.experts, device=tokens.device)
    whole = tokens.numel() // context * context
    batches = list(torch.split(tokens[:whole].view(-1, context), 32))
    if tokens.numel() - whole >= 2:
        batches.append(tokens[whole:].view(1, -1))
    for batch in batches:
        logits, _, share = model(batch)
        target = batch[:, 1:]
        loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), target, reduction="sum")
        total += loss.item()
        count += target.numel()
        shares += share * batch.numel() / tokens.numel()
    return total / count, shares


def learning_rate_factor(progress: float) -> float:
    """Warm-up over the first 4 %, then a cosine down to 2 %."""
    if progress < 0.04:
        return 0.02 + progress / 0.04 * 0.98
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.04) / 0.96)))


def make_optimizer(model: Model, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": arguments.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95))


def train(arguments: argparse.Namespace) -> None:
    device = arguments.device
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator(device=device).manual_seed(arguments.seed)
    config = Config()
    training_text, held_out_text = split_chapters(arguments.corpus.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "held_out.txt").write_text(held_out_text, encoding="utf-8")
    tokens = to_tokens(training_text, device)
    held_out = to_tokens(held_out_text, device)

    model = Model(config, arguments.dropout).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters} parameters, {tokens.numel()} bytes to train on, {held_out.numel()} held out"
    )
    forward = torch.compile(model) if arguments.compile else model
    optimizer = make_optimizer(model, arguments)
    rates = [group["lr"] for group in optimizer.param_groups]
    window = torch.arange(config.context + 1, device=device)
    autocast = torch.autocast(device.split(":")[0], dtype=torch.bfloat16)

    curve: list[dict[str, float]] = []
    best = math.inf
    sums = torch.zeros((), device=device)
    averaged = 0
    start = time.monotonic()
    for step in range(arguments.steps + 1):
        elapsed = time.monotonic() - start
        progress = max(step / arguments.steps, elapsed / (arguments.minutes * 60))
        if step % arguments.evaluate_every == 0 or progress >= 1:
            model.eval()
            with autocast:
                loss, shares = held_out_loss(model, held_out)
            model.train()
            row = {
                "step": step,
                "seconds": round(elapsed, 1),
                "train_loss": round(sums.item() / averaged if averaged else loss, 4),
                "held_out_loss": round(loss, 4),
                "least_used_expert": round(shares.min().item(), 4),
                "most_used_expert": round(shares.max().item(), 4),
            }
            curve.append(row)
            print(json.dumps(row), flush=True)
            sums.zero_()
            averaged = 0
            if loss < best:
                best = loss
                save(arguments.out / "moe.safetensors", model.to_tensors(), config.to_metadata())
        if progress >= 1:
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate_factor(progress)
        at = torch.randint(
            tokens.numel() - config.context,
            (arguments.batch, 1),
            generator=generator,
            device=device,
        )
        batch = tokens[at + window]
        with autocast:
            logits, balance, _ = forward(batch[:, :-1])
            loss_now = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        (loss_now + arguments.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sums += loss_now.detach()
        averaged += 1

    finish(arguments, config, curve, parameters, held_out)


def finish(
    arguments: argparse.Namespace,
    config: Config,
    curve: list[dict[str, float]],
    parameters: int,
    held_out: torch.Tensor,
) -> None:
    """Measures the stored weights as the C++ engine uses them: bf16 weights, FP32 activations."""
    torch.set_float32_matmul_precision("highest")
    tensors, _ = load(arguments.out / "moe.safetensors")
    stored = Model.from_tensors(tensors, config).to(arguments.device)
    loss, shares = held_out_loss(stored, held_out)
    summary = {
        "parameters": parameters,
        "torch": torch.__version__,
        "settings": {k: str(v) for k, v in vars(arguments).items() if k not in ("corpus", "out")},
        "best_step": min(curve, key=lambda row: row["held_out_loss"])["step"],
        "stored_held_out_loss": round(loss, 5),
        "stored_held_out_perplexity": round(math.exp(loss), 5),
        "expert_shares": [[round(v, 3) for v in layer] for layer in shares.tolist()],
        "curve": curve,
    }
    (arguments.out / "loss.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(arguments.out / "loss.json", arguments.out / "loss.png")
    print(f"stored weights: held-out loss {loss:.5f}, perplexity {math.exp(loss):.5f} per byte")


if __name__ == "__main__":
    train(parse_arguments())
