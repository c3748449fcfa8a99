"""Builds the parts of a run from a configuration; the only module that knows every part."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mobilenet import architecture, identity, rundir, teacher, transfer
from mobilenet import config as config_lib
from mobilenet.compress import pruning
from mobilenet.compress import rules as pruning_rules
from mobilenet.config import Config, ConfigError
from mobilenet.data import datasets, memory, pipeline, transforms
from mobilenet.data.batches import Batches as HostBatches
from mobilenet.data.batches import Prefetcher
from mobilenet.models import cost
from mobilenet.models.depthwise import resolve_form
from mobilenet.models.loops import largest_divisor
from mobilenet.models.network import Network
from mobilenet.quantize import precision, ptq
from mobilenet.quantize.calibration import CalibrationError
from mobilenet.quantize.fold import is_folded
from mobilenet.quantize.rules import RuleError
from mobilenet.train import loop, optim, records, state, steps, writers
from mobilenet.train.checkpoints import Checkpoints
from mobilenet.train.loop import Batches, Parts

# Streams of the run's seed; `mobilenet.train.steps` has the others.
INIT_STREAM, CALIBRATION_STREAM = 0, 3
# Images per chunk of calibration, in pixels: 128 of 32 x 32, 2 of 224 x 224. All their activations
# are kept: about 1 GB for a network that keeps the resolution in its first stages.
CALIBRATION_PIXELS = 2**17
DATA_FILE = "data.json"
QUANTIZATION_FILE = "quantization.json"  # numbers from the preparation of a quantised run


def resolve_classes(config: Config, available: int | None = None) -> int:
    """The classifier's width: `model.num_classes`, or the data set's.

    Args:
      config: complete configuration.
      available: classes of the opened data set; None opens it if it is needed.

    Raises:
      ConfigError: the classifier is narrower than the number of the data set's classes.
    """
    chosen = config.model.num_classes
    if chosen is None:
        return available if available is not None else open_dataset(config).num_classes
    if available is not None and 0 < chosen < available:
        raise ConfigError(
            f"model.num_classes is {chosen}, but {config.data.name} has {available} classes; leave "
            "it out (None) or give at least that many."
        )
    return chosen


def open_dataset(config: Config) -> datasets.Dataset:
    """Opens the configured data set; no image is decoded yet."""
    data = config.data
    return datasets.open_dataset(
        data.name,
        data_dir=data.data_dir,
        train_split=data.train_split,
        test_split=data.test_split,
        validation_split=data.validation_split,
        validation_fraction=data.validation_fraction,
        train_examples=data.train_examples,
        test_fraction=data.test_fraction,
    )


class Together:
    """Batches of several lanes, stacked along a leading axis."""

    def __init__(self, lanes: Sequence[Batches]) -> None:
        self._lanes = lanes

    @property
    def unreadable(self) -> Mapping[int, str]:
        return {index: why for lane in self._lanes for index, why in lane.unreadable.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batches in zip(*self._lanes, strict=True):
            yield {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()


class Ahead:
    """Batches that a background thread prepares, a few ahead of their use.

    Args:
      batches: of the pipeline.
      size: number of batches to prepare ahead.
      classes: the classifier's output of each label; None means the label itself.
    """

    def __init__(self, batches: HostBatches, size: int, classes: np.ndarray | None = None) -> None:
        self._batches = batches
        self._classes = classes
        self._prefetcher: Prefetcher[dict[str, np.ndarray]] = Prefetcher(batches, size)

    @property
    def unreadable(self) -> Mapping[int, str]:
        return self._batches.unreadable

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self._prefetcher:
            if self._classes is not None:
                batch = {**batch, "label": self._classes[batch["label"]]}
            yield batch

    def close(self) -> None:
        self._prefetcher.close()


@dataclasses.dataclass(frozen=True)
class Data:
    """An opened data set, its decoded splits or streams, and the normalisation of its images.

    Attributes:
      config: complete configuration.
      dataset: the opened data set.
      mean, std: per channel, of values in [0, 1].
      load: split -> arrays in memory, or the source if it is streamed.
      class_names: of the classifier's outputs; these are the data set's, unless a run is evaluated
        on another data set.
      classes: the classifier's output of each of the data set's labels; None: the label itself.
    """

    config: Config
    dataset: datasets.Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load: Callable[[str], memory.Arrays | datasets.Source]
    class_names: tuple[str, ...]
    classes: np.ndarray | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have examples."""
        return tuple(name for name, source in self.dataset.splits.items() if len(source))

    def train_batches(self, start_step: int, num_steps: int) -> Batches:
        """This process's share of `num_steps` global training batches."""
        config, data = self.config, self.config.data
        batches = pipeline.train_batches(
            self.load("train"),
            global_batch_size=config.train.global_batch_size,
            seed=config.seed,
            start_step=start_step,
            num_steps=num_steps,
            random_resized_crop=config.augment.random_resized_crop,
            crop_scale=config.augment.crop_scale,
            crop_ratio=config.augment.crop_ratio,
            crop_fraction=data.crop_fraction,
            **self._reading(),
        )
        return Ahead(batches, data.prefetch_batches)

    def eval_batches(self, split: str) -> Batches:
        """This process's share of the batches that hold every example of `split` once."""
        devices = jax.device_count()
        batches = pipeline.eval_batches(
            self.load(split),
            # Rounded up: the last batch is padded anyway.
            global_batch_size=-(-self.config.eval.batch_size // devices) * devices,
            crop_fraction=self.config.data.crop_fraction,
            **self._reading(),
        )
        return Ahead(batches, self.config.data.prefetch_batches, self.classes)

    def evaluated(self, split: str, examples: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The first examples of a split in batches: uint8 images [b, S, S, C], labels [b].

        Args:
          split: of the data set.
          examples: largest number of examples; 0 takes all.

        Raises:
          EmptySplitError: there are none.
        """
        loop.require_examples(split, self.splits)
        left = examples or len(self.dataset.splits[split])
        with contextlib.closing(self.eval_batches(split)) as batches:
            for batch in batches:
                real = np.flatnonzero(batch["mask"] > 0)[:left]
                yield batch["image"][real], batch["label"][real]
                left -= len(real)
                if left <= 0:
                    return

    def calibration_batches(self, examples: int) -> Iterator[np.ndarray]:
        """Training images as in evaluation, uint8 [b, S, S, C], the same in every call.

        They are from the data set's train part, or all images below `quantize.calibration_dir`.

        Args:
          examples: number of images, drawn with the run's seed; all if there are fewer.
        """
        config, folder = self.config, self.config.quantize.calibration_dir
        if folder:
            source = loaded = datasets.open_images(folder, "quantize.calibration_dir")
        else:
            source, loaded = self.dataset.splits["train"], self.load("train")
        order = np.random.default_rng([config.seed, CALIBRATION_STREAM]).permutation(len(source))
        chosen = np.sort(order[:examples])
        size = max(1, min(len(chosen), CALIBRATION_PIXELS // config.data.image_size**2))
        if isinstance(loaded, memory.Arrays):
            for begin in range(0, len(chosen), size):
                yield loaded.image[chosen[begin : begin + size]]
            return
        subset = datasets.SubsetSource(loaded, chosen)
        reading = {**self._reading(), "process_index": 0, "process_count": 1}
        batches = pipeline.eval_batches(
            subset, global_batch_size=size, crop_fraction=config.data.crop_fraction, **reading
        )
        with contextlib.closing(batches):
            for batch in batches:
                yield batch["image"][batch["mask"] > 0]

    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "image_size": data.image_size,
            "channels": data.channels,
            "on_error": data.on_error,
            "num_workers": data.num_workers,
        }

    def stored(self) -> dict[str, Any]:
        """The values that `evaluate` and `predict` need to treat images as training did.

        `mean`, `std`, `class_names`, and `examples` of `datasets.Dataset`.
        """
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
            "examples": self.dataset.examples,
        }


def _reduced(
    config: Config, *, only: tuple[str, ...] = ("",), without: tuple[str, ...] = ()
) -> str:
    """The configuration as JSON; keys that do not count have their defaults.

    Args:
      config: complete configuration.
      only: prefixes of the keys that count.
      without: prefixes of keys among these that do not count.
    """
    base = config_lib.get_config()
    values = config_lib.flatten(config)
    counting = {k: v for k, v in values if k.startswith(only) and not k.startswith(without)}
    config_lib.update(base, counting)
    return config_lib.to_json(base)


def _open(reduced: str) -> tuple[datasets.Dataset, Callable[[str], Any]]:
    """The data set, and a function that decodes a split once, or returns its source."""
    config = config_lib.from_json(reduced)
    dataset, data = open_dataset(config), config.data
    in_memory = data.in_memory == "always" or (
        data.in_memory == "auto"
        and memory.fits_in_memory(dataset, image_size=data.image_size, channels=data.channels)
    )

    @functools.cache
    def load(split: str) -> memory.Arrays | datasets.Source:
        source = dataset.splits[split]
        if not in_memory:
            return source
        return memory.load_in_memory(
            source,
            image_size=data.image_size,
            channels=data.channels,
            crop_fraction=data.crop_fraction,
            on_error=data.on_error,
        )

    return dataset, load


class Shared:
    """State that runs of one process share: decoded data, and steps that are compiled once.

    Runs that only differ in numbers that are arguments of the step (ARGUMENTS) share a step. For
    each kind, the newest few are kept.
    """

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=1)(_open)
        self.steps = functools.lru_cache(maxsize=4)(_make_steps)
        self.initializer = functools.lru_cache(maxsize=4)(_make_initializer)
        self._teacher: tuple[Any, teacher.Teacher] | None = None

    def teacher(self, config: Config, data: "Data", num_classes: int) -> teacher.Teacher | None:
        """The teacher that `config.compress.distillation` names, placed on the devices; or None.

        Raises:
          ConfigError, CheckpointError: as `mobilenet.teacher.read`.
        """
        directory = config.compress.distillation.teacher
        if not directory:
            return None
        path = Path(directory)
        known = identity.of_run(path)  # another network may be at this path by now
        key = (path, known, data.class_names, num_classes, *architecture.image_shape(config))
        if self._teacher is None or self._teacher[0] != key:
            names = data.class_names
            found = teacher.read(path, read_stored(path), config, names, num_classes)
            placed = dataclasses.replace(found, variables=steps.place(found.variables))
            self._teacher = (key, placed)
        return self._teacher[1]

    def open(self, config: Config) -> tuple[datasets.Dataset, Callable[[str], Any]]:
        """The configured data set, and a function that decodes a split of it when called."""
        return self._open(_reduced(config, only=("data.",)))


def build_data(
    config: Config,
    workdir: Path | None = None,
    shared: Shared | None = None,
    *,
    match_classes: bool = False,
    optional: bool = False,
) -> Data:
    """Opens the data set and determines how images are normalised.

    Statistics of the data set are computed from its train part once and stored in the run directory
    with the class names; later calls read them from there.

    Args:
      config: complete configuration.
      workdir: the run directory; None stores nothing.
      shared: of the runs in this process; None shares nothing.
      match_classes: the run is evaluated on a data set that may be another one: its classes are
        found by name among the run's (`transfer.match_classes`).
      optional: a data set that cannot be opened is replaced by an empty one with the run's classes.

    Raises:
      DatasetError, ConfigError: the data set cannot be opened, or is not the one of the run.
    """
    data = config.data
    stored = read_stored(workdir) if workdir is not None else None
    try:
        dataset, load = (shared or Shared()).open(config)
    except datasets.DatasetError as error:
        if not optional or stored is None:
            raise
        logging.getLogger(__name__).warning("%s Nothing is evaluated without it.", error)
        dataset = datasets.empty(data.name, stored["class_names"])
        load = dataset.splits.__getitem__
    if config.train.num_epochs and not match_classes:
        datasets.require_trainable(dataset, data.data_dir)
    class_names, classes = dataset.class_names, None
    if stored is not None:
        # Older runs may have names in several Unicode forms.
        class_names = tuple(unicodedata.normalize("NFC", name) for name in stored["class_names"])
        if not class_names:
            raise no_classifier(workdir)
        if match_classes and class_names != dataset.class_names:
            classes = _match(config, class_names, dataset.class_names, workdir)
        elif class_names != dataset.class_names:
            raise ConfigError(
                f"data.name is {data.name!r} with classes {_few(dataset.class_names)}, but the run "
                f"in {workdir} was trained on {_few(stored['class_names'])}; point data.data_dir "
                "to the same data, or give another run directory."
            )
        mean, std = tuple(stored["mean"]), tuple(stored["std"])
    elif data.normalization == "dataset":
        means, stds = memory.channel_statistics(
            load("train"),
            channels=data.channels,
            image_size=data.image_size,
            crop_fraction=data.crop_fraction,
            on_error=data.on_error,
        )
        # A channel without variation is not scaled.
        mean = tuple(float(m) for m in means)
        std = tuple(float(s) if s > 0 else 1.0 for s in stds)
    elif data.normalization == "pretrained":
        weights = _read_pretrained(config)
        mean, std = tuple(weights["mean"]), tuple(weights["std"])
    else:
        mean, std = transforms.normalization(data.normalization, data.channels)
    built = Data(config, dataset, mean, std, load, class_names, classes)
    if workdir is not None and stored is None and jax.process_index() == 0:
        rundir.write_json(workdir / DATA_FILE, built.stored())
    return built


def check_examples(config: Config, dataset: datasets.Dataset, workdir: Path) -> None:
    """Refuses examples that differ from those of the run in a directory, unless nothing is trained.

    Raises:
      ConfigError: the message says what changed.
    """
    if not config.train.num_epochs:
        return
    stored = read_stored(workdir) or {}
    began = stored.get("examples") or {
        # Older runs did not store names of examples, only their number.
        name: {"count": count}
        for name, count in (records.read_summary(workdir).get("examples") or {}).items()
    }
    changed = []
    for name, now in dataset.examples.items() if began else ():
        was = began.get(name, {"count": 0})
        if was["count"] != now["count"]:
            changed.append(f"{was['count']} examples of {name} before, {now['count']} now")
        elif was.get("digest", now["digest"]) != now["digest"]:
            changed.append(f"{now['count']} examples of {name} under other names")
    if changed:
        where = config.data.data_dir or "The data set"
        raise ConfigError(
            f"{where} differs from the data with which the run in {workdir} began: "
            f"{', '.join(changed)}. Restore the data, or give another --workdir."
        )


def no_classifier(workdir: Path | None) -> ConfigError:
    """The error for a run that only extracts features, such as a converted backbone."""
    return ConfigError(
        f"{workdir} has no classifier, only features; train one on a data set with "
        f"--config.pretrained={workdir}."
    )


def _match(
    config: Config, known: tuple[str, ...], wanted: tuple[str, ...], workdir: Path | None
) -> np.ndarray:
    classes = transfer.match_classes(wanted, known)
    if isinstance(classes, str):
        raise ConfigError(
            f"data.name is {config.data.name!r} with the class {classes!r}, which is not one of "
            f"the classes of the run in {workdir}, {_few(known)}, or equals another one; use the "
            "same names of classes."
        )
    return np.asarray(classes, np.int32)


def _few(names: Any) -> str:
    names = list(names)
    return f"{', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''} ({len(names)})"


def read_stored(workdir: Path) -> dict[str, Any] | None:
    """Normalisation and class names of a run, or None before it has any.

    Raises:
      FileError: the file is damaged.
    """
    path = workdir / DATA_FILE
    if not path.exists():
        return None
    stored = rundir.read_object(path, "mean", "std", "class_names")
    for key, kind in (("mean", int | float), ("std", int | float), ("class_names", str)):
        value = stored[key]
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            what = "names" if kind is str else "numbers"
            raise rundir.FileError(path, f"is damaged: its {key} is not a list of {what}")
    if not 0 < len(stored["mean"]) == len(stored["std"]):
        raise rundir.FileError(path, "is damaged: its mean and std differ in length")
    return stored


def require_stored(workdir: Path) -> dict[str, Any]:
    """The result of `read_stored`, which must exist.

    Raises:
      RunDirectoryError: it does not exist.
    """
    stored = read_stored(workdir)
    if stored is None:
        raise rundir.RunDirectoryError(f"{workdir} has no {DATA_FILE}; it is not a complete run.")
    return stored


def _read_pretrained(config: Config) -> dict[str, Any]:
    """The result of `read_stored` for the weights that the run starts from."""
    stored = read_stored(Path(config.pretrained))
    if stored is None:
        raise ConfigError(
            f"pretrained is {config.pretrained!r}, which has no {DATA_FILE}: it is not a complete "
            "run."
        )
    return stored


def preprocess(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Any], jax.Array]:
    """uint8 images [B, H, W, C] -> normalised float32, as in evaluation."""
    return transforms.make_preprocess(mean, std)


def build_augment(
    config: Config, mean: tuple[float, ...], std: tuple[float, ...], *, streamed: bool = False
) -> Callable[..., Any]:
    """The augmentation that runs on the device, from `config.augment`.

    Args:
      config: complete configuration.
      mean, std: of the normalisation that follows it.
      streamed: workers decode the images and crop them at full resolution.
    """
    settings = config.augment.to_dict()
    if streamed:
        settings["random_resized_crop"] = False
    return transforms.make_augment(mean=mean, std=std, **settings)


def build_train_step(
    config: Config,
    model: Network,
    augment: Callable[..., Any],
    *,
    lanes: bool = False,
    guide: steps.Guide | None = None,
) -> Callable[..., Any]:
    """The training step of a network, mapped over all devices; the state is donated.

    Args:
      config: complete configuration.
      model: from `build_model`, for all devices.
      augment: from `build_augment`.
      lanes: for several runs at once (`steps.map_train_step`).
      guide: from `teacher.make_guide`; the step then also takes the teacher's variables.
    """
    frozen = architecture.frozen_modules(model, config.finetune)
    if frozen:  # the quantiser of the images comes before all modules, so it is frozen too
        frozen = ("input", *frozen)

    def apply(variables: Any, *args: Any, **options: Any) -> Any:
        params = {  # frozen modules need no gradient, nor do modules before them
            name: jax.lax.stop_gradient(leaves) if name in frozen else leaves
            for name, leaves in variables["params"].items()
        }
        if guide is not None:
            options["endpoints"] = True
        return model.apply({**variables, "params": params}, *args, **options)

    step = steps.make_train_step(
        apply,
        build_optimizer(config, frozen),
        augment,
        transforms.example_keys,
        num_classes=model.num_classes,
        accumulation_steps=config.train.accumulation_steps,
        average_batch_stats=config.model.bn_statistics != "sync",
        ema=config.train.ema_decay > 0,
        guide=guide,
        **(
            {"settle": pruning.settle, "observe": pruning.observe}
            if config_lib.is_pruned(config)
            else {}
        ),
    )
    return steps.map_train_step(step, lanes=lanes, guided=guide is not None)


def hyperparameters(config: Config, learning_rate: float) -> dict[str, Any]:
    """The numbers that are arguments of a training step: changing them compiles nothing.

    The numbers of pruning, which change from step to step, come from `build_pruning`.
    """
    distillation = config.compress.distillation
    return {
        "seed": np.uint32(config.seed),
        "learning_rate": np.float32(learning_rate),
        "weight_decay": np.float32(config.optimizer.weight_decay),
        "backbone_rate": np.float32(config.finetune.backbone_rate),
        "step_rate": np.float32(config.quantize.step_rate),
        "label_smoothing": np.float32(config.train.label_smoothing),
        "ema_decay": np.float32(config.train.ema_decay),
        **(
            {
                "soft_weight": np.float32(distillation.weight),
                "temperature": np.float32(distillation.temperature),
                "transfer_weight": np.float32(distillation.transfer_weight),
            }
            if distillation.teacher
            else {}
        ),
    }


# Images per chunk of evaluation on CPU, in pixels of their tensors at that stage. The widest
# tensors of so few images stay in the caches; those of a whole batch go through memory once per
# layer. However, products with the small maps of the last stages are slow for few images.
CHUNK_PIXELS = 6400
# A chunk of at most this many images is computed together with a second one: XLA:CPU runs
# independent operations in parallel, which uses the waiting times between small operations.
PAIRED = 8


def build_forward(
    model: Network, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Any, jax.Array], jax.Array]:
    """Evaluation: (variables, uint8 images [B, H, W, C]) -> logits float32 [B, K].

    If convolutions are computed for a CPU, a batch goes through each part of the network in chunks
    of a few images.
    """
    prepare = preprocess(mean, std)

    def forward(variables: Any, x: jax.Array, part: tuple[str, ...] | None = None) -> Any:
        if part is None or part[0] == "stem":
            x = prepare(x)
        return model.apply(variables, x, False, part=part)

    def in_chunks(variables: Any, images: jax.Array) -> jax.Array:
        x = images
        for part in model.parts:
            # The images themselves are small: the first part's wide tensors are after the stem.
            strides = model.plan.stem_strides if part[0] == "stem" else 1
            most = CHUNK_PIXELS * strides**2 // (x.shape[1] * x.shape[2])
            x = _map_chunks(functools.partial(forward, variables, part=part), x, most)
        return x

    return in_chunks if resolve_form(model.conv_form) == "shifted" else forward


def _map_chunks(run: Callable[[jax.Array], jax.Array], x: jax.Array, most: int) -> jax.Array:
    """`run(x)`, on at most `most` elements of the batch at a time if that divides it well."""
    size = largest_divisor(len(x), most)
    if size == len(x) or 2 * size < most:  # an odd batch cannot be divided well
        return run(x)

    def run_pair(x: jax.Array) -> jax.Array:
        return jnp.concatenate([run(half) for half in jnp.split(x, 2)])

    paired = size <= PAIRED and len(x) % (2 * size) == 0
    chunks = x.reshape(-1, 2 * size if paired else size, *x.shape[1:])
    y = jax.lax.map(run_pair if paired else run, chunks)
    return y.reshape(len(x), *y.shape[2:])


def build_eval_step(
    model: Network,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    lanes: bool = False,
) -> Callable[..., Any]:
    """The evaluation step, mapped over all devices; with lanes, for several runs at once."""
    step = steps.make_eval_step(build_forward(model, mean, std), num_classes=model.num_classes)
    return steps.map_eval_step(step, lanes=lanes)


def build_optimizer(config: Config, frozen: Sequence[str] = ()) -> Any:
    """The optimiser of `config.optimizer`; `frozen` modules keep their parameters."""
    optimizer = config.optimizer
    made = optim.make_optimizer(
        optimizer.name,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        decay=optimizer.decay,
        epsilon=optimizer.epsilon,
        clip_norm=optimizer.clip_norm,
        decay_depthwise=optimizer.decay_depthwise,
        frozen=frozen,
    )
    if not config_lib.is_pruned(config):
        return made
    settings = config.compress.pruning
    return pruning.prune(
        made,
        pruning.Selection(*config_lib.pruning_selection(config)),
        method=settings.method,
        together=settings.distribution == "global",
        rewinds=settings.rewind_epoch is not None,
    )


def build_pruning(
    config: Config, params: Any, steps_per_epoch: float, total_steps: int
) -> pruning.Numbers:
    """The numbers of every update of a pruned run.

    Args:
      config: complete configuration.
      params: the network's parameters, or their shapes.
      steps_per_epoch, total_steps: of the run.

    Raises:
      ConfigError: the rules do not fit the network.
    """
    settings = config.compress.pruning
    rules, pattern = config_lib.pruning_selection(config)
    last = total_steps - 1  # the last update; if pruning ends with training, it ends here

    def at(epoch: float) -> int:
        return min(round(epoch * steps_per_epoch), last)

    schedule = pruning_rules.Schedule(
        kind=settings.schedule,
        start=at(settings.start_epoch),
        end=at(settings.end_epoch),
        every=settings.every_steps,
        final=settings.sparsity,
        initial=settings.initial_sparsity,
        regrows=settings.method in pruning_rules.REGROWING,
        drop=settings.drop_fraction,
        rewind=None if settings.rewind_epoch is None else at(settings.rewind_epoch),
    )
    if schedule.rewind is not None and schedule.rewind >= schedule.start:
        raise ConfigError(
            f"compress.pruning.rewind_epoch is {settings.rewind_epoch}, which is not before the "
            f"step of start_epoch ({settings.start_epoch}); it must be an earlier step."
        )
    try:
        tensors = pruning.Selection(rules, pattern)(params)
    except pruning_rules.RuleError as error:
        raise ConfigError(f"compress.pruning: {error}.") from error
    return pruning.Numbers(
        tensors, schedule, settings.distribution, pattern, active=settings.method != "zeros"
    )


def build_schedule(config: Config, steps_per_epoch: float, total_steps: int) -> optim.Schedule:
    """The learning rate of each step; epochs become steps, and the batch size scales the rate."""
    schedule = config.schedule
    return optim.make_schedule(
        schedule.name,
        peak=config.optimizer.learning_rate * config.train.global_batch_size / 256,
        total_steps=total_steps,
        warmup_steps=round(schedule.warmup_epochs * steps_per_epoch),
        final_fraction=schedule.final_fraction,
        decay_rate=schedule.decay_rate,
        decay_steps=max(1.0, round(schedule.decay_epochs * steps_per_epoch)),
        staircase=schedule.staircase,
        boundaries=[epoch * steps_per_epoch for epoch in schedule.boundary_epochs],
    )


def build_learning_rate(
    config: Config, steps_per_epoch: float, total_steps: int, prune: pruning.Numbers | None
) -> optim.Schedule:
    """The learning rate of each step; if pruning rewinds, it goes back with the weights."""
    if prune is None or prune.schedule.rewind is None:
        return build_schedule(config, steps_per_epoch, total_steps)
    effective = prune.schedule.effective
    schedule = build_schedule(config, steps_per_epoch, effective(total_steps))
    return lambda step: schedule(effective(step))


def pruning_findings(config: Config, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a pruned run's summary about its evaluated variables."""
    selection = pruning.Selection(*config_lib.pruning_selection(config))
    return {"sparsity": pruning.report(variables["params"], selection)}


# Numbers that are arguments of the compiled step, or that only the host reads. Runs that only
# differ in these share their step, and can be lanes of one program.
ARGUMENTS = (
    "seed",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "train.label_smoothing",
    "train.ema_decay",
    "finetune.backbone_rate",
    *(f"quantize.{key}" for key in config_lib.PREPARATION),
    "quantize.batch_norm_epochs",
    "quantize.rules",
    *(f"compress.pruning.{key}" for key in config_lib.PRUNING_NUMBERS),
    *(f"compress.distillation.{key}" for key in config_lib.DISTILLATION_NUMBERS),
    "schedule.",
)
# Numbers of ARGUMENTS that still affect the program in part: whether there is an average, whether
# and where anything is rounded, and the kind of its range (`_normalized`).
_PARTLY = ("train.ema_decay", "quantize.")
# Keys that only the host reads. Programs do not depend on them, except through the statistics and
# classes of the data, which they get as arguments. All other keys belong to the program, so that a
# new key is never ignored by a step that was compiled without it.
HOST_KEYS = (
    "pretrained",
    *("data.name", "data.data_dir", "data.train_split", "data.test_split"),
    *("data.validation_split", "data.validation_fraction", "data.test_fraction"),
    *("data.train_examples", "data.crop_fraction", "data.normalization", "data.in_memory"),
    *("data.num_workers", "data.prefetch_batches", "data.on_error"),
    *("train.global_batch_size", "train.num_epochs", "train.best_by", "train.patience"),
    "compress.distillation.teacher",  # its weights are an argument, its network is passed apart
    *("eval.", "checkpoint.", "log."),
)
# Further sections and keys that do not affect initial variables, which are of the float network.
_TRAINING_KEYS = (
    *("seed", "finetune.", "quantize.", "compress.", "augment.", "train.", "optimizer."),
    "schedule.",
)


def _normalized(config: Config) -> Config:
    """A copy in which ARGUMENTS have fixed values, equal for all runs that share a program."""
    config = config.copy_and_resolve_references()
    default = dict(config_lib.flatten(config_lib.get_config()))
    config_lib.normalize_quantization(config)
    if config_lib.is_pruned(config):
        config_lib.normalize_pruning(config)
    config.train.ema_decay = 0.5 if config.train.ema_decay else 0.0
    fixed = [key for key in default if key.startswith(ARGUMENTS) and not key.startswith(_PARTLY)]
    config.update_from_flattened_dict({key: default[key] for key in fixed})
    return config


def lane_key(config: Config) -> str:
    """A hash that is equal for configurations whose runs can be lanes of one program."""
    return config_lib.fingerprint(_normalized(config))


def _step_config(config: Config) -> str:
    """The keys of a configuration on which the compiled steps depend, as JSON."""
    return _reduced(_normalized(config), without=HOST_KEYS)


def program_key(
    config: Config, data: Data, num_classes: int, taught: teacher.Teacher | None
) -> str:
    """A hash that is equal for runs whose train step is one program, on one kind of device."""
    parts = (_step_config(config), config.train.global_batch_size, num_classes)
    told = (data.mean, data.std, taught.description if taught else None)
    return hashlib.sha256(repr((*parts, *told)).encode()).hexdigest()[:16]


def _make_steps(
    reduced: str,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    streamed: bool,
    lanes: bool,
    teaching: str | None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    config = config_lib.from_json(reduced)
    model = architecture.build_model(config, num_classes, devices=jax.device_count())
    augment = build_augment(config, mean, std, streamed=streamed)
    guide = teacher.make_guide(teaching, config, model, mean, std) if teaching else None
    return (
        build_train_step(config, model, augment, lanes=lanes, guide=guide),
        build_eval_step(model, mean, std, lanes=lanes),
    )


def build_steps(
    config: Config,
    data: Data,
    num_classes: int,
    shared: Shared,
    taught: teacher.Teacher | None,
    *,
    lanes: bool = False,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The training and the evaluation step of a run, for `Parts`; compiled ones are shared.

    A teacher's variables are an argument of the compiled step, which is bound here. They are not
    constants of its program and not a part of the state.
    """
    # Without training nothing is augmented, and the train part need not be decoded.
    streamed = config.train.num_epochs > 0 and not isinstance(data.load("train"), memory.Arrays)
    train_step, eval_step = shared.steps(
        _step_config(config),
        num_classes,
        data.mean,
        data.std,
        streamed,
        lanes,
        taught.description if taught else None,
    )
    if taught is None:
        return train_step, eval_step
    return lambda *args: train_step(*args, taught.variables), eval_step


def _make_initializer(reduced: str, num_classes: int) -> Callable[[jax.Array], Any]:
    config = config_lib.from_json(reduced)
    model = architecture.build_model(config, num_classes)
    image = jax.ShapeDtypeStruct((1, *architecture.image_shape(config)), jnp.float32)
    return jax.jit(lambda key: model.lazy_init(key, image))


def init_variables(
    config: Config, num_classes: int, shared: Shared | None = None
) -> dict[str, Any]:
    """Initial variables from the run's seed, the same on every process and backend."""
    reduced = _reduced(config, without=(*HOST_KEYS, *_TRAINING_KEYS))
    init = (shared or Shared()).initializer(reduced, num_classes)
    return init(jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM))


def load_pretrained(
    config: Config, data: Data, num_classes: int, shared: Shared | None = None
) -> transfer.Pretrained:
    """The float variables that a run starts from, from the weights that `config.pretrained` names.

    Raises:
      ConfigError, CheckpointError: the weights do not fit, or cannot be trained as configured.
    """
    names = data.class_names
    found = transfer.start_from(
        Path(config.pretrained),
        jax.device_get(init_variables(config, num_classes, shared)),
        (*names, *(f"class {i}" for i in range(len(names), num_classes))),
        _read_pretrained(config)["class_names"],
    )
    normalises = config.train.num_epochs and config.finetune.batch_norm == "adapt"
    if normalises and is_folded(found.variables, config.model.bn_epsilon):
        raise ConfigError(
            f"The weights in pretrained={config.pretrained!r} have their batch normalisation "
            "folded in, and training with a batch's statistics would lose it; start from the "
            "weights that they were made from, or set finetune.batch_norm='frozen'."
        )
    return found


def init_state(
    config: Config,
    num_classes: int,
    shared: Shared | None = None,
    variables: Mapping[str, Any] | None = None,
) -> state.TrainState:
    """The training state at step 0, from `variables` or from initial ones."""
    if variables is None:
        variables = init_variables(config, num_classes, shared)
    variables = jax.tree.map(jnp.asarray, variables)
    return state.create(variables, build_optimizer(config), ema=config.train.ema_decay > 0)


def state_structure(config: Config, num_classes: int) -> state.TrainState:
    """Shapes and dtypes of a run's state, which its checkpoints hold."""
    model = architecture.build_model(config, num_classes)
    image = jax.ShapeDtypeStruct((1, *architecture.image_shape(config)), jnp.float32)

    def create(key: jax.Array, image: jax.Array) -> state.TrainState:
        variables = model.init(key, image)
        return state.create(variables, build_optimizer(config), ema=config.train.ema_decay > 0)

    return jax.eval_shape(create, jax.random.key(0), image)


def parameter_shapes(config: Config, num_classes: int) -> Any:
    """Shapes and dtypes of the network's parameters."""
    model = architecture.build_model(config, num_classes)
    image = jax.ShapeDtypeStruct((1, *architecture.image_shape(config)), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def check_rules(config: Config, num_classes: int) -> None:
    """Refuses quantisation that does not fit the network, before anything is compiled.

    Raises:
      ConfigError: a rule applies to no site, or is not allowed at a site, or other settings are
        not possible.
    """
    network: Any = architecture.build_model(config, num_classes)
    quant = state_structure(config, num_classes).quant
    try:
        ptq.check(network, config_lib.quantization_rules(config), _settings(config, 0.0), quant)
    except RuleError as error:
        raise ConfigError(f"quantize: {error}.") from error


def _settings(config: Config, steps_per_epoch: float) -> ptq.Settings:
    quantize = config.quantize

    def passes(epochs: float) -> float:
        # Each part of a batch is a pass.
        steps = epochs * steps_per_epoch
        return round(steps * config.train.accumulation_steps) if epochs else math.inf

    return ptq.Settings(
        fold=quantize.fold and not config.train.num_epochs,
        equalize=quantize.equalize,
        absorb=quantize.absorb_bias,
        correct=quantize.correct_bias,
        adaround_steps=quantize.adaround_steps,
        percentile=quantize.percentile,
        seed=config.seed,
        observe_passes=passes(quantize.observe_epochs),
        batch_norm_passes=passes(quantize.batch_norm_epochs),
    )


def quantize_variables(
    config: Config, data: Data, num_classes: int, variables: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantises float variables according to `config.quantize` (`mobilenet.quantize.ptq.prepare`).

    Raises:
      ConfigError: rules or images do not fit.
    """
    steps_per_epoch, _ = count_steps(config, len(data.dataset.splits["train"]))
    prepare = jax.jit(preprocess(data.mean, data.std))

    def batches() -> Iterator[np.ndarray]:
        for images in data.calibration_batches(config.quantize.calibration_examples):
            yield np.asarray(prepare(images))

    return quantize_by_pictures(config, num_classes, variables, batches, steps_per_epoch)


def quantize_by_pictures(
    config: Config,
    num_classes: int,
    variables: Any,
    batches: Callable[[], Iterable[np.ndarray]],
    steps_per_epoch: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`quantize_variables` with normalised images [B, H, W, C], which each `batches()` yields."""
    network = architecture.build_model(config, num_classes)
    if not config.pretrained:
        variables = _settle(config, num_classes, variables, batches)
    try:
        return ptq.prepare(
            network,  # pyright: ignore[reportArgumentType]
            config_lib.quantization_rules(config),
            jax.device_get(variables),
            batches,
            architecture.image_shape(config),
            _settings(config, steps_per_epoch),
        )
    except RuleError as error:
        raise ConfigError(f"quantize: {error}.") from error
    except CalibrationError as error:
        raise ConfigError(str(error)) from error


def _settle(
    config: Config, num_classes: int, variables: Any, batches: Callable[[], Iterable[np.ndarray]]
) -> dict[str, Any]:
    """Initial variables whose normalisation has the statistics of images.

    Ranges are determined with running statistics. In a network that was never trained these are 0
    and 1, with which activations shrink from layer to layer. Training normalises by its batches, so
    such ranges would clip almost everything.
    """
    learner = architecture.build_float(config, num_classes)
    learner = learner.clone(bn_momentum=0.0, dropout_rate=0.0)

    @jax.jit
    def run(variables: Any, images: Any) -> Any:
        return learner.apply(variables, images, True, mutable=["batch_stats"])[1]["batch_stats"]

    side = -(-config.data.image_size // config_lib.total_stride(config.model))
    # One value per channel has no variance, and the last batch may be a single image.
    enough = (images for images in batches() if len(images) * side**2 > 1)
    found = [jax.device_get(run(variables, images)) for images in enough]
    if not found:
        return variables  # calibration reports what is missing
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float32), *found)
    return {**variables, "batch_stats": mean}


def build(config: Config, workdir: Path, *, shared: Shared | None = None) -> Parts:
    """Starts a run, or continues the one in a directory: its files and its parts.

    Every run starts here, whatever starts it. Settings that belong to the weights in `pretrained`
    are copied into `config`. config.json and identity.json are written, or compared with those of
    the existing run. A run with a checkpoint does not need these weights, and if it has no steps
    left to train, it does not need its teacher.

    Args:
      config: complete configuration; completed in place.
      workdir: the run directory, created if absent; the caller holds its lock.
      shared: of the runs in this process; None shares nothing.

    Raises:
      ConfigError, DatasetError: the run is not possible; raised before anything is compiled. A run
        that cannot start leaves no files.
    """
    shared = shared or Shared()
    is_main = jax.process_index() == 0
    files = [workdir / name for name in ("config.json", identity.IDENTITY_FILE, DATA_FILE)]
    made = [path for path in files if is_main and not path.exists()]
    try:
        rundir.inherit(config, workdir)
        config_lib.validate(config, devices=jax.device_count(), processes=jax.process_count())
        check_writers(config)
        if is_main:
            workdir.mkdir(parents=True, exist_ok=True)
        identity.begin(workdir, config, write=is_main)
        return _build(config, workdir, shared)
    except Exception:
        # The corrected command must not find these files.
        for path in made:
            path.unlink(missing_ok=True)
        raise


def check_writers(config: Config) -> None:
    """ConfigError if the package of one of `log.writers` is not installed."""
    missing = writers.missing_package(config.log.writers)
    if missing:
        raise ConfigError(
            f"log.writers is {config.log.writers!r}, but {missing} is not installed; "
            f"{writers.EXTRAS[missing]} in the checkout brings it, or leave it out of "
            "--config.log.writers."
        )


@dataclasses.dataclass(frozen=True)
class _Past:
    """The state of the run in a directory.

    Attributes:
      step: of its newest checkpoint; None if it has none.
      done: whether it has ended, by its last step or by patience.
      facts: entries of its summary about the runs that it started from.
    """

    step: int | None
    done: bool
    facts: Mapping[str, Any]

    def trains(self, total_steps: int) -> bool:
        """Whether there are steps left to train."""
        return self.step is None or (self.step < total_steps and not self.done)


def _past(workdir: Path) -> _Past:
    steps = Checkpoints(workdir / "checkpoints", read_only=True).steps()
    if not steps:
        return _Past(None, False, {})
    summary = records.read_summary(workdir)
    done = summary.get("status") == "done" and summary.get("step") == steps[-1]
    facts = {name: summary[name] for name in ("pretrained", "teacher") if name in summary}
    return _Past(steps[-1], done, facts)


def _build(config: Config, workdir: Path, shared: Shared) -> Parts:
    if not config.train.num_epochs and jax.process_index() == 0:
        _keep_classes(workdir, Path(config.pretrained))
    untrained = not config.train.num_epochs
    data = build_data(
        config,
        workdir,
        shared,
        match_classes=untrained,
        optional=untrained and bool(config.quantize.calibration_dir),
    )
    check_examples(config, data.dataset, workdir)
    check_data(config, data.dataset)
    num_classes = resolve_classes(config, len(data.class_names))
    if config_lib.is_quantized(config):
        check_rules(config, num_classes)
    examples = len(data.dataset.splits["train"])
    steps_per_epoch, total_steps = count_steps(config, examples)
    prune = None
    if config_lib.is_pruned(config):
        params = parameter_shapes(config, num_classes)
        prune = build_pruning(config, params, steps_per_epoch, total_steps)
    learning_rate = build_learning_rate(config, steps_per_epoch, total_steps, prune)
    past = _past(workdir)
    taught = shared.teacher(config, data, num_classes) if past.trains(total_steps) else None
    train_step, eval_step = build_steps(config, data, num_classes, shared, taught)
    pretrained = None
    if config.pretrained and past.step is None:
        pretrained = load_pretrained(config, data, num_classes, shared)

    def init() -> state.TrainState:
        variables = pretrained.variables if pretrained else None
        if config_lib.is_quantized(config):
            variables = variables or init_variables(config, num_classes, shared)
            variables, facts = quantize_variables(config, data, num_classes, variables)
            if jax.process_index() == 0:
                facts |= dataclasses.asdict(precision.sizes(variables))
                rundir.write_json(workdir / QUANTIZATION_FILE, facts)
        return init_state(config, num_classes, shared, variables)

    costs = cost.totals(architecture.layer_costs(config, num_classes))
    every = config.eval.every_epochs
    return Parts(
        init=init,
        structure=lambda: state_structure(config, num_classes),
        train_step=train_step,
        eval_step=eval_step,
        train_batches=data.train_batches,
        eval_batches=data.eval_batches,
        hyper=lambda step: {
            **hyperparameters(config, learning_rate(step)),
            **(prune(step) if prune else {}),
        },
        batch_size=config.train.global_batch_size,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        eval_every_steps=max(1, math.floor(every * steps_per_epoch + 0.5)) if every else 0,
        checkpoint_every_steps=config.checkpoint.every_steps,
        keep_newest=config.checkpoint.keep_newest,
        keep_best=config.checkpoint.keep_best,
        best_by=config.train.best_by,
        patience=config.train.patience,
        log_every_steps=config.log.every_steps,
        writers=config_lib.log_writers(config),
        num_classes=num_classes,
        splits=data.splits,
        program=program_key(config, data, num_classes, taught),
        findings=functools.partial(pruning_findings, config) if prune else None,
        facts=(
            {
                "num_classes": num_classes,
                "params": costs.params,
                "macs": costs.macs,
                "examples": {name: len(source) for name, source in data.dataset.splits.items()},
                **({"left_out": left_out} if (left_out := dict(data.dataset.left_out)) else {}),
                "seed": config.seed,
                **past.facts,
                **({"pretrained": pretrained.facts} if pretrained else {}),
                **({"teacher": taught.facts} if taught else {}),
            },
        ),
    )


def check_data(config: Config, dataset: datasets.Dataset) -> None:
    """Raises ConfigError if the configuration cannot train on its opened data set."""
    if config.model.num_classes == 0:
        raise ConfigError(
            "model.num_classes is 0 (feature extractor), which has no loss to train; leave it out "
            "(None) to use the data set's classes."
        )
    if config.train.num_epochs:
        resolve_classes(config, dataset.num_classes)
    examples, batch_size = len(dataset.splits["train"]), config.train.global_batch_size
    if batch_size > examples and config.train.num_epochs:
        raise ConfigError(
            f"train.global_batch_size is {batch_size}, but the train part of {config.data.name} "
            f"has {examples} examples; it must be at most that."
        )
    if config.train.patience and not len(dataset.splits["validation"]):
        raise ConfigError(
            f"train.patience is {config.train.patience}, but there is no validation split to "
            "measure; set data.validation_fraction or data.validation_split."
        )


def check_teacher(config: Config, dataset: datasets.Dataset) -> None:
    """Raises ConfigError if the teacher is not a run, or does not fit the student's data."""
    directory = config.compress.distillation.teacher
    if directory:
        num_classes = resolve_classes(config, dataset.num_classes)
        path = Path(directory)
        teacher.check(path, read_stored(path), config, dataset.class_names, num_classes)


def require_no_patience(config: Config) -> None:
    """Raises ConfigError if a run ends at its own step, because such a run cannot be a lane."""
    if config.train.patience:
        raise ConfigError(
            "train.patience ends each run at its own step, which is not possible for lanes; train "
            "with one lane, or without patience."
        )


def _keep_classes(workdir: Path, pretrained: Path) -> None:
    """Stores the classes of `pretrained`: without training, a classifier keeps its classes."""
    stored = read_stored(pretrained)
    if stored is not None and read_stored(workdir) is None:
        stored.pop("examples", None)  # those are the images that trained the weights
        rundir.write_json(workdir / DATA_FILE, stored)


def count_steps(config: Config, examples: int) -> tuple[float, int]:
    """(steps per epoch, steps of the run) with `examples` in the train part."""
    steps_per_epoch = max(1, examples) / config.train.global_batch_size
    total = config.train.num_epochs * steps_per_epoch
    return steps_per_epoch, max(1, round(total)) if total else 0


def build_lanes(
    configs: Sequence[Config], workdirs: Sequence[Path], *, shared: Shared | None = None
) -> Parts:
    """The parts of several runs of the same shape that one program trains together.

    Args:
      configs: complete configurations that only differ in ARGUMENTS, such as seeds.
      workdirs: their run directories.
      shared: of the runs in this process; None shares nothing.

    Raises:
      ConfigError: as `build`, or the configurations have different shapes.
    """
    shared = shared or Shared()
    differing = {
        key
        for config in configs[1:]
        for key in config_lib.differences(_normalized(configs[0]), _normalized(config))
    }
    if differing:
        raise ConfigError(
            f"Lanes differ in {', '.join(sorted(differing))}; runs of one program may only differ "
            f"in {', '.join(ARGUMENTS)} (train.ema_decay and quantisation must be on in all or in "
            "none, and quantize.rules may differ in bits and estimators)."
        )
    for config in configs:
        require_no_patience(config)
    runs = [build(c, w, shared=shared) for c, w in zip(configs, workdirs, strict=True)]
    first, data = runs[0], build_data(configs[0], workdirs[0], shared)
    left = any(_past(workdir).trains(first.total_steps) for workdir in workdirs)
    taught = shared.teacher(configs[0], data, first.num_classes) if left else None
    train_step, eval_step = build_steps(
        configs[0], data, first.num_classes, shared, taught, lanes=True
    )

    def stack(*leaves: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf) for leaf in leaves])

    def batches(start_step: int, num_steps: int) -> Batches:
        return Together([run.train_batches(start_step, num_steps) for run in runs])

    return dataclasses.replace(
        first,
        init=lambda: jax.tree.map(stack, *(run.init() for run in runs)),
        train_step=train_step,
        eval_step=eval_step,
        train_batches=batches,
        hyper=lambda step: jax.tree.map(stack, *(run.hyper(step) for run in runs)),
        facts=tuple({**run.facts[0], "lanes": len(runs)} for run in runs),
        lanes=len(runs),
    )


def count_classes(config: Config) -> int:
    """The classifier's width for a cost table.

    Raises:
      ConfigError: it depends on the data set, which cannot be opened.
    """
    try:
        return resolve_classes(config)
    except datasets.DatasetError as error:
        raise ConfigError(
            f"model.num_classes follows the data set, which cannot be opened: {error} If you only "
            "need costs, give --config.model.num_classes=1000."
        ) from error
