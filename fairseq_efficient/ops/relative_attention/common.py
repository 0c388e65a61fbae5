"""Argument checks of both implementations."""

from torch import Tensor

from fairseq_efficient.ops.common import check_dropout, check_keys, shapes


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    window: int | None,
) -> None:
    """Raises ValueError for shapes or values that :func:`fast.relative_attention` does not take."""
    if q.dim() != 4 or k.dim() != 4 or v.shape != k.shape or k.shape[:2] != q.shape[:2] or k.size(3) != q.size(3):
        raise ValueError(f"q (B, H, T, d), k and v (B, H, S, d) expected, got {shapes(q, k, v)}")
    check_keys(q, k)
    heads, dim = q.size(1), q.size(3)
    if r.dim() != 3 or r.size(0) != heads or r.size(1) < k.size(2) or r.size(2) != dim:
        raise ValueError(f"r (H, S, d) with a row for each of {k.size(2)} distances expected, got {shapes(r)}")
    if content_bias.shape != (heads, dim) or position_bias.shape != (heads, dim):
        raise ValueError(f"biases ({heads}, {dim}) expected, got {shapes(content_bias, position_bias)}")
    if key_padding_mask is not None and key_padding_mask.shape != (k.size(0), k.size(2)):
        raise ValueError(f"key_padding_mask ({k.size(0)}, {k.size(2)}) expected, got {shapes(key_padding_mask)}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    check_dropout(dropout_p)
