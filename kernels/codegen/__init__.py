"""What the generated kernels of all families share: programs, printers, compiler, ops."""
