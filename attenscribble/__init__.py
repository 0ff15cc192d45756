"""Segment medical images from a few scribbles.

Train on a folder of your own scans and scribbles, and segment new scans. `check` says what is wrong with the folder,
`train` returns a run with its table, its network and its folder, and `predict` writes a mask for every scan:

    >>> from attenscribble import check, predict, train
    >>> check("my-scans").problems
    []
    >>> outcome = train("my-scans", iterations=12)  # a first try; without iterations it takes minutes
    >>> print(outcome.report())
    my-scans-ours-fold1-seed2022-...
    >>> [mask.name for mask in predict(outcome.folder, "new-scans", "masks")]
    ['heart.nii.gz']

`train` also takes the name of a dataset. The phantom is drawn by a formula, so there is nothing to download:

    >>> outcome = train("phantom", method="pce", iterations=12)
    >>> outcome.summary().index.to_list()
    ['RV', 'Myo', 'LV', 'Avg']

Every setting of a run is a keyword of `train`, and a field of `Config`, which fills in and checks the rest. The command
`attenscribble settings` lists them. `open_dataset` gives the scans themselves:

    >>> from attenscribble import Config, open_dataset
    >>> Config(method="pce", lam_seg=0.5).differences()["lam_seg"]
    0.5
    >>> open_dataset("phantom").class_names
    ('background', 'RV', 'Myo', 'LV')

The losses work alone, in any PyTorch training. `partial_cross_entropy` learns from the annotated pixels only, and
`masked_crf_loss` asks pixels that look alike for the same class. `UNet2d` may be any network of yours:

    >>> import torch
    >>> from attenscribble import UNet2d, masked_crf_loss, partial_cross_entropy
    >>> image, scribble = torch.rand(2, 1, 64, 64), torch.full((2, 64, 64), 4)  # 4: not annotated
    >>> scribble[:, 30:32, 20:40] = 1
    >>> model = UNet2d(in_channels=1, classes=4)
    >>> logits = model(image)
    >>> loss = partial_cross_entropy(logits, scribble, ignore=4)
    >>> loss = loss + 0.1 * masked_crf_loss(logits.softmax(1), image, unlabelled=(scribble == 4)[:, None])
    >>> loss.backward()

`attach` puts spatial self-attention on a layer of a network, and `attentive_similarity_loss` asks places that the
attention finds alike for the same class:

    >>> from attenscribble import attach, attentive_similarity_loss
    >>> attention = attach(model, "encoder.2").attention
    >>> probs = model(image).softmax(1)
    >>> attentive_similarity_loss(probs, attention.query, attention.key, attention.similarity.weight,
    ...                           attention.similarity.bias, radius=2, sigma_xy=3.0).backward()

In a notebook, `Annotator` shows a scan to draw on and trains on the strokes:

    >>> from attenscribble import Annotator
    >>> annotator = Annotator("scan.nii.gz", classes=["background", "heart"])

Nothing is loaded before it is used: `import attenscribble` takes no longer than Python itself.
"""

__version__ = "0.2.0"

TYPE_CHECKING = False  # type checkers take it for true; importing typing would take longer than all of this
if TYPE_CHECKING:
    from .annotation.annotator import Annotator
    from .data.check import check
    from .data.datasets import open_dataset
    from .entry.front_door import predict, train
    from .method.asl import attentive_similarity_loss
    from .method.mcrf import masked_crf_loss
    from .method.network import UNet2d
    from .method.pce import partial_cross_entropy
    from .method.ssa import attach
    from .runs.config import Config

__all__ = [
    "Annotator",
    "Config",
    "UNet2d",
    "attach",
    "attentive_similarity_loss",
    "check",
    "masked_crf_loss",
    "open_dataset",
    "partial_cross_entropy",
    "predict",
    "train",
]

_HOMES = {
    "Annotator": "annotation.annotator",
    "Config": "runs.config",
    "UNet2d": "method.network",
    "attach": "method.ssa",
    "attentive_similarity_loss": "method.asl",
    "check": "data.check",
    "masked_crf_loss": "method.mcrf",
    "open_dataset": "data.datasets",
    "partial_cross_entropy": "method.pce",
    "predict": "entry.front_door",
    "train": "entry.front_door",
}

if not TYPE_CHECKING:  # or type checkers would believe in every name

    def __getattr__(name):
        "Load a public name on first use. Raises AttributeError with the nearest name for one that is not there."
        from importlib import import_module

        if name not in _HOMES:
            from .basics.errors import did_you_mean

            # with a name and without an object, Python adds no second suggestion of its own
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}", name=name)
        found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return found


def __dir__() -> list[str]:
    "All names, those too that are not loaded yet."
    return sorted({*globals(), *__all__})
