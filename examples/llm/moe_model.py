"""The language model in PyTorch: what train.py trains and examples/llm runs in C++.

Llama-style blocks: RMSNorm, attention with rotary positions and grouped key/value heads, RMSNorm,
a mixture of SwiGLU experts. Per token the two experts with the largest router logits are used,
weighted by the softmax over those two logits. The output projection is the embedding, transposed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from torch import nn
from torch.nn import functional

FORMAT = "zbccl-moe-lm"
VERSION = "1"


@dataclass
class Config:
    """Dimensions; stored as strings in the safetensors metadata."""

    dim: int = 256
    layers: int = 6
    heads: int = 12
    kv_heads: int = 4
    head_dim: int = 32
    experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 96
    vocab: int = 256
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def to_metadata(self) -> dict[str, str]:
        values = {name: repr(value) for name, value in asdict(self).items()}
        return {"format": FORMAT, "version": VERSION, **values}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Config:
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise ValueError(f"not a {FORMAT} file of version {VERSION}: {metadata}")
        types = {"int": int, "float": float}
        return Config(**{f.name: types[str(f.type)](metadata[f.name]) for f in fields(Config)})


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weight


def rotary_tables(config: Config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position / base^(2i / head_dim), each [length, head_dim / 2]."""
    half = config.head_dim // 2
    powers = torch.arange(half, dtype=torch.float64) * 2 / config.head_dim
    angles = torch.arange(length, dtype=torch.float64)[:, None] / config.rope_base**powers
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of x [batch, heads, length, head_dim]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        inner, kv_inner = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = nn.Linear(config.dim, inner, bias=False)
        self.k = nn.Linear(config.dim, kv_inner, bias=False)
        self.v = nn.Linear(config.dim, kv_inner, bias=False)
        self.out = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        c = self.config
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, c.heads, c.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class Experts(nn.Module):
    """Computes every expert on every token and multiplies with the routing weight, which is zero
    for all but two: on a GPU one dense product is faster than sorting tokens at this size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        shape = (config.experts, config.expert_hidden, config.dim)
        self.router = nn.Linear(config.dim, config.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(shape))
        self.up = nn.Parameter(torch.empty(shape))
        self.down = nn.Parameter(torch.empty(config.experts, config.dim, config.expert_hidden))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(output, load-balancing loss, share of the routed tokens by expert)."""
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            logits = functional.linear(x.float(), self.router.weight)
            top, chosen = logits.topk(c.experts_per_token, dim=-1)
            weights = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(dim=-1))
            used = torch.zeros_like(logits).scatter(-1, chosen, 1.0)
            share = used.flatten(0, -2).mean(0) / c.experts_per_token
            balance = c.experts * (share * logits.softmax(dim=-1).flatten(0, -2).mean(0)).sum()
        hidden = functional.silu(functional.linear(x, self.gate.flatten(0, 1)))
        hidden = hidden * functional.linear(x, self.up.flatten(0, 1))
        hidden = hidden.view(*weights.shape, c.expert_hidden) * weights.unsqueeze(-1)
        down = self.down.transpose(1, 2).flatten(0, 1)  # [experts * expert_hidden, dim]
        return hidden.flatten(-2).to(x.dtype) @ down.to(x.dtype), balance, share


class Block(nn.Module):
    def __init__(self, config: Config, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.expert_norm = RMSNorm(config.dim, config.norm_eps)
        self.experts = Experts(config)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        y, balance, share = self.experts(self.expert_norm(x))
        return x + self.dropout(y), balance, share


class Model(nn.Module):
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        cos, sin = rotary_tables(config, config.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                writes_residual = name.endswith(("attention.out.weight", "experts.down"))
                std = 0.02 / (2 * config.layers) ** 0.5 if writes_residual else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits in FP32, load-balancing loss summed over layers, shares [layers, experts])."""
        length = tokens.shape[1]
        x = self.dropout(self.embedding(tokens))
        balances, shares = [], []
        for layer in self.layers:
            x, balance, share = layer(x, self.cos[:length], self.sin[:length])
            balances.append(balance)
            shares.append(share)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return logits.float(), torch.stack(balances).sum(), torch.stack(shares)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The weights as they are stored: bf16, on the CPU."""
        return {
            name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
            for name, tensor in self.state_dict().items()
        }

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], config: Config) -> Model:
        model = Model(config)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return model.eval()
