"""`qat.hf.*`: transformers and the Hugging Face Hub."""

from __future__ import annotations

try:
    import huggingface_hub
    import transformers
except ImportError as error:
    raise ImportError(f"qat.hf needs {error.name}: pip install 'qat-lightning[hf]'.") from error

from qat.hf.compressed_tensors import save_compressed_tensors
from qat.hf.pretrained import from_pretrained, push_to_hub, save_pretrained
from qat.hf.trainer_callback import QuantizationAwareTraining

__all__ = ["QuantizationAwareTraining", "from_pretrained", "push_to_hub", "save_compressed_tensors", "save_pretrained"]

del huggingface_hub, transformers
