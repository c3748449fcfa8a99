"""Networks as files for other runtimes: LiteRT, ONNX and StableHLO."""
