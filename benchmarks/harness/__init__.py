"""How the families of benchmarks are measured, checked, stored and shown."""
