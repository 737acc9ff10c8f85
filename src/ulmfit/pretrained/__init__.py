"""Finding a model: by the name of one shipped with the package, by its folder, or by its hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ulmfit.bundle import CARD, CONFIG, TOKENIZER
from ulmfit.errors import BundleError

SHIPPED = Path(__file__).resolve().parent
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def shipped_names() -> list[str]:
    """The models that came with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def find_bundle(name: str | Path) -> Path:
    """The folder of a model: `en`, a folder of your own, or `owner/name` on the Hugging Face hub, fetched once.

    A folder goes before a shipped name, a shipped name before the hub. Raises BundleError naming what was tried.
    """
    folder = Path(name)
    if os.path.isdir(folder):  # noqa: PTH112 -- Path.is_dir raises for a name longer than files may have
        return folder
    if str(name) in shipped_names():
        return SHIPPED / str(name)
    if _HUB_ID.fullmatch(str(name)) and not os.path.exists(folder):  # noqa: PTH110 -- as above
        return _from_hub(str(name))
    raise BundleError(
        f"no model {str(name)!r}: neither a folder nor one of the shipped models ({', '.join(shipped_names())}) "
        "nor a hub id (owner/name)"
    )


def _from_hub(hub_id: str) -> Path:
    """Fetch JSON, safetensors and the card alone: nothing that could be code ever arrives."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[CONFIG, TOKENIZER, CARD, "*.safetensors"]))
    except Exception as error:  # what it raises changes with the hub library's version and its HTTP client
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"no folder {hub_id!r} here, and it cannot be fetched from the hub ({reason}); check the name and network"
        ) from None
