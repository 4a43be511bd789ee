"""Every law on every case, and on a stage that breaks it."""

import pytest
from cases import CASES, Case
from laws import LAWS


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_law(law, case: Case):
    law(case)
