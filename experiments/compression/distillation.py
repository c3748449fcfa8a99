"""A teacher. Asks: what do soft targets buy, over temperature and weight?

Hinton et al. 2015, arXiv 1503.02531. The teacher is a wider network of the same recipe, trained
first; every student has the same seeds, steps and scale of its loss as the one without a teacher.

    (none)   CIFAR-10 at 32 pixels, 200 epochs, width 0.5 taught by 1.0: for a GPU
    cifar    5,000 pictures at 24 pixels, 8 epochs, width 0.35 taught by 1.0: minutes a run
    smoke    two steps on the embedded digits, without a teacher

Run:    mobilenet train --config=experiments/compression/distillation.py:cifar \
            --workdir=runs/distillation/teacher --config.model.width_multiplier=1.0 \
            --config.data.data_dir=DIRECTORY_OF_TFDS
        mobilenet sweep --config=experiments/compression/distillation.py:cifar \
            --workdir=runs/distillation/sweep --config.data.data_dir=DIRECTORY_OF_TFDS
"""

from mobilenet.sweep import scales
from mobilenet.sweep.space import grid, product, seeds

SCALES = ("full", "cifar", "smoke")
TEACHER = "runs/distillation/teacher"
DISTILLATION = "compress.distillation."


def get_config(arg=""):
    """The student without a teacher."""
    config = scales.base(arg, SCALES)
    if scales.name_of(arg, SCALES) == "full":
        config.model.width_multiplier = 0.5
    return config


def arms(arg=""):
    """Name of an arm -> what it overrides."""
    if arg == "smoke":
        return {"no teacher": {}}
    taught = grid(
        {
            f"{DISTILLATION}teacher": (TEACHER,),
            f"{DISTILLATION}temperature": (1.0, 2.0, 4.0, 8.0),
            f"{DISTILLATION}weight": (0.5, 0.9),
        }
    )
    named = {
        f"T = {o[f'{DISTILLATION}temperature']:g}, weight {o[f'{DISTILLATION}weight']:g}": o
        for o in taught
    }
    maps = {
        f"{DISTILLATION}teacher": TEACHER,
        f"{DISTILLATION}weight": 0.0,
        f"{DISTILLATION}transfer": "attention",
    }
    return {"no teacher": {}, **named, "attention alone": maps}


def sweep(arg=""):
    return product(list(arms(arg).values()), seeds(scales.seeds_at(arg)))
