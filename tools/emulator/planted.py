"""The kernels of planted.cu, each with a fault that the checker must find."""

import ctypes
import functools

from emulator import emulation

ORDERS = {"forward": 0, "reverse": 1, "random": 2}


@functools.cache
def planted():
    library = ctypes.CDLL(str(emulation.compile_planted("checked")))
    library.run_planted.restype = ctypes.c_char_p
    library.run_planted.argtypes = (ctypes.c_char_p, ctypes.c_uint, ctypes.c_int, ctypes.c_uint64)
    return library


def run(name, order, blocks=2):
    return planted().run_planted(name.encode(), blocks, ORDERS[order], 1).decode()
