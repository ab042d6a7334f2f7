"""What the Triton kernels of polynomials of node features share.

Gradients of the weights are summed by items of work: some nodes of one element each, walked by one
program, whose sum is stored; the sums of an element's items are added in order. Items are made on
the device and their number is bounded by shapes, so nothing waits for the device. Nothing is
atomic: results are the same from run to run.

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.kernels.codegen.triton import load_function

__all__ = [
    "ARITHMETIC",
    "SUM_ITEMS",
    "SUM_ITEMS_FUNCTION",
    "TRITON_NAME",
    "Items",
    "lanes",
    "sum_items",
]

ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
TRITON_NAME = {torch.float32: "tl.float32", torch.float64: "tl.float64"}

SUM_ITEMS_FUNCTION = "sum_items"

SUM_ITEMS = '''\
@triton.jit(do_not_specialize=["numel"])
def sum_items(shares, pointers, total, numel, BLOCK: tl.constexpr):
    """Adds the rows pointers[element] ... of the shares, in order."""
    element = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    item = tl.load(pointers + element)
    stop = tl.load(pointers + element + 1)
    result = tl.zeros([BLOCK], shares.dtype.element_ty)
    while item < stop:
        result += tl.load(shares + item * numel + column, mask=column < numel, other=0.0)
        item += 1
    result = result.to(total.dtype.element_ty)
    tl.store(total + element * numel + column, result, mask=column < numel)
'''


@dataclass(frozen=True)
class Items:
    """Work of the programs: some nodes of one element.

    Attributes:
        node: The nodes in the order of their elements.
        start: First position in this order, of every item; some behind the last have no nodes.
        stop: The position behind the last.
        pointers: First item of every element, and the end.
    """

    node: Tensor
    start: Tensor
    stop: Tensor
    pointers: Tensor

    @classmethod
    def of_elements(cls, element: Tensor, num_elements: int, item_nodes: int) -> Items:
        """Items of at most item_nodes nodes."""
        device = element.device
        ordered, node = element.sort(stable=True)
        bounds = torch.arange(num_elements + 1, device=device)
        first = torch.searchsorted(ordered, bounds)
        counts = first.diff()
        pieces = (counts + item_nodes - 1) // item_nodes
        pointers = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))
        # sum(ceil(count / n)) <= sum(count) / n + the number of elements with nodes
        bound = len(node) // item_nodes + min(num_elements, len(node))
        item = torch.arange(bound, device=device)
        owner = torch.searchsorted(pointers, item, right=True) - 1
        is_used = owner < num_elements
        owner = owner.clamp(max=num_elements - 1)
        start = first[owner] + (item - pointers[owner]) * item_nodes
        stop = torch.minimum(start + item_nodes, first[owner + 1])
        return cls(node, start, torch.where(is_used, stop, start), pointers)


def sum_items(shares: Tensor, items: Items, total: Tensor) -> None:
    """Sets total [num_elements, ...] to the sums of the elements' shares [items, ...]."""
    numel, block = math.prod(total.shape[1:]), 256
    grid = (total.shape[0], -(-numel // block))
    load_function(SUM_ITEMS, SUM_ITEMS_FUNCTION)[grid](
        *(shares, items.pointers, total, numel), BLOCK=block, num_warps=4, enable_fp_fusion=True
    )


@lru_cache
def lanes(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's accelerators, else 32; 32 in the interpreter, too."""
    if device.type != "cuda":
        return 32
    return int(torch.cuda.get_device_properties(device).warp_size)
