"""Run the malformed inputs alone: `PYTHONPATH=.:tests/support python -m malformed`."""

import argparse
import os
import re
import sys

import torch

from malformed.cases import all_cases, fast_cases
from malformed.engine import Answer, Case, run_cases

parser = argparse.ArgumentParser(prog="malformed", description=__doc__)
parser.add_argument("--slow", action="store_true", help="also the cases that run a command to its end")
parser.add_argument("--part", default="0/1", help="which part of how many, such as 1/2 (default: 0/1, all)")
parser.add_argument("-k", default="", metavar="WORDS", help="only the cases whose name matches")
parser.add_argument("--said", action="store_true", help="print every answer, not only the wrong ones")
options = parser.parse_args()


def show(answer: Answer) -> None:
    """Print a wrong answer."""
    if answer.fault or options.said:
        said = answer.said.strip().replace("\n", "\n      ")
        print(f"{answer.case.name}\n  $ fpatch {' '.join(answer.case.words)}", end="")
        print(f"   ({answer.seconds:.1f} s)\n      {said[-1500:]}")
        print(f"  WRONG: {answer.fault}" if answer.fault else "", flush=True)


torch.set_num_threads(1)
part, parts = map(int, options.part.split("/"))


def chosen() -> list[Case]:
    """Return the cases that the options choose."""
    cases = all_cases() if options.slow else fast_cases()
    return [case for case in cases if re.search(options.k, case.name)][part::parts]


answers = run_cases(chosen, show)
wrong = [a for a in answers if a.fault]
kinds = dict.fromkeys(a.case.name.partition(":")[0] for a in answers)
for kind in kinds:
    of = [a for a in answers if a.case.name.partition(":")[0] == kind]
    print(
        f"{kind:24} {len(of):5} {sum(bool(a.fault) for a in of):5} wrong {sum(a.seconds for a in of):7.1f} s"
    )
print(
    f"malformed inputs: {len(answers)}, wrong answers: {len(wrong)}, {sum(a.seconds for a in answers):.0f} s"
)
sys.stdout.flush()
os._exit(1 if wrong else 0)
