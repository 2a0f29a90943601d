"""Datasets and weights -> a blend, in which sample i is a formula.

`plan` writes blend.json, which a run reads, and plan.json, which a person reads.  Three layers, each O(1):
pack table (data_prep/packing.py) <- order (order.py) <- schedule (schedule.py, weights.py); file.py
puts them together, plan.py tells before a run what it draws, verify.py afterwards what it drew.
"""

from data_prep.blend.file import Blend, open_source, read_blend, resolve
from data_prep.blend.plan import PlanRow, PlanTable, plan, plan_table
from data_prep.blend.verify import DrawCheck, verify_draws

__all__ = [
    "Blend",
    "DrawCheck",
    "PlanRow",
    "PlanTable",
    "open_source",
    "plan",
    "plan_table",
    "read_blend",
    "resolve",
    "verify_draws",
]
