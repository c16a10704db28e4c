"""A random attack on fastmeta: problems that no test foresaw, against float64 formulas written apart from the project's own.

    make attack SECONDS=600              # all kinds of cases on two processes
    python -m attack --only proto_loss   # one op, one learner, "labels", "wrong" or "files"
    python -m attack --case 1234         # one case again

A case follows from its token alone, `SEED[-oddity]...[@cap]`: the seed draws everything, a named oddity is left out, no size
exceeds the cap. A finding prints as

    proto_loss | order 2 differs                 what was attacked, and the class of the failure
      3 cases                                    how many cases failed like this
      neg; ext, float32, order 2; [3, 2]         the smallest of them: oddities, backend, dtype, order, shapes
      0.5 for 0.25, 0.1 allowed                  what came, what the formula says
      python -m attack --case 1234-values-threads@2

Read the last line first: what the token names does not matter to the failure, what the case's description still lists may.
Not attacked, because the suite has them cell by cell: transforms, half precision, networks that change after a learner was made,
states of samplers, LEO and FullContext.

    draw.py      numbers, sizes, odd values and views from a token     formulas.py  the ops; loops.py: of networks and learners
    problem.py   a function, its formula, its arguments                ops.py, networks.py, learners.py: random problems
    check.py     function against formula; compare.py: the tolerance   faults.py    wrong labels and arguments, damaged files
    runner.py    token -> outcome in processes that may crash, shrinking, the report
"""
