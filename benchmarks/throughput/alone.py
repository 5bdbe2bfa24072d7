"""Parts that train by themselves: each worker repeats the training step of its own part on latents that are there already.

    torchrun --nproc_per_node=2 -m benchmarks.throughput.alone --config FILE.yaml --out FOLDER

No link, no images, no evaluation: what is left is what a part costs while the other cores are busy with the other parts.
Leaves images a second, of the clock and of the CPU, in FOLDER/partK.json.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pipeflow.config import load
from pipeflow.data import Batches, load_data
from pipeflow.device import choose_device
from pipeflow.flow import build_flow, configured_cuts, head_maker, split_flow
from pipeflow.training.trainer import PartTrainer

NUM_LATENTS = 8


def main() -> None:
    """Times this worker's part; a worker that is done goes on until all are, so that every core stays busy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    config = load(options.config)
    dist.init_process_group("gloo")
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    device = choose_device(config.run.device, int(os.environ["LOCAL_RANK"]))
    batches = Batches(load_data(config.data), config.run.seed, config.optim.batch_size, config.data.flip)
    flow = build_flow(config, batches.data.shape)
    parts = split_flow(flow, configured_cuts(flow, config), head_maker(config.parts))
    latent = batches.initial()
    for part in parts:
        latent = part.initialize(latent)
    latents = [batches.train(0, step) for step in range(NUM_LATENTS)]
    with torch.no_grad():
        for part in parts[:rank]:
            latents = [part(latent).latent for latent in latents]
    trainer = PartTrainer(parts[rank], device, config, config.optim.lr, num_updates=10**6)
    latents = [latent.to(device) for latent in latents]

    def steps(number: int) -> None:
        for step in range(number):
            _, loss = trainer.forward(latents[step % NUM_LATENTS])
            trainer.update(loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    steps(10)
    dist.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    steps(options.steps)
    num_images = options.steps * config.optim.batch_size
    rates = {
        "images_per_s": num_images / (time.perf_counter() - start),
        "images_per_cpu_s": num_images / (time.process_time() - cpu),
    }
    (options.out / f"part{rank}.json").write_text(json.dumps(rates))
    while len(list(options.out.glob("part*.json"))) < num_workers:
        steps(1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
