"""`python -m pipeflow`, for where the command `pipeflow` is not on the path."""

import sys

from pipeflow.cli import main

sys.exit(main())
