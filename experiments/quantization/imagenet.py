"""ImageNet weights. Asks: does one scale per tensor ruin weights?

Krishnamoorthi 2018 (arXiv 1806.08342, table 2) and Nagel et al. 2019 (1906.04721, table 2) report
that MobileNetV2 with 8-bit weights and one scale per tensor classifies at chance, that a scale per
channel loses little, and that equalised layers with corrected biases nearly repair one scale per
tensor. Nothing is trained here: each variant quantises the same weights in another way.

Weights: any conversion of an ImageNet classifier, as `mobilenet convert --from=tflite` makes it.
Images: a folder with ImageNet's classes, by WordNet id. Activations are calibrated on another
folder of photographs, which need no classes of ImageNet.

Run:    mobilenet sweep --config=experiments/quantization/imagenet.py --workdir=runs/imagenet_ptq \
            --config.pretrained=runs/imagenet --config.data.data_dir=PHOTOGRAPHS \
            --config.quantize.calibration_dir=OTHER_PHOTOGRAPHS
Cost:   18 runs of 1.5 min on 2 CPU cores with 200 images
Result: experiments/results/quantization.csv
"""

from mobilenet import config as base

TENSOR = {"quantize.weights.per_channel": False}
AFFINE = {"quantize.weights.symmetric": False}
W8 = {"quantize.weights.bits": 8}
W8A8 = {**W8, "quantize.activations.bits": 8}
EQUALIZED = {"quantize.equalize": True}
ABSORBED = {**EQUALIZED, "quantize.absorb_bias": True}
BELOW_6 = {**EQUALIZED, "quantize.keep_relu6": True}
CORRECTED = {"quantize.correct_bias": "empirical"}


SEEDS = 1  # nothing is trained


def get_config(arg=""):
    config = base.get_config(arg)
    config.train.num_epochs = 0.0
    config.schedule.warmup_epochs = 0.0
    config.pretrained = "runs/imagenet"
    config.data.name = "folder"
    config.data.data_dir = "images"
    config.data.image_size = 224
    config.data.crop_fraction = 0.875
    config.data.validation_fraction = 0.0
    config.data.test_fraction = 1.0
    config.eval.batch_size = 50
    config.quantize.calibration_examples = 64
    if arg == "smoke":
        config.pretrained = ""  # two steps from scratch, on the embedded digits
        config.data.validation_fraction = 0.1
        return base.shrink(config)
    return config


def variants():
    """Name of a variant -> what it overrides."""
    return {
        "float": {},
        "w8, per channel": W8,
        "w8, per channel, affine": {**W8, **AFFINE},
        "w8, per tensor": {**W8, **TENSOR},
        "w8, per tensor, affine": {**W8, **TENSOR, **AFFINE},
        "w8, per tensor, corrected": {**W8, **TENSOR, **CORRECTED},
        # ReLU6 becomes ReLU in equalised networks: what that alone costs.
        "a16, equalised": {"quantize.activations.bits": 16, **EQUALIZED},
        "w8, per tensor, equalised": {**W8, **TENSOR, **EQUALIZED},
        # Channels that reach 6 keep their scale, and the network its ReLU6.
        "w8, per tensor, equalised below 6": {**W8, **TENSOR, **BELOW_6},
        "w8, per tensor, equalised below 6, corrected": {**W8, **TENSOR, **BELOW_6, **CORRECTED},
        "w8a8, per channel": W8A8,
        "w8a8, per tensor": {**W8A8, **TENSOR},
        "w8a8, per tensor, corrected": {**W8A8, **TENSOR, **CORRECTED},
        "w8a8, per tensor, equalised": {**W8A8, **TENSOR, **EQUALIZED},
        "w8a8, per tensor, equalised, absorbed": {**W8A8, **TENSOR, **ABSORBED},
        "w8a8, per tensor, equalised, absorbed, corrected": {
            **W8A8,
            **TENSOR,
            **ABSORBED,
            **CORRECTED,
        },
        "w8a8, per tensor, equalised below 6": {**W8A8, **TENSOR, **BELOW_6},
        "w8a8, per tensor, equalised below 6, corrected": {
            **W8A8,
            **TENSOR,
            **BELOW_6,
            **CORRECTED,
        },
    }
