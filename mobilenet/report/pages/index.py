"""The index of experiments/results: subjects, how a number gets there, columns, figures."""

from collections.abc import Mapping
from pathlib import Path

from mobilenet.report.pages import blocks
from mobilenet.report.pages.blocks import Page

# What stands in the CSV alone.
COLUMNS = {
    "overrides": "what the command line and the variant changed in the configuration",
    "seeds": "of the runs that a row is the mean of",
    "commit": "of this repository, when the runs were made",
    "versions": "of the packages that compute",
    "device, processor": "what computed; results of other processors differ by rounding",
    "*_bytes, bytes, weight_bytes": "size of a file, or of its weights",
    "seconds_mean": "wall time of a run, mean over seeds",
    "peak_mb, temp_mb": "memory of the process, and of one compiled step",
    "first_step_seconds": "time of the first step, with compilation",
    "logs": "folder with the configuration, summary and metrics of each run",
    "remarks": "what a reader must know next to the numbers; pages show them as well",
}
# Start of a figure's name -> what it belongs to.
GROUPS = {
    "01_": "Notebook 01, quick start",
    "02_": "Notebook 02, cost",
    "03_": "Notebook 03, ablations",
    "04_": "Notebook 04, compression",
    "05_": "Notebook 05, quantisation",
    "06_": "Notebook 06, transfer",
    "": "Pages and README",
}
CAPTIONS = {
    "01_confusion_matrix": "which digits are taken for which",
    "01_feature_maps": "feature maps of one image, stage by stage",
    "01_learning_curve": "accuracy over the epochs",
    "01_mistakes": "the test images with the largest loss",
    "02_figure5": "published accuracy against exact MACs (Fig. 5 of the paper)",
    "02_mac_shares": "which layers the MACs are in",
    "02_tensor_sizes": "size of each tensor, and where memory peaks",
    "03_bottleneck": "linear bottleneck or ReLU6",
    "03_bottleneck_loss": "the same, training loss",
    "03_differences": "differences of all claims, with intervals",
    "03_expansion": "expansion ratios",
    "03_expansion_loss": "the same, training loss",
    "03_expansion_macs": "expansion ratios against MACs",
    "03_shortcut": "shortcuts between bottlenecks, expansions, or none",
    "03_shortcut_loss": "the same, training loss",
    "03_squeeze_excite": "squeeze-and-excitation or none",
    "03_squeeze_excite_loss": "the same, training loss",
    "overview": "the way of a network through the project's commands",
    "04_above": "published methods, points above uniform widths",
    "04_bytes": "published accuracy against bytes",
    "04_macs": "published accuracy against MACs",
    "04_verdicts": "our differences, with intervals",
    "05_bits": "published loss of accuracy by bits",
    "05_cifar": "our CIFAR-10 network by bits and method",
    "05_equalization": "published repairs of one scale per tensor",
    "05_imagenet": "ImageNet weights at 8 bits, by grid and remedy",
    "05_networks": "loss at 4 bits by network",
    "05_per_channel": "published gain of one scale per channel",
    "06_accuracy": "fine-tuned, linear probe, from scratch",
    "06_confusion_matrix": "which classes are taken for which",
    "06_differences": "differences of the three, with intervals",
    "06_mistakes": "the test images with the largest loss",
    "06_training": "training loss of the three",
    "benchmark": "time of a step against batch and MACs, and ratios to other implementations",
    "comparison_cifar": "accuracy of networks against MACs and latency",
    "compression_cifar": "accuracy of dense and compressed networks against their cost",
    "inverted_residual": "the block: expand, depthwise, project",
    "sensitivity_activations_cifar": "what is lost when the activations of one layer have few bits",
    "sensitivity_weights_cifar": "what is lost when the weights of one layer have few bits",
}


def text(directory: Path, pages: Mapping[str, Page]) -> str:
    """The index in Markdown.

    Args:
      directory: experiments/results.
      pages: subject -> page, in the order of the index.
    """
    parts = [
        "# Results",
        "<!-- Written by `mobilenet report` from the rows next to it; do not edit. -->",
        blocks.paragraph(
            "One page for each subject. Each page opens with its question, the network that it "
            "starts from, the comparisons that were registered, and the conclusion with its "
            "interval. All numbers and sentences are computed from the CSV files in this folder."
        ),
        "## Subjects",
    ]
    for name, page in pages.items():
        title = page.title.partition(":")[0]
        parts += [
            f"### [{title}]({name}.md)",
            blocks.paragraph(f"{page.question}"),
            blocks.paragraph(f"*{page.conclusion[0]}*"),
        ]
        if page.caution:
            parts.append(
                blocks.quote(f"Rests on networks that have not learnt: {blocks.PIPELINE}.")
            )
    parts += [_way(), _columns(directory), _gallery(directory)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _way() -> str:
    steps = (
        "`mobilenet train`, `sweep`, `reproduce`, `compare`, `benchmark` or `export` leaves a "
        "directory of runs.",
        "`mobilenet report SUBJECT RUNS --row=NAME --config=FILE` copies the logs of the runs to "
        "`logs/`, makes a row from them and puts it into the CSV, in place of rows of its name. "
        "`mobilenet report SUBJECT --help` lists what a subject needs.",
        "`mobilenet report` writes the pages, this index and the table of the README again.",
        "The tests make each row again from its logs and each page from its rows, so that nothing "
        "is typed in by hand.",
    )
    numbered = "\n".join(
        blocks.wrap(step, f"{number}. ", "   ") for number, step in enumerate(steps, 1)
    )
    return f"## How a number gets here\n\n{numbered}"


def _columns(directory: Path) -> str:
    lines = [f"| {name} | {meaning} |" for name, meaning in COLUMNS.items()]
    files = ", ".join(f"[{path.name}]({path.name})" for path in sorted(directory.glob("*.csv")))
    head = "## Columns that stand in the CSV alone\n\n| column | meaning |\n|---|---|\n"
    return head + "\n".join(lines) + "\n\n" + blocks.paragraph(f"The files: {files}.")


def _gallery(directory: Path) -> str:
    """Links to all figures, by the notebook that draws them."""
    left = [path.name for path in sorted((directory / "figures").glob("*.svg"))]
    parts = []
    for start, heading in GROUPS.items():
        mine = [name for name in left if name.startswith(start)]
        left = [name for name in left if name not in mine]
        links = []
        for name in mine:
            stem = name.removesuffix(".svg")
            caption = CAPTIONS.get(stem, stem.replace("_", " "))
            links.append(f"[{stem}](figures/{name}): {caption}.")
        if links:
            parts.append(f"**{heading}**\n\n{blocks.bullets(links)}")
    return "\n\n".join(["## Figures", *parts]) if parts else ""
