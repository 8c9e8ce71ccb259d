"""The state of a run on disk, stored by Orbax."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from dh2l_jax.training.steps import TrainState

__all__ = ["BEST", "LAST", "restore", "save"]

LAST, BEST = "checkpoints", "checkpoints_best"
"""Folders of the last state of a run, and of the best on held-out images."""


def save(workdir: Path, state: TrainState, folder: str = LAST) -> Path:
    """Writes the state under its step; returns when it is on disk."""
    with _manager(workdir / folder, create=True) as manager:
        step = int(state.step)
        manager.save(step, args=ocp.args.StandardSave(_tree(state)))
        manager.wait_until_finished()
    return workdir / folder / str(step)


def restore(workdir: Path, like: TrainState, folder: str = LAST) -> TrainState:
    """The newest state in a folder, with the structure, shapes and devices of `like`.

    `like` may be abstract.

    Raises:
      ValueError: there is no checkpoint, or it belongs to another model.
    """
    path = workdir / folder
    if not path.is_dir():
        raise ValueError(f"no checkpoint in {workdir}: expected the folder {path}")
    with _manager(path, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"no checkpoint in {path}: the run did not get to its end")
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        try:
            tree = manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {path / str(step)} does not fit: {reason}") from error
    return TrainState(**tree)


def _manager(path: Path, *, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=create, max_to_keep=1)
    return ocp.CheckpointManager(path.absolute(), options=options)


def _tree(state: TrainState) -> dict:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "key": state.key,
    }
