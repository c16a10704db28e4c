"""The CPU kernels on ARM, without an ARM machine: driver.cpp, compiled for aarch64, runs under qemu-user on problems that
problems.py saves, and compares with the reference's numbers in float64. `make arm` does it all; on an ARM machine compile driver.cpp
there and give it the same file. What qemu takes says nothing of speed.
"""
