import pytest
import torch
from torch.utils.data import DataLoader

from qat.data import TensorImages, collate


@pytest.fixture
def images() -> TensorImages:
    return TensorImages(torch.randint(0, 256, (10, 3, 4, 5), dtype=torch.uint8), torch.arange(10))


def test_a_batch_equals_its_items(images: TensorImages) -> None:
    rows = [7, 0, 7, 3]
    batch, labels = images.__getitems__(rows)
    assert batch.shape == (4, 3, 4, 5)
    for i, row in enumerate(rows):
        item, label = images[row]
        assert torch.equal(batch[i], item)
        assert labels[i] == label == row


def test_a_loader_fetches_whole_batches(images: TensorImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorImages, "__getitem__", None)  # item by item would fail
    loader = DataLoader(images, batch_size=4, collate_fn=collate)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images.images)


def test_collate_stacks_samples(images: TensorImages) -> None:
    batch, labels = collate([images[2], images[5]])
    assert torch.equal(batch, images.images[[2, 5]])
    assert labels.tolist() == [2, 5]


def test_selected_images_are_copies(images: TensorImages) -> None:
    chosen = images.select(torch.tensor([3, 1]))
    assert chosen.labels.tolist() == [3, 1]
    before = images.images[3].clone()
    chosen.images.zero_()
    assert torch.equal(images.images[3], before)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), r"torch.float32 \(2, 1, 4, 4\).*takes torch.uint8"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"\(2, 4, 4\).*\(N, C, H, W\)"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(3).long(), r"\(3,\): 2 images take .* \(2,\)"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2), "labels is torch.float32"),
    ],
)
def test_wrong_tensors_are_refused(pixels: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorImages(pixels, labels)
