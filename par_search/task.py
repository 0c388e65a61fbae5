"""Task ``par_search``: ``segment_lm`` for a par_supernet, with updates of the architecture on a stream of their own."""

import logging
from typing import Any

from fairseq.tasks import register_task

from fairseq_efficient import compat
from fairseq_efficient.errors import UserError
from fairseq_efficient.plugin.segment_lm import SegmentLMTask, unwrapped
from fairseq_efficient.stream_memory import collect
from par_search.config import SearchTaskConfig
from par_search.optimizer import find_search_optimizer
from par_search.phases import ARCHITECTURE, WEIGHTS, Phases
from par_search.search_lanes import SearchIterator, SearchLanes, split_stream

logger = logging.getLogger(__name__)


@register_task("par_search", dataclass=SearchTaskConfig)
class SearchTask(SegmentLMTask):
    """Search: weights and architecture in turns. In evaluation it is ``segment_lm``."""

    def __init__(self, args: Any, *rest: Any, **kwargs: Any):
        super().__init__(args, *rest, **kwargs)
        self.phases = Phases.of_flags(args.arch_warmup_updates, args.arch_update_share)
        if args.arch_stable_updates < 0:
            raise UserError(f"--arch-stable-updates {args.arch_stable_updates}: must not be negative")
        self._stable: dict[str, Any] = {"layout": "", "updates": 0}  # what has not changed, in how many updates
        self._phase = WEIGHTS
        self._training: list[Any] = []

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> Any:
        compat.apply()  # again: a program may import this package before fairseq's training
        return super().setup_task(args, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        """UserError if training would have no architecture to search, or no update for it."""
        model = super().build_model(args, from_checkpoint)
        if from_checkpoint:
            return model
        self._training = [model]
        if not hasattr(model.decoder, "alpha"):
            raise UserError("--task par_search trains a par_supernet; for other models say --task segment_lm")
        limit = getattr(args, "max_update", 0)
        if isinstance(limit, int) and limit > 0 and not self.phases.architecture_updates(limit):
            none = (
                f"--arch-warmup-updates {self.phases.warmup}: leaves no update for the architecture before "
                f"--max-update {limit}"
            )
            if limit <= self.phases.warmup:
                raise UserError(none)
            logger.warning(f"{none}, at --arch-update-share {self.args.arch_update_share:g}")
        return model

    def built_for_training(self) -> list[Any]:
        """The model that will be trained, if there is one."""
        return self._training

    # --- data ---------------------------------------------------------------------------------------------------

    def get_batch_iterator(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_batch_iterator(*args, **kwargs)
        if not isinstance(getattr(found, "dataset", None), SearchLanes):
            return found
        self._iterator = SearchIterator(
            found.dataset,
            num_shards=found.num_shards,
            shard_id=found.shard_id,
            num_workers=found.num_workers,
            epoch=found.epoch,
            buffer_size=found.buffer_size,
        )
        return self._iterator

    def _training_lanes(self, dataset: Any, tokens: int, rows: int, ranks: int, epoch: int) -> Any:
        previous = self._iterator
        if isinstance(previous, SearchIterator) and previous.epoch == epoch - 1:
            return self._search_lanes(dataset, tokens, rows, ranks, epoch, previous.dataset.end)
        start = 0  # as if the epochs before had been trained with these flags; a checkpoint knows better
        for before in range(1, epoch):
            start = self._search_lanes(dataset, tokens, rows, ranks, before, start).end
        return self._search_lanes(dataset, tokens, rows, ranks, epoch, start)

    def _search_lanes(self, dataset: Any, tokens: int, rows: int, ranks: int, epoch: int, start: int) -> SearchLanes:
        first, second = split_stream(dataset, self.args.arch_data_share)
        weights = super()._training_lanes(first, tokens, rows, ranks, epoch)
        held_out = super()._training_lanes(second, tokens, rows, ranks, epoch)
        return SearchLanes(weights, held_out, self.phases, start)

    # --- steps --------------------------------------------------------------------------------------------------

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """The batch says whose update it is: that of the phases, unless an update was skipped (overflow in fp16)."""
        ours = find_search_optimizer(optimizer)
        if ours is None:
            raise UserError("--task par_search needs --optimizer par_search (--weight-optimizer adam, lamb, adagrad)")
        self._phase = sample.get("phase", WEIGHTS)
        ours.set_phase(self._phase)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        super().optimizer_step(optimizer, model, update_num)
        if self._phase == ARCHITECTURE and self.args.arch_stable_updates:
            layout = unwrapped(model).decoder.layout()
            same = layout == self._stable["layout"]
            self._stable = {"layout": layout, "updates": self._stable["updates"] + 1 if same else 0}

    def training_is_over(self) -> bool:
        """Whether the layout has been the same for long enough; see :mod:`fairseq_efficient.compat.training`."""
        over = 0 < self.args.arch_stable_updates <= self._stable["updates"]
        if over:
            times = self._stable["updates"]
            logger.info(f"the layout {self._stable['layout']} has not changed in {times} updates of the architecture")
        return over

    # --- checkpoints --------------------------------------------------------------------------------------------

    def before_save(self, epoch_itr: Any) -> None:
        """Bring the ranks' memories together, those of both streams; called on all of them."""
        self._saved = {"stable": dict(self._stable)}
        if self.args.no_save_memory or not isinstance(epoch_itr, SearchIterator) or epoch_itr.end_of_epoch():
            return
        lanes, memory = epoch_itr.dataset, {}
        for phase in (WEIGHTS, ARCHITECTURE):
            update = lanes.last(phase, epoch_itr.step)
            if update is not None:
                place = lanes.place(0, update)
                found = collect(self.memory.groups(place.name, place.cut, place.step + 1))
                if found and len(found) == len(lanes.bounds) - 1:
                    memory[phase] = [found[group] for group in sorted(found)]
        self._saved.update(step=epoch_itr.step, cut=list(lanes.cut), memory=memory)

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's part of the saved memories; the iterator of training stands where it was saved."""
        self._stable = dict(state["stable"])
        iterator = self._iterator
        assert isinstance(iterator, SearchIterator)
        lanes = iterator.dataset
        if tuple(state.get("cut", ())) != lanes.cut or state["step"] != iterator.step:
            return  # an epoch begins, or the iterator has told that the lanes are others
        groups = range(iterator.shard_id, len(lanes.bounds) - 1, iterator.num_shards)
        for phase, memory in state.pop("memory").items():
            update = lanes.last(phase, iterator.step)
            if update is None or len(memory) != len(lanes.bounds) - 1:
                logger.warning(f"{phase}: the lanes were in other batches, memory starts empty")
                continue
            self.memory.restore([lanes.place(group, update) for group in groups], [memory[group] for group in groups])
