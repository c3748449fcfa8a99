"""Fine-tuning. Asks: how well do ImageNet weights fit my images?

The folder is IMAGES/train/CLASS/*.jpg and IMAGES/test/CLASS/*.jpg, or IMAGES/CLASS/*.jpg, of which
a fifth is then the test part. One training image in ten is held out for validation. It chooses the
checkpoint, ends the run, and was all that the recipe was chosen by. The test images are measured
once.

Convert: mobilenet convert --from=tfjs model.json --to=runs/imagenet
Run:    mobilenet train --config=experiments/transfer/finetune.py --workdir=runs/flowers \
            --config.pretrained=runs/imagenet --config.data.data_dir=flowers
        mobilenet sweep --config=experiments/transfer/finetune.py --workdir=runs/transfer \
            --config.pretrained=runs/imagenet --config.data.data_dir=flowers
Cost:   15 runs of 14 min on 2 CPU cores, with 900 images and width 0.35
Result: experiments/results/transfer.csv
"""

from mobilenet import config as base


def get_config(arg=""):
    config = base.get_config(arg)
    config.model.dropout_rate = 0.2
    # The run has a few hundred steps. By the first validation, the statistics must be those of the
    # new images; with 0.99 they still are those of ImageNet.
    config.model.bn_momentum = 0.9
    config.pretrained = "runs/imagenet"
    config.data.name = "folder"
    config.data.data_dir = "images"
    config.data.image_size = 224
    config.data.crop_fraction = 0.875
    config.augment.random_resized_crop = True
    config.augment.crop_scale = (0.25, 1.0)
    config.augment.horizontal_flip = True
    config.train.global_batch_size = 32
    config.train.num_epochs = 28.0
    config.train.patience = 8
    config.train.ema_decay = 0.99  # with 25 steps per epoch
    config.train.best_by = "loss"
    config.train.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.16
    config.schedule.warmup_epochs = 1.0
    config.finetune.backbone_rate = 0.25
    config.eval.batch_size = 64
    config.log.every_steps = 10
    if arg == "smoke":
        config.pretrained = ""  # two steps from scratch, on the embedded digits
        return base.shrink(config)
    return config


def variants():
    """Name of a variant -> what it overrides."""
    return {
        "all layers": {},
        "linear probe": {"finetune.train_from": "classifier"},
        # The same network, preprocessing and steps as with the weights named above.
        "from scratch": {
            "pretrained": "",
            "finetune.backbone_rate": 1.0,
            "model.width_multiplier": 0.35,
            "data.normalization": "symmetric",
        },
        "last stages": {"finetune.train_from": "blocks_5"},
        # Without batch statistics the scale of the weights matters: at the learning rate of the
        # other variants, the network collapses within an epoch.
        "all layers, BN frozen": {"finetune.batch_norm": "frozen", "finetune.backbone_rate": 0.02},
    }
