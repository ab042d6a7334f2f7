"""Save and load potentials: one safetensors file with a JSON description inside.

The file holds every parameter and persistent buffer, and, as metadata under the key `"eqtp"`, the
name of the model's class and its hyperparameters. Loading looks the class up by name in
`eqtp.models.registry`, builds it from the hyperparameters and fills in the tensors: nothing in
the file is executed, so a file from a stranger can be read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from eqtp.files import write_atomically
from eqtp.models.registry import MODEL_MODULES, model_class

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_FILE = "model.safetensors"
"""The model in the folder of a training run."""

FORMAT = 1
"""Version of the file layout; a reader refuses files of a newer one."""

_KEY = "eqtp"
_ZIP_MAGIC = b"PK\x03\x04"


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a model to one safetensors file, atomically.

    Args:
        model: A model of a class in `eqtp.models.registry`, with `hyperparameters` that rebuild it.
        path: The file to write, customarily `*.safetensors`; an existing file is replaced only
            once the new one is complete.

    Raises:
        TypeError: The model's class is not one that `load` can rebuild, its hyperparameters
            cannot be written as JSON, or its state holds something other than tensors.
        FileNotFoundError: The folder of `path` does not exist.

    Example:
        >>> import tempfile, eqtp.models
        >>> model = eqtp.models.MACE(
        ...     atomic_numbers=[1], atomic_energies=[-13.6], avg_num_neighbors=1.0,
        ...     hidden_irreps="4x0e", radial_mlp=(8,), max_ell=1, correlation=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     eqtp.models.save(model, folder + "/hydrogen.safetensors")
        ...     eqtp.models.load(folder + "/hydrogen.safetensors").atomic_numbers
        [1]
    """
    from safetensors.torch import save as serialize

    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder of a model file must exist, got '{path}': create '{path.parent}' first"
        )
    write_atomically(path, serialize(*_contents(model)))


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Reads a model that `save` wrote, checking everything and running no code from the file.

    Args:
        path: The file, or the folder of a training run, whose model is `model.safetensors`.
        dtype: Floating-point type to convert the model to; None keeps each tensor's saved one.
        device: Where the model goes.

    Returns:
        The model, in evaluation mode. torch's random state is left as it was.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a safetensors file, was cut short or damaged, was not written
            by eqtp or by a newer one, names an unknown class, or its tensors do not fit the class.

    Example:
        See `save`.
    """
    path = Path(path)
    path = path / MODEL_FILE if path.is_dir() else path
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}: use torch.float32")
    metadata, tensors = _read(path)
    description = _description(path, metadata)
    if description["sha256"] != _digest(tensors):
        raise ValueError(
            f"the tensors of '{path}' do not match their checksum: the file was damaged or edited;"
            " copy it again or write it again with eqtp.models.save"
        )
    model = _build(path, description)
    _fill(path, model, tensors, dtype, getattr(torch, description["dtype"]))
    return model.to(device).eval()


def _contents(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file that describes `model`."""
    from eqtp import __version__
    from eqtp.nn import PathGate

    name = type(model).__name__
    if name not in MODEL_MODULES or model_class(name) is not type(model):
        raise TypeError(
            f"a saved model must be one of {', '.join(MODEL_MODULES)} itself, got"
            f" {type(model).__module__}.{name}: save the potential, not a wrapper around it"
        )
    if any(isinstance(module, PathGate) for module in model.modules()):
        raise TypeError(
            "a saved model must have no path gates, which belong to training, got a gated one: "
            "save eqtp.models.prune_paths(model)"
        )
    tensors = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"a saved model's state must be tensors only, got a {type(value).__name__} under"
                f" '{key}': make it a hyperparameter"
            )
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
    floating = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    dtype = floating[0] if floating else torch.get_default_dtype()
    # Which kernels run is a matter of the machine, not of the model: a file opens anywhere.
    given = cast("dict[str, Any]", model.hyperparameters)
    hyperparameters = {key: value for key, value in given.items() if key != "backend"}
    description = {
        "format": FORMAT,
        "class": name,
        "hyperparameters": hyperparameters,
        "eqtp_version": __version__,
        "dtype": str(dtype).removeprefix("torch."),
        "sha256": _digest(tensors),
    }
    try:
        return tensors, {_KEY: json.dumps(description, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}.hyperparameters must be finite numbers, strings, lists and dicts, got"
            f" {hyperparameters!r} ({error})"
        ) from error


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"a model file must exist, got '{path}'")
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
            raise ValueError(
                f"'{path}' is a pickle written by torch.save, and loading one runs code from the"
                " file; eqtp reads only files of eqtp.models.save. Load a mace-torch model with"
                " torch.load where you trust it and convert it by eqtp.models.MACE.from_mace"
            )
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return opened.metadata() or {}, tensors
    except SafetensorError as error:
        if "Incomplete" in str(error):
            raise ValueError(
                f"'{path}' was cut short: its header promises more bytes than the file has"
                f" ({path.stat().st_size}); copy or save it again"
            ) from error
        raise ValueError(
            f"'{path}' is not a safetensors file, or its start is damaged ({error}): expected a"
            " file of eqtp.models.save"
        ) from error


def _description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The checked JSON description of a model."""
    if _KEY not in metadata:
        raise ValueError(
            f"'{path}' is a safetensors file without a model description: it was not written by"
            " eqtp.models.save"
        )
    try:
        description = json.loads(metadata[_KEY])
        version = description["format"]
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"'{path}' has format {version}, written by eqtp"
                f" {description.get('eqtp_version')}, but this eqtp reads up to format {FORMAT}:"
                " upgrade eqtp"
            )
        types = {"class": str, "hyperparameters": dict, "dtype": str, "sha256": str}
        wrong = [key for key, kind in types.items() if not isinstance(description[key], kind)]
        dtype = getattr(torch, str(description["dtype"]), None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            wrong.append("dtype")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the model description in '{path}' is damaged ({error!r}); save the model again"
        ) from error
    if wrong or version != FORMAT:
        raise ValueError(
            f"the model description in '{path}' is damaged: wrong "
            f"{', '.join(wrong) or 'format'}; save the model again"
        )
    return dict(description)


def _build(path: Path, description: Mapping[str, Any]) -> nn.Module:
    """The model of a description, its constants in float64, its parameters still random."""
    if description["class"] not in MODEL_MODULES:
        raise ValueError(
            f"'{path}' holds a model of the unknown class '{description['class']}'; this eqtp"
            f" knows {', '.join(MODEL_MODULES)}: upgrade eqtp if a newer one wrote the file"
        )
    default = torch.get_default_dtype()
    try:
        # Constants that are not in the file are computed in float64 and then rounded once.
        torch.set_default_dtype(torch.float64)
        with torch.random.fork_rng(devices=[]):
            return model_class(description["class"])(**description["hyperparameters"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the hyperparameters in '{path}' do not build a {description['class']} ({error}): the"
            f" file was written by eqtp {description.get('eqtp_version')}"
        ) from error
    finally:
        torch.set_default_dtype(default)


def _fill(
    path: Path,
    model: nn.Module,
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None,
    saved_dtype: torch.dtype,
) -> None:
    """Gives `model` the tensors of the file, in `dtype` or, if that is None, as they were saved."""
    model.to(dtype or saved_dtype)
    state = model.state_dict()
    missing, extra = sorted(state.keys() - tensors.keys()), sorted(tensors.keys() - state.keys())
    reshaped = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in state.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if missing or extra or reshaped:
        problems = [("missing", missing), ("extra", extra), ("of another shape", reshaped)]
        listed = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in problems if keys)
        raise ValueError(
            f"the tensors in '{path}' do not fit a {type(model).__name__} of its hyperparameters:"
            f" {listed}; the file was edited or written by an incompatible eqtp"
        )
    if dtype is None:
        # A buffer may be kept in another type than the parameters (energies in float64).
        for key, own in (*model.named_parameters(), *model.named_buffers()):
            if key in tensors and own.dtype != tensors[key].dtype:
                own.data = own.data.to(tensors[key].dtype)
    model.load_state_dict(tensors, strict=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of the tensors: a flipped bit is noticed."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
