"""`python -m ausm` is the command `ausm`."""

import sys

from ausm.cli import main

sys.exit(main())
