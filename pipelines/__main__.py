"""`python -m pipelines` is `semid`."""

import sys

from pipelines.cli import main

sys.exit(main())
