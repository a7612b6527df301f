"""Studying a model: edited queries and what becomes of their rankings, paired comparisons, the shape of the
space, probes, mistakes. Numbers in, tables and figures out. `binding`, `composition`, `edits`, `geometry`,
`interaction`, `languages`, `plots`, `scaling`, `scores`, `splits` and `sturdiness` are used as modules.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.study.cheaper import coded as coded
    from coral_lab.study.cluster_names import clusters as clusters
    from coral_lab.study.comparison import compare_edits as compare_edits
    from coral_lab.study.comparison import conditions_met as conditions_met
    from coral_lab.study.comparison import first_hits as first_hits
    from coral_lab.study.comparison import judged as judged
    from coral_lab.study.depth import by_layer as by_layer
    from coral_lab.study.erasure import leace as leace
    from coral_lab.study.error_analysis import mistakes as mistakes
    from coral_lab.study.error_analysis import worst as worst
    from coral_lab.study.fusion import fused as fused
    from coral_lab.study.fusion import truncated as truncated
    from coral_lab.study.fusion import truncations as truncations
    from coral_lab.study.hubs import turned_down as turned_down
    from coral_lab.study.judging import agreement as agreement
    from coral_lab.study.judging import graded as graded
    from coral_lab.study.judging import pools as pools
    from coral_lab.study.judging import progress as progress
    from coral_lab.study.large_maps import density as density
    from coral_lab.study.large_maps import in_batches as in_batches
    from coral_lab.study.large_maps import large_map as large_map
    from coral_lab.study.probing import probe as probe
    from coral_lab.study.probing import probe_checkpoint as probe_checkpoint
    from coral_lab.study.sweeps import attribution as attribution
    from coral_lab.study.sweeps import heeded as heeded
    from coral_lab.study.sweeps import sweep as sweep

__getattr__, __dir__, __all__ = public(__name__, __file__)
