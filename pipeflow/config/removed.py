"""Options of earlier versions. Run folders list every option, so old ones must still be read."""

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

from pipeflow.errors import ConfigError
from pipeflow.safe_files import brief

_NO_KEPT_LATENTS = "the latents of every epoch are computed anew"
REMOVED: dict[str, tuple[Any, str]] = {
    "link.cache_draws": (0, _NO_KEPT_LATENTS),
    "link.cache_gb": (4.0, _NO_KEPT_LATENTS),
    "link.cache_dir": (None, _NO_KEPT_LATENTS),
    "precision.graphs": (False, "no step is recorded as a CUDA graph, but precision.compile makes it fast"),
}
"""Each option's old default, and what is done in its place."""


def removed_text(name: str) -> str:
    """The end of a message about an option that is gone."""
    return f"version 0.2.0 removed this option: {REMOVED[name][1]}"


def without_removed(settings: Mapping[str, Any], any_value: bool = False) -> dict[str, Any]:
    """Sections without the options that are gone, which is logged once.

    any_value: leaves them out whatever their value, for whoever uses a run that was trained with them.

    Raises ConfigError where such an option has another value than its old default, since it changes a training.
    """
    kept, ignored = dict(settings), []
    for name, (default, _) in REMOVED.items():
        section, _, key = name.partition(".")
        values = kept.get(section)
        if not isinstance(values, dict) or key not in values:
            continue
        if values[key] != default and not any_value:
            raise ConfigError(
                f"{name}: {removed_text(name)}. Leave it out: only its old default {default} is ignored, got "
                f"{brief(values[key])}."
            )
        kept[section] = {other: value for other, value in values.items() if other != key}
        ignored.append(f"{name} (was {brief(values[key])})")
    if ignored:
        _log_ignored(", ".join(ignored))
    return kept


@functools.cache
def _log_ignored(names: str) -> None:
    """Says it once a process, and in a run of several workers by the first of them."""
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("pipeflow").warning("options that are gone are ignored: %s", names)
