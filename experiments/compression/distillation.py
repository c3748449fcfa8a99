"""A teacher. Asks: how much do soft targets add?

Hinton et al. 2015, arXiv 1503.02531; maps of stages: Zagoruyko & Komodakis 2017, arXiv 1612.03928.
The student has about half of the MACs of its teacher. The teacher of each seed is a dense network
of the same recipe. All students have the same steps, and the same scale of their loss as the one
without a teacher.

    full     CIFAR-10 at 32 pixels, 250 epochs, width 0.64, teacher of width 1.0: for a GPU
    cifar    15,000 images at 24 pixels, 11 epochs, width 0.28, teacher of width 0.5: minutes a run
    smoke    two steps on the embedded digits, without a teacher

Run:    the teachers of experiments/compression/budgets.py, then in one directory with it
        mobilenet sweep --config=experiments/compression/distillation.py:cifar \
            --workdir=runs/compression --config.data.data_dir=DIRECTORY_OF_TFDS
Cost:   cifar: 15 runs of 4 min on 2 CPU cores, after 3 teachers
Result: experiments/results/compression.csv
"""

from mobilenet.sweep import scales
from mobilenet.sweep.space import grid

SCALES = ("full", "cifar", "smoke")
STUDENT = {"full": 0.64, "cifar": 0.28}
TEMPERATURES = {"full": (1.0, 2.0, 4.0, 8.0), "cifar": (1.0, 4.0)}
TEACHER = "runs/teacher_{seed}"
DISTILLATION = "compress.distillation."


def get_config(arg=""):
    """The dense run, which teaches."""
    return scales.dense(arg, SCALES)


def variants(arg=""):
    """Name of a variant -> what it overrides."""
    if arg == "smoke":
        return {"no teacher": {}}
    scale = scales.name_of(arg, SCALES)
    student = {**scales.as_long(arg, SCALES), "model.width_multiplier": STUDENT[scale]}
    taught = grid(
        {
            f"{DISTILLATION}teacher": (TEACHER,),
            f"{DISTILLATION}temperature": TEMPERATURES[scale],
            f"{DISTILLATION}weight": (0.5, 0.9),
        }
    )
    named = {
        f"T = {o[f'{DISTILLATION}temperature']:g}, weight {o[f'{DISTILLATION}weight']:g}": o
        for o in taught
    }
    found = {"no teacher": {}, **named}
    if scale == "full":
        found["attention alone"] = {
            f"{DISTILLATION}teacher": TEACHER,
            f"{DISTILLATION}weight": 0.0,
            f"{DISTILLATION}transfer": "attention",
        }
    return {name: {**student, **variant} for name, variant in found.items()}


def baselines(arg=""):
    """Variant -> its baseline: the student alone."""
    return {name: "no teacher" for name in variants(arg) if name != "no teacher"}
