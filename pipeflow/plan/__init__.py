"""A plan of a run before anything is trained, and predictions of it on machines that are described.

plan.py            the parts, the phases and the bytes of a run, exactly
traffic.py         the formulas of the bytes that a run sends
without_memory.py  flows whose tensors have shapes and no values
show.py            prints a plan, or its phases
command.py         `pipeflow plan`, with its options
predict/           seconds, bytes and memory of every schedule, cut and rival on such machines
"""

from pipeflow.plan.plan import Images, Plan, make_plan
from pipeflow.plan.show import print_phases, print_plan

__all__ = ["Images", "Plan", "make_plan", "print_phases", "print_plan"]
