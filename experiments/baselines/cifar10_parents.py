"""Parents on CIFAR-10. Asks: which networks does compression start from?

MobileNetV2 of width 0.5 in the CIFAR form of experiments/baselines/cifar10.py (28.0 M MACs at 32
pixels), trained on all 45,000 training images for 60 epochs, with averaged weights and three seeds.
Nothing is tuned on the test split: the recipe was written before the first run. Label smoothing is
off, because a teacher that was trained with it teaches worse (Mueller et al. 2019, arXiv
1906.02629).

Published for the same form at width 0.5 after 200 epochs on lossless images: 92.88 % top-1
(chenyaofo/pytorch-cifar-models).

Run:    mobilenet sweep --config=experiments/baselines/cifar10_parents.py --workdir=runs/parents \
            --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   3 runs of 21,100 steps on a GPU, of 128 images
Result: not run by this project yet
"""

from mobilenet import config as base
from mobilenet.sweep.space import seeds


def get_config(arg=""):
    config = base.get_config(arg)
    config.model.width_multiplier = 0.5
    config.model.stem_strides = 1
    config.model.stage_strides = (1, 1, 2, 2, 1, 2, 1)
    config.model.padding = "SYMMETRIC"
    config.model.bn_momentum = 0.9
    config.model.bn_epsilon = 1e-5
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.random_crop_padding = 4
    config.augment.horizontal_flip = True
    config.train.global_batch_size = 128
    config.train.num_epochs = 60.0
    config.train.ema_decay = 0.999
    config.optimizer.learning_rate = 0.2  # 0.1 at batch 128
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.warmup_epochs = 3.0
    config.eval.every_epochs = 5.0
    config.log.every_steps = 100
    return base.shrink(config) if arg == "smoke" else config


def sweep(arg=""):
    return seeds(1 if arg == "smoke" else 3)
