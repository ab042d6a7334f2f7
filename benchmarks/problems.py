"""The tensor products of real models that the benchmarks run, by the rules that make them.

72 products from the benchmarks of OpenEquivariance, FlashTP, SevenNet and cuEquivariance. A product
is irreps and one of three orders of instructions:

    channelwise      "uvu", sorted by result (MACE; `eqtp.ChannelwiseTensorProduct`)
    created          "uvu", results sorted, instructions as the loops make them (NequIP, SevenNet)
    fully connected  "uvw" (`eqtp.FullyConnectedTensorProduct`)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from eqtp.nn import ChannelwiseTensorProduct, FullyConnectedTensorProduct
from eqtp.problem import TensorProductProblem

__all__ = ["CORE", "PROBLEMS", "Product", "harmonics"]

Order = Literal["channelwise", "created", "fully connected"]


@dataclass(frozen=True)
class Product:
    """One product of a model.

    Attributes:
        name: Unique name, as in the source.
        irreps_in1: Irreps of x1.
        irreps_in2: Irreps of x2.
        irreps_out: The irreps that may appear in the result (fully connected: the result's own).
        order: The rule of the instructions.
        source: Whose benchmark runs it.
        shared_weights: One weight vector for all rows, as the source runs it.
    """

    name: str
    irreps_in1: str
    irreps_in2: str
    irreps_out: str
    order: Order
    source: str
    shared_weights: bool = False

    @property
    def problem(self) -> TensorProductProblem:
        """The description of the product."""
        return _problem(self)


@cache
def _problem(product: Product) -> TensorProductProblem:
    irreps = product.irreps_in1, product.irreps_in2, product.irreps_out
    if product.order == "fully connected":
        return FullyConnectedTensorProduct(*irreps).problem
    problem = ChannelwiseTensorProduct(*irreps).problem
    if product.order == "channelwise":
        return problem
    # The loops over the blocks of x1, of x2 and over the results, before the sort by result.
    created: list[Any] = sorted(
        problem.instructions, key=lambda i: (i[0], i[1], _degree(problem, i))
    )
    return TensorProductProblem.from_instructions(
        problem.irreps_in1, problem.irreps_in2, problem.irreps_out, created
    )


def _degree(problem: TensorProductProblem, instruction: tuple[Any, ...]) -> int:
    degree: int = problem.irreps_out[instruction[2]].ir.l
    return degree


def harmonics(lmax: int, parity: str = "natural", channels: int = 1) -> str:
    """Irreps of degrees 0 to lmax, e.g. 1x0e+1x1o+1x2e; parity "natural", "e" or "both"."""
    letters = {"natural": None, "e": "e", "both": "eo"}[parity]
    return "+".join(f"{channels}x{l}{p}" for l in range(lmax + 1) for p in (letters or "eo"[l % 2]))


def _channelwise(source: str, **products: tuple[str, str, str]) -> list[Product]:
    return [Product(name, *irreps, "channelwise", source) for name, irreps in products.items()]


def _openequivariance() -> list[Product]:
    """The lists of OpenEquivariance's `benchmark/problems.py`, and its roofline."""
    source = "OpenEquivariance"
    sevennet = "128x0e+64x1e+32x2e+32x3e"
    nequix = "128x0e+64x1o+32x2e+32x3o"
    both = {c: {l: harmonics(l, "both", c) for l in (1, 2, 3)} for c in (32, 64)}
    y1, y2, y3, y3e = harmonics(1), harmonics(2), harmonics(3), harmonics(3, "e")
    uvu = {
        "mace-large": (harmonics(2, channels=128), y3, y3),
        "mace-medium": (harmonics(1, channels=128), y3, y2),
        "nequip-lips": (_odd_first(32, 2), y2, both[32][2]),
        "nequip-revmd17-aspirin": (_odd_first(64, 1), y1, both[64][1]),
        "nequip-revmd17-toluene": (_odd_first(64, 2), y2, both[64][2]),
        "nequip-revmd17-benzene": (_odd_first(64, 3), y3, both[64][3]),
        "nequip-water": (_odd_first(32, 1), y1, both[32][1]),
        "nequix-mp-1-first_layer": ("89x0e", y3, y3),
        "nequix-mp-1-main_layers": (nequix, y3, y3),
        "nequix-mp-1-last_layer": (nequix, y3, "0e"),
        "SevenNet_l3i5-first-layer": ("128x0e", y3e, y3e),
        "SevenNet_l3i5-main-layers": (sevennet, y3e, y3e),
        "SevenNet_l3i5-last-layer": (sevennet, y3e, "0e"),
        "nequip-oam-l-first-layer": ("32x0e", y3, y3),
        "nequip-oam-l-main-layers": (nequix, y3, y3),
        "nequip-oam-l-last-layer": (nequix, y3, "0e"),
    }
    degrees = (
        (1, 1, 1),
        (2, 1, 2),
        (3, 3, 3),
        (5, 5, 3),
        (5, 3, 5),
        (6, 3, 6),
        (7, 4, 7),
        (7, 7, 7),
    )
    roofline = {
        f"roofline[{n}]": (f"128x{l1}e", f"1x{l2}e", f"128x{l3}e")
        for n, (l1, l2, l3) in enumerate(degrees, 1)
    }
    poly, dock, tools = (
        "64x0e+24x1e+24x1o+16x2e+16x2o", "10x1o+10x1e+48x0e+48x0o", "64x0e+16x1o"
    )  # fmt: skip
    uvw = {
        "tetris-poly-1": (y3, y3, poly, True),
        "tetris-poly-2": (poly, y2, "0o+6x0e", True),
        "DiffDock-L=1": (dock, y1, dock, False),
        "DiffDock-L=2": (dock, y2, dock, False),
        "e3tools_conv": (tools, y1, "80x0e+16x1o", False),
        "e3tools_transformer": (tools, y1, tools, True),
    }
    return [
        *_channelwise(source, **uvu, **roofline),
        *(
            Product(name, in1, in2, out, "fully connected", source, shared)
            for name, (in1, in2, out, shared) in uvw.items()
        ),
    ]


def _odd_first(channels: int, lmax: int) -> str:
    """NequIP's features: both parities of each degree, odd before even."""
    return "+".join(f"{channels}x{l}{p}" for l in range(lmax + 1) for p in "oe")


def _flashtp_mace() -> list[Product]:
    y3 = harmonics(3)
    layers = {
        "small.json#0": "128x0e", "small.json#1": "128x0e",
        "medium.json#0": "128x0e", "medium.json#1": "128x0e+128x1o",
        "large.json#0": "256x0e", "large.json#1": "256x0e+256x1o",
    }  # fmt: skip
    return _channelwise("FlashTP mace", **{name: (in1, y3, y3) for name, in1 in layers.items()})


def _flashtp_nequip() -> list[Product]:
    """`4_32_L_p_sc`: four layers, 32 channels, degrees up to L, parities that grow by layer."""
    products = []
    for lmax in range(1, 6):
        even, odd = ([f"32x{l}{p}" for l in range(1, lmax + 1)] for p in "eo")
        natural_even, natural_odd = even[1::2], odd[::2]
        layers = (
            ["32x0e"],
            ["32x0e", *natural_even, *natural_odd],
            ["32x0e", *even, *(odd if lmax > 1 else ["32x1o"])],
            ["32x0e", "32x0o", *even, *odd],
        )
        products += [
            Product(
                f"4_32_{lmax}_p_sc.txt#{number}",
                "+".join(layer),
                harmonics(lmax),
                harmonics(lmax, "both"),
                "created",
                "FlashTP nequip",
            )
            for number, layer in enumerate(layers)
        ]
    return products


def _sevennet() -> list[Product]:
    """SevenNet's models as FlashTP runs them: the first layer, three alike, and the last."""
    products = []
    for name, lmax in (("sevennet-0", 2), ("sevennet-l3i5", 3)):
        features = "+".join(
            f"{c}x{l}e" for l, c in zip(range(lmax + 1), (128, 64, 32, 32), strict=False)
        )
        y = harmonics(lmax, "e")
        layers = (("128x0e", y), (features, y), (features, y), (features, y), (features, "0e"))
        products += [
            Product(f"{name}.json#{n}", in1, y, out, "created", "FlashTP sevennet")
            for n, (in1, out) in enumerate(layers)
        ]
    y, both = harmonics(3), harmonics(3, "both")
    natural = "128x0e+64x1o+32x2e+32x3o"
    mixed = "64x1o+64x1e+32x2o+32x2e+32x3o+32x3e"
    omni = (
        ("128x0e", y),
        (natural, both),
        (f"128x0e+{mixed}", both),
        (f"128x0o+128x0e+{mixed}", both),
        (natural, "0e"),
    )
    products += [
        Product(f"SevenNet-MF-ompa.json#{n}", in1, y, out, "channelwise", "FlashTP sevennet")
        for n, (in1, out) in enumerate(omni)
    ]
    return products


def _cuequivariance() -> list[Product]:
    """The channelwise product of cuEquivariance's MACE tutorial."""
    irreps = ("128x0e+128x1o", harmonics(1), harmonics(1))
    return _channelwise("cuEquivariance", **{"cue-docs-mace-cwtp": irreps})


PROBLEMS: dict[str, Product] = {
    product.name: product
    for product in (
        *_openequivariance(),
        *_flashtp_mace(),
        *_flashtp_nequip(),
        *_sevennet(),
        *_cuequivariance(),
    )
}
"""Every product by its name."""

CORE = (
    *("mace-large", "mace-medium", "nequip-lips", "nequip-revmd17-toluene"),
    *("nequip-revmd17-benzene", "nequix-mp-1-main_layers", "SevenNet_l3i5-main-layers"),
    *("nequip-oam-l-main-layers", "DiffDock-L=1", "DiffDock-L=2", "e3tools_conv"),
    *("4_32_3_p_sc.txt#3", "4_32_5_p_sc.txt#3", "cue-docs-mace-cwtp"),
)
"""What a full run takes of the models' products."""
