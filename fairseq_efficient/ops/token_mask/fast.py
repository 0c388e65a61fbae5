"""Attention over kept keys by SDPA; the backward computes scores again, some heads at a time, and keeps none."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from fairseq_efficient.ops.token_mask.common import MAX_EXPONENT, RULES
from fairseq_efficient.precision import wide_dtype

# scores that are computed at once: few enough for the caches of a CPU, many enough to fill a GPU
_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    rule: str = "renorm",
) -> Tensor:
    """Self-attention whose keys count as much as a mask says; the mask gets a gradient.

    ``renorm``: ``a_ij = m_j exp(s_ij) / sum_k m_k exp(s_ik)``, which for a mask of zeros and ones equals attention
    without the keys of mask 0. Those get ``da_i/dm_j = exp(s_ij - log Z_i)`` all the same, so that a skipped token can
    be called back. ``postmult``: ``a_ij = m_j softmax(s_i)_j``, not normalised again (Guan et al. 2022, as published).

    Args:
        q, k, v: (B, T, H, D).
        keep: (B, T) in [0, 1], with or without a gradient.
        padding_mask: (B, T) bool, True = pad: never a key, whatever ``keep`` says.
        dropout_p: dropout on attention weights; above 0 one byte per weight is kept for the backward.
        rule: see above.

    Returns:
        (B, T, H, D), scores and weights being fp32 or better; a query that finds no key gives zero.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not one of {', '.join(RULES)}")
    if rule == "postmult":
        return _sdpa(q, k, v * keep.to(v.dtype)[:, :, None, None], _bias(None, padding_mask, q), dropout_p)
    # with dropout always the same way: activation checkpointing runs it with and without gradients
    if not dropout_p and not (keep.requires_grad and torch.is_grad_enabled()):
        return _sdpa(q, k, v, _bias(keep, padding_mask, q), 0.0)
    return _MaskedAttention.apply(q, k, v, keep, padding_mask, dropout_p)


def masked_update(new: Tensor, old: Tensor, keep: Tensor) -> Tensor:
    """States after a layer: ``keep * new + (1 - keep) * old``, exactly one of them for a mask of zeros and ones.

    Args:
        new, old: (..., C). keep: (...), fp32 or better; its gradient is summed in that precision.
    """
    if not (torch.is_grad_enabled() and (new.requires_grad or old.requires_grad or keep.requires_grad)):
        return _blend(new, old, keep)
    return _MaskedUpdate.apply(new, old, keep)


def _blend(new: Tensor, old: Tensor, keep: Tensor) -> Tensor:
    kind = torch.promote_types(new.dtype, old.dtype)
    return torch.lerp(old.to(kind), new.to(kind), keep.unsqueeze(-1).to(kind))  # exact at 0 and at 1


class _MaskedUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, new: Tensor, old: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(new, old, keep)
        return _blend(new, old, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        new, old, keep = ctx.saved_tensors
        grad, of_keep = grads[0], None
        if ctx.needs_input_grad[2]:
            of_keep = (grad.to(keep.dtype) * (new.to(keep.dtype) - old.to(keep.dtype))).sum(-1)
        part = keep.unsqueeze(-1).to(grad.dtype)
        return (grad * part).to(new.dtype), (grad * (1 - part)).to(old.dtype), of_keep


# --- attention --------------------------------------------------------------------------------------------------------


def _bias(keep: Tensor | None, padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """log of the mask over keys, (B, T), -inf at pads."""
    if keep is None:
        if padding_mask is None:
            return None
        bias = torch.zeros(padding_mask.shape, dtype=wide_dtype(q.dtype), device=q.device)
    else:
        bias = keep.detach().to(wide_dtype(q.dtype)).log()
    return bias if padding_mask is None else bias.masked_fill(padding_mask, -torch.inf)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout_p: float) -> Tensor:
    """Attention under a bias (B, T) over keys; zero for a sentence without keys."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if bias is None:
        return scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2)
    empty = (bias == -torch.inf).all(1)
    mask = bias.masked_fill(empty.unsqueeze(1), 0.0).to(q.dtype)  # a row without any key would be NaN
    mask = mask[:, None, None, :].expand(-1, 1, q.size(2), -1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p).transpose(1, 2)
    return out.masked_fill(empty[:, None, None, None], 0.0)


def _heads(x: Tensor) -> Tensor:
    """(B, T, H, D) -> (B * H, T, D)"""
    return x.transpose(1, 2).flatten(0, 1)


def _chunks(q: Tensor) -> list[slice]:
    """Slices of the B * H heads whose scores fit in what is computed at once."""
    batch, length, heads, _ = q.shape
    step = max(1, _AT_ONCE.get(q.device.type, 2**20) // max(length * length, 1))
    return [slice(start, start + step) for start in range(0, batch * heads, step)]


class _MaskedAttention(torch.autograd.Function):
    """``renorm``. Kept for the backward: inputs, output and, with dropout, which weights were dropped."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, padding_mask: Tensor | None, dropout_p: float
    ) -> Tensor:
        ctx.dropout_p = dropout_p
        bias = _bias(keep, padding_mask, q)
        assert bias is not None
        dropped = None
        if dropout_p:
            with torch.autocast(q.device.type, enabled=False):
                out, dropped = _with_dropout(q, k, v, bias, dropout_p)
        else:
            out = _sdpa(q, k, v, bias, 0.0)
        ctx.save_for_backward(q, k, v, keep, padding_mask, bias, out, dropped)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, v, keep, padding_mask, bias, out, dropped = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            of_qkv, of_keep = _backward(q, k, v, bias, out, grads[0], dropped, ctx.dropout_p)
        if padding_mask is not None:
            of_keep = of_keep.masked_fill(padding_mask, 0.0)
        shape = (q.size(0), q.size(2), q.size(1), q.size(3))
        found = (g.view(shape).transpose(1, 2).to(q.dtype) for g in of_qkv)
        return (*found, of_keep.to(keep.dtype), None, None)


def _scores(q: Tensor, k: Tensor, some: slice, scale: float) -> Tensor:
    """Scores (n, T, T) of some heads, fp32 or better."""
    kind = wide_dtype(q.dtype)
    return torch.bmm(q[some].to(kind) * scale, k[some].to(kind).transpose(1, 2))


def _weights(scores: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(s_ij) / Z_i`` of all keys, those of mask 0 too, in place of the scores (n, T, T); and the mask (n, T, 1).

    A sentence without keys has weights of 0.
    """
    hidden, mask = bias == -torch.inf, bias.exp().transpose(1, 2)
    top = scores.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True)
    weights = scores.sub_(top).clamp_(max=MAX_EXPONENT).exp_()
    total = torch.bmm(weights, mask)
    return weights.mul_(total.reciprocal().masked_fill_(total == 0, 0.0)), mask


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D), and which weights were dropped (B * H, T, T) bool."""
    batch, length, heads, dim = q.shape
    scale = dim**-0.5
    flat = [_heads(x) for x in (q, k, v)]
    dropped = torch.empty(batch * heads, length, length, dtype=torch.bool, device=q.device).bernoulli_(dropout_p)
    out = torch.empty(batch * heads, length, dim, dtype=q.dtype, device=q.device)
    over_keys = bias.repeat_interleave(heads, 0).unsqueeze(1)
    for some in _chunks(q):
        weights, mask = _weights(_scores(flat[0], flat[1], some, scale), over_keys[some])
        probs = weights.masked_fill_(dropped[some], 0.0)
        out[some] = torch.bmm(probs, flat[2][some].to(probs.dtype) * mask).div_(1 - dropout_p).to(q.dtype)
    return out.view(batch, heads, length, dim).transpose(1, 2), dropped


def _backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, grad: Tensor, dropped: Tensor | None, dropout_p: float
) -> tuple[list[Tensor], Tensor]:
    """Gradients of q, k, v (B * H, T, D), in their precision, and of the mask (B, T), fp32 or better."""
    batch, length, heads, dim = q.shape
    kind, scale = wide_dtype(q.dtype), dim**-0.5
    # rows of out . grad: what softmax's backward subtracts
    mean = _heads((out.to(kind) * grad.to(kind)).sum(-1, keepdim=True))
    q, k, v, grad = (_heads(x) for x in (q, k, v, grad))
    found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    over_keys = bias.repeat_interleave(heads, 0).unsqueeze(1)
    of_keep = torch.empty(batch * heads, length, dtype=kind, device=q.device)
    for some in _chunks(out):
        weights, mask = _weights(_scores(q, k, some, scale), over_keys[some])
        wide = grad[some].to(kind)
        change = torch.bmm(wide, v[some].to(kind).transpose(1, 2))
        if dropped is not None:
            change = change.masked_fill_(dropped[some], 0.0).div_(1 - dropout_p)
        change = change.sub_(mean[some]).mul_(weights)  # times the mask, the gradient of the scores
        of_keep[some] = change.sum(1)
        found[0][some] = torch.bmm(change, k[some].to(kind) * mask).mul_(scale)
        found[1][some] = torch.bmm(change.transpose(1, 2), q[some].to(kind)).mul_(mask * scale)
        probs = weights if dropped is None else weights.masked_fill_(dropped[some], 0.0).div_(1 - dropout_p)
        found[2][some] = torch.bmm(probs.transpose(1, 2), wide).mul_(mask)
    return found, of_keep.view(batch, heads, length).sum(1)
