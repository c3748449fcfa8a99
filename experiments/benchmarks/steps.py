"""Speed of a step. Asks: how fast is a step, next to PyTorch's?

Steps at 224 and at 32 pixels, evaluation, and single blocks. Shapes are those of the paper (width
1.0, 224 pixels) and of the usual CIFAR form (stem and second stage at stride 1). Padding is
symmetric because PyTorch has no other.

Run:    mobilenet benchmark --config=experiments/benchmarks/steps.py --workdir=runs/benchmark
Cost:   hours on 2 CPU cores
Result: experiments/results/benchmark.csv
"""

from mobilenet import config as base

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
    config = base.get_config(arg)
    config.model.padding = "SYMMETRIC"
    config.data.image_size = 224
    config.data.normalization = "imagenet"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    return base.shrink(config) if arg == "smoke" else config


def case(name, work, model, implementations, overrides=(), **more):
    label, batch_size = model
    return {
        "name": name,
        "work": work,
        "model": label,
        "batch_size": batch_size,
        "implementations": implementations,
        "overrides": dict(overrides),
        **more,
    }


def cases():
    """Pairs, so that both implementations are timed seconds apart; the most important first."""
    paper = ("1.0", 16)
    shapes = [
        ("train_224", paper, {}, {}),
        ("train_32", ("1.0, CIFAR form", 128), CIFAR, {"num_classes": 10}),
    ]
    variants = [
        *((f"train_224_w{w}", (str(w), 16), {"model.width_multiplier": w}) for w in (0.35, 1.4)),
        ("train_224_se", ("1.0 with SE 1/4", 16), {"model.se_ratio": 0.25}),
    ]
    compiled = ("ours", "torch", "torch_compile")
    return [
        *(case(n, "train", m, ("ours", "torch"), o, **k) for n, m, o, k in shapes),
        case("evaluate_224_1", "evaluate", ("1.0", 1), compiled),
        case("evaluate_224_16", "evaluate", paper, compiled),
        *(case(f"{n}_plain", "train", m, ("ours", "flax"), o, **k) for n, m, o, k in shapes),
        *(
            case(f"{n}_system", "train", m, ("ours", "torch"), o, memory="system", **k)
            for n, m, o, k in shapes
        ),
        case("train_224_remat", "train", paper, ("ours", "remat")),
        *(
            case(f"{n}_{implementation}", "train", m, ("ours", implementation), o, **k)
            for implementation in ("qat", "pruned")
            for n, m, o, k in shapes
        ),
        *(case(n, "train", m, ("ours", "torch"), o) for n, m, o in variants),
        *(
            case(f"block_224_{name}", "block", (f"1.0: {name}", 16), ("ours", "torch"), block=name)
            for name in BLOCKS
        ),
        *(case(f"train_224_batch{n}", "train", ("1.0", n), ("ours",)) for n in (4, 8, 32)),
        *(
            case(f"train_224_w{w}", "train", (str(w), 16), ("ours",), {"model.width_multiplier": w})
            for w in (0.5, 0.75)
        ),
        *(case(f"{n}_plain", "train", m, ("ours", "flax"), o) for n, m, o in variants),
        *(
            case(f"{n}_compile", "train", m, ("ours", "torch_compile"), o, **k)
            for n, m, o, k in shapes
        ),
    ]
