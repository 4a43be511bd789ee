"""`python -m fpatch`."""

import os
import sys
from contextlib import suppress

# Python puts the working folder before its own library; only a study is searched for there.
with suppress(OSError):  # it may have been removed
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():
        del sys.path[0]

from fpatch.cli.main import main

sys.exit(main())
