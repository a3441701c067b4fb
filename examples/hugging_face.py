"""A transformers model: trained in 8 bits, saved packed, loaded again bit for bit, and written as a verified ONNX file.

The model is built from its configuration, nothing is downloaded. Needs transformers: pip install 'qat-lightning[hf]'

python examples/hugging_face.py
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import qat


def sentences(n: int) -> dict[str, Tensor]:
    """Sequences of 12 tokens of 64. The label says whether more than half of them are below 32."""
    tokens = torch.randint(1, 64, (n, 12))
    return {"input_ids": tokens, "labels": ((tokens < 32).sum(1) > 6).long()}


def fit(model: nn.Module, steps: int, lr: float) -> nn.Module:
    scales = [p for name, p in model.named_parameters() if name.endswith("quantizer.scale")]
    others = [p for name, p in model.named_parameters() if not name.endswith("quantizer.scale")]
    slow = {"params": scales, "lr": lr / 10, "weight_decay": 0}  # Adam's steps are as large for small parameters
    optimizer = torch.optim.AdamW([{"params": others}, slow], lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**sentences(64)).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return 100 * (model(input_ids=test["input_ids"])["logits"].argmax(-1) == test["labels"]).float().mean().item()


torch.manual_seed(0)
test = sentences(500)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = fit(BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes)), 160, 3e-3)
batches = [sentences(64) for _ in range(4)]

prepared = qat.prepare(model, "transformer_w8a8", batches[0])
qat.calibrate(prepared, batches)
fit(prepared, 20, 1e-4)
print(f"float {accuracy(model):.1f} %, trained in 8 bits {accuracy(prepared):.1f} %")

folder = Path("outputs/examples/hugging_face")
qat.hf.save_pretrained(
    prepared, folder
)  # packed weights, config.json, a model card; qat.hf.push_to_hub uploads the same
again = qat.hf.from_pretrained(folder)
assert torch.equal(again(input_ids=test["input_ids"])["logits"], prepared(input_ids=test["input_ids"])["logits"])
print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()):,} bytes, the same outputs bit for bit")

integer = qat.convert(prepared)
qat.export_onnx(integer, batches[0], folder / "model.onnx")
check = qat.verify(folder / "model.onnx", integer, [test], prepared, record=True)
print(f"{folder}/model.onnx: {check.code_mismatches} of {check.codes_compared:,} codes differ")
assert check.passed, check
