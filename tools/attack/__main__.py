"""`python -m attack`: runs cases for a while and reports; exits with 1 where something was found."""

import os
import sys

os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}

from .runner import main  # after what it must find

if __name__ == "__main__":
    sys.exit(main())
