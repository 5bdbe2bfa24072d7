"""The launcher from Python: trains as its argument says on two workers, and prints what Ray was told at the end."""

import json
import sys

from launch.ray_train import train_on_ray
from pipeflow import Config

config = Config.from_dict(json.loads(sys.argv[1]))
result = train_on_ray(config, workers=2, placement="spread")
print("result:", json.dumps([result.metrics, result.return_value.num_epochs]))
