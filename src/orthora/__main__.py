"""``python -m orthora``."""

import sys

from orthora.cli import main

sys.exit(main())
