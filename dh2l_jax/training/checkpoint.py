"""The state of a run on disk, stored by Orbax."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from dh2l_jax.training.steps import TrainState

__all__ = ["restore", "save"]

FOLDER = "checkpoints"


def save(workdir: Path, state: TrainState) -> Path:
    """Writes the state under its step; returns when it is on disk."""
    with _manager(workdir, create=True) as manager:
        step = int(state.step)
        manager.save(step, args=ocp.args.StandardSave(_tree(state)))
        manager.wait_until_finished()
    return workdir / FOLDER / str(step)


def restore(workdir: Path, like: TrainState) -> TrainState:
    """The newest state of a run, with the structure, shapes and devices of `like`.

    Raises:
      ValueError: there is no checkpoint, or it belongs to another model.
    """
    folder = workdir / FOLDER
    if not folder.is_dir():
        raise ValueError(f"no checkpoint in {workdir}: expected the folder {folder}")
    with _manager(workdir, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise ValueError(f"no checkpoint in {folder}: the run did not get to its end")
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, _tree(like))
        try:
            tree = manager.restore(step, args=ocp.args.StandardRestore(template))
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {folder / str(step)} does not fit: {reason}") from error
    return TrainState(**tree)


def _manager(workdir: Path, *, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=create, max_to_keep=1)
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def _tree(state: TrainState) -> dict:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "key": state.key,
    }
