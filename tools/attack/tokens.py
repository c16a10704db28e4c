"""What a case may be, and token -> what came of it."""

import torch

from . import faults, learner_problems, network_problems, op_problems
from .check import check
from .draw import Draw
from .subject import Finding, Refused, first_line

PROBLEMS = op_problems.PROBLEMS | network_problems.PROBLEMS | learner_problems.PROBLEMS


def problem(make):
    return lambda draw: check(draw, make(draw))


CASES = {name: (2.5 if name in learner_problems.PROBLEMS else 4, problem(make)) for name, make in PROBLEMS.items()} | {
    "labels": (6, lambda draw: faults.labels(draw, PROBLEMS, check)),
    "wrong": (8, lambda draw: faults.wrong(draw, PROBLEMS, check)),
    "files": (3, faults.files),
}  # how often, and the case


def name_of(token):
    return Draw(token).pick("case", {name: weight for name, (weight, _) in CASES.items()})


def run(token):
    """status: "held", "refused" or "finding", the last with its kind; the case in words; the oddities that it had."""
    draw, name = Draw(token), name_of(token)
    torch.manual_seed(draw.seed)
    found = {"name": name, "status": "held", "kind": "", "detail": ""}
    try:
        CASES[name][1](draw)
    except Refused as error:
        found |= {"status": "refused", "detail": str(error)}
    except Finding as error:
        found |= {"status": "finding", "kind": error.kind, "detail": error.detail}
    except Exception as error:
        found |= {"status": "finding", "kind": f"the attack itself raises {first_line(error)}", "detail": _where(error)}
    return found | {"notes": "; ".join(draw.notes), "seen": draw.seen}


def _where(error):
    trace, places = error.__traceback__, []
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{error} at {' '.join(places[-6:])}"
