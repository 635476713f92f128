"""How fast imgtool is beside qemu-img, measured: ``python -m benchmarks --help``."""
