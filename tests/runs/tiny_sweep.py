"""A sweep that takes seconds: one bottleneck on 8x8 digits, learning rates and seeds."""

from mobilenet import config as base
from mobilenet.sweep import space


def get_config(arg=""):
    config = base.get_config()
    config.model.blocks = ((2, 8, 1, 2),)
    config.model.stem_features = 8
    config.model.stem_strides = 1
    config.model.head_features = 0
    config.model.bn_momentum = 0.9
    config.data.image_size = 8
    config.data.channels = 1
    config.data.train_examples = 128
    config.train.global_batch_size = 16
    config.train.num_epochs = 2.0  # 16 steps
    config.checkpoint.every_steps = 4
    config.log.every_steps = 4
    config.log.tensorboard = False
    if arg == "broken":
        config.data.name = "folder"
        config.data.data_dir = "no/such/folder"
    return config


def sweep(arg=""):
    if arg == "search":
        return [{"optimizer.learning_rate": space.log_uniform(1e-3, 1.0)}]
    rates = {"optimizer.learning_rate": (0.05, 0.1, 0.2, 0.4)}
    return space.product(space.grid(rates), space.seeds(3))
