"""Task ``skim_squad`` and its criterion with short windows."""

from pathlib import Path
from typing import Any

from skimming.squad_criterion import SkimQuestionAnswering, SkimQuestionAnsweringConfig
from skimming.squad_task import SkimSquadConfig, SkimSquadTask

HEAD = "question_answering_head"


def task_of(folder: Path, **flags: Any) -> SkimSquadTask:
    cfg = SkimSquadConfig(data=str(folder), max_seq_length=24, doc_stride=4, max_query_length=6)
    for name, value in {"classification_head_name": HEAD, "seed": 1, **flags}.items():
        setattr(cfg, name, value)
    return SkimSquadTask.setup_task(cfg)


def criterion_of(task: SkimSquadTask, **flags: Any) -> SkimQuestionAnswering:
    cfg = SkimQuestionAnsweringConfig()
    for name, value in flags.items():
        setattr(cfg, name, value)
    return SkimQuestionAnswering(cfg, task)
