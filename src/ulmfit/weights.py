"""Tensors on disk: safetensors in shards, matrices optionally as int8 rows with a scale each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ulmfit.config import Storage
from ulmfit.errors import BundleError
from ulmfit.int8_rows import quantise_rows, restore_rows

SHARD_BYTES = 16 * 2**20
SCALE = ".scale"


def write_shards(tensors: Mapping[str, Tensor], folder: Path, *, prefix: str, storage: Storage) -> list[str]:
    """Write `prefix-00001-of-0000N.safetensors` ... into an existing folder and return the names.

    A shard is closed when the next tensor would take it over 16 MiB; a larger tensor has a shard of its own.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in _encoded(tensors, storage):
        length = tensor.numel() * tensor.element_size()
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += length
    names = [f"{prefix}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
        (folder / name).chmod(0o644)
    return names


def _encoded(tensors: Mapping[str, Tensor], storage: Storage) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if storage == "int8" and plain.dim() > 1:
            quantised, scale = quantise_rows(plain)
            yield name, quantised
            yield name + SCALE, scale
        else:
            yield name, plain


def read_shards(folder: Path, names: list[str], *, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the shards back in float32, every name and shape checked against `expected` before anything is used.

    `expected` is the state dict of a model without values, on the meta device.
    Raises BundleError for a missing or cut file, a missing or unknown tensor, a wrong shape or kind of number.
    """
    stored: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder}: the shard {name} is missing; copy the whole folder again")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    if key in stored:
                        raise BundleError(f"{path}: the tensor {key} is there twice; the bundle is damaged")
                    stored[key] = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(f"{path}: the shard cannot be read ({error}); copy the whole folder again") from None
    scales = {name + SCALE for name, tensor in stored.items() if tensor.dtype == torch.int8}
    restored = {name: _restored(stored, name, folder) for name in stored if name not in scales}
    _check(folder, restored, expected)
    return restored


def _restored(stored: Mapping[str, Tensor], name: str, folder: Path) -> Tensor:
    tensor = stored[name]
    if tensor.dtype == torch.int8:
        scale = stored.get(name + SCALE)
        if scale is None or tuple(scale.shape) != tuple(tensor.shape[:1]):
            raise BundleError(f"{folder}: the int8 tensor {name} lacks its row scales; the bundle is damaged")
        return restore_rows(tensor, scale)
    return tensor.float() if tensor.is_floating_point() else tensor


def _check(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        what = f"lacks the tensor {missing[0]}" if missing else f"has an unknown tensor {unknown[0]}"
        raise BundleError(f"{folder}: {what}; the weights are of another layout than config.json says")
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise BundleError(
                f"{folder}: the tensor {name} has the shape {tuple(found[name].shape)}, "
                f"{tuple(wanted.shape)} is what config.json asks for"
            )
        if found[name].dtype != wanted.dtype:
            raise BundleError(
                f"{folder}: the tensor {name} holds {found[name].dtype}, {wanted.dtype} is expected; "
                "the bundle is damaged"
            )
        if found[name].is_floating_point() and not bool(found[name].isfinite().all()):
            raise BundleError(f"{folder}: the tensor {name} holds values that are not finite; the bundle is damaged")
