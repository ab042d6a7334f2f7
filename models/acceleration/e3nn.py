"""Swaps for the modules of e3nn: products, linear maps and spherical harmonics.

Nothing is imported from e3nn before a model brings it. The signs of its 3j symbols, which differ
between its versions, are read from the constants inside the module itself, or where it has
none from the installed e3nn; a path whose symbol has the other sign gets the other coefficient.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.irreps import Irreps
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.channelwise.op import supports
from eqtp.kernels.linear import LinearPath, LinearProblem, linear
from eqtp.kernels.spherical_harmonics.op import spherical_harmonics
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import to_layout
from eqtp.models.acceleration.kept import elements_of
from eqtp.models.acceleration.swap import Swap, inherits_forward
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = [
    "ElementProduct",
    "Harmonics",
    "LinearMap",
    "Product",
    "product_problem",
    "relative_sign",
    "swap_for",
]


def swap_for(module: nn.Module, backend: Backend) -> Swap | str | None:
    """The swap for a module of e3nn; why there is none, in words; None for other modules."""
    e3nn = sys.modules.get("e3nn")
    if e3nn is None:
        return None
    o3 = e3nn.o3
    known = (o3.TensorProduct, o3.Linear, o3.SphericalHarmonics)
    if not isinstance(module, known):
        return None
    if not inherits_forward(module, *known):
        return f"{type(module).__qualname__} has a forward of its own"
    try:
        if isinstance(module, o3.Linear):
            return LinearMap(module)
        if isinstance(module, o3.SphericalHarmonics):
            return Harmonics(module)
        return ElementProduct(module) if ElementProduct.fits(module) else Product(module, backend)
    except NotImplementedError as error:
        return str(error)


class Product(Swap):
    """`o3.TensorProduct` and its kin."""

    kind = "tensor product"

    def __init__(self, module: Any, backend: Backend) -> None:
        super().__init__(module)
        self.problem = product_problem(module)
        if not self.problem.paths:
            raise NotImplementedError("it has no paths")
        self.backend: Backend = backend

    def __call__(self, x: Tensor, y: Tensor, weight: Any = None) -> Tensor:
        """The product of rows of x and y, which broadcast."""
        weight = self.weights(weight)
        batch = torch.broadcast_shapes(
            x.shape[:-1], y.shape[:-1], *([weight.shape[:-1]] if weight is not None else [])
        )
        rows = math.prod(batch)
        if weight is not None and weight.ndim > 1:
            weight = weight.expand(*batch, -1).reshape(rows, weight.shape[-1])
        product = channelwise_tensor_product if supports(self.problem) else tensor_product
        out: Tensor = product(
            x.expand(*batch, -1).reshape(rows, x.shape[-1]),
            y.expand(*batch, -1).reshape(rows, y.shape[-1]),
            weight,
            self.problem,
            backend=self.backend,
        )
        return out.reshape(*batch, out.shape[-1])

    def weights(self, weight: Any) -> Tensor | None:
        """The weights of a call, by the module's own rules; None for a product without any."""
        found: Tensor = self.module._get_weights(weight)
        return found if self.problem.weight_numel > 0 else None

    def arguments(self) -> tuple[Any, ...]:
        """Seven rows, with weights of their own where the module has none."""
        rows, problem = 7, self.problem
        x, y = torch.randn(rows, problem.irreps_in1.dim), torch.randn(rows, problem.irreps_in2.dim)
        if self.module.internal_weights or problem.weight_numel == 0:
            return x, y
        shape = (
            (problem.weight_numel,) if self.module.shared_weights else (rows, problem.weight_numel)
        )
        return x, y, torch.randn(shape)


def product_problem(module: Any) -> TensorProductProblem:
    """The paths of an e3nn product, with its coefficients and the signs of its 3j symbols."""
    in1, in2, out = (
        Irreps(str(irreps)) for irreps in (module.irreps_in1, module.irreps_in2, module.irreps_out)
    )
    signs = _signs(module)
    paths = []
    start = 0
    for instruction in module.instructions:
        i1, i2, i_out, mode, has_weight, coefficient, shape = instruction
        degrees = in1[i1].ir.l, in2[i2].ir.l, out[i_out].ir.l
        path = Path(
            i_in1=i1,
            i_in2=i2,
            i_out=i_out,
            mode=mode,
            has_weight=has_weight,
            path_weight=1.0,
            coefficient=float(coefficient) * signs(degrees),
            weight_shape=tuple(shape) if has_weight else (),
            weight_start=start,
        )
        start += path.weight_numel
        paths.append(path)
    return TensorProductProblem(in1, in2, out, tuple(paths))


def _signs(module: nn.Module) -> Any:
    """A function of (l1, l2, l3): the sign of e3nn's symbol relative to `eqtp.so3.wigner_3j`."""
    own = {
        name.rsplit("_w3j_", 1)[1]: symbol
        for name, symbol in module.named_buffers()
        if "_w3j_" in name
    }

    def sign(degrees: tuple[int, int, int]) -> float:
        symbol = own.get("_".join(map(str, degrees)))
        if symbol is None:
            symbol = sys.modules["e3nn"].o3.wigner_3j(*degrees, dtype=torch.float64)
        return relative_sign(symbol, degrees)

    return sign


def relative_sign(symbol: Tensor, degrees: tuple[int, int, int]) -> float:
    """The sign of another library's 3j symbol relative to `eqtp.so3.wigner_3j`.

    Raises:
        NotImplementedError: It is another tensor, not only another sign.
    """
    overlap = float((symbol.detach().double().cpu() * wigner_3j(*degrees)).sum())
    if abs(abs(overlap) - 1) > 1e-5:  # rounded to float32 it is 1 to 1e-7
        raise NotImplementedError(
            f"its 3j symbol {degrees} is not the one of SO(3) (overlap {overlap:.6f})"
        )
    return 1.0 if overlap > 0 else -1.0


class ElementProduct(Swap):
    """`o3.FullyConnectedTensorProduct` with the one-hot element: one linear map per element."""

    kind = "element-wise linear map"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.irreps_in, self.irreps_out = (
            Irreps(str(module.irreps_in1)),
            Irreps(str(module.irreps_out)),
        )
        self.num_elements = int(module.irreps_in2.dim)
        self.problem = _element_problem(self, module.instructions)

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether every path is fully connected, with one block of scalars as second operand."""
        second = [(mul, str(ir)) for mul, ir in module.irreps_in2]
        return (
            len(second) == 1
            and second[0][1] == "0e"
            and module.internal_weights
            and all(
                instruction.connection_mode == "uvw" and instruction.has_weight
                for instruction in module.instructions
            )
        )

    def __call__(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The product; by the module itself where y is no element's index in disguise."""
        served = weight is None and x.ndim == y.ndim == 2 and len(x) == len(y)
        elements = elements_of(y) if served and not y.requires_grad else None
        if elements is None:
            result: Tensor = self.original(x, y, weight)
            return result
        out = linear(
            to_layout(x, self.irreps_in, "mul_ir", "ir_mul"),
            self.module.weight,
            self.problem,
            elements.element,
        )
        return to_layout(out, self.irreps_out, "ir_mul", "mul_ir")

    def arguments(self) -> tuple[Any, ...]:
        """Rows of random elements."""
        element = torch.randint(self.num_elements, (7,))
        one_hot = nn.functional.one_hot(element, self.num_elements)
        return torch.randn(7, self.irreps_in.dim), one_hot.to(torch.get_default_dtype())


def _element_problem(product: ElementProduct, instructions: Any) -> LinearProblem:
    x, out = product.irreps_in.slices(), product.irreps_out.slices()
    paths = []
    start = 0
    for i1, _, i_out, _, _, coefficient, shape in instructions:
        dim = product.irreps_in[i1].ir.dim
        paths.append(
            LinearPath(
                x=x[i1].start,
                out=out[i_out].start,
                weight=start,
                mul_in=shape[0],
                mul_out=shape[2],
                dim=dim,
                scale=float(coefficient) / dim**0.5,  # w3j(l, 0, l) = 1 / sqrt(2l + 1)
            )
        )
        start += shape[0] * shape[1] * shape[2]
    return LinearProblem(
        tuple(paths), product.irreps_in.dim, product.irreps_out.dim, start, product.num_elements
    )


class LinearMap(Swap):
    """`o3.Linear`, any instructions and biases, one set of weights."""

    kind = "linear map"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        if not module.shared_weights:
            raise NotImplementedError("a linear map with weights for every row")
        if any(len(instruction.path_shape) > 2 for instruction in module.instructions):
            raise NotImplementedError("a linear map of features (f_in, f_out)")
        if module.weight_numel > 0 and module.internal_weights and module.weight.ndim != 1:
            raise NotImplementedError("a linear map of features (f_in, f_out)")
        self.irreps_in, self.irreps_out = (
            Irreps(str(module.irreps_in)),
            Irreps(str(module.irreps_out)),
        )
        self.problem, self.biases = _linear_problem(self, module.instructions)
        if not self.problem.paths:
            raise NotImplementedError("it has no paths")

    def __call__(
        self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The map of rows of features."""
        matrix: Tensor = self.module.weight if weight is None else weight
        shift: Tensor = self.module.bias if bias is None else bias
        rows = features.reshape(-1, self.irreps_in.dim)
        out = linear(to_layout(rows, self.irreps_in, "mul_ir", "ir_mul"), matrix, self.problem)
        out = to_layout(out, self.irreps_out, "ir_mul", "mul_ir")
        if self.biases:
            out = out + self._bias_row(shift)
        return out.reshape(*features.shape[:-1], self.irreps_out.dim)

    def _bias_row(self, bias: Tensor) -> Tensor:
        pieces = []
        start = 0
        for i_out, (mul, ir) in enumerate(self.irreps_out):
            if i_out in self.biases:
                pieces.append(bias[start : start + mul])
                start += mul
            else:
                pieces.append(bias.new_zeros(mul * ir.dim))
        return torch.cat(pieces)

    def arguments(self) -> tuple[Any, ...]:
        """Seven rows, with weights where the module has none."""
        x = torch.randn(7, self.irreps_in.dim)
        if self.module.internal_weights or self.problem.weight_numel == 0:
            return (x,)
        return x, torch.randn(self.problem.weight_numel), torch.randn(self.module.bias_numel)


def _linear_problem(swap: LinearMap, instructions: Any) -> tuple[LinearProblem, set[int]]:
    """The paths of a linear map, and which blocks of the result have a bias."""
    x, out = swap.irreps_in.slices(), swap.irreps_out.slices()
    paths, biases = [], set()
    start = 0
    for i_in, i_out, shape, scale in instructions:
        if i_in == -1:
            biases.add(i_out)
            continue
        mul_in, mul_out = shape
        dim = swap.irreps_in[i_in].ir.dim
        if mul_in * mul_out > 0:
            paths.append(
                LinearPath(x[i_in].start, out[i_out].start, start, mul_in, mul_out, dim, scale)
            )
        start += mul_in * mul_out
    problem = LinearProblem(tuple(paths), swap.irreps_in.dim, swap.irreps_out.dim, start)
    return problem, biases


class Harmonics(Swap):
    """`o3.SphericalHarmonics`."""

    kind = "spherical harmonics"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.degrees = tuple(int(degree) for degree in module._ls_list)
        self.lmax = max(self.degrees)
        self.normalize = bool(module.normalize)
        self.normalization = module.normalization

    def __call__(self, x: Tensor) -> Tensor:
        """The harmonics of vectors [..., 3]."""
        found = spherical_harmonics(self.lmax, x, self.normalization, self.normalize)
        if self.degrees == tuple(range(self.lmax + 1)):
            return found
        return torch.cat([found[..., l * l : (l + 1) ** 2] for l in self.degrees], dim=-1)

    def arguments(self) -> tuple[Any, ...]:
        """Seven vectors."""
        return (torch.randn(7, 3),)
