"""Speed of a step: training at 224 and at 32 pixels, evaluation, and block by block.

Shapes are those of the paper (width 1.0, 224 pixels) and of the usual CIFAR form (stem and second
stage at stride 1). Padding is symmetric because PyTorch has no other.

Run:    mobilenet benchmark --config=experiments/benchmarks/steps.py --workdir=runs/benchmark
Result: experiments/results/benchmark.csv
"""

from mobilenet import config as base

EVERY = ("ours", "flax", "torch", "torch_compile")
CIFAR = {
    "data.image_size": 32,
    "model.stem_strides": 1,
    "model.stage_strides": (1, 1, 2, 2, 1, 2, 1),
}
BLOCKS = (
    "stem",
    *(f"blocks_{s}_{b}" for s in range(7) for b in range(min(2, (1, 2, 3, 4, 3, 3, 1)[s]))),
    "head",
)


def get_config(arg=""):
    config = base.get_config("smoke" if arg == "smoke" else "")
    config.model.padding = "SYMMETRIC"
    config.data.image_size = 224
    config.data.normalization = "imagenet"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    return base.shrink(config) if arg == "smoke" else config


def case(name, work, model, batch_size, subjects, overrides=None, **more):
    return {
        "name": name,
        "work": work,
        "model": model,
        "batch_size": batch_size,
        "subjects": subjects,
        "overrides": overrides or {},
        **more,
    }


def cases():
    usual = ("ours", "flax", "torch")
    small = {"num_classes": 10}
    return [
        case("train_224", "train", "1.0", 16, EVERY),
        case("train_32", "train", "1.0, CIFAR form", 128, EVERY, CIFAR, **small),
        case("evaluate_224_1", "evaluate", "1.0", 1, EVERY),
        case("evaluate_224_16", "evaluate", "1.0", 16, EVERY),
        *(
            case(f"train_224_w{w}", "train", str(w), 16, usual, {"model.width_multiplier": w})
            for w in (0.35, 1.4)
        ),
        case("train_224_se", "train", "1.0 with SE 1/4", 16, usual, {"model.se_ratio": 0.25}),
        case("train_224_remat", "train", "1.0", 16, ("ours", "remat")),
        case("train_224_system", "train", "1.0", 16, ("ours", "torch"), memory="system"),
        case("train_32_system", "train", "1.0, CIFAR form", 128, ("ours", "torch"), CIFAR,
             memory="system", **small),
        *(
            case(f"train_224_batch{size}", "train", "1.0", size, ("ours",))
            for size in (4, 8, 32)
        ),
        *(
            case(f"train_224_w{w}", "train", str(w), 16, ("ours",), {"model.width_multiplier": w})
            for w in (0.5, 0.75)
        ),
        *(
            case(f"block_224_{name}", "block", f"1.0: {name}", 16, ("ours", "torch"), block=name)
            for name in BLOCKS
        ),
    ]  # fmt: skip
