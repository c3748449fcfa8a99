"""Research on small vision networks: MobileNetV2 in JAX and Flax, from config to result."""

__version__ = "0.2.0"
