"""``--model-overrides``: what a checkpoint has no option for is said, and what programs pass stays as it is."""

from pathlib import Path

import pytest
from fairseq import checkpoint_utils

from fairseq_efficient.errors import UserError
from tests.util import SYSTEMS, run_in_process, train_args


@pytest.fixture(scope="module")
def trained(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run_in_process("train", train_args(pair_data, folder, SYSTEMS[0], "--max-update", "1"))
    return folder / "checkpoint_last.pt"


def generate_args(data: Path, checkpoint: Path, *more: str) -> list[object]:
    return [data, "--user-dir", SYSTEMS[0].user_dir, "--path", checkpoint, "--cpu", "--max-len-b", "3", *more]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("{'hard_topk_inferense': True}", r"no option 'hard_topk_inferense'; perhaps 'hard_topk_inference' is meant"),
        ("{'zzzzzz': 1}", r"no option 'zzzzzz'$"),
        ("{'max_source_positions': 900, 7: 1}", r"no option '7'$"),
    ],
)
def test_unknown_ones_are_refused(pair_data: Path, trained: Path, overrides: str, said: str):
    with pytest.raises(UserError, match=f"--model-overrides: the checkpoint has {said}"):
        run_in_process("generate", generate_args(pair_data, trained, "--model-overrides", overrides))


def test_known_ones_and_those_of_programs_are_not(pair_data: Path, trained: Path):
    known = "{'hard_topk_inference': True, 'max_source_positions': 900}"
    run_in_process("generate", generate_args(pair_data, trained, "--model-overrides", known))
    run_in_process("generate", generate_args(pair_data, trained))
    state = checkpoint_utils.load_checkpoint_to_cpu(str(trained), {"sentencepiece_vocab": "x"})
    assert "sentencepiece_vocab" not in state["cfg"]["model"]
