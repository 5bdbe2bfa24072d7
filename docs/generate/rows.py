"""Which measurements the tables of results show, and in which words."""

SCHEDULES = {
    "small_glow": "end to end, 18 epochs",
    "small_concurrent3": "concurrent",
    "small_alternate3": "alternate, a turn an epoch",
    "small_alternate3_steps": "alternate, a turn a batch",
    "small_sequential3": "sequential",
}
WHOLE = {"1e-3": "glow_lr1e-4", "1e-4": "glow_lr1e-5"}
PUBLISHED_RATES = {
    "glow_lr1e-4": "1e-3", "across2_lr1e-4": "1e-3", "concurrent_balanced3": "1e-3", "alternate_blocks3": "1e-3",
    "glow_lr1e-5": "1e-4", "across3_lr1e-5": "1e-4", "concurrent_across3": "1e-4",
}  # fmt: skip
"""Learning rates of the small runs, ten times those that their names have."""
LEARNING = {
    "end to end, 8 epochs": "end to end, 8 epochs",
    "end to end": "end to end",
    "end to end, 20 epochs": "end to end, 20 epochs",
    "gaussian": "concurrent, Gaussian heads, none end to end",
    "linear": "concurrent, linear heads, none end to end",
    "linear, averaged": "the same, handing on latents of averaged weights",
    "linear, averaged, int8 links": "and over links in int8",
    "linear, averaged, 1 of 12, a quarter": "averaged weights, and the last end to end, at a quarter of the rate",
    "gaussian, 4 of 12": "concurrent, Gaussian heads, the last 4 end to end",
    "linear, 4 of 12": "concurrent, linear heads, the last 4 end to end",
    "linear, sequential": "sequential, linear heads, 12 epochs a part, none end to end",
}
"""Arms of benchmarks/learning."""
PARTS = {
    ("3 x 4 steps, width 64", "3"): ("linear", "linear, averaged", "linear, sequential"),
    ("3 x 16 steps, width 32", "2"): ("deep: 2 parts, linear", None, None),
    ("3 x 16 steps, width 32", "3"): (
        "deep: 3 parts, linear", "deep: 3 parts, linear, averaged", "deep: 3 parts, linear, sequential",
    ),
    ("3 x 16 steps, width 32", "6"): ("deep: 6 parts, linear", "deep: 6 parts, linear, averaged", None),
    ("3 x 16 steps, width 32", "12"): (
        "deep: 12 parts, linear", "deep: 12 parts, linear, averaged", "deep: 12 parts, linear, sequential",
    ),
    ("3 x 8 steps, width 64, 20,000 images", "3"): ("scale: linear", "scale: linear, averaged", None),
}  # fmt: skip
"""Arms of benchmarks/learning by the flow and its number of parts: concurrent, with averaged latents, sequential."""
PUBLISHED = {
    "glow_lr1e-4": "end to end, 90 epochs, lr 1e-3",
    "across2_lr1e-4": "2 parts in turns, across blocks",
    "concurrent_balanced3": "3 concurrent parts, balanced",
    "alternate_blocks3": "3 parts in turns, split by blocks",
    "glow_lr1e-5": "end to end, 90 epochs, lr 1e-4",
    "across3_lr1e-5": "3 parts in turns, across blocks",
    "concurrent_across3": "3 concurrent parts, across blocks",
}
SYSTEMS = {
    "pipeflow_concurrent": "pipeflow, concurrent",
    "gpipe": "torch GPipe, best number of micro-batches",
    "1f1b": "torch 1F1B, best",
    "interleaved_1f1b": "torch interleaved 1F1B, 2 stages a worker, best",
    "ddp": "torch DDP",
    "local_sgd": "post-local SGD, period 8",
}
OURS, PIPELINES = ("pipeflow",), ("GPipe", "1F1B")
LINK_ROWS = {
    "pipeflow, concurrent, float32 latents": OURS,
    "pipeflow, concurrent, compressed latents": ("pipeflow int8", "pipeflow bfloat16"),
    "best torch pipeline, float32": PIPELINES,
    "best torch pipeline, compressed": ("GPipe bf16", "1F1B bf16"),
    "torch DDP": ("DDP",),
    "torch DDP, compressed gradients": ("DDP bf16", "DDP PowerSGD"),
    "post-local SGD, period 8": ("local SGD",),
}
STEPS = {
    "fast": "`precision.step: fast` (default)",
    "fast-compile": "and `precision.compile: true`",
    "fast-bf16": "`fast` with `precision.coupling: bfloat16`",
    "fast-bf16-compile": "and `precision.compile: true`",
}
ACTIVATIONS = {
    "keep": "all activations",
    "recompute": "the inputs of the flow steps; it computes the rest again, to the same numbers",
    "invert": "the part's output; it inverts step by step, and `memory.max_error` bounds the error",
}
