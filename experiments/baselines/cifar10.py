"""CIFAR-10. Asks: which accuracy does the public form reach?

The network is that of chenyaofo/pytorch-cifar-models: stem and second stage have stride 1.
Published for width 1.0: 93.79 % top-1 with 2,236,682 parameters and 88.0 M MACs (the repository's
README). The recipe is the one that public CIFAR ports share: SGD with momentum, cosine over 200
epochs, batch 128, learning rate 0.1, weight decay 5e-4, padded crops and flips.

On two CPU cores a step at width 1.0 takes 0.5 to 2.5 s. They can train narrower networks for fewer
epochs; the results state what was run.

Run:    mobilenet train --config=experiments/baselines/cifar10.py --workdir=runs/c10 \
            --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   70,300 steps on a GPU, of 128 images
Result: experiments/results/baselines.csv
"""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
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
    config.train.num_epochs = 200.0
    config.optimizer.learning_rate = 0.2  # 0.1 at batch 128
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.eval.every_epochs = 5.0
    config.log.every_steps = 100
    return base.shrink(config) if arg == "smoke" else config
