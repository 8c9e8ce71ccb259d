"""A trained network as one program for JAX alone: StableHLO with its weights, and facts in JSON.

The file is a zip archive of two members, so that nothing of this package is needed to read it:

  facts.json     what the pixels must be and what the answers mean
  program.bin    what `jax.export.deserialize` takes
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import ArrayLike

from dh2l_jax.data.batches.augment import normalize
from dh2l_jax.files import write_atomically
from dh2l_jax.models.layers import Network

__all__ = ["export_stablehlo"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    path: str | Path,
    model: Network,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    mean: ArrayLike,
    std: ArrayLike,
    temperature: float = 1.0,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the evaluation of a network, from pixels to probabilities, for cpu, cuda and tpu.

        pixels (b, h, w, c) uint8 → {"logits": (b, C), "probabilities": (b, C)} float32

    with x = (pixels / 255 − mean) / std inside, and probabilities = softmax(logits / temperature).
    The batch b is any. Of a head whose logits are log-probabilities, these are the logits.

    Args:
      path: the file; an older one is replaced.
      model: the network.
      variables: its {"params": …, "batch_stats": …}.
      image_shape: (h, w, c).
      mean: (c,).
      std: (c,).
      temperature: what logits are divided by.
      metadata: facts.json, as JSON values.

    Returns:
      The path.

    Raises:
      OSError: the file cannot be written.
      ImportError: flatbuffers is not installed.
    """
    variables = jax.device_get(variables)  # constants, wherever they live now

    def program(pixels: jax.Array) -> dict[str, jax.Array]:
        logits: Any = model.apply(variables, normalize(pixels, mean, std), train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits / temperature)}

    (b,) = export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((b, *image_shape), jnp.uint8)
    with _no_source_lines():
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(pixels)
    try:
        content = exported.serialize()
    except ImportError:
        raise ImportError("no flatbuffers: pip install 'dh2l_jax[export]'") from None
    facts = json.dumps(dict(metadata or {}), ensure_ascii=False, indent=1).encode()
    path = Path(path).expanduser()
    write_atomically(path, _zipped({"facts.json": facts, "program.bin": bytes(content)}))
    return path


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """Keeps the paths of this machine's Python files out of the program."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """An archive that depends on its members alone; weights do not shrink, so nothing is packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()
