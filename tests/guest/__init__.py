"""Tests with real guests: their disks converted every way, and their kernels booted."""
