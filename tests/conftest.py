"""Two CPU devices in every test process, strict dtypes, and the places of optional real data."""

import os

# Before JAX's backend starts: several tests compare two devices with one.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
