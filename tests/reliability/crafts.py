"""Checkpoints that somebody made to run code, to fill the memory or to write elsewhere."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.fairseq_efficient.test_checkpoints import Calls, enlarge

HUGE = 10**12


def code(state: dict[str, Any], path: Path, marker: Path) -> None:
    torch.save({**state, "extra_state": Calls(os.system, f"touch {marker}")}, path)


def old_code(state: dict[str, Any], path: Path, marker: Path) -> None:
    state = {**state, "extra_state": Calls(os.system, f"touch {marker}")}
    torch.save(state, path, _use_new_zipfile_serialization=False)


def text_that_is_evaluated(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"] = {"_name": "fconv", "encoder_layers": f"[open({str(marker)!r}, 'w')]"}
    torch.save(state, path)


def member_elsewhere(state: dict[str, Any], path: Path, marker: Path) -> None:
    torch.save(state, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"../{marker.name}", b"x")


def huge_tensor(state: dict[str, Any], path: Path, marker: Path) -> None:
    torch.save({**state, "model": {"weight": torch.arange(5000.0)}}, path)
    enlarge(path)


def huge_model(state: dict[str, Any], path: Path, marker: Path) -> None:
    for name in ("encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "attn_span"):
        if name in state["cfg"]["model"]:
            state["cfg"]["model"][name] = HUGE
    torch.save(state, path)


def text_for_our_own_model(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"]["adaptive_softmax_cutoff"] = f"[open({str(marker)!r}, 'w')]"
    torch.save(state, path)


def bytes_that_are_not_there(state: dict[str, Any], path: Path, marker: Path) -> None:
    torch.save({**state, "extra_state": Calls(bytearray, HUGE)}, path)


def storage_that_is_not_there(state: dict[str, Any], path: Path, marker: Path) -> None:
    torch.save({**state, "extra_state": Calls(torch.FloatTensor, HUGE)}, path)


def tensor_of_one_number(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["model"]["more"] = torch.zeros(1).expand(HUGE)
    huge_model(state, path, marker)


def lists_of_lists(state: dict[str, Any], path: Path, marker: Path) -> None:
    many: list[Any] = []
    for _ in range(40):
        many = [many] * 10
    state["cfg"]["model"]["dropout"] = many
    torch.save(state, path)


def options_in_themselves(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"]["more"] = state["cfg"]
    torch.save(state, path)


def references_of_references(state: dict[str, Any], path: Path, marker: Path) -> None:
    """A billion laughs: each option is twice the next one."""
    model = state["cfg"]["model"]
    model.update({f"x{number}": f"${{model.x{number + 1}}}" * 2 for number in range(40)}, x40="relu")
    model["activation_fn"] = "${model.x0}"
    torch.save(state, path)


def many_options(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"]["more"] = dict.fromkeys(map(str, range(99_000)), 0)
    torch.save(state, path)


def numbers_that_collide(state: dict[str, Any], path: Path, marker: Path) -> None:
    """Keys of one hash value: a dictionary of them takes time that grows with the square of their number."""
    torch.save({**state, "extra_state": {number * (2**61 - 1): 0 for number in range(4000)}}, path)


def tensor_as_option(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"]["dropout"] = torch.zeros(3)
    torch.save(state, path)


def numbers_as_keys(state: dict[str, Any], path: Path, marker: Path) -> None:
    state["cfg"]["model"][3] = None
    torch.save(state, path)


CRAFTED = (
    code, old_code, text_that_is_evaluated, member_elsewhere, huge_tensor, huge_model, text_for_our_own_model,
    bytes_that_are_not_there, storage_that_is_not_there, tensor_of_one_number, lists_of_lists, options_in_themselves,
    references_of_references, many_options, numbers_that_collide, tensor_as_option, numbers_as_keys,
)  # fmt: skip
