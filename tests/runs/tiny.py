"""A run that takes seconds: two bottlenecks on 8x8 digits. The tests train it for real."""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
    config.model.blocks = ((1, 8, 1, 1), (2, 8, 1, 2))
    config.model.stem_features = 8
    config.model.stem_strides = 1
    config.model.head_features = 16
    config.model.dropout_rate = 0.1
    config.model.bn_momentum = 0.9
    config.data.image_size = 8
    config.data.channels = 1
    config.data.train_examples = 256
    config.augment.random_crop_padding = 1
    config.augment.mixup_alpha = 0.2
    config.train.global_batch_size = 16
    config.train.num_epochs = 4.0
    config.train.ema_decay = 0.9
    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 0.1
    config.eval.every_epochs = 1.0
    config.checkpoint.every_steps = 5
    config.log.every_steps = 4
    return config
