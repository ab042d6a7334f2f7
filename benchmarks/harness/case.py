"""What is measured: a case, its tasks, and the contestants that compute it.

A contestant brings its own definition in float64: the same function of its own operands, however
they are laid out. So values and gradients are held against the definition as they are.

    task               what is timed
    forward            the result, without a graph of derivatives
    backward           the result and the gradients in all operands
    double backward    the result, its gradient in the operands that follow positions (the forces),
                       and the gradients of the sum of their squares in the others: a force loss
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eqtp.graph import Graph

__all__ = ["TASKS", "Case", "Contestant", "Function", "Inputs", "Task", "Work", "tolerance"]

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors, Any], Tensor]
"""(operands by name, place) -> result; the place is what has no gradient, e.g. the graph."""


@dataclass(frozen=True)
class Inputs:
    """Operands of a call.

    Attributes:
        tensors: By name; all of them are differentiated.
        place: What has no gradient: a graph, elements, a structure; None.
    """

    tensors: dict[str, Tensor]
    place: Any = None

    def to(self, dtype: torch.dtype, device: str, *, gradients: bool = False) -> Inputs:
        """Leaves in a dtype on a device; memory is shared where nothing changes."""
        tensors = {
            name: tensor.detach().to(device=device, dtype=dtype).detach().requires_grad_(gradients)
            for name, tensor in self.tensors.items()
        }
        return Inputs(tensors, _on_device(self.place, device))


@dataclass(frozen=True)
class Work:
    """What a task needs at least, counted from the problem.

    Attributes:
        flops: Multiplications and additions.
        numbers: Numbers read or written, every operand and result once.
    """

    flops: float
    numbers: float


@dataclass(frozen=True)
class Contestant:
    """One implementation of a case.

    Attributes:
        call: What is timed, on operands as `adapt` makes them.
        definition: The same function in float64, written down plainly.
        adapt: From the case's operands to the contestant's own: another layout, or weights of
            another form. Not timed.
        paths: Number of paths that it computes; None where there are none to count.
        expressivity: Dimension of the bilinear maps that its weights reach; None if unknown.
        about: What runs, in its own words.
    """

    call: Function
    definition: Function
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    paths: int | None = None
    expressivity: int | None = None
    about: str = ""


@dataclass(frozen=True)
class Case:
    """One problem of one size.

    Attributes:
        family: Name of the family.
        name: Unique name within the family.
        make: (rows, generator) -> operands for so many rows, in `dtype`, on the CPU.
        rows: Rows (edges, nodes) that are timed.
        check_rows: Rows on which contestants are held against the definition.
        contestants: By name; made when the case is measured. One that cannot serve raises
            NotImplementedError, ImportError or ValueError with the reason and is listed as absent.
        baseline: The contestant that ratios refer to.
        sizes: What the report shows of the problem: L, channels, edges, paths, ...
        tasks: Names of `TASKS`.
        forces: Operands that follow positions.
        work: Least work of a task; None where nothing is counted.
        dtype: Of the operands.
        tolerances: Largest relative error of a task, where not `tolerance`.
        bars: (task, contestant, threads) -> least ratio to the baseline.
        group: Cases of one group are lines over `x` in the report's plots.
        x: The size that the plots of the group run over.
    """

    family: str
    name: str
    make: Callable[[int, torch.Generator], Inputs]
    rows: int
    contestants: Mapping[str, Callable[[], Contestant]]
    baseline: str
    sizes: Mapping[str, int | float | str] = field(default_factory=dict)
    tasks: Sequence[str] = ("forward", "backward", "double backward")
    forces: Sequence[str] = ("x2",)
    work: Callable[[str], Work] | None = None
    dtype: torch.dtype = torch.float32
    check_rows: int = 100
    tolerances: Mapping[str, float] = field(default_factory=dict)
    bars: Mapping[tuple[str, str, int], float] = field(default_factory=dict)
    group: str = ""
    x: str = "L"

    def inputs(self, rows: int) -> Inputs:
        """Operands for so many rows, the same on every call."""
        return self.make(rows, torch.Generator().manual_seed(0))


def _on_device(place: Any, device: str) -> Any:
    if isinstance(place, Graph):
        if place.device.type == torch.device(device).type:
            return place
        ends = place.edge_src.to(device), place.edge_dst.to(device)
        return Graph(*ends, place.num_src, place.num_dst)
    if isinstance(place, Tensor):
        return place.to(device)
    if hasattr(place, "to"):  # a structure, which moves itself
        return copy.copy(place).to(device)
    return place


Results = tuple[Tensor, ...]
Task = Callable[[Function, Inputs, Tensor | None, Sequence[str]], Results]


def forward(
    function: Function, inputs: Inputs, gradient: Tensor | None, forces: Sequence[str]
) -> Results:
    """The result alone."""
    with torch.no_grad():
        return (function(inputs.tensors, inputs.place),)


def backward(
    function: Function, inputs: Inputs, gradient: Tensor | None, forces: Sequence[str]
) -> Results:
    """The result and the gradients in all operands, of its product with `gradient`."""
    out = function(inputs.tensors, inputs.place)
    return (out, *torch.autograd.grad(out, list(inputs.tensors.values()), gradient))


def double_backward(
    function: Function, inputs: Inputs, gradient: Tensor | None, forces: Sequence[str]
) -> Results:
    """The forces, and the gradients of the sum of their squares in the other operands."""
    out = function(inputs.tensors, inputs.place)
    leaves = [inputs.tensors[name] for name in forces]
    first = torch.autograd.grad(out, leaves, gradient, create_graph=True)
    others = [tensor for name, tensor in inputs.tensors.items() if name not in forces] or leaves
    loss = torch.stack([force.square().sum() for force in first]).sum()
    return (*first, *torch.autograd.grad(loss, others))


TASKS: dict[str, Task] = {
    "forward": forward,
    "backward": backward,
    "double backward": double_backward,
}

_TOLERANCES = {
    # Sums of some hundred products in float32 differ by 1e-6 of the largest; TF32 by 1e-3.
    torch.float32: {"double backward": 1e-4},
    # Sums in float64 in another order; second derivatives square the size of the numbers.
    torch.float64: {"double backward": 1e-10},
}
_FIRST = {torch.float32: 2e-5, torch.float64: 1e-11}


def tolerance(case: Case, task: str) -> float:
    """The largest relative error at which a contestant's times are reported.

    Raises:
        NotImplementedError: The dtype has no tolerance.
    """
    if task in case.tolerances:
        return case.tolerances[task]
    if case.dtype not in _FIRST:
        raise NotImplementedError(f"no tolerance for {case.dtype}; use float32 or float64")
    return _TOLERANCES[case.dtype].get(task, _FIRST[case.dtype])
