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

    tokens.py      token -> outcome; draw.py: its numbers, sizes, odd values and views
    runner.py      processes that may crash, shrinking, the report
    subject.py     a function, its formula, its arguments; check.py holds one against the other, by tolerance.py
    *_problems.py  random ones of ops, of networks, of learners
    *_formulas.py  the mathematics, from the papers
    faults.py      wrong labels and arguments, damaged files
"""
