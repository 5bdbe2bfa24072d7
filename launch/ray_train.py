"""pipeflow on a Ray cluster: `python -m launch.ray_train --storage /shared/runs`; see `pipeflow.ray.train`."""

import sys

from pipeflow.ray.train import main, train_on_ray

__all__ = ["main", "train_on_ray"]

if __name__ == "__main__":
    sys.exit(main())
