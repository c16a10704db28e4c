"""A random attack on fastmeta: problems that no test foresaw, against float64 formulas written apart from the project's own.

    make attack SECONDS=600                    # all kinds of cases on two processes
    python -m attack --only proto_loss   # one op, one learner, "labels", "wrong" or "files"
    python -m attack --case 1234         # one case again

A case follows from its token alone, `SEED[-oddity]...[@cap]`: the seed draws everything, a named oddity is left out, no size
exceeds the cap. A finding prints as

    proto_loss | order 2 differs                 what was attacked, and the class of the failure
      3 cases                                    how many cases failed like this
      ext, float32, eager; views: neg; [3, 2]    the smallest of them: backend, dtype, way, oddities, shapes
      0.5 for 0.25, 0.1 allowed                  what came, what the formula says
      python -m attack --case 1234-values-threads@2

Read the last line first: what the token names does not matter to the failure, what the case's description still lists may. A case
that fails only after others prints all of them, joined by commas; they run in one process.

    draw.py      numbers, sizes and oddities from a token       odd.py       odd values, and odd views of tensors
    formulas.py  the ops; learned.py: the learners              ways.py      derivatives of order 0 to 3, torch.func, compile, ...
    compare.py   the tolerance                                  problem.py   a function, its formula, its arguments
    ops.py       problems of the ops; learners.py: of learners  models.py    networks, and how a program changes them
    faults.py    wrong labels and wrong arguments               files.py     damaged files
    cases.py     token -> outcome                               pool.py      processes that may crash; __main__.py: the report
"""
