"""Before any import of fpatch: shapes and types of its annotations are checked while tests run."""

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

torch.set_num_threads(1)
hook = install_import_hook("fpatch", "typecheck.checked")
settings.register_profile("fpatch", deadline=None, derandomize=True, database=None)
settings.load_profile("fpatch")
