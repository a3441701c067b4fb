"""How models and data are written on the command line. Read by `--help`: it imports nothing."""

MODELS = (
    "torchvision:NAME",
    "timm:NAME",
    "hf:FOLDER-OR-ID",
    "file.py:function",
    "a checkpoint of quantization-aware training (.ckpt)",
    "weights (.safetensors, .ckpt, .pt) with --architecture",
    "a program of torch.export (.pt2)",
    "an .onnx file",
)
"""The kinds of models."""
DATA = (
    "a folder of images",
    "digits",
    "mnist",
    "cifar10",
    "arrays.npz",
    "file.py:function (which yields batches)",
    "random (noise, to try the tool)",
)
"""The kinds of data."""
_OPTIONS = "Options of a library's network follow with commas: torchvision:resnet18,num_classes=10"
MODEL_HELP = f"{'; '.join(MODELS)}. {_OPTIONS}"
NETWORK_HELP = f"{'; '.join(MODELS[:-1])}. {_OPTIONS}"
DATA_HELP = "; ".join(DATA)
