"""Interfaces of trained models: what is no text or no option is one line; they can be copied and cast."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import efficient_systems  # noqa: F401
from deep_pyramidion.model import PyramidionModel
from dynamic_pooling.model import DynamicPoolingModel
from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.text_models import check_options, check_texts
from par_search.model import ParLanguageModel
from skimming.model import SkimRobertaModel
from tests.util import BLOCKS, HOURGLASS, ROOT, SKIM, SYSTEMS, System, run_cli, run_in_process, train_args

LINES = ["the cat sat", "it was there it sat", "a cat and a dog", "an old cat"] * 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny trained model of three systems, each beside its data."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "text.txt").write_text("\n".join(LINES) + "\n")
    rows = [f"{line}\t{'ab'[number % 2]}" for number, line in enumerate(LINES)]
    (folder / "rows.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    documents = [f'{{"document": "{line}. It was so.", "abstract": "{line}"}}' for line in LINES]
    (folder / "pairs.jsonl").write_text("\n".join(documents) + "\n")
    prepare = {
        "lm": ("prepare_lm.py", "text.txt", "--symbols", "characters"),
        "classes": ("prepare_classification.py", "rows.tsv", "--vocab-size", "270", "--max-tokens", "32"),
        "documents": ("prepare_summarization.py", "pairs.jsonl", "--vocab-size", "40"),
    }
    for name, (script, text, *flags) in prepare.items():
        splits = [f"--split={split}={folder / text}" for split in ("train", "valid")]
        run_cli(str(ROOT / "scripts" / script), [str(folder / name), *splits, *flags])
    systems = {
        "dynamic_pooling": ("lm", System("dynamic_pooling", "dynamic_pooling_lm_gumbel_fast", HOURGLASS, "stream")),
        "par_search": ("lm", System("par_search", "par_lm", (*BLOCKS, "--layout", "afa"), "segments")),
        "skimming": ("classes", System("skimming", "skim_roberta_tiny", SKIM, "sentences")),
        "deep_pyramidion": ("documents", SYSTEMS[0]),
    }
    for name, (data, system) in systems.items():
        flags = ("--max-update", "2", "--disable-validation")
        run_in_process("train", train_args(folder / data, folder / "runs" / name, system, *flags))
    return {name: folder / "runs" / name / "checkpoint_last.pt" for name in systems}


CLASSES: dict[str, Any] = {
    "deep_pyramidion": PyramidionModel, "dynamic_pooling": DynamicPoolingModel, "par_search": ParLanguageModel,
    "skimming": SkimRobertaModel,
}  # fmt: skip
TEXT = "a cat and a cat and a cat "


def answer(name: str, model: Any, texts: Any = TEXT) -> Any:
    if name == "skimming":
        found = model.classify(texts)
        return found if isinstance(texts, str) else list(found)
    return model.summarize(texts, max_len_b=6) if name == "deep_pyramidion" else model.generate(texts, length=6)


@pytest.mark.parametrize("name", CLASSES)
def test_interfaces_are_modules_that_can_be_copied(name: str, folders: dict[str, Path]):
    model = CLASSES[name].from_pretrained(folders[name])
    expected = answer(name, model)
    assert isinstance(model, torch.nn.Module) and not model.eval().training
    assert answer(name, copy.deepcopy(model)) == expected
    half = copy.deepcopy(model).bfloat16()
    assert {one.dtype for one in half.parameters()} == {torch.bfloat16} and answer(name, half) is not None
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", CLASSES)
def test_no_text_an_iterator_and_what_is_no_text(name: str, folders: dict[str, Path]):
    model = CLASSES[name].from_pretrained(folders[name])
    assert answer(name, model, []) == []
    assert answer(name, model, iter([TEXT, "a dog"])) == answer(name, model, [TEXT, "a dog"])
    for text, message in (("a\ud800", "text 0 .from 0.: not valid Unicode .character 1."), (b"a", "bytes, not str")):
        with pytest.raises(UserError, match=message):
            answer(name, model, [text])
    with pytest.raises(UserError, match="NoneType, not str") if name != "skimming" else pytest.raises(TypeError):
        answer(name, model, [None])


def test_rows_have_as_many_texts_as_the_model_takes(folders: dict[str, Path]):
    model = SkimRobertaModel.from_pretrained(folders["skimming"])
    for row in (("a", "b"), ()):
        with pytest.raises(UserError, match=rf"row 0 .from 0.: {len(row)} texts, the model takes 1"):
            model.classify([row])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam=0: must be at least 1"),
        ({"sampling": True, "sampling_topk": 10**6}, "sampling_topk=1000000: the dictionary has"),
        ({"temperature": 0.0}, "temperature=0.0: must be greater than 0"),
        ({"temprature": 0.5}, "temprature: no option of fairseq-generate has that name"),
        ({"constraints": "ordered"}, "constraints=ordered: of fairseq-interactive only"),
        ({"print_alignment": "hard"}, "print_alignment=hard: of fairseq-generate only"),
        ({"score_reference": True}, "score_reference=True: texts are scored by .score"),
    ],
)
def test_options_are_looked_at(folders: dict[str, Path], options: dict[str, Any], message: str):
    for name, run in (("par_search", "generate"), ("deep_pyramidion", "summarize")):
        with pytest.raises(UserError, match=message):
            getattr(CLASSES[name].from_pretrained(folders[name]), run)("a cat", **options)
    with pytest.raises(UserError, match="max_len_b=5: say length="):
        check_options({"max_len_b": 5}, 1, 10, {"max_len_b": "say length="})
    assert check_texts(("a", "")) == ["a", ""]


def test_scores_of_what_is_no_text(folders: dict[str, Path]):
    model = ParLanguageModel.from_pretrained(folders["par_search"])
    with pytest.raises(UserError, match="Tensor, not str"):
        model.score([model.encode("a")])
    with pytest.raises(UserError, match=r"scripts/score_rouge.py"):
        PyramidionModel.from_pretrained(folders["deep_pyramidion"]).score(["a"])


@pytest.mark.parametrize("name", ["dynamic_pooling", "par_search"])
def test_prompts_that_repeat_themselves(name: str, folders: dict[str, Path]):
    """``no_repeat_ngram_size`` is of what is written: the prompt stays, and what follows repeats nothing of it."""
    model = CLASSES[name].from_pretrained(folders[name])
    for beam in (1, 3):
        found = model.generate(TEXT, beam=beam, length=8, no_repeat_ngram_size=3)
        whole = TEXT + found
        seen = [whole[place : place + 3] for place in range(len(whole) - 2)]
        assert all(gram not in seen[: len(TEXT) - 2] for gram in seen[len(TEXT) - 2 :])


def test_a_beam_does_not_depend_on_the_other_prompts(folders: dict[str, Path]):
    model = ParLanguageModel.from_pretrained(folders["par_search"])
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn_like(one) * 0.4)
    prompts = ["the old cat was there", "a", "it", "d", "an old dog sat"]
    together = model.generate(prompts, beam=4, length=5)
    assert together == [model.generate(prompt, beam=4, length=5) for prompt in prompts]


def test_memory_of_evaluation_is_that_of_scores(folders: dict[str, Path]):
    short = ParLanguageModel.from_pretrained(folders["par_search"], eval_mem_len=0)
    tokens = short.encode(TEXT * 4)[:-1]
    found = short.log_probabilities(tokens)
    before = torch.cat([torch.tensor([short.dictionary.eos()]), tokens[:-1]])
    parts = before.split(short.task.evaluation_tokens())
    blocks = [short.model.decoder(part[None], memory_length=0) for part in parts]
    wanted = torch.cat([short.model.get_normalized_probs(block, log_probs=True)[0] for block in blocks])
    torch.testing.assert_close(found, wanted.gather(1, tokens[:, None]).squeeze(1).detach().float())
    other = ParLanguageModel.from_pretrained(folders["par_search"]).log_probabilities(tokens)
    assert not torch.allclose(found, other)
