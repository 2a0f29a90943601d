"""Datasets and weights -> a blend, in which sample i is a formula.

`plan` writes blend.json, which a run reads, and plan.json, which a person reads.  Three layers, each O(1):
pack table (data_prep/packing/) <- order (data_prep/order.py) <- schedule (schedule.py, weights.py); model.py
puts them together.  Before a run amounts.py and modes.py turn what a blend file asks for into shares,
mistakes.py and scales.py find what it should not (checks.py: what it is held against), plan.py tells
what will be drawn; afterwards verify.py tells what was, and history.py and append.py hold a changed
blend against its past.
"""

from data_prep.blend.append import append
from data_prep.blend.file import open_source, read_blend, resolve
from data_prep.blend.history import check_continues, differences, first_difference, write_blend
from data_prep.blend.model import Blend
from data_prep.blend.plan import PlanRow, PlanTable, plan, plan_table
from data_prep.blend.verify import DrawCheck, verify_draws

__all__ = [
    "Blend",
    "DrawCheck",
    "PlanRow",
    "PlanTable",
    "append",
    "check_continues",
    "differences",
    "first_difference",
    "open_source",
    "plan",
    "plan_table",
    "read_blend",
    "resolve",
    "verify_draws",
    "write_blend",
]
