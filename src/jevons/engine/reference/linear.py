"""Matrix products with the weights: packed by oneDNN or FBGEMM on a CPU, plain elsewhere."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F

HALF_MAX = 65504.0  # the largest float16


Activation = Literal["", "silu", "gelu"]  # gelu: the one by tanh


class Linear(Protocol):
    """x @ weight.T + bias for x [rows, in], and an activation of that: [rows, out], a new tensor."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None, activation: Activation = "") -> Linear:
    """The fastest product for this weight [out, in]; keeps no reference to `weight` where it makes a packed copy."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_fast_bf16():
        return PackedLinear(weight, bias, activation)
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and has_fbgemm() and fits_half(weight):
        return HalfLinear(weight, bias, activation)
    return PlainLinear(weight, bias, activation)


def has_fast_bf16() -> bool:
    """Whether oneDNN multiplies bf16 on this CPU (it takes AVX-512); elsewhere float32 products are faster."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_fbgemm() -> bool:
    """Whether this build of torch multiplies float32 by float16 weights (on x86)."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def fits_half(weight: torch.Tensor) -> bool:
    lowest, highest = weight.aminmax()
    return bool(lowest > -HALF_MAX) and bool(highest < HALF_MAX)


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """`activation` of x, which may be overwritten."""
    if activation == "silu":
        return F.silu(x, inplace=True)
    return F.gelu(x, approximate="tanh") if activation == "gelu" else x


class PlainLinear:
    """Any device, any dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> None:
        self._weight, self._bias, self._activation = weight, bias, activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return activate(F.linear(x, self._weight, self._bias), self._activation)


FUSED = {"": ("none", ""), "silu": ("swish", ""), "gelu": ("gelu", "tanh")}  # oneDNN's name, and the way to compute it


class PackedLinear:
    """bf16 weights in oneDNN's own order, so that no product reorders them: a row of 576 x 3072 takes 121 us, not 239.

    Activations are fused. A fused sum or product with another tensor is not worth it: 20 us a call, 2 for torch's own.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias
        self._fused, self._way = FUSED[activation]
        self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, self._weight, self._bias, self._fused, [], self._way)  # type: ignore[no-any-return]


class HalfLinear:
    """float32 in and out, weights float16 in FBGEMM's own order, for CPUs without bf16 products (AVX2).

    Half the bytes of float32 and no bit of a bf16 weight lost (above 6e-5; below, less than 3e-8 is). With AVX2 one
    row of 576 x 49152 takes 3.0 ms instead of 6.5 (oneDNN, float32), 128 rows of 576 x 1536 2.5 ms instead of 2.9.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self._activation = activation
        self._product = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return activate(self._product(x, self._packed), self._activation)
