"""The paper's experiments and findings, beside ours; one page about a checkpoint."""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.replication.cells import compare_arms as compare_arms
    from coral_lab.replication.cells import hits_of as hits_of
    from coral_lab.replication.cells import measure_cells as measure_cells
    from coral_lab.replication.cells import read_results as read_results
    from coral_lab.replication.cells import results_file as results_file
    from coral_lab.replication.comparing import Comparison as Comparison
    from coral_lab.replication.comparing import Differing as Differing
    from coral_lab.replication.comparing import compare as compare
    from coral_lab.replication.comparing_cost import Cost as Cost
    from coral_lab.replication.device_check import check_device as check_device
    from coral_lab.replication.experiments import ARMS as ARMS
    from coral_lab.replication.experiments import Arm as Arm
    from coral_lab.replication.experiments import Plan as Plan
    from coral_lab.replication.experiments import train_and_measure as train_and_measure
    from coral_lab.replication.report_page import report as report
    from coral_lab.replication.reproducing import Matrix as Matrix
    from coral_lab.replication.reproducing import Reproduction as Reproduction
    from coral_lab.replication.reproducing import read_ranking as read_ranking
    from coral_lab.replication.reproducing import reproduce as reproduce
    from coral_lab.replication.verdicts import findings as findings
    from coral_lab.replication.verdicts import verdict as verdict

__getattr__, __dir__, __all__ = public(__name__, __file__)
