"""What each configuration key means, and what other libraries call it.

`MEANINGS` has one entry per key, in the order in which people read them; `config.get_config` has
the defaults, and `config.CHOICES` and `config.RANGES` what is allowed. `mobilenet config` prints
all of it, and mobilenet/CONFIG.md is that text as a page.
"""

from collections.abc import Mapping

# Section -> what its keys are about; "" holds the keys outside of every section.
SECTIONS: Mapping[str, str] = {
    "": "The run",
    "model": "The network",
    "data": "Images and splits",
    "augment": "Augmentation of training images",
    "train": "Training",
    "optimizer": "Optimizer",
    "schedule": "Learning rate over the epochs",
    "finetune": "Training that starts from pretrained weights",
    "quantize": "Quantisation of the weights that a run starts from",
    "quantize.weights": "Quantised weights",
    "quantize.activations": "Quantised activations",
    "compress.pruning": "Pruning of single weights during training",
    "compress.distillation": "Learning from a teacher",
    "eval": "Validation and evaluation",
    "checkpoint": "Checkpoints",
    "log": "Metrics",
}

MEANINGS: Mapping[str, str] = {
    "seed": "Seed of the initial values, data order, augmentation and dropout.",
    "pretrained": (
        "Run directory whose weights the run starts from, made by `mobilenet convert` or "
        "`mobilenet train`; '' trains from scratch. The architecture and the normalisation come "
        "with the weights."
    ),
    "model.name": (
        "The network. All but mobilenet_v2 have block tables of their own and read only some of "
        "the keys of this section."
    ),
    "model.width_multiplier": "Factor on the number of channels: the paper's alpha.",
    "model.expansion_ratio": (
        "Hidden channels / input channels of a block: the paper's t. None takes the block table's; "
        "a number replaces it in all stages but the first; a tuple has one ratio per stage."
    ),
    "model.expanded_features": (
        "Hidden channels of each block, as `mobilenet shrink` chose them; () follows the ratios."
    ),
    "model.blocks": (
        "Block table with one row (expansion_ratio, features, repeats, strides) per stage. The "
        "default is Table 2 of the paper."
    ),
    "model.stem_features": "Channels of the first convolution, before the width multiplier.",
    "model.stem_strides": "Stride of the first convolution.",
    "model.stage_strides": "One stride per stage, in place of the block table's; () keeps those.",
    "model.output_stride": (
        "Input pixels per output pixel. Strides beyond it become dilation, with the same weights; "
        "None leaves the strides as they are."
    ),
    "model.head_features": "Channels of the last 1x1 convolution; 0 leaves it out.",
    "model.shrink_head": "Thin the head too for widths below 1.0 (the paper does not).",
    "model.divisor": "Channels are rounded to multiples of it; 1 turns rounding off.",
    "model.kernel_size": "Kernel size of the depthwise convolutions, in pixels.",
    "model.num_classes": "Outputs; None takes the data set's classes, 0 leaves the classifier out.",
    "model.activation": "Nonlinearity of the network.",
    "model.bottleneck_activation": (
        "Nonlinearity after the projection; identity is the paper's linear bottleneck (Fig. 6a "
        "compares relu6)."
    ),
    "model.shortcut": "What shortcuts connect: bottlenecks, expansions, or nothing (Fig. 6b).",
    "model.shortcut_projection": (
        "Put a 1x1 convolution on the shortcut where widths differ at stride 1, as kuangliu's "
        "pytorch-cifar does."
    ),
    "model.expand_always": (
        "Build the 1x1 expansion at a ratio of 1 too, as kuangliu's pytorch-cifar does."
    ),
    "model.se_ratio": (
        "Squeeze-and-excitation: squeeze width / base width; None leaves the module out."
    ),
    "model.se_base": "The width that se_ratio is a fraction of.",
    "model.se_divisor": "The squeeze width is rounded to multiples of it; 1 truncates.",
    "model.se_gate": "Gate of squeeze-and-excitation.",
    "model.dropout_rate": "Dropout before the classifier, as a probability.",
    "model.padding": "SAME pads as TensorFlow does, SYMMETRIC as PyTorch does.",
    "model.bn_momentum": (
        "Batch normalisation: weight of the old running average (PyTorch's momentum is one minus "
        "it)."
    ),
    "model.bn_epsilon": "Batch normalisation: added to the variance.",
    "model.bn_statistics": (
        "Batch statistics over all devices (sync), over bn_group_size devices (group), or over "
        "each device's own images (local)."
    ),
    "model.bn_group_size": "Devices that share batch statistics, with bn_statistics='group'.",
    "model.initializer": "Distribution of the initial weights.",
    "model.dtype": "Number format of the computation; parameters stay float32.",
    "model.conv_form": "How convolutions are computed; auto is shifted on CPU, else grouped.",
    "model.remat": "Recompute blocks in the backward pass: less memory, more time.",
    "data.name": "digits (embedded), folder (a folder of images), or the name of a TFDS data set.",
    "data.data_dir": "The folder of images, or TFDS's directory; '' is the user's default.",
    "data.train_split": "Name of the split to train on.",
    "data.test_split": "Name of the split to test on.",
    "data.validation_split": (
        "Name of the split to validate on; '' takes validation_fraction of the training split."
    ),
    "data.validation_fraction": "Part of the training split to validate on, chosen by index.",
    "data.test_fraction": "Part of a folder to test on, where it has no train/ and test/.",
    "data.train_examples": "Keep only this many training images; 0 keeps all.",
    "data.image_size": "Side of the square that the network sees, in pixels.",
    "data.channels": "Colour channels: 1 (grey) or 3.",
    "data.crop_fraction": "Evaluation: side of the centre crop / shorter side of the image.",
    "data.normalization": (
        "Pixel values: imagenet (its mean and std), symmetric ([-1, 1]), dataset (statistics of "
        "the training images), pretrained (what the weights were trained with)."
    ),
    "data.in_memory": "Decode each image once and augment on the device, if it fits (auto).",
    "data.num_workers": "Processes that decode streamed images; 0 uses threads.",
    "data.prefetch_batches": "Batches that are prepared ahead.",
    "data.on_error": "An unreadable image ends the run (raise) or is replaced (skip).",
    "augment.random_crop_padding": "Pixels of zero padding before a random crop; 0 is off.",
    "augment.random_resized_crop": "Inception crop, within crop_scale and crop_ratio.",
    "augment.crop_scale": "Inception crop: lowest and highest fraction of the area.",
    "augment.crop_ratio": "Inception crop: lowest and highest width / height.",
    "augment.horizontal_flip": "Flip images left to right with probability 0.5.",
    "augment.brightness": "Colour jitter: largest change of brightness.",
    "augment.contrast": "Colour jitter: largest change of contrast.",
    "augment.saturation": "Colour jitter: largest change of saturation.",
    "augment.hue": "Colour jitter: largest change of hue, in turns of the colour circle.",
    "augment.randaugment_layers": "RandAugment: operations per image; 0 is off.",
    "augment.randaugment_magnitude": "RandAugment: strength of the operations.",
    "augment.random_erasing": "Probability that a part of an image is erased.",
    "augment.mixup_alpha": "Mixup: parameter of the Beta distribution; 0 is off.",
    "augment.cutmix_alpha": "CutMix: parameter of the Beta distribution; 0 is off.",
    "train.global_batch_size": "Images per step, over all devices.",
    "train.num_epochs": (
        "Passes over the training images, which may be a fraction; 0 evaluates what the run starts "
        "from."
    ),
    "train.accumulation_steps": "Parts that each device's batch is computed in, one by one.",
    "train.label_smoothing": "Share of the target that is spread over all classes.",
    "train.best_by": (
        "What makes a validation the best: top1, or loss, which is less noisy with few images."
    ),
    "train.patience": (
        "Validations without a better one that end the run; its result is then its best "
        "checkpoint's. 0 trains to the end and takes the last."
    ),
    "train.ema_decay": (
        "Decay of the moving average of weights and BN statistics that is evaluated; 0 is off."
    ),
    "optimizer.name": "The optimizer; rmsprop is TensorFlow's.",
    "optimizer.learning_rate": (
        "Highest learning rate per 256 images: it is multiplied by global_batch_size / 256."
    ),
    "optimizer.momentum": "Momentum of sgd and rmsprop; b1 of adamw.",
    "optimizer.nesterov": "Nesterov momentum, of sgd.",
    "optimizer.decay": "rho of rmsprop; b2 of adamw.",
    "optimizer.epsilon": "Added inside the root of rmsprop, and to the root of adamw.",
    "optimizer.weight_decay": "L2 term added to the gradient; adamw decouples it.",
    "optimizer.decay_depthwise": "Weight decay on depthwise kernels too; BN and biases have none.",
    "optimizer.clip_norm": "Largest global norm of the gradient; 0 is off.",
    "schedule.name": "Shape of the schedule.",
    "schedule.warmup_epochs": "Epochs in which the rate rises linearly from 0.",
    "schedule.decay_rate": "exponential: factor per decay_epochs; piecewise: factor per boundary.",
    "schedule.decay_epochs": "exponential: epochs between two factors, in whole steps.",
    "schedule.staircase": "exponential: jump at each factor instead of gliding.",
    "schedule.boundary_epochs": "piecewise: epochs at which the rate drops.",
    "schedule.final_fraction": "cosine: last rate / highest rate.",
    "finetune.train_from": (
        "First module that learns, with all modules after it: classifier (a linear probe), head, "
        "blocks_5, ...; '' is all of them. Modules before it run as in evaluation."
    ),
    "finetune.backbone_rate": "Learning rate of all but the classifier / that of the classifier.",
    "finetune.batch_norm": (
        "Batch normalisation of what learns: batch statistics as in training (adapt), or the "
        "stored statistics (frozen)."
    ),
    "quantize.rules": (
        "Rows (pattern of site names, changes), of which the first match counts: (('stem/.*', "
        "'bits=8'),)."
    ),
    "quantize.calibration_examples": "Training images that ranges are estimated from.",
    "quantize.calibration_dir": (
        "A folder of any images to calibrate with, where the training data is not at hand."
    ),
    "quantize.percentile": "Percentile of the estimator of that name.",
    "quantize.fold": "Fold batch normalisation into the weights, where nothing is trained.",
    "quantize.equalize": ("Equalise ranges across layers (Nagel et al. 2019); ReLU6 becomes ReLU."),
    "quantize.keep_relu6": (
        "Keep ReLU6, and equalise only as far as no calibration image is clipped."
    ),
    "quantize.absorb_bias": "Move large biases of equalised layers into the next layers.",
    "quantize.correct_bias": "Correct the shift of the outputs that rounding causes.",
    "quantize.adaround_steps": "Steps of learned rounding (AdaRound) per layer; 0: to nearest.",
    "quantize.observe_epochs": "Epochs of training in which ranges are observed; 0: all.",
    "quantize.batch_norm_epochs": (
        "Epochs of training with batch statistics, which are fixed after them; 0: all."
    ),
    "quantize.step_rate": "Learning rate of learned step sizes / that of their weights.",
    "quantize.weights.bits": "Bits per weight; 0 is float.",
    "quantize.weights.symmetric": "Zero point 0, instead of an affine grid.",
    "quantize.weights.per_channel": "One grid per output channel, instead of one for the tensor.",
    "quantize.weights.estimator": "How the range is chosen.",
    "quantize.weights.ranges": (
        "In training: the extremes at every step (follow), as chosen before (fixed), or learned "
        "(lsq)."
    ),
    "quantize.activations.bits": "Bits per activation; 0 is float.",
    "quantize.activations.symmetric": "Zero point 0, instead of an affine grid.",
    "quantize.activations.estimator": "How the range is chosen.",
    "quantize.activations.ranges": (
        "In training: a moving average of the extremes (observe), as chosen before (fixed), or "
        "learned (lsq, lsq_plus, pact)."
    ),
    "compress.pruning.method": (
        "How weights are chosen: magnitude, random, saliency (|g w|; this is SNIP when it is "
        "one_shot at epoch 0), rigl and set (drop and grow from start_epoch on), zeros (what the "
        "pretrained weights have at 0 stays 0)."
    ),
    "compress.pruning.sparsity": "Zeros / prunable weights at the end.",
    "compress.pruning.distribution": "How the sparsity is spread over kernels.",
    "compress.pruning.pattern": (
        "What is removed together: weights (each alone), N:M along input channels, RxC blocks of "
        "input x output channels."
    ),
    "compress.pruning.schedule": (
        "one_shot prunes at start_epoch; cubic prunes from there to end_epoch (not for rigl and "
        "set)."
    ),
    "compress.pruning.start_epoch": "Epoch of the first pruning.",
    "compress.pruning.end_epoch": "Last epoch of cubic, and of the exchanges of rigl and set.",
    "compress.pruning.every_steps": "Steps between changes of the masks.",
    "compress.pruning.initial_sparsity": "Sparsity at start_epoch, for cubic.",
    "compress.pruning.drop_fraction": "Part of the weights that rigl and set exchange at first.",
    "compress.pruning.rewind_epoch": (
        "Epoch whose weights and learning rate return at every change of the masks; None does not "
        "rewind."
    ),
    "compress.pruning.rules": (
        "Rows (regular expression of a module's name or role, 'prune', 'spare' or a sparsity), of "
        "which the first match counts. Without a match, stem, depthwise and se are spared."
    ),
    "compress.distillation.teacher": (
        "Run directory of a network with the same classes; '' is off. It answers the same "
        "augmented images."
    ),
    "compress.distillation.weight": (
        "Weight of the teacher's answers in the loss; the labels have the rest."
    ),
    "compress.distillation.temperature": "Temperature that softens both distributions.",
    "compress.distillation.transfer": (
        "Maps of the stages that are compared too: attention (any widths), features (equal widths)."
    ),
    "compress.distillation.transfer_weight": "Weight of the distance of those maps in the loss.",
    "eval.batch_size": "Images per step of an evaluation, over all devices; results are the same.",
    "eval.every_epochs": "Epochs between validations; 0 validates at the end only.",
    "checkpoint.every_steps": (
        "Steps between checkpoints; each validation and the end have one as well."
    ),
    "checkpoint.keep_newest": "Newest checkpoints to keep.",
    "checkpoint.keep_best": "Best checkpoints to keep, by train.best_by.",
    "log.every_steps": "Steps between two rows of training metrics.",
    "log.tensorboard": "Write TensorBoard events too.",
    "log.writers": (
        "Where metrics go besides metrics.jsonl: csv (metrics.csv), tensorboard, wandb (offline "
        "unless WANDB_MODE says otherwise), mlflow (MLFLOW_TRACKING_URI, else files of the run)."
    ),
}

# What keys without an entry in `config.CHOICES` or `config.RANGES` take, where their kind does not
# say it all.
ALLOWED: Mapping[str, str] = {
    "pretrained": "a run directory",
    "model.expansion_ratio": "None, a number in (0, 64], or a tuple of them, one per stage",
    "model.expanded_features": "() or whole numbers, one per block",
    "model.blocks": "rows of 4 numbers",
    "model.stage_strides": "() or 1 and 2, one per stage",
    "data.data_dir": "a directory",
    "augment.crop_scale": "two rising numbers in (0, 1]",
    "augment.crop_ratio": "two rising numbers above 0",
    "schedule.boundary_epochs": "rising numbers",
    "finetune.train_from": "a module's name",
    "quantize.rules": "rows of two texts",
    "quantize.calibration_dir": "a directory",
    "compress.pruning.pattern": "weights, N:M such as 2:4, RxC such as 4x1",
    "compress.pruning.rules": "rows of two texts",
    "compress.distillation.teacher": "a run directory",
    "log.writers": "csv, tensorboard, wandb, mlflow, separated by commas",
}

# What other libraries, and people, call sections and keys -> the name here.
SECTION_SYNONYMS: Mapping[str, str] = {
    "optimiser": "optimizer", "optim": "optimizer", "opt": "optimizer", "solver": "optimizer",
    "network": "model", "net": "model", "arch": "model", "architecture": "model",
    "dataset": "data", "dataloader": "data", "loader": "data", "input": "data",
    "augmentation": "augment", "augmentations": "augment", "aug": "augment", "transform": "augment",
    "transforms": "augment", "training": "train", "trainer": "train",
    "scheduler": "schedule", "lr_scheduler": "schedule", "lr_schedule": "schedule",
    "evaluation": "eval", "evaluate": "eval", "validation": "eval", "val": "eval",
    "logging": "log", "logger": "log", "checkpoints": "checkpoint", "ckpt": "checkpoint",
    "quantization": "quantize", "quantisation": "quantize", "quant": "quantize",
    "pruning": "compress.pruning", "prune": "compress.pruning", "sparsity": "compress.pruning",
    "distillation": "compress.distillation", "distill": "compress.distillation",
    "kd": "compress.distillation", "finetuning": "finetune", "fine_tune": "finetune",
}  # fmt: skip
KEY_SYNONYMS: Mapping[str, str] = {
    "lr": "optimizer.learning_rate", "base_lr": "optimizer.learning_rate",
    "rate": "optimizer.learning_rate", "eta": "optimizer.learning_rate",
    "learning_rate": "optimizer.learning_rate", "wd": "optimizer.weight_decay",
    "l2": "optimizer.weight_decay", "l2_reg": "optimizer.weight_decay",
    "optimizer": "optimizer.name", "optimiser": "optimizer.name", "opt": "optimizer.name",
    "beta1": "optimizer.momentum", "b1": "optimizer.momentum", "beta2": "optimizer.decay",
    "b2": "optimizer.decay", "rho": "optimizer.decay", "eps": "optimizer.epsilon",
    "clip": "optimizer.clip_norm", "clip_grad": "optimizer.clip_norm",
    "grad_clip": "optimizer.clip_norm", "max_grad_norm": "optimizer.clip_norm",
    "batch_size": "train.global_batch_size", "bs": "train.global_batch_size",
    "batch": "train.global_batch_size", "epochs": "train.num_epochs",
    "epoch": "train.num_epochs", "num_epoch": "train.num_epochs", "max_epochs": "train.num_epochs",
    "n_epochs": "train.num_epochs", "grad_accum": "train.accumulation_steps",
    "gradient_accumulation_steps": "train.accumulation_steps",
    "accumulate_grad_batches": "train.accumulation_steps",
    "smoothing": "train.label_smoothing", "ema": "train.ema_decay",
    "model_ema_decay": "train.ema_decay", "early_stopping": "train.patience",
    "alpha": "model.width_multiplier", "width": "model.width_multiplier",
    "width_mult": "model.width_multiplier", "depth_multiplier": "model.width_multiplier",
    "expand_ratio": "model.expansion_ratio", "expansion": "model.expansion_ratio",
    "t": "model.expansion_ratio", "dropout": "model.dropout_rate", "drop": "model.dropout_rate",
    "drop_rate": "model.dropout_rate", "classes": "model.num_classes",
    "n_classes": "model.num_classes", "precision": "model.dtype", "amp": "model.dtype",
    "act": "model.activation", "sync_bn": "model.bn_statistics", "bn_eps": "model.bn_epsilon",
    "bn_decay": "model.bn_momentum", "round_nearest": "model.divisor",
    "checkpoint_activations": "model.remat", "grad_checkpointing": "model.remat",
    "scheduler": "schedule.name", "sched": "schedule.name", "warmup": "schedule.warmup_epochs",
    "milestones": "schedule.boundary_epochs", "gamma": "schedule.decay_rate",
    "step_size": "schedule.decay_epochs", "lr_min": "schedule.final_fraction",
    "min_lr": "schedule.final_fraction",
    "dataset": "data.name", "root": "data.data_dir", "dir": "data.data_dir",
    "path": "data.data_dir", "workers": "data.num_workers", "resolution": "data.image_size",
    "img_size": "data.image_size", "input_size": "data.image_size", "size": "data.image_size",
    "crop_pct": "data.crop_fraction", "val_split": "data.validation_split",
    "val_fraction": "data.validation_fraction", "in_chans": "data.channels",
    "flip": "augment.horizontal_flip", "hflip": "augment.horizontal_flip",
    "mixup": "augment.mixup_alpha", "cutmix": "augment.cutmix_alpha",
    "randaugment": "augment.randaugment_layers", "reprob": "augment.random_erasing",
    "random_state": "seed", "rng": "seed", "weights": "pretrained", "init_from": "pretrained",
    "freeze": "finetune.train_from", "teacher": "compress.distillation.teacher",
    "temperature": "compress.distillation.temperature", "bits": "quantize.weights.bits",
    "tensorboard": "log.tensorboard", "wandb": "log.writers", "mlflow": "log.writers",
    "logger": "log.writers", "loggers": "log.writers", "report_to": "log.writers",
}  # fmt: skip
