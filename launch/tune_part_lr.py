"""A learning rate for each part, with Ray Tune: `python -m launch.tune_part_lr`; see `pipeflow.ray.tune`."""

import sys

from pipeflow.ray.tune import main

if __name__ == "__main__":
    sys.exit(main())
