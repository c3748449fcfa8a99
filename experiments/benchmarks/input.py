"""Input. Asks: how fast do photographs become crops?

JPEG files are decoded to random resized crops, next to Pillow and tf.data.

Run:    mobilenet benchmark --config=experiments/benchmarks/input.py --workdir=runs/input \
            --config.data.data_dir=FOLDER_OF_PHOTOGRAPHS
Cost:   minutes on one CPU core
Result: experiments/results/benchmark.csv
"""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
    config.data.image_size = 224
    return base.shrink(config) if arg == "smoke" else config


def cases():
    return [
        {
            "name": "input_224",
            "work": "input",
            "model": "photographs to crops, one thread",
            "batch_size": 100,
            "implementations": ("ours", "pillow", "tf_data"),
            "memory": "system",
        }
    ]
