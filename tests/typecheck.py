"""The checker of annotations that `conftest.py` switches on: beartype, for which a number is a number (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
