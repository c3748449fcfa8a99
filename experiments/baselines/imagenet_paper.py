"""ImageNet, the paper's recipe. Asks: does the paper's recipe reach 72.0 % here?

Sandler et al. 2018, arXiv 1801.04381, section 6.1: RMSProp with decay and momentum 0.9, weight
decay 4e-5, batch norm after every layer, initial learning rate 0.045 with a decay of 0.98 per
epoch, batches of 96. Published: 72.0 % top-1 with width 1.0 at 224 pixels, 3.4 M parameters, 300 M
MACs.

What the paper leaves open comes from the code released with it (research/slim/nets/mobilenet):
epsilon 1.0 inside the root, dropout 0.2, truncated normal initial values, BN decay 0.997, label
smoothing 0.1, averaged weights, Inception crops. The paper ran 16 asynchronous workers. Here one
synchronous batch of 96 is the unit, so the rate is 0.045 at 96 images.

Run:    mobilenet train --config=experiments/baselines/imagenet_paper.py --workdir=runs/imagenet \
            --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   3,964,000 steps on GPUs, of 96 images
Result: not run by this project yet
"""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
    config.model.dropout_rate = 0.2
    config.model.bn_momentum = 0.997
    config.model.bn_epsilon = 1e-3
    config.model.initializer = "slim"
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.validation_fraction = 0.01
    config.data.image_size = 224
    config.data.crop_fraction = 0.875
    config.data.normalization = "symmetric"
    config.augment.random_resized_crop = True
    config.augment.horizontal_flip = True
    config.augment.brightness = 0.125
    config.augment.saturation = 0.5
    config.train.global_batch_size = 96
    config.train.num_epochs = 300.0
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.9999
    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 0.045 * 256 / 96
    config.optimizer.momentum = 0.9
    config.optimizer.decay = 0.9
    config.optimizer.epsilon = 1.0
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay_depthwise = False
    config.schedule.name = "exponential"
    config.schedule.decay_rate = 0.98
    config.schedule.decay_epochs = 1.0
    config.checkpoint.every_steps = 5000
    return base.shrink(config) if arg == "smoke" else config
