"""Repairs of fairseq 0.12.3 on modern Python, torch and numpy, and of its handling of checkpoints and mistakes.

``apply()`` is the first call in every system's ``__init__``, before anything registers, and in
``fairseq_efficient.plugin``. Each repair is one function that says what is wrong; it is made once, and only where the
fault is present.
"""

import torch

from fairseq_efficient.compat import (
    allocator,
    checkpoints,
    commands,
    data,
    generation,
    libraries,
    optim,
    overrides,
    recompute,
    training,
)


def apply() -> None:
    """Repair fairseq in this process; a second call changes nothing.

    Raises:
        UserError: torch is too old to read a checkpoint safely.
    """
    commands.present_errors()
    libraries.require_torch(torch.__version__)
    libraries.silence_deprecations()
    libraries.log_as_commands_do()
    libraries.restore_numpy_names()
    allocator.keep_freed_memory()
    data.keep_last_batch()
    data.end_workers()
    data.name_broken_dictionaries()
    data.name_broken_files()
    data.name_broken_labels()
    checkpoints.read_checkpoints_safely()
    checkpoints.write_checkpoints_atomically()
    checkpoints.broadcast_plain_state()
    checkpoints.ask_all_ranks_before_saving()
    checkpoints.name_what_does_not_fit()
    checkpoints.name_the_save_dir()
    overrides.refuse_unknown_overrides()
    optim.give_parameters_their_groups()
    recompute.recompute_as_it_was_computed()
    training.let_tasks_end_training()
    training.find_nan_in_any_module()
    training.copy_tasks()
    generation.block_repeated_ngrams()
    generation.name_missing_constraints()
    generation.read_what_is_typed()
    commands.check_commands()
