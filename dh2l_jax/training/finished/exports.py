"""A run for others: its weights, or a program, with all that its use needs in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dh2l_jax.models import TorchvisionResNet
from dh2l_jax.training.finished.predictor import Predictor
from dh2l_jax.training.run.console import PrintLine
from dh2l_jax.training.run.facts import RunFacts
from dh2l_jax.training.run.folder import read_config

__all__ = ["FORMATS", "export", "export_facts"]

FORMATS = SAFETENSORS, STABLEHLO = ".safetensors", ".stablehlo"


def export(workdir: Path, path: Path, print_line: PrintLine | None = None) -> Path:
    """Writes the last state of a run, finished or not, by the end of the file's name.

      .safetensors   its weights, see `export_safetensors`
      .stablehlo     a program from pixels to probabilities, see `export_stablehlo`

    Both hold `export_facts`. No image is read.

    Raises:
      ValueError: the folder holds no run, a file of it is damaged, or the name of the file ends in
        something else.
      OSError: the file cannot be written.
      ImportError: safetensors or flatbuffers is not installed.
    """
    # Imported late: only this writes weights.
    from dh2l_jax.models.weights import export_safetensors, export_stablehlo, has_torch_names

    read_config(workdir)  # a folder without a run is a graver mistake than a name
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
    print_line = print_line or _silent
    run = Predictor.load(workdir, decision="argmax", print_line=print_line)
    facts, network, name = run.facts, run.network, run.facts.config.model.name
    about = export_facts(facts, run.temperature)
    if path.suffix == STABLEHLO:
        scale = {"mean": facts.mean, "std": facts.std, "temperature": run.temperature}
        path = export_stablehlo(path, network, run.variables, facts.size, **scale, metadata=about)
        shape = ", ".join(map(str, facts.size))
        print_line(f"from pixels (b, {shape}) uint8 to logits and probabilities (b, classes)")
        return path
    texts = {key: value if isinstance(value, str) else _json(value) for key, value in about.items()}
    path = export_safetensors(path, network, run.variables, texts)
    if not has_torch_names(network):
        what = f"{name} with its head" if isinstance(network, TorchvisionResNet) else name
        print_line(f"torchvision has no {what}: the names are those of our variables")
    return path


def export_facts(facts: RunFacts, temperature: float) -> dict[str, Any]:
    """What a file says of its network, as JSON values.

    Returns:
      network, shortcut, dtype: which network it is.
      classes: in the order of the logits.
      tree: for each class the names from the root's child down to it.
      size: height, width and channels of what the network sees.
      resize: the shorter side that images are scaled to first; 0: they are left as they are.
      crop: the side of the centre that is then cut out; 0: none.
      background: the colour behind transparent pixels.
      mean, std: what pixels / 255 are normalised by.
      temperature: what logits are divided by before their soft-max; 1 where it is not known.
      decision: how the run chooses a class, "argmax" or "crm".
    """
    tree, model, data = facts.tree, facts.config.model, facts.config.data
    return {
        "network": model.name,
        "shortcut": model.shortcut,
        "dtype": model.dtype,
        "classes": facts.classes,
        "tree": tree.node_paths()[: tree.num_classes],
        "size": facts.size,
        "resize": data.resize,
        "crop": data.crop,
        "background": data.background,
        "mean": facts.mean.tolist(),
        "std": facts.std.tolist(),
        "temperature": temperature,
        "decision": facts.config.eval.decision,
    }


def _silent(line: str) -> None:
    """Prints nothing."""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
