"""`python -m fpatch`."""

import sys

from fpatch.cli import main

sys.exit(main())
