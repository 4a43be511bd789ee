"""`python -m fpatch`."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[
        0
    ]  # Python puts the working folder before its own library; only a study is searched for there

from fpatch.cli.main import main

sys.exit(main())
