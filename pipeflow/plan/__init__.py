"""What a configuration will do and cost, before anything is trained, and what it would on machines that are described.

plan.py        the parts, the phases and the bytes of a run, exactly; show.py prints them
machines.py    the machines: from a file, from options, or measured by probe.py
work.py        seconds of a part's forward, backward and update; memory.py what a worker holds
simulate.py    workers, links and time; programs.py what each worker of a schedule does, in order
predict.py     seconds, bytes, memory and idle share of every schedule, cut and rival; recommend.py which to take
"""

from pipeflow.plan.plan import Images, Plan, make_plan
from pipeflow.plan.show import print_phases, print_plan

__all__ = ["Images", "Plan", "make_plan", "print_phases", "print_plan"]
