"""Rows and runs for the tests of what is made of them."""


def cell(seconds, spread=0.02, **more):
    return {"seconds": seconds, "quartiles": [seconds * (1 - spread), seconds * (1 + spread)], **more}


def row(workload="w K5", threads=2, ours=1e-3, sizes=None, **others):
    ways = {"ext": cell(ours, **{"first call": 0.2, "dispatched": 7, "memory": 3 * 2**20}), "learner": cell(2 * ours)}
    ways |= {name: cell(seconds) for name, seconds in others.items()}
    return {
        "op": "proto_loss", "mode": "forward", "workload": workload, "threads": threads, "sizes": sizes or {}, "floor": ours / 4,
        "ours": ["ext", "learner"], "contenders": ways, "not timed": {"peer": "wrong"},
    }  # fmt: skip


def run(*rows):
    machine = {"device": "Some CPU, 2 cores", "instructions": "avx2", "torch": "2", "date": "today"}
    memory = {"peak, MiB": {"MAML K1": {"ext": 1.0, "loop": 2.0}, "MAML K5": {"ext": 1.0, "loop": 8.0}}}
    memory |= {"first call, ms": {"MAML K5": {"ext": 3.0, "compiled": 3e4}}}
    ceilings = {"2 threads": [1e10, 1e11]}
    return {
        "machine": machine | {"ceilings": ceilings},
        "rows": list(rows),
        "tables": memory,
        "left out": ["that: why"],
    }
