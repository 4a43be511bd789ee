"""`python -m fpatch`."""

import sys

from fpatch.cli.main import main

sys.exit(main())
