import importlib

import pytest
from fairseq.data import encoders
from fairseq.data.encoders import BPE_REGISTRY
from omegaconf import OmegaConf

import fairseq_efficient.plugin
from fairseq_efficient.plugin.characters import Bytes, BytesConfig, Characters, CharactersConfig


def test_registered_once_with_a_dataclass() -> None:
    before = dict(BPE_REGISTRY)
    importlib.reload(fairseq_efficient.plugin)
    assert before == BPE_REGISTRY
    assert BPE_REGISTRY["dp_characters"] is Characters and BPE_REGISTRY["dp_bytes"] is Bytes


@pytest.mark.parametrize("name, config", [("dp_characters", CharactersConfig), ("dp_bytes", BytesConfig)])
def test_encode_and_decode(name: str, config: type) -> None:
    bpe = encoders.build_bpe(OmegaConf.create({"_name": name}), from_checkpoint=False)
    for text in ("The cat\nsat é 中.", "", " a  b "):
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode("the cat▁") == "t h e ▁ c a t ▁"
    assert bpe.encode("é") == ("é" if name == "dp_characters" else "<0xC3> <0xA9>")
