"""The linear maps of every order as Triton kernels on tensor cores.

Both orders +m and -m of a tile of edges are made by one program, from three products instead of
four, as complex numbers are multiplied:

    k = (y+ + y-) A,    out+ = k - y- (A + B),    out- = k + y+ (B - A)

The gradient in y is the same with A^T and -B^T; that of the weights is three such products of tiles
of y and g, summed over shares of the edges and then over the shares. Products are of three TF32
numbers, as accurate as float32, unless `torch.set_float32_matmul_precision` allows plain TF32;
AMD's matrix cores multiply float32 as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_device import lanes_of
from eqtp.kernels.so2._linear import Where
from eqtp.kernels.so2.config import TRITON_MAX_SHARES, TRITON_SHARE_EDGES, triton_linear
from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["GRADIENT_SOURCE", "LINEAR_SOURCE", "map_back", "map_frames", "weight_gradients"]

LINEAR_SOURCE = '''\
@triton.jit(do_not_specialize=["num_edges"])
def so2_linear(y, a, b, out, num_edges, y_length, out_length, y_plus, y_minus, out_plus, out_minus,
               depth, width, a_row, a_column, B_SIGN: tl.constexpr, HAS_B: tl.constexpr,
               PAIR: tl.constexpr, EDGES: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
               PRECISION: tl.constexpr):
    """One order's map; a and b are [depth, width] with strides a_row, a_column."""
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    y_row = y + edge * y_length
    first = tl.zeros([EDGES, COLUMNS], tl.float32)
    second = tl.zeros([EDGES, COLUMNS], tl.float32)
    third = tl.zeros([EDGES, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        across = start + tl.arange(0, DEPTH)[None, :]
        down = start + tl.arange(0, DEPTH)[:, None]
        y_mask = (edge < num_edges) & (across < depth)
        matrix = down * a_row + column * a_column
        matrix_mask = (down < depth) & (column < width)
        plus = tl.load(y_row + y_plus + across, mask=y_mask, other=0.0)
        a_tile = tl.load(a + matrix, mask=matrix_mask, other=0.0)
        if PAIR:
            minus = tl.load(y_row + y_minus + across, mask=y_mask, other=0.0)
            if HAS_B:
                b_tile = B_SIGN * tl.load(b + matrix, mask=matrix_mask, other=0.0)
                first = tl.dot(plus + minus, a_tile, first, input_precision=PRECISION)
                second = tl.dot(minus, a_tile + b_tile, second, input_precision=PRECISION)
                third = tl.dot(plus, b_tile - a_tile, third, input_precision=PRECISION)
            else:
                first = tl.dot(plus, a_tile, first, input_precision=PRECISION)
                third = tl.dot(minus, a_tile, third, input_precision=PRECISION)
        else:
            first = tl.dot(plus, a_tile, first, input_precision=PRECISION)
    mask = (edge < num_edges) & (column < width)
    out_row = out + edge * out_length + column
    if PAIR:
        if HAS_B:
            tl.store(out_row + out_plus, first - second, mask=mask)
            tl.store(out_row + out_minus, first + third, mask=mask)
        else:
            tl.store(out_row + out_plus, first, mask=mask)
            tl.store(out_row + out_minus, third, mask=mask)
    else:
        tl.store(out_row + out_plus, first, mask=mask)
'''

GRADIENT_SOURCE = '''\
@triton.jit(do_not_specialize=["num_edges", "share"])
def so2_weight_gradient(y, g, out, num_edges, share, y_length, g_length, y_plus, y_minus, g_plus,
                        g_minus, depth, width, HAS_B: tl.constexpr, PAIR: tl.constexpr,
                        EDGES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
                        PRECISION: tl.constexpr):
    """Sums over a share of the edges, [shares, 3 or 1, depth, width]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    part = tl.program_id(2).to(tl.int64)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    third = tl.zeros([ROWS, COLUMNS], tl.float32)
    stop = tl.minimum((part + 1) * share, num_edges)
    start = part * share
    while start < stop:
        across = start + tl.arange(0, EDGES)[None, :]
        down = start + tl.arange(0, EDGES)[:, None]
        y_mask = (across < stop) & (row < depth)
        g_mask = (down < stop) & (column < width)
        y_row = y + across * y_length + row
        g_row = g + down * g_length + column
        y_first = tl.load(y_row + y_plus, mask=y_mask, other=0.0)
        g_first = tl.load(g_row + g_plus, mask=g_mask, other=0.0)
        if PAIR:
            y_second = tl.load(y_row + y_minus, mask=y_mask, other=0.0)
            g_second = tl.load(g_row + g_minus, mask=g_mask, other=0.0)
            if HAS_B:
                first = tl.dot(y_first + y_second, g_first + g_second, first,
                               input_precision=PRECISION)
                second = tl.dot(y_second, g_first, second, input_precision=PRECISION)
                third = tl.dot(y_first, g_second, third, input_precision=PRECISION)
            else:
                first = tl.dot(y_first, g_first, first, input_precision=PRECISION)
                first = tl.dot(y_second, g_second, first, input_precision=PRECISION)
        else:
            first = tl.dot(y_first, g_first, first, input_precision=PRECISION)
        start += EDGES
    mask = (row < depth) & (column < width)
    size = depth.to(tl.int64) * width
    place = row * width + column
    if HAS_B:
        tl.store(out + 3 * part * size + place, first, mask=mask)
        tl.store(out + (3 * part + 1) * size + place, second, mask=mask)
        tl.store(out + (3 * part + 2) * size + place, third, mask=mask)
    else:
        tl.store(out + part * size + place, first, mask=mask)
'''


def map_frames(y: Tensor, weights: Sequence[Tensor], where: Where) -> Tensor:
    """The linear maps."""
    out = y.new_empty(len(y), where.frame_out.dim)
    for m, weight in enumerate(weights):
        strides = weight.shape[2], 1
        _launch_map(y, weight, out, where.frame_in, where.frame_out, m, strides, 1)
    return out


def map_back(g: Tensor, weights: Sequence[Tensor], where: Where) -> Tensor:
    """The gradient in y: A^T and -B^T."""
    out = g.new_empty(len(g), where.frame_in.dim)
    for m, weight in enumerate(weights):
        strides = 1, weight.shape[2]
        _launch_map(g, weight, out, where.frame_out, where.frame_in, m, strides, -1)
    return out


def _launch_map(
    y: Tensor,
    weight: Tensor,
    out: Tensor,
    frame_in: FrameLayout,
    frame_out: FrameLayout,
    m: int,
    strides: tuple[int, int],
    b_sign: int,
) -> None:
    depth, width = frame_in.width(m), frame_out.width(m)
    if len(y) == 0 or width == 0:
        return
    choice = triton_linear(_precision(y))
    kernel = load_function(LINEAR_SOURCE, "so2_linear")
    kernel[(-(-len(y) // choice.edges), -(-width // choice.columns))](
        y,
        weight[0],
        weight[-1],
        out,
        len(y),
        frame_in.dim,
        frame_out.dim,
        frame_in.columns(m).start,
        frame_in.columns(-m).start,
        frame_out.columns(m).start,
        frame_out.columns(-m).start,
        depth,
        width,
        *strides,
        B_SIGN=b_sign,
        HAS_B=len(weight) == 2,
        PAIR=m > 0,
        EDGES=choice.edges,
        COLUMNS=choice.columns,
        DEPTH=choice.depth,
        PRECISION=choice.precision,
        num_warps=choice.num_warps,
        num_stages=choice.num_stages,
    )


def weight_gradients(y: Tensor, g: Tensor, where: Where) -> list[Tensor]:
    """The gradients of the weights, order by order."""
    choice = triton_linear(_precision(y))
    kernel = load_function(GRADIENT_SOURCE, "so2_weight_gradient")
    share = max(TRITON_SHARE_EDGES, -(-len(y) // TRITON_MAX_SHARES))
    shares = -(-len(y) // share)
    gradients = []
    for m, parts in enumerate(where.parts):
        depth, width = where.frame_in.width(m), where.frame_out.width(m)
        has_b = parts == 2
        sums = y.new_empty(shares, 3 if has_b else 1, depth, width)
        if sums.numel() > 0:
            kernel[(-(-depth // choice.rows), -(-width // choice.columns), shares)](
                y,
                g,
                sums,
                len(y),
                share,
                where.frame_in.dim,
                where.frame_out.dim,
                where.frame_in.columns(m).start,
                where.frame_in.columns(-m).start,
                where.frame_out.columns(m).start,
                where.frame_out.columns(-m).start,
                depth,
                width,
                HAS_B=has_b,
                PAIR=m > 0,
                EDGES=choice.depth,
                COLUMNS=choice.columns,
                ROWS=choice.rows,
                PRECISION=choice.precision,
                num_warps=choice.num_warps,
                num_stages=choice.num_stages,
            )
        total = sums.sum(0)
        if has_b:
            first, second, third = total.unbind()
            total = torch.stack([first - second - third, third - second])
        gradients.append(total)
    return gradients


def _precision(y: Tensor) -> str:
    """How `tl.dot` multiplies float32 numbers on a tensor's device."""
    if lanes_of(y.device) == 64:
        return "ieee"
    return "tf32" if torch.get_float32_matmul_precision() != "highest" else "tf32x3"
