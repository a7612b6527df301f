"""What one clicks on in a notebook: the query bench, the neighbourhood map, the attribution view, a live
training plot.

Each has a static twin (`.static()`) that survives nbconvert. They get what they show handed in.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.widgets.attribution_view import AttributionView as AttributionView
    from coral_lab.widgets.density_map import DensityMap as DensityMap
    from coral_lab.widgets.judged_hits import JudgingBench as JudgingBench
    from coral_lab.widgets.judged_hits import disagreements as disagreements
    from coral_lab.widgets.linked_maps import side_by_side as side_by_side
    from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap as NeighbourhoodMap
    from coral_lab.widgets.parts import Frozen as Frozen
    from coral_lab.widgets.parts import LivePlot as LivePlot
    from coral_lab.widgets.query_bench import QueryBench as QueryBench
    from coral_lab.widgets.query_bench import as_python as as_python

__getattr__, __dir__, __all__ = public(__name__, __file__)
