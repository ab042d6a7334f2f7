"""Types of the part of e3nn that eqtp uses; e3nn has none, and pyright infers wrong ones."""
