"""Handwritten digits, embedded. Asks: does everything work, in a minute?

Run:    mobilenet train --config=experiments/baselines/digits.py --workdir=runs/digits
Cost:   under a minute on 2 CPU cores
Result: experiments/results/baselines.csv
"""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
    config.model.width_multiplier = 0.75  # 0.5 lost a point on a validation part of 30 %
    # Every row of Table 2 once: 7 bottlenecks are plenty here, and compile in a third of the time.
    config.model.blocks = tuple((t, c, 1, s) for t, c, n, s in config.model.blocks)
    # 16 pixels: the digits' 8x8 doubled. Three strides leave maps of 2x2.
    config.model.stem_strides = 1
    config.model.stage_strides = (1, 2, 2, 2, 1, 1, 1)
    config.model.head_features = 256
    config.model.bn_momentum = 0.9
    config.data.name = "digits"
    config.data.image_size = 16
    config.data.channels = 1
    config.augment.random_crop_padding = 1
    config.train.global_batch_size = 64
    config.train.num_epochs = 20.0
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1e-4
    config.schedule.warmup_epochs = 1.0
    config.eval.every_epochs = 5.0
    config.log.every_steps = 50
    return base.shrink(config) if arg == "smoke" else config
