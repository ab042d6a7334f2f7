"""How the Triton kernels of polynomials of node features are launched.

    out, grad_x     for every node and block of channels, in parallel
    grad_weight     for every item of work (some nodes of one element) and block of channels:
                      for every node of the item
                      store the item's share
                    for every element: the sum of its items' shares, in order

Gradients of the weights are summed by items of work: some nodes of one element each, walked by one
program, whose sum is stored; the sums of an element's items are added in order. Items are made on
the device and their number is bounded by shapes, so nothing waits for the device. (The op itself
waits, once per call, to check that the elements are in range.) Nothing is atomic: results are the
same from run to run.

float16 and bfloat16 are types of storage: arithmetic and sums are in float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from eqtp.kernels.codegen.polynomial_operands import PolynomialProblem
from eqtp.kernels.codegen.program import Variable
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_device import ARITHMETIC, lanes_of

__all__ = ["Pass", "make_pass", "run_passes"]

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


class Launch(Protocol):
    """How kernels are launched."""

    @property
    def channels(self) -> int:
        """Channels of a program."""
        ...

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        ...

    @property
    def num_stages(self) -> int:
        """Stages of Triton's software pipeline."""
        ...


class Kernel(Protocol):
    """A kernel of a pass, see `PolynomialKernel`."""

    @property
    def function(self) -> str:
        """Name of the function."""
        ...

    @property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        ...

    @property
    def written(self) -> tuple[Variable, ...]:
        """The components of results that the kernel writes."""
        ...

    @property
    def source(self) -> str:
        """The function."""
        ...


@dataclass(frozen=True)
class Pass(ABC):
    """Results that are computed together, as kernels.

    Attributes:
        problem: The polynomials.
        results: "grad_weight" alone, or "out" and "grad_x" or one of them.
        dual: Whether the results are the derivatives in the direction h of x.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
    """

    problem: PolynomialProblem
    results: tuple[str, ...]
    dual: bool
    arithmetic: torch.dtype
    lanes: int

    @property
    @abstractmethod
    def launch(self) -> Launch:
        """How the kernels are launched."""

    @property
    @abstractmethod
    def kernels(self) -> Sequence[Kernel]:
        """The kernels in the order in which they run."""

    @property
    @abstractmethod
    def item_nodes(self) -> int:
        """Most nodes of an item of work."""

    @property
    def adds(self) -> bool:
        """Whether kernels add to what those before them have written."""
        return False

    def constants(self, device: torch.device) -> dict[str, Tensor]:
        """Arguments of the kernels that are neither operands nor results."""
        return {}

    @cached_property
    def covered(self) -> frozenset[str]:
        """The results of which every component is written by some kernel."""
        problem = self.problem
        dims = problem.dim_out, problem.dim_in, problem.num_weights
        written = {variable for kernel in self.kernels for variable in kernel.written}
        counts = Counter(variable.name for variable in written)
        names = zip(("out", "grad_x", "grad_weight"), dims, strict=True)
        return frozenset(name for name, dim in names if counts[name] == dim)


def run_passes(
    kind: type[Pass], problem: Any, element: Tensor, tensors: Mapping[str, Tensor | None]
) -> None:
    """Computes results, see `polynomial_ops`, by passes of a kind."""
    given = {name: t for name, t in tensors.items() if t is not None} | {"element": element}
    with torch.cuda.device_of(element):
        together = tuple(name for name in ("out", "grad_x") if name in given)
        if together:
            _run_nodes(_pass_of(kind, problem, together, given), given)
        if "grad_weight" in given:
            _run_items(_pass_of(kind, problem, ("grad_weight",), given), given)


def _run_nodes(plan: Pass, given: Mapping[str, Tensor]) -> None:
    """The results that belong to a node."""
    # Sums that go on from kernel to kernel are kept in the type of the arithmetic.
    sums = {
        name: torch.empty_like(given[name], dtype=plan.arithmetic)
        if plan.adds and given[name].dtype != plan.arithmetic
        else given[name]
        for name in plan.results
    }
    for name in plan.results:
        if name not in plan.covered:
            sums[name].zero_()
    _launch(plan, {**given, **sums}, len(given["element"]))
    for name in plan.results:
        if sums[name] is not given[name]:
            given[name].copy_(sums[name])


def _run_items(plan: Pass, given: Mapping[str, Tensor]) -> None:
    """The gradient in the weights."""
    total, element, problem = given["grad_weight"], given["element"], plan.problem
    if len(element) == 0 or not plan.kernels:
        total.zero_()
        return
    items = Items.of_elements(element, total.shape[0], plan.item_nodes)
    make = torch.empty if "grad_weight" in plan.covered else torch.zeros
    number, numel = len(items.start), problem.num_weights * problem.num_channels
    shares = make(number, numel, dtype=plan.arithmetic, device=element.device)
    indices = {"node": items.node, "item_start": items.start, "item_stop": items.stop}
    _launch(plan, {**given, **indices, "grad_weight": shares}, number)
    sum_items(shares, items, total)


def _launch(plan: Pass, tensors: Mapping[str, Tensor], programs: int) -> None:
    if programs == 0:
        return
    launch = plan.launch
    grid = (programs, -(-plan.problem.num_channels // launch.channels))
    options: dict[str, Any] = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,
    }
    tensors = {**tensors, **plan.constants(tensors["element"].device)}
    for kernel in plan.kernels:
        arguments = [tensors[name] for name in kernel.arguments]
        load_function(kernel.source, kernel.function)[grid](*arguments, **options)


def _pass_of(
    kind: type[Pass], problem: Any, results: tuple[str, ...], given: Mapping[str, Tensor]
) -> Pass:
    x = given["x"]
    return make_pass(kind, problem, results, "h" in given, ARITHMETIC[x.dtype], lanes_of(x.device))


@lru_cache(maxsize=1024)
def make_pass(
    kind: type[Pass],
    problem: Any,
    results: tuple[str, ...],
    dual: bool,
    arithmetic: torch.dtype,
    lanes: int,
) -> Pass:
    """A pass, made once: its kernels are worked out when first used."""
    return kind(problem, results, dual, arithmetic, lanes)
