"""Errors of a config in words: which key is wrong, and the nearest ones that the schema knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from eqtp.models.training.model_config import ModelConfig

__all__ = ["explain", "known_keys"]

Schema = type[BaseModel]


def explain(error: ValidationError, source: str, schema: Schema) -> str:
    """One sentence per problem; unknown keys come with the nearest known ones.

    Args:
        error: What pydantic found.
        source: Of the config, for the reader.
        schema: The class of the whole config.
    """
    lines = []
    for problem in error.errors():
        location, model = _without_tag([str(part) for part in problem["loc"]], schema)
        key = ".".join(location)
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}: {_hint(location, model, schema)}")
        elif problem["type"] == "missing":
            lines.append(f"{key!r} is missing")
        elif problem["type"] == "union_tag_invalid":
            got = problem.get("ctx", {}).get("tag")
            lines.append(
                f"{key}.name must be one of {', '.join(_model_configs(schema))}, got {got!r}"
            )
        elif problem["type"] == "value_error":
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return f"{source}: " + "; ".join(dict.fromkeys(lines))


def _without_tag(location: list[str], schema: Schema) -> tuple[list[str], str | None]:
    """The location as the user knows it, and the model whose fields it speaks of.

    Below `model`, pydantic names the class that it chose.
    """
    if location[:1] == ["model"] and location[1:2] and location[1] in _model_configs(schema):
        return [location[0], *location[2:]], location[1]
    return location, None


def _hint(location: Sequence[str], model: str | None, schema: Schema) -> str:
    """The nearest known keys, and those of the section the unknown key stands in."""
    known = known_keys(schema, model)
    last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    nearest = [last[name] for name in difflib.get_close_matches(location[-1], last, n=2)]
    section = ".".join(_as_known(location[:-1], known))
    depth = len(location) - 1
    siblings = [key.rsplit(".", 1)[-1] for key in known if key.count(".") == depth]
    siblings = [name for name in siblings if f"{section}.{name}".lstrip(".") in known]
    question = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"{question}known here: {', '.join(dict.fromkeys(siblings))}"


def _as_known(location: Sequence[str], known: Sequence[str]) -> list[str]:
    """A location as the schema writes it: 0 for a list's position, * for a name of the user's."""
    parts: list[str] = []
    for part in location:
        named = ".".join([*parts, "*."])
        is_name = any(key.startswith(named) for key in known)
        parts.append("*" if is_name else "0" if part.isdigit() else part)
    return parts


def known_keys(schema: Schema, model: str | None = None) -> list[str]:
    """Every dotted key of the schema; list entries appear as position 0.

    Args:
        schema: The class of the whole config.
        model: Name of the model whose hyperparameters are listed; None lists those of all.
    """
    chosen = _model_configs(schema)
    shown = list(chosen.values()) if model is None else [chosen[model]]
    keys = _keys(schema, "", tuple(shown))
    return list(dict.fromkeys(keys))


def _model_configs(schema: Schema) -> dict[str, type[ModelConfig]]:
    """The class of every model's section, by the model's name."""
    found = _sections(schema.model_fields["model"].annotation)
    classes = [kind for kind in found if issubclass(kind, ModelConfig)]
    return {kind.model_fields["name"].default: kind for kind in classes}


def _keys(
    section: type[BaseModel], prefix: str, models: tuple[type[ModelConfig], ...]
) -> Iterable[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in _sections(field.annotation):
            if issubclass(kind, ModelConfig) and kind not in models:
                continue
            container = get_origin(field.annotation)
            inner = "0." if container is tuple else "*." if container is dict else ""
            yield from _keys(kind, f"{prefix}{name}.{inner}", models)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _sections(part)]
