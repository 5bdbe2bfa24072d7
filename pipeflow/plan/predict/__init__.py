"""Predictions of seconds, bytes and memory for every schedule, cut and rival, on machines described or measured.

machines.py       the machines, from a file or from options
probe.py          measures this machine: compute_probe.py its processes, link_probe.py the messages between them
work.py           seconds of a layer's forward, backward and update
memory.py         bytes that a worker holds
simulate.py       workers and links in time; programs.py the operations of each worker, for each schedule
cuts.py           the ways to cut the flow
scenario.py       a flow on machines, from which a prediction (prediction.py) is computed:
isolated.py       gradient-isolated parts
pipelines.py      GPipe and 1F1B
data_parallel.py  the whole flow on one worker, or on several
finetune.py       the end-to-end epochs behind isolated parts
predictor.py      all of them
recommend.py      which to take
table.py          the predictions as a table and as JSON; figure.py against the speed of the links
"""
