"""Coral's training objective (arXiv 2506.03144), in the open: losses, reconstruction, one contrastive step,
the loop.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.training.batches import Pair as Pair
    from coral_lab.training.batches import make_batch as make_batch
    from coral_lab.training.config import StepConfig as StepConfig
    from coral_lab.training.config import TrainConfig as TrainConfig
    from coral_lab.training.contrastive import contrastive_objective as contrastive_objective
    from coral_lab.training.contrastive import gradients as gradients
    from coral_lab.training.from_data import train as train
    from coral_lab.training.from_data import train_pairs as train_pairs
    from coral_lab.training.held_out import split as split
    from coral_lab.training.learner import Learner as Learner
    from coral_lab.training.loop import train_loop as train_loop
    from coral_lab.training.lora import add_lora as add_lora
    from coral_lab.training.lora import freeze_vision as freeze_vision
    from coral_lab.training.losses import info_nce as info_nce
    from coral_lab.training.losses import masked_language_modelling as masked_language_modelling
    from coral_lab.training.losses import vision_reconstruction as vision_reconstruction
    from coral_lab.training.pairs import pair_sampler as pair_sampler
    from coral_lab.training.pairs import plain_pairs as plain_pairs
    from coral_lab.training.rebuilding import rebuild as rebuild
    from coral_lab.training.reconstruction import CONTRASTIVE as CONTRASTIVE
    from coral_lab.training.reconstruction import Coral as Coral
    from coral_lab.training.reconstruction import decoders as decoders
    from coral_lab.training.reconstruction import load_decoders as load_decoders

__getattr__, __dir__, __all__ = public(__name__, __file__)
